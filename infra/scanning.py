"""Work on tables of any size with little memory: stream an Arrow dataset's columns, join and sort beside a disk."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

BATCH_ROWS = 65_536
BATCHES_AHEAD = 2
FILES_AHEAD = 1
BUFFER_BYTES = 4 << 20
# Joins of ten million rows need this for two threads, and more for each thread more; the rest goes to disk.
DUCKDB_MEMORY = "700MB"
DUCKDB_THREADS = 2


def stream(dataset: pads.Dataset, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
    """The rows of ``columns`` (None: all), to be read once.

    Arrow's own defaults read 16 batches and 4 files ahead and keep the bytes of a Parquet file until its end: gigabytes
    for a table of millions.
    """
    options: dict[str, pads.FragmentScanOptions] = {}
    if isinstance(dataset, pads.FileSystemDataset) and isinstance(dataset.format, pads.ParquetFileFormat):
        options["fragment_scan_options"] = pads.ParquetFragmentScanOptions(
            pre_buffer=False, use_buffered_stream=True, buffer_size=BUFFER_BYTES
        )
    return dataset.scanner(
        columns=None if columns is None else list(columns),
        batch_size=BATCH_ROWS,
        batch_readahead=BATCHES_AHEAD,
        fragment_readahead=FILES_AHEAD,
        **options,
    ).to_reader()


def scratch_database(folder: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB database in a temporary folder, which bounds memory and speaks UTC."""
    connection = duckdb.connect(
        str(Path(folder) / "scratch.duckdb"), config={"memory_limit": DUCKDB_MEMORY, "threads": DUCKDB_THREADS}
    )
    connection.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'")
    return connection
