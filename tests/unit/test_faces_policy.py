"""The face policy: defaults that fit the detector, and settings that could never be met."""

import pytest
from pydantic import ValidationError

from models.faces.policy import FacePolicy


def test_defaults_fit_the_detector() -> None:
    mtcnn, hog = FacePolicy(), FacePolicy(detector="dlib_hog")
    assert (mtcnn.align, mtcnn.min_confidence, mtcnn.search_from_px) == ("landmarks", 0.9, 32)
    assert (hog.align, hog.min_confidence, hog.search_from_px) == ("box", 0.5, 80)
    assert (mtcnn.crop_size, mtcnn.faces) == (256, "largest")


@pytest.mark.parametrize("policy", [FacePolicy(), FacePolicy(detector="dlib_hog", margin=1, max_brightness=1)])
def test_its_json_is_canonical_and_gives_the_same_policy(policy: FacePolicy) -> None:
    again = FacePolicy.model_validate_json(policy.model_dump_json())
    assert again == policy
    assert again.model_dump_json() == policy.model_dump_json()


def test_a_default_spelled_out_is_the_same_policy() -> None:
    assert FacePolicy(min_confidence=0.9, align="landmarks").model_dump_json() == FacePolicy().model_dump_json()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"detector": "dlib_hog", "max_yaw_deg": 30}, "max_yaw_deg=30.* needs landmarks"),
        ({"detector": "dlib_hog", "max_roll_deg": 30}, "max_roll_deg=30.* needs landmarks"),
        ({"detector": "dlib_hog", "align": "landmarks"}, "align=landmarks needs landmarks"),
        ({"min_brightness": 0.6, "max_brightness": 0.4}, "min_brightness=0.6 must be below max_brightness=0.4"),
        ({"detector": "haar"}, "detector"),
        ({"crop_sise": 96}, "crop_sise"),
        ({"crop_size": 16}, "crop_size"),
        ({"min_confidence": 1.5}, "min_confidence"),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FacePolicy.model_validate(settings)
