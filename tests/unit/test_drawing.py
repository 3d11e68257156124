"""The drawn catalog: the detector finds its faces, its labels are what is drawn, and it repeats by seed."""

import csv
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import ValidationError

from models.faces.detect import build_detector
from models.faces.extract import extract_faces
from models.faces.policy import FacePolicy
from models.video.frames import Frame
from ray_jobs.drawing.attributes import FaceAttributes
from ray_jobs.drawing.catalog import DrawnCatalog, draw_catalog
from ray_jobs.drawing.video import draw_face, draw_scenery_video, draw_video

PERSON = FaceAttributes(
    hair=True,
    hair_color="brown",
    gender="female",
    earring=False,
    smile=False,
    frontal_face=True,
    style=0,
    score=80,
    skin=0.2,
)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DrawnCatalog:
    return draw_catalog(tmp_path_factory.mktemp("drawn"), 13, 2, 6, 7, num_frames=12)


def test_the_detector_finds_the_drawn_faces() -> None:
    rng = np.random.default_rng(0)
    pictures = [draw_face(FaceAttributes.random(rng), 240, rng) for _ in range(60)]
    found = build_detector(FacePolicy()).detect(pictures)
    assert sum(any(face.confidence > 0.9 for face in faces) for faces in found) >= 58


def test_a_turned_face_is_measured_as_turned() -> None:
    rng = np.random.default_rng(0)
    frames = {}
    for frontal in (True, False):
        people = [FaceAttributes.random(rng).model_copy(update={"frontal_face": frontal}) for _ in range(20)]
        frames[frontal] = [Frame(draw_face(person, 240, rng), i, i / 25) for i, person in enumerate(people)]
    detector = build_detector(FacePolicy())
    yaws = {key: abs(extract_faces(value, FacePolicy(), detector).yaw_deg) for key, value in frames.items()}
    assert np.median(yaws[True]) < 15
    assert np.median(yaws[False]) > 30


@pytest.mark.parametrize(
    "change",
    [
        {"hair": False, "hair_color": "none"},
        {"hair_color": "golden"},
        {"gender": "male"},
        {"earring": True},
        {"smile": True},
        {"frontal_face": False},
        {"style": 1},
        {"style": 2},
        {"score": 95},
        {"gender": "male", "beard": True},
    ],
)
def test_every_attribute_changes_the_picture_of_the_same_person(change: dict[str, object]) -> None:
    plain = draw_face(PERSON, 200, np.random.default_rng(3)).astype(int)
    changed = draw_face(PERSON.model_copy(update=change), 200, np.random.default_rng(3)).astype(int)
    # A change that is seen: more than 30 pixels that differ by more than 30.
    assert (abs(plain - changed).max(axis=2) > 30).sum() > 30


def test_hair_and_its_colour_must_agree() -> None:
    with pytest.raises(ValidationError, match="hair=False does not go with hair_color=brown"):
        FaceAttributes.model_validate(PERSON.model_dump() | {"hair": False})


def test_another_moment_keeps_the_body() -> None:
    rng = np.random.default_rng(0)
    moments = [PERSON.another_moment(rng) for _ in range(30)]
    assert {(m.hair, m.hair_color, m.gender, m.skin, m.beard) for m in moments} == {
        (True, "brown", "female", 0.2, False)
    }
    assert {m.style for m in moments} == {0, 1, 2}
    assert len({m.score for m in moments}) > 10


def test_a_video_has_the_frames_size_and_motion_asked_for(tmp_path: Path) -> None:
    draw_video(tmp_path / "a.mp4", PERSON, np.random.default_rng(1), num_frames=31, size=(320, 240))
    pictures = decoded(tmp_path / "a.mp4")
    assert len(pictures) == 31
    assert pictures[0].shape == (240, 320, 3)
    assert abs(pictures[0].astype(int) - pictures[30]).mean() > 2
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        keyframes = [packet.pts for packet in container.demux(stream) if packet.is_keyframe and packet.pts is not None]
        assert len(keyframes) == 2


def test_other_codecs(tmp_path: Path) -> None:
    draw_video(tmp_path / "a.mp4", PERSON, np.random.default_rng(1), num_frames=6, size=(160, 120), codec="mpeg4")
    assert len(decoded(tmp_path / "a.mp4")) == 6


def test_scenery_has_no_face(tmp_path: Path) -> None:
    detector = build_detector(FacePolicy())
    for seed in range(3):
        draw_scenery_video(tmp_path / "s.mp4", np.random.default_rng(seed), num_frames=30)
        pictures = decoded(tmp_path / "s.mp4")
        assert len(pictures) == 30
        assert detector.detect(pictures[::10]) == [[], [], []]


def test_the_catalog_lists_every_kind_of_video(drawn: DrawnCatalog) -> None:
    catalog = rows(drawn.catalog)
    kinds = Counter(row["video_id"].split("-")[0] for row in catalog)
    assert kinds == {
        "face": 13,
        "scenery": 2,
        **dict.fromkeys(["truncated", "zeroed", "text", "empty", "sound", "missing"], 1),
    }
    assert len({row["video_id"] for row in catalog}) == len(catalog)
    absent = [row["video_id"] for row in catalog if not (drawn.catalog.parent / row["uri"]).exists()]
    assert absent == ["missing-0005"]
    minors = [row["video_id"] for row in catalog if row["age"] and int(row["age"]) < 18]
    assert minors == ["face-0012"]


def test_broken_videos_are_broken_each_in_its_way(drawn: DrawnCatalog) -> None:
    folder = drawn.catalog.parent / "videos"
    assert (folder / "empty-0003.mp4").stat().st_size == 0
    for name in ("text-0002.mp4", "empty-0003.mp4"):
        with pytest.raises(av.FFmpegError):
            av.open(str(folder / name))
    with av.open(str(folder / "sound-0004.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 15_000
    for name in ("truncated-0000.mp4", "zeroed-0001.mp4"):
        with av.open(str(folder / name)) as container:
            assert container.streams.video[0].frames == 60
            decodable = 0
            try:
                for frame in container.decode(video=0):
                    decodable += not frame.is_corrupt
            except av.FFmpegError:
                pass
            assert decodable < 60


def test_labels_are_what_users_see_and_creators_keep_their_looks(drawn: DrawnCatalog) -> None:
    labels, catalog = rows(drawn.labels), {row["video_id"]: row for row in rows(drawn.catalog)}
    assert len(labels) == drawn.num_labelled == 9
    looks: dict[str, set[tuple[str, ...]]] = {}
    for row in labels:
        assert catalog[row["video_id"]].items() >= {"uri": row["uri"], "creator_id": row["creator_id"]}.items()
        assert 60 <= int(row["score"]) <= 99
        assert {row[name] for name in ("hair", "earring", "smile", "frontal_face")} <= {"true", "false"}
        assert (row["hair_color"] == "none") == (row["hair"] == "false")
        assert row["gender"] in ("male", "female")
        assert row["style"] in ("0", "1", "2")
        looks.setdefault(row["creator_id"], set()).add((row["hair"], row["hair_color"], row["gender"]))
    assert len(looks) == 3
    assert all(len(look) == 1 for look in looks.values())
    assert "face-0012" not in {row["video_id"] for row in labels}


def test_the_truth_covers_every_drawn_face_and_agrees_with_the_labels(drawn: DrawnCatalog) -> None:
    truth = {row["video_id"]: row for row in rows(drawn.truth)}
    assert sorted(truth) == [f"face-{number:04d}" for number in range(13)]
    assert truth["face-0012"]["age"] == "12"
    for row in rows(drawn.labels):
        assert truth[row["video_id"]].items() >= row.items()


def test_the_same_seed_draws_the_same_files(drawn: DrawnCatalog, tmp_path: Path) -> None:
    again = draw_catalog(tmp_path, 13, 2, 6, 7, num_frames=12)
    files = {
        p.relative_to(drawn.catalog.parent): p.read_bytes() for p in drawn.catalog.parent.rglob("*") if p.is_file()
    }
    assert files == {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = draw_catalog(tmp_path / "other", 13, 0, 0, 8, num_frames=2)
    assert other.labels.read_bytes() != again.labels.read_bytes()
