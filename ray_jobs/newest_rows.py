"""Each video's newest score row: printed, or exported to a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import duckdb
from rich.table import Table

from infra.errors import UserError
from infra.scanning import scratch_database
from infra.settings import Settings
from infra.storage import Storage, is_s3
from infra.tables import DeltaStore
from models.registry import find_digest
from models.tasks.base import get_task
from ray_jobs.console import console
from ray_jobs.preflight import answering_client
from ray_jobs.score_table import score_table
from ray_jobs.stages.predict import face_schema

FORMATS = {".parquet": "PARQUET", ".csv": "CSV, HEADER", ".jsonl": "JSON"}


@dataclass(frozen=True, slots=True)
class NewestRows:
    """Which rows of which table."""

    tables: str
    task: str
    videos: tuple[str, ...] = ()
    scorer: str | None = None  # of this scorer alone: a digest or its beginning, a registry version, or an alias
    with_faces: bool = False


def newest_sql(source: str, columns: str = "*") -> str:
    """Each video's newest row of a score table; a commit never holds a video twice, so its time decides."""
    return (
        f"SELECT {columns} FROM {source} SEMI JOIN "
        f"(SELECT video_id, max(committed_at) AS committed_at FROM {source} GROUP BY video_id) newest "
        "USING (video_id, committed_at)"
    )


def print_rows(query: NewestRows, settings: Settings, *, limit: int) -> None:
    """Print up to ``limit`` rows: id, status, the task's answers, and the scorer's version.

    Raises:
        UserError: There is no such table or scorer.
    """
    answers = [name for name in face_schema(query.task).names if not name.endswith("_p")]  # a screen is narrow
    shown = ["video_id", "status", *answers, "num_faces", "scorer_version", "committed_at"]
    with _opened(query, settings) as connection:
        columns = ", ".join(f'"{name}"' for name in shown)
        found = connection.sql(f"{newest_sql('selected', columns)} ORDER BY video_id LIMIT {limit}").to_arrow_table()
        ((total,),) = connection.execute("SELECT count(DISTINCT video_id) FROM selected").fetchall()
    table = Table(title=f"{query.task}: {min(limit, total):,} of {total:,} videos, each one's newest row")
    for name in shown:
        table.add_column(name, overflow="fold")
    for row in found.to_pylist():
        table.add_row(*[_cell(value) for value in row.values()])
    console.print(table)


def export_rows(query: NewestRows, settings: Settings, out: str) -> None:
    """Write all rows to a file, sorted by id; whole or not at all.

    Raises:
        UserError: There is no such table or scorer, or the file's format is unknown.
    """
    suffix = PurePosixPath(out).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"--out {out}: the file ends in one of {', '.join(FORMATS)}")
    storage = Storage(settings.storage)
    with _opened(query, settings) as connection, TemporaryDirectory(prefix="facereel-results-") as folder:
        columns = "*" if query.with_faces else "* EXCLUDE (faces)"
        local = Path(folder) / f"results{suffix}"
        connection.execute(
            f"COPY ({newest_sql('selected', columns)} ORDER BY video_id) TO '{local}' (FORMAT {FORMATS[suffix]})"
        )
        ((total,),) = connection.execute("SELECT count(DISTINCT video_id) FROM selected").fetchall()
        stat = storage.put_file(out if is_s3(out) else storage.absolute(out), local)
    console.print(f"wrote {total:,} rows to {out} ({stat.size_bytes / 1e6:.1f} MB)", highlight=False)


@contextmanager
def _opened(query: NewestRows, settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the view ``selected``: the rows that the query may choose from."""
    name = score_table(get_task(query.task).name)
    dataset = DeltaStore(query.tables, Storage(settings.storage)).dataset(name)
    if dataset is None:
        raise UserError(f"{query.tables}: no table {name} there; score the task {query.task} first")
    with TemporaryDirectory(prefix="facereel-results-") as folder:
        connection = scratch_database(folder)
        try:
            connection.register("score_rows", dataset)
            conditions = ["true"]
            if query.videos:
                conditions.append(f"video_id IN ({', '.join(map(_quoted, query.videos))})")
            if query.scorer is not None:
                conditions.append(f"starts_with(scorer, {_quoted(_digest(query, settings))})")
            connection.execute(
                f"CREATE TEMP VIEW selected AS SELECT * FROM score_rows WHERE {' AND '.join(conditions)}"
            )
            ((found,),) = connection.execute("SELECT count(*) FROM (SELECT 1 FROM selected LIMIT 1)").fetchall()
            if not found:
                of = f" of scorer {query.scorer}" if query.scorer else ""
                raise UserError(f"{query.tables}/{name}: no rows{of}{' of these videos' if query.videos else ''}")
            yield connection
        finally:
            connection.close()


def _digest(query: NewestRows, settings: Settings) -> str:
    """The beginning of the digests that the query's scorer stands for."""
    assert query.scorer is not None
    if len(query.scorer) >= 8 and set(query.scorer.lower()) <= set("0123456789abcdef"):
        return query.scorer.lower()
    return find_digest(answering_client(settings.tracking), query.scorer, task=query.task)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
