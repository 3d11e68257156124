"""Delta tables: commits exactly once, whole, and with columns that grow."""

import os
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from infra import tables as tables_module
from infra.storage import Storage
from infra.tables import DeltaStore, Fenced, TableUnreadable, TableUnwritable


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


SCHEMA = pa.schema([pa.field("video_id", pa.string())])


def test_a_fence_makes_the_table_and_holds_no_rows(store: DeltaStore) -> None:
    store.with_epoch(3).fence("t", SCHEMA)
    assert (store.num_rows("t"), store.epoch("t"), store.version("t")) == (0, 3, 0)
    store.with_epoch(3).fence("t", SCHEMA)
    assert store.version("t") == 0, "once is enough"


def test_an_earlier_writer_is_shut_out_by_a_fence(store: DeltaStore) -> None:
    early, late = store.with_epoch(1), store.with_epoch(2)
    early.fence("t", SCHEMA)
    early.append("t", rows("a"), run_id="early", sequence=1)
    late.fence("t", SCHEMA)
    for attempt in (
        lambda: early.append("t", rows("b"), run_id="early", sequence=2),
        lambda: early.fence("t", SCHEMA),
        lambda: early.compact("t"),
    ):
        with pytest.raises(Fenced, match="lease 2"):
            attempt()
    late.append("t", rows("c"), run_id="late", sequence=1)
    assert committed(store) == ["a", "c"]


def test_a_writer_that_looked_before_the_fence_and_commits_after_it_is_shut_out(
    store: DeltaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The narrowest moment: the check has passed, then the writer sleeps through its lease."""
    early, late = store.with_epoch(1), store.with_epoch(2)
    early.fence("t", SCHEMA)
    write = deltalake.write_deltalake

    def slept(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        late.fence("t", SCHEMA)
        write(*arguments, **options)

    monkeypatch.setattr(tables_module, "write_deltalake", slept)
    monkeypatch.setattr(tables_module, "FIRST_WAIT_S", 0.0)
    with pytest.raises(Fenced):
        early.append("t", rows("a"), run_id="early", sequence=1)
    assert store.num_rows("t") == 0


def test_a_commit_whose_answer_was_lost_is_not_doubled(store: DeltaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = deltalake.write_deltalake

    def loses_the_answer(*arguments: object, **options: object) -> None:
        write(*arguments, **options)
        monkeypatch.setattr(tables_module, "write_deltalake", write)
        raise OSError("connection reset")

    monkeypatch.setattr(tables_module, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(tables_module, "write_deltalake", loses_the_answer)
    assert not store.append("t", rows("a"), run_id="run", sequence=1)
    assert committed(store) == ["a"]


def test_what_cannot_be_written_is_said_and_nothing_is_in_the_table(
    store: DeltaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("t", rows("a"), run_id="run", sequence=1)

    def fails(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tables_module, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(tables_module, "write_deltalake", fails)
    with pytest.raises(TableUnwritable, match="No space left on device"):
        store.append("t", rows("b"), run_id="run", sequence=2)
    monkeypatch.undo()
    assert committed(store) == ["a"]
    assert store.append("t", rows("b"), run_id="run", sequence=2)


def test_compacting_and_removing_leave_readers_and_rows_alone(store: DeltaStore) -> None:
    for sequence in range(1, 13):
        store.append("t", rows(f"v{sequence:02}"), run_id="run", sequence=sequence)
    before, reader = committed(store), store.dataset("t")
    assert reader is not None
    assert store.compact("t") == 12
    stats = store.stats("t")
    assert stats is not None
    assert (stats.num_rows, stats.num_files) == (12, 1)
    assert store.vacuum("t", keep_hours=1) == 0
    assert sorted(reader.to_table()["video_id"].to_pylist()) == before, "a reader from before still reads"
    assert not store.append("t", rows("again"), run_id="run", sequence=12), "what is committed is still known"
    assert store.vacuum("t", keep_hours=0) == 12
    assert committed(store) == before


def test_a_hundred_commits_leave_a_checkpoint(store: DeltaStore, tmp_path: Path) -> None:
    for sequence in range(1, 103):
        store.append("t", rows("a"), run_id="run", sequence=sequence)
    assert list((tmp_path / "t" / "_delta_log").glob("*.checkpoint.parquet"))
    assert not store.append("t", rows("a"), run_id="run", sequence=102)
    assert store.num_rows("t") == 102


def test_the_stats_of_a_table(store: DeltaStore) -> None:
    assert store.stats("t") is None
    store.append("t", rows("a", "b"), run_id="run", sequence=1)
    stats = store.stats("t")
    assert stats is not None
    assert (stats.name, stats.version, stats.num_rows, stats.num_files) == ("t", 0, 2, 1)
    assert stats.num_bytes > 0
    assert stats.committed_at is not None


def test_a_damaged_log_is_said_by_name(store: DeltaStore, tmp_path: Path) -> None:
    store.append("t", rows("a"), run_id="run", sequence=1)
    next((tmp_path / "t" / "_delta_log").glob("*.json")).write_text("{")
    for look in (store.version, store.dataset, store.stats):
        with pytest.raises(TableUnreadable, match=r"/t cannot be opened"):
            look("t")


def test_rows_that_do_not_fit_are_refused_at_once(store: DeltaStore) -> None:
    store.append("t", rows("a"), run_id="run", sequence=1)
    with pytest.raises(TableUnwritable, match=r"/t cannot be written"):
        store.append("t", pa.table({"video_id": [1.5], "VIDEO_ID": ["b"]}), run_id="run", sequence=2)
    assert committed(store) == ["a"]


def test_files_of_a_commit_that_never_came_about_are_removed(store: DeltaStore, tmp_path: Path) -> None:
    store.append("t", rows("a"), run_id="run", sequence=1)
    orphan = tmp_path / "t" / "part-orphan.parquet"
    orphan.write_bytes(next((tmp_path / "t").glob("*.parquet")).read_bytes())
    os.utime(orphan, (0, 0))
    assert store.vacuum("t", keep_hours=1) == 1
    assert not orphan.exists()
    assert committed(store) == ["a"]
