"""The plan: which videos of a catalog are due for which task, decided from the tables alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Literal, Self

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from infra.errors import UserError
from infra.scanning import scratch_database, stream
from infra.settings import Settings
from infra.storage import Storage, StorageUnavailable
from infra.tables import DeltaStore
from ray_jobs.catalog import open_catalog
from ray_jobs.exclusion import excluded
from ray_jobs.score_table import QUARANTINE, quarantine_reasons, score_table

# The states of a (video, task), in the order in which they are shown. Those in DUE are scored.
STATES = (
    "new",
    "stale_content",
    "stale_policy",
    "stale_scorer",
    "retry",
    "stale_recent",
    "done",
    "quarantined",
    "quarantined_retryable",
    "minor",
    "opted_out",
)
DUE = frozenset({"new", "stale_content", "stale_policy", "stale_scorer", "retry"})
# What `retry` takes beside reasons.
RETRY_ALL, RETRY_RETRYABLE = "all", "retryable"
NUM_EXAMPLES = 3
DUE_ROWS_PER_FILE = 50_000

Content = Literal["etag", "sha256"]


@dataclass(frozen=True, slots=True)
class Portion:
    """Which of the due videos a run takes, so that a catalog can be scored again in slices; by default all."""

    limit: int | None = None  # at most so many
    priority: str | None = None  # column of the catalog: the largest value first
    stale_older_than_s: float | None = None  # rows of other scorers or policies younger than this can wait


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: for each task the number of videos in each state, and the due list.

    Its tables lie in files of a temporary folder; `close` it when the due list is written.
    """

    catalog: str
    num_videos: int
    num_due: int
    counts: dict[str, dict[str, int]]  # task -> state -> videos
    examples: dict[str, dict[str, list[str]]]  # task -> state -> a few video ids
    reasons: dict[str, int]  # reason -> quarantined videos, whichever the task
    versions: dict[str, int | None]  # table -> version that was read
    opted_out: tuple[int, int] | None  # ids on the opt-out list, and videos of the catalog that they name
    num_later: int  # due too, but beyond the portion's limit
    order: str  # SQL, of the due list
    connection: duckdb.DuckDBPyConnection
    folder: TemporaryDirectory[str] = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the tables and their files."""
        self.connection.close()
        self.folder.cleanup()

    def due(self) -> pa.RecordBatchReader:
        """The due videos in the catalog's order, or the portion's.

        Columns: the catalog's, ``due_tasks`` and ``attempts`` (failed ones, so far).
        """
        return self._due_rows("").to_arrow_reader(10_000)

    def due_schema(self) -> pa.Schema:
        """The columns of `due`."""
        return self._due_rows("WHERE false").to_arrow_table().schema

    def sample(self, num_videos: int, seed: int) -> pa.Table:
        """So many due videos, drawn at random; all of them where there are fewer."""
        drawn = f"USING SAMPLE reservoir({num_videos} ROWS) REPEATABLE ({seed})"
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE drawn AS SELECT row FROM due {drawn}")
        return self._due_rows("WHERE c.rowid IN (SELECT row FROM drawn)").to_arrow_table()

    def write_due(self, uri: str, storage: Storage) -> None:
        """Write the due list as Parquet files below ``uri``, for workers to read.

        Raises:
            StorageUnavailable: They cannot be written: the disk is full, say.
        """
        filesystem, path = storage.arrow_filesystem(uri)
        try:
            pads.write_dataset(
                self.due(),
                path,
                format="parquet",
                filesystem=filesystem,
                max_rows_per_file=DUE_ROWS_PER_FILE,
                max_rows_per_group=DUE_ROWS_PER_FILE,
                min_rows_per_group=1,
                use_threads=False,
            )
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise StorageUnavailable(
                f"{uri}: the due list cannot be written: {' '.join(str(error).split())}"
            ) from error

    def _due_rows(self, where: str) -> duckdb.DuckDBPyRelation:
        return self.connection.sql(
            f"SELECT c.*, d.due_tasks, d.attempts FROM catalog c JOIN due d ON c.rowid = d.row {where} "
            f"ORDER BY {self.order}"
        )


def make_plan(
    catalog: str,
    tables: str,
    *,
    policy: str,
    scorers: dict[str, str],
    settings: Settings,
    retry: frozenset[str] = frozenset(),
    content: Content = "etag",
    opt_out: str | None = None,
    reserved: frozenset[str] = frozenset(),
    all_tasks: Sequence[str] = (),
    portion: Portion = Portion(),
    within: tuple[str, ...] = (),
) -> Plan:
    """Compare the catalog with what is committed; touches no video and writes nothing.

    A video is *done* for a task when the score table holds a row with its content, this policy and this scorer.
    Its content is its etag (or its ``sha256``); where the catalog has none, its uri stands for it. Rows for other
    content, policy or scorer make it *stale*. A quarantined video stays so until its content or the policy changes,
    ``retry`` names its reason, or a later row of any task shows that it could be decoded after all.

    Args:
        catalog: A table of videos or a storage prefix.
        tables: The root of the score and quarantine tables.
        policy: Digest of the frame and face policy.
        scorers: Task to scorer digest.
        settings: Storage settings.
        retry: Reasons of quarantine to plan again; ``retryable`` means those that may pass, ``all`` every one.
        content: The catalog's column that says what a video's content is.
        opt_out: A table with a column ``video_id`` or ``creator_id`` (or both): whom to leave out.
        reserved: Names that the catalog's further columns may not have.
        all_tasks: Tasks whose tables can disprove a failure, beside those of ``scorers``.
        portion: Which of the due videos to take.
        within: Folders or prefixes that every video must lie under; none: anywhere.

    Raises:
        UserError: The catalog or the opt-out list is unusable, or there is no such reason.
        TypedError: Storage or a table cannot be read.
    """
    _check_reasons(retry)
    storage = Storage(settings.storage)
    store = DeltaStore(tables, storage)
    folder = TemporaryDirectory(prefix="facereel-plan-", ignore_cleanup_errors=True)
    connection = scratch_database(folder.name)
    try:
        open_catalog(catalog, storage, connection, reserved, within)
        if content == "sha256":
            _require_digests(catalog, connection)
        names = [QUARANTINE, *map(score_table, scorers)]
        versions = {name: store.version(name) for name in names}
        reason, opted_out = excluded(connection, catalog, opt_out, storage)
        _find_quarantined(connection, store, policy, content)
        for task, digest in scorers.items():
            _find_best_rows(connection, store, task, policy, digest, content, portion.stale_older_than_s)
        others = [task for task in all_tasks if task not in scorers]
        _drop_disproved(connection, store, list(scorers), others, policy, content)
        for task in scorers:
            _find_states(connection, task, retry, reason)
        _find_due(connection, list(scorers))
        num_due = _count(connection, "due")
        order = _take_portion(connection, catalog, portion)
        return Plan(
            catalog=catalog,
            num_videos=_count(connection, "catalog"),
            num_due=_count(connection, "due"),
            counts={task: _counts(connection, task) for task in scorers},
            examples={task: _examples(connection, task) for task in scorers},
            reasons=dict(
                connection.execute("SELECT reason, count(*) FROM quarantined_now GROUP BY ALL ORDER BY ALL").fetchall()
            ),
            versions=versions,
            opted_out=opted_out,
            num_later=num_due - _count(connection, "due"),
            order=order,
            connection=connection,
            folder=folder,
        )
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        _close(connection, folder)
        raise UserError(f"{catalog}: no plan can be made of it: {' '.join(str(error).split())}") from error
    except BaseException:
        _close(connection, folder)
        raise


def _close(connection: duckdb.DuckDBPyConnection, folder: TemporaryDirectory[str]) -> None:
    connection.close()
    folder.cleanup()


def _check_reasons(retry: frozenset[str]) -> None:
    known = {*quarantine_reasons(), RETRY_ALL, RETRY_RETRYABLE}
    if unknown := sorted(retry - known):
        raise UserError(f"--retry {unknown[0]}: no such reason; known are {', '.join(sorted(known))}")


def _same_content(content: Content) -> str:
    """SQL: is catalog row ``c`` the content of table row ``r``? By the first name of it that both sides have."""
    by_etag = "WHEN c.etag IS NOT NULL AND r.etag IS NOT NULL THEN c.etag = r.etag"
    by_digest = "WHEN c.sha256 IS NOT NULL AND r.sha256 IS NOT NULL THEN c.sha256 = r.sha256"
    return f"CASE {by_digest if content == 'sha256' else ''} {by_etag} ELSE c.uri = r.uri END"


def _require_digests(catalog: str, connection: duckdb.DuckDBPyConnection) -> None:
    ((num_missing,),) = connection.execute("SELECT count(*) FROM catalog WHERE sha256 IS NULL").fetchall()
    if num_missing == _count(connection, "catalog"):
        raise UserError(
            f"{catalog}: --content sha256 compares the catalog's column sha256, which it does not have: "
            "add it, or plan by etag"
        )


def _find_quarantined(connection: duckdb.DuckDBPyConnection, store: DeltaStore, policy: str, content: Content) -> None:
    """``quarantined_now``: catalog rows that failed with this content and policy, with the newest reason."""
    columns = ["video_id", "uri", "etag", "sha256", "policy", "reason", "retryable", "attempts", "committed_at"]
    _register(connection, "rows_quarantine", store, QUARANTINE, columns)
    connection.execute(
        f"""
        CREATE TABLE quarantined_now AS
        SELECT c.rowid AS row, arg_max(r.reason, r.committed_at) AS reason,
               arg_max(r.retryable, r.committed_at) AS retryable, max(r.attempts) AS attempts,
               max(r.committed_at) AS failed_at
        FROM catalog c JOIN rows_quarantine r ON c.video_id = r.video_id
        WHERE r.policy = ? AND {_same_content(content)} GROUP BY c.rowid
        """,
        [policy],
    )
    connection.unregister("rows_quarantine")


def _find_best_rows(
    connection: duckdb.DuckDBPyConnection,
    store: DeltaStore,
    task: str,
    policy: str,
    digest: str,
    content: Content,
    stale_older_than_s: float | None,
) -> None:
    """``best_TASK``: the level of each catalog row's best row, when it was last decoded as it is now, and whether it
    was scored too recently to be scored again for another scorer or policy.

    Levels: 1 other content, 2 this content, 3 this policy too, 4 this scorer too.
    """
    cutoff = None
    if stale_older_than_s is not None:
        cutoff = datetime.now(UTC) - timedelta(seconds=stale_older_than_s)
    columns = ["video_id", "uri", "etag", "sha256", "policy", "scorer", "committed_at"]
    _register(connection, "rows_scored", store, score_table(task), columns)
    # In two steps: joining and grouping at once would need the memory of both.
    connection.execute(
        f"""
        CREATE TABLE seen AS
        SELECT c.rowid AS row, r.committed_at,
               (CASE WHEN NOT {_same_content(content)} THEN 1 WHEN r.policy <> $policy THEN 2
                     WHEN r.scorer <> $digest THEN 3 ELSE 4 END)::UTINYINT AS level
        FROM catalog c JOIN rows_scored r ON c.video_id = r.video_id
        """,
        {"policy": policy, "digest": digest},
    )
    connection.unregister("rows_scored")
    connection.execute(
        f"""
        CREATE TABLE best_{task} AS
        SELECT row, max(level) AS level, max(committed_at) FILTER (level >= 3) AS decoded_at,
               coalesce(bool_or(level > 1 AND committed_at > $cutoff), false) AS is_recent
        FROM seen GROUP BY row
        """,
        {"cutoff": cutoff},
    )
    connection.execute("DROP TABLE seen")


def _drop_disproved(
    connection: duckdb.DuckDBPyConnection,
    store: DeltaStore,
    tasks: Sequence[str],
    others: Sequence[str],
    policy: str,
    content: Content,
) -> None:
    """Take out of ``quarantined_now`` what was decoded later, whichever the task: the failure has passed."""
    for task in tasks:
        connection.execute(
            f"DELETE FROM quarantined_now q USING best_{task} b WHERE q.row = b.row AND b.decoded_at > q.failed_at"
        )
    others = [task for task in others if store.version(score_table(task)) is not None]
    if not others or not _count(connection, "quarantined_now"):
        return
    # Few rows beside a score table, which is read past them.
    connection.execute(
        "CREATE TEMP TABLE failing AS SELECT q.row, q.failed_at, c.video_id, c.uri, c.etag, c.sha256 "
        "FROM quarantined_now q JOIN catalog c ON q.row = c.rowid"
    )
    columns = ["video_id", "uri", "etag", "sha256", "policy", "committed_at"]
    for task in others:
        _register(connection, "rows_decoded", store, score_table(task), columns)
        connection.execute(
            f"""
            DELETE FROM quarantined_now WHERE row IN (
                SELECT c.row FROM rows_decoded r JOIN failing c ON r.video_id = c.video_id
                WHERE r.policy = ? AND {_same_content(content)} AND r.committed_at > c.failed_at
            )
            """,
            [policy],
        )
        connection.unregister("rows_decoded")
    connection.execute("DROP TABLE failing")


def _find_states(connection: duckdb.DuckDBPyConnection, task: str, retry: frozenset[str], excluded: str) -> None:
    """``state_TASK``: the catalog's row numbers and each one's state."""
    connection.execute(
        f"""
        CREATE TABLE state_{task} AS
        SELECT c.rowid AS row, (CASE
            WHEN {excluded} IS NOT NULL THEN {excluded}
            WHEN b.level = 4 THEN 'done'
            WHEN q.row IS NOT NULL AND ($all OR list_contains($reasons, q.reason) OR ($retryable AND q.retryable))
                THEN 'retry'
            WHEN q.row IS NOT NULL THEN if(q.retryable, 'quarantined_retryable', 'quarantined')
            WHEN b.level IS NULL THEN 'new'
            WHEN b.level = 1 THEN 'stale_content'
            WHEN b.is_recent THEN 'stale_recent'
            WHEN b.level = 2 THEN 'stale_policy'
            ELSE 'stale_scorer' END)::{_ENUM} AS state
        FROM catalog c LEFT JOIN best_{task} b ON c.rowid = b.row LEFT JOIN quarantined_now q ON c.rowid = q.row
        """,
        {"all": RETRY_ALL in retry, "retryable": RETRY_RETRYABLE in retry, "reasons": sorted(retry)},
    )
    connection.execute(f"DROP TABLE best_{task}")


_ENUM = f"ENUM({', '.join(map(repr, STATES))})"
_IS_DUE = f"state IN ({', '.join(map(repr, sorted(DUE)))})"


def _find_due(connection: duckdb.DuckDBPyConnection, tasks: Sequence[str]) -> None:
    """``due``: row numbers with the tasks that are due, and the failed attempts so far."""
    # Every state table has every row. Grouping rows to lists took twenty times as long once memory was full of them.
    first, *others = (f"state_{task}" for task in sorted(tasks))
    joined = first + "".join(f" JOIN {other} USING (row)" for other in others)
    is_due = {task: f"state_{task}.{_IS_DUE}" for task in sorted(tasks)}
    due_tasks = " || ".join(f"if({is_due[task]}, ['{task}'], []::VARCHAR[])" for task in is_due)
    connection.execute(
        f"""
        CREATE TABLE due AS
        SELECT d.row, d.due_tasks, coalesce(q.attempts, 0)::INTEGER AS attempts
        FROM (SELECT row, {due_tasks} AS due_tasks FROM {joined} WHERE {" OR ".join(is_due.values())}) d
        LEFT JOIN quarantined_now q ON d.row = q.row
        """
    )


def _take_portion(connection: duckdb.DuckDBPyConnection, catalog: str, portion: Portion) -> str:
    """Cut ``due`` down to the portion, in its order; the SQL of that order."""
    if portion.limit is None and portion.priority is None:
        return "c.rowid"
    order = "c.rowid"
    if portion.priority is not None:
        names = [row[0] for row in connection.execute("DESCRIBE catalog").fetchall()]
        if portion.priority not in names:
            raise UserError(f"{catalog}: --priority {portion.priority}: it has the columns {', '.join(names)}")
        ((kind,),) = connection.execute(f'SELECT typeof(any_value("{portion.priority}")) FROM catalog').fetchall()
        if kind == "VARCHAR":
            raise UserError(f"{catalog}: --priority {portion.priority} is text, which has no largest value: cast it")
        value = f'c."{portion.priority}"'
        if kind in ("FLOAT", "DOUBLE"):
            value = f"nullif({value}, 'nan')"  # DuckDB holds it for the largest number
        order = f"{value} DESC NULLS LAST, c.rowid"
    limit = "" if portion.limit is None else f"LIMIT {portion.limit}"
    connection.execute(
        f"CREATE TABLE portion AS SELECT d.* FROM due d JOIN catalog c ON c.rowid = d.row ORDER BY {order} {limit}"
    )
    connection.execute("DROP TABLE due")
    connection.execute("ALTER TABLE portion RENAME TO due")
    return order


def _counts(connection: duckdb.DuckDBPyConnection, task: str) -> dict[str, int]:
    found = dict(connection.execute(f"SELECT state, count(*) FROM state_{task} GROUP BY state").fetchall())
    return {state: found.get(state, 0) for state in STATES}


def _examples(connection: duckdb.DuckDBPyConnection, task: str) -> dict[str, list[str]]:
    """The first few ids of each state, in the catalog's order."""
    found = connection.execute(
        f"""
        SELECT s.state, list(c.video_id ORDER BY c.rowid)
        FROM (SELECT state, unnest(min(row, {NUM_EXAMPLES})) AS row FROM state_{task} GROUP BY state) s
        JOIN catalog c ON c.rowid = s.row GROUP BY s.state
        """
    ).fetchall()
    return {state: list(ids) for state, ids in found}


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    ((number,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(number)


# What a plan reads of the tables.
_COLUMN_TYPES = {
    **{name: pa.string() for name in ("video_id", "uri", "etag", "sha256", "policy", "scorer", "reason")},
    "retryable": pa.bool_(),
    "attempts": pa.int32(),
    "committed_at": pa.timestamp("us", tz="UTC"),
}


def _register(
    connection: duckdb.DuckDBPyConnection, view: str, store: DeltaStore, table: str, columns: Sequence[str]
) -> None:
    """Make the rows of a table, which may be absent or lack a column, a view that can be read once."""
    dataset = store.dataset(table)
    if dataset is None:
        dataset = pads.dataset(pa.table({name: pa.array([], type=_COLUMN_TYPES[name]) for name in columns}))
    missing = [pa.field(name, _COLUMN_TYPES[name]) for name in columns if name not in dataset.schema.names]
    dataset = dataset.replace_schema(pa.schema([*dataset.schema, *missing]))
    connection.register(view, stream(dataset, columns))
