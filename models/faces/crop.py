"""Cuts one face out of a frame: turned and scaled by its landmarks, or the upright square around its box.

The crop shows a square of the face, the "face square", and a margin around it. With landmarks the face square is the
112×112 picture of the ArcFace template, from the hairline to the chin; without, it is the box made square.
What lies outside of the frame repeats the frame's border: a constant would tell a network how the picture was framed.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.faces.detect import Face
from models.faces.policy import FacePolicy

# Where left eye, right eye, nose and corners of the mouth lie in a face square of side 1:
# Deng et al., ArcFace (2019), the reference points of the published alignment for 112×112.
TEMPLATE = (
    np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
        dtype=np.float64,
    )
    / 112
)

# More than the pixels around a point that bilinear interpolation reads.
_BORDER_PX = 2


def crop_face(image: npt.NDArray[np.uint8], face: Face, policy: FacePolicy) -> npt.NDArray[np.uint8]:
    """Cuts a face out of its image; the same bytes and policy give the same crop on every machine.

    Args:
        image: uint8[H, W, 3] RGB.
        face: a face of this image.
        policy: ``align``, ``margin`` and ``crop_size`` count here. A face without landmarks is cut by its box.

    Returns:
        uint8[S, S, 3] RGB, S = ``policy.crop_size``.
    """
    if policy.align == "landmarks" and face.landmarks is not None:
        origin, side = _square_by_landmarks(face.landmarks)
    else:
        origin, side = _square_by_box(face.box)
    # The crop's own coordinates run over the face square and its margin: crop pixel c lies at u = c·step − margin.
    step = (1 + 2 * policy.margin) / policy.crop_size
    origin = origin - policy.margin * side * (1 + 1j)
    return _warp(image, origin, side * step, policy.crop_size)


def inner_square(crop: npt.NDArray[np.uint8], margin: float) -> npt.NDArray[np.uint8]:
    """The face square within a crop, without the margin: uint8[T, T, 3], a view."""
    edge = round(len(crop) * margin / (1 + 2 * margin))
    return crop[edge : len(crop) - edge, edge : len(crop) - edge]


def _square_by_landmarks(landmarks: npt.NDArray[np.float32]) -> tuple[complex, complex]:
    """The face square as a corner and the vector of its upper side, as complex numbers x + iy.

    The least-squares similarity (Umeyama 1991) in two dimensions is one complex division, z = origin + side·t for
    template points t; it never mirrors, and needs no case for degenerate landmarks, since the template is not.
    """
    template = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    points = landmarks[:, 0].astype(np.float64) + 1j * landmarks[:, 1].astype(np.float64)
    centred = template - template.mean()
    side = complex(np.vdot(centred, points - points.mean()) / np.vdot(centred, centred))
    return complex(points.mean()) - side * complex(template.mean()), side


def _square_by_box(box: npt.NDArray[np.float32]) -> tuple[complex, complex]:
    x0, y0, x1, y1 = (float(value) for value in box)
    side = max(x1 - x0, y1 - y0)
    return complex((x0 + x1 - side) / 2, (y0 + y1 - side) / 2), complex(side)


def _warp(image: npt.NDArray[np.uint8], origin: complex, step: complex, size: int) -> npt.NDArray[np.uint8]:
    """Samples ``size``² pixels, pixel (x, y) at ``origin + step·(x + iy)`` with corners, not centres, at integers."""
    # A face that shrinks is averaged in whole boxes of pixels first, so that nothing aliases.
    reduce = max(1, math.floor(abs(step)))
    if reduce > 1:
        image = np.asarray(Image.fromarray(image).reduce(reduce))
        origin, step = origin / reduce, step / reduce
    corners = [origin + step * size * corner for corner in (0, 1, 1j, 1 + 1j)]
    left = math.floor(min(corner.real for corner in corners)) - _BORDER_PX
    top = math.floor(min(corner.imag for corner in corners)) - _BORDER_PX
    right = math.ceil(max(corner.real for corner in corners)) + _BORDER_PX
    bottom = math.ceil(max(corner.imag for corner in corners)) + _BORDER_PX
    region = Image.fromarray(_region(image, left, top, right, bottom))
    start = origin - complex(left, top)
    warped = region.transform(
        (size, size),
        Image.Transform.AFFINE,
        (step.real, -step.imag, start.real, step.imag, step.real, start.imag),
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(warped)


def _region(image: npt.NDArray[np.uint8], left: int, top: int, right: int, bottom: int) -> npt.NDArray[np.uint8]:
    """The pixels [top, bottom) × [left, right), with the image's border repeated outside of it."""
    height, width = image.shape[:2]
    rows = np.clip(np.arange(top, bottom), 0, height - 1)
    columns = np.clip(np.arange(left, right), 0, width - 1)
    return image[rows[:, None], columns]
