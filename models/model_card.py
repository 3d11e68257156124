"""The model card of a scorer: markdown for people, made from the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from models.tasks.base import Task, get_task

if TYPE_CHECKING:
    from models.scorer import ScorerManifest


def model_card(manifest: ScorerManifest, digest: str) -> str:
    """The text of ``MODEL_CARD.md``: what it is, input, output, figures beside the baseline, data, limits."""
    task = get_task(manifest.task)
    frames, faces, training = manifest.frame_policy, manifest.face_policy, manifest.training
    lines = [
        f"# {task.name} scorer",
        "",
        task.description,
        "",
        f"- digest: `{digest}`",
        f"- backbone: {manifest.backbone} (torchvision), weights in {manifest.dtype}",
        f"- trained by facereel {manifest.code_version}",
        "",
        "## Input and output",
        "",
        f"- frames: {_listed(frames.model_dump())}",
        f"- faces: {_listed(faces.model_dump())}",
        f"- input: crops `uint8[n, {faces.crop_size}, {faces.crop_size}, 3]` RGB, resized to "
        f"{manifest.input.size} × {manifest.input.size}, mean {manifest.input.mean}, std {manifest.input.std}",
        f"- output: {', '.join(task.output_schema().names)}; of a video, from the mean of its faces' probabilities",
        "",
        "## Figures",
        "",
        f"On {training.num_val_rows} validation crops, beside the trivial answer (the class frequencies of the "
        "training crops, whatever the picture). The best epoch was chosen on these same crops, by "
        f"`{task.best_metric}`.",
        "",
        *_metrics_table(manifest, task),
        "",
        *_calibration_lines(manifest),
        "## Data and training",
        "",
        f"- crops dataset: fingerprint `{manifest.dataset_fingerprint}`, {training.num_train_rows} training crops",
        f"- epoch {training.best_epoch} (from 0) of {training.num_epochs}",
        f"- recipe: {_listed(training.recipe)}",
        "",
        "## Intended use and limits",
        "",
        "For describing the videos of a catalog in bulk, with a person's review where it matters.",
        "",
        *(f"- {limit}" for limit in task.limits),
        "",
    ]
    return "\n".join(lines)


def _listed(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None) or "not recorded"


def _metrics_table(manifest: ScorerManifest, task: Task) -> list[str]:
    rows = ["| metric | this scorer | trivial answer |", "|---|---|---|"]
    for name, value in manifest.metrics.items():
        baseline = manifest.baseline_metrics.get(name)
        shown = f"**{name}**" if name == task.best_metric else name
        rows.append(f"| {shown} | {value:.4f} | {'' if baseline is None else f'{baseline:.4f}'} |")
    return rows


def _calibration_lines(manifest: ScorerManifest) -> list[str]:
    lines = [f"- temperature of {head}: {value:.3f}" for head, value in manifest.calibration.temperatures.items()]
    lines += [
        f"- interval of {column}: ± {interval.half_width:.2f} for {interval.level:.0%} of faces "
        f"(from {interval.num_rows} crops)"
        for column, interval in manifest.calibration.intervals.items()
    ]
    return ["Calibration, fitted on the same crops:", "", *lines, ""] if lines else []
