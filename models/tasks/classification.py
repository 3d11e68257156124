"""Columns and metrics of tasks whose heads are plain classes: the base of fs2k and of most new tasks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score
from typing_extensions import override

from infra.errors import UserError
from models.tasks.base import MISSING, Head, Probabilities, Targets, Task

_METRICS = ("f1_weighted", "f1_macro", "balanced_accuracy", "accuracy", "precision_weighted", "roc_auc")


class ClassificationTask(Task):
    """A task that answers each head with its most likely class.

    Output columns of a yes/no head: ``NAME`` (bool) and ``NAME_p`` (probability of true). Of a categorical head:
    ``NAME`` (its class), ``NAME_p`` (probability of that class) and ``NAME_probabilities`` (all, in class order).

    Metrics: ``f1_weighted``, ``f1_macro``, ``balanced_accuracy``, ``accuracy`` (which is also the weighted recall),
    ``precision_weighted`` and ``roc_auc`` (each class against the rest, weighted by its frequency), as ``METRIC_HEAD``
    for each head and ``METRIC_mean`` over the heads. Macro-averages run over the classes that occur among the targets.
    A head without a single label has no figures and no part in the means; one whose labels are all alike has no
    ``roc_auc``.

    The best epoch is chosen by ``f1_macro_mean``: weighted F1 hardly moves when a rare class is never answered
    (0.926 for "everybody has hair" on FS2K), which is what macro-F1 is sensitive to.
    """

    best_metric = "f1_macro_mean"
    higher_is_better = True

    @override
    def columns(
        self, probabilities: Probabilities, half_widths: Mapping[str, float] | None = None
    ) -> dict[str, npt.NDArray[Any] | list[Any]]:
        columns: dict[str, npt.NDArray[Any] | list[Any]] = {}
        for head in self.heads:
            p = probabilities[head.name]
            chosen = p.argmax(axis=1)
            columns[head.name] = np.array(head.classes, dtype=_value_dtype(head))[chosen]
            if head.is_binary:
                columns[f"{head.name}_p"] = p[:, 1]
            else:
                columns[f"{head.name}_p"] = p[np.arange(len(p)), chosen]
                columns[f"{head.name}_probabilities"] = list(p)
        return columns

    @override
    def output_schema(self) -> pa.Schema:
        fields = []
        for head in self.heads:
            fields.append(pa.field(head.name, _value_type(head)))
            fields.append(pa.field(f"{head.name}_p", pa.float32()))
            if not head.is_binary:
                fields.append(pa.field(f"{head.name}_probabilities", pa.list_(pa.float32())))
        return pa.schema(fields)

    @override
    def metrics(self, probabilities: Probabilities, targets: Targets) -> dict[str, float]:
        by_head = {}
        for column, head in enumerate(self.heads):
            known = targets[:, column] != MISSING
            if known.any():
                by_head[head.name] = _head_metrics(targets[known, column], probabilities[head.name][known])
        if not by_head:
            raise UserError(f"no row has a label for task {self.name!r}: there is nothing to measure on")
        figures = {
            f"{metric}_mean": float(np.mean([values[metric] for values in by_head.values() if metric in values]))
            for metric in _METRICS
            if any(metric in values for values in by_head.values())
        }
        for name, values in by_head.items():
            figures |= {f"{metric}_{name}": value for metric, value in values.items()}
        return figures


def _value_type(head: Head) -> pa.DataType:
    if head.is_binary:
        return pa.bool_()
    return pa.string() if isinstance(head.classes[0], str) else pa.int32()


def _value_dtype(head: Head) -> type:
    if head.is_binary:
        return np.bool_
    return object if isinstance(head.classes[0], str) else np.int32


def _head_metrics(target: npt.NDArray[np.int64], p: npt.NDArray[np.float32]) -> dict[str, float]:
    present, answer = np.unique(target), p.argmax(axis=1)
    averaged: dict[str, Any] = {"labels": present, "average": "weighted", "zero_division": 0}
    figures = {
        "f1_weighted": float(f1_score(target, answer, **averaged)),
        "f1_macro": float(f1_score(target, answer, labels=present, average="macro", zero_division=0)),
        # Balanced accuracy is the recall averaged over the targets' classes; balanced_accuracy_score says the same, but
        # warns of answers outside of them.
        "balanced_accuracy": float(recall_score(target, answer, labels=present, average="macro")),
        "accuracy": float(accuracy_score(target, answer)),
        "precision_weighted": float(precision_score(target, answer, **averaged)),
    }
    if len(present) > 1:
        areas = [roc_auc_score(target == index, p[:, index]) for index in present]
        figures["roc_auc"] = float(np.average(areas, weights=[(target == index).sum() for index in present]))
    return figures
