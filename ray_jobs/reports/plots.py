"""Plots as shapes in the unit square and labels beside it: the page stretches the shapes and never the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from ray_jobs.reports.facts import Bin


@dataclass(frozen=True, slots=True)
class Tick:
    """A label on an axis; ``at`` is 0 to 1 from the origin."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar standing on the horizontal axis; 0 to 1, and what a pointer over it reads."""

    left: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: bars or a line of (x, y) with y up, its axes, and its alternative text."""

    title: str
    alt: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...] = ()
    line: tuple[tuple[float, float], ...] = ()
    marks: tuple[Tick, ...] = ()  # vertical lines with a label


def count_bars(
    bins: Sequence[Bin],
    *,
    title: str,
    x_label: str,
    alt: str,
    marks: Sequence[tuple[float, str]] = (),
    noun: str = "video",
) -> Plot:
    """A histogram: the number of videos (or what the noun says) in each bin."""
    heights = [float(item.num) for item in bins]
    words = [f"{item.num:,} {noun}{'' if item.num == 1 else 's'}" for item in bins]
    return _bars(bins, heights, words, title, x_label, alt, marks)


def std_bars(bins: Sequence[Bin], *, title: str, x_label: str, alt: str) -> Plot:
    """The mean standard deviation of the videos in each bin."""
    heights = [item.mean_std or 0.0 for item in bins]
    words = [f"mean standard deviation {height:.1f}" for height in heights]
    return _bars(bins, heights, words, title, x_label, alt, (), num_ticks=2)


def steps(points: Sequence[tuple[float, int]], *, title: str, x_label: str, alt: str) -> Plot:
    """A count that grows at given times: a step line from (0, 0)."""
    right, y_values = points[-1][0], _y_values(points[-1][1], 4, whole=True)
    top = y_values[-1]
    corners, height = [(0.0, 0.0)], 0.0
    for at, total in points:
        corners += [(at / right, height), (at / right, total / top)]
        height = total / top
    return Plot(
        title,
        alt,
        x_label,
        tuple(Tick(value / right, f"{value:g}") for value in _ticks(0, right)),
        tuple(Tick(value / top, f"{value:,g}") for value in y_values),
        line=tuple(corners),
    )


def curve(
    values: Sequence[float], *, title: str, x_label: str, alt: str, marks: Sequence[tuple[int, str]] = ()
) -> Plot:
    """Values at 1, 2, 3, …, over the range that they have."""
    y_values = [
        float(value) for value in MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(min(values), max(values))
    ]
    low, span = y_values[0], y_values[-1] - y_values[0]
    right = max(len(values) - 1, 1)
    return Plot(
        title,
        alt,
        x_label,
        tuple(Tick((value - 1) / right, f"{value:g}") for value in _ticks(1, max(len(values), 2))),
        tuple(Tick((value - low) / span, f"{value:.4g}") for value in y_values),
        line=tuple((index / right, (value - low) / span) for index, value in enumerate(values)),
        marks=tuple(Tick((value - 1) / right, label) for value, label in marks),
    )


def _bars(
    bins: Sequence[Bin],
    heights: Sequence[float],
    words: Sequence[str],
    title: str,
    x_label: str,
    alt: str,
    marks: Sequence[tuple[float, str]],
    num_ticks: int = 4,
) -> Plot:
    low = bins[0].low
    span = bins[-1].low + bins[-1].width - low
    whole = all(height == int(height) for height in heights)
    y_values = _y_values(max(heights), num_ticks, whole=whole)
    top = y_values[-1]
    return Plot(
        title,
        alt,
        x_label,
        tuple(Tick((value - low) / span, f"{value:g}") for value in _ticks(low, low + span)),
        tuple(Tick(value / top, f"{value:,g}") for value in y_values),
        bars=tuple(
            Bar((item.low - low) / span, item.width / span, height / top, f"{_range(item)}: {text}")
            for item, height, text in zip(bins, heights, words, strict=True)
        ),
        marks=tuple(Tick((value - low) / span, label) for value, label in marks),
    )


def _range(item: Bin) -> str:
    # A bin of one point around a whole number is that number.
    if item.width == 1 and item.low % 1 == 0.5:
        return f"{item.low + 0.5:g}"
    return f"{item.low:.3g}–{item.low + item.width:.3g}"


def _ticks(low: float, high: float) -> list[float]:
    """About eight round numbers in [low, high]."""
    values = MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low <= value <= high]


def _y_values(largest: float, num: int, *, whole: bool) -> list[float]:
    """Round numbers from 0 to the first one that is not below the largest value (0 to 1 where that is 0)."""
    largest = largest or 1
    values = MaxNLocator(nbins=num, steps=[1, 2, 5, 10], integer=whole).tick_values(0, largest)
    num_below = sum(value < largest * (1 - 1e-9) for value in values)
    return [float(value) for value in values[: num_below + 1]]
