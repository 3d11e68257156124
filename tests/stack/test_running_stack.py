"""The running local stack (`make stack`), used as a user does: everything through `ray job submit`, nothing on disk."""

import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pytest

if not os.environ.get("FACEREEL_TEST_STACK"):
    pytest.skip("no stack to test against: make stack, then make stack-test", allow_module_level=True)

from infra.promql import dashboard_queries, exposed_metrics, metric_names, rule_queries
from infra.settings import load_settings
from infra.stack.answers import DASHBOARD, answers, ask
from infra.stack.ports import free_ports
from infra.storage import Storage, join
from infra.tables import DeltaStore
from infra.tracking import tracking_client
from models import promotion, registry
from ray_jobs.drawing.catalog import draw_catalog
from ray_jobs.score_table import QUARANTINE, score_table
from serve.client import Client

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "infra/prometheus/rules.yml"
RAY = Path(sys.executable).with_name("ray")
PROMETHEUS = os.environ.get("FACEREEL_TEST_PROMETHEUS")
TASK = "attractiveness"
POLICY = "{frame: {every: 12, limit: 3}, face: {crop_size: 64}}"
NUM_FACES, NUM_NO_FACE, NUM_BROKEN = 19, 2, 6
NUM_DUE = NUM_FACES - 1 + NUM_NO_FACE + NUM_BROKEN  # without the minor

pytestmark = pytest.mark.timeout(1500)


@dataclass
class World:
    """A drawn catalog in a bucket of its own prefix, and what was seen of the metrics."""

    root: str
    storage: Storage
    start: float
    seen: set[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("drawn")
    drawn = draw_catalog(folder, NUM_FACES, NUM_NO_FACE, NUM_BROKEN, 0, num_frames=30, labelled_part=1)
    storage = Storage(load_settings().storage)
    root = f"s3://facereel/stack-test-{secrets.token_hex(4)}"
    for path in (*sorted((folder / "videos").iterdir()), drawn.catalog, drawn.labels):
        storage.put(join(root, str(path.relative_to(folder))), path.read_bytes())
    client = tracking_client(load_settings().tracking)
    champion = promotion.look(client, TASK).champion
    yield World(root, storage, time.time(), set())
    if champion is not None:  # of whoever works with this stack
        promotion.promote(client, TASK, champion, reason="as before the stack's test")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.delete, [stat.uri for stat in storage.list_prefix(root)]))


def submit(*command: str, submission_id: str | None = None, wait: bool = True) -> str:
    """What a job printed."""
    options = ["--submission-id", submission_id or f"test-{secrets.token_hex(4)}", *([] if wait else ["--no-wait"])]
    done = subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", *options, "--", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def look_at_metrics(world: World) -> None:
    for port in os.environ["FACEREEL_TEST_METRICS_PORTS"].split():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            world.seen |= exposed_metrics(answer.read().decode())


def test_ingest_ends_with_its_reasons(world: World) -> None:
    (port,) = free_ports(1)
    # Tries of half a minute: a rate needs two looks of Prometheus.
    rules = "{ingest: {allow_networks: [127.0.0.0/8], robots: ignore, attempts: 3, backoff_s: 10}}"
    out = submit(
        "bash", "-c", f"echo http://127.0.0.1:{port}/video.mp4 > list.txt && cat > policy.yaml <<< '{rules}' && "
        f"exec python -m ray_jobs ingest --from list.txt --into {world.root}/ingested --policy policy.yaml",
    )  # fmt: skip
    assert "unreachable" in out


def test_train_and_score_with_everything_in_the_bucket(world: World) -> None:
    policy = f"cat > policy.yaml <<< '{POLICY}' && exec"
    out = submit(
        "bash", "-c", f"{policy} python -m ray_jobs prepare --labels {world.root}/labels.csv --out {world.root}/crops "
        f"--task {TASK} --policy policy.yaml",
    )  # fmt: skip
    assert f"crops dataset {world.root}/crops" in out
    out = submit(
        *f"python -m ray_jobs train --task {TASK} --dataset {world.root}/crops --storage {world.root}/train".split(),
        *["--recipe", "demo", "--epochs", "3", "--workers", "2"],
    )
    (version,) = re.findall(rf"{registry.model_name(TASK)} version (\d+)", out)
    client = tracking_client(load_settings().tracking)
    assert registry.find_version(client, version, task=TASK).run_id
    s3 = boto3.client(
        "s3",
        endpoint_url=os.environ["FACEREEL_TEST_S3_ENDPOINT"],
        region_name="us-east-1",
        aws_access_key_id=os.environ["FACEREEL_TEST_S3_KEY"],
        aws_secret_access_key=os.environ["FACEREEL_TEST_S3_SECRET"],
    )
    listed = s3.list_objects_v2(Bucket="mlflow")
    assert any("weights.safetensors" in item["Key"] for item in listed["Contents"])

    promotion.promote(client, TASK, version, reason="the stack's test")
    out = submit(
        *f"python -m ray_jobs score --catalog {world.root}/catalog.csv --tables {world.root}/tables".split(),
        *f"--task {TASK} --commit-every 3".split(),
    )
    assert f"{NUM_DUE} of {NUM_DUE} due videos accounted for" in out
    store = DeltaStore(f"{world.root}/tables", world.storage)
    assert store.num_rows(score_table(TASK)) + store.num_rows(QUARANTINE) == NUM_DUE
    look_at_metrics(world)
    again = f"python -m ray_jobs score --catalog {world.root}/catalog.csv --tables {world.root}/tables --task {TASK}"
    out = submit(*again.split())
    assert "nothing to do" in out


@contextmanager
def service() -> Iterator[str]:
    """`python -m serve` as a job of the cluster."""
    (port,) = free_ports(1)
    job = f"serve-{secrets.token_hex(4)}"
    submit(*f"python -m serve --port {port}".split(), submission_id=job, wait=False)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            status = subprocess.run([RAY, "job", "status", job], capture_output=True, text=True, check=False).stdout
            assert "FAILED" not in status, status
            assert time.monotonic() < deadline, status
            time.sleep(1)
        yield url
    finally:
        subprocess.run([RAY, "job", "stop", job], capture_output=True, check=True)


def test_serve_as_a_job(world: World) -> None:
    from io import BytesIO

    from PIL import Image

    grey = BytesIO()
    Image.new("RGB", (256, 256), (128, 128, 128)).save(grey, "PNG")
    face = (ROOT / "serve/web/samples/face.jpg").read_bytes()
    with service() as url:
        for _ in range(20):  # over several scrapes: a rate needs two
            time.sleep(2)
            answer = httpx.post(f"{url}/v1/images:score", content=face, timeout=60)
            assert answer.status_code == 200, answer.text
            httpx.post(f"{url}/v1/images:score", content=grey.getvalue(), timeout=60)
        assert httpx.post(f"{url}/v1/images:score", content=b"no picture", timeout=60).status_code == 415
        with Client(url) as client:  # on the CPUs that the service leaves
            batch = client.create_batch(f"{world.root}/catalog.csv", tasks=[TASK])
            batch = client.wait_for_batch(batch.id, every_s=2)
        assert batch.state == "succeeded", batch
        assert batch.counts is not None
        assert batch.counts.done == batch.counts.due == NUM_DUE
        time.sleep(25)  # Ray sends every ten seconds, Prometheus looks every ten seconds
        look_at_metrics(world)


def test_every_query_names_metrics_that_the_stack_exposes(world: World) -> None:
    if PROMETHEUS:  # it has scraped all the time, and so has what came and went between two of our looks
        since, until = str(world.start), str(time.time())
        world.seen |= set(ask(PROMETHEUS, "label/__name__/values", start=since, end=until))
    else:
        world.seen.add("up")  # Prometheus' own
    for queries in (dashboard_queries(DASHBOARD), rule_queries(RULES)):
        missing = {name: metric_names(expression) - world.seen for name, expression in queries.items()}
        assert {name: names for name, names in missing.items() if names} == {}


@pytest.mark.skipif(PROMETHEUS is None, reason="the stack runs without Prometheus: it is not to be had here")
def test_every_query_of_the_dashboard_is_answered(world: World) -> None:
    assert PROMETHEUS
    seconds = time.time() - world.start + 10
    queries = dashboard_queries(DASHBOARD)
    assert [name for name, expression in queries.items() if not answers(PROMETHEUS, expression, seconds)] == []


@pytest.mark.skipif(PROMETHEUS is None, reason="the stack runs without Prometheus: it is not to be had here")
def test_the_alert_rules_are_loaded_and_evaluated() -> None:
    assert PROMETHEUS
    rules = [rule for group in ask(PROMETHEUS, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(rule_queries(RULES))
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
    with pytest.raises(urllib.error.HTTPError):
        ask(PROMETHEUS, "query", query="sum(")


def test_a_stranger_gets_no_answer() -> None:
    """Without the token the head takes no job."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{os.environ['RAY_API_SERVER_ADDRESS']}/api/jobs/", timeout=10)
    assert caught.value.code in (401, 403)
