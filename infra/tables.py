"""Delta tables: append whole commits exactly once, by one writer at a time; read, compact and clean them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from infra.errors import TypedError
from infra.storage import Storage

LEASE_APP = "facereel-lease"
COMMIT_ATTEMPTS = 4
FIRST_WAIT_S = 0.5


class TableUnwritable(TypedError):
    """A commit failed for good: the disk is full, the folder is read-only, storage refuses or does not answer."""

    reason = "table_unwritable"


class TableUnreadable(TypedError):
    """A table is there, but cannot be opened: storage refuses or does not answer, or its log is damaged."""

    reason = "table_unreadable"


class Fenced(TypedError):
    """A later writer has taken over the table: this one must not commit any more."""

    reason = "fenced"


@dataclass(frozen=True, slots=True)
class TableStats:
    """How large a table is."""

    name: str
    version: int
    num_rows: int
    num_files: int
    num_bytes: int
    committed_at: datetime | None


class DeltaStore:
    """Delta tables under one root (a folder or ``s3://bucket/prefix``), each named by its folder.

    Readers see whole commits only. Writers hold a `Lease` on the root and give its epoch: the epoch goes into every
    commit as a Delta application transaction, so that a writer whose lease has passed is refused by the table itself.
    """

    def __init__(self, root: str, storage: Storage, *, epoch: int = 0) -> None:
        self.root = root.rstrip("/")
        self._storage = storage
        self._epoch = epoch

    def with_epoch(self, epoch: int) -> "DeltaStore":
        """The same tables, written under the lease of this epoch."""
        return DeltaStore(self.root, self._storage, epoch=epoch)

    def uri(self, name: str) -> str:
        """Where the table ``name`` lies."""
        return f"{self.root}/{name}"

    def append(self, name: str, rows: pa.Table, *, run_id: str, sequence: int) -> bool:
        """Commit ``rows`` as commit number ``sequence`` of the run; creates the table and adds new columns as needed.

        What fails is tried again: when an answer was lost, the sequence number tells.

        Returns:
            False when this run already committed that sequence number: then nothing is written, so a repeated
            commit cannot double its rows.

        Raises:
            Fenced: a writer with a later lease has begun.
            TableUnwritable: every attempt failed, or the rows do not fit the table; nothing of ``rows`` is in it.
        """

        def commit() -> bool:
            table = self._open(name)
            if table is not None:
                self._check_epoch(name, table)
                committed = table.transaction_version(run_id)
                if committed is not None and committed >= sequence:
                    return False
            self._write(name, table, rows, Transaction(run_id, sequence))
            return True

        return self._attempted(name, commit)

    def fence(self, name: str, schema: pa.Schema) -> None:
        """Make this store's epoch the one that may write the table; creates it with ``schema`` where it is absent.

        Raises:
            Fenced: a writer with a later lease has begun.
            TableUnwritable: every attempt failed.
        """

        def commit() -> bool:
            table = self._open(name)
            if table is not None and self._check_epoch(name, table) == self._epoch:
                return False
            # Only a table that this very commit creates takes its columns from it.
            columns = schema if table is None else pa.schema([schema.field(0)])
            self._write(name, table, columns.empty_table())
            return True

        self._attempted(name, commit)

    def epoch(self, name: str) -> int:
        """The highest epoch that has written the table; 0 where none has."""
        table = self._open(name)
        return 0 if table is None else table.transaction_version(LEASE_APP) or 0

    def version(self, name: str) -> int | None:
        """The number of the table's last commit; None where the table is absent."""
        table = self._open(name)
        return None if table is None else int(table.version())

    def dataset(self, name: str) -> pads.Dataset | None:
        """The committed rows as an Arrow dataset (lazy, for DuckDB or ``to_table``); None where the table is absent."""
        table = self._open(name)
        return None if table is None else table.to_pyarrow_dataset()

    def num_rows(self, name: str) -> int:
        """The number of committed rows; 0 where the table is absent."""
        dataset = self.dataset(name)
        return 0 if dataset is None else int(dataset.count_rows())

    def stats(self, name: str) -> TableStats | None:
        """Size, and time of the last commit, from the table's log alone; None where the table is absent."""
        table = self._open(name)
        if table is None:
            return None
        files = pa.table(table.get_add_actions(flatten=True))
        rows, sizes = (files[column].to_pylist() for column in ("num_records", "size_bytes"))
        last = table.history(1)
        at = datetime.fromtimestamp(last[0]["timestamp"] / 1e3, UTC) if last else None
        return TableStats(name, int(table.version()), sum(rows), len(rows), sum(sizes), at)

    def compact(self, name: str) -> int:
        """Rewrite small files as large ones; the number of files that went. Readers keep the ones that they opened.

        Raises:
            Fenced: a writer with a later lease has begun.
            TableUnwritable: every attempt failed.
        """
        metrics: dict[str, Any] = {}

        def commit() -> bool:
            table = self._open(name)
            if table is not None:
                self._check_epoch(name, table)
                metrics.update(table.optimize.compact(commit_properties=self._properties()))
            return True

        self._attempted(name, commit)
        return int(metrics.get("numFilesRemoved", 0))

    def vacuum(self, name: str, *, keep_hours: int) -> int:
        """Delete files that no version of the last ``keep_hours`` hours refers to; their number.

        A reader that opened the table longer ago than that would miss them: keep more hours than any query lasts.
        """
        table = self._open(name)
        if table is None:
            return 0
        # Full: files of commits that never came about stand in no version's log, and are looked for too.
        removed = table.vacuum(retention_hours=keep_hours, dry_run=False, enforce_retention_duration=False, full=True)
        return len(removed)

    def _write(self, name: str, table: DeltaTable | None, rows: pa.Table, *transactions: Transaction) -> None:
        write_deltalake(
            table if table is not None else self.uri(name),
            rows,
            mode="append",
            schema_mode="merge",
            storage_options=None if table is not None else self._storage.delta_options(self.root),
            commit_properties=self._properties(*transactions),
        )

    def _properties(self, *transactions: Transaction) -> CommitProperties:
        own = [Transaction(LEASE_APP, self._epoch)] if self._epoch else []
        return CommitProperties(app_transactions=[*transactions, *own])

    def _check_epoch(self, name: str, table: DeltaTable) -> int:
        epoch = table.transaction_version(LEASE_APP) or 0
        if self._epoch and epoch > self._epoch:
            raise Fenced(
                f"{self.uri(name)}: a later run (lease {epoch}) has taken over from this one (lease {self._epoch}); "
                "nothing more of this run is written"
            )
        return epoch

    def _attempted(self, name: str, commit: Callable[[], bool]) -> bool:
        for attempt in range(1, COMMIT_ATTEMPTS + 1):
            try:
                return commit()
            except TypedError:
                raise
            except (DeltaError, OSError) as error:
                if attempt == COMMIT_ATTEMPTS:
                    raise self._unwritable(name, error) from error
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            except Exception as error:  # deltalake's plain one: the rows do not fit the table, now and for ever
                raise self._unwritable(name, error) from error
        raise AssertionError("COMMIT_ATTEMPTS is at least 1")

    def _unwritable(self, name: str, error: Exception) -> TableUnwritable:
        why = " ".join(str(error).split())
        return TableUnwritable(
            f"{self.uri(name)} cannot be written: {why}; what is committed is safe, mend this and run again"
        )

    def _open(self, name: str) -> DeltaTable | None:
        try:
            # Asked for at each opening: the credentials of a role expire within a long run.
            return DeltaTable(self.uri(name), storage_options=self._storage.delta_options(self.root))
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise TableUnreadable(f"{self.uri(name)} cannot be opened: {' '.join(str(error).split())}") from error
