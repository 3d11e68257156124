"""The plan: which videos of a catalog are due for which task, decided from the tables alone."""

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs.catalog import ADULT_AGE, open_catalog
from ray_jobs.score_table import QUARANTINE, score_table

# The states of a (video, task), in the order in which they are decided and shown. Those in DUE are scored.
STATES = ("new", "stale_content", "stale_policy", "stale_scorer", "retry", "done", "quarantined", "minor", "opted_out")
DUE = frozenset({"new", "stale_content", "stale_policy", "stale_scorer", "retry"})


# The etag is the content; where one side has none, the uri stands for it.
_SAME_CONTENT = "CASE WHEN c.etag IS NULL OR {row}.etag IS NULL THEN c.uri = {row}.uri ELSE c.etag = {row}.etag END"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: for each task the number of videos in each state, and the due list."""

    catalog: str
    num_videos: int
    num_due: int
    counts: dict[str, dict[str, int]]  # task -> state -> videos
    connection: duckdb.DuckDBPyConnection

    def due(self) -> pa.RecordBatchReader:
        """The due videos: the catalog's columns and ``due_tasks`` (list of task names), sorted by id."""
        return self.connection.sql(
            "SELECT c.*, d.due_tasks FROM catalog c JOIN due d USING (video_id) ORDER BY video_id"
        ).to_arrow_reader(100_000)


def make_plan(
    catalog: str,
    tables: str,
    *,
    policy: str,
    scorers: dict[str, str],
    settings: Settings,
    retry: frozenset[str] = frozenset(),
) -> Plan:
    """Compare the catalog with what is committed; touches no video and writes nothing.

    A video is *done* for a task when the score table holds a row with its content, this policy and this scorer.
    Its content is its etag; where the catalog has none, its uri stands for it. Rows for other content, policy or
    scorer make it *stale*. A quarantined video stays so until its content or the policy changes, or ``retry`` names
    its reason (or ``all``).

    Args:
        catalog: A table of videos or a storage prefix.
        tables: The root of the score and quarantine tables.
        policy: Digest of the frame and face policy.
        scorers: Task to scorer digest.
        settings: Storage settings.
        retry: Reasons of quarantine to plan again.

    Raises:
        UserError: The catalog is unusable.
    """
    storage = Storage(settings.storage)
    store = DeltaStore(tables, storage)
    connection = duckdb.connect()
    open_catalog(catalog, storage, connection)
    _register(connection, "quarantine", store, QUARANTINE, ["video_id", "uri", "etag", "policy", "reason"])
    connection.execute(
        "CREATE TABLE quarantined_now AS SELECT DISTINCT c.video_id, q.reason FROM catalog c JOIN quarantine q "
        "ON c.video_id = q.video_id AND q.policy = ? AND " + _SAME_CONTENT.format(row="q"),
        [policy],
    )
    excluded = _excluded_sql(connection)
    for task, digest in scorers.items():
        _register(connection, f"rows_{task}", store, score_table(task), ["video_id", "uri", "etag", "policy", "scorer"])
        connection.execute(
            f"""
            CREATE TABLE state_{task} AS
            WITH seen AS (
                SELECT c.video_id,
                       {_SAME_CONTENT.format(row="r")} AS same_content,
                       r.policy = $policy AS same_policy, r.scorer = $digest AS same_scorer
                FROM catalog c JOIN rows_{task} r USING (video_id)
            ), rows AS (
                SELECT video_id, bool_or(same_content) AS content, bool_or(same_content AND same_policy) AS policy,
                       bool_or(same_content AND same_policy AND same_scorer) AS done
                FROM seen GROUP BY video_id
            )
            SELECT c.video_id, CASE
                WHEN {excluded} IS NOT NULL THEN {excluded}
                WHEN rows.done THEN 'done'
                WHEN q.video_id IS NOT NULL THEN if(q.retried, 'retry', 'quarantined')
                WHEN rows.video_id IS NULL THEN 'new'
                WHEN NOT rows.content THEN 'stale_content'
                WHEN NOT rows.policy THEN 'stale_policy'
                ELSE 'stale_scorer' END AS state
            FROM catalog c LEFT JOIN rows USING (video_id)
            LEFT JOIN (SELECT video_id, bool_or($retry_all OR list_contains($retry, reason)) AS retried
                       FROM quarantined_now GROUP BY video_id) q USING (video_id)
            """,
            {"policy": policy, "digest": digest, "retry_all": "all" in retry, "retry": sorted(retry)},
        )
    union = " UNION ALL ".join(f"SELECT video_id, state, '{task}' AS task FROM state_{task}" for task in scorers)
    connection.execute(
        f"CREATE TABLE due AS SELECT video_id, list(task ORDER BY task) AS due_tasks FROM ({union}) "
        f"WHERE state IN ({', '.join(repr(state) for state in sorted(DUE))}) GROUP BY video_id"
    )
    counts = {
        task: dict(connection.execute(f"SELECT state, count(*) FROM state_{task} GROUP BY state").fetchall())
        for task in scorers
    }
    return Plan(
        catalog=catalog,
        num_videos=_count(connection, "catalog"),
        num_due=_count(connection, "due"),
        counts={task: {state: found.get(state, 0) for state in STATES} for task, found in counts.items()},
        connection=connection,
    )


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    ((number,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(number)


def _register(
    connection: duckdb.DuckDBPyConnection, view: str, store: DeltaStore, table: str, columns: list[str]
) -> None:
    dataset = store.dataset(table)
    if dataset is None:
        dataset = pa.table({name: pa.array([], type=pa.string()) for name in columns})
    connection.register(view, dataset)


def _excluded_sql(connection: duckdb.DuckDBPyConnection) -> str:
    """The SQL value that says why a catalog row is excluded, or null."""
    names = [row[0] for row in connection.execute("DESCRIBE catalog").fetchall()]
    opted_out = "WHEN CAST(c.opted_out AS BOOLEAN) THEN 'opted_out'" if "opted_out" in names else ""
    return f"(CASE WHEN c.age < {ADULT_AGE} THEN 'minor' {opted_out} END)"
