"""The two detectors, on drawn faces and, where it is there, on real pictures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from models.faces.detect import Face, FaceDetector, build_detector
from models.faces.mtcnn import MtcnnDetector
from models.faces.policy import FacePolicy
from models.faces.quality import yaw_deg
from ray_jobs.drawing.attributes import FaceAttributes
from ray_jobs.drawing.video import draw_face

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
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


def drawn(size: int, seed: int = 0) -> np.ndarray:
    return draw_face(PERSON, size, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def mtcnn() -> FaceDetector:
    return build_detector(FacePolicy())


def assert_same(found: list[Face], expected: list[Face], tolerance: float = 0.0) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.box, b.box, atol=tolerance)
        np.testing.assert_allclose(a.landmarks, b.landmarks, atol=tolerance)


def test_mtcnn_finds_a_face_with_landmarks_in_their_places(mtcnn: FaceDetector) -> None:
    [[face]] = mtcnn.detect([drawn(240)])
    assert face.confidence > 0.9
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    x0, y0, x1, y1 = face.box
    assert ((face.landmarks > (x0, y0)) & (face.landmarks < (x1, y1))).all()


def test_images_of_several_sizes_are_answered_in_their_order(mtcnn: FaceDetector) -> None:
    blank = np.full((240, 240, 3), 128, dtype=np.uint8)
    images = [drawn(240), blank, drawn(200), drawn(240, seed=1), np.zeros((16, 400, 3), dtype=np.uint8)]
    found = mtcnn.detect(images)
    assert [len(faces) for faces in found] == [1, 0, 1, 1, 0]
    for image, faces in zip(images, found, strict=True):
        # A batch of two sums in another order than a batch of one: a hundredth of a pixel.
        assert_same(faces, mtcnn.detect([image])[0], tolerance=0.01)


def test_the_same_call_gives_the_same_faces(mtcnn: FaceDetector) -> None:
    images = [drawn(240), drawn(240, seed=1)]
    first = mtcnn.detect(images)
    mtcnn.detect([drawn(200)])
    for faces, expected in zip(mtcnn.detect(images), first, strict=True):
        assert_same(faces, expected)


def test_more_images_than_a_batch_holds(mtcnn: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [drawn(160, seed=seed) for seed in range(5)]
    whole = mtcnn.detect(images)
    monkeypatch.setattr("models.faces.mtcnn._MAX_BATCH_PIXELS", 2 * 160 * 160)
    for faces, expected in zip(mtcnn.detect(images), whole, strict=True):
        assert_same(faces, expected, tolerance=0.01)


def test_several_faces_come_largest_first(mtcnn: FaceDetector) -> None:
    picture = np.full((240, 400, 3), 200, dtype=np.uint8)
    picture[:160, :160], picture[:, 160:] = drawn(160), drawn(240)
    [faces] = mtcnn.detect([picture])
    assert len(faces) == 2
    assert faces[0].box[0] > 160 > faces[1].box[2]


def test_no_images_no_faces(mtcnn: FaceDetector) -> None:
    assert mtcnn.detect([]) == []


@pytest.mark.parametrize("shape", [(1, 1), (31, 500), (32, 32), (33, 640), (640, 33)])
def test_tiny_and_narrow_images_are_not_an_error(mtcnn: FaceDetector, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert mtcnn.detect([noise]) == [[]]


def test_hog_finds_a_face_without_landmarks() -> None:
    pytest.importorskip("dlib", reason="dlib-bin is not installed")
    detector = build_detector(FacePolicy(detector="dlib_hog"))
    [[face], nothing] = detector.detect([drawn(360), np.full((240, 240, 3), 128, dtype=np.uint8)])
    assert nothing == []
    assert face.landmarks is None
    assert 0.5 <= face.confidence <= 1
    # The middle of the drawn head, within a part of its size.
    [[by_mtcnn]] = MtcnnDetector().detect([drawn(360)])
    assert np.abs(face.box - by_mtcnn.box).max() < 0.35 * by_mtcnn.size_px


def test_hog_without_its_package_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match="install the package dlib-bin, or use detector=mtcnn"):
        build_detector(FacePolicy(detector="dlib_hog"))


def fs2k(kind: str, num: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Every n-th picture of FS2K's training half, and whether it is turned."""
    if not (DATA / "fs2k" / "anno_train.json").is_file():
        pytest.skip("FS2K is not beside the repository")
    annotations = json.loads((DATA / "fs2k" / "anno_train.json").read_text())[:: 1058 // num][:num]
    images = []
    for annotation in annotations:
        name = annotation["image_name"]
        if kind == "sketch":
            name = name.replace("photo", "sketch").replace("image", "sketch")
        [path] = (DATA / "fs2k" / kind).glob(f"{name}.*")
        images.append(np.asarray(Image.open(path).convert("RGB")))
    return images, np.array([annotation["frontal_face"] == 1 for annotation in annotations])


@pytest.mark.parametrize(("kind", "least"), [("photo", 0.99), ("sketch", 0.93)])
@pytest.mark.parametrize("name", ["mtcnn", "dlib_hog"])
def test_detection_rate_on_fs2k(kind: str, least: float, name: str) -> None:
    if name == "dlib_hog":
        pytest.importorskip("dlib", reason="dlib-bin is not installed")
    policy = FacePolicy.model_validate({"detector": name})
    images, turned = fs2k(kind, 50)
    usable = np.array(
        [any(f.confidence >= policy.min_confidence for f in faces) for faces in build_detector(policy).detect(images)]
    )
    assert usable[~turned].mean() >= least
    assert usable.mean() >= 0.9


def test_yaw_tells_turned_from_frontal_faces_on_fs2k(mtcnn: FaceDetector) -> None:
    images, turned = fs2k("photo", 80)
    yaws = np.array([abs(yaw_deg(faces[0].landmarks)) for faces in mtcnn.detect(images)])
    # The chance that a turned face has the larger yaw: the area under the ROC curve.
    assert (yaws[turned][:, None] > yaws[~turned][None, :]).mean() > 0.9
    assert np.median(yaws[~turned]) < 30 < np.median(yaws[turned])
