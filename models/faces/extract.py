"""From frames to face crops: detect, choose, cut, measure, and count the frames that gave none."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from models.faces.crop import crop_face, inner_square
from models.faces.detect import Face, FaceDetector
from models.faces.policy import FacePolicy
from models.faces.quality import brightness, roll_deg, sharpness, yaw_deg
from models.video.frames import Frame


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FaceCrops:
    """The usable faces of some frames, in the order of the frames and by falling size within a frame.

    Attributes:
        crops: uint8[n, S, S, 3] RGB.
        frame_index: int64[n], index of the frame in the video.
        pts_s: float64[n], presentation time of the frame, seconds.
        box: float32[n, 4], (x0, y0, x1, y1), pixels of the frame.
        landmarks: float32[n, 5, 2], (x, y), pixels of the frame; nan where the detector gives none.
        confidence: float32[n], 0 to 1.
        size_px: float32[n], short side of the box, pixels of the frame.
        sharpness: float32[n], variance of the Laplacian of the face at 96×96.
        brightness: float32[n], mean luma of the face, 0 to 1.
        yaw_deg: float32[n], turn of the head, degrees; nan without landmarks.
        roll_deg: float32[n], tilt of the head, degrees; nan without landmarks.
        faces_in_frame: int32[n], confident faces of at least the policy's size in the crop's frame, this one included.
        dropped: number of frames without a usable face, by cause.
    """

    crops: npt.NDArray[np.uint8]
    frame_index: npt.NDArray[np.int64]
    pts_s: npt.NDArray[np.float64]
    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    size_px: npt.NDArray[np.float32]
    sharpness: npt.NDArray[np.float32]
    brightness: npt.NDArray[np.float32]
    yaw_deg: npt.NDArray[np.float32]
    roll_deg: npt.NDArray[np.float32]
    faces_in_frame: npt.NDArray[np.int32]
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_crops, size = self.crops.shape[:2]
        shapes = {"crops": (num_crops, size, size, 3), "box": (num_crops, 4), "landmarks": (num_crops, 5, 2)}
        for name, dtype in _DTYPES.items():
            value = getattr(self, name)
            assert value.dtype == dtype, f"{name}: {value.dtype}"
            assert value.shape == shapes.get(name, (num_crops,)), f"{name}: {value.shape} for {num_crops} crops"
        assert all(count > 0 for count in self.dropped.values()), self.dropped

    def __len__(self) -> int:
        return len(self.crops)

    def __repr__(self) -> str:
        return f"FaceCrops(crops=uint8{list(self.crops.shape)}, dropped={self.dropped})"

    @classmethod
    def empty(cls, policy: FacePolicy, dropped: dict[str, int] | None = None) -> "FaceCrops":
        """No crops, of the policy's crop size."""
        return _pack([], policy, dropped or {})


_DTYPES = {
    "crops": np.uint8,
    "frame_index": np.int64,
    "pts_s": np.float64,
    "faces_in_frame": np.int32,
}
_DTYPES |= {item.name: np.float32 for item in fields(FaceCrops) if item.name not in (*_DTYPES, "dropped")}

_Row = dict[str, Any]


def extract_faces(frames: Sequence[Frame], policy: FacePolicy, detector: FaceDetector) -> FaceCrops:
    """Cuts the faces that count under the face policy out of the frames.

    A frame's subject is its largest face among the confident ones. If the subject fails a threshold, ``largest`` drops
    the frame instead of taking a bystander's face; ``all`` takes every face that passes.

    Args:
        frames: decoded frames, of any sizes.
        policy: the face policy.
        detector: what ``build_detector`` made of the same policy.

    Returns:
        The crops. Each frame either gave at least one, or is counted in ``dropped`` under one cause: ``damaged``,
        ``no_face``, ``low_confidence``, or what its largest confident face failed: ``too_small``, ``tilted``,
        ``turned``, ``too_dark``, ``too_bright``, ``blurred``.
    """
    whole = [frame for frame in frames if not frame.damaged]
    dropped: Counter[str] = Counter()
    if len(whole) < len(frames):
        dropped["damaged"] = len(frames) - len(whole)
    rows: list[_Row] = []
    for frame, faces in zip(whole, detector.detect([frame.rgb for frame in whole]), strict=True):
        usable, cause = _usable_faces(frame, faces, policy)
        if cause is not None:
            dropped[cause] += 1
        rows += usable
    return _pack(rows, policy, dict(dropped))


def _usable_faces(frame: Frame, faces: Sequence[Face], policy: FacePolicy) -> tuple[list[_Row], str | None]:
    """The rows of a frame's usable faces, or none and the cause."""
    if not faces:
        return [], "no_face"
    confident = [face for face in faces if face.confidence >= policy.min_confidence]
    if not confident:
        return [], "low_confidence"
    confident.sort(key=lambda face: -face.area_px2)
    candidates = confident[:1] if policy.faces == "largest" else confident
    measured = [_measure(frame, face, policy) for face in candidates]
    num_faces = sum(face.size_px >= policy.min_size_px for face in confident)
    for row, _ in measured:
        row["faces_in_frame"] = num_faces
    usable = [row for row, cause in measured if cause is None]
    return usable, None if usable else measured[0][1]


def _measure(frame: Frame, face: Face, policy: FacePolicy) -> tuple[_Row, str | None]:
    """A face's row, and what makes it unusable, if anything."""
    crop = crop_face(frame.rgb, face, policy)
    square = inner_square(crop, policy.margin)
    row: _Row = {
        "crops": crop,
        "frame_index": frame.index,
        "pts_s": frame.pts_s,
        "box": face.box,
        "landmarks": face.landmarks if face.landmarks is not None else np.full((5, 2), np.nan, dtype=np.float32),
        "confidence": face.confidence,
        "size_px": face.size_px,
        "sharpness": sharpness(square),
        "brightness": brightness(square),
        "yaw_deg": yaw_deg(face.landmarks),
        "roll_deg": roll_deg(face.landmarks),
    }
    tests = (
        ("too_small", row["size_px"], policy.min_size_px, math.inf),
        ("tilted", abs(row["roll_deg"]), 0, policy.max_roll_deg),
        ("turned", abs(row["yaw_deg"]), 0, policy.max_yaw_deg),
        ("too_dark", row["brightness"], policy.min_brightness, math.inf),
        ("too_bright", row["brightness"], 0, policy.max_brightness),
        ("blurred", row["sharpness"], policy.min_sharpness, math.inf),
    )
    for cause, value, least, most in tests:
        if (least is not None and value < least) or (most is not None and value > most):
            return row, cause
    return row, None


def _pack(rows: Sequence[_Row], policy: FacePolicy, dropped: dict[str, int]) -> FaceCrops:
    size = policy.crop_size
    shapes = {"crops": (0, size, size, 3), "box": (0, 4), "landmarks": (0, 5, 2)}
    columns = {
        name: np.array([row[name] for row in rows], dtype=dtype) if rows else np.zeros(shapes.get(name, (0,)), dtype)
        for name, dtype in _DTYPES.items()
    }
    return FaceCrops(**columns, dropped=dropped)
