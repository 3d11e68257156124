"""Build a crops dataset: labelled videos or images through the pipeline that scoring uses, into Parquet parts."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from rich.table import Table

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage
from models.faces.policy import FacePolicy
from models.tasks.base import get_task, task_names
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from ray_jobs.cluster import connect
from ray_jobs.console import RunProgress, console
from ray_jobs.crops_dataset import DatasetManifest, DatasetWriter
from ray_jobs.sources import Modality, fs2k_folder, labelled_table
from ray_jobs.stages.encode import encode_stage
from ray_jobs.stages.extract import ExtractConfig
from ray_jobs.stages.pipeline import Resources, arriving, extracted


@dataclass(frozen=True, slots=True)
class PrepareConfig:
    """One dataset: exactly one of ``labels`` and ``fs2k`` is the source."""

    out: str
    labels: str | None = None
    fs2k: Path | None = None
    modality: Modality = "photo"
    tasks: tuple[str, ...] = ()
    frame_policy: FramePolicy = field(default_factory=FramePolicy)
    face_policy: FacePolicy = field(default_factory=FacePolicy)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    resources: Resources = field(default_factory=Resources)


def run_prepare(config: PrepareConfig, settings: Settings) -> DatasetManifest:
    """Extract, encode, split and write the dataset; its manifest is written last, so a broken run leaves none.

    Raises:
        UserError: The source is unusable, the target holds a dataset already, or no crop came out.
    """
    storage = Storage(settings.storage)
    rows, removed, tasks = _read_source(config, storage)
    label_columns = [name for name in rows.column_names if name not in ("video_id", "uri", "etag", "group", "split")]
    writer = DatasetWriter(config.out, storage, label_columns)
    cluster = connect(settings.cluster)
    extract = ExtractConfig(
        frame_policy=config.frame_policy,
        face_policy=config.face_policy,
        limits=config.limits,
        storage=settings.storage,
    )
    ds = extracted(ray.data.from_arrow(rows), extract, config.resources.spread(rows.num_rows, cluster["CPU"]))
    ds = ds.map_batches(encode_stage(config.face_policy.crop_size), batch_format="pyarrow", batch_size=8, num_cpus=0.9)

    reasons, dropped, seen = Counter(removed), Counter[str](), 0
    with RunProgress("prepare", rows.num_rows) as progress:
        for block in arriving(ds):
            usable = block.filter(pc.is_valid(block["crop"]))
            if usable.num_rows:
                writer.add(_dataset_rows(usable, label_columns))
            for row in _one_per_video(block):
                seen += 1
                dropped.update(dict(row["dropped"] or []))
                if row["reason"] is not None or not row["num_faces"]:
                    reasons[row["reason"] or "no_face"] += 1
            progress.update(seen, f"{reasons.total()} without a crop")
    if seen != rows.num_rows:
        raise RuntimeError(f"{rows.num_rows} videos went in, {seen} came out")
    return writer.finish(
        frame_policy=config.frame_policy,
        face_policy=config.face_policy,
        tasks=tasks,
        source=config.labels or f"{config.fs2k} ({config.modality}s)",
        num_videos=rows.num_rows + sum(removed.values()),
        removed=dict(reasons),
        dropped_frames=dict(dropped),
    )


def _read_source(config: PrepareConfig, storage: Storage) -> tuple[pa.Table, dict[str, int], tuple[str, ...]]:
    if (config.labels is None) == (config.fs2k is None):
        raise UserError("give one source: --labels TABLE (labelled videos) or --fs2k FOLDER (FS2K as published)")
    if config.fs2k is not None:
        return fs2k_folder(config.fs2k, config.modality), {}, ("fs2k",)
    assert config.labels is not None
    rows, removed = labelled_table(config.labels, storage, config.tasks)
    tasks = tuple(name for name in task_names() if set(get_task(name).label_columns) <= set(rows.column_names))
    return rows, removed, tasks


def _dataset_rows(block: pa.Table, label_columns: list[str]) -> pa.Table:
    faces = ["face", "frame_index", "pts_s", "confidence", "size_px", "sharpness", "brightness", "yaw_deg", "roll_deg"]
    return block.select(["video_id", "group", "split", *faces, *label_columns, "crop"])


def _one_per_video(block: pa.Table) -> list[dict[str, Any]]:
    first = pc.fill_null(pc.less_equal(block["face"], 0), True)
    rows = block.filter(first).select(["reason", "num_faces", "dropped"])
    videos: list[dict[str, Any]] = rows.to_pylist()
    return videos


def print_manifest(manifest: DatasetManifest, out: str) -> None:
    """What the dataset holds, and what did not make it."""
    table = Table(title=f"crops dataset {out}: {manifest.num_videos} videos, tasks {', '.join(manifest.tasks)}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for split, number in sorted(manifest.num_crops.items()):
        table.add_row(f"crops in {split}", str(number))
    for reason, number in sorted(manifest.removed.items()):
        table.add_row(f"videos removed: {reason}", str(number))
    for cause, number in sorted(manifest.dropped_frames.items()):
        table.add_row(f"frames without a usable face: {cause}", str(number))
    console.print(table)
