"""The HOG face detector of dlib: light, few false positives, frontal faces only, no landmarks."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from models.faces.detect import Face

# The detector was trained on windows of this side; each upsampling halves the smallest face found.
_WINDOW_PX = 80


class DlibHogDetector:
    """King, Max-Margin Object Detection (2015): an SVM over histograms of oriented gradients.

    A face's confidence is its SVM margin through a logistic function: 0.5 on the decision line, and no probability.

    Args:
        search_from_px: smallest face looked for, pixels; below 80, 40, … the image is doubled once, twice, …

    Raises:
        UserError: dlib is not installed.
    """

    def __init__(self, search_from_px: int = 80) -> None:
        try:
            import dlib
        except ModuleNotFoundError as error:
            raise UserError(
                "detector=dlib_hog needs the module dlib: install the package dlib-bin, or use detector=mtcnn"
            ) from error
        self._detector = dlib.get_frontal_face_detector()
        self._num_upsamplings = max(0, math.ceil(math.log2(_WINDOW_PX / search_from_px)))

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        """Finds the faces of each image; see ``FaceDetector.detect``."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: npt.NDArray[np.uint8]) -> list[Face]:
        rectangles, margins, _ = self._detector.run(np.ascontiguousarray(image), self._num_upsamplings, 0.0)
        found = [
            Face(
                # dlib's right and bottom are the last pixel inside.
                box=np.array([r.left(), r.top(), r.right() + 1, r.bottom() + 1], dtype=np.float32),
                confidence=1 / (1 + math.exp(-margin)),
            )
            for r, margin in zip(rectangles, margins, strict=True)
        ]
        return sorted(found, key=lambda face: -face.area_px2)
