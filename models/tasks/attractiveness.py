"""The attractiveness task: a face scored 60-99 by a distribution over 40 classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from typing_extensions import override

from infra.errors import UserError
from models.tasks.base import MISSING, Head, Probabilities, Targets, Task

LOWEST, HIGHEST = 60, 99
# Spread of the label distribution, in points of score.
LABEL_STD = 3.0
SCORES = np.arange(LOWEST, HIGHEST + 1)

Scores = npt.NDArray[np.float64]


def expectation(p: npt.NDArray[np.floating[Any]]) -> Scores:
    """The score Σ p(k)·k: float64[n] of float[n, 40] (deep expectation: Rothe, Timofte, Van Gool 2015, eq. 2)."""
    p = p.astype(np.float64)
    return np.asarray((p @ SCORES) / p.sum(axis=1))


def median(p: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int32]:
    """The smallest score k with P(score <= k) >= 1/2: int32[n], one of the 40 scores, never between two."""
    cdf = p.astype(np.float64).cumsum(axis=1)
    return np.asarray(SCORES[(cdf >= cdf[:, -1:] / 2).argmax(axis=1)], dtype=np.int32)


def standard_deviation(p: npt.NDArray[np.floating[Any]]) -> Scores:
    """Square root of Σ p(k)·(k - expectation)²: float64[n], in points of score."""
    p = p.astype(np.float64)
    variance = (p * (SCORES - expectation(p)[:, None]) ** 2).sum(axis=1) / p.sum(axis=1)
    return np.asarray(np.sqrt(variance))


class Attractiveness(Task):
    """Scores a face 60-99.

    The score is the expectation of the distribution; its median, standard deviation and most likely value stand
    beside it, and an interval (``score_low``, ``score_high``) where the scorer has a calibrated one, else null.

    Metrics, in points of score unless said otherwise: ``mae`` and ``rmse`` of the expectation, ``mae_median`` of
    the median, ``mae_argmax`` of the likeliest score, ``mae_balanced`` (mean over the labelled scores of each score's
    own MAE), ``within_1``, ``within_3``, ``within_5`` and ``exact`` (shares 0-1; exact after rounding to whole points),
    ``pearson`` and ``spearman`` (correlations; 0 where they are not defined, since a constant answer or constant labels
    rank nothing).
    """

    name = "attractiveness"
    description = "Scores the attractiveness of a face from 60 to 99, as a distribution over 40 classes."
    limits = (
        "The score is a subjective rating learned from a group of annotators. It carries their taste and their bias; "
        "it measures nothing objective about a person.",
        "Minors are excluded from training and from scoring by default.",
        "Not for decisions about people: hiring, credit, insurance, access, moderation or ranking of persons.",
        "Known weak spots: cut-off or half faces, sunglasses, profile views, blur, labels that are wrong.",
    )
    heads = (Head(name="score", classes=tuple(SCORES.tolist())),)
    losses = ("label_distribution", "cross_entropy", "mean_variance", "corn")
    ordinal_losses = ("corn",)
    best_metric = "mae"
    higher_is_better = False

    @override
    def loss(
        self,
        logits: Mapping[str, torch.Tensor],
        targets: torch.Tensor,
        *,
        kind: str = "default",
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """``label_distribution`` (default), ``cross_entropy``, ``mean_variance``, or ``corn``.

        Label distribution plus expectation: near misses cost little, so every image teaches its neighbours too. Gao,
        Zhou, Wu, Geng, "Age Estimation Using Expectation of Label Distribution Learning", 2018, eq. 2 and 4: the
        cross-entropy with a Gaussian around the label, plus the absolute error of the expectation, in points.

        Mean-variance: Pan, Han, Shan, Chen, "Mean-Variance Loss for Deep Age Estimation from a Face", 2018, eq. 6: the
        cross-entropy, plus 0.2 of half the squared error of the expectation, plus 0.05 of the distribution's variance.

        CORN: Shi, Cao, Raschka, 2021, eq. 6: the cross-entropies of the questions "above this score?", each over the
        rows that reach it. By the chain rule a row's sum is its negative log-likelihood; the batch's is divided by the
        number of questions. It wants a network with ordinal outputs.
        """
        self.check_loss(kind)
        known = targets[:, 0] != MISSING
        scores = torch.arange(LOWEST, HIGHEST + 1, device=targets.device, dtype=torch.float32)
        index = targets[:, 0].clamp(min=0)
        truth = (index + LOWEST).float()
        log_p = F.log_softmax(logits["score"].float(), dim=1)
        p = log_p.exp()
        mean = (p * scores).sum(
            dim=1
        )  # no matrix product: autocast would compute that in bfloat16, steps of half a point
        if kind in ("default", "label_distribution"):
            gaussian = torch.softmax(-0.5 * ((scores - truth[:, None]) / LABEL_STD) ** 2, dim=1)
            per_row = -(gaussian * log_p).sum(dim=1) + (mean - truth).abs()
        else:
            per_row = F.nll_loss(log_p, index, reduction="none")
            if label_smoothing:
                per_row = (1 - label_smoothing) * per_row - label_smoothing * log_p.mean(dim=1)
            if kind == "mean_variance":
                variance = (p * (scores - mean[:, None]) ** 2).sum(dim=1)
                per_row = per_row + 0.2 * 0.5 * (mean - truth) ** 2 + 0.05 * variance
            if kind == "corn":
                num_questions = (index + 1).clamp(max=HIGHEST - LOWEST)
                return (per_row * known).sum() / (num_questions * known).sum().clamp(min=1)
        return (per_row * known).sum() / known.sum().clamp(min=1)

    @override
    def columns(
        self, probabilities: Probabilities, half_widths: Mapping[str, float] | None = None
    ) -> dict[str, npt.NDArray[Any] | list[Any]]:
        p = probabilities["score"]
        score = expectation(p)
        half_width = (half_widths or {}).get("score")
        low: npt.NDArray[Any] | list[Any] = [None] * len(p)
        high: npt.NDArray[Any] | list[Any] = [None] * len(p)
        if half_width is not None:
            low = (score - half_width).clip(LOWEST, HIGHEST).astype(np.float32)
            high = (score + half_width).clip(LOWEST, HIGHEST).astype(np.float32)
        return {
            "score": score.astype(np.float32),
            "score_low": low,
            "score_high": high,
            "score_median": median(p),
            "score_std": standard_deviation(p).astype(np.float32),
            "score_argmax": SCORES[p.argmax(axis=1)].astype(np.int32),
            "score_distribution": list(p),
        }

    @override
    def output_schema(self) -> pa.Schema:
        types: dict[str, pa.DataType] = {
            "score": pa.float32(),
            "score_low": pa.float32(),
            "score_high": pa.float32(),
            "score_median": pa.int32(),
            "score_std": pa.float32(),
            "score_argmax": pa.int32(),
            "score_distribution": pa.list_(pa.float32()),
        }
        return pa.schema(types)

    @override
    def metrics(self, probabilities: Probabilities, targets: Targets) -> dict[str, float]:
        p, truth = self._labelled(probabilities, targets)
        if not truth.size:
            raise UserError("no row has a label in column 'score': there is nothing to measure on")
        score = expectation(p)
        error = np.abs(score - truth)
        ranked = np.ptp(score) > 0 and np.ptp(truth) > 0
        return {
            "mae": float(error.mean()),
            "mae_median": float(np.abs(median(p) - truth).mean()),
            "mae_argmax": float(np.abs(SCORES[p.argmax(axis=1)] - truth).mean()),
            "mae_balanced": float(np.mean([error[truth == value].mean() for value in np.unique(truth)])),
            "within_1": float((error <= 1).mean()),
            "within_3": float((error <= 3).mean()),
            "within_5": float((error <= 5).mean()),
            "exact": float((np.rint(score) == truth).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "pearson": float(np.corrcoef(score, truth)[0, 1]) if ranked else 0.0,
            "spearman": float(spearmanr(score, truth).statistic) if ranked else 0.0,
        }

    @override
    def residuals(self, probabilities: Probabilities, targets: Targets) -> dict[str, npt.NDArray[np.float64]]:
        """Absolute errors of ``score`` over the labelled rows, in points of score."""
        p, truth = self._labelled(probabilities, targets)
        return {"score": np.abs(expectation(p) - truth)}

    def _labelled(
        self, probabilities: Probabilities, targets: Targets
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        known = targets[:, 0] != MISSING
        return probabilities["score"][known], targets[known, 0] + LOWEST


TASK = Attractiveness()
