"""The report on the score tables of a root: one HTML file that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from models.scorer import ScorerManifest
from models.tasks.base import Task, get_task
from ray_jobs.reports import facts, plots
from ray_jobs.reports.database import ReportDatabase, ScorerRows
from ray_jobs.reports.page import environment
from ray_jobs.reports.samples import Picture, choose, take_picture
from ray_jobs.stages.extract import ExtractConfig, Extractor

NUM_SAMPLES = 24
NUM_METRICS = 5
MIN_COMMITS_TO_PLOT = 3


@dataclass(frozen=True, slots=True)
class Section:
    """A section that the caller adds: a text, a table, or both. Cells that are numbers are aligned to the right."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | int | float]] = ()


def current_scorers(tables: str, settings: Settings, tasks: Sequence[str] | None = None) -> tuple[ScorerRows, ...]:
    """The scorer of each task's newest row, for a caller who wants to look up its manifest.

    Raises:
        UserError: As `build_report`.
    """
    with ReportDatabase(DeltaStore(tables, Storage(settings.storage)), tasks) as db:
        return db.scorers


def build_report(
    tables: str,
    settings: Settings,
    *,
    tasks: Sequence[str] | None = None,
    manifests: Mapping[str, ScorerManifest] | None = None,
    extract: ExtractConfig | None = None,
    sections: Sequence[Section] = (),
    title: str = "Score report",
    num_samples: int = NUM_SAMPLES,
) -> str:
    """The report as HTML: what was scored, by whom, how scores are distributed, sample faces, quarantine, throughput.

    Args:
        tables: Root of the score and quarantine tables.
        settings: Storage settings.
        tasks: The tasks to report; None: every task that has a score table.
        manifests: Digest -> manifest of scorers, for their validation metrics and the level of their intervals.
        extract: How to cut the faces of the sample videos, which are decoded again; None: no pictures.
        sections: Sections of the caller, shown after the scorers.
        title: Heading of the page.
        num_samples: Sample videos to show.

    Raises:
        UserError: There are no tables, a named task is unknown or has no table, or the tables have no rows.
    """
    with ReportDatabase(DeltaStore(tables, Storage(settings.storage)), tasks) as db:
        samples = choose(db, num_samples)
        pictures: dict[str, Picture] = {}
        if extract is not None and samples:
            extractor = Extractor(extract)
            size = extract.face_policy.crop_size
            pictures = {sample.video_id: take_picture(sample, extractor, size) for sample in samples}
        return (
            environment()
            .get_template("report.html.j2")
            .render(
                title=title,
                tables=tables,
                now=datetime.now(UTC).timestamp(),
                account=facts.account(db),
                scorers=[_scorer(row, (manifests or {}).get(row.digest)) for row in db.scorers],
                sections=sections,
                tasks=[_task(db, row, (manifests or {}).get(row.digest)) for row in db.scorers if row.num_videos],
                samples=samples,
                pictures=pictures,
                reasons=facts.reasons(db),
                causes=facts.causes(db),
                **_throughput(db),
            )
        )


def _scorer(row: ScorerRows, manifest: ScorerManifest | None) -> dict[str, Any]:
    """A scorer with the metric that chose its best epoch first, then the others that are not about a single head."""
    metrics = []
    if manifest is not None:
        heads = tuple(f"_{head.name}" for head in manifest.heads)
        best = get_task(row.task).best_metric
        names = [best, *(name for name in manifest.metrics if name != best and not name.endswith(heads))]
        metrics = [
            {"name": name, "value": manifest.metrics[name], "baseline": manifest.baseline_metrics.get(name)}
            for name in names
            if name in manifest.metrics
        ]
    return {"row": row, "metrics": metrics[:NUM_METRICS]}


def _task(db: ReportDatabase, row: ScorerRows, manifest: ScorerManifest | None) -> dict[str, Any]:
    task = get_task(row.task)
    numbers = [facts.numeric_column(db, task, head) for head in facts.numeric_heads(task)]
    attributes = [facts.attribute(db, task, head) for head in facts.attribute_heads(task)]
    return {
        "name": task.name,
        "limits": task.limits,
        "num_outdated": row.num_outdated,
        "numbers": [_number(column, manifest) for column in numbers if column is not None],
        "attributes": [_attribute(item, task, manifest) for item in attributes if item is not None],
    }


def _number(column: facts.NumericColumn, manifest: ScorerManifest | None) -> dict[str, Any]:
    interval = manifest.calibration.intervals.get(column.name) if manifest is not None else None
    stds = column.median_std is not None
    return {
        "column": column,
        "level": interval.level if interval is not None else None,
        "plot": plots.count_bars(
            column.bins,
            title="Videos",
            x_label="" if stds else column.name,
            alt=f"Histogram of {column.name} over {column.num} videos, from {column.lowest:g} to {column.highest:g}: "
            f"median {column.median:.1f}, eight in ten between {column.p10:.1f} and {column.p90:.1f}.",
            marks=[(column.median, f"median {column.median:.1f}")],
        ),
        "std_plot": plots.std_bars(
            column.bins,
            title="Mean standard deviation of a video's own distribution, points",
            x_label=column.name,
            alt=f"Mean standard deviation of the videos' own distributions, by {column.name}; "
            f"its median is {column.median_std:.1f} points.",
        )
        if stds
        else None,
    }


def _attribute(item: facts.Attribute, task: Task, manifest: ScorerManifest | None) -> dict[str, Any]:
    """An attribute's answers, and the task's best metric of that head where the scorer has it."""
    stem = task.best_metric.removesuffix("_mean")
    metric = f"{stem}_{item.name}"
    known = manifest is not None and metric in manifest.metrics
    return {
        "item": item,
        "metric": stem,
        "value": manifest.metrics[metric] if manifest is not None and known else None,
        "baseline": manifest.baseline_metrics.get(metric) if manifest is not None and known else None,
    }


def _throughput(db: ReportDatabase) -> dict[str, Any]:
    runs, extraction = facts.runs(db), facts.extraction(db)
    points = facts.progress(db, runs[0])
    return {
        "runs": runs,
        "extraction": extraction,
        "extraction_plot": plots.count_bars(
            extraction.bins,
            title="Videos",
            x_label="seconds of extraction (the last bar holds all that took longer)",
            alt=f"Histogram of the seconds of extraction a video: half take at most {extraction.p50:.2f}, "
            f"95% at most {extraction.p95:.2f}, the longest {extraction.longest:.2f}.",
        )
        if extraction is not None
        else None,
        "progress_plot": plots.steps(
            points,
            title="Videos committed, newest run",
            x_label="seconds since the start of the run",
            alt=f"Videos committed over time: {points[-1][1]} after {points[-1][0]:.0f} seconds.",
        )
        if len(points) >= MIN_COMMITS_TO_PLOT
        else None,
    }
