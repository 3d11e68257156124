"""The driver's end of scoring: rows become score and quarantine rows, committed in order and exactly once."""

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from infra.tables import DeltaStore
from models.tasks.base import get_task
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.stages.extract import EXTRACT_FIELDS


@dataclass(slots=True)
class SinkConfig:
    """What the sink writes into every row, and how often it commits."""

    run_id: str
    policy: str
    scorers: dict[str, tuple[str, str]]  # task -> (digest, version)
    commit_every_s: float = 30.0
    commit_every_rows: int = 10_000


@dataclass(slots=True)
class Outcome:
    """The running account: each video of the plan ends in exactly one of these."""

    scored: int = 0
    no_face: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    num_faces: int = 0
    read_bytes: int = 0
    extract_s: float = 0.0
    num_commits: int = 0

    @property
    def done(self) -> int:
        """Videos accounted for."""
        return self.scored + self.no_face + self.quarantined.total()


class ScoreSink:
    """Collects result rows and commits them; only rows that were committed count as done."""

    def __init__(self, store: DeltaStore, config: SinkConfig) -> None:
        self.outcome = Outcome()
        self._store = store
        self._config = config
        self._pending: list[pa.Table] = []
        self._sequence = 0
        self._last_commit = time.monotonic()

    def add(self, rows: pa.Table) -> None:
        """Take rows from the pipeline; commits when enough rows or seconds have gathered."""
        self._pending.append(rows)
        num_pending = sum(table.num_rows for table in self._pending)
        waited_s = time.monotonic() - self._last_commit
        if num_pending >= self._config.commit_every_rows or waited_s >= self._config.commit_every_s:
            self.commit()

    def commit(self) -> None:
        """Commit what is pending: one Delta commit a table that has rows."""
        self._last_commit = time.monotonic()
        if not self._pending:
            return
        rows = pa.concat_tables(self._pending, promote_options="permissive")
        self._pending = []
        self._sequence += 1
        failed = pc.is_valid(rows["reason"])
        for name, table in [
            (QUARANTINE, self._quarantine_rows(rows.filter(failed))),
            *[
                (score_table(task), self._score_rows(rows.filter(pc.invert(failed)), task))
                for task in self._config.scorers
            ],
        ]:
            if table.num_rows:
                self._store.append(name, table, run_id=self._config.run_id, sequence=self._sequence)
                self.outcome.num_commits += 1
        self._count(rows)

    def _count(self, rows: pa.Table) -> None:
        reasons = rows["reason"].to_pylist()
        faces = rows["num_faces"].to_pylist()
        self.outcome.quarantined.update(reason for reason in reasons if reason is not None)
        self.outcome.scored += sum(bool(num) for num in faces)
        self.outcome.no_face += sum(num == 0 for num in faces)
        self.outcome.num_faces += sum(num or 0 for num in faces)
        self.outcome.read_bytes += pc.sum(rows["read_bytes"]).as_py() or 0
        self.outcome.extract_s += pc.sum(rows["extract_s"]).as_py() or 0.0

    def _score_rows(self, rows: pa.Table, task: str) -> pa.Table:
        """Score rows of one task: key, status, the task's columns, then what passed through from the catalog."""
        due = pa.array([task in tasks for tasks in rows["due_tasks"].to_pylist()], type=pa.bool_())
        rows = rows.filter(due)
        digest, version = self._config.scorers[task]
        status = pc.if_else(pc.greater(rows["num_faces"], 0), "scored", "no_face")
        columns: dict[str, pa.ChunkedArray | pa.Array] = {
            "video_id": rows["video_id"],
            "uri": rows["uri"],
            "etag": rows["read_etag"],
            "size_bytes": rows["read_bytes"],
            "policy": _constant(self._config.policy, rows),
            "scorer": _constant(digest, rows),
            "scorer_version": _constant(version, rows),
            "status": status,
        }
        for column in get_task(task).output_schema():
            columns[column.name] = pc.struct_field(rows[task], column.name)
        for name in ("num_frames", "num_faces", "dropped", "faces", "extract_s"):
            columns[name] = rows[name]
        columns |= self._passed_through(rows, columns) | self._run_columns(rows)
        return pa.table(columns)

    def _quarantine_rows(self, rows: pa.Table) -> pa.Table:
        columns: dict[str, pa.ChunkedArray | pa.Array] = {name: rows[name] for name in ("video_id", "uri", "etag")}
        columns["policy"] = _constant(self._config.policy, rows)
        columns |= {name: rows[name] for name in ("reason", "retryable", "message", "extract_s")}
        return pa.table(columns | self._run_columns(rows))

    def _run_columns(self, rows: pa.Table) -> dict[str, pa.Array]:
        now = pa.scalar(datetime.now(UTC), type=pa.timestamp("us", tz="UTC"))
        return {"run_id": _constant(self._config.run_id, rows), "committed_at": pa.repeat(now, rows.num_rows)}

    def _passed_through(
        self, rows: pa.Table, taken: dict[str, pa.ChunkedArray | pa.Array]
    ) -> dict[str, pa.ChunkedArray]:
        own = (
            {extracted.name for extracted in EXTRACT_FIELDS} | {"etag", "size", "due_tasks"} | set(self._config.scorers)
        )
        return {name: rows[name] for name in rows.column_names if name not in own and name not in taken}


def _constant(value: str, rows: pa.Table) -> pa.Array:
    return pa.repeat(pa.scalar(value, type=pa.string()), rows.num_rows)
