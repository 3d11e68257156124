"""Which faces of a frame count, how they are cropped, and the quality they need."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DetectorName = Literal["mtcnn", "dlib_hog"]
Alignment = Literal["landmarks", "box"]

# MTCNN's confidence is a probability, HOG's a squashed SVM margin with its decision line at 0.5.
_MIN_CONFIDENCE: dict[DetectorName, float] = {"mtcnn": 0.9, "dlib_hog": 0.5}
_SEARCH_FROM_PX: dict[DetectorName, int] = {"mtcnn": 32, "dlib_hog": 80}
_ALIGNMENT: dict[DetectorName, Alignment] = {"mtcnn": "landmarks", "dlib_hog": "box"}


def _by_detector(defaults: dict[DetectorName, Any]) -> Any:
    """A default that depends on the detector, which is validated before the field that uses it."""
    return lambda data: defaults[data.get("detector", "mtcnn")]


class FacePolicy(BaseModel):
    """The face policy: part of the key of every score, so a change of any field makes scores stale.

    Lengths are pixels of the frame as the frame policy delivers it, not of the source video.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: DetectorName = Field(
        default="mtcnn", description="mtcnn (with landmarks), or dlib_hog (without; needs dlib-bin)"
    )
    faces: Literal["largest", "all"] = Field(
        default="largest", description="largest: the largest confident face of a frame; all: every usable face of it"
    )
    crop_size: int = Field(default=256, ge=32, le=1024, description="side S of the square crop, pixels")
    margin: float = Field(
        default=0.2, ge=0, le=2, description="what is added around the face on each side, as a part of the face's side"
    )
    align: Alignment = Field(
        default_factory=_by_detector(_ALIGNMENT),
        description="landmarks: turn and scale by eyes, nose and mouth (default with mtcnn); box: upright square",
    )
    search_from_px: int = Field(
        default_factory=_by_detector(_SEARCH_FROM_PX),
        ge=20,
        le=1000,
        description="smallest face that the detector looks for, pixels; a small value costs time",
    )
    min_confidence: float = Field(
        default_factory=_by_detector(_MIN_CONFIDENCE),
        ge=0,
        le=1,
        description="least confidence of the detector, 0 to 1",
    )
    min_size_px: float = Field(default=40, ge=0, description="least short side of the face's box, pixels")
    min_sharpness: float | None = Field(
        default=None, ge=0, description="least variance of the Laplacian of the face at 96 pixels; none: no limit"
    )
    min_brightness: float | None = Field(
        default=None, ge=0, le=1, description="least mean luma, 0 to 1; none: no limit"
    )
    max_brightness: float | None = Field(
        default=None, ge=0, le=1, description="largest mean luma, 0 to 1; none: no limit"
    )
    max_yaw_deg: float | None = Field(
        default=None,
        gt=0,
        le=90,
        description="largest turn to either side, degrees, estimated from landmarks; none: no limit",
    )
    max_roll_deg: float | None = Field(
        default=None, gt=0, le=180, description="largest tilt to either side, degrees, from the eyes; none: no limit"
    )

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.detector == "dlib_hog":
            for field in ("max_yaw_deg", "max_roll_deg"):
                if getattr(self, field) is not None:
                    raise ValueError(
                        f"{field}={getattr(self, field)} needs landmarks, which dlib_hog does not give: "
                        f"leave {field} out, or use detector=mtcnn"
                    )
            if self.align == "landmarks":
                raise ValueError(
                    "align=landmarks needs landmarks, which dlib_hog does not give: use align=box, or detector=mtcnn"
                )
        if (
            self.min_brightness is not None
            and self.max_brightness is not None
            and self.min_brightness >= self.max_brightness
        ):
            raise ValueError(
                f"min_brightness={self.min_brightness} must be below max_brightness={self.max_brightness}, "
                "or no face is usable"
            )
        return self
