"""Drift: a recent window of the score and quarantine tables against a reference window, with limits for a cron job."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from infra.errors import UserError
from infra.scanning import scratch_database, stream
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tables import DeltaStore
from models.tasks.base import Task, get_task
from ray_jobs.console import console
from ray_jobs.limits_file import read_limits_file
from ray_jobs.reports.drift import drift_page
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.shift import Shift, class_shift, numeric_shift

MAX_ROWS = 200_000  # of a window; a larger one is sampled
RESULT, PAGE = "drift.json", "drift.html"
DRIFTED = 4  # exit code
# What a video's faces say of the input; means over the video's faces.
FACE_QUALITY = ("sharpness", "brightness", "size_px", "confidence")
QUALITY = ("num_faces", *FACE_QUALITY)


class DriftLimits(BaseModel):
    """From where on a difference is called drift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_psi: float = Field(0.25, ge=0, description="Population stability index of an answer or a quality.")
    max_ks: float = Field(0.2, ge=0, le=1, description="Kolmogorov-Smirnov distance of a number.")
    max_rate_change: float = Field(0.05, ge=0, le=1, description="Change of a rate, in shares of the videos.")
    min_videos: int = Field(
        200, ge=1, description="Videos that each window must have: with fewer, chance alone comes near the limits."
    )


class Rate(BaseModel):
    """A share of the videos in both windows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="no_face, or quarantined, or quarantined for a reason.")
    before: float = Field(description="Share in the reference window.")
    now: float = Field(description="Share in the recent one.")


class Window(BaseModel):
    """A span of commits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: datetime = Field(description="From here on, UTC.")
    end: datetime = Field(description="Before this.")
    num_videos: int = Field(description="Rows of the scorer in it, with a face or without.")


class Drift(BaseModel):
    """The comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="Whose score table.")
    tables: str = Field(description="Root of the tables.")
    scorer_version: str = Field(description="The scorer whose rows are compared: that of the newest row.")
    reference: Window = Field(description="What is compared with.")
    recent: Window = Field(description="What is looked at.")
    rates: tuple[Rate, ...] = Field(description="Shares of the videos.")
    answers: tuple[Shift, ...] = Field(description="The task's answers, of videos with a face.")
    quality: tuple[Shift, ...] = Field(description="Faces of a video, and their mean quality.")
    not_compared: tuple[str, ...] = Field(description="What one of the windows has no value of.")
    limits: DriftLimits = Field(description="As they stood.")
    found: tuple[str, ...] = Field(description="What is beyond its limit, in words; empty: no drift.")


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """One comparison."""

    tables: str
    task: str
    recent_s: float = 7 * 86400.0
    reference_s: float = 28 * 86400.0
    until: datetime | None = None  # None: now
    limits: DriftLimits = field(default_factory=DriftLimits)
    out: str | None = None


def run_drift(config: DriftConfig, settings: Settings) -> Drift:
    """Compare, print, and write the report where ``config.out`` says.

    Raises:
        UserError: There is no such table, or a window has too few rows.
    """
    storage = Storage(settings.storage)
    drift = measure_drift(config, storage)
    print_drift(drift)
    if config.out is not None:
        storage.put(join(config.out, RESULT), drift.model_dump_json(indent=2).encode())
        storage.put(join(config.out, PAGE), drift_page(drift).encode())
        console.print(f"wrote {join(config.out, PAGE)} and {RESULT}", highlight=False)
    return drift


def read_limits(path: str | None) -> DriftLimits:
    """The limits of a YAML file; the defaults without one.

    Raises:
        UserError: Names the field that is wrong.
    """
    return read_limits_file(path, DriftLimits, "limits")


def measure_drift(config: DriftConfig, storage: Storage) -> Drift:
    """The comparison, without printing or writing."""
    task = get_task(config.task)
    end = config.until or datetime.now(UTC)
    middle = end - timedelta(seconds=config.recent_s)
    start = middle - timedelta(seconds=config.reference_s)
    with TemporaryDirectory(prefix="facereel-drift-", ignore_cleanup_errors=True) as folder:
        connection = scratch_database(folder)
        try:
            version = _load(connection, DeltaStore(config.tables, storage), task, start, middle, end)
            numbers = dict(
                connection.execute("SELECT recent, count(*) FROM rows WHERE is_own GROUP BY recent").fetchall()
            )
            reference = Window(start=start, end=middle, num_videos=numbers.get(False, 0))
            recent = Window(start=middle, end=end, num_videos=numbers.get(True, 0))
            for name, window in (("reference", reference), ("recent", recent)):
                if window.num_videos < config.limits.min_videos:
                    raise UserError(
                        f"{config.tables}: the {name} window ({window.start:%Y-%m-%d %H:%M} to "
                        f"{window.end:%Y-%m-%d %H:%M} UTC) has {window.num_videos} videos of {version}, fewer than "
                        f"min_videos {config.limits.min_videos}: widen it (--{name}), or wait for more rows"
                    )
            rates, answers, quality = _rates(connection), _answers(connection, task), _quality(connection)
        finally:
            connection.close()
    wanted = {*(head.name for head in task.heads), *QUALITY}
    return Drift(
        task=task.name,
        tables=config.tables,
        scorer_version=version,
        reference=reference,
        recent=recent,
        rates=tuple(rates),
        answers=tuple(answers),
        quality=tuple(quality),
        not_compared=tuple(sorted(wanted - {shift.name for shift in (*answers, *quality)})),
        limits=config.limits,
        found=tuple(_beyond(config.limits, rates, [*answers, *quality])),
    )


def _load(
    connection: duckdb.DuckDBPyConnection,
    store: DeltaStore,
    task: Task,
    start: datetime,
    middle: datetime,
    end: datetime,
) -> str:
    """``rows``: those of both windows by the newest scorer, and the quarantine's; the scorer's version."""
    name = score_table(task.name)
    dataset = store.dataset(name)
    if dataset is None:
        raise UserError(f"{store.root}: no table {name} there; score the task {task.name} first")
    heads = [head.name for head in task.heads]
    keys = ["scorer", "scorer_version", "policy", "status", "num_faces", "committed_at", *heads]
    has_faces = "faces" in dataset.schema.names
    connection.register("scored", stream(dataset, [*keys, "faces"] if has_faces else keys))
    means = ", ".join(
        f"list_avg(list_transform(faces, lambda face: face.{item})) AS {item}"
        if has_faces
        else f"NULL::DOUBLE AS {item}"
        for item in FACE_QUALITY
    )
    answers = "".join(f', "{item}"' for item in heads)
    connection.execute(
        f"CREATE TABLE all_rows AS SELECT scorer, scorer_version, policy, status, NULL::VARCHAR AS reason, num_faces, "
        f"committed_at, committed_at >= $middle AS recent{answers}, {means} "
        "FROM scored WHERE committed_at >= $start AND committed_at < $end",
        {"start": start, "middle": middle, "end": end},
    )
    connection.unregister("scored")
    newest = connection.execute(
        "SELECT scorer, scorer_version, policy FROM all_rows ORDER BY committed_at DESC, scorer LIMIT 1"
    ).fetchone()
    if newest is None:
        raise UserError(
            f"{store.root}: {name} has no rows between {start:%Y-%m-%d %H:%M} and {end:%Y-%m-%d %H:%M} UTC: "
            "widen --recent and --reference, or give --until"
        )
    scorer, version, policy = newest
    # Whether a video can be read and has a face hangs on the policy alone, so rates count the rows of every scorer.
    connection.execute(
        "CREATE TABLE rows AS SELECT * EXCLUDE (scorer, scorer_version, policy, committed_at), scorer = ? AS is_own "
        "FROM all_rows WHERE policy = ?",
        [scorer, policy],
    )
    connection.execute("DROP TABLE all_rows")
    quarantine = store.dataset(QUARANTINE)
    if quarantine is not None:
        connection.register("failed", stream(quarantine, ["policy", "reason", "committed_at"]))
        connection.execute(
            "INSERT INTO rows BY NAME SELECT 'quarantined' AS status, reason, committed_at >= $middle AS recent, "
            "false AS is_own "
            "FROM failed WHERE policy = $policy AND committed_at >= $start AND committed_at < $end",
            {"policy": policy, "start": start, "middle": middle, "end": end},
        )
        connection.unregister("failed")
    return str(version)


def _rates(connection: duckdb.DuckDBPyConnection) -> list[Rate]:
    """No face, quarantined, and quarantined by reason, the largest change first."""
    found = connection.execute(
        """
        WITH totals AS (SELECT count(*) FILTER (NOT recent) AS before, count(*) FILTER (recent) AS now FROM rows),
        counts AS (
            SELECT status AS name, recent FROM rows WHERE status <> 'scored'
            UNION ALL SELECT 'quarantined: ' || reason, recent FROM rows WHERE reason IS NOT NULL
        )
        SELECT name, count(*) FILTER (NOT recent) / any_value(before), count(*) FILTER (recent) / any_value(now)
        FROM counts, totals GROUP BY name
        """
    ).fetchall()
    rates = [Rate(name=name, before=before, now=now) for name, before, now in found]
    for name in ("no_face", "quarantined"):
        if not any(rate.name == name for rate in rates):
            rates.append(Rate(name=name, before=0, now=0))
    return sorted(rates, key=lambda rate: (-abs(rate.now - rate.before), rate.name))


def _answers(connection: duckdb.DuckDBPyConnection, task: Task) -> list[Shift]:
    shifts = []
    for head in task.heads:
        before, now = (_values(connection, head.name, recent=recent) for recent in (False, True))
        if not before or not now:
            continue
        if isinstance(now[0], float):
            shifts.append(numeric_shift(head.name, np.asarray(before), np.asarray(now)))
        else:
            classes = (False, True) if head.is_binary else head.classes
            shifts.append(class_shift(head.name, classes, before, now))
    return shifts


def _quality(connection: duckdb.DuckDBPyConnection) -> list[Shift]:
    shifts = []
    for name in QUALITY:
        before, now = (_values(connection, name, recent=recent) for recent in (False, True))
        if before and now:
            shifts.append(numeric_shift(name, np.asarray(before, dtype=float), np.asarray(now, dtype=float)))
    return shifts


def _values(connection: duckdb.DuckDBPyConnection, column: str, *, recent: bool) -> list[Any]:
    """Values of scored videos of a window, in a fixed sample where there are very many."""
    chosen = f"recent = {recent} AND is_own AND status = 'scored' AND \"{column}\" IS NOT NULL"
    found = connection.execute(
        f'SELECT "{column}" FROM (SELECT "{column}" FROM rows WHERE {chosen}) '
        f"USING SAMPLE reservoir({MAX_ROWS} ROWS) REPEATABLE (0)"
    ).fetchall()
    return [value for (value,) in found]


def _beyond(limits: DriftLimits, rates: list[Rate], shifts: list[Shift]) -> list[str]:
    found = [
        f"{rate.name}: {rate.before:.1%} of the videos, then {rate.now:.1%} "
        f"(a change of more than {limits.max_rate_change:.0%})"
        for rate in rates
        if abs(rate.now - rate.before) > limits.max_rate_change
    ]
    for shift in shifts:
        if shift.psi > limits.max_psi:
            found.append(f"{shift.name}: population stability index {shift.psi:.3f} (limit {limits.max_psi:g})")
        if shift.ks is not None and shift.ks > limits.max_ks:
            found.append(f"{shift.name}: Kolmogorov-Smirnov distance {shift.ks:.3f} (limit {limits.max_ks:g})")
    return found


def print_drift(drift: Drift) -> None:
    """The comparison as a table, and what is beyond a limit."""
    table = Table(
        title=f"{drift.task} by {drift.scorer_version}: {drift.recent.num_videos:,} videos since "
        f"{drift.recent.start:%Y-%m-%d %H:%M} UTC against {drift.reference.num_videos:,} before"
    )
    for column in ("what", "reference", "recent", "PSI", "KS"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for rate in drift.rates:
        table.add_row(rate.name, f"{rate.before:.1%}", f"{rate.now:.1%}", "", "")
    for shift in (*drift.answers, *drift.quality):
        before, now = ("" if value is None else f"{value:.4g}" for value in (shift.before, shift.now))
        table.add_row(shift.name, before, now, f"{shift.psi:.3f}", "" if shift.ks is None else f"{shift.ks:.3f}")
    console.print(table)
    if drift.not_compared:
        console.print(f"not compared, since a window has no value: {', '.join(drift.not_compared)}", highlight=False)
    if not drift.found:
        console.print("no drift: everything is within its limit", highlight=False)
    for item in drift.found:
        console.print(f"DRIFT  {item}", highlight=False)
