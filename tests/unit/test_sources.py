"""Labelled material: FS2K's folder with its quirks, and clean label tables."""

import json
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import Storage
from ray_jobs.sources import fs2k_folder, is_validation, labelled_table

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
    with pytest.raises(UserError, match="image0110: no such image"):
        fs2k_folder(tmp_path, "photo")
    (tmp_path / "anno_train.json").write_text(json.dumps([RECORD | {"smile": 3}]))
    with pytest.raises(UserError, match=r"entry 0.*smile"):
        fs2k_folder(tmp_path, "photo")


@pytest.mark.skipif(not SHARED_FS2K.is_dir(), reason="the FS2K images are not on this machine")
@pytest.mark.parametrize("modality", ["photo", "sketch"])
def test_the_published_training_half_is_read_whole(modality: str) -> None:
    rows = fs2k_folder(SHARED_FS2K, modality)  # type: ignore[arg-type]
    assert rows.num_rows == 1058
    assert len(set(rows["uri"].to_pylist())) == 1058
    share = rows["split"].to_pylist().count("val") / rows.num_rows
    assert 0.12 < share < 0.22


def test_the_split_is_stable() -> None:
    found = [number for number in range(60) if is_validation(f"creator-{number}")]
    assert found == [25, 26, 27, 32, 37, 39, 44, 46, 55]


def table(folder: Path, text: str) -> str:
    path = folder / "labels.csv"
    path.write_text(text)
    return str(path)


def test_a_clean_label_table(tmp_path: Path) -> None:
    uri = table(tmp_path, "video_id,uri,creator_id,age,score\n1,a.mp4,c1,30,78\n2,/b.mp4,,,99\n3,c.mp4,c2,12,60\n")
    rows, removed = labelled_table(uri, Storage(), [])
    assert removed == {"minor": 1}
    assert [(row["video_id"], row["uri"], row["group"], row["score"]) for row in rows.to_pylist()] == [
        ("1", f"{tmp_path}/a.mp4", "c1", 78),
        ("2", "/b.mp4", "2", 99),
    ]


def test_all_videos_of_a_creator_stand_on_one_side(tmp_path: Path) -> None:
    lines = [f"{number},{number}.mp4,creator-{number % 40},80" for number in range(200)]
    rows, _ = labelled_table(table(tmp_path, "\n".join(["video_id,uri,creator_id,score", *lines])), Storage(), [])
    sides: dict[str, set[str]] = {}
    for row in rows.to_pylist():
        sides.setdefault(row["group"], set()).add(row["split"])
    assert len(sides) == 40
    assert all(len(found) == 1 for found in sides.values())
    assert set().union(*sides.values()) == {"train", "val"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,uri,score\n1,a,78\n", "no column video_id"),
        ("video_id,uri\n1,a\n", "attractiveness needs score"),
        ("video_id,uri,score\n1,a,78\n1,b,79\n", "repeated.*'1'"),
        ("video_id,uri,score\n1,a,120\n", r"labels\.csv.*'score', row 0.*120"),
    ],
)
def test_a_bad_label_table_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        labelled_table(table(tmp_path, text), Storage(), [])
