"""Whom a plan leaves out: minors, and whoever opted out by the catalog or by a list."""

import duckdb
import pyarrow as pa

from infra.errors import UserError
from infra.scanning import stream
from infra.storage import Storage
from ray_jobs.catalog import ADULT_AGE, read_table


def excluded(
    connection: duckdb.DuckDBPyConnection, catalog: str, opt_out: str | None, storage: Storage
) -> tuple[str, tuple[int, int] | None]:
    """The SQL value that says why catalog row ``c`` is excluded, or null; and what the opt-out list names.

    Args:
        connection: Has the table ``catalog``; gets tables of the ids that opted out.
        catalog: What messages call it.
        opt_out: A table with a column ``video_id`` or ``creator_id`` (or both), or None.
        storage: Where that lies.

    Returns:
        The value, and the number of ids on the list with the number of the catalog's videos that they name.

    Raises:
        UserError: The catalog's ``opted_out`` is neither true nor false, or the list is unusable.
    """
    names = [row[0] for row in connection.execute("DESCRIBE catalog").fetchall()]
    cases = [f"WHEN c.age < {ADULT_AGE} THEN 'minor'"]
    if "opted_out" in names:
        as_bool = "try_cast(trim(c.opted_out::VARCHAR) AS BOOLEAN)"
        unclear = connection.execute(
            "SELECT video_id, opted_out FROM catalog c "
            f"WHERE {as_bool} IS NULL AND trim(opted_out::VARCHAR) <> '' LIMIT 1"
        ).fetchall()
        if unclear:
            raise UserError(
                f"{catalog}: opted_out of {unclear[0][0]!r} is {unclear[0][1]!r}; give true, false or nothing"
            )
        cases.append(f"WHEN {as_bool} THEN 'opted_out'")
    found = None
    if opt_out is not None:
        listed = read_table(opt_out, storage, {"video_id": pa.string(), "creator_id": pa.string()})
        columns = [name for name in ("video_id", "creator_id") if name in listed.schema.names]
        if not columns:
            raise UserError(
                f"{opt_out}: an opt-out list has a column video_id or creator_id; "
                f"it has {', '.join(listed.schema.names)}"
            )
        for column in columns:
            kind = listed.schema.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
                # 123 read as 123.0 would match nobody, and whom it names would be scored.
                raise UserError(f"{opt_out}: {column} is {kind}; ids are text or whole numbers: write them as text")
            connection.register("opt_out_file", stream(listed, [column]))
            connection.execute(
                f"CREATE TABLE opted_out_{column} AS SELECT DISTINCT trim({column}::VARCHAR) AS id FROM opt_out_file "
                f"WHERE {column} IS NOT NULL"
            )
            connection.unregister("opt_out_file")
        listings = [f"c.{column} IN (SELECT id FROM opted_out_{column})" for column in columns]
        cases += [f"WHEN {listing} THEN 'opted_out'" for listing in listings]
        ((num_named,),) = connection.execute(f"SELECT count(*) FROM catalog c WHERE {' OR '.join(listings)}").fetchall()
        found = (sum(_num_ids(connection, column) for column in columns), int(num_named))
    return f"(CASE {' '.join(cases)} END)", found


def _num_ids(connection: duckdb.DuckDBPyConnection, column: str) -> int:
    ((number,),) = connection.execute(f"SELECT count(*) FROM opted_out_{column}").fetchall()
    return int(number)
