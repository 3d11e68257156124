"""The demo's test: the score table against the truth about people that no model was trained on."""

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from infra.tables import DeltaStore
from models.tasks.base import Head, get_task
from ray_jobs.score_table import score_table

# A head with this many whole-number classes is a scale, on which near misses count: its error is measured.
MIN_CLASSES_OF_A_SCALE = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """One column over the held-out videos: the scorers' figure beside the trivial answer's."""

    column: str
    figure: str  # "mean absolute error" or "accuracy"
    scorer: float
    baseline: float
    num_videos: int


def compare(truth: pa.Table, labelled: pa.Table, store: DeltaStore, tasks: tuple[str, ...]) -> list[Comparison]:
    """Compare what was scored with what is true.

    Args:
        truth: ``video_id`` and the true value of every head, of held-out videos.
        labelled: The same columns of the videos that were trained on: the trivial answer is their mean (on a scale)
            or their most frequent value.
        store: Where the score tables are.
        tasks: The tasks to compare.
    """
    connection = duckdb.connect()
    connection.register("truth", truth)
    connection.register("labelled", labelled)
    found = []
    for task in tasks:
        connection.register("scored", store.dataset(score_table(task)))
        for head in get_task(task).heads:
            found.append(_compare_head(connection, head))
    return found


def _compare_head(connection: duckdb.DuckDBPyConnection, head: Head) -> Comparison:
    name = head.name
    if isinstance(head.classes[0], int) and len(head.classes) >= MIN_CLASSES_OF_A_SCALE:
        figure, trivial = "mean absolute error", f"avg({name})"
        measured = "avg(abs(s.value - t.value)), avg(abs(b.value - t.value))"
    else:
        figure, trivial = "accuracy", f"mode({name})"
        measured = "avg((s.value = t.value)::INT), avg((b.value = t.value)::INT)"
    ((scorer, baseline, num_videos),) = connection.sql(
        f"""
        SELECT {measured}, count(*) FROM (SELECT video_id, {name} AS value FROM truth) t
        JOIN (SELECT video_id, {name} AS value FROM scored WHERE status = 'scored') s USING (video_id)
        CROSS JOIN (SELECT {trivial} AS value FROM labelled) b
        """
    ).fetchall()
    return Comparison(name, figure, scorer, baseline, num_videos)
