"""The crops dataset on disk: Parquet parts of encoded crops with labels, and a manifest that is written last."""

import hashlib
import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import UserError
from infra.storage import Storage, join
from infra.storage_base import ObjectNotFound
from models.faces.policy import FacePolicy
from models.tasks.base import Targets, Task
from models.video.sampling import FramePolicy

MANIFEST = "dataset.json"
ROWS_PER_PART = 5_000
# Full-resolution chroma at quality 95: a quarter of PNG's bytes, and no difference that a score could see.
_JPEG = {"quality": 95, "subsampling": 0}


class DatasetManifest(BaseModel):
    """What a crops dataset holds and how it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = Field(1, description="Format of the dataset.")
    frame_policy: FramePolicy = Field(description="Which frames the crops were taken from.")
    face_policy: FacePolicy = Field(description="How faces were chosen and cropped.")
    tasks: tuple[str, ...] = Field(description="Tasks whose labels the dataset has.")
    source: str = Field(description="What it was made from.")
    num_videos: int = Field(description="Videos or images that were looked at.")
    num_crops: dict[str, int] = Field(description="Crops in each split.")
    removed: dict[str, int] = Field(description="Videos that gave no crop, by reason.")
    dropped_frames: dict[str, int] = Field(description="Frames without a usable face, by cause.")
    parts: dict[str, tuple[str, ...]] = Field(description="File names of each split.")
    fingerprint: str = Field(description="SHA-256 over policies, ids, frames, splits and labels of all rows, sorted.")


def encode_crop(crop: np.ndarray) -> bytes:
    """A crop uint8[S, S, 3] as JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "JPEG", **_JPEG)
    return buffer.getvalue()


def decode_crop(data: bytes) -> np.ndarray:
    """The crop uint8[S, S, 3] of JPEG bytes."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class DatasetWriter:
    """Writes rows into parts by split; the dataset exists for readers only once ``finish`` wrote the manifest."""

    def __init__(self, root: str, storage: Storage, label_columns: list[str]) -> None:
        self._root, self._storage = root, storage
        self._labels = label_columns
        self._pending: dict[str, list[pa.Table]] = {}
        self._parts: dict[str, list[str]] = {}
        self._num_crops: Counter[str] = Counter()
        self._hashes: list[bytes] = []
        if storage.exists(join(root, MANIFEST)):
            raise UserError(f"{root} holds a crops dataset already; give another folder, or delete it first")

    def add(self, rows: pa.Table) -> None:
        """Rows with ``crop`` (bytes), ``split``, ``video_id``, ``frame_index`` and the label columns."""
        keys = rows.select(["video_id", "frame_index", "face", "split", *self._labels])
        self._hashes += [hashlib.sha256(repr(sorted(row.items())).encode()).digest() for row in keys.to_pylist()]
        for split in rows["split"].unique().to_pylist():
            part = rows.filter(pc.equal(rows["split"], split))
            self._num_crops[split] += part.num_rows
            pending = self._pending.setdefault(split, [])
            pending.append(part)
            if sum(table.num_rows for table in pending) >= ROWS_PER_PART:
                self._write_part(split)

    def finish(
        self,
        *,
        frame_policy: FramePolicy,
        face_policy: FacePolicy,
        tasks: tuple[str, ...],
        source: str,
        num_videos: int,
        removed: dict[str, int],
        dropped_frames: dict[str, int],
    ) -> DatasetManifest:
        """Write what is pending and the manifest.

        Raises:
            UserError: There is no crop to train on.
        """
        for split in list(self._pending):
            self._write_part(split)
        if not self._num_crops["train"]:
            raise UserError(
                f"no crop for training came out of {source}; removed: {removed or 'nothing'}, "
                f"frames without a usable face: {dropped_frames or 'none'}"
            )
        digest = hashlib.sha256((frame_policy.model_dump_json() + face_policy.model_dump_json()).encode())
        for row in sorted(self._hashes):
            digest.update(row)
        manifest = DatasetManifest(
            frame_policy=frame_policy,
            face_policy=face_policy,
            tasks=tasks,
            source=source,
            num_videos=num_videos,
            num_crops=dict(self._num_crops),
            removed=removed,
            dropped_frames=dropped_frames,
            parts={split: tuple(names) for split, names in self._parts.items()},
            fingerprint=digest.hexdigest(),
        )
        self._storage.put(join(self._root, MANIFEST), manifest.model_dump_json(indent=2).encode())
        return manifest

    def _write_part(self, split: str) -> None:
        pending = self._pending.pop(split, [])
        if not pending:
            return
        buffer = io.BytesIO()
        table = pa.concat_tables(pending, promote_options="permissive").sort_by(
            [("video_id", "ascending"), ("frame_index", "ascending"), ("face", "ascending")]
        )
        pq.write_table(table, buffer, row_group_size=500)
        names = self._parts.setdefault(split, [])
        names.append(f"{split}-{len(names):05d}.parquet")
        self._storage.put(join(self._root, names[-1]), buffer.getvalue())


def read_manifest(root: str, storage: Storage) -> DatasetManifest:
    """The manifest of a crops dataset.

    Raises:
        UserError: There is no dataset, it was not finished, or it is of another format.
    """
    uri = join(root, MANIFEST)
    try:
        data = storage.read_all(uri)
    except ObjectNotFound as error:
        raise UserError(f"{root}: no crops dataset there (no {MANIFEST}); make one with the verb prepare") from error
    try:
        return DatasetManifest.model_validate_json(data)
    except ValueError as error:
        raise UserError(f"{uri}: not a dataset manifest of this version: {error}") from error


def part_uris(root: str, manifest: DatasetManifest, split: str) -> list[str]:
    """The Parquet files of a split."""
    return [join(root, name) for name in manifest.parts.get(split, ())]


def read_targets(root: str, manifest: DatasetManifest, task: Task, storage: Storage, split: str = "train") -> Targets:
    """The targets int64[n, H] of a split, without its crops."""
    tables = []
    for uri in part_uris(root, manifest, split):
        filesystem, path = storage.arrow_filesystem(uri)
        tables.append(pq.read_table(path, filesystem=filesystem, columns=list(task.label_columns)))
    table = pa.concat_tables(tables, promote_options="permissive")
    return task.encode_labels({name: table[name].to_pylist() for name in task.label_columns})
