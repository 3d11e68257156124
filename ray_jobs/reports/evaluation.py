"""The page of an evaluation: figures, errors, confusion, calibration, slices, and the best and worst cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.evaluation import Evaluation, Figure
from models.registry import ResolvedScorer
from models.scorer import TrainingSummary
from models.tasks.base import Task
from ray_jobs.crops.dataset import DatasetManifest
from ray_jobs.reports.page import crop_address, environment
from ray_jobs.reports.plots import Plot, curve

PICTURE_PX = 112
MAX_SLICES = 30


@dataclass(frozen=True, slots=True)
class Case:
    """One crop: what it is labelled and what was answered, head by head, and how wrong that is."""

    video_id: str
    lines: tuple[tuple[str, str, str], ...]  # head, label, answer
    error: float
    picture: bytes

    @property
    def address(self) -> str:
        """The picture as the address of a small JPEG."""
        return crop_address(self.picture, PICTURE_PX)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A second scorer on the same rows."""

    version: str
    figures: Mapping[str, Figure]
    differences: Mapping[str, Figure]  # the first scorer's figure minus the second's


@dataclass(frozen=True, slots=True)
class Confusion:
    """Labels against answers of one head; a scale's classes in bands."""

    name: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # a row a label


def evaluation_page(
    task: Task,
    dataset: str,
    manifest: DatasetManifest,
    split: str,
    scorer: ResolvedScorer,
    evaluation: Evaluation,
    comparison: Comparison | None,
    cases: Mapping[str, Sequence[Case]],
    notes: Sequence[str],
    confusions: Sequence[Confusion],
    errors: Plot | None,
) -> str:
    """The page as HTML, in one file."""
    heads = [head.name for head in task.heads] if len(task.heads) > 1 else []
    overall = {name: f for name, f in evaluation.per_image.items() if not name.endswith(tuple(f"_{h}" for h in heads))}
    if not heads:
        overall = dict(evaluation.per_image)
    return (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            task=task,
            dataset=dataset,
            manifest=manifest,
            split=split,
            scorer=scorer,
            evaluation=evaluation,
            comparison=comparison,
            cases=cases,
            notes=notes,
            heads=heads,
            overall=overall,
            slices=evaluation.slices[:MAX_SLICES],
            confusions=confusions,
            errors=errors,
            curves=_curves(scorer.scorer.manifest.training),
        )
    )


def _curves(training: TrainingSummary) -> list[Plot]:
    """What the training saw, epoch by epoch; the kept one is marked."""
    best = training.best_epoch + 1
    return [
        curve(
            values,
            title={"loss": "Training loss"}.get(name, f"Validation {name.replace('_', ' ')}"),
            x_label="epoch",
            alt=f"{name}: {values[0]:.3g} after the first epoch, {values[-1]:.3g} after the last of {len(values)}",
            marks=[(best, "kept")],
        )
        for name, values in training.curves.items()
        if values
    ]
