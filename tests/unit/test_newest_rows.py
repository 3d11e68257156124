"""What users ask of the tables: newest rows, an overview, optimizing; and the SQL of the documentation."""

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.leases import Lease, LeaseHeld
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tables import DeltaStore
from ray_jobs.maintenance import optimize
from ray_jobs.newest_rows import NewestRows, export_rows, print_rows
from ray_jobs.outcome import Outcome
from ray_jobs.overview import overview, print_overview
from ray_jobs.run_record import RunRecord, read_records, run_folder, write_record
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.stages.sink import QUARANTINE_SCHEMA, score_schema

DOCS = Path(__file__).resolve().parents[2] / "docs" / "sql.md"
OLD, NEW = "a" * 64, "b" * 64
START = datetime(2026, 1, 1, tzinfo=UTC)


def add(tables: Path, video_id: str, scorer: str, score: float | None, *, hour: int, etag: str = "1") -> None:
    row = {
        "video_id": video_id,
        "etag": etag,
        "policy": "p",
        "scorer": scorer,
        "scorer_version": f"models:/facereel-attractiveness/{1 if scorer == OLD else 2}",
        "status": "no_face" if score is None else "scored",
        "score": score,
        "num_faces": 0 if score is None else 1,
        "faces": [] if score is None else [{"frame_index": 50, "pts_s": 2.0, "score": score}],
        "run_id": f"run-{hour}",
        "committed_at": START + timedelta(hours=hour),
    }
    schema = score_schema("attractiveness")
    rows = pa.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema)
    DeltaStore(str(tables), Storage()).append(
        score_table("attractiveness"), rows, run_id=f"{video_id}{hour}", sequence=1
    )


def quarantine(tables: Path, video_id: str, *, hour: int) -> None:
    row = {"video_id": video_id, "reason": "corrupt", "committed_at": START + timedelta(hours=hour), "policy": "p"}
    rows = pa.Table.from_pylist([{name: row.get(name) for name in QUARANTINE_SCHEMA.names}], schema=QUARANTINE_SCHEMA)
    DeltaStore(str(tables), Storage()).append(QUARANTINE, rows, run_id=f"q{video_id}{hour}", sequence=1)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """``a`` scored by both scorers, ``b`` by the old one alone, ``c`` without a face, ``d`` broken after its score."""
    root = tmp_path / "tables"
    add(root, "a", NEW, 90.0, hour=2)
    add(root, "a", OLD, 70.0, hour=1)
    add(root, "b", OLD, 65.0, hour=1)
    add(root, "c", NEW, None, hour=2)
    add(root, "d", NEW, 80.0, hour=2)
    quarantine(root, "d", hour=3)
    return root


def exported(tables: Path, out: Path, **options: Any) -> dict[str, dict[str, Any]]:
    export_rows(NewestRows(str(tables), "attractiveness", **options), Settings(), str(out))
    if out.suffix == ".parquet":
        rows = pq.read_table(out).to_pylist()
    elif out.suffix == ".csv":
        rows = pyarrow.csv.read_csv(out).to_pylist()
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video_id"] for row in rows] == sorted({row["video_id"] for row in rows})
    return {row["video_id"]: row for row in rows}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_the_newest_row_of_each_video_is_exported(tables: Path, tmp_path: Path, suffix: str) -> None:
    rows = exported(tables, tmp_path / f"out{suffix}")
    assert {name: row["score"] for name, row in rows.items()} == {"a": 90.0, "b": 65.0, "c": None, "d": 80.0}
    assert rows["a"]["scorer_version"] == "models:/facereel-attractiveness/2"
    assert "faces" not in rows["a"]


def test_rows_of_one_scorer_of_some_videos_with_their_faces(tables: Path, tmp_path: Path) -> None:
    rows = exported(tables, tmp_path / "out.parquet", scorer=OLD[:12], videos=("a", "x'y"), with_faces=True)
    assert {name: row["score"] for name, row in rows.items()} == {"a": 70.0}
    assert [(face["frame_index"], face["score"]) for face in rows["a"]["faces"]] == [(50, 70.0)]


def test_what_is_not_there_is_said_and_nothing_is_written(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    for options, words in (
        ({"scorer": "c" * 12}, "no rows of scorer"),
        ({"videos": ("zz",)}, "no rows of these videos"),
    ):
        with pytest.raises(UserError, match=words):
            exported(tables, out, **options)
    with pytest.raises(UserError, match="no table scores_fs2k there"):
        export_rows(NewestRows(str(tables), "fs2k"), Settings(), str(out))
    with pytest.raises(UserError, match=r"ends in one of \.parquet, \.csv, \.jsonl"):
        export_rows(NewestRows(str(tables), "attractiveness"), Settings(), str(tmp_path / "out.xlsx"))
    assert not out.exists()


def test_rows_are_printed_with_the_scorers_version(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(NewestRows(str(tables), "attractiveness"), Settings(), limit=2)
    printed = capsys.readouterr().out
    assert "2 of 4 videos" in printed
    assert "90.00" in printed
    assert "2026-01-01" in printed


def record(run_id: str, **values: Any) -> RunRecord:
    return RunRecord.model_validate(
        {"run_id": run_id, "catalog": "catalog.csv", "policy": "p", "scorers": {"fs2k": ("d", "v")}} | values
    )


def test_the_overview_tells_the_living_from_the_killed(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, root = Storage(), str(tables)
    done, dead, alive = Outcome(3, 1), Outcome(2), Outcome(5, 0, Counter({"corrupt": 1}))
    write_record(root, record("done", state="done", started_at=START, num_due=4, outcome=done), storage)
    later = START + timedelta(hours=1)
    write_record(root, record("dead", started_at=later, num_due=9, outcome=dead, command="never"), storage)
    with Lease(storage, root, "run alive") as lease:
        write_record(root, record("alive", epoch=lease.epoch, num_due=10, outcome=alive, command="again"), storage)
        found = overview(root, Settings(), num_runs=5)
        print_overview(found)
        assert found.writer is not None
        assert found.writer.holder == "run alive"
    assert [(line.record.run_id, line.state) for line in found.runs] == [
        ("alive", "running"),
        ("dead", "killed"),
        ("done", "done"),
    ]
    assert found.runs[0].record.outcome.done == 6
    assert {stats.name: stats.num_rows for stats in found.tables} == {"scores_attractiveness": 5, "quarantine": 1}
    printed = capsys.readouterr().out
    assert "go on with" not in printed, "what the dead run left, the living one has planned"
    assert "6 (60%)" in printed
    after = overview(root, Settings(), num_runs=1)
    assert (after.writer, after.runs[0].state) == (None, "killed")
    assert json.loads(after.model_dump_json())["runs"][0]["state"] == "killed"
    print_overview(after)
    assert "go on with: again" in capsys.readouterr().out
    with pytest.raises(UserError, match="no tables and no runs"):
        overview(str(tables / "nowhere"), Settings(), num_runs=1)


def test_a_broken_record_is_passed_over(tables: Path) -> None:
    write_record(str(tables), record("good"), Storage())
    Storage().put(join(run_folder(str(tables), "bad"), "run.json"), b"{")
    assert [found.run_id for found in read_records(str(tables), Storage())] == ["good"]


def test_optimizing_keeps_every_row_and_clears_dead_runs(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage()
    write_record(str(tables), record("dead"), storage)
    due = join(run_folder(str(tables), "dead"), "due", "part-0.parquet")
    storage.put(due, b"x")
    before = DeltaStore(str(tables), storage).num_rows(score_table("attractiveness"))
    optimize(str(tables), Settings(), keep_hours=168)
    stats = DeltaStore(str(tables), storage).stats(score_table("attractiveness"))
    assert stats is not None
    assert (stats.num_rows, stats.num_files) == (before, 1)
    assert not storage.exists(due)
    assert "5 files compacted" in capsys.readouterr().out


def test_optimizing_waits_for_no_one(tables: Path) -> None:
    with Lease(Storage(), str(tables), "run 7"), pytest.raises(LeaseHeld, match="run 7"):
        optimize(str(tables), Settings(), keep_hours=168)
    with pytest.raises(UserError, match="no tables there"):
        optimize(str(tables / "nowhere"), Settings(), keep_hours=168)


def test_the_sql_of_the_documentation(tables: Path) -> None:
    """Each view of docs/sql.md for DuckDB, over the same rows; only the name of the source differs."""
    blocks = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    views = [block for block in blocks if "delta_scan" in block]
    assert len(views) == 1
    connection = duckdb.connect()
    store = DeltaStore(str(tables), Storage())
    for name in (score_table("attractiveness"), QUARANTINE):
        connection.register(f"file_{name}", store.dataset(name))
    sql = re.sub(r"delta_scan\('[^']*/(\w+)'\)", r"file_\1", views[0])
    connection.execute(re.sub(r"(INSTALL|LOAD) delta;", "", sql))

    def ids(view: str) -> dict[str, Any]:
        return dict(connection.execute(f"SELECT video_id, score FROM {view}").fetchall())

    assert ids("newest") == {"a": 90.0, "b": 65.0, "c": None, "d": 80.0}
    assert ids("champion") == {"a": 90.0, "c": None, "d": 80.0}
    assert connection.execute("SELECT video_id, reason FROM failed").fetchall() == [("d", "corrupt")]
    assert connection.execute("SELECT video_id, frame_index, score FROM face_rows ORDER BY ALL").fetchall() == [
        ("a", 50, 90.0),
        ("b", 50, 65.0),
        ("d", 50, 80.0),
    ]
