"""What one scorer's answers to labelled rows are worth, or two scorers' and their paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from models.calibration import Calibration
from models.evaluation import Evaluation, Figure, evaluate, resample
from models.tasks.base import Probabilities, Targets, Task

SLICE_RESAMPLES = 2000  # enough for the tails of an interval that allows for many slices


@dataclass(frozen=True, slots=True)
class Compared:
    """One scorer's answers to labelled rows, or two scorers': the second is what the first is held against."""

    task: Task
    answers: tuple[Probabilities, ...]
    targets: Targets
    groups: tuple[str, ...]  # creator of each row
    columns: dict[str, list[str | None]]  # what slices are told apart by: name -> value of each row
    evaluations: tuple[Evaluation, ...]
    differences: dict[str, Figure]  # metric -> the first's less the second's, paired; empty where there is one

    def slice_difference(self, column: str, value: str, level: float) -> Figure:
        """The difference of the best metric over a slice, with its paired interval at this level."""
        chosen = np.flatnonzero(np.asarray([given == value for given in self.columns[column]]))
        answers = [{name: p[chosen] for name, p in answer.items()} for answer in self.answers]
        groups = [self.groups[row] for row in chosen]
        return _differences(self.task, answers, self.targets[chosen], groups, SLICE_RESAMPLES, level)[
            self.task.best_metric
        ]


def compare(
    task: Task,
    answers: Sequence[Probabilities],
    targets: Targets,
    *,
    videos: Sequence[str],
    groups: Sequence[str],
    baseline: Probabilities,
    calibrations: Sequence[Calibration],
    columns: dict[str, list[str | None]],
    num_resamples: int,
) -> Compared:
    """Evaluate one scorer's answers, or two scorers' and their paired differences.

    Args:
        task: What is answered.
        answers: Of each scorer: head name -> float32[n, C].
        targets: int64[n, H].
        videos: The video of each row.
        groups: The creator of each row.
        baseline: The trivial answer.
        calibrations: Of each scorer: its intervals.
        columns: What to slice by.
        num_resamples: Of the bootstrap.
    """
    evaluations = [
        evaluate(
            task,
            probabilities,
            targets,
            videos=videos,
            groups=groups,
            baseline=baseline,
            half_widths={name: (item.half_width, item.level) for name, item in calibration.intervals.items()},
            columns=columns,
            num_resamples=num_resamples,
        )
        for probabilities, calibration in zip(answers, calibrations, strict=True)
    ]
    return Compared(
        task=task,
        answers=tuple(answers),
        targets=targets,
        groups=tuple(groups),
        columns=columns,
        evaluations=tuple(evaluations),
        differences=_differences(task, answers, targets, groups, num_resamples) if len(answers) == 2 else {},
    )


def _differences(
    task: Task,
    answers: Sequence[Probabilities],
    targets: Targets,
    groups: Sequence[str],
    num_resamples: int,
    level: float = 0.95,
) -> dict[str, Figure]:
    """The first scorer's figures less the second's, with intervals from the same resamples of creators for both."""
    group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    drawn: dict[str, list[float]] = {}
    for rows in resample(group_of, num_resamples):
        try:
            first, second = (
                task.metrics({name: p[rows] for name, p in answer.items()}, targets[rows]) for answer in answers
            )
        except UserError:  # no label among them
            continue
        for name in first.keys() & second.keys():
            drawn.setdefault(name, []).append(first[name] - second[name])
    values = [task.metrics(answer, targets) for answer in answers]
    differences = {}
    for name in values[0]:
        low, high = (
            np.quantile(drawn[name], [(1 - level) / 2, (1 + level) / 2]).tolist() if drawn.get(name) else (None, None)
        )
        differences[name] = Figure(value=values[0][name] - values[1][name], low=low, high=high)
    return differences
