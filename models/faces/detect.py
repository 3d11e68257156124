"""The face detector interface: frames in, faces with boxes, confidences and landmarks out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.faces.policy import FacePolicy


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One detected face; coordinates are pixels of the image it was found in and may lie outside of it.

    Attributes:
        box: float32[4], (x0, y0, x1, y1).
        confidence: 0 to 1; what it means is the detector's own.
        landmarks: float32[5, 2], (x, y) of left eye, right eye, nose, left and right corner of the mouth, left and
            right as seen in the image; None from a detector without landmarks.
    """

    box: npt.NDArray[np.float32]
    confidence: float
    landmarks: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        assert self.box.shape == (4,), self.box.shape
        assert self.box.dtype == np.float32, self.box.dtype
        if self.landmarks is not None:
            assert self.landmarks.shape == (5, 2), self.landmarks.shape
            assert self.landmarks.dtype == np.float32, self.landmarks.dtype

    @property
    def area_px2(self) -> float:
        """Area of the box, square pixels."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    @property
    def size_px(self) -> float:
        """Short side of the box, pixels."""
        return float(min(self.box[2] - self.box[0], self.box[3] - self.box[1]))


class FaceDetector(Protocol):
    """What finds faces. The same images give the same faces, whatever ran before."""

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        """Finds the faces of each image.

        Args:
            images: each uint8[H, W, 3] RGB, of any sizes.

        Returns:
            For each image its faces, the largest box first.
        """
        ...


def build_detector(policy: FacePolicy, device: str = "cpu") -> FaceDetector:
    """Builds the detector that the policy names.

    Args:
        policy: the face policy; its ``detector`` and ``search_from_px`` count here.
        device: a torch device for MTCNN, such as ``cpu`` or ``cuda:0``; HOG always runs on the CPU.

    Raises:
        UserError: the detector's package is not installed.
    """
    # A job that uses one detector does not pay for importing the other.
    if policy.detector == "dlib_hog":
        from models.faces.dlib_hog import DlibHogDetector

        return DlibHogDetector(search_from_px=policy.search_from_px)
    from models.faces.mtcnn import MtcnnDetector

    return MtcnnDetector(search_from_px=policy.search_from_px, device=device)
