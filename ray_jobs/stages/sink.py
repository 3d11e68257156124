"""The driver's end of scoring: rows become score and quarantine rows, committed in order and exactly once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import UserError
from infra.tables import DeltaStore
from models.tasks.base import get_task
from ray_jobs.catalog import COLUMN_TYPES
from ray_jobs.outcome import Outcome
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.stages.extract import EXTRACT_FIELDS, FACE_TYPE
from ray_jobs.stages.predict import face_schema, faces_column

_RUN_FIELDS = [pa.field("run_id", pa.string()), pa.field("committed_at", pa.timestamp("us", tz="UTC"))]
# What an arriving row holds beside the catalog's columns; nothing of it passes through by itself.
_OWN_COLUMNS = {column.name for column in EXTRACT_FIELDS} | {
    "etag",
    "sha256",
    "size",
    "due_tasks",
    "attempts",
    "predict_s",
}

# Columns of a due list that have a meaning of their own.
_PLANNED = {*COLUMN_TYPES, "due_tasks", "attempts", "opted_out"} - {"creator_id", "age"}

QUARANTINE_SCHEMA = pa.schema(
    [
        *[pa.field(name, pa.string()) for name in ("video_id", "uri", "etag", "sha256", "policy", "reason")],
        pa.field("retryable", pa.bool_()),
        pa.field("attempts", pa.int32()),
        pa.field("message", pa.string()),
        pa.field("extract_s", pa.float32()),
        *_RUN_FIELDS,
    ]
)


def score_schema(task: str) -> pa.Schema:
    """The columns of a task's score table; what passes through from the catalog comes after them."""
    return pa.schema(
        [
            *[pa.field(name, pa.string()) for name in ("video_id", "uri", "etag", "sha256")],
            pa.field("size_bytes", pa.int64()),
            *[pa.field(name, pa.string()) for name in ("policy", "scorer", "scorer_version", "status")],
            *get_task(task).output_schema(),
            pa.field("num_frames", pa.int32()),
            pa.field("num_faces", pa.int32()),
            pa.field("dropped", pa.map_(pa.string(), pa.int32())),
            pa.field("faces", pa.list_(pa.struct([*FACE_TYPE, *face_schema(task)]))),
            pa.field("extract_s", pa.float32()),
            *_RUN_FIELDS,
        ]
    )


def reserved_columns(tasks: Sequence[str]) -> frozenset[str]:
    """Names, in lower case, that a catalog's own columns cannot have beside the results of these tasks."""
    names = {*_OWN_COLUMNS, "read_etag", "crops", *QUARANTINE_SCHEMA.names}
    for task in tasks:
        names |= {task, faces_column(task), *score_schema(task).names}
    return frozenset(name.lower() for name in names) - {*COLUMN_TYPES}


def check_columns(catalog: str, due: pa.Schema, store: DeltaStore, tasks: Sequence[str]) -> None:
    """See that the columns which pass through from the catalog still have the types that the tables know them by.

    Raises:
        UserError: One differs: Delta would refuse the first commit, or cut 1.5 down to 1.
    """
    for task in tasks:
        dataset = store.dataset(score_table(task))
        known = {} if dataset is None else {field.name.lower(): field for field in dataset.schema}
        for column in due:
            field = known.get(column.name.lower())
            if column.name in _PLANNED or field is None:
                continue
            fits = column.type in (field.type, pa.null()) or (
                pa.types.is_integer(column.type) and field.type == pa.int64()
            )
            if field.name != column.name or not fits:
                raise UserError(
                    f"{catalog}: the column {column.name} is {column.type} here and {field.name} is {field.type} in "
                    f"{store.uri(score_table(task))}: cast it to that, or rename it"
                )


@dataclass(slots=True)
class SinkConfig:
    """What the sink writes into every row, and how often it commits."""

    run_id: str
    policy: str
    scorers: dict[str, tuple[str, str]]  # task -> (digest, version)
    commit_every_s: float = 30.0
    commit_every_rows: int = 10_000
    with_faces: bool = True


class ScoreSink:
    """Collects result rows and commits them; only rows that were committed count as done.

    Args:
        store: where the tables are.
        config: what goes into the rows.
        before_commit: called before each table's commit; raises where this process must not write any more.
    """

    def __init__(self, store: DeltaStore, config: SinkConfig, before_commit: Callable[[], None] = lambda: None) -> None:
        self.outcome = Outcome()
        self._store = store
        self._config = config
        self._before_commit = before_commit
        self._pending: list[pa.Table] = []
        self._sequence = 0
        self._last_commit = time.monotonic()

    @property
    def num_pending(self) -> int:
        """Rows that wait for the next commit."""
        return sum(table.num_rows for table in self._pending)

    def add(self, rows: pa.Table) -> None:
        """Take rows from the pipeline."""
        self._pending.append(rows)

    def tick(self) -> bool:
        """Commit if enough rows or seconds have gathered; whether it did."""
        waited_s = time.monotonic() - self._last_commit
        if not self._pending or (
            self.num_pending < self._config.commit_every_rows and waited_s < self._config.commit_every_s
        ):
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """Commit what is pending: one Delta commit a table that has rows.

        Raises:
            TypedError: a table cannot be written, or no longer by this process; the rows stay pending.
        """
        self._last_commit = time.monotonic()
        if not self._pending:
            return
        rows = pa.concat_tables(self._pending, promote_options="permissive")
        failed = pc.is_valid(rows["reason"])
        sequence = self._sequence + 1
        for name, table in [
            (QUARANTINE, self._quarantine_rows(rows.filter(failed))),
            *[
                (score_table(task), self._score_rows(rows.filter(pc.invert(failed)), task))
                for task in self._config.scorers
            ],
        ]:
            if table.num_rows:
                self._before_commit()
                self._store.append(name, table, run_id=self._config.run_id, sequence=sequence)
                self.outcome.num_commits += 1
        self._sequence = sequence
        self._pending = []
        self._count(rows)
        self._last_commit = time.monotonic()

    def _count(self, rows: pa.Table) -> None:
        reasons = rows["reason"].to_pylist()
        faces = rows["num_faces"].to_pylist()
        outcome = self.outcome
        outcome.quarantined.update(reason for reason in reasons if reason is not None)
        outcome.scored += sum(bool(num) for num in faces)
        outcome.no_face += sum(num == 0 for num in faces)
        outcome.num_faces += sum(num or 0 for num in faces)
        outcome.fetched_bytes += pc.sum(rows["fetched_bytes"]).as_py() or 0
        outcome.extract_s += pc.sum(rows["extract_s"]).as_py() or 0.0
        outcome.predict_s += pc.sum(rows["predict_s"]).as_py() or 0.0

    def _score_rows(self, rows: pa.Table, task: str) -> pa.Table:
        """Score rows of one task: the columns of `score_schema`, then what passed through from the catalog."""
        due = pa.array([task in tasks for tasks in rows["due_tasks"].to_pylist()], type=pa.bool_())
        rows = rows.filter(due)
        digest, version = self._config.scorers[task]
        values: dict[str, pa.ChunkedArray | pa.Array | pa.Scalar] = {
            "etag": rows["read_etag"],
            "sha256": rows["read_sha256"],
            "size_bytes": rows["read_bytes"],
            "scorer": pa.scalar(digest),
            "scorer_version": pa.scalar(version),
            "status": pc.if_else(pc.greater(rows["num_faces"], 0), "scored", "no_face"),
            "faces": self._faces(rows, task),
        }
        for column in get_task(task).output_schema():
            values[column.name] = pc.struct_field(rows[task], column.name)
        table = self._table(score_schema(task), rows, values)
        taken = {*_OWN_COLUMNS, *table.column_names}
        for other in self._config.scorers:
            taken |= {other, faces_column(other)}
        for name in rows.column_names:
            if name not in taken:
                table = table.append_column(rows.schema.field(name), rows[name])
        return table

    def _faces(self, rows: pa.Table, task: str) -> pa.Array | pa.Scalar:
        """What was found in each face, and what the task says of it: one list of structs a row."""
        kind = score_schema(task).field("faces").type
        if not self._config.with_faces:
            return pa.scalar(None, type=kind)
        found, said = (rows[name].combine_chunks() for name in ("faces", faces_column(task)))
        # By columns, never face by face: the driver does this for every row of the run.
        lengths, answered = (pc.fill_null(pc.list_value_length(lists), 0) for lists in (found, said))
        if not lengths.equals(answered):
            raise ValueError(f"a row has another number of faces than of answers for {task}")
        both = [*found.flatten().flatten(), *said.flatten().flatten()]
        faces = pa.StructArray.from_arrays(both, fields=list(kind.value_type))
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
        return pa.ListArray.from_arrays(offsets, faces, mask=found.is_null())

    def _quarantine_rows(self, rows: pa.Table) -> pa.Table:
        values = {
            "attempts": pc.add(rows["attempts"], rows["num_tries"]),
            "sha256": rows["sha256"] if "sha256" in rows.column_names else pa.scalar(None, type=pa.string()),
        }
        return self._table(QUARANTINE_SCHEMA, rows, values)

    def _table(
        self, schema: pa.Schema, rows: pa.Table, values: dict[str, pa.ChunkedArray | pa.Array | pa.Scalar]
    ) -> pa.Table:
        """The schema's columns: given values (a scalar stands in every row), else the rows' own column of the name."""
        constants = {
            "policy": pa.scalar(self._config.policy),
            "run_id": pa.scalar(self._config.run_id),
            "committed_at": pa.scalar(datetime.now(UTC), type=pa.timestamp("us", tz="UTC")),
        }
        columns = []
        for column in schema:
            value = values.get(column.name, constants.get(column.name))
            value = rows[column.name] if value is None else value
            if isinstance(value, pa.Scalar):
                value = pa.repeat(value, rows.num_rows)
            columns.append(value.cast(column.type))
        return pa.table(columns, schema=schema)
