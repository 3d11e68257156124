"""The sink: rows end in the right table, once, with their key, and the account adds up."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.errors import UserError
from infra.leases import LeaseLost
from infra.storage import Storage
from infra.tables import DeltaStore
from models.scorer import load_scorer
from models.tasks.base import get_task
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.stages.extract import EXTRACT_FIELDS
from ray_jobs.stages.predict import CarriedScorer, PredictStage, face_schema, faces_column
from ray_jobs.stages.sink import (
    QUARANTINE_SCHEMA,
    ScoreSink,
    SinkConfig,
    check_columns,
    reserved_columns,
    score_schema,
)
from tests.unit.scorers import CROP_SIZE, small_scorer

TASKS = ("attractiveness", "fs2k")
PREDICTION: dict[str, dict[str, Any]] = {
    "attractiveness": {"score": 80.5, "score_distribution": [0.025] * 40},
    "fs2k": {"smile": True, "hair_color": "red"},
}


def result(video_id: str, *, reason: str | None = None, num_faces: int = 1, due: tuple[str, ...] = TASKS) -> pa.Table:
    """One row as it arrives from the pipeline."""
    failed = reason is not None
    row = {
        "reason": reason,
        "retryable": False if failed else None,
        "message": "it broke" if failed else None,
        "num_tries": 2 if failed else 1,
        "read_etag": None if failed else "e2",
        "read_sha256": None,
        "fetched_bytes": None if failed else 600,
        "read_bytes": None if failed else 1000,
        "num_frames": None if failed else 10,
        "num_faces": None if failed else num_faces,
        "dropped": None if failed else [("no_face", 10 - num_faces)],
        "faces": None if failed else [{"frame_index": 50 * face, "sharpness": 9.0} for face in range(num_faces)],
        "extract_s": 0.5,
    }
    columns: dict[str, pa.Array] = {
        "video_id": pa.array([video_id]),
        "uri": pa.array([f"/{video_id}.mp4"]),
        "etag": pa.array(["e1"]),
        "size": pa.array([None], pa.int64()),
        "views": pa.array([7]),
        "due_tasks": pa.array([list(due)]),
        "attempts": pa.array([3], pa.int32()),
        "predict_s": pa.array([0.25], pa.float32()),
    }
    for field in EXTRACT_FIELDS:
        if field.name != "crops":
            columns[field.name] = pa.array([row[field.name]], type=field.type)
    for task in TASKS:
        value = PREDICTION[task] if not failed and num_faces and task in due else None
        columns[task] = pa.array([value], type=pa.struct(get_task(task).output_schema()))
        faces = None if value is None else [value | {"score_distribution": None}] * num_faces
        kind = pa.list_(pa.struct(face_schema(task)))
        columns[faces_column(task)] = pa.array([faces], type=kind)
    return pa.table(columns)


@pytest.fixture
def store(tmp_path: Path) -> DeltaStore:
    return DeltaStore(str(tmp_path), Storage())


def make_sink(store: DeltaStore, **options: Any) -> ScoreSink:
    scorers = {task: (f"digest-{task}", f"models:/facereel-{task}/1") for task in TASKS}
    return ScoreSink(store, SinkConfig(run_id="run", policy="policy", scorers=scorers, **options))


def read(store: DeltaStore, table: str) -> dict[str, dict[str, Any]]:
    dataset = store.dataset(table)
    rows = [] if dataset is None else dataset.to_table().to_pylist()
    found = {row["video_id"]: row for row in rows}
    assert len(found) == len(rows), "a row stands there twice"
    return found


def test_rows_end_where_they_belong_and_the_account_adds_up(store: DeltaStore) -> None:
    sink = make_sink(store)
    sink.add(pa.concat_tables([result("a", num_faces=3), result("b", num_faces=0)]))
    sink.add(result("c", reason="truncated"))
    sink.commit()
    for task in TASKS:
        rows = read(store, score_table(task))
        assert {name: row["status"] for name, row in rows.items()} == {"a": "scored", "b": "no_face"}
        assert rows["a"]["scorer"] == f"digest-{task}"
        assert (rows["a"]["etag"], rows["a"]["policy"], rows["a"]["views"]) == ("e2", "policy", 7)
    assert read(store, score_table("attractiveness"))["a"]["score"] == pytest.approx(80.5)
    assert read(store, score_table("attractiveness"))["b"]["score"] is None
    assert read(store, score_table("fs2k"))["a"]["smile"] is True
    assert list(read(store, QUARANTINE)) == ["c"]
    assert read(store, QUARANTINE)["c"]["etag"] == "e1"  # the plan's: nothing was read
    outcome = sink.outcome
    assert (outcome.scored, outcome.no_face, dict(outcome.quarantined)) == (1, 1, {"truncated": 1})
    assert (outcome.done, outcome.num_faces, outcome.fetched_bytes) == (3, 3, 1200)
    assert (outcome.extract_s, outcome.predict_s) == (1.5, 0.75)
    assert read(store, QUARANTINE)["c"]["attempts"] == 5  # three before this run, two in it


def test_each_face_keeps_what_was_found_and_what_was_said(store: DeltaStore) -> None:
    sink = make_sink(store)
    sink.add(pa.concat_tables([result("a", num_faces=2), result("b", num_faces=0)]))
    sink.commit()
    rows = read(store, score_table("fs2k"))
    assert [(face["frame_index"], face["smile"], face["hair_color"]) for face in rows["a"]["faces"]] == [
        (0, True, "red"),
        (50, True, "red"),
    ]
    assert rows["b"]["faces"] == []
    assert read(store, score_table("attractiveness"))["a"]["faces"][1]["score"] == pytest.approx(80.5)


def test_faces_can_be_left_out(store: DeltaStore) -> None:
    sink = make_sink(store, with_faces=False)
    sink.add(result("a"))
    sink.commit()
    row = read(store, score_table("fs2k"))["a"]
    assert (row["faces"], row["num_faces"], row["smile"]) == (None, 1, True)


def test_the_columns_are_those_of_the_schema_then_the_catalogs(store: DeltaStore) -> None:
    sink = make_sink(store)
    sink.add(pa.concat_tables([result("a"), result("b", reason="corrupt")]))
    sink.commit()
    for name, schema, more in (
        (score_table("fs2k"), score_schema("fs2k"), ["views"]),
        (QUARANTINE, QUARANTINE_SCHEMA, []),
    ):
        dataset = store.dataset(name)
        assert dataset is not None
        assert dataset.schema.names == [*schema.names, *more]


def test_rows_stay_pending_while_this_process_may_not_write(store: DeltaStore) -> None:
    allowed = False

    def check() -> None:
        if not allowed:
            raise LeaseLost("gone")

    sink = ScoreSink(store, SinkConfig(run_id="run", policy="p", scorers={"fs2k": ("d", "v")}), check)
    sink.add(result("a"))
    with pytest.raises(LeaseLost):
        sink.commit()
    assert (sink.num_pending, sink.outcome.done, store.num_rows(score_table("fs2k"))) == (1, 0, 0)
    allowed = True
    sink.commit()
    assert (sink.num_pending, sink.outcome.done, store.num_rows(score_table("fs2k"))) == (0, 1, 1)


def test_a_task_that_is_not_due_gets_no_row(store: DeltaStore) -> None:
    sink = make_sink(store)
    sink.add(result("a", due=("fs2k",)))
    sink.add(result("b"))
    sink.commit()
    assert list(read(store, score_table("attractiveness"))) == ["b"]
    assert sorted(read(store, score_table("fs2k"))) == ["a", "b"]


def test_nothing_is_visible_before_its_commit(store: DeltaStore) -> None:
    sink = make_sink(store, commit_every_rows=2, commit_every_s=1e9)
    sink.add(result("a"))
    assert not sink.tick()
    assert read(store, score_table("fs2k")) == {}
    assert sink.outcome.done == 0
    sink.add(result("b"))
    assert sink.tick()
    assert not sink.tick()
    assert sorted(read(store, score_table("fs2k"))) == ["a", "b"]
    assert sink.outcome.done == 2


def test_a_commit_repeated_after_a_crash_between_two_tables_is_not_doubled(store: DeltaStore) -> None:
    make_sink(store).commit()
    first = make_sink(store)
    first.add(result("a"))
    first.commit()
    again = make_sink(store)  # same run id, same sequence: as if the answer to the first commit had been lost
    again.add(result("a"))
    again.commit()
    assert list(read(store, score_table("fs2k"))) == ["a"]


def test_committing_nothing_writes_nothing(store: DeltaStore, tmp_path: Path) -> None:
    make_sink(store).commit()
    assert list(tmp_path.iterdir()) == []


def test_columns_that_pass_through_keep_their_type(store: DeltaStore) -> None:
    sink = make_sink(store)
    sink.add(result("a"))
    sink.commit()

    def check(**columns: pa.DataType) -> None:
        check_columns("catalog.csv", pa.schema({"video_id": pa.string(), **columns}), store, TASKS)

    check(views=pa.int64(), fresh=pa.float64(), size=pa.float32())
    check(views=pa.int32())
    check(views=pa.null())
    for columns in ({"views": pa.float64()}, {"views": pa.string()}, {"Views": pa.int64()}):
        with pytest.raises(UserError, match=r"catalog\.csv: the column [Vv]iews is"):
            check(**columns)


def test_what_results_are_called_is_not_for_catalogs() -> None:
    reserved = reserved_columns(["fs2k"])
    assert {"smile", "smile_p", "status", "faces", "reason", "fs2k", "fs2k_faces", "committed_at"} <= reserved
    assert not {"video_id", "uri", "etag", "age", "creator_id", "size", "views", "score", "sha256"} & reserved


def test_each_face_stands_beside_its_own_answer(store: DeltaStore) -> None:
    rows = pa.concat_tables([result(name, num_faces=num) for name, num in (("a", 3), ("b", 0), ("c", 1), ("d", 2))])
    place = rows.schema.get_field_index("fs2k_faces")
    answers = [None if not num else [{"smile": bool(n % 2)} for n in range(num)] for num in (3, 0, 1, 2)]
    chunks = pa.chunked_array([answers[:1], answers[1:3], answers[3:]], type=rows.schema.field(place).type)
    sink = make_sink(store)
    sink.add(rows.set_column(place, "fs2k_faces", chunks))
    sink.commit()
    found = read(store, score_table("fs2k"))
    for name, answer in zip("abcd", answers, strict=True):
        faces = [(face["frame_index"], face["smile"]) for face in found[name]["faces"]]
        assert faces == [(50 * number, face["smile"]) for number, face in enumerate(answer or [])]
    assert found["a"]["faces"][0]["sharpness"] == 9.0
    sink.add(rows.set_column(place, "fs2k_faces", pa.array([answers[3], *answers[1:]], chunks.type)))
    with pytest.raises(ValueError, match="another number of faces"):
        sink.commit()


def test_rows_leave_a_predictor_in_one_piece(tmp_path: Path) -> None:
    """In as many pieces as rows each would cost the driver three times as much."""
    directory = tmp_path / "scorer"
    small_scorer(directory, "fs2k")
    stage = PredictStage([CarriedScorer.carry(directory, "fs2k", load_scorer(directory).digest)], Storage(), "cpu")
    crops = pa.array([bytes(3 * CROP_SIZE**2)], pa.large_binary())
    rows = pa.concat_tables([result(name).select(["video_id", "due_tasks", "faces"]) for name in "abc"])
    rows = rows.append_column("crops", pa.chunked_array([crops] * 3))
    assert rows["video_id"].num_chunks == 3
    found = stage(rows)
    assert found["video_id"].to_pylist() == ["a", "b", "c"]
    assert {column.num_chunks for column in found.columns} == {1}
