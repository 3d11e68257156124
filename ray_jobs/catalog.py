"""Read a catalog: a Parquet, CSV or JSONL table of videos, or every media file under a storage prefix."""

from itertools import islice
from pathlib import PurePosixPath

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as pads

from infra.errors import UserError
from infra.scanning import stream
from infra.storage import Storage, is_s3, join

TABLE_FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json"}
MEDIA_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".flv",
        ".3gp",
        ".wmv",
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
    ]
)
COLUMN_TYPES = {
    "video_id": pa.string(),
    "uri": pa.string(),
    "creator_id": pa.string(),
    "etag": pa.string(),
    "size": pa.int64(),
    "age": pa.float64(),
    "sha256": pa.string(),
}
KNOWN = frozenset({*COLUMN_TYPES, "opted_out"})
OWN_NAMES = frozenset({"row", "rowid", "attempts", "due_tasks"})
REQUIRED = ("video_id", "uri")
LISTING_ROWS = 100_000
ADULT_AGE = 18  # years; younger people are left out of scoring and of training


def open_catalog(
    uri: str,
    storage: Storage,
    connection: duckdb.DuckDBPyConnection,
    reserved: frozenset[str] = frozenset(),
    within: tuple[str, ...] = (),
) -> None:
    """Make the catalog the table ``catalog`` of the connection, checked, with one row a video.

    Columns: ``video_id``, ``uri`` (absolute), ``creator_id``, ``etag``, ``size``, ``age``, ``sha256`` (null where the
    source has none) and whatever else the source has.

    Args:
        uri: The table, or a storage prefix.
        storage: Where it lies.
        connection: Gets the table.
        reserved: Names that no further column of the catalog may have, in lower case: those of the results.
        within: Folders or prefixes that every uri must lie under; none: anywhere.

    Raises:
        UserError: The table is missing, unreadable, empty, lacks a column, has one with a reserved name, or lists one
            id with several uris, or a uri lies outside of ``within``.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix in TABLE_FORMATS:
        _open_table(uri, TABLE_FORMATS[suffix], storage, connection, reserved | OWN_NAMES)
    else:
        _open_prefix(uri, storage, connection)
    if within:
        _check_places(uri, [join(storage.absolute(prefix), "") for prefix in within], connection)


def read_table(uri: str, storage: Storage, column_types: dict[str, pa.DataType]) -> pads.Dataset:
    """A Parquet, CSV, TSV or JSONL file as an Arrow dataset; the named columns get the given types where they exist.

    Raises:
        UserError: The format is unknown, or the file cannot be read as it.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix not in TABLE_FORMATS:
        raise UserError(f"{uri}: a table ends in one of {', '.join(TABLE_FORMATS)}")
    storage.stat(uri)  # a missing or forbidden file is said by name, before Arrow's own words for it
    file_format: pads.FileFormat | str = TABLE_FORMATS[suffix]
    if file_format == "csv":
        file_format = pads.CsvFileFormat(
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ","),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=column_types, null_values=["", "null", "NULL"], strings_can_be_null=True
            ),
        )
    filesystem, path = storage.arrow_filesystem(uri)
    try:
        dataset = pads.dataset(path, format=file_format, filesystem=filesystem)
        dataset.head(1)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{uri} cannot be read as {suffix[1:]}: {_first_line(error)}") from error
    return dataset


def _open_table(
    uri: str,
    file_format: str,
    storage: Storage,
    connection: duckdb.DuckDBPyConnection,
    reserved: frozenset[str],
) -> None:
    dataset = read_table(uri, storage, COLUMN_TYPES)
    _check_names(uri, dataset.schema.names, reserved)
    missing = [name for name in REQUIRED if name not in dataset.schema.names]
    if missing:
        raise UserError(
            f"{uri}: the catalog has no column {' and no column '.join(missing)}; "
            f"it needs {' and '.join(REQUIRED)}, it has {', '.join(dataset.schema.names)}"
        )
    connection.register("catalog_file", stream(dataset))
    folder = uri.rsplit("/", 1)[0] if "/" in uri else "."
    # Relative uris are relative to the catalog's folder, wherever a worker runs.
    base = join(folder if is_s3(folder) else storage.absolute(folder), "").replace("'", "''")
    columns = {
        name: f"CAST({_quoted(name)} AS {_DUCKDB_TYPES[kind]})"
        if name in dataset.schema.names
        else f"CAST(NULL AS {_DUCKDB_TYPES[kind]})"
        for name, kind in COLUMN_TYPES.items()
    }
    columns["uri"] = f"if(starts_with(uri, '/') OR contains(uri, '://') OR uri = '', uri, '{base}' || uri)"
    # An empty text says as little as none.
    columns["etag"] = f"nullif(trim({columns['etag']}, '\" '), '')"
    columns["sha256"] = f"nullif(lower(trim({columns['sha256']})), '')"
    extra = {name: _quoted(name) for name in dataset.schema.names if name not in COLUMN_TYPES}
    selected = ", ".join(f"{value} AS {_quoted(name)}" for name, value in (columns | extra).items())
    try:
        connection.execute(f"CREATE TABLE catalog AS SELECT {selected} FROM catalog_file")
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise UserError(f"{uri} cannot be read as {file_format}: {_first_line(error)}") from error
    connection.unregister("catalog_file")
    _check_rows(uri, connection)


def _check_names(uri: str, names: list[str], reserved: frozenset[str]) -> None:
    """Refuse columns that would be taken for others: SQL and Delta do not tell ``Age`` from ``age``."""
    by_lower: dict[str, str] = {}
    for name in names:
        lower = name.lower()
        if lower in by_lower:
            raise UserError(f"{uri}: the columns {by_lower[lower]} and {name} differ only in case; rename one")
        by_lower[lower] = name
        if lower in KNOWN and name != lower:
            raise UserError(f"{uri}: the column {name} has to be called {lower}; rename it")
        if lower in reserved:
            raise UserError(
                f"{uri}: the column {name} has the name of one that facereel writes; rename it (results take the "
                "catalog's further columns over as they are)"
            )


_DUCKDB_TYPES = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE"}


def _open_prefix(uri: str, storage: Storage, connection: duckdb.DuckDBPyConnection) -> None:
    uri = storage.absolute(uri)
    connection.execute(
        "CREATE TABLE catalog (video_id VARCHAR, uri VARCHAR, creator_id VARCHAR, etag VARCHAR, size BIGINT, "
        "age DOUBLE, sha256 VARCHAR)"
    )
    media = (stat for stat in storage.list_prefix(uri) if PurePosixPath(stat.uri).suffix.lower() in MEDIA_SUFFIXES)
    # In pieces: a listing of millions of objects need not stand in memory.
    while stats := list(islice(media, LISTING_ROWS)):
        listing = pa.table(
            {
                "video_id": [stat.uri.removeprefix(uri.rstrip("/") + "/") for stat in stats],
                "uri": [stat.uri for stat in stats],
                "etag": [stat.etag for stat in stats],
                "size": pa.array([stat.size_bytes for stat in stats], type=pa.int64()),
            }
        )
        connection.register("listing", listing)
        connection.execute("INSERT INTO catalog BY NAME SELECT * FROM listing")
        connection.unregister("listing")
    ((num_found,),) = connection.execute("SELECT count(*) FROM catalog").fetchall()
    if not num_found:
        raise UserError(f"{uri}: no videos or images there; give a prefix that holds some, or a table of videos")


def _check_rows(uri: str, connection: duckdb.DuckDBPyConnection) -> None:
    holes = ", ".join(f"count(*) FILTER (coalesce({name}, '') = '')" for name in REQUIRED)
    ((num_rows, *num_holes),) = connection.execute(f"SELECT count(*), {holes} FROM catalog").fetchall()
    if not num_rows:
        raise UserError(f"{uri}: the catalog is empty")
    for name, num in zip(REQUIRED, num_holes, strict=True):
        if num:
            raise UserError(f"{uri}: {num} rows have no {name}; every row needs one")
    # By hash first: numbers take a tenth of the memory of ids, and few of them repeat.
    connection.execute(
        "CREATE TEMP TABLE repeated AS SELECT rowid AS row, video_id, uri FROM catalog WHERE hash(video_id) IN "
        "(SELECT hash(video_id) FROM catalog GROUP BY ALL HAVING count(*) > 1)"
    )
    ids = connection.execute(
        "SELECT video_id, min(uri), max(uri) FROM repeated WHERE video_id IN ("
        "  SELECT video_id FROM (SELECT DISTINCT catalog.* FROM catalog SEMI JOIN repeated ON catalog.rowid = row)"
        "  GROUP BY video_id HAVING count(*) > 1"
        ") GROUP BY video_id ORDER BY video_id"
    ).fetchall()
    if ids:
        video_id, first, second = ids[0]
        what = f"uris {first!r} and {second!r}" if first != second else "rows that differ in another column"
        raise UserError(
            f"{uri}: {len(ids)} ids are listed more than once, for example {video_id!r} with {what}; "
            "an id stands for one video"
        )
    # The same row twice is one video.
    connection.execute(
        "DELETE FROM catalog WHERE rowid IN (SELECT row FROM repeated "
        "QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY row) > 1)"
    )
    connection.execute("DROP TABLE repeated")


def _check_places(uri: str, prefixes: list[str], connection: duckdb.DuckDBPyConnection) -> None:
    """Refuse a catalog of which a row lies outside of the prefixes, which end in a slash."""
    inside = " OR ".join("starts_with(uri, ?)" for _ in prefixes)
    found = connection.execute(
        f"SELECT video_id, uri FROM catalog WHERE NOT ({inside}) OR contains(uri, '/../') LIMIT 1", prefixes
    ).fetchone()
    if found is not None:
        raise UserError(f"{uri}: video {found[0]!r} at {found[1]!r} lies outside of {', '.join(prefixes)} (--within)")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
