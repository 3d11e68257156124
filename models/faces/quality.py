"""What a face crop is worth: sharpness and brightness from its pixels, yaw and roll from its landmarks."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

# Faces are compared at this side, so that sharpness means the same for every crop size.
_SHARPNESS_SIDE_PX = 96

# Offset of the nose over the distance of the eyes, by tan(yaw). Anatomy would say 0.6, but MTCNN marks a turned nose
# too close to the middle: with 0.2 the threshold that best tells FS2K's "frontal" (30° and less) from turned is 30°,
# on 200 photos and 194 sketches.
_NOSE_OFFSET = 0.2


def luma(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8[H, W] luma of a uint8[H, W, 3] RGB picture (ITU-R BT.601)."""
    return np.asarray(Image.fromarray(rgb).convert("L"))


def sharpness(face_square: npt.NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the luma (0 to 255) at 96×96 pixels; below about 100 a face is visibly blurred.

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy (2000).

    Args:
        face_square: uint8[T, T, 3] RGB, the face without the crop's margin, so that the background does not count.
    """
    side = _SHARPNESS_SIDE_PX
    small = Image.fromarray(face_square).convert("L").resize((side, side), Image.Resampling.BILINEAR)
    y = np.asarray(small, dtype=np.float32)
    laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
    return float(laplacian.var())


def brightness(face_square: npt.NDArray[np.uint8]) -> float:
    """Mean luma, 0 (black) to 1 (white), of a uint8[T, T, 3] RGB picture."""
    return float(luma(face_square).mean()) / 255


def roll_deg(landmarks: npt.NDArray[np.float32] | None) -> float:
    """Angle of the line through both eyes, degrees, positive when turned clockwise as seen; nan without landmarks."""
    if landmarks is None:
        return math.nan
    x, y = (float(value) for value in landmarks[1] - landmarks[0])
    return math.degrees(math.atan2(y, x))


def yaw_deg(landmarks: npt.NDArray[np.float32] | None) -> float:
    """Turn of the head to the side, degrees, positive when the nose points to the image's right; nan without landmarks.

    On a head turned by θ the eyes come closer, by cos θ, and the nose moves along their line, by sin θ:
    θ = atan(offset / (0.2·distance)). An estimate that tells turned from frontal faces, not a measure of angles.
    """
    if landmarks is None:
        return math.nan
    points = landmarks.astype(np.float64)
    eyes = points[1] - points[0]
    distance = math.hypot(*eyes)
    if distance == 0:
        return 90.0
    offset = float((points[2] - (points[0] + points[1]) / 2) @ eyes) / distance
    return math.degrees(math.atan2(offset, _NOSE_OFFSET * distance))
