"""Measure a scorer on a split of a crops dataset: predict on the cluster, evaluate, write page and tables."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.tracking import MlflowClient
from rich.table import Table

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tracking import tracking_client
from models import registry
from models.evaluation import MIN_SLICE, Evaluation
from models.predictor import Predictor
from models.registry import ResolvedScorer
from models.scorer import Scorer
from models.tasks.base import Probabilities, Task, get_task
from ray_jobs.cluster import connect
from ray_jobs.comparing import Compared, compare
from ray_jobs.console import console
from ray_jobs.crops.dataset import (
    PEOPLE,
    DatasetManifest,
    groups_of,
    person_digests,
    read_manifest,
    read_targets,
    split_parts,
)
from ray_jobs.crops.mapping import map_crops, scanned
from ray_jobs.preflight import answering_client, refuse_unwritable
from ray_jobs.reports.cases import confusions, error_histogram, find_cases
from ray_jobs.reports.evaluation import Comparison, evaluation_page
from ray_jobs.sizing import check_tasks

PAGE, RESULT, PREDICTIONS = "evaluation.html", "evaluation.json", "predictions.parquet"
# Bands of what makes a face hard; an open end is None.
_BANDS: dict[str, tuple[float, ...]] = {
    "age": (18, 25, 35, 50),
    "yaw_deg": (15, 30, 45),
    "score": (65, 70, 75, 80, 85, 90),
}
_QUARTILES = ("sharpness", "brightness", "size_px")
# Columns that are another one in every row: told apart by the file of a label, by the folder of a video.
_PLACES = {"source": ":", "video_id": "/"}


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """One evaluation."""

    task: str
    dataset: str
    out: str
    scorer: str = "champion"
    against: str | None = None
    split: str = "val"
    slices: tuple[str, ...] = ()
    num_resamples: int = 200
    use_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """Scorers on a split of a dataset."""

    manifest: DatasetManifest
    scorers: tuple[ResolvedScorer, ...]
    compared: Compared
    table: pa.Table  # of the split, without the crops
    parts: tuple[str, ...]


def run_evaluate(config: EvaluateConfig, settings: Settings) -> Evaluation:
    """Measure, write and print.

    Raises:
        UserError: There is no such scorer, dataset, split or column, the scorer takes other crops, ``out`` cannot be
            written, MLflow does not answer, or the cluster has no GPU where one is wanted.
    """
    refuse_unwritable(Storage(settings.storage), "--out", config.out)
    task, names = get_task(config.task), [name for name in (config.scorer, config.against) if name is not None]
    client = answering_client(settings.tracking, names)
    scorers = [registry.resolve(client, name, task=task.name) for name in names]
    found = measure(config, scorers, settings)
    notes = _notes(config, found, client)
    write_evaluation(config, found, notes, settings)
    _print(config, found, notes)
    return found.compared.evaluations[0]


def measure(config: EvaluateConfig, scorers: Sequence[ResolvedScorer], settings: Settings) -> Measured:
    """Predict the split with every scorer, on the cluster, and evaluate.

    Raises:
        UserError: There is no such dataset, split or column, or a scorer takes other crops.
    """
    task, storage = get_task(config.task), Storage(settings.storage)
    manifest = read_manifest(config.dataset, storage)
    _check(config, task, manifest, scorers)
    parts = split_parts(config.dataset, manifest, config.split)
    rows = scanned(parts, storage)
    table = rows.to_table(columns=[name for name in rows.schema.names if name != "crop"])
    if unknown := [name for name in config.slices if name not in table.column_names]:
        raise UserError(f"--slice {unknown[0]}: the dataset has the columns {', '.join(table.column_names)}")
    targets = task.encode_labels({name: table[name].to_pylist() for name in task.label_columns})
    if refusal := check_tasks(connect(settings.cluster), use_gpu=config.use_gpu):
        raise UserError(refusal)
    train_targets = read_targets(config.dataset, manifest, task, storage) if manifest.parts.get("train") else targets
    compared = compare(
        task,
        [_predicted(found.scorer, parts, storage, table.num_rows, use_gpu=config.use_gpu) for found in scorers],
        targets,
        videos=table["video_id"].to_pylist(),
        groups=groups_of(table),
        baseline=task.baseline(train_targets),
        calibrations=[found.scorer.manifest.calibration for found in scorers],
        columns=slice_columns(table, task, config.slices),
        num_resamples=config.num_resamples,
    )
    return Measured(manifest, tuple(scorers), compared, table, tuple(parts))


def write_evaluation(config: EvaluateConfig, found: Measured, notes: Sequence[str], settings: Settings) -> None:
    """Page, figures and predictions below ``config.out``; page and figures also in the first scorer's MLflow run."""
    compared, storage, scorer = found.compared, Storage(settings.storage), found.scorers[0]
    task, answer, targets = compared.task, compared.answers[0], compared.targets
    result = _result(config, found, notes)
    page = evaluation_page(
        task,
        config.dataset,
        found.manifest,
        config.split,
        scorer,
        compared.evaluations[0],
        _comparison(found),
        find_cases(task, scorer.scorer, answer, targets, found.table, found.parts, storage),
        notes,
        confusions(task, answer, targets),
        error_histogram(task, answer, targets),
    )
    storage.put(join(config.out, RESULT), result.encode())
    storage.put(join(config.out, PAGE), page.encode())
    storage.put(join(config.out, PREDICTIONS), _predictions(task, scorer.scorer, answer, found.table))
    if scorer.run_id is not None:
        client = tracking_client(settings.tracking)
        folder = f"evaluation/{found.manifest.fingerprint[:16]}-{config.split}"
        client.log_text(scorer.run_id, page, f"{folder}/{PAGE}")
        client.log_text(scorer.run_id, result, f"{folder}/{RESULT}")


def _comparison(found: Measured) -> Comparison | None:
    if len(found.scorers) < 2:
        return None
    return Comparison(found.scorers[1].version, found.compared.evaluations[1].per_image, found.compared.differences)


def _check(config: EvaluateConfig, task: Task, manifest: DatasetManifest, scorers: Sequence[ResolvedScorer]) -> None:
    if task.name not in manifest.tasks:
        raise UserError(f"{config.dataset} has labels for {', '.join(manifest.tasks)}, not for {task.name!r}")
    if config.split not in (*manifest.parts, "all"):
        raise UserError(f"{config.dataset} has no split {config.split!r}; it has {', '.join(manifest.parts)}, all")
    for found in scorers:
        if found.scorer.manifest.face_policy != manifest.face_policy:
            raise UserError(
                f"{config.dataset} was made with another face policy than {found.reference} was trained with: "
                "prepare the videos with the scorer's own (its scorer.json has it), or the figures mean nothing"
            )


class _Probabilities:
    """A scorer on the crops of a block."""

    def __init__(self, scorer: Scorer, device: str) -> None:
        self._scorer, self._device = scorer, device

    def __call__(self, crops: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        return Predictor(self._scorer, device=self._device).probabilities(crops)


def _predicted(
    scorer: Scorer, parts: Sequence[str], storage: Storage, num_rows: int, *, use_gpu: bool
) -> Probabilities:
    work = _Probabilities(scorer, "cuda" if use_gpu else "cpu")
    blocks = map_crops(parts, storage, np.arange(num_rows), work, title="evaluate", num_gpus=1 if use_gpu else 0)
    return {head.name: np.concatenate([block[head.name] for block in blocks]) for head in scorer.manifest.heads}


def slice_columns(table: pa.Table, task: Task, further: Sequence[str]) -> dict[str, list[str | None]]:
    """What to slice by: gender, bands of age, turn and score, quartiles of quality, remarks, and what was asked for."""
    found: dict[str, list[str | None]] = {}
    if "gender" in table.column_names and "gender" not in task.label_columns:
        found["gender"] = table["gender"].to_pylist()
    for name, edges in _BANDS.items():
        if name in table.column_names:
            values = table[name].to_pylist()
            found[name] = [None if value is None else _band(abs(value), edges) for value in values]
    for name in _QUARTILES:
        if name in table.column_names and table[name].null_count < table.num_rows:
            found[name] = _quarters(table[name])
    remarks = [tuple(value or ()) for value in table["remarks"].to_pylist()]
    for remark in sorted({item for items in remarks for item in items}):
        found[f"remark {remark}"] = ["yes" if remark in items else "no" for items in remarks]
    for name in further:
        values = table[name].to_pylist()
        if name in _PLACES:
            found[name] = [None if value is None else str(value).rpartition(_PLACES[name])[0] for value in values]
        elif pa.types.is_floating(table[name].type):
            if name not in found:  # has it bands of its own?
                found[name] = _quarters(table[name])
        else:
            found[name] = [None if value is None else str(value).lower() for value in values]
    return found


def _quarters(column: pa.ChunkedArray) -> list[str | None]:
    """The quarter of the column's values in which each of them lies."""
    values = column.to_numpy().astype(float)
    edges = np.nanquantile(values, [0.25, 0.5, 0.75])
    return [None if np.isnan(value) else f"quarter {1 + int(np.searchsorted(edges, value))} of 4" for value in values]


def _band(value: float, edges: Sequence[float]) -> str:
    place = int(np.searchsorted(edges, value, side="right"))
    if place == 0:
        return f"under {edges[0]:g}"
    if place == len(edges):
        return f"{edges[-1]:g} and more"
    return f"{edges[place - 1]:g} to {edges[place]:g}"


def _notes(config: EvaluateConfig, found: Measured, client: MlflowClient) -> list[str]:
    """What a reader of the figures has to know."""
    notes = []
    for index, scorer in enumerate(found.scorers):
        who = "The scorer" if index == 0 else f"The other one ({scorer.version})"
        is_own = scorer.scorer.manifest.dataset_fingerprint == found.manifest.fingerprint
        if is_own and config.split in ("train", "all"):
            notes.append(f"{who} was trained on these very crops: its figures say nothing about others.")
        elif is_own and config.split == "val":
            notes.append(
                f"{who} had its best epoch chosen by this split and was calibrated on it: on unseen people its figures "
                "are a little worse."
            )
        elif number := num_known(client, scorer, found.table):
            notes.append(f"{who} was trained with {number} of these creators or videos: its figures flatter it.")
    sliced = {item.column for item in found.compared.evaluations[0].slices}
    notes += [
        f"--slice {name}: it has no value of {MIN_SLICE} labelled crops that is not all of them."
        for name in config.slices
        if name not in sliced
    ]
    return notes


def num_known(client: MlflowClient, scorer: ResolvedScorer, table: pa.Table) -> int:
    """Creators and videos of the table that were in the training of a scorer, as far as its run tells."""
    return len(person_digests(table) & (people_of_training(client, scorer) or set()))


def people_of_training(client: MlflowClient, scorer: ResolvedScorer) -> set[str] | None:
    """The `person_digests` of those whom a scorer has seen, `UNKNOWN_PEOPLE` perhaps among them; None: no run says."""
    text = None if scorer.run_id is None else registry.read_artifact(client, scorer.run_id, f"dataset/{PEOPLE}")
    return None if text is None else set(text.split())


def _result(config: EvaluateConfig, found: Measured, notes: Sequence[str]) -> str:
    first = found.scorers[0]
    result: dict[str, Any] = {
        "task": config.task,
        "scorer": {"version": first.version, "digest": first.scorer.digest},
        "dataset": {"uri": config.dataset, "fingerprint": found.manifest.fingerprint, "split": config.split},
        "notes": list(notes),
        "evaluation": found.compared.evaluations[0].model_dump(mode="json"),
    }
    if len(found.scorers) == 2:
        result["against"] = {
            "version": found.scorers[1].version,
            "digest": found.scorers[1].scorer.digest,
            "evaluation": found.compared.evaluations[1].model_dump(mode="json"),
            "differences": {name: item.model_dump(mode="json") for name, item in found.compared.differences.items()},
        }
    return json.dumps(result, indent=2)


def _predictions(task: Task, scorer: Scorer, answer: Probabilities, table: pa.Table) -> bytes:
    """A row a crop: what it is of, its labels as ``label_NAME``, and the scorer's columns."""
    keys = table.select(
        [name for name in ("video_id", "creator_id", "frame_index", "face", "source") if name in table.column_names]
    )
    for name in task.label_columns:
        keys = keys.append_column(f"label_{name}", table[name])
    columns = task.columns(answer, scorer.manifest.calibration.half_widths)
    for field in task.output_schema():
        values = columns[field.name]
        listed = (
            values.tolist()
            if isinstance(values, np.ndarray)
            else [getattr(v, "tolist", lambda v=v: v)() for v in values]
        )
        keys = keys.append_column(field, pa.array(listed, field.type))
    sink = pa.BufferOutputStream()
    pq.write_table(keys, sink)
    return bytes(sink.getvalue().to_pybytes())


def _print(config: EvaluateConfig, found: Measured, notes: Sequence[str]) -> None:
    task, comparison = found.compared.task, _comparison(found)
    first = found.compared.evaluations[0]
    table = Table(
        title=f"{found.scorers[0].version} on {config.split} of {config.dataset}: {first.num_rows:,} crops, "
        f"{first.num_videos:,} videos, {first.num_groups:,} creators"
    )
    for name in ("metric", "crops", "95% interval", "trivial answer", "videos"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    if comparison is not None:
        table.add_column("the other", justify="right")
        table.add_column("difference", justify="right")
    heads = [head.name for head in task.heads] if len(task.heads) > 1 else []
    for name, figure in first.per_image.items():
        if name.endswith(tuple(f"_{head}" for head in heads)) and not name.startswith(("f1_weighted_", "f1_macro_")):
            continue  # in evaluation.json and on the page
        interval = "" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}"
        baseline = "" if figure.baseline is None else f"{figure.baseline:.3f}"
        row = [name, f"{figure.value:.3f}", interval, baseline, f"{first.per_video[name].value:.3f}"]
        if comparison is not None:
            difference = comparison.differences[name]
            span = "" if difference.low is None else f" ({difference.low:+.3f} to {difference.high:+.3f})"
            row += [f"{comparison.figures[name].value:.3f}", f"{difference.value:+.3f}{span}"]
        table.add_row(*row)
    console.print(table)
    for item in first.slices[:3]:
        console.print(
            f"worst slices: {item.column} {item.value}: {task.best_metric} {item.figure.value:.3f} "
            f"({item.num_rows} crops)",
            highlight=False,
        )
    for name, coverage in first.coverage.items():
        console.print(f"{name}: the {coverage.level:.0%} interval holds {coverage.covered:.1%}", highlight=False)
    for note in notes:
        console.print(f"note: {note}", highlight=False)
    console.print(f"wrote {join(config.out, PAGE)}, {join(config.out, RESULT)} and {join(config.out, PREDICTIONS)}")
