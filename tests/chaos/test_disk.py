"""Disks that fill up or turn read-only in mid-run: a clear error, no partial commit, and the same run can go on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from infra import tables as tables_module
from infra.leases import Lease
from infra.storage import Storage
from infra.tables import DeltaStore, TableUnwritable

SIZE = "2m"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "FIRST_WAIT_S", 0.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "facereel-test", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def rows(sequence: int, num_bytes: int = 100_000) -> pa.Table:
    return pa.table({"video_id": [f"v{sequence:03}"], "data": [os.urandom(num_bytes)]})


def fill(store: DeltaStore) -> None:
    for sequence in range(1, 100):
        store.append("t", rows(sequence), run_id="run", sequence=sequence)


def ids(store: DeltaStore) -> list[str]:
    dataset = store.dataset("t")
    assert dataset is not None
    return sorted(dataset.to_table()["video_id"].to_pylist())


def test_a_full_disk(disk: Path) -> None:
    store = DeltaStore(str(disk / "tables"), Storage())
    with pytest.raises(TableUnwritable, match=r"tables/t cannot be written.*run again"):
        fill(store)
    committed = len(ids(store))
    assert 5 < committed < 20
    assert ids(store) == [f"v{n:03}" for n in range(1, committed + 1)], "whole commits, all of them"
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    assert store.append("t", rows(committed + 1), run_id="run", sequence=committed + 1)
    assert ids(store) == [f"v{n:03}" for n in range(1, committed + 2)]


def test_a_disk_that_turns_read_only(disk: Path) -> None:
    store = DeltaStore(str(disk / "tables"), Storage())
    with Lease(Storage(), store.root, "run") as lease:
        store.append("t", rows(1), run_id="run", sequence=1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(TableUnwritable, match="Read-only file system"):
            store.append("t", rows(2), run_id="run", sequence=2)
        assert ids(store) == ["v001"]
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        lease.check()
        assert store.append("t", rows(2), run_id="run", sequence=2)
    assert ids(store) == ["v001", "v002"]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    store = DeltaStore(str(tmp_path / "tables"), Storage())
    store.append("t", rows(1), run_id="run", sequence=1)
    (tmp_path / "tables" / "t").chmod(0o500)
    (tmp_path / "tables" / "t" / "_delta_log").chmod(0o500)
    with pytest.raises(TableUnwritable, match="ermission"):
        store.append("t", rows(2), run_id="run", sequence=2)
    assert ids(store) == ["v001"]
