"""Delta tables: commits exactly once, whole, and with columns that grow."""

from pathlib import Path

import pyarrow as pa
import pytest

from infra.storage import Storage
from infra.tables import DeltaStore


@pytest.fixture
def store(tmp_path: Path) -> DeltaStore:
    return DeltaStore(str(tmp_path), Storage())


def rows(*ids: str) -> pa.Table:
    return pa.table(
        {"video_id": list(ids), "dropped": pa.array([[("no_face", 1)]] * len(ids), pa.map_("string", "int32"))}
    )


def committed(store: DeltaStore) -> list[str]:
    dataset = store.dataset("t")
    assert dataset is not None
    return sorted(dataset.to_table()["video_id"].to_pylist())


def test_an_absent_table_has_no_rows(store: DeltaStore) -> None:
    assert store.dataset("t") is None
    assert store.num_rows("t") == 0


def test_appended_rows_are_there(store: DeltaStore) -> None:
    assert store.append("t", rows("a", "b"), run_id="run", sequence=1)
    assert store.append("t", rows("c"), run_id="run", sequence=2)
    assert committed(store) == ["a", "b", "c"]
    assert store.num_rows("t") == 3


def test_a_repeated_commit_is_not_doubled(store: DeltaStore) -> None:
    store.append("t", rows("a"), run_id="run", sequence=1)
    assert not store.append("t", rows("a"), run_id="run", sequence=1)
    assert committed(store) == ["a"]


def test_the_first_commit_repeated_by_another_process_is_not_doubled(store: DeltaStore) -> None:
    store.append("t", rows("a"), run_id="run", sequence=1)
    again = DeltaStore(store.root, Storage())
    assert not again.append("t", rows("a"), run_id="run", sequence=1)
    assert again.append("t", rows("a"), run_id="other run", sequence=1)
    assert committed(again) == ["a", "a"]


def test_a_new_column_is_null_in_old_rows(store: DeltaStore) -> None:
    store.append("t", rows("a"), run_id="run", sequence=1)
    store.append("t", rows("b").append_column("views", pa.array([7])), run_id="run", sequence=2)
    dataset = store.dataset("t")
    assert dataset is not None
    assert {row["video_id"]: row["views"] for row in dataset.to_table().to_pylist()} == {"a": None, "b": 7}
