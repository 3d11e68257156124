"""How far two samples of an answer lie apart: population stability, Kolmogorov-Smirnov, and histograms to look at."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import ks_2samp

NUM_BINS = 10
_FLOOR = 1e-4  # of a bin's share, so that an empty one has a logarithm

Values = npt.NDArray[np.float64]


class Shift(BaseModel):
    """Two samples of one quantity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Of the quantity.")
    psi: float = Field(description="Population stability index: 0 alike, above 0.25 usually called a large shift.")
    ks: float | None = Field(description="Kolmogorov-Smirnov distance, 0 to 1; null for classes.")
    before: float | None = Field(description="Mean of the first sample; null for classes.")
    now: float | None = Field(description="Mean of the second.")
    labels: tuple[str, ...] = Field(description="The bins or classes that stand in the plot.")
    shares_before: tuple[float, ...] = Field(description="Share of the first sample in each.")
    shares_now: tuple[float, ...] = Field(description="Share of the second.")


def numeric_shift(name: str, before: Values, now: Values) -> Shift:
    """Of two samples of numbers, float64[n] and float64[m]; neither may be empty."""
    edges = np.unique(np.quantile(before, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    shares = [_shares(np.searchsorted(edges, values, side="right"), len(edges) + 1) for values in (before, now)]
    low, high = float(min(before.min(), now.min())), float(max(before.max(), now.max()))
    even = np.linspace(low, high if high > low else low + 1, 2 * NUM_BINS + 1)
    shown = [np.histogram(values, even)[0] / len(values) for values in (before, now)]
    return Shift(
        name=name,
        psi=population_stability(*shares),
        ks=float(ks_2samp(before, now).statistic),
        before=float(before.mean()),
        now=float(now.mean()),
        labels=tuple(f"{start:.3g}–{end:.3g}" for start, end in pairwise(even)),
        shares_before=tuple(shown[0].tolist()),
        shares_now=tuple(shown[1].tolist()),
    )


def class_shift(name: str, classes: Sequence[Any], before: Sequence[Any], now: Sequence[Any]) -> Shift:
    """Of two samples of classes; neither may be empty."""
    place = {value: index for index, value in enumerate(classes)}
    shares = [
        _shares(np.asarray([place[value] for value in values], dtype=np.int64), len(place)) for values in (before, now)
    ]
    return Shift(
        name=name,
        psi=population_stability(*shares),
        ks=None,
        before=None,
        now=None,
        labels=tuple(str(value) for value in classes),
        shares_before=tuple(shares[0].tolist()),
        shares_now=tuple(shares[1].tolist()),
    )


def population_stability(before: Values, now: Values) -> float:
    """Σ (q - p) ln(q / p) over the shares of bins (Siddiqi, "Credit Risk Scorecards", 2006, p. 108)."""
    p, q = np.maximum(before, _FLOOR), np.maximum(now, _FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def _shares(places: npt.NDArray[np.int64], num: int) -> Values:
    return np.bincount(places, minlength=num) / max(len(places), 1)
