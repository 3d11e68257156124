"""The crops dataset: complete or absent, the same bytes in any order, near-duplicates, ranks, exact statistics."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.errors import UserError
from infra.storage import Storage
from models.faces.policy import FacePolicy
from models.tasks.base import get_task
from models.video.sampling import FramePolicy
from ray_jobs.crops.dataset import (
    DatasetManifest,
    DatasetRules,
    part_uris,
    read_manifest,
    read_targets,
)
from ray_jobs.crops.finishing import Finished, finish
from ray_jobs.crops.jpeg import decode_crop, encode_crop
from ray_jobs.crops.staging import Staging
from ray_jobs.labels.removal import Cost
from ray_jobs.reports.dataset import dataset_card
from ray_jobs.stages.encode import CROP_FIELDS, encode_stage
from ray_jobs.stages.extract import EXTRACT_FIELDS

SIZE = 32
COLUMNS = ["video_id", "creator_id", "age", "remarks", "source", "gender", "split", "reason", "num_faces", "dropped"]
COLUMNS += [field.name for field in CROP_FIELDS] + ["score"]


def picture(seed: int) -> np.ndarray:
    """A smooth picture that no other seed's looks like."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(rough).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def video(
    video_id: str,
    pictures: list[np.ndarray],
    *,
    score: int | None = 80,
    split: str | None = "train",
    faces_in_frame: int = 1,
    reason: str | None = None,
    creator: str | None = None,
) -> pa.Table:
    """A video as extraction leaves it: one face in each of its frames 0, 50, 100, …"""
    faces = [
        {"frame_index": 50 * number, "pts_s": 2.0 * number, "box": [0, 0, 1, 1], "faces_in_frame": faces_in_frame}
        | dict.fromkeys(("confidence", "size_px", "sharpness", "brightness"), 0.5)
        | dict.fromkeys(("yaw_deg", "roll_deg"), None)
        for number in range(len(pictures))
    ]
    values: dict[str, object] = dict.fromkeys(field.name for field in EXTRACT_FIELDS)
    values |= {"reason": reason, "num_faces": len(pictures), "faces": faces, "dropped": [("blurred", 1)]}
    values["crops"] = b"".join(crop.tobytes() for crop in pictures)
    columns = {
        "video_id": pa.array([video_id]),
        "creator_id": pa.array([creator], pa.string()),
        "age": pa.nulls(1, pa.float32()),
        "remarks": pa.array([["smoking"]], pa.list_(pa.string())),
        "gender": pa.array(["male"], pa.string()),
        "source": pa.array([f"labels.csv:{video_id}"]),
        "split": pa.array([split], pa.string()),
        "score": pa.array([score], pa.int64()),
    }
    columns |= {field.name: pa.array([values[field.name]], field.type) for field in EXTRACT_FIELDS}
    return pa.table(columns)


def build(root: Path, videos: list[pa.Table], *, split_by: str = "creator", **rules: object) -> Finished:
    staging = Staging(str(root), Storage(), "test")
    encode = encode_stage(SIZE, split_by)
    for table in videos:
        staging.add(encode(table).select(COLUMNS))
    staging.flush()
    found = finish(staging, str(root), Storage(), ["score"], crop_size=SIZE, rules=DatasetRules.model_validate(rules))
    staging.remove()
    return found


def read(root: Path, found: Finished, split: str = "train") -> list[dict[str, object]]:
    return [row for name in found.parts.get(split, ()) for row in pq.read_table(root / name).to_pylist()]


def test_a_row_has_the_video_the_face_the_label_and_a_picture(tmp_path: Path) -> None:
    crop = picture(1)
    (row,) = read(tmp_path, build(tmp_path, [video("a", [crop], score=77, creator="c")]))
    wanted = {"video_id": "a", "creator_id": "c", "frame_index": 0, "face": 0, "score": 77, "rank_score": 0}
    wanted |= {"remarks": ["smoking"], "source": "labels.csv:a", "gender": "male", "near_duplicate_of": None}
    assert {name: row[name] for name in wanted} == wanted
    assert np.abs(decode_crop(row["crop"]).astype(int) - crop).mean() < 4


def test_the_same_videos_in_any_order_and_any_blocks_give_the_same_bytes(tmp_path: Path) -> None:
    videos = [
        video(f"v{number}", [picture(10 * number + frame) for frame in range(3)], score=60 + number % 3, split=None)
        for number in range(30)
    ]
    shuffled = [videos[index] for index in np.random.default_rng(0).permutation(len(videos))]
    one = build(tmp_path / "1", videos)
    other = build(tmp_path / "2", [pa.concat_tables(shuffled)])
    assert one == other
    for name in [name for names in one.parts.values() for name in names]:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    changed = build(tmp_path / "3", [video("v0", [picture(0)], score=99), *videos[1:]])
    assert changed.digest != one.digest


def test_frames_of_several_people_are_dropped_and_counted(tmp_path: Path) -> None:
    videos = [video("a", [picture(1)]), video("b", [picture(2), picture(3)], faces_in_frame=2)]
    found = build(tmp_path / "1", videos)
    assert [row["video_id"] for row in read(tmp_path / "1", found)] == ["a"]
    assert found.removals == [("labels.csv:b", "several_people")]
    assert found.dropped_frames == {"blurred": 2, "several_people": 2}
    assert len(read(tmp_path / "2", build(tmp_path / "2", videos, one_person=False))) == 3


def test_every_video_without_a_crop_is_accounted_for(tmp_path: Path) -> None:
    videos = [video("a", [picture(1)]), video("b", [], reason="truncated"), video("c", [])]
    found = build(tmp_path, videos)
    assert found.removed_videos == {"no_face": 1, "truncated": 1}
    assert found.removals == [("labels.csv:b", "truncated"), ("labels.csv:c", "no_face")]


def slightly_changed(crop: np.ndarray) -> np.ndarray:
    return np.clip(crop.astype(int) + 3, 0, 255).astype(np.uint8)


def test_near_duplicates_are_marked_within_a_split_and_leave_training_across(tmp_path: Path) -> None:
    videos = [
        video("a", [picture(1), slightly_changed(picture(1)), picture(2)]),
        video("b", [slightly_changed(picture(2)), picture(3)], split="val"),
        video("c", [picture(3)], split="train"),
    ]
    found = build(tmp_path / "1", videos)
    train, val = read(tmp_path / "1", found), read(tmp_path / "1", found, "val")
    assert [(row["video_id"], row["frame_index"], row["near_duplicate_of"]) for row in train] == [
        ("a", 0, None),
        ("a", 50, "a#0#0"),
    ]
    assert [row["near_duplicate_of"] for row in val] == [None, None]
    assert found.dropped_frames["near_duplicate_of_other_split"] == 2
    assert found.removals == [("labels.csv:c", "near_duplicate_of_other_split")]
    assert found.splits["train"].num_near_duplicates == 1
    kept = build(tmp_path / "2", videos, near_duplicate_bits=None)
    assert kept.splits["train"].num_crops == 4


@pytest.mark.parametrize("bits", [0, 1, 3, 7])
def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(tmp_path: Path, bits: int) -> None:
    """Bands of bits are only a way to find them."""
    pictures = [picture(number // 4).astype(int) for number in range(80)]
    noise = np.random.default_rng(1)
    noisy = [np.clip(crop + noise.normal(0, 6, crop.shape), 0, 255).astype(np.uint8) for crop in pictures]
    found = build(tmp_path, [video("a", noisy)], near_duplicate_bits=bits)
    rows = read(tmp_path, found)
    hashes = [int(row["perceptual_hash"]) for row in rows]
    wanted = [
        next(
            (f"a#{50 * first}#{first}" for first in range(row) if (hashes[first] ^ hashes[row]).bit_count() <= bits),
            None,
        )
        for row in range(len(rows))
    ]
    assert [row["near_duplicate_of"] for row in rows] == wanted
    assert any(wanted)


def test_ranks_number_each_class_of_each_split(tmp_path: Path) -> None:
    videos = [
        video(f"v{number}", [picture(2 * number), picture(2 * number + 1)], score=60 + number % 2, split=None)
        for number in range(40)
    ]
    found = build(tmp_path, [*videos, video("x", [picture(1000)], score=None)], near_duplicate_bits=None)
    for split in ("train", "val"):
        rows = read(tmp_path, found, split)
        for score, number in Counter(row["score"] for row in rows).items():
            ranks = sorted(row["rank_score"] for row in rows if row["score"] == score)
            assert ranks == ([None] if score is None else list(range(number)))
    assert found.splits["train"].classes == {
        "score": {str(score): sum(row["score"] == score for row in read(tmp_path, found)) for score in (60, 61)}
    }


def test_mean_and_deviation_are_those_of_all_training_pixels(tmp_path: Path) -> None:
    found = build(tmp_path, [video(str(number), [picture(number)]) for number in range(20)])
    pixels = np.stack([decode_crop(row["crop"]) for row in read(tmp_path, found)])
    np.testing.assert_allclose(found.splits["train"].mean, pixels.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(found.splits["train"].std, pixels.std(axis=(0, 1, 2)) / 255, rtol=1e-9)


def test_frames_of_a_video_part_only_by_image(tmp_path: Path) -> None:
    videos = [
        video(f"v{number}", [picture(9 * number + frame) for frame in range(9)], split=None) for number in range(9)
    ]
    found = build(tmp_path, videos, split_by="image")
    sides = {split: {row["video_id"] for row in read(tmp_path, found, split)} for split in ("train", "val")}
    assert sides["train"] & sides["val"]


def test_a_run_that_broke_off_goes_on_with_whole_videos(tmp_path: Path) -> None:
    encode = encode_stage(SIZE, "creator")
    first, second = (encode(video(name, [picture(1), picture(2)])).select(COLUMNS) for name in ("a", "b"))
    staging = Staging(str(tmp_path), Storage(), "test")
    staging.add(first)
    staging.add(second.slice(0, 1))  # the other half never comes
    staging.flush()
    again = Staging(str(tmp_path), Storage(), "test")
    assert again.video_ids().to_pylist() == ["a"]
    again.add(second.slice(1))
    again.add(second.slice(0, 1))
    again.flush()
    assert sorted(again.video_ids().to_pylist()) == ["a", "b"]
    with pytest.raises(UserError, match="made of other labels or policies"):
        Staging(str(tmp_path), Storage(), "another")
    again.remove()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_finished_dataset_is_not_overwritten_and_an_unfinished_one_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no crops dataset there"):
        read_manifest(str(tmp_path), Storage())
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="holds a crops dataset already"):
        Staging(str(tmp_path), Storage(), "test")
    with pytest.raises(UserError, match="not a dataset manifest of this version"):
        read_manifest(str(tmp_path), Storage())


def test_targets_are_read_without_crops(tmp_path: Path) -> None:
    found = build(tmp_path, [video("a", [picture(1)], score=70), video("b", [picture(2)], score=90)])
    dataset = SimpleNamespace(parts=found.parts)
    assert [Path(uri).name for uri in part_uris(str(tmp_path), dataset, "train")] == list(found.parts["train"])
    targets = read_targets(str(tmp_path), dataset, get_task("attractiveness"), Storage())
    assert targets.tolist() == [[10], [30]]


def test_encoding_changes_a_crop_by_little() -> None:
    gradient = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    assert np.abs(decode_crop(encode_crop(gradient)).astype(int) - gradient).max() <= 6


def manifest_of(found: Finished, **values: object) -> DatasetManifest:
    given: dict[str, object] = {
        "frame_policy": FramePolicy(),
        "face_policy": FacePolicy(crop_size=SIZE),
        "label_rules": None,
        "rules": DatasetRules(),
        "split_by": "creator",
        "tasks": ("attractiveness",),
        "source": "labels.csv",
        "num_rows": 5,
        "num_videos": 3,
        "num_rows_removed": 2,
        "removed_rows": (Cost(reason="minor", num_rows=2, num_only=1, examples=("row 7, 备注: '<儿童>'",)),),
        "removed_videos": found.removed_videos,
        "dropped_frames": found.dropped_frames,
        "classes_before": {"score": {"70": 4, "90": 1}},
        "splits": found.splits,
        "parts": found.parts,
        "fingerprint": "f" * 64,
    }
    return DatasetManifest.model_validate(given | values)


def test_the_card_says_what_was_left_out_and_shows_a_face_of_each_class(tmp_path: Path) -> None:
    found = build(tmp_path, [video("a", [picture(1)], score=70), video("b", [picture(2)], score=90), video("c", [])])
    manifest = manifest_of(found)
    assert DatasetManifest.model_validate_json(manifest.model_dump_json()) == manifest
    html = dataset_card(str(tmp_path), manifest, Storage())
    assert html == dataset_card(str(tmp_path), manifest, Storage())
    assert html.count('src="data:image/jpeg;base64,') == 2
    assert '<tr data-reason="minor">' in html
    assert "&lt;儿童&gt;" in html
    assert "<script" not in html
    assert "no face" in html
