"""The service as users run it: Ray Serve behind HAProxy, batches as jobs of the cluster, changes and restarts."""

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deltalake import DeltaTable

from infra.settings import TrackingSettings
from infra.stack.ports import free_ports
from infra.tracking import experiment_id, tracking_client
from models import registry
from models.faces.policy import FacePolicy
from models.scorer import save_scorer
from models.video.sampling import FramePolicy
from ray_jobs.drawing.catalog import draw_catalog
from serve.__main__ import ENVIRONMENT
from serve.client import Client
from tests.kuberay import clusters
from tests.manifests import render, walk
from tests.ray_head import Head, ray_head
from tests.serving_registry import Registry, changes_under_load
from tests.unit.scorers import small_manifest, small_network

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
TASKS = ("attractiveness", "fs2k")


def register(folder: Path, tracking: TrackingSettings, task: str, seed: int) -> str:
    client = tracking_client(tracking)
    policies = {"frame_policy": FramePolicy(every=20, limit=3), "face_policy": FacePolicy(crop_size=64)}
    path = folder / f"{task}-{seed}"
    save_scorer(path, small_network(task, seed), small_manifest(task).model_copy(update=policies))
    run_id = str(client.create_run(experiment_id(client, tracking)).info.run_id)
    version = str(registry.register(client, path, run_id=run_id).version)
    registry.set_alias(client, task, version, "champion")
    return version


@dataclass
class Place:
    """A cluster, a registry and drawn videos; services are started on them."""

    folder: Path
    tracking: TrackingSettings
    catalog: Path
    env: dict[str, str]
    head: Head

    @contextmanager
    def service(self, **serving: object) -> Iterator[str]:
        """A running service; further settings of its section by name."""
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "serve", "--port", str(port)]
        env = self.env | {f"FACEREEL_SERVING__{name.upper()}": str(value) for name, value in serving.items()}
        log = self.folder / f"serve-{port}.log"
        with log.open("wb") as out:
            child = subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 180
            while True:
                assert child.poll() is None, log.read_text()[-5000:]
                assert time.monotonic() < deadline, log.read_text()[-5000:]
                try:
                    if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.3)
            yield url
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(120) == 0, log.read_text()[-5000:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("serving")
    tracking = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
    for task in TASKS:
        register(folder, tracking, task, seed=0)
    drawn = draw_catalog(folder, 4, 1, 2, 0)
    metrics, stats = free_ports(2)
    env = ENVIRONMENT | {
        "FACEREEL_TRACKING__URI": tracking.uri,
        "FACEREEL_SERVING__BATCHES": str(folder / "batches"),
        "FACEREEL_SERVING__BUCKETS": f'["{folder}"]',
        "FACEREEL_SERVING__POLL_S": "0.5",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_DATA_USE_DATASOURCE_V2": "0",
        "PYTHONPATH": str(ROOT),  # as in the image
    }
    with ray_head(folder, env) as head:
        env = head.env | {"FACEREEL_CLUSTER__ADDRESS": head.address}
        yield Place(folder, tracking, drawn.catalog, env, head)


def rows_of(table: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DeltaTable(str(table)).to_pyarrow_table().to_pylist()
    return found


def test_online_in_a_batch_and_after_a_restart(place: Place) -> None:
    with place.catalog.open() as file:
        uris = {row["video_id"]: str(place.catalog.parent / row["uri"]) for row in csv.DictReader(file)}
    with place.service() as url, Client(url) as client:
        batch = client.create_batch(str(place.catalog), idempotency_key="all")
        seen = []
        batch = client.wait_for_batch(batch.id, every_s=0.5, progress=lambda found: seen.append(found.state))
        assert batch.state == "succeeded", batch
        assert batch.counts is not None
        assert batch.counts.due == batch.counts.done
        assert batch.counts.quarantined > 0

        # The same bytes give the same numbers in a job and online.
        num_compared = 0
        for task in TASKS:
            for row in rows_of(Path(batch.tables) / f"scores_{task}"):
                answer = client.score_video(uri=uris[row["video_id"]], tasks=[task]).tasks[task]
                assert answer.model.digest == row["scorer"]
                if row["status"] == "no_face":
                    assert answer.abstention is not None
                    continue
                assert answer.values is not None
                for name, value in answer.values.items():
                    assert row[name] == pytest.approx(value, abs=1e-4), (row["video_id"], name)
                    num_compared += 1
        assert num_compared > 50
        metrics_of_requests(place)
    with place.service() as url, Client(url) as client:
        again = client.get_batch(batch.id)
        assert (again.state, again.counts) == ("succeeded", batch.counts)
        assert client.create_batch(str(place.catalog), idempotency_key="all").id == batch.id
        stopped = client.create_batch(str(place.catalog))
        client.stop_batch(stopped.id)
        assert client.wait_for_batch(stopped.id, every_s=0.5).state == "stopped"
        a_new_champion_is_followed(place, client)


def metrics_of_requests(place: Place) -> None:
    """Prometheus finds the service's metrics at Ray's port of the node."""
    deadline = time.monotonic() + 300
    wanted = {"ray_facereel_requests", "ray_facereel_answers", "ray_facereel_model_version", "ray_facereel_ready"}
    found: set[str] = set()
    while not wanted <= found:
        with contextlib.suppress(httpx.TransportError):  # Ray's agent may be busy
            text = httpx.get(f"http://127.0.0.1:{place.head.metrics_port}/metrics").text
            found |= set(re.findall(r"^(ray_facereel_[a-z_]+?)(?:_total)?[{ ]", text, re.M))
        assert time.monotonic() < deadline, sorted(wanted - found)
        time.sleep(1)


def a_new_champion_is_followed(place: Place, client: Client) -> None:
    face = (ROOT / "serve" / "web" / "samples" / "face.jpg").read_bytes()
    ended = threading.Event()
    versions: list[str] = []

    def ask() -> None:
        while not ended.is_set():
            versions.append(client.score_image(face, tasks=["fs2k"]).tasks["fs2k"].model.version)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        while not versions:
            assert asking.is_alive(), "a request failed"
            time.sleep(0.1)
        version = register(place.folder, place.tracking, "fs2k", seed=1)
        deadline = time.monotonic() + 300
        while version not in versions:
            assert asking.is_alive(), "a request failed"
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        ended.set()
        asking.join()
    assert set(versions) == {"1", version}
    assert versions == sorted(versions)  # from then on


@pytest.mark.slow
def test_two_hundred_changes_on_replicas_that_come_and_go(place: Place, tmp_path: Path) -> None:
    store = Registry(tmp_path)
    first, second = store.good(), store.good()
    store.point("champion", first)
    store.point("challenger", second)
    num_changes = int(os.environ.get("CHANGES", "200"))
    replicas: list[int] = []
    with (
        replace(place, env=place.env | {"FACEREEL_TRACKING__URI": store.uri}).service(
            max_replicas=3, max_running=2, challenger_share=0.1, shadow_share=0.1, num_decoders=0, poll_s=0.2
        ) as url,
        watching(place, replicas),
    ):
        answers = changes_under_load(
            url, store, num_changes=num_changes, num_bad=max(1, num_changes // 10), num_clients=6, also=(second,)
        )
    assert len(answers) > num_changes
    assert second in {version for version, _ in answers}  # the challenger's share
    assert max(replicas) > 1, "the load has started no second replica"
    print(f"{len(answers)} answers by up to {max(replicas)} replicas over {num_changes} changes")


@contextmanager
def watching(place: Place, replicas: list[int]) -> Iterator[None]:
    """Note again and again how many replicas are there."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(2):
            with urllib.request.urlopen(f"http://127.0.0.1:{place.head.metrics_port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
            healthy = re.findall(
                r'^ray_serve_deployment_replica_healthy\{.*deployment="Scoring".*\} (\S+)$', text, re.M
            )
            replicas.append(round(sum(map(float, healthy))))  # a series for all, or one for each

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_the_rayservice_of_the_manifests_is_deployed_and_its_probes_answer(place: Place) -> None:
    """As KubeRay does it: the configuration goes to the head's API with the token, the kubelet's requests have none."""
    (manifest,) = [one for one in render("serve") if one["kind"] == "RayService"]
    (port,) = free_ports(1)
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    config["http_options"] = {"host": "127.0.0.1", "port": port}  # all that differs
    probes = {
        (probe["httpGet"]["path"], {52365: place.head.agent_port, "serve": port}[probe["httpGet"]["port"]])
        for node in walk(clusters(manifest))
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
        if (probe := node.get(name))
    }
    assert {asked for _, asked in probes} == {place.head.agent_port, port}
    address = f"{place.head.dashboard}/api/serve/applications/"
    token = Path(place.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert httpx.get(address).status_code == 401
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=120) as kuberay:
        try:
            kuberay.put(address, json=config).raise_for_status()
            deadline = time.monotonic() + 600
            while (found := kuberay.get(address).json()["applications"]["facereel"])["status"] != "RUNNING":
                assert found["status"] in ("NOT_STARTED", "DEPLOYING"), found
                assert time.monotonic() < deadline, found
                time.sleep(0.3)
            for path, asked in {*probes, ("/readyz", port)}:
                while (code := code_of(f"http://127.0.0.1:{asked}{path}")) != 200:  # as a kubelet: again and again
                    assert time.monotonic() < deadline, (path, code)
                    time.sleep(0.3)
        finally:
            kuberay.delete(address).raise_for_status()


def code_of(url: str) -> int | None:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return None


def test_beyond_loopback_it_wants_keys(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve", "--host", "0.0.0.0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "API keys are needed" in ended.stderr
