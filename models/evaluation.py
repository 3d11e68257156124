"""What a scorer is worth on labelled rows: figures with intervals, slices, calibration; for every caller."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import UserError
from models.tasks.base import MISSING, Probabilities, Targets, Task

CONFIDENCE = 0.95
NUM_RESAMPLES = 200
MIN_SLICE = 10
NUM_BINS = 10


class Figure(BaseModel):
    """A metric, its bootstrap interval, and the trivial answer's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(description="The metric.")
    low: float | None = Field(None, description="Lower end of its 95% interval; null where it could not be had.")
    high: float | None = Field(None, description="Upper end.")
    baseline: float | None = Field(None, description="The same metric of the class frequencies of training rows.")


class Slice(BaseModel):
    """A part of the rows by a column's value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str = Field(description="What the rows are told apart by.")
    value: str = Field(description="Its value, or range of values.")
    num_rows: int = Field(description="Rows in the slice.")
    num_groups: int = Field(description="Creators they are of.")
    figure: Figure = Field(description="The task's best metric over them.")


class ReliabilityBin(BaseModel):
    """Answers of about one confidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    confidence: float = Field(description="Their mean probability, 0 to 1.")
    accuracy: float = Field(description="Share of them that is right.")
    num_rows: int = Field(description="How many there are.")


class Reliability(BaseModel):
    """How far a head's probabilities mean what they say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ece: float = Field(description="Expected calibration error: mean |accuracy - confidence| over rows, 10 bins.")
    bins: tuple[ReliabilityBin, ...] = Field(description="From low to high confidence.")


class Coverage(BaseModel):
    """How often a column's interval holds the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: float = Field(description="Share that it promises.")
    covered: float = Field(description="Share that it holds.")
    half_width: float = Field(description="Half-width, in the unit of the column.")
    num_rows: int = Field(description="Rows it was measured on.")


class Evaluation(BaseModel):
    """All of it, for one scorer and one set of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int = Field(description="Labelled crops.")
    num_videos: int = Field(description="Videos or images they are of.")
    num_groups: int = Field(description="Creators; a video without one counts as its own.")
    per_image: dict[str, Figure] = Field(description="Metric -> figure over crops.")
    per_video: dict[str, Figure] = Field(description="The same over videos, each by the mean of its crops.")
    slices: tuple[Slice, ...] = Field(description="The worst first.")
    reliability: dict[str, Reliability] = Field(description="Head -> calibration.")
    coverage: dict[str, Coverage] = Field(description="Column with an interval -> its coverage.")


def evaluate(
    task: Task,
    probabilities: Probabilities,
    targets: Targets,
    *,
    videos: Sequence[str],
    groups: Sequence[str],
    baseline: Probabilities,
    half_widths: Mapping[str, tuple[float, float]],
    columns: Mapping[str, Sequence[str | None]],
    num_resamples: int = NUM_RESAMPLES,
) -> Evaluation:
    """Measure a scorer.

    Args:
        task: What is answered.
        probabilities: Head name -> float32[n, C], calibrated.
        targets: int64[n, H].
        videos: The video of each row.
        groups: The creator of each row: whole creators are resampled, since rows of one are alike.
        baseline: The trivial answer, float32[1, C] per head (`Task.baseline` of the training targets).
        half_widths: Column name -> (half-width, level) of its interval.
        columns: What to slice by: name -> value of each row, None where it has none.
        num_resamples: Of the bootstrap.

    Raises:
        UserError: No row has a label.
    """
    group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    video_names, first, video_of = np.unique(
        np.asarray(videos, dtype=object).astype(str), return_index=True, return_inverse=True
    )
    of_videos = {name: _means(p, video_of, len(video_names)) for name, p in probabilities.items()}
    video_targets = _first_known(targets, video_of, len(video_names))
    per_image = _figures(task, probabilities, targets, group_of, baseline, num_resamples)
    alike = len(video_names) == len(targets)
    return Evaluation(
        num_rows=int((targets != MISSING).any(axis=1).sum()),
        num_videos=len(video_names),
        num_groups=int(group_of.max()) + 1,
        per_image=per_image,
        per_video=per_image
        if alike
        else _figures(task, of_videos, video_targets, group_of[first], baseline, num_resamples),
        slices=tuple(_slices(task, probabilities, targets, group_of, baseline, columns, num_resamples)),
        reliability=_reliability(task, probabilities, targets),
        coverage=_coverage(task, probabilities, targets, half_widths),
    )


def resample(group_of: npt.NDArray[np.int64], num_resamples: int, seed: int = 0) -> list[npt.NDArray[np.int64]]:
    """Rows of each resample: whole groups, drawn with replacement; none of a single group, which varies in nothing."""
    rng = np.random.default_rng(seed)
    order = np.argsort(group_of, kind="stable")
    num_groups = int(group_of.max()) + 1
    if num_groups < 2:
        return []
    rows = np.split(order, np.cumsum(np.bincount(group_of, minlength=num_groups))[:-1])
    return [
        np.concatenate([rows[group] for group in rng.integers(0, num_groups, num_groups)]) for _ in range(num_resamples)
    ]


def _figures(
    task: Task,
    probabilities: Probabilities,
    targets: Targets,
    group_of: npt.NDArray[np.int64],
    baseline: Probabilities,
    num_resamples: int,
    only: str | None = None,
) -> dict[str, Figure]:
    values = task.metrics(probabilities, targets)
    trivial = task.metrics({name: np.repeat(row, len(targets), axis=0) for name, row in baseline.items()}, targets)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for rows in resample(group_of, num_resamples):
        try:
            again = task.metrics({name: p[rows] for name, p in probabilities.items()}, targets[rows])
        except UserError:  # no label among them
            continue
        for name, value in again.items():
            if name in drawn:
                drawn[name].append(value)
    tail = (1 - CONFIDENCE) / 2
    figures = {}
    for name, value in values.items():
        if only is not None and name != only:
            continue
        low, high = (None, None) if len(drawn[name]) < 2 else np.quantile(drawn[name], [tail, 1 - tail]).tolist()
        figures[name] = Figure(value=value, low=low, high=high, baseline=trivial.get(name))
    return figures


def _slices(
    task: Task,
    probabilities: Probabilities,
    targets: Targets,
    group_of: npt.NDArray[np.int64],
    baseline: Probabilities,
    columns: Mapping[str, Sequence[str | None]],
    num_resamples: int,
) -> list[Slice]:
    found = []
    for column, given in columns.items():
        values = np.asarray([value or "" for value in given])
        for value in sorted(set(values.tolist()) - {""}):
            chosen = values == value
            known = (targets[chosen] != MISSING).any(axis=1).sum()
            if known < MIN_SLICE or chosen.all():
                continue
            figures = _figures(
                task,
                {name: p[chosen] for name, p in probabilities.items()},
                targets[chosen],
                np.unique(group_of[chosen], return_inverse=True)[1],
                baseline,
                min(num_resamples, 50),
                only=task.best_metric,
            )
            num_groups = len(np.unique(group_of[chosen]))
            figure = figures[task.best_metric]
            found.append(Slice(column=column, value=value, num_rows=int(known), num_groups=num_groups, figure=figure))
    sign = 1 if task.higher_is_better else -1
    return sorted(found, key=lambda item: sign * item.figure.value)


def _reliability(task: Task, probabilities: Probabilities, targets: Targets) -> dict[str, Reliability]:
    found = {}
    for column, head in enumerate(task.heads):
        known = targets[:, column] != MISSING
        if not known.any():
            continue
        p = probabilities[head.name][known]
        confidence, right = p.max(axis=1), p.argmax(axis=1) == targets[known, column]
        place = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        bins = tuple(
            ReliabilityBin(
                confidence=float(confidence[place == index].mean()),
                accuracy=float(right[place == index].mean()),
                num_rows=int((place == index).sum()),
            )
            for index in range(NUM_BINS)
            if (place == index).any()
        )
        ece = sum(item.num_rows * abs(item.accuracy - item.confidence) for item in bins) / len(confidence)
        found[head.name] = Reliability(ece=float(ece), bins=bins)
    return found


def _coverage(
    task: Task, probabilities: Probabilities, targets: Targets, half_widths: Mapping[str, tuple[float, float]]
) -> dict[str, Coverage]:
    found = {}
    for name, errors in task.residuals(probabilities, targets).items():
        if name in half_widths and len(errors):
            half_width, level = half_widths[name]
            covered = float((errors <= half_width).mean())
            found[name] = Coverage(level=level, covered=covered, half_width=half_width, num_rows=len(errors))
    return found


def _means(p: npt.NDArray[np.float32], item_of: npt.NDArray[np.int64], num_items: int) -> npt.NDArray[np.float32]:
    sums = np.zeros((num_items, p.shape[1]))
    np.add.at(sums, item_of, p)
    return np.asarray(sums / np.bincount(item_of, minlength=num_items)[:, None], dtype=np.float32)


def _first_known(targets: Targets, item_of: npt.NDArray[np.int64], num_items: int) -> Targets:
    """The label of each video: that of its first crop that has one."""
    found = np.full((num_items, targets.shape[1]), MISSING, dtype=np.int64)
    for column in range(targets.shape[1]):
        known = np.flatnonzero(targets[:, column] != MISSING)[::-1]
        found[item_of[known], column] = targets[known, column]
    return found
