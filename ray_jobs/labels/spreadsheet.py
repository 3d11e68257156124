"""A label table's cells, whatever the file: CSV and TSV in UTF-8 or GBK, Excel, Parquet, JSON lines."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from infra.errors import UserError
from infra.storage import Storage

FORMATS = (".csv", ".tsv", ".txt", ".xlsx", ".xlsm", ".parquet", ".jsonl", ".ndjson")
# Tried in this order: UTF-8 tells by itself when a file is not its own; GB18030 contains GBK and GB2312.
ENCODINGS = ("utf-8-sig", "gb18030")
MAX_CELL_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as text and numbers: the header's names, and rows with the number that a spreadsheet shows."""

    file: str
    columns: tuple[str, ...]
    rows: list[tuple[int, tuple[Any, ...]]]


def read_sheet(uri: str, storage: Storage) -> Sheet:
    """Read the table; rows without any content are passed over, and short ones filled up with None.

    Raises:
        UserError: The format is unknown, the file cannot be read as it, or has no header.
        StorageError: The file is not there, or cannot be fetched.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"{uri}: a label table ends in one of {', '.join(FORMATS)}")
    data = storage.read_all(uri)
    try:
        if suffix in (".xlsx", ".xlsm"):
            rows = list(_excel_rows(data))
        elif suffix in (".parquet", ".jsonl", ".ndjson"):
            rows = list(_arrow_rows(data, suffix))
        else:
            rows = list(_text_rows(data, suffix))
    except (pa.ArrowException, OSError, csv.Error, KeyError, ValueError) as error:
        raise UserError(f"{uri} cannot be read as {suffix[1:]}: {' '.join(str(error).split())}") from error
    filled = [(number, row) for number, row in rows if any(cell not in (None, "") for cell in row)]
    if not filled:
        raise UserError(f"{uri}: the label table is empty")
    header_row, header = filled[0]
    columns = tuple("" if name is None else str(name).strip() for name in header)
    if not any(columns):
        raise UserError(f"{uri}, row {header_row}: no column has a name")
    width = len(columns)
    body = [(number, (tuple(row) + (None,) * width)[:width]) for number, row in filled[1:]]
    return Sheet(uri, columns, body)


def _text_rows(data: bytes, suffix: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    text = _decoded(data)
    first_line = text.partition("\n")[0]
    is_tabbed = suffix == ".tsv" or (suffix == ".txt" and "\t" in first_line)
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    # A row's number is that of its own first line only where no cell holds a line break; spreadsheets count rows.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if is_tabbed else ",")
    yield from enumerate(map(tuple, lines), start=1)


def _decoded(data: bytes) -> str:
    for encoding in ENCODINGS:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError("the text is neither UTF-8 nor GBK")


def _excel_rows(data: bytes) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The rows of the first sheet, formulas by the values that were saved with them."""
    import zipfile

    import openpyxl

    try:
        workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    except zipfile.BadZipFile as error:
        raise ValueError("it is no Excel workbook (.xlsx); save it as one, or as CSV") from error
    try:
        yield from enumerate(workbook.worksheets[0].iter_rows(values_only=True), start=1)
    finally:
        workbook.close()


def _arrow_rows(data: bytes, suffix: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
    buffer = pa.BufferReader(data)
    table = pq.read_table(buffer) if suffix == ".parquet" else pyarrow.json.read_json(buffer)
    yield 1, tuple(table.column_names)
    for number, row in enumerate(table.to_pylist(), start=2):
        yield number, tuple(row.values())
