"""What a task is: its heads, labels, loss, metrics and output columns; and how tasks are found by name.

A task is one module of this package that ends with ``TASK = MyTask()``. Nothing else has to change for a new one.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

import models.tasks
from infra.errors import UserError

MISSING = -1
"""The target of a row whose label is not known: no part of the loss, no part of the metrics."""

Probabilities = Mapping[str, npt.NDArray[np.float32]]
"""Head name -> float32[n, C], each row summing to 1, columns in the order of the head's classes."""

Targets = npt.NDArray[np.int64]
"""int64[n, H]: class index per row and head, in the order of the task's heads; ``MISSING`` where not known."""


class Head(BaseModel):
    """One question that a task answers: a softmax over ``classes``.

    A yes/no question has the classes ``(False, True)``; True is the user's "has the property". Its softmax over two
    logits is the sigmoid of their difference, so binary and categorical heads share one code path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name of the label column, and of the output column.", pattern=r"^[a-z][a-z0-9_]*$")
    classes: tuple[StrictBool, ...] | tuple[StrictInt, ...] | tuple[StrictStr, ...] = Field(
        description="The values that users see, in the order of the logits."
    )

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if len(self._index_by_spelling()) < max(2, len(self.classes)):
            raise ValueError(f"head {self.name!r} needs two or more different classes, got {self.classes}")
        if isinstance(self.classes[0], bool) and self.classes != (False, True):
            raise ValueError(f"yes/no head {self.name!r} has the classes (False, True) in this order")
        return self

    @property
    def is_binary(self) -> bool:
        """Whether this is a yes/no question."""
        return isinstance(self.classes[0], bool)

    def _index_by_spelling(self) -> dict[str, int]:
        return {str(value).lower(): index for index, value in enumerate(self.classes)}

    def encode(self, values: Sequence[Any]) -> npt.NDArray[np.int64]:
        """Class indices int64[n] of label values.

        A value may be spelled as text in any case (``"True"``, ``" male"``, ``"78"``) or as a whole float (``78.0``: a
        column of numbers with gaps is read as floats). None, NaN and empty text mean missing. 0 and 1 are not
        accepted for yes/no: raw annotation codes are often inverted, and would be learned the wrong way round.

        Raises:
            UserError: A value is none of the classes; names column, row and value.
        """
        known = self._index_by_spelling()
        targets = np.full(len(values), MISSING, dtype=np.int64)
        for row, value in enumerate(values):
            if value is None or value != value:
                continue
            whole = isinstance(value, float) and value.is_integer()
            text = str(int(value) if whole else value).strip().lower()
            if not text:
                continue
            if text not in known:
                raise UserError(
                    f"column {self.name!r}, row {row} (from 0): {value!r} is not a label; known are "
                    f"{_shortened(list(known))}, or an empty cell for missing"
                )
            targets[row] = known[text]
        return targets


def _shortened(values: list[str]) -> str:
    return ", ".join(values) if len(values) <= 8 else f"{', '.join(values[:3])} … {values[-1]}"


class Task(ABC):
    """Everything that differs between tasks, from label columns to output columns."""

    name: ClassVar[str]
    description: ClassVar[str]
    """One sentence for the model card."""
    limits: ClassVar[tuple[str, ...]]
    """Sentences for the model card: what the outputs must not be taken for."""
    heads: ClassVar[tuple[Head, ...]]
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    """Losses to choose from; the first is the default."""
    ordinal_losses: ClassVar[tuple[str, ...]] = ()
    """Those of them that want a network with ordinal outputs."""
    best_metric: ClassVar[str]
    """The metric that chooses the best epoch."""
    higher_is_better: ClassVar[bool]

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns that a table of labels has for this task: one a head, in the order of the heads."""
        return tuple(head.name for head in self.heads)

    def encode_labels(self, columns: Mapping[str, Any]) -> Targets:
        """Targets int64[n, H] from label columns (lists, or NumPy, Arrow or pandas columns of one length).

        Raises:
            UserError: A label column is absent, columns differ in length, or a value is not a label.
        """
        absent = [name for name in self.label_columns if name not in columns]
        if absent:
            raise UserError(
                f"task {self.name!r} needs the label columns {', '.join(absent)}; the table has "
                f"{', '.join(columns) or 'none'}. Add them, with empty cells where a label is not known"
            )
        lists = {name: _as_list(columns[name]) for name in self.label_columns}
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"label columns differ in length: {lengths}")
        return np.stack([head.encode(lists[head.name]) for head in self.heads], axis=1)

    def loss(
        self,
        logits: Mapping[str, torch.Tensor],
        targets: torch.Tensor,
        *,
        kind: str = "default",
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Mean over the heads of the cross-entropy over the rows whose label is known; a scalar.

        Args:
            logits: Head name -> float[n, C].
            targets: int64[n, H] on the same device. A head without a known label in the batch adds 0.
            kind: Which of the task's losses; ``default`` and ``cross_entropy`` are the same here.
            label_smoothing: What the labels give to all classes alike, 0 to 1.

        Raises:
            UserError: The task has no such loss.
        """
        self.check_loss(kind)
        losses = []
        for column, head in enumerate(self.heads):
            target = targets[:, column]
            total = F.cross_entropy(
                logits[head.name].float(),
                target,
                ignore_index=MISSING,
                reduction="sum",
                label_smoothing=label_smoothing,
            )
            losses.append(total / (target != MISSING).sum().clamp(min=1))
        return torch.stack(losses).mean()

    def check_loss(self, kind: str) -> None:
        """Refuse a loss that is none of the task's.

        Raises:
            UserError: It is not; names those there are.
        """
        if kind not in ("default", *self.losses):
            raise UserError(f"{self.name} has no loss {kind!r}; it has {', '.join(self.losses)}")

    @abstractmethod
    def columns(
        self, probabilities: Probabilities, half_widths: Mapping[str, float] | None = None
    ) -> dict[str, npt.NDArray[Any] | list[Any]]:
        """What users see of n rows of probabilities (a row = a face, or a video's mean over its faces).

        Args:
            probabilities: Head name -> float32[n, C].
            half_widths: Column name -> half-width of its prediction interval, for columns that have a calibrated one.

        Returns:
            Column name -> n values; names, order and types are those of ``output_schema``.
        """

    @abstractmethod
    def output_schema(self) -> pa.Schema:
        """Names and Arrow types of what ``columns`` returns."""

    @abstractmethod
    def metrics(self, probabilities: Probabilities, targets: Targets) -> dict[str, float]:
        """Named finite figures over the rows whose label is known; ``best_metric`` is one of them.

        Raises:
            UserError: No row has a label.
        """

    def residuals(self, probabilities: Probabilities, targets: Targets) -> dict[str, npt.NDArray[np.float64]]:
        """Column name -> absolute errors over labelled rows, of the columns that can have an interval; none here."""
        return {}

    def baseline(self, targets: Targets) -> dict[str, npt.NDArray[np.float32]]:
        """The answer without looking: the class frequencies among training targets, float32[1, C] per head.

        Its most likely class is the majority, its expectation the training mean. A head without labels: uniform.
        """
        answer = {}
        for column, head in enumerate(self.heads):
            known = targets[:, column][targets[:, column] != MISSING]
            counts = np.bincount(known, minlength=len(head.classes)) if known.size else np.ones(len(head.classes))
            answer[head.name] = (counts / counts.sum())[None].astype(np.float32)
        return answer

    def baseline_metrics(self, train_targets: Targets, targets: Targets) -> dict[str, float]:
        """The metrics on ``targets`` of answering every row with the ``baseline`` of the training targets."""
        answer = self.baseline(train_targets)
        return self.metrics({name: np.repeat(row, len(targets), axis=0) for name, row in answer.items()}, targets)


def _as_list(column: Any) -> list[Any]:
    values: list[Any] = column.tolist() if hasattr(column, "tolist") else list(column)
    return values


def _all_tasks() -> dict[str, Task]:
    return _tasks_in(tuple(models.tasks.__path__))


@cache
def _tasks_in(folders: tuple[str, ...]) -> dict[str, Task]:
    modules = (importlib.import_module(f"models.tasks.{info.name}") for info in pkgutil.iter_modules(folders))
    tasks = [module.TASK for module in modules if hasattr(module, "TASK")]
    return {task.name: task for task in tasks}


def task_names() -> tuple[str, ...]:
    """Names of all tasks, sorted."""
    return tuple(sorted(_all_tasks()))


def get_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        UserError: There is none; the message lists the known ones.
    """
    tasks = _all_tasks()
    if name not in tasks:
        raise UserError(f"there is no task {name!r}; known are {', '.join(sorted(tasks))}")
    return tasks[name]
