"""Build a crops dataset: labelled videos or images through the pipeline that scoring uses, into Parquet parts."""

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from rich.table import Table

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage, join
from models.faces.policy import FacePolicy
from models.tasks.base import get_task
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from ray_jobs.cluster import fit
from ray_jobs.console import RunProgress, console
from ray_jobs.crops.dataset import CARD, MANIFEST, DatasetManifest, DatasetRules
from ray_jobs.crops.finishing import VIDEO_COLUMNS, finish
from ray_jobs.crops.staging import Staging
from ray_jobs.fs2k_source import Modality, fs2k_folder
from ray_jobs.ingesting.state import ingested
from ray_jobs.labels.cleaning import CleanLabels, clean_labels, in_storage
from ray_jobs.labels.removal import RemovalReport
from ray_jobs.labels.rules import LabelRules
from ray_jobs.labels.verdicts import read_verdicts, without_wrong_labels
from ray_jobs.reports.dataset import dataset_card
from ray_jobs.sizing import Resources
from ray_jobs.splits import SplitBy, split_of
from ray_jobs.stages.encode import CROP_FIELDS, encode_stage
from ray_jobs.stages.extract import ExtractConfig
from ray_jobs.stages.pipeline import arriving, extracted
from ray_jobs.telemetry import begin_preparing, tell_prepared

REMOVED = "removed.csv"
_STAGED = (*VIDEO_COLUMNS, "split", "reason", "num_faces", "dropped", *(field.name for field in CROP_FIELDS))


@dataclass(frozen=True, slots=True)
class PrepareConfig:
    """One dataset: exactly one of ``labels`` and ``fs2k`` is the source."""

    out: str
    labels: str | None = None
    videos: str | None = None  # where `ingest` has put the videos of web addresses
    exclude: str | None = None  # a review's verdicts
    fs2k: Path | None = None
    modality: Modality = "photo"
    tasks: tuple[str, ...] = ()
    split_by: SplitBy = "creator"
    frame_policy: FramePolicy = field(default_factory=FramePolicy)
    face_policy: FacePolicy = field(default_factory=FacePolicy)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    label_rules: LabelRules = field(default_factory=LabelRules)
    rules: DatasetRules = field(default_factory=DatasetRules)
    resources: Resources = field(default_factory=Resources)


def run_prepare(config: PrepareConfig, settings: Settings) -> DatasetManifest:
    """Extract, encode, split and write the dataset; its manifest is written last, so a broken run leaves none.

    A run that broke off goes on where it stopped, when it is repeated with the same options.

    Raises:
        UserError: The source is unusable, the target holds a dataset already, or no crop came out.
    """
    storage = Storage(settings.storage)
    source = _read_source(config, storage)
    rows, rules = source.rows, config.rules
    if config.fs2k is not None:  # a face photo, whatever else the detector takes for a face
        rules = rules.model_copy(update={"one_person": False})
    labels = list({name: None for task in source.tasks for name in get_task(task).label_columns})
    if config.exclude is not None:
        wrong = read_verdicts(config.exclude, storage, labels)
        rows = without_wrong_labels(rows, wrong, labels, source.report)
    staging = Staging(config.out, storage, _made_of(config, rows))
    _extract(config, settings, rows, staging, labels)
    finished = finish(staging, config.out, storage, labels, crop_size=config.face_policy.crop_size, rules=rules)
    if not finished.splits.get("train"):
        raise UserError(
            f"no crop for training came out of {_name(config)}; "
            f"videos without one: {finished.removed_videos or 'none'}, "
            f"frames left out: {finished.dropped_frames or 'none'}"
        )
    policies = config.frame_policy.model_dump_json() + config.face_policy.model_dump_json()
    manifest = DatasetManifest(
        frame_policy=config.frame_policy,
        face_policy=config.face_policy,
        label_rules=None if config.labels is None else config.label_rules,
        rules=rules,
        split_by=config.split_by,
        tasks=source.tasks,
        source=_name(config),
        num_rows=source.report.num_rows,
        num_videos=rows.num_rows,
        num_rows_removed=len(source.report.removed_rows),
        removed_rows=tuple(source.report.costs()),
        removed_videos=finished.removed_videos,
        dropped_frames=finished.dropped_frames,
        classes_before=source.classes_before,
        splits=finished.splits,
        parts=finished.parts,
        fingerprint=hashlib.sha256((policies + finished.digest).encode()).hexdigest(),
    )
    storage.put(join(config.out, REMOVED), _removed_table(source.report, finished.removals))
    storage.put(join(config.out, CARD), dataset_card(config.out, manifest, storage).encode())
    storage.put(join(config.out, MANIFEST), manifest.model_dump_json(indent=2).encode())
    staging.remove()
    return manifest


def _read_source(config: PrepareConfig, storage: Storage) -> CleanLabels:
    if (config.labels is None) == (config.fs2k is None):
        raise UserError("give one source: --labels TABLE (labelled videos) or --fs2k FOLDER (FS2K as published)")
    if config.fs2k is not None:
        if config.videos is not None:
            raise UserError("--videos belongs to --labels: FS2K's folder holds its images itself")
        rows = fs2k_folder(config.fs2k, config.modality)
        return CleanLabels(rows, ("fs2k",), RemovalReport(str(config.fs2k), num_rows=rows.num_rows), {})
    assert config.labels is not None
    locate = in_storage if config.videos is None else ingested(config.videos, storage)
    source = clean_labels(config.labels, storage, config.tasks, config.label_rules, locate)
    ids = source.rows.select(["creator_id", "video_id"]).to_pylist()
    # Frames of one video may part only when the split is by image: then the stage that sees frames decides.
    splits = [None if config.split_by == "image" else split_of(config.split_by, **row, frame_index=None) for row in ids]
    rows = source.rows.append_column("split", pa.array(splits, pa.string()))
    return CleanLabels(rows, source.tasks, source.report, source.classes_before)


def _name(config: PrepareConfig) -> str:
    return config.labels or f"{config.fs2k} ({'photos and sketches' if config.modality == 'both' else config.modality})"


def _made_of(config: PrepareConfig, rows: pa.Table) -> str:
    """What decides the staged crops, as text."""
    policies = (config.frame_policy, config.face_policy, config.limits)
    content = hashlib.sha256()
    for row in rows.to_pylist():
        content.update(repr(sorted(row.items())).encode())
    return "\n".join([*(policy.model_dump_json() for policy in policies), config.split_by, content.hexdigest()])


def _extract(config: PrepareConfig, settings: Settings, rows: pa.Table, staging: Staging, labels: list[str]) -> None:
    """Stage the crops of the videos that are not staged yet."""
    todo = rows.filter(pc.invert(pc.is_in(rows["video_id"], staging.video_ids())))
    num_before = rows.num_rows - todo.num_rows
    if num_before:
        console.print(f"going on: {num_before} of {rows.num_rows} videos are extracted already")
    if not todo.num_rows:
        return
    resources, cluster = fit(config.resources, settings.cluster, predicts=False)
    resources = resources.spread(todo.num_rows, cluster.num_cpus_now)
    extract = ExtractConfig(
        frame_policy=config.frame_policy,
        face_policy=config.face_policy,
        limits=config.limits,
        storage=settings.storage,
    )
    ds = extracted(ray.data.from_arrow(todo), extract, resources)
    stage = encode_stage(config.face_policy.crop_size, config.split_by)
    ds = ds.map_batches(stage, batch_format="pyarrow", batch_size=8, num_cpus=0.9)
    columns = [*_STAGED, *dict.fromkeys(["gender", *labels])]
    begin_preparing()
    seen, without = 0, 0
    with RunProgress("prepare", rows.num_rows) as progress:
        for block in arriving(ds):
            staging.add(block.select(columns))
            tell_prepared(block)
            seen += pc.sum(pc.fill_null(pc.less_equal(block["face"], 0), True)).as_py()
            without += block["crop"].null_count
            progress.update(num_before + seen, f"{without} without a crop")
    staging.flush()
    if seen != todo.num_rows:
        raise RuntimeError(f"{todo.num_rows} videos went in, {seen} came out")


def _removed_table(report: RemovalReport, removals: Iterable[tuple[str, str]]) -> bytes:
    """Every row that gave no crop: those of the label table by rule, and the videos by what extraction found."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "row", "column", "reason", "value"])
    name = report.file.rsplit("/", 1)[-1]
    for item in sorted(report.objections, key=lambda item: (item.row, item.column, item.reason)):
        writer.writerow([name, item.row, item.column, item.reason, item.value])
    for source, reason in removals:
        file, _, row = source.rpartition(":")
        writer.writerow([file, row, "", reason, ""])
    return text.getvalue().encode()


def print_manifest(manifest: DatasetManifest, out: str) -> None:
    """What the dataset holds, and what did not make it."""
    rows = Table(title=f"{manifest.source}: {manifest.num_rows} rows, {manifest.num_videos} usable videos")
    for name in ("rows removed", "number", "by this alone", "for example"):
        rows.add_column(name, justify="right" if name in ("number", "by this alone") else "left", overflow="fold")
    for cost in manifest.removed_rows:
        rows.add_row(cost.reason, str(cost.num_rows), str(cost.num_only), cost.examples[0])
    if manifest.removed_rows:
        console.print(rows)
    table = Table(title=f"crops dataset {out}: tasks {', '.join(manifest.tasks)}, split by {manifest.split_by}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, split in sorted(manifest.splits.items()):
        near = f", {split.num_near_duplicates} near-duplicates" if split.num_near_duplicates else ""
        table.add_row(
            f"crops in {name} ({split.num_videos} videos, {split.num_creators} creators{near})", str(split.num_crops)
        )
    for reason, number in manifest.removed_videos.items():
        table.add_row(f"videos without a crop: {reason}", str(number))
    for cause, number in manifest.dropped_frames.items():
        table.add_row(f"frames left out: {cause}", str(number))
    console.print(table)
    console.print(f"wrote {join(out, CARD)} and {join(out, REMOVED)}", highlight=False)
