"""From frames to crops: which faces count, and every frame accounted for."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.faces.crop import TEMPLATE
from models.faces.detect import Face
from models.faces.extract import FaceCrops, extract_faces
from models.faces.policy import FacePolicy
from models.video.frames import Frame


class Prepared:
    """A detector that finds what it was told to, image by image."""

    def __init__(self, faces: Sequence[Sequence[Face]]) -> None:
        self._faces = [list(found) for found in faces]

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        assert len(images) == len(self._faces)
        return self._faces


def frame(index: int = 0, value: int = 128, *, damaged: bool = False) -> Frame:
    noise = np.random.default_rng(index).integers(-20, 20, (120, 160, 3))
    return Frame(np.clip(value + noise, 0, 255).astype(np.uint8), index, index / 25, damaged)


def face(size: float = 60, confidence: float = 0.99, *, x: float = 30, turn: float = 0, tilt_deg: float = 0) -> Face:
    """A face with a box of a size at (x, 30); ``turn`` moves the nose, in eye distances."""
    points = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    points[2] += turn * (points[1] - points[0])
    points = points * np.exp(1j * np.radians(tilt_deg)) * size + complex(x, 30)
    return Face(
        box=np.array([x, 30, x + size, 30 + size], dtype=np.float32),
        confidence=confidence,
        landmarks=np.stack([points.real, points.imag], axis=1).astype(np.float32),
    )


SMALL = FacePolicy(crop_size=64)


def test_columns_say_where_each_crop_comes_from() -> None:
    frames = [frame(0), frame(50), frame(100)]
    crops = extract_faces(frames, SMALL, Prepared([[face(60)], [], [face(50, 0.95, tilt_deg=20)]]))
    assert len(crops) == 2
    assert crops.crops.shape == (2, 64, 64, 3)
    assert crops.frame_index.tolist() == [0, 100]
    assert crops.pts_s.tolist() == [0.0, 4.0]
    assert crops.size_px.tolist() == [60, 50]
    assert crops.box[0].tolist() == [30, 30, 90, 90]
    np.testing.assert_allclose(crops.confidence, [0.99, 0.95])
    np.testing.assert_allclose(crops.roll_deg, [0, 20], atol=0.5)
    np.testing.assert_allclose(crops.brightness, 0.5, atol=0.02)
    assert crops.dropped == {"no_face": 1}
    assert repr(crops) == "FaceCrops(crops=uint8[2, 64, 64, 3], dropped={'no_face': 1})"


@pytest.mark.parametrize(
    ("cause", "found", "limits"),
    [
        ("no_face", [], {}),
        ("low_confidence", [face(confidence=0.8), face(90, 0.5)], {}),
        ("too_small", [face(39)], {}),
        ("tilted", [face(tilt_deg=-31)], {"max_roll_deg": 30}),
        ("turned", [face(turn=-0.3)], {"max_yaw_deg": 30}),
        ("too_dark", [face()], {"min_brightness": 0.6}),
        ("too_bright", [face()], {"max_brightness": 0.4}),
        ("blurred", [face()], {"min_sharpness": 1e6}),
    ],
)
def test_a_frame_without_a_usable_face_is_counted_under_its_cause(
    cause: str, found: list[Face], limits: dict[str, float]
) -> None:
    policy = FacePolicy.model_validate({"crop_size": 64, **limits})
    crops = extract_faces([frame()], policy, Prepared([found]))
    assert crops.dropped == {cause: 1}
    assert crops.crops.shape == (0, 64, 64, 3)


def test_damaged_frames_are_not_even_looked_at() -> None:
    crops = extract_faces([frame(0, damaged=True), frame(50)], SMALL, Prepared([[face()]]))
    assert crops.frame_index.tolist() == [50]
    assert crops.dropped == {"damaged": 1}


def test_largest_takes_the_largest_confident_face() -> None:
    found = [face(90, 0.7), face(60, x=10), face(45, x=100)]
    crops = extract_faces([frame()], SMALL, Prepared([found]))
    assert crops.size_px.tolist() == [60]


def test_largest_takes_no_bystander_when_the_subject_is_unusable() -> None:
    policy = FacePolicy(crop_size=64, max_yaw_deg=30)
    crops = extract_faces([frame()], policy, Prepared([[face(70, turn=0.3), face(50, x=100)]]))
    assert crops.dropped == {"turned": 1}


def test_all_takes_every_usable_face_largest_first() -> None:
    policy = FacePolicy(crop_size=64, faces="all", max_yaw_deg=30)
    found = [[face(45, x=100), face(70, turn=0.3), face(60, x=10)], [face(70, turn=0.3), face(30)]]
    crops = extract_faces([frame(3), frame(9)], policy, Prepared(found))
    assert crops.size_px.tolist() == [60, 45]
    assert crops.frame_index.tolist() == [3, 3]
    assert crops.dropped == {"turned": 1}


def test_without_landmarks_angles_are_nan_and_nothing_is_dropped_for_them() -> None:
    bare = Face(box=np.array([10, 10, 70, 70], dtype=np.float32), confidence=0.9)
    crops = extract_faces([frame()], SMALL, Prepared([[bare]]))
    assert np.isnan(crops.landmarks).all()
    assert np.isnan([crops.yaw_deg[0], crops.roll_deg[0]]).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_frame_gives_a_face_or_is_counted_once(data: st.DataObject) -> None:
    one = st.builds(
        face,
        size=st.floats(25, 90),
        confidence=st.floats(0.7, 1),
        turn=st.floats(-0.4, 0.4),
        tilt_deg=st.floats(-60, 60),
    )
    damaged = data.draw(st.lists(st.booleans(), max_size=6))
    found = [data.draw(st.lists(one, max_size=3)) for is_damaged in damaged if not is_damaged]
    policy = FacePolicy(
        crop_size=32,
        faces=data.draw(st.sampled_from(["largest", "all"])),
        max_yaw_deg=data.draw(st.sampled_from([None, 20.0])),
        max_roll_deg=data.draw(st.sampled_from([None, 30.0])),
    )
    frames = [frame(10 * i, damaged=is_damaged) for i, is_damaged in enumerate(damaged)]
    crops = extract_faces(frames, policy, Prepared(found))
    assert len(set(crops.frame_index.tolist())) + sum(crops.dropped.values()) == len(frames)
    assert (crops.size_px >= policy.min_size_px).all()
    assert (crops.confidence >= np.float32(policy.min_confidence)).all()


def test_empty_has_the_policys_crop_size_and_no_rows() -> None:
    empty = FaceCrops.empty(FacePolicy(crop_size=96))
    assert len(empty) == 0
    assert empty.crops.shape == (0, 96, 96, 3)
    assert empty.landmarks.shape == (0, 5, 2)
    assert empty.dropped == {}


def test_columns_that_do_not_fit_together_are_an_error() -> None:
    good = extract_faces([frame()], SMALL, Prepared([[face()]]))
    values = {name: getattr(good, name) for name in FaceCrops.__dataclass_fields__}
    with pytest.raises(AssertionError, match="yaw_deg"):
        FaceCrops(**values | {"yaw_deg": np.zeros(2, dtype=np.float32)})
    with pytest.raises(AssertionError, match="crops"):
        FaceCrops(**values | {"crops": good.crops.astype(np.float32)})
    with pytest.raises(AssertionError, match="crops"):
        FaceCrops(**values | {"crops": good.crops[:, :, :32]})
