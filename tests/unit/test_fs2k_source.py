"""FS2K's folder with its quirks: every pair is found, or named."""

import json
from pathlib import Path

import pytest

from infra.errors import UserError
from ray_jobs.fs2k_source import fs2k_folder

SHARED_FS2K = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "fs2k"
RECORD = {
    "image_name": "photo1/image0110",
    "skin_color": [1, 2],
    "lip_color": [1.0, 2.0, 3.0],
    "eye_color": [1.0, 2.0, 3.0],
    "hair": 0,
    "hair_color": 2,
    "gender": 0,
    "earring": 1,
    "smile": 0,
    "frontal_face": 1,
    "style": 0,
}


def make_fs2k(root: Path, names: dict[str, str], *, half: str = "train") -> Path:
    """A tiny FS2K: image name -> file suffix."""
    for name, suffix in names.items():
        for path in (
            root / "photo" / f"{name}{suffix}",
            root / "sketch" / f"{name.replace('photo', 'sketch').replace('image', 'sketch')}{suffix}",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    (root / f"anno_{half}.json").write_text(json.dumps([RECORD | {"image_name": name} for name in names]))
    return root


def test_values_are_as_users_see_them_and_suffixes_are_found(tmp_path: Path) -> None:
    root = make_fs2k(tmp_path, {"photo1/image0110": ".jpg", "photo2/image0001": ".JPG", "photo3/image0002": ".png"})
    rows = fs2k_folder(root, "photo").to_pylist()
    assert [Path(row["uri"]).name for row in rows] == ["image0110.jpg", "image0001.JPG", "image0002.png"]
    first = rows[0]
    assert (first["hair"], first["smile"], first["earring"], first["frontal_face"]) == (True, True, False, False)
    assert (first["gender"], first["hair_color"], first["style"]) == ("male", "red", 0)


def test_a_photo_and_its_sketch_stand_on_one_side(tmp_path: Path) -> None:
    root = make_fs2k(tmp_path, {f"photo1/image{number:04d}": ".jpg" for number in range(60)})
    photos, sketches = (fs2k_folder(root, modality).to_pylist() for modality in ("photo", "sketch"))
    assert [row["split"] for row in photos] == [row["split"] for row in sketches]
    assert {row["split"] for row in photos} == {"train", "val"}
    assert Path(sketches[7]["uri"]).parts[-3:] == ("sketch", "sketch1", "sketch0007.jpg")


def test_the_official_test_half_is_its_own_split(tmp_path: Path) -> None:
    make_fs2k(tmp_path, {"photo1/image0001": ".jpg"})
    make_fs2k(tmp_path, {"photo1/image0002": ".jpg"}, half="test")
    rows = fs2k_folder(tmp_path, "photo").to_pylist()
    assert [row["split"] for row in rows if row["video_id"] == "photo/photo1/image0002"] == ["test"]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no anno_train\.json"):
        fs2k_folder(tmp_path, "photo")
    (tmp_path / "anno_train.json").write_text("{")
    with pytest.raises(UserError, match=r"anno_train\.json is not JSON"):
        fs2k_folder(tmp_path, "photo")
    (tmp_path / "anno_train.json").write_text(json.dumps([RECORD]))
    with pytest.raises(UserError, match=r"1 images are missing.*photo of photo1/image0110 \(anno_train\.json, entry 0"):
        fs2k_folder(tmp_path, "photo")
    (tmp_path / "anno_train.json").write_text(json.dumps([RECORD | {"smile": 3}]))
    with pytest.raises(UserError, match=r"entry 0.*smile"):
        fs2k_folder(tmp_path, "photo")


def test_every_missing_image_is_named(tmp_path: Path) -> None:
    root = make_fs2k(tmp_path, {f"photo1/image{number:04d}": ".jpg" for number in range(4)})
    (root / "photo" / "photo1" / "image0001.jpg").unlink()
    (root / "sketch" / "sketch1" / "sketch0003.jpg").unlink()
    with pytest.raises(UserError, match=r"2 images.*photo of photo1/image0001.*sketch of photo1/image0003"):
        fs2k_folder(root, "both")


def test_both_sides_of_a_pair_have_its_labels_and_its_split(tmp_path: Path) -> None:
    root = make_fs2k(tmp_path, {f"photo1/image{number:04d}": ".jpg" for number in range(12)})
    rows = fs2k_folder(root, "both").to_pylist()
    assert [row["video_id"].partition("/")[0] for row in rows] == ["photo", "sketch"] * 12
    for photo, sketch in zip(rows[::2], rows[1::2], strict=True):
        assert (photo["creator_id"], photo["split"], photo["hair"]) == (
            sketch["creator_id"],
            sketch["split"],
            sketch["hair"],
        )


@pytest.mark.skipif(not SHARED_FS2K.is_dir(), reason="the FS2K images are not on this machine")
@pytest.mark.parametrize("modality", ["photo", "sketch"])
def test_the_published_training_half_is_read_whole(modality: str) -> None:
    rows = fs2k_folder(SHARED_FS2K, modality)  # type: ignore[arg-type]
    assert rows.num_rows == 1058
    assert len(set(rows["uri"].to_pylist())) == 1058
    share = rows["split"].to_pylist().count("val") / rows.num_rows
    assert 0.12 < share < 0.22
