"""The crops dataset on disk: Parquet parts of encoded crops with labels, and a manifest that is written last."""

import hashlib
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import UserError
from infra.storage import Storage, join
from infra.storage_base import ObjectNotFound
from models.faces.policy import FacePolicy
from models.tasks.base import Targets, Task
from models.video.sampling import FramePolicy
from ray_jobs.labels.removal import Cost
from ray_jobs.labels.rules import LabelRules
from ray_jobs.splits import SplitBy

MANIFEST = "dataset.json"
CARD = "card.html"
PEOPLE = "people.txt"  # beside the manifest, among a training run's artifacts
UNKNOWN_PEOPLE = "unknown"  # a line of it: the starting weights saw people whom nobody noted


class DatasetRules(BaseModel):
    """Which crops of the usable videos are kept: a section of the policy file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    one_person: bool = Field(True, description="Drop frames with several faces: a video's label speaks of one person.")
    near_duplicate_bits: int | None = Field(
        3,
        ge=0,
        le=7,
        description="Crops whose 64-bit perceptual hashes differ in at most so many bits are near-duplicates: marked "
        "within a split, removed from training where the other one is in another split. null: not compared.",
    )


class SplitStatistics(BaseModel):
    """What the crops of one split are like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_crops: int = Field(description="Crops in the split.")
    num_videos: int = Field(description="Videos they come from.")
    num_creators: int = Field(description="Creators of those videos; a video without one counts as its own.")
    num_near_duplicates: int = Field(description="Crops that look like an earlier one of the split; they stay, marked.")
    mean: tuple[float, float, float] = Field(description="Mean of each channel (R, G, B), 0 to 1.")
    std: tuple[float, float, float] = Field(description="Standard deviation of each channel, 0 to 1.")
    classes: dict[str, dict[str, int]] = Field(description="Label column, class (as text), number of crops.")
    quality: dict[str, tuple[float, ...]] = Field(description="5, 25, 50, 75 and 95% quantiles of each measure.")
    faces_per_frame: dict[int, int] = Field(description="Confident faces in the crop's frame, number of crops.")


class DatasetManifest(BaseModel):
    """What a crops dataset holds and how it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = Field(2, description="Format of the dataset.")
    frame_policy: FramePolicy = Field(description="Which frames the crops were taken from.")
    face_policy: FacePolicy = Field(description="How faces were chosen and cropped.")
    label_rules: LabelRules | None = Field(description="How the label table was cleaned; null for FS2K's folder.")
    rules: DatasetRules = Field(description="Which crops were kept.")
    split_by: SplitBy = Field(description="What the split keeps together.")
    tasks: tuple[str, ...] = Field(description="Tasks whose labels the dataset has.")
    source: str = Field(description="What it was made from.")
    num_rows: int = Field(description="Rows of the label table, or images of FS2K's folder.")
    num_videos: int = Field(description="Videos or images that were looked at: one for each usable row.")
    num_rows_removed: int = Field(description="Rows of the label table without a video of their own.")
    removed_rows: tuple[Cost, ...] = Field(description="Why, and what each rule cost.")
    removed_videos: dict[str, int] = Field(description="Videos that gave no crop, by reason.")
    dropped_frames: dict[str, int] = Field(description="Frames or crops that are not in the dataset, by cause.")
    classes_before: dict[str, dict[str, int]] = Field(
        description="Label column, class (as text), rows of the table with this label before any was removed."
    )
    splits: dict[str, SplitStatistics] = Field(description="What each split holds.")
    parts: dict[str, tuple[str, ...]] = Field(description="File names of each split.")
    fingerprint: str = Field(description="SHA-256 over policies, and ids, frames, splits and labels of all crops.")

    @property
    def num_crops(self) -> dict[str, int]:
        """Crops in each split."""
        return {name: split.num_crops for name, split in self.splits.items()}


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


def split_parts(root: str, manifest: DatasetManifest, split: str) -> list[str]:
    """The addresses of a split's parts; ``all`` means every split."""
    splits = manifest.parts if split == "all" else (split,)
    return [uri for name in splits for uri in part_uris(root, manifest, name)]


def groups_of(table: pa.Table) -> list[str]:
    """Whom each row is of: its creator, or the video itself where it has none."""
    pairs = zip(table["creator_id"].to_pylist(), table["video_id"].to_pylist(), strict=True)
    return [creator or video for creator, video in pairs]


def person_digests(table: pa.Table) -> set[str]:
    """Digests of the rows' creators and of their videos: what a scorer's run keeps of those it was made from.

    Both, since another dataset may know the creator of a video that this one does not. The ids are not in clear; who
    knows an id can see whether it is among them, which is what they are for.
    """
    names = {*table["creator_id"].to_pylist(), *table["video_id"].to_pylist()} - {None}
    return {digest_of(name) for name in names}


def digest_of(name: str) -> str:
    """Of a creator's or a video's id: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def read_people(root: str, manifest: DatasetManifest, storage: Storage) -> set[str]:
    """The `person_digests` of everybody whom training on the dataset looks at: its splits train and val."""
    found: set[str] = set()
    for split in ("train", "val"):
        for uri in part_uris(root, manifest, split):
            filesystem, path = storage.arrow_filesystem(uri)
            found |= person_digests(pq.read_table(path, filesystem=filesystem, columns=["creator_id", "video_id"]))
    return found
