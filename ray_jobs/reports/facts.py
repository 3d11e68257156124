"""Every figure of a report, aggregated in SQL: only bins, sums and a few examples leave the database."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from models.tasks.base import Head, Task
from ray_jobs.reports.database import ReportDatabase

MAX_BINS = 60
MAX_RUNS = 8
MAX_STEPS = 200


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the videos; the three states add up to ``num_videos``."""

    num_videos: int
    num_scored: int
    num_no_face: int
    num_quarantined: int
    num_frames: int
    num_faces: int
    first_at: float  # seconds since 1970
    last_at: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Values in [low, low + width)."""

    low: float
    width: float
    num: int
    mean_std: float | None = None


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """The distribution over videos of a task's numeric column."""

    name: str
    lowest: float
    highest: float
    bins: tuple[Bin, ...]
    num: int
    mean: float
    median: float
    p10: float
    p90: float
    median_std: float | None  # of each video's own distribution
    median_interval: float | None  # width of each video's interval


@dataclass(frozen=True, slots=True)
class Value:
    """One answer of an attribute: how many videos have it, and how sure the scorer is of them on average."""

    words: str
    num: int
    share: float
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Attribute:
    """The answers of a task's column of classes, over videos."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """The videos that are quarantined for one reason."""

    reason: str
    num: int
    retryable: bool
    examples: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Cause:
    """Frames without a usable face, by cause."""

    cause: str
    num_no_face_videos: int  # videos without any face in which a frame was dropped for this cause
    num_no_face_frames: int
    num_scored_frames: int


@dataclass(frozen=True, slots=True)
class Run:
    """One scoring run; rates are over the seconds from its start to its last commit, warm-up included."""

    run_id: str
    num_videos: int
    num_faces: int
    num_mb: float  # size of the scored videos' files, not of what was read of them
    wall_s: float | None
    extract_s: float
    num_commits: int
    last_at: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """Seconds of extraction a video."""

    bins: tuple[Bin, ...]
    p50: float
    p95: float
    longest: float


def account(db: ReportDatabase) -> Account:
    """The state of every video."""
    ((num, scored, frames, faces),) = db.rows(
        "SELECT count(*), count(*) FILTER (scored), coalesce(sum(num_frames), 0), coalesce(sum(num_faces), 0) "
        "FROM videos"
    )
    ((quarantined,),) = db.rows("SELECT count(*) FROM quarantined")
    ((first_at, last_at),) = db.rows("SELECT min(at_s), max(at_s) FROM visits")
    return Account(num + quarantined, scored, num - scored, quarantined, int(frames), int(faces), first_at, last_at)


def numeric_heads(task: Task) -> list[Head]:
    """Heads that answer with a number: their column holds floats."""
    schema = task.output_schema()
    return [
        head for head in task.heads if head.name in schema.names and pa.types.is_floating(schema.field(head.name).type)
    ]


def attribute_heads(task: Task) -> list[Head]:
    """Heads that answer with one of their classes."""
    names, numeric = task.output_schema().names, numeric_heads(task)
    return [head for head in task.heads if head.name in names and head not in numeric]


def numeric_column(db: ReportDatabase, task: Task, head: Head) -> NumericColumn | None:
    """The distribution of a numeric head, in bins of whole points centred on the points; None without rows."""
    column, columns = f'"{head.name}"', db.columns(task.name)
    lowest, highest = float(min(head.classes)), float(max(head.classes))
    width = float(-(-(highest - lowest + 1) // MAX_BINS))
    source = f"FROM current_{task.name} WHERE status = 'scored' AND {column} IS NOT NULL"
    std, low, high = (
        f'"{head.name}_{suffix}"' if f"{head.name}_{suffix}" in columns else "NULL::FLOAT"
        for suffix in ("std", "low", "high")
    )
    ((num, mean, quantiles, median_std, median_interval),) = db.rows(
        f"SELECT count(*), avg({column}), quantile_cont({column}, [0.1, 0.5, 0.9]), "
        f"median({std}), median({high} - {low}) {source}"
    )
    if not num:
        return None
    found = {
        index: (count, mean_std)
        for index, count, mean_std in db.rows(
            f"SELECT floor(({column} - ?) / ?)::INTEGER AS i, count(*), avg({std}) {source} GROUP BY i",
            lowest - 0.5,
            width,
        )
    }
    starts = range(int((highest - lowest) // width) + 1)
    bins = tuple(Bin(lowest - 0.5 + i * width, width, *found.get(i, (0, None))) for i in starts)
    p10, median, p90 = quantiles
    return NumericColumn(
        head.name,
        lowest,
        highest,
        bins,
        num=num,
        mean=mean,
        median=median,
        p10=p10,
        p90=p90,
        median_std=median_std,
        median_interval=median_interval,
    )


def attribute(db: ReportDatabase, task: Task, head: Head) -> Attribute | None:
    """The answers of a head in the order of its classes (yes before no), those that nobody has included."""
    column, p = f'"{head.name}"', f'"{head.name}_p"'
    confidence = "NULL::DOUBLE"
    if f"{head.name}_p" in db.columns(task.name):
        # A yes/no column's p is the probability of yes.
        confidence = f"if({column}, {p}, 1 - {p})" if head.is_binary else p
    found = {
        value: (num, mean)
        for value, num, mean in db.rows(
            f"SELECT {column}, count(*), avg({confidence}) FROM current_{task.name} "
            f"WHERE status = 'scored' AND {column} IS NOT NULL GROUP BY {column}"
        )
    }
    total = sum(num for num, _ in found.values())
    if not total:
        return None
    known: tuple[Any, ...] = (True, False) if head.is_binary else head.classes
    ordered = [*known, *sorted(value for value in found if value not in known)]
    values = []
    for value in ordered:
        num, mean = found.get(value, (0, None))
        values.append(Value(value_words(value), num, num / total, mean))
    return Attribute(head.name, tuple(values))


def value_words(value: bool | int | str) -> str:
    """An answer as the page writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def reasons(db: ReportDatabase) -> list[Reason]:
    """The quarantine by reason, the most frequent first."""
    return [
        Reason(reason, num, retryable, tuple(examples), message or "")
        for reason, num, retryable, examples, message in db.rows(
            "SELECT reason, count(*) AS num, bool_or(retryable), min(video_id, 3), arg_min(message, video_id) "
            "FROM quarantined GROUP BY reason ORDER BY num DESC, reason"
        )
    ]


def causes(db: ReportDatabase) -> list[Cause]:
    """Frames without a usable face by cause: of videos without any face, and of scored ones."""
    return [
        Cause(*row)
        for row in db.rows(
            """
            SELECT dropped.key, count(*) FILTER (NOT scored),
                   coalesce(sum(dropped.value) FILTER (NOT scored), 0)::BIGINT AS of_no_face,
                   coalesce(sum(dropped.value) FILTER (scored), 0)::BIGINT AS of_scored
            FROM (SELECT scored, unnest(map_entries(dropped)) AS dropped FROM videos)
            GROUP BY dropped.key ORDER BY of_no_face DESC, of_scored DESC, dropped.key
            """
        )
    ]


def runs(db: ReportDatabase) -> list[Run]:
    """The newest runs that committed rows, the newest first."""
    # A run's id begins with the time of its start, UTC.
    return [
        Run(*row)
        for row in db.rows(
            f"""
            WITH seen AS (
                SELECT run_id, video_id, max(num_faces) AS num_faces, max(size_bytes) AS size_bytes,
                       max(extract_s) AS extract_s, max(at_s) AS at_s
                FROM visits GROUP BY run_id, video_id
            ), commits AS (SELECT run_id, count(DISTINCT at_s) AS num_commits FROM visits GROUP BY run_id)
            SELECT run_id, count(*), sum(num_faces)::BIGINT, sum(size_bytes) / 1e6,
                   nullif(greatest(max(at_s) - epoch(try_strptime(left(run_id, 15), '%Y%m%dT%H%M%S')), 0), 0),
                   coalesce(sum(extract_s), 0), any_value(num_commits), max(at_s) AS last_at
            FROM seen JOIN commits USING (run_id) GROUP BY run_id ORDER BY last_at DESC, run_id LIMIT {MAX_RUNS}
            """
        )
    ]


def progress(db: ReportDatabase, run: Run) -> list[tuple[float, int]]:
    """Committed videos over time: (seconds since the run's start or first commit, videos until then)."""
    rows = db.rows(
        """
        WITH videos AS (SELECT max(at_s) AS at_s FROM visits WHERE run_id = $1 GROUP BY video_id),
             span AS (SELECT min(at_s) AS first, greatest(max(at_s) - min(at_s), 1e-6) AS length FROM videos)
        SELECT max(at_s), count(*) FROM videos, span GROUP BY floor((at_s - first) / length * $2) ORDER BY 1
        """,
        run.run_id,
        MAX_STEPS,
    )
    start = run.last_at - run.wall_s if run.wall_s is not None else rows[0][0]
    steps, total = [], 0
    for at, num in rows:
        total += num
        steps.append((at - start, total))
    return steps


def extraction(db: ReportDatabase) -> Extraction | None:
    """Seconds of extraction a video, over all runs; the last bin holds whatever is beyond the 99th percentile."""
    seen = "(SELECT max(extract_s) AS s FROM visits WHERE extract_s IS NOT NULL GROUP BY run_id, video_id)"
    ((num, p50, p95, p99, longest),) = db.rows(
        f"SELECT count(*), median(s), quantile_cont(s, 0.95), quantile_cont(s, 0.99), max(s) FROM {seen}"
    )
    if not num:
        return None
    num_bins = 30
    width = max(p99 / num_bins, 1e-6)
    found = dict(
        db.rows(f"SELECT least(floor(s / ?), ?)::INTEGER AS i, count(*) FROM {seen} GROUP BY i", width, num_bins - 1)
    )
    bins = tuple(Bin(index * width, width, found.get(index, 0)) for index in range(num_bins))
    return Extraction(bins, p50, p95, longest)
