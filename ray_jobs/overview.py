"""What stands below a tables' root: tables, who writes, and the last runs."""

from datetime import UTC, datetime

from pydantic import BaseModel, computed_field
from rich.table import Table

from infra.errors import UserError
from infra.leases import LeaseRecord, current_lease, duration
from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore, TableStats
from models.tasks.base import task_names
from ray_jobs.console import console
from ray_jobs.run_record import RunRecord, read_records
from ray_jobs.score_table import QUARANTINE, score_table


class RunLine(BaseModel):
    """A run's record, and whether it is at work: a record that says so may be of a process that was killed."""

    record: RunRecord
    is_live: bool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> str:
        """Its state in a word."""
        return "killed" if self.record.state == "running" and not self.is_live else self.record.state


class Overview(BaseModel):
    """Everything that `status` shows."""

    tables_uri: str
    tables: list[TableStats]
    writer: LeaseRecord | None
    runs: list[RunLine]


def overview(tables: str, settings: Settings, *, num_runs: int) -> Overview:
    """Read the tables' logs, the lease and the runs' records; no row is read.

    Raises:
        UserError: There is nothing there.
    """
    storage = Storage(settings.storage)
    store = DeltaStore(tables, storage)
    found = [store.stats(name) for name in (*map(score_table, task_names()), QUARANTINE)]
    lease = current_lease(storage, tables)
    records = read_records(tables, storage)
    if not records and not any(found):
        raise UserError(f"{tables}: no tables and no runs there; give the --tables of a scoring run")
    writer = lease[1] if lease is not None and lease[1].is_live(datetime.now(UTC)) else None
    live_epoch = writer.epoch if writer is not None else None
    return Overview(
        tables_uri=tables,
        tables=[stats for stats in found if stats is not None],
        writer=writer,
        runs=[
            RunLine(record=record, is_live=record.state == "running" and record.epoch == live_epoch)
            for record in records[:num_runs]
        ],
    )


def print_overview(found: Overview) -> None:
    """Two tables, and a line on who writes."""
    now = datetime.now(UTC)
    tables = Table(title=f"tables of {found.tables_uri}")
    for name in ("table", "rows", "files", "MB", "version", "last commit"):
        tables.add_column(name, justify="left" if name in ("table", "last commit") else "right")
    for stats in found.tables:
        at = f"{_ago(now, stats.committed_at)} ago" if stats.committed_at else ""
        numbers = [f"{number:,}" for number in (stats.num_rows, stats.num_files)]
        tables.add_row(stats.name, *numbers, f"{stats.num_bytes / 1e6:,.1f}", str(stats.version), at)
    console.print(tables)
    if any(stats.num_files > 1000 for stats in found.tables):
        console.print("many small files: `python -m ray_jobs tables optimize` makes reading faster")
    runs = Table(title="runs, the newest first")
    for name in ("run", "state", "done", "due", "quarantined", "videos/s", "started", "last sign", "where"):
        runs.add_column(name, justify="right" if name in ("done", "due", "quarantined", "videos/s") else "left")
    for line in found.runs:
        record = line.record
        seconds = (record.updated_at - record.started_at).total_seconds()
        runs.add_row(
            record.run_id,
            line.state,
            f"{record.outcome.done:,} ({record.outcome.done / max(record.num_due, 1):.0%})",
            f"{record.num_due:,}",
            f"{record.outcome.quarantined.total():,}",
            f"{record.outcome.done / seconds:.2f}" if seconds > 1 else "",
            f"{_ago(now, record.started_at)} ago",
            f"{_ago(now, record.updated_at)} ago",
            f"{record.user}@{record.host}:{record.pid}",
        )
    console.print(runs)
    for line in found.runs[:1]:  # what an earlier run left, the newest one has planned
        if line.state in ("killed", "stopped", "failed"):
            console.print(
                f"{line.record.run_id} {line.state}: {line.record.message or 'no last word'}", highlight=False
            )
            if line.record.command:
                console.print(f"  go on with: {line.record.command}", highlight=False)
    if found.writer is not None:
        console.print(
            f"writing now: {found.writer.holder} ({found.writer.user}@{found.writer.host}:{found.writer.pid}, "
            f"for {_ago(now, found.writer.acquired_at)})",
            highlight=False,
        )
    else:
        console.print("nobody is writing")


def _ago(now: datetime, then: datetime) -> str:
    return duration((now - then).total_seconds())
