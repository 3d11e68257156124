"""Verbs as jobs of a real cluster with token authentication: exit codes, the log, a stop, what is refused before."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deltalake import DeltaTable

from models.faces.policy import FacePolicy
from models.scorer import save_scorer
from models.video.sampling import FramePolicy
from ray_jobs.drawing.catalog import draw_catalog
from tests.ray_head import Head, ray_head
from tests.unit.scorers import small_manifest, small_network

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240


@dataclass(frozen=True)
class Cluster:
    """A head, and the environment of those who submit to it."""

    head: Head
    folder: Path

    def command(self, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
        own = ["--address", self.head.dashboard, "--working-dir", str(ROOT), *options]
        return [sys.executable, "-m", "ray_jobs", "submit", *own, *arguments]

    def submit(
        self, *arguments: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, options=options),
            cwd=ROOT,
            env=os.environ | self.head.env | (env or {}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("submit")
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # jobs say `python`
        "FACEREEL_TRACKING__URI": f"sqlite:///{folder}/mlflow.db",
        "TEAM_SECRET": "known to the nodes alone",
    }
    with ray_head(folder, env, num_cpus=4) as head:
        yield Cluster(head, folder)


@pytest.mark.ray
def test_exit_codes_of_a_verb_are_those_of_its_job(cluster: Cluster) -> None:
    secret = ("--secret", "FACEREEL_STORAGE__SESSION_TOKEN=NOBODY_HAS_SET_THIS")
    missing = cluster.submit("status", "--tables", str(cluster.folder), options=secret)
    assert missing.returncode == 2, missing.stdout + missing.stderr
    assert (
        "error: missing on this node: FACEREEL_STORAGE__SESSION_TOKEN (the node's NOBODY_HAS_SET_THIS)"
        in missing.stdout
    )
    assert "ray job submit --no-wait" in missing.stderr
    assert re.search(r"upload: \d+\.\d MiB in \d+ files", missing.stderr)


@pytest.mark.ray
def test_the_doctor_as_a_job_looks_at_every_node(cluster: Cluster) -> None:
    tables = cluster.folder / "examined"
    secret = ("--secret", "MLFLOW_TRACKING_PASSWORD=TEAM_SECRET")
    good = cluster.submit("doctor", "--tables", str(tables), "--json", options=secret)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "known to the nodes alone" not in good.stdout + good.stderr
    findings = json.loads(good.stdout[good.stdout.index('{\n "ok"') : good.stdout.rindex("}") + 1])["findings"]
    levels = {item["name"].rpartition(": ")[2]: item["level"] for item in findings if ": " in item["name"]}
    assert set(levels) == {"python", "packages", "disk", "shared memory", "gpu", "nvdec", "clock"}
    levels = {item["name"]: item["level"] for item in findings}
    for name in ("versions", "token", "storage conditional put", "delta", "mlflow run", "mlflow registry"):
        assert levels[name] == "ok", findings
    assert list(tables.iterdir()) == []


@pytest.mark.ray
def test_a_gpu_recipe_without_gpus_is_refused_with_what_was_asked(cluster: Cluster) -> None:
    verb = ("score", "--catalog", "/none", "--tables", str(cluster.folder / "none"))
    planned = cluster.submit(*verb, "--gpus-per-predictor", "0.5", "--plan-resources")
    assert planned.returncode == 2, planned.stdout + planned.stderr
    assert re.search(r"cluster: 1 nodes \(0 spot\), 4 CPUs, 0 GPUs", planned.stdout)
    assert "need more than the cluster's 0 GPUs hold" in planned.stdout


@pytest.mark.ray
def test_a_job_that_ray_job_stop_ends_commits_and_says_how_to_go_on(cluster: Cluster) -> None:
    folder = cluster.folder
    drawn = draw_catalog(folder / "drawn", 4, 2, 4, 0)
    with Path(drawn.catalog).open() as file:
        videos = list(csv.DictReader(file))
    catalog = folder / "many.csv"
    lines = [f"{number},{Path(drawn.catalog).parent / videos[number % len(videos)]['uri']}" for number in range(3000)]
    catalog.write_text("\n".join(["video_id,uri", *lines]))
    manifest = small_manifest("fs2k").model_copy(
        update={"frame_policy": FramePolicy(every=20, limit=3), "face_policy": FacePolicy(crop_size=64)}
    )
    save_scorer(folder / "scorer", small_network("fs2k"), manifest)
    tables = folder / "tables"
    verb = ("score", "--catalog", str(catalog), "--tables", str(tables), "--scorer", f"fs2k={folder / 'scorer'}")
    child = subprocess.Popen(
        cluster.command(*verb, "--fail-first", "0", options=("--submission-id", "to-be-stopped")),
        cwd=ROOT,
        env=os.environ | cluster.head.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    seen = []
    for line in child.stdout:
        seen.append(line)
        if re.match(r"score [1-9]\d*/3000", line):  # rows have arrived
            break
    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", cluster.head.dashboard]
    subprocess.run([*stop, "to-be-stopped"], env=os.environ | cluster.head.env, check=True, timeout=TIMEOUT_S)
    rest, _ = child.communicate(timeout=TIMEOUT_S)
    log = "".join(seen) + rest
    assert child.returncode == 128 + signal.SIGTERM, log
    told = re.search(
        r"stopped: run (\S+): stopped by SIGTERM\. (\d+) of 3000 due videos are committed; go on with: (.*)", log
    )
    assert told, log
    assert told[3].startswith("python -m ray_jobs score --catalog")
    assert int(told[2]) > 0
    names = [path.name for path in tables.iterdir() if not path.name.startswith("_")]
    ids = [
        video_id
        for name in names
        for video_id in DeltaTable(str(tables / name)).to_pyarrow_table(columns=["video_id"])["video_id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == int(told[2])
    record = json.loads((tables / "_runs" / told[1] / "run.json").read_text())
    assert record["state"] == "stopped"
    lease = json.loads(max((tables / "_leases").glob("*.json")).read_text())
    assert lease["released"]
    done = subprocess.run(  # what is not committed is due again: nothing lost, nothing twice
        [sys.executable, "-m", "ray_jobs", "plan", *verb[1:], "--json"],
        cwd=ROOT,
        env=os.environ | {"FACEREEL_TRACKING__URI": cluster.head.env["FACEREEL_TRACKING__URI"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["num_due"] == 3000 - len(ids)


@pytest.mark.ray
def test_without_the_token_nothing_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "token"
    other.write_text("0" * 64)
    other.chmod(0o600)
    refused = cluster.submit("status", "--tables", "/tmp", env={"RAY_AUTH_TOKEN_PATH": str(other)})
    assert refused.returncode == 2
    assert "RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr
