"""Keep tables fast to read: compact, vacuum, and clear what dead runs left behind."""

from infra.errors import UserError
from infra.leases import Lease
from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from models.tasks.base import task_names
from ray_jobs.console import console
from ray_jobs.run_record import read_records, remove_due_list
from ray_jobs.score_table import QUARANTINE, score_table


def optimize(tables: str, settings: Settings, *, keep_hours: int) -> None:
    """Compact every table, then delete what only versions older than ``keep_hours`` refer to, and runs' due lists.

    It holds the writer's lease. Readers are not disturbed: the files that they have opened stay for ``keep_hours``.

    Raises:
        UserError: There are no tables, or a run is writing.
        TypedError: A table cannot be written.
    """
    storage = Storage(settings.storage)
    store = DeltaStore(tables, storage)
    names = [name for name in (*map(score_table, task_names()), QUARANTINE) if store.version(name) is not None]
    if not names:
        raise UserError(f"{tables}: no tables there; give the --tables of a scoring run")
    with Lease(storage, tables, "tables optimize", after=max(map(store.epoch, names))) as lease:
        store = store.with_epoch(lease.epoch)
        for name in names:
            lease.check()
            num_compacted = store.compact(name)
            num_removed = store.vacuum(name, keep_hours=keep_hours)
            stats = store.stats(name)
            assert stats is not None
            console.print(
                f"{name}: {num_compacted} files compacted, {num_removed} removed; now {stats.num_rows:,} rows in "
                f"{stats.num_files} files, {stats.num_bytes / 1e6:.1f} MB",
                highlight=False,
            )
        num_lists = sum(bool(remove_due_list(tables, run.run_id, storage)) for run in read_records(tables, storage))
        if num_lists:
            console.print(f"due lists of {num_lists} runs that were killed: removed")
