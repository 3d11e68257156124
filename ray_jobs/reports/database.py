"""The score and quarantine tables of one root, as DuckDB tables that hold each video's newest row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import duckdb

from infra.errors import UserError
from infra.tables import DeltaStore
from models.tasks.base import get_task, task_names
from ray_jobs.score_table import QUARANTINE, score_table

# What does not fit goes to a temporary file beside the database.
MEMORY_LIMIT = "1GB"


@dataclass(frozen=True, slots=True)
class ScorerRows:
    """The scorer that a report is about, of one task: the one of the task's newest row."""

    task: str
    version: str
    digest: str
    policy: str  # digest of the frame and face policy of its newest row
    num_videos: int
    num_outdated: int  # videos that only earlier scorers have scored


class ReportDatabase:
    """Tables in DuckDB, on disk while it is open, so that a report of millions of videos needs little memory.

    Times are seconds since 1970. A video's newest row says what became of it: a quarantined video that was scored
    later is scored, a scored one that was quarantined later is quarantined.

    * ``visits``: ``video_id, run_id, status, num_faces, size_bytes, extract_s, at_s``, a row a committed row, old ones
      included.
    * ``quarantined``: ``video_id, reason, retryable, message, at_s``, a row a video.
    * ``current_TASK``: the newest row a video of the task's newest scorer: ``video_id, uri, etag, status, num_frames,
      num_faces, dropped, at_s`` and the task's output columns that are single values.
    * ``videos``: ``video_id, scored, num_frames, num_faces, dropped``, a row a video of any ``current_TASK``.

    Raises:
        UserError: There are no tables, a task was named that has none, or the tables have no rows.
    """

    def __init__(self, store: DeltaStore, tasks: Sequence[str] | None = None) -> None:
        self._folder = TemporaryDirectory(prefix="facereel-report-")
        self._connection = duckdb.connect(
            str(Path(self._folder.name) / "report.duckdb"), config={"memory_limit": MEMORY_LIMIT}
        )
        try:
            self.scorers = self._build(store, tasks)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the tables and their files."""
        self._connection.close()
        self._folder.cleanup()

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return list(self._connection.execute(sql, list(parameters)).fetchall())

    def columns(self, task: str) -> set[str]:
        """The columns of ``current_TASK``."""
        return {row[0] for row in self.rows(f"DESCRIBE current_{task}")}

    def _build(self, store: DeltaStore, tasks: Sequence[str] | None) -> tuple[ScorerRows, ...]:
        names = self._register(store, tasks)
        visits = "SELECT video_id, run_id, {}, extract_s, epoch(committed_at) FROM file_{}"
        parts = [visits.format("status, num_faces, size_bytes", name) for name in names]
        if self._has_quarantine:
            parts.append(visits.format("'quarantined', 0, 0", QUARANTINE))
        self._connection.execute(
            "CREATE TABLE visits (video_id VARCHAR, run_id VARCHAR, status VARCHAR, num_faces INTEGER, "
            "size_bytes BIGINT, extract_s FLOAT, at_s DOUBLE)"
        )
        for part in parts:
            self._connection.execute(f"INSERT INTO visits {part}")
        if not self.rows("SELECT 1 FROM visits LIMIT 1"):
            raise UserError(f"{store.root}: the tables there have no rows; score a catalog into it first")
        self._create_quarantined()
        scorers = tuple(self._create_current(name) for name in names)
        common = "video_id, status, num_frames, num_faces, dropped, at_s"
        current = " UNION ALL ".join(f"SELECT {common} FROM current_{name}" for name in names)
        self._connection.execute(
            "CREATE TABLE videos (video_id VARCHAR, scored BOOLEAN, num_frames INTEGER, num_faces INTEGER, "
            "dropped MAP(VARCHAR, INTEGER))"
        )
        if current:
            self._connection.execute(
                "INSERT INTO videos SELECT video_id, bool_or(status = 'scored'), arg_max(num_frames, at_s), "
                f"arg_max(num_faces, at_s), arg_max(dropped, at_s) FROM ({current}) GROUP BY video_id"
            )
        return scorers

    def _register(self, store: DeltaStore, tasks: Sequence[str] | None) -> list[str]:
        """Make the files of each table queryable as ``file_NAME``; returns the tasks that have rows."""
        wanted = tuple(dict.fromkeys(get_task(task).name for task in tasks)) if tasks else task_names()
        datasets = {task: store.dataset(score_table(task)) for task in wanted}
        quarantine = store.dataset(QUARANTINE)
        absent = [task for task, dataset in datasets.items() if dataset is None]
        if tasks and absent:
            raise UserError(f"{store.root}: no table {score_table(absent[0])} there; score the task {absent[0]} first")
        if quarantine is None and len(absent) == len(wanted):
            looked_for = ", ".join([*map(score_table, wanted), QUARANTINE])
            raise UserError(
                f"{store.root}: no tables there (looked for {looked_for}); give the --tables of a scoring run"
            )
        self._has_quarantine = quarantine is not None
        if quarantine is not None:
            self._connection.register(f"file_{QUARANTINE}", quarantine)
        for task, dataset in datasets.items():
            if dataset is not None:
                self._connection.register(f"file_{task}", dataset)
        return [
            task
            for task, dataset in datasets.items()
            if dataset is not None and self.rows(f"SELECT 1 FROM file_{task} LIMIT 1")
        ]

    def _create_quarantined(self) -> None:
        if not self._has_quarantine:
            self._connection.execute(
                "CREATE TABLE quarantined "
                "(video_id VARCHAR, reason VARCHAR, retryable BOOLEAN, message VARCHAR, at_s DOUBLE)"
            )
            return
        self._connection.execute(
            f"""
            CREATE TABLE quarantined AS
            SELECT newest.* FROM (
                SELECT video_id, reason, retryable, message, epoch(committed_at) AS at_s FROM file_{QUARANTINE}
                QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY committed_at DESC, reason) = 1
            ) newest LEFT JOIN (
                SELECT video_id, max(at_s) AS scored_at FROM visits WHERE status <> 'quarantined' GROUP BY video_id
            ) USING (video_id)
            WHERE scored_at IS NULL OR scored_at < at_s
            """
        )

    def _create_current(self, task: str) -> ScorerRows:
        ((version, digest, policy),) = self.rows(
            f"SELECT scorer_version, scorer, policy FROM file_{task} ORDER BY committed_at DESC, scorer LIMIT 1"
        )
        in_file = {row[0]: row[1] for row in self.rows(f"DESCRIBE SELECT * FROM file_{task}")}
        outputs = [
            f'"{name}"' for name in get_task(task).output_schema().names if not in_file.get(name, "[]").endswith("[]")
        ]
        columns = ["video_id", "uri", "etag", "status", "num_frames", "num_faces", "dropped", *outputs]
        self._connection.execute(
            f"""
            CREATE TABLE current_{task} AS
            SELECT {", ".join(columns)}, epoch(committed_at) AS at_s
            FROM file_{task} ANTI JOIN quarantined USING (video_id)
            WHERE scorer = ?
            QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY committed_at DESC, etag) = 1
            """,
            [digest],
        )
        ((num_videos,),) = self.rows(f"SELECT count(*) FROM current_{task}")
        ((num_outdated,),) = self.rows(
            f"SELECT count(DISTINCT video_id) FROM file_{task} ANTI JOIN quarantined USING (video_id) "
            f"ANTI JOIN current_{task} USING (video_id)"
        )
        return ScorerRows(task, version, digest, policy, num_videos, num_outdated)
