"""MTCNN through facenet-pytorch: boxes, confidences and five landmarks, in batches, on CPU or GPU."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from facenet_pytorch import MTCNN

from models.faces.detect import Face

# Bounds the memory of a batch: the first stage holds about 100 bytes a pixel. 36 frames of 640×360 fit.
_MAX_BATCH_PIXELS = 36 * 640 * 360


class MtcnnDetector:
    """Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks (2016).

    The weights come with the facenet-pytorch wheel; nothing is downloaded.

    Args:
        search_from_px: smallest face looked for, pixels; the cost grows with its inverse square.
        device: a torch device, such as ``cpu`` or ``cuda:0``.
    """

    def __init__(self, search_from_px: int = 32, device: str = "cpu") -> None:
        self._search_from_px = search_from_px
        self._mtcnn = MTCNN(
            min_face_size=search_from_px, keep_all=True, select_largest=True, device=torch.device(device)
        )

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        """Finds the faces of each image; see ``FaceDetector.detect``."""
        faces: list[list[Face]] = [[] for _ in images]
        for batch in self._batches(images):
            with torch.inference_mode():
                boxes, confidences, landmarks = self._mtcnn.detect(np.stack([images[i] for i in batch]), landmarks=True)
            for i, image_boxes, image_confidences, image_landmarks in zip(
                batch, boxes, confidences, landmarks, strict=True
            ):
                if image_boxes is not None:
                    faces[i] = _faces(image_boxes, image_confidences, image_landmarks)
        return faces

    def _batches(self, images: Sequence[npt.NDArray[np.uint8]]) -> Iterator[list[int]]:
        """Positions of images that can go together: a batch holds one size, and not too many pixels."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            height, width = image.shape[:2]
            # With no step of the pyramid left facenet-pytorch raises, where "no face" is the answer.
            if min(height, width) >= self._search_from_px:
                by_size.setdefault((height, width), []).append(i)
        for (height, width), positions in by_size.items():
            length = max(1, _MAX_BATCH_PIXELS // (height * width))
            for start in range(0, len(positions), length):
                yield positions[start : start + length]


def _faces(boxes: object, confidences: object, landmarks: object) -> list[Face]:
    # The library answers object arrays whenever all images of a batch hold equally many faces.
    box_array = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    confidence_array = np.asarray(confidences, dtype=np.float32).reshape(-1)
    landmark_array = np.asarray(landmarks, dtype=np.float32).reshape(-1, 5, 2)
    found = [
        Face(box=box, confidence=float(confidence), landmarks=points)
        for box, confidence, points in zip(box_array, confidence_array, landmark_array, strict=True)
    ]
    return sorted(found, key=lambda face: -face.area_px2)
