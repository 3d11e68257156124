"""Delta tables: append whole commits exactly once, and read what is committed."""

import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError

from infra.storage import Storage


class DeltaStore:
    """Delta tables under one root (a folder or ``s3://bucket/prefix``), each named by its folder.

    Only one process may write at a time; readers see whole commits only.
    """

    def __init__(self, root: str, storage: Storage) -> None:
        self.root = root.rstrip("/")
        self._storage = storage

    def uri(self, name: str) -> str:
        """Where the table ``name`` lies."""
        return f"{self.root}/{name}"

    def append(self, name: str, rows: pa.Table, *, run_id: str, sequence: int) -> bool:
        """Commit ``rows`` as commit number ``sequence`` of the run; creates the table and adds new columns as needed.

        Returns:
            False when this run already committed that sequence number: then nothing is written, so a repeated
            commit (the answer to the first one was lost, say) cannot double its rows.
        """
        table = self._open(name)
        if table is not None:
            committed = table.transaction_version(run_id)
            if committed is not None and committed >= sequence:
                return False
        write_deltalake(
            table if table is not None else self.uri(name),
            rows,
            mode="append",
            schema_mode="merge",
            storage_options=None if table is not None else self._storage.delta_options(self.root),
            commit_properties=CommitProperties(app_transactions=[Transaction(run_id, sequence)]),
        )
        return True

    def dataset(self, name: str) -> pads.Dataset | None:
        """The committed rows as an Arrow dataset (lazy, for DuckDB or ``to_table``); None where the table is absent."""
        table = self._open(name)
        return None if table is None else table.to_pyarrow_dataset()

    def num_rows(self, name: str) -> int:
        """The number of committed rows; 0 where the table is absent."""
        dataset = self.dataset(name)
        return 0 if dataset is None else int(dataset.count_rows())

    def _open(self, name: str) -> DeltaTable | None:
        try:
            # Asked for at each opening: the credentials of a role expire within a long run.
            return DeltaTable(self.uri(name), storage_options=self._storage.delta_options(self.root))
        except TableNotFoundError:
            return None
