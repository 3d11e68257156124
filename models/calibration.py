"""Calibration of a trained scorer on validation rows: a temperature per head and intervals for numeric columns."""

import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize_scalar

from models.tasks.base import MISSING, Targets, Task

# Beyond these a head that is always (or never) right would be driven to certainty (or to uniform) by a finite sample.
_COLDEST, _HOTTEST = 0.05, 20.0


class Interval(BaseModel):
    """A prediction interval: value ± half-width, clipped to the column's range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    half_width: float = Field(ge=0, allow_inf_nan=False, description="Half-width, in the unit of the column.")
    level: float = Field(gt=0, lt=1, description="Share of new rows whose true value the interval is to cover.")
    num_rows: int = Field(ge=1, description="Validation rows it was measured on.")


class Calibration(BaseModel):
    """What is applied to a network's logits and to a task's columns; empty means nothing is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperatures: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="Head name -> temperature (> 0) by which its logits are divided; absent: 1."
    )
    intervals: dict[str, Interval] = Field(
        default_factory=dict, description="Column name -> its prediction interval; absent: the column has none."
    )

    @property
    def half_widths(self) -> dict[str, float]:
        """Column name -> half-width, as ``Task.columns`` takes it."""
        return {column: interval.half_width for column, interval in self.intervals.items()}

    def probabilities(self, logits: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[np.float32]]:
        """Head name -> softmax of its logits over its temperature, float32[n, C]; logits on any device."""
        return {
            name: torch.softmax(values.float() / self.temperatures.get(name, 1.0), dim=1).cpu().numpy()
            for name, values in logits.items()
        }


def fit_calibration(
    task: Task, logits: Mapping[str, torch.Tensor], targets: Targets, *, level: float = 0.9
) -> Calibration:
    """The calibration of a network by its logits on validation rows that it was not trained on.

    The promise of the intervals is about rows like these ones: distinct images. Rows of one video resemble each
    other, and a video's score is a mean over faces, which errs less than one face; for videos it is on the safe side.

    Args:
        task: The task.
        logits: Head name -> float[n, C].
        targets: int64[n, H]; rows whose label is missing are left out.
        level: Share of new rows that an interval is to cover.
    """
    temperatures = {}
    for column, head in enumerate(task.heads):
        known = targets[:, column] != MISSING
        if known.any():
            temperatures[head.name] = fit_temperature(
                logits[head.name].cpu()[torch.from_numpy(known)], torch.from_numpy(targets[known, column])
            )
    scaled = Calibration(temperatures=temperatures)
    intervals = {
        column: Interval(half_width=half_width, level=level, num_rows=len(residuals))
        for column, residuals in task.residuals(scaled.probabilities(logits), targets).items()
        if (half_width := conformal_half_width(residuals, level)) is not None
    }
    return Calibration(temperatures=temperatures, intervals=intervals)


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature, 0.05 to 20, at which softmax(logits / temperature) has the least negative log-likelihood.

    Logits are float[n, C], targets int64[n].

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, section 4.2. One number per head
    leaves the most likely class as it is; what is computed from the whole distribution changes with it, so metrics are
    to be measured after calibration. The problem is convex in 1/temperature.
    """

    def negative_log_likelihood(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), targets).item()

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return math.exp(minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded").x)


def conformal_half_width(residuals: npt.NDArray[np.float64], level: float) -> float | None:
    """The ⌈(n + 1) · level⌉-th smallest of n absolute residuals, or None where n is too small for the level.

    Split conformal prediction: Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, "Distribution-Free Predictive Inference
    for Regression", 2018, algorithm 2. A new row exchangeable with these is covered with probability >= level.
    """
    rank = math.ceil((len(residuals) + 1) * level)
    return float(np.sort(residuals)[rank - 1]) if 1 <= rank <= len(residuals) else None
