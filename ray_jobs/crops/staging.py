"""Where crops lie until a dataset is finished: files of whole videos, so that a run that broke off goes on."""

import io
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import UserError
from infra.storage import Storage, join
from ray_jobs.crops.dataset import MANIFEST

PREFIX = "_staged-"
KEY = "_made-of"
FLUSH_ROWS = 2_000
FLUSH_S = 60.0
BATCH_ROWS = 256


class Staging:
    """Rows of extracted videos below ``root``, written by one process."""

    def __init__(self, root: str, storage: Storage, made_of: str) -> None:
        """Open the staging area, or go on with the one that is there.

        Args:
            root: The dataset's folder.
            storage: Where it lies.
            made_of: What decides the crops (source, policies, splits), as text: another one does not go on.

        Raises:
            UserError: The folder holds a finished dataset, or the staging of another one.
        """
        self._root, self._storage = root, storage
        if storage.exists(join(root, MANIFEST)):
            raise UserError(f"{root} holds a crops dataset already; give another folder, or delete it first")
        key = join(root, KEY)
        if not storage.exists(key):
            storage.put(key, made_of.encode())
        elif storage.read_all(key) != made_of.encode():
            raise UserError(
                f"{root} holds the beginning of a dataset made of other labels or policies; "
                "repeat the options to go on with it, give another folder, or delete it first"
            )
        self._files = [stat.uri for stat in storage.list_prefix(root) if f"/{PREFIX}" in stat.uri]
        self._incomplete: dict[str, list[pa.Table]] = {}
        self._pending: list[pa.Table] = []
        self._flushed_at = time.monotonic()

    def video_ids(self) -> pa.Array:
        """The videos that are staged."""
        ids = [self._open(uri).read(columns=["video_id"])["video_id"].unique() for uri in self._files]
        return pa.concat_arrays([pa.array([], pa.string()), *ids])

    def add(self, rows: pa.Table) -> None:
        """Rows of one or more videos; a video's rows are written together, when all are there."""
        for video_id in pc.unique(rows["video_id"]).to_pylist():
            mine = rows.filter(pc.equal(rows["video_id"], video_id))
            parts = self._incomplete.setdefault(video_id, [])
            parts.append(mine)
            if sum(part.num_rows for part in parts) >= max(1, mine["num_faces"][0].as_py() or 0):
                self._pending += self._incomplete.pop(video_id)
        num_rows = sum(part.num_rows for part in self._pending)
        if num_rows >= FLUSH_ROWS or time.monotonic() - self._flushed_at > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what is complete."""
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        buffer = io.BytesIO()
        pq.write_table(pa.concat_tables(self._pending, promote_options="permissive"), buffer)
        self._files.append(join(self._root, f"{PREFIX}{len(self._files):06d}.parquet"))
        self._storage.put(self._files[-1], buffer.getvalue())
        self._pending = []

    def schema(self) -> pa.Schema:
        """The columns of what is written."""
        return pa.unify_schemas([self._open(uri).schema_arrow for uri in self._files], promote_options="permissive")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All that is written, a few rows at a time, always in the same order."""
        schema = self.schema()
        for uri in self._files:
            for batch in self._open(uri).iter_batches(BATCH_ROWS):
                yield from pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_batches()

    def _open(self, uri: str) -> pq.ParquetFile:
        filesystem, path = self._storage.arrow_filesystem(uri)
        return pq.ParquetFile(path, filesystem=filesystem)

    def remove(self) -> None:
        """Delete the staging area; its key last."""
        for uri in (*self._files, join(self._root, KEY)):
            self._storage.delete(uri)
