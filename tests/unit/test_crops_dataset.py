"""The crops dataset: complete or absent, readable, with a fingerprint of its content."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.storage import Storage
from models.faces.policy import FacePolicy
from models.tasks.base import get_task
from models.video.sampling import FramePolicy
from ray_jobs.crops_dataset import (
    DatasetManifest,
    DatasetWriter,
    decode_crop,
    encode_crop,
    part_uris,
    read_manifest,
    read_targets,
)


def rows(*videos: tuple[str, str, int], size: int = 32) -> pa.Table:
    """One crop a video: (video_id, split, score)."""
    crop = encode_crop(np.full((size, size, 3), 128, np.uint8))
    return pa.table(
        {
            "video_id": [video for video, _, _ in videos],
            "split": [split for _, split, _ in videos],
            "frame_index": [0] * len(videos),
            "face": [0] * len(videos),
            "score": [score for _, _, score in videos],
            "crop": [crop] * len(videos),
        }
    )


def write(root: Path, *tables: pa.Table) -> DatasetManifest:
    writer = DatasetWriter(str(root), Storage(), ["score"])
    for table in tables:
        writer.add(table)
    return writer.finish(
        frame_policy=FramePolicy(),
        face_policy=FacePolicy(crop_size=32),
        tasks=("attractiveness",),
        source="labels.csv",
        num_videos=3,
        removed={"truncated": 1},
        dropped_frames={},
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = write(tmp_path / "d", rows(("a", "train", 70), ("b", "val", 80)), rows(("c", "train", 90)))
    found = read_manifest(str(tmp_path / "d"), Storage())
    assert found == written
    assert found.num_crops == {"train": 2, "val": 1}
    (part,) = part_uris(str(tmp_path / "d"), found, "train")
    assert pq.read_table(part)["video_id"].to_pylist() == ["a", "c"]
    targets = read_targets(str(tmp_path / "d"), found, get_task("attractiveness"), Storage())
    assert targets.tolist() == [[10], [30]]


def test_the_fingerprint_names_the_content_not_the_order(tmp_path: Path) -> None:
    a, b = rows(("a", "train", 70)), rows(("b", "val", 80))
    one = write(tmp_path / "1", a, b).fingerprint
    assert write(tmp_path / "2", b, a).fingerprint == one
    assert write(tmp_path / "3", a, rows(("b", "val", 81))).fingerprint != one


def test_a_dataset_is_not_overwritten_and_an_unfinished_one_is_none(tmp_path: Path) -> None:
    writer = DatasetWriter(str(tmp_path / "d"), Storage(), ["score"])
    writer.add(rows(("a", "train", 70)))
    with pytest.raises(UserError, match="no crops dataset there"):
        read_manifest(str(tmp_path / "d"), Storage())
    write(tmp_path / "d", rows(("a", "train", 70)))
    with pytest.raises(UserError, match="holds a crops dataset already"):
        DatasetWriter(str(tmp_path / "d"), Storage(), ["score"])


def test_a_dataset_without_training_crops_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="truncated"):
        write(tmp_path / "d", rows(("a", "val", 70)))


def test_encoding_changes_a_crop_by_little() -> None:
    gradient = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    assert np.abs(decode_crop(encode_crop(gradient)).astype(int) - gradient).max() <= 6
