"""Which labels are most likely wrong: those that models which never saw their people contradict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
OUTLIER_Z = 3.0
MIN_NUMBERS = 10  # a whole-number label with so many classes is a scale: nearness counts
_MAD_TO_STD = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class Doubts:
    """What cross-validation says of one label; arrays are by item."""

    predicted: npt.NDArray[np.int64]  # class index that the others suggest
    doubt: npt.NDArray[np.float64]  # larger is more doubtful; comparable within a label only
    is_doubted: npt.NDArray[np.bool_]  # whether it counts as likely wrong
    agreement: float  # share of items whose label is the predicted class; within 5 classes for a scale
    trivial_agreement: float  # the same of the best constant


def find_doubts(
    features: npt.NDArray[np.float32],
    items: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    groups: Sequence[str],
    classes: Sequence[object],
) -> Doubts:
    """Cross-validate one label.

    Args:
        features: float32[n, D] of crops.
        items: int64[n]: which labelled item (video or image) a crop is of, 0 to m - 1; its crops' predictions are
            averaged.
        targets: int64[m]: class index of each item.
        groups: The creator of each item: no fold learns from people on whom it is asked.
        classes: The classes; ten or more whole numbers are a scale.

    Raises:
        ValueError: Fewer than two groups or two classes: nothing can be held out.
    """
    names = np.asarray(groups)
    num_folds = min(FOLDS, len(np.unique(names)))
    if num_folds < 2 or len(np.unique(targets)) < 2:
        raise ValueError("cross-validation needs two people and two classes at least")
    is_scale = len(classes) >= MIN_NUMBERS and all(type(value) is int for value in classes)
    of_crop = targets[items]
    width = 1 if is_scale else len(classes)
    predictions = np.zeros((len(features), width))
    for train, held_out in GroupKFold(num_folds).split(features, groups=names[items]):
        if is_scale:
            model = make_pipeline(StandardScaler(), Ridge(alpha=len(train) / 10))
            predictions[held_out, 0] = model.fit(features[train], of_crop[train]).predict(features[held_out])
            continue
        known = np.unique(of_crop[train])
        if len(known) == 1:
            predictions[np.ix_(held_out, known)] = 1.0
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=300))
        model.fit(features[train], of_crop[train])
        predictions[np.ix_(held_out, known)] = model.predict_proba(features[held_out])
    sums = np.zeros((len(targets), width))
    np.add.at(sums, items, predictions)
    means = sums / np.bincount(items, minlength=len(targets))[:, None]
    return _on_a_scale(means[:, 0], targets, len(classes)) if is_scale else _in_classes(means, targets)


def _in_classes(probabilities: npt.NDArray[np.float64], targets: npt.NDArray[np.int64]) -> Doubts:
    """Confident learning (Northcutt, Jiang, Chuang, JAIR 2021).

    A label is doubted where another class is the likelier one and reaches its threshold: the mean probability of that
    class over the items labelled so. Doubt is the lead of the likeliest other class.
    """
    rows = np.arange(len(targets))
    thresholds = np.ones(probabilities.shape[1])
    for index in np.unique(targets):
        thresholds[index] = probabilities[targets == index, index].mean()
    others = probabilities.copy()
    others[rows, targets] = -1
    lead = others.max(1) - probabilities[rows, targets]
    reaches = np.any((others >= thresholds) & (others > probabilities[rows, targets][:, None]), axis=1)
    majority = np.bincount(targets).max() / len(targets)
    agreement = float((probabilities.argmax(1) == targets).mean())
    return Doubts(others.argmax(1), lead, reaches, agreement, float(majority))


def _on_a_scale(predicted: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], num_classes: int) -> Doubts:
    """Residuals: doubted beyond three robust standard deviations (of the median absolute one) from their median."""
    residual = targets - predicted
    centre = np.median(residual)
    spread = max(float(_MAD_TO_STD * np.median(np.abs(residual - centre))), 1e-6)
    doubt = np.abs(residual - centre) / spread
    median = np.median(targets)
    return Doubts(
        np.clip(np.rint(predicted + centre), 0, num_classes - 1).astype(np.int64),
        doubt,
        doubt > OUTLIER_Z,
        float((np.abs(residual) <= 5).mean()),
        float((np.abs(targets - median) <= 5).mean()),
    )
