"""Stream the columns of an Arrow dataset of any size through little memory."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as pads

BATCH_ROWS = 65_536
BATCHES_AHEAD = 2
FILES_AHEAD = 1
BUFFER_BYTES = 4 << 20


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
