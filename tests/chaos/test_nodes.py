"""Scoring, training and serving on four nodes: they survive the loss of some, and use those that join.

The short form loses a node or two of each; ``make nodes`` plays the long one.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from infra.settings import TrackingSettings
from infra.stack.ports import free_ports
from infra.storage import Storage
from infra.tables import DeltaStore
from infra.tracking import experiment_id, tracking_client
from models import registry
from ray_jobs.score_table import score_table
from ray_jobs.training.checkpoint import LAST, Checkpoints
from serve.__main__ import ENVIRONMENT
from serve.client import Client, Retries
from tests.chaos.account import Account, account
from tests.chaos.nodes import Nodes, some_nodes, until
from tests.chaos.world import make_catalog, make_crops_dataset, make_images, make_scorers

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
TASKS = ("attractiveness", "fs2k")
FACE = ROOT / "serve" / "web" / "samples" / "face.jpg"
# How many times nodes are lost: in `make test`, and in `make nodes`.
ROUNDS = pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])


@dataclass
class Place:
    """The cluster, a registry and a folder; commands run as users run them."""

    nodes: Nodes
    folder: Path
    env: dict[str, str]

    @property
    def tracking(self) -> TrackingSettings:
        return TrackingSettings(uri=f"sqlite:///{self.folder}/mlflow.db")

    @contextmanager
    def command(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command of the project on the cluster; it is ended with the block."""
        env = os.environ | self.env | {"FACEREEL_CLUSTER__ADDRESS": self.nodes.address}
        log = self.folder / f"{words[1]}-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            child = subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, env=env, stdout=out, stderr=out)
        try:
            yield child
        except BaseException:
            print(log.read_text(errors="replace")[-5000:])
            raise
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(120)
                except subprocess.TimeoutExpired:
                    child.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all tests here, and for no others: it takes half a GiB."""
    folder = tmp_path_factory.mktemp("nodes")
    metrics, stats = free_ports(2)
    env = ENVIRONMENT | {
        "FACEREEL_TRACKING__URI": f"sqlite:///{folder}/mlflow.db",
        "FACEREEL_SERVING__NUM_REPLICAS": "2",
        "FACEREEL_SERVING__MAX_REPLICAS": "2",
        "FACEREEL_SERVING__POLL_S": "0.5",
        "RAY_DATA_USE_DATASOURCE_V2": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
    }
    with some_nodes(env) as nodes:
        yield Place(nodes, folder, env)


@pytest.fixture
def place(cluster: Place) -> Place:
    cluster.nodes.fill()
    return cluster


@ROUNDS
def test_scoring_goes_on_with_the_nodes_that_there_are(place: Place, tmp_path: Path, rounds: int) -> None:
    """The predictor takes one node's CPU: when two of three are lost, decoding waits for one that joins."""
    scorers, digests = make_scorers(tmp_path, TASKS)
    catalog = make_catalog(tmp_path / "catalog", make_images(tmp_path), 80 * (1 + rounds))
    tables, rng = tmp_path / "tables", random.Random(rounds)
    words = ["score", "--catalog", str(catalog), "--tables", str(tables), "--rows-per-block", "4"]
    words += ["--commit-rows", "8", "--commit-every", "2", "--max-failure-rate", "1", "--fail-first", "0"]
    for task, path in scorers.items():
        words += ["--scorer", f"{task}={path}"]
    store = DeltaStore(str(tables), Storage())
    with place.command("ray_jobs", *words) as run:
        for _ in range(rounds):
            seen = store.num_rows(score_table("fs2k"))
            until(
                lambda seen=seen: store.num_rows(score_table("fs2k")) > seen or run.poll() is not None, "another commit"
            )
            assert run.poll() is None, "the run ended before a node was lost"
            for node in rng.sample(place.nodes.alive, 2):
                place.nodes.lose(node)
            joined = place.nodes.join()
            until(
                lambda joined=joined: joined in place.nodes.with_title("ray::Map") or run.poll() is not None,
                "the node that joined is used",
            )
            place.nodes.fill()
        assert run.wait(300) == 0
    found = account(str(tables), catalog, digests)
    assert found == Account(num_rows=found.num_rows)
    assert found.num_rows > 0


@ROUNDS
def test_training_waits_for_a_node_that_joins_and_goes_on(place: Place, tmp_path: Path, rounds: int) -> None:
    """Two workers need two of three nodes: when one of them and the idle one are lost, they wait for one that joins."""
    dataset = make_crops_dataset(tmp_path / "crops")
    name, epochs = f"nodes-{rounds}", 6 * (1 + rounds)
    words = ["train", "--task", "attractiveness", "--dataset", dataset, "--storage", str(tmp_path / "train")]
    words += ["--name", name, "--workers", "2", "--backbone", "shufflenet_v2_x0_5", "--input-size", "32"]
    words += ["--epochs", str(epochs), "--batch-size", "6", "--checkpoint-every-steps", "2"]
    checkpoints, rng = Checkpoints(str(tmp_path / "train"), name, Storage()), random.Random(rounds)

    def epoch() -> int:
        state = checkpoints.load(LAST)
        return -1 if state is None else int(state["epoch"])

    with place.command("ray_jobs", *words) as run:
        for _ in range(rounds):
            seen = epoch()
            until(lambda seen=seen: epoch() > seen or run.poll() is not None, "another epoch")
            assert run.poll() is None, "the run ended before a node was lost"
            at_work = place.nodes.with_title("RayTrainWorker")
            assert len(at_work) == 2
            for node in [rng.choice(at_work), *(node for node in place.nodes.alive if node not in at_work)]:
                place.nodes.lose(node)
            joined = place.nodes.join()
            until(lambda joined=joined: joined in place.nodes.with_title("RayTrainWorker"), "the node is used")
            place.nodes.fill()
        assert run.wait(300) == 0
    client = tracking_client(place.tracking)
    by_name = {client.get_run(one.run_id).info.run_name: one for one in registry.versions(client, "attractiveness")}
    version = by_name[name]
    history = client.get_metric_history(version.run_id, "mae")
    assert [metric.step for metric in history] == list(range(epochs)), "every epoch once"
    found = registry.resolve(client, str(version.version), task="attractiveness")
    assert found.scorer.manifest.training.num_epochs == epochs


@pytest.mark.slow
def test_elastic_training_goes_on_with_fewer_workers(place: Place, tmp_path: Path) -> None:
    dataset = make_crops_dataset(tmp_path / "crops")
    words = ["train", "--task", "attractiveness", "--dataset", dataset, "--storage", str(tmp_path / "train")]
    words += ["--name", "elastic", "--workers", "1:2", "--backbone", "shufflenet_v2_x0_5", "--input-size", "32"]
    words += ["--epochs", "12", "--batch-size", "6", "--checkpoint-every-steps", "2"]
    checkpoints = Checkpoints(str(tmp_path / "train"), "elastic", Storage())
    with place.command("ray_jobs", *words) as run:
        until(lambda: checkpoints.load(LAST) or run.poll() is not None, "a checkpoint")
        assert run.poll() is None, "the run ended before a node was lost"
        at_work = place.nodes.with_title("RayTrainWorker")
        for node in [at_work[0], *(node for node in place.nodes.alive if node not in at_work)]:
            place.nodes.lose(node)
        assert run.wait(300) == 0


@ROUNDS
def test_serving_answers_all_the_time_and_fills_the_gap_on_a_node_that_joins(
    place: Place, tmp_path: Path, rounds: int
) -> None:
    """Two replicas that score and one that decodes take all three nodes."""
    digest = _champion(place, tmp_path)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    replica, rng = "ServeReplica:facereel:Scoring", random.Random(rounds)
    with place.command("serve", "--port", str(port)) as service:

        def is_ready() -> bool:
            assert service.poll() is None
            try:
                return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        until(is_ready, "the service is ready", max_s=180)
        until(lambda: len(place.nodes.with_title(replica)) == 2, "two replicas on two nodes")
        with _asking(url) as answers:
            for _ in range(rounds):
                seen = len(answers)
                until(lambda seen=seen: len(answers) > seen + 5, "answers")
                place.nodes.lose(rng.choice(place.nodes.with_title(replica)))
                seen = len(answers)
                until(lambda seen=seen: len(answers) > seen + 5, "answers from the replica that is left")
                joined = place.nodes.join()
                until(lambda joined=joined: joined in place.nodes.with_title("ServeReplica"), "the node is used")
                until(lambda: len(place.nodes.with_title(replica)) == 2, "two replicas again")
            until(is_ready, "the service is ready again")
        assert set(answers) == {digest}


def _champion(place: Place, folder: Path) -> str:
    """Make a scorer the champion of fs2k; its digest."""
    directories, digests = make_scorers(folder, ("fs2k",))
    client = tracking_client(place.tracking)
    run_id = str(client.create_run(experiment_id(client, place.tracking)).info.run_id)
    version = registry.register(client, Path(directories["fs2k"]), run_id=run_id).version
    registry.set_alias(client, "fs2k", str(version), "champion")
    return digests["fs2k"]


@contextmanager
def _asking(url: str) -> Iterator[list[str]]:
    """A client that asks all the time, as clients do that try again; the digests that it is answered with.

    Its failures, if any, are raised at the end.
    """
    ended, answers, failures = threading.Event(), [], Counter()

    def ask() -> None:
        with Client(url, retries=Retries(most=8)) as client:
            while not ended.is_set():
                try:
                    found = client.score_image(FACE.read_bytes(), tasks=["fs2k"])
                    answers.append(found.tasks["fs2k"].model.digest)
                except Exception as error:
                    failures[f"{type(error).__name__}: {error}"[:200]] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()
    print(f"{len(answers)} answers, failures: {dict(failures)}")
    assert not failures
