"""Cutting and measuring faces: geometry, borders, sharpness, brightness, angles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from models.faces.crop import TEMPLATE, crop_face, inner_square
from models.faces.detect import Face
from models.faces.policy import FacePolicy
from models.faces.quality import brightness, roll_deg, sharpness, yaw_deg


def placed(angle_deg: float, side: float, x: float, y: float) -> np.ndarray:
    """The template's landmarks on a face square of a side, turned about its corner at (x, y)."""
    turn = np.exp(1j * math.radians(angle_deg)) * side
    points = (TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]) * turn + complex(x, y)
    return np.stack([points.real, points.imag], axis=1).astype(np.float32)


def face(landmarks: np.ndarray | None, box: tuple[float, float, float, float] = (10, 10, 50, 50)) -> Face:
    return Face(box=np.array(box, dtype=np.float32), confidence=1.0, landmarks=landmarks)


def dots(landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """A black picture with a smooth white dot at each landmark."""
    y, x = np.mgrid[:height, :width] + 0.5
    bright = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in landmarks.astype(float))
    return np.repeat((255 * np.clip(bright, 0, 1)).astype(np.uint8)[:, :, None], 3, axis=2)


@settings(max_examples=20, deadline=None)
@given(
    angle_deg=st.floats(-60, 60),
    side=st.floats(60, 300),
    margin=st.floats(0, 0.8),
    crop_size=st.sampled_from([64, 96, 160]),
)
def test_landmarks_come_to_lie_on_the_template_whatever_tilt_and_size(
    angle_deg: float, side: float, margin: float, crop_size: int
) -> None:
    landmarks = placed(angle_deg, side, 500, 450)
    shift = 350 - landmarks.mean(axis=0)
    landmarks = (landmarks + shift).astype(np.float32)
    policy = FacePolicy(crop_size=crop_size, margin=margin)
    crop = crop_face(dots(landmarks, 700, 700), face(landmarks), policy)
    assert crop.shape == (crop_size, crop_size, 3)
    for x, y in (TEMPLATE + margin) / (1 + 2 * margin) * crop_size:
        around = crop[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4, 0].astype(float)
        weights = np.clip(around - around.max() / 2, 0, None)
        rows, columns = np.mgrid[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4] + 0.5
        assert around.max() > 30
        assert (weights * columns).sum() / weights.sum() == pytest.approx(x, abs=1.2)
        assert (weights * rows).sum() / weights.sum() == pytest.approx(y, abs=1.2)


def test_without_landmarks_the_box_is_made_square_about_its_middle() -> None:
    picture = np.zeros((100, 100, 3), dtype=np.uint8)
    picture[20:60, 30:70] = 255
    crop = crop_face(picture, face(None, (40, 20, 60, 60)), FacePolicy(crop_size=40, margin=0))
    assert (crop == 255).all()
    wider = crop_face(picture, face(None, (40, 20, 60, 60)), FacePolicy(crop_size=80, margin=0.5))
    assert (wider[21:59, 21:59] == 255).all()
    assert (wider[:19] == 0).all()
    assert (wider[:, :19] == 0).all()


def test_the_policy_can_cut_by_the_box_although_there_are_landmarks() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    turned = placed(30, 40, 40, 20)
    by_box = crop_face(picture, face(turned), FacePolicy(align="box", crop_size=64))
    assert (by_box == crop_face(picture, face(None), FacePolicy(align="box", crop_size=64))).all()
    assert (by_box != crop_face(picture, face(turned), FacePolicy(crop_size=64))).any()


def test_outside_of_the_frame_its_border_is_repeated() -> None:
    picture = np.full((50, 50, 3), 90, dtype=np.uint8)
    crop = crop_face(picture, face(None, (-40, -40, 20, 20)), FacePolicy(crop_size=64))
    assert (crop == 90).all()


def test_a_face_far_larger_than_the_crop_does_not_alias() -> None:
    stripes = np.zeros((1024, 1024, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    crop = crop_face(stripes, face(None, (100, 100, 900, 900)), FacePolicy(crop_size=64, margin=0))
    assert abs(crop.astype(int) - 127).max() <= 16


@pytest.mark.parametrize("spread", [0.0, 1e-3, 5000.0])
def test_senseless_landmarks_still_give_a_crop(spread: float) -> None:
    picture = np.full((40, 60, 3), 7, dtype=np.uint8)
    landmarks = (np.random.default_rng(1).normal(0, 1, (5, 2)) * spread).astype(np.float32)
    crop = crop_face(picture, face(landmarks), FacePolicy(crop_size=48))
    assert crop.shape == (48, 48, 3)
    assert (crop == 7).all()


@given(size=st.integers(32, 300), margin=st.floats(0, 2))
def test_the_inner_square_is_the_face_without_its_margin(size: int, margin: float) -> None:
    inner = inner_square(np.zeros((size, size, 3), dtype=np.uint8), margin)
    assert inner.shape[0] == inner.shape[1]
    assert inner.shape[0] == pytest.approx(size / (1 + 2 * margin), abs=1.01)


def test_sharpness_falls_with_blur_and_hardly_depends_on_the_crop_size() -> None:
    texture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    sharp = texture.resize((96, 96), Image.Resampling.BICUBIC)
    values = [sharpness(np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] / 20
    larger = np.asarray(sharp.resize((384, 384), Image.Resampling.BICUBIC))
    assert sharpness(larger) == pytest.approx(values[0], rel=0.4)


def test_brightness_is_the_mean_luma() -> None:
    assert brightness(np.zeros((8, 8, 3), dtype=np.uint8)) == 0
    assert brightness(np.full((8, 8, 3), 255, dtype=np.uint8)) == 1
    green = np.zeros((8, 8, 3), dtype=np.uint8)
    green[..., 1] = 255
    assert brightness(green) == pytest.approx(0.587, abs=0.005)


@given(angle_deg=st.floats(-170, 170), side=st.floats(10, 500))
def test_roll_is_the_tilt_of_the_eyes(angle_deg: float, side: float) -> None:
    assert roll_deg(placed(angle_deg, side, 100, 100)) == pytest.approx(angle_deg, abs=0.7)


@given(angle_deg=st.floats(-170, 170), side=st.floats(20, 500), offset=st.floats(-0.3, 0.3))
def test_yaw_follows_the_nose_along_the_eyes_and_not_the_tilt(angle_deg: float, side: float, offset: float) -> None:
    landmarks = placed(angle_deg, side, 100, 100)
    eyes = landmarks[1] - landmarks[0]
    landmarks[2] = (landmarks[0] + landmarks[1]) / 2 + eyes * offset
    assert yaw_deg(landmarks) == pytest.approx(math.degrees(math.atan(offset / 0.2)), abs=0.1)


def test_no_landmarks_no_angles() -> None:
    assert math.isnan(yaw_deg(None))
    assert math.isnan(roll_deg(None))
    assert yaw_deg(np.zeros((5, 2), dtype=np.float32)) == 90
