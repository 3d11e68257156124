"""The doctor: every check with a machine or store that fails it, and one that passes."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra.errors import UserError
from infra.settings import StorageSettings, TrackingSettings, load_settings
from infra.stack.ports import free_ports
from infra.storage import AccessDenied, AlreadyExists, ObjectStat, Storage
from ray_jobs.diagnosing import examination, stores
from ray_jobs.diagnosing.examination import Examination, examine, print_findings
from ray_jobs.diagnosing.findings import Finding, exit_code, fail, guarded, ok, warn
from ray_jobs.diagnosing.judging import (
    GIB,
    by_machine,
    judge_clock,
    judge_disks,
    judge_gpu,
    judge_gpus_wanted,
    judge_nvdec,
    judge_packages,
    judge_ports,
    judge_python,
    judge_reach,
    judge_shm,
    judge_stop,
    judge_token,
    judge_versions,
    read_pins,
)
from ray_jobs.diagnosing.node import Disk, Gpus, NodeFacts, address_of, gather, is_free, reached
from ray_jobs.diagnosing.stores import check_delta, check_listing, check_mlflow, check_objects, check_server_clock
from ray_jobs.preflight import refuse_unwritable

ROOT = Path(__file__).resolve().parents[2]
PINS = {"ray": "2.60.0", "torch": "2.15.0", "nvidia-cublas": "13.0"}
H100 = Gpus(("H100",), "580.1", "13.0", 1, "", "")
FACTS = NodeFacts(
    host="one",
    python=(3, 11, 7),
    packages={"ray": "2.60.0", "torch": "2.15.0", "nvidia-cublas": "13.0"},
    disks=(Disk("/tmp", 100 * GIB, 200 * GIB),),
    shm_bytes=8 * GIB,
    gpus=H100,
)


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


def test_the_lock_is_read() -> None:
    lock = "ray[default]==1\naiohttp==3.14.5 \\\n    --hash=sha256:00\nTorch==2.15.0 ; sys_platform == 'linux' \\\n"
    assert read_pins(lock) == {"aiohttp": "3.14.5", "torch": "2.15.0"}
    assert {"ray", "torch", "deltalake"} <= set(read_pins((ROOT / "requirements.lock").read_text()))


def test_python() -> None:
    assert judge_python(FACTS).level == "ok"
    assert judge_python(replace(FACTS, python=(3, 12, 0))).level == "fail"


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        ({"ray": "2.59.0"}, "ray 2.59.0 (lock: 2.60.0)"),
        ({"torch": None}, "torch is missing"),
        ({"nvidia-cublas": None}, "nvidia-cublas is missing"),
    ],
)
def test_packages_that_differ_from_the_lock(packages: dict[str, str | None], words: str) -> None:
    assert judge_packages(FACTS, PINS).level == "ok"
    found = judge_packages(replace(FACTS, packages=FACTS.packages | packages), PINS)
    assert found.level == "fail"
    assert words in found.message


@pytest.mark.parametrize("build", ["13.0", None])  # of torch: the image's own is built for CUDA on CPUs too
def test_packages_of_a_cpu_image_need_no_cuda(build: str | None) -> None:
    on_cpu = replace(FACTS, gpus=Gpus(torch_cuda=build), packages=FACTS.packages | {"nvidia-cublas": None})
    assert judge_packages(on_cpu, PINS).level == "ok"
    assert judge_packages(FACTS, {}).level == "warn"


def test_disks() -> None:
    assert judge_disks([Disk("/tmp", 50 * GIB, 200 * GIB)]).level == "ok"
    assert judge_disks([Disk("/tmp", 9 * GIB, 100 * GIB)]).level == "warn"
    full = judge_disks(
        [Disk("/", 50 * GIB, 200 * GIB), Disk("/tmp", 40 * GIB, 1000 * GIB), Disk("/x", 9 * GIB, 99 * GIB)]
    )
    assert full.level == "fail"
    assert "/tmp" in full.message


def test_shared_memory() -> None:
    assert judge_shm(FACTS).level == "ok"
    assert judge_shm(replace(FACTS, shm_bytes=64 << 20)).level == "warn"


@pytest.mark.parametrize(
    ("gpus", "of_ray", "level"),
    [
        (Gpus(), None, "ok"),
        (Gpus(), 0.0, "ok"),
        (Gpus(), 1.0, "fail"),
        (H100, 1.0, "ok"),
        (H100, None, "ok"),
        (H100, 0.0, "warn"),
        (replace(H100, torch_cuda=None, torch_count=0), 1.0, "fail"),
        (replace(H100, torch_count=0), 1.0, "fail"),
        (replace(H100, torch_error="CUDA driver version is insufficient"), 1.0, "fail"),
        (Gpus(("H100",), "580.1", torch_error="the probe did not answer"), 1.0, "fail"),
    ],
)
def test_gpus(gpus: Gpus, of_ray: float | None, level: str) -> None:
    found = judge_gpu(gpus, num_of_ray=of_ray)
    assert found.level == level
    assert "None" not in found.message + found.fix


def test_nvdec() -> None:
    assert judge_nvdec(Gpus()).level == "ok"
    assert judge_nvdec(H100).level == "ok"
    assert judge_nvdec(replace(H100, nvdec_error="No device")).level == "warn"


def test_the_probe_decodes_and_says_what_fails_here() -> None:
    import io

    import av

    from ray_jobs.diagnosing.gpu_probe import clip, nvdec_error, torch_facts

    with av.open(io.BytesIO(clip())) as container:
        assert len(list(container.decode(video=0))) == 4
    import torch

    if not torch.cuda.is_available():
        assert nvdec_error()
        assert torch_facts()["count"] == 0


def test_a_recipe_for_gpus_without_any() -> None:
    assert judge_gpus_wanted(0, wanted=True).level == "fail"
    assert judge_gpus_wanted(1, wanted=True).level == "ok"
    assert judge_gpus_wanted(0, wanted=False).level == "ok"


def test_versions_across_nodes() -> None:
    other = replace(FACTS, packages=FACTS.packages | {"ray": "2.59.0"})
    assert judge_versions({"a": FACTS, "b": FACTS}, FACTS).level == "ok"
    found = judge_versions({"a": FACTS, "b": other}, FACTS)
    assert found.level == "fail"
    assert "Ray 2.59.0 with Python 3.11.7: b" in found.message
    assert judge_versions({"a": replace(FACTS, python=(3, 11, 9))}, FACTS).level == "fail"
    assert judge_versions({}, FACTS).level == "fail"


def test_clocks() -> None:
    assert judge_clock("x", 1.0, 0.1).level == "ok"
    assert judge_clock("x", 60.0, 59.0).level == "ok"  # what is not known is not said
    assert judge_clock("x", -5.0, 0.1).level == "warn"
    assert judge_clock("x", -50.0, 0.1).level == "fail"


def test_the_clock_of_a_server() -> None:
    now = time.time()
    assert check_server_clock("x", "", head=lambda url: formatdate(now, usegmt=True)).level == "ok"
    assert check_server_clock("x", "", head=lambda url: formatdate(now + 120, usegmt=True)).level == "fail"
    assert check_server_clock("x", "", head=lambda url: None).level == "warn"


def test_ports_and_reach() -> None:
    port = free_ports(1)[0]
    assert is_free(port)
    assert "refused" in reached(f"127.0.0.1:{port}").lower()
    assert levels(judge_reach(replace(FACTS, reach={"a:1": "", "b:2": "timed out"}))) == {"network": "fail"}
    assert [item.level for item in judge_ports({1: True, 2: False}, {1: "a", 2: "b"})] == ["ok", "warn"]
    assert address_of("https://s3.example.com/x") == "s3.example.com:443"
    assert address_of("http://mlflow:5000") == "mlflow:5000"
    assert address_of("sqlite:///mlflow.db") is None
    assert address_of("http://mlflow:port") is None


@pytest.mark.parametrize(("wait", "level"), [("120", "ok"), (None, "warn"), ("10", "warn"), ("2m", "fail")])
def test_time_between_stop_and_kill(wait: str | None, level: str) -> None:
    assert judge_stop(wait).level == level


def test_a_dashboard_without_a_token() -> None:
    assert judge_token(401).level == "ok"
    assert judge_token(200).level == "fail"


def test_facts_of_this_machine() -> None:
    facts = gather({"ray": "2.60.0", "no-such-package": "1"}, [], with_gpus=False)
    assert facts.packages["ray"]
    assert facts.packages["no-such-package"] is None
    assert all(0 < disk.free_bytes < disk.total_bytes for disk in facts.disks)


def test_a_folder_that_ray_has_still_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not" / "yet"))
    assert str(tmp_path / "not" / "yet") in [disk.path for disk in gather({}, [], with_gpus=False).disks]


class Denying(Storage):
    """A bucket that may be read only."""

    def put(self, uri: str, data: bytes) -> ObjectStat:
        raise AccessDenied(f"{uri}: access denied")


class Keeping(Storage):
    """A bucket that nothing may be deleted from."""

    def delete(self, uri: str) -> None:
        raise AccessDenied(f"{uri}: access denied")


class Overwriting(Storage):
    """A server that knows no If-None-Match."""

    def put_if_absent(self, uri: str, data: bytes) -> ObjectStat:
        return self.put(uri, data)


class Racing(Storage):
    """A server that tells several that they were first."""

    def put_if_absent(self, uri: str, data: bytes) -> ObjectStat:
        if "race" not in uri and self.exists(uri):
            raise AlreadyExists(uri)
        return self.put(uri, data)


class Whole(Storage):
    """Behind a proxy that drops ranges."""

    def read_range(self, uri: str, start: int, end: int, etag: str | None = None) -> bytes:
        return self.read_all(uri)


def test_objects_on_a_disk(tmp_path: Path) -> None:
    found = check_objects(Storage(), str(tmp_path))
    assert set(levels(found).values()) == {"ok"}
    assert [item.name for item in found] == [
        "storage write",
        "storage list",
        "storage read",
        "storage conditional put",
        "storage delete",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("storage", "name", "level"),
    [
        (Denying(), "storage write", "fail"),
        (Overwriting(), "storage conditional put", "fail"),
        (Racing(), "storage conditional put", "warn"),
        (Whole(), "storage read", "fail"),
    ],
)
def test_stores_that_fail(tmp_path: Path, storage: Storage, name: str, level: str) -> None:
    assert levels(check_objects(storage, str(tmp_path)))[name] == level
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_deletes_nothing(tmp_path: Path) -> None:
    (found,) = [item for item in check_objects(Keeping(), str(tmp_path)) if item.level != "ok"]
    assert found.name == "storage delete"
    assert "stays behind" in found.message


@pytest.fixture(scope="module")
def bucket() -> Iterator[StorageSettings]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = StorageSettings(
        endpoint_url=f"http://{host}:{port}", access_key_id="a", secret_access_key="b", max_attempts=1
    )
    boto3.client(
        "s3",
        endpoint_url=settings.endpoint_url,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
    ).create_bucket(Bucket="bucket")
    yield settings
    server.stop()


def test_objects_and_commits_in_a_bucket(bucket: StorageSettings) -> None:
    storage = Storage(bucket)
    assert set(levels(check_objects(storage, "s3://bucket/tables")).values()) <= {"ok", "warn"}  # moto's race
    assert check_delta(storage, "s3://bucket/tables").level == "ok"
    assert list(storage.list_prefix("s3://bucket/")) == []
    found = guarded("storage", "grant it", lambda: check_objects(storage, "s3://nowhere/tables"))
    assert [(item.name, item.level, item.fix) for item in found] == [("storage", "fail", "grant it")]


def test_a_catalog_is_listed_and_read(bucket: StorageSettings, tmp_path: Path) -> None:
    storage = Storage(bucket)
    storage.put("s3://bucket/videos/a.mp4", b"video")
    assert check_listing(storage, "s3://bucket/videos").level == "ok"
    assert check_listing(storage, "s3://bucket/videos/a.mp4").level == "ok"
    assert check_listing(storage, "s3://bucket/other").level == "fail"
    storage.delete("s3://bucket/videos/a.mp4")
    (tmp_path / "catalog.csv").write_text("video_id,uri\n")
    assert check_listing(storage, str(tmp_path / "catalog.csv")).level == "ok"


def test_a_store_that_loses_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_delta(Storage(), str(tmp_path)).level == "ok"
    monkeypatch.setattr("infra.tables.DeltaStore.append", lambda *_, **__: True)
    assert check_delta(Storage(), str(tmp_path)).level == "fail"
    assert list(tmp_path.iterdir()) == []


def test_mlflow(tmp_path: Path) -> None:
    found = check_mlflow(TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert levels(found) == {"mlflow run": "ok", "mlflow registry": "ok"}


def test_an_mlflow_server_that_is_away_is_said_in_seconds() -> None:
    uri = f"http://127.0.0.1:{free_ports(1)[0]}"
    found = guarded("mlflow", "start it", lambda: check_mlflow(TrackingSettings(uri=uri)))
    assert [(item.name, item.level) for item in found] == [("mlflow", "fail")]
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_run_says_at_once_that_it_cannot_write(bucket: StorageSettings, tmp_path: Path) -> None:
    refuse_unwritable(Storage(bucket), "--tables", "s3://bucket/tables")
    assert list(Storage(bucket).list_prefix("s3://bucket/")) == []
    with pytest.raises(UserError, match=r"--tables s3://bucket/tables: cannot be written.*grant list, get, put"):
        refuse_unwritable(Denying(bucket), "--tables", "s3://bucket/tables")
    with pytest.raises(UserError, match="--out s3://nowhere/out: cannot be written"):
        refuse_unwritable(Storage(bucket), "--out", "s3://nowhere/out")
    refuse_unwritable(Denying(), "--tables", str(tmp_path / "tables"))
    assert not (tmp_path / "tables").exists()


def test_findings() -> None:
    assert exit_code([ok("a", ""), warn("b", "", "do")]) == 0
    assert exit_code([ok("a", ""), fail("b", "", "do")]) == 1
    assert by_machine("node", [warn("disk", "m", "f")]) == [warn("node: disk", "m", "f")]
    with pytest.raises(AssertionError):
        fail("a", "says not how", "")


def test_the_round_and_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(examination, "gather", lambda pins, addresses: replace(FACTS, packages=pins))
    monkeypatch.setattr(stores, "NUM_ROUNDS", 1)
    settings = load_settings(os.devnull, tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    findings = examine(Examination(tables=str(tmp_path / "tables"), gpu=True), settings)
    assert {item.level for item in findings if item.name != "ports"} == {"ok"}
    assert print_findings(findings, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is True
    assert {"python", "packages", "delta", "mlflow run", "gpus for the recipe"} <= {
        item["name"] for item in printed["findings"]
    }
    broken = examine(Examination(catalog=str(tmp_path / "none"), address="http://127.0.0.1:9"), settings)
    assert levels(broken)["catalog"] == "fail"
    assert levels(broken)["job api"] == "fail"
    assert levels(broken)["storage"] == "warn"
    assert print_findings(broken, as_json=False) == 1
    assert "→" in capsys.readouterr().out
