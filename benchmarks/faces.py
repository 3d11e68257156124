"""CPU milliseconds per frame of the face detectors and of cropping, on drawn frames: python -m benchmarks.faces."""

import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from models.faces.crop import crop_face
from models.faces.detect import FaceDetector, build_detector
from models.faces.policy import FacePolicy
from ray_jobs.drawing.attributes import FaceAttributes
from ray_jobs.drawing.video import draw_frames

NUM_FRAMES = 20
SIZE = (640, 360)
SETTINGS = (("mtcnn", 20), ("mtcnn", 32), ("mtcnn", 40), ("dlib_hog", 80), ("dlib_hog", 40))


def frames() -> list[np.ndarray]:
    """Frames of five drawn people, four each."""
    rng = np.random.default_rng(0)
    people = [FaceAttributes.random(rng) for _ in range(5)]
    return [frame for person in people for frame in list(draw_frames(person, 16, SIZE, rng))[::4]]


def cpu_ms(work: Callable[[], object], num_frames: int) -> float:
    """CPU time of the best of three runs, per frame: the least disturbed one."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) / num_frames * 1000


def main() -> None:
    torch.set_num_threads(1)
    images = frames()
    table = Table(title=f"Face detection, {SIZE[0]}×{SIZE[1]}, {NUM_FRAMES} drawn frames, one thread")
    for title in (
        "detector",
        "search from px",
        "batch 1: CPU ms/frame",
        "batch 10: CPU ms/frame",
        "frames with a face",
    ):
        table.add_column(title, justify="right")
    for name, search_from_px in SETTINGS:
        policy = FacePolicy.model_validate({"detector": name, "search_from_px": search_from_px})
        detector = build_detector(policy)
        found = detector.detect(images)

        def in_batches(length: int, detector: FaceDetector = detector) -> Callable[[], object]:
            return lambda: [detector.detect(images[i : i + length]) for i in range(0, NUM_FRAMES, length)]

        usable = sum(any(face.confidence >= policy.min_confidence for face in faces) for faces in found)
        columns = [f"{cpu_ms(in_batches(length), NUM_FRAMES):.1f}" for length in (1, 10)]
        table.add_row(name, str(search_from_px), *columns, f"{usable} of {NUM_FRAMES}")
    console = Console()
    console.print(table)
    policy = FacePolicy()
    pairs = [
        (image, faces[0]) for image, faces in zip(images, build_detector(policy).detect(images), strict=True) if faces
    ]
    cropping = cpu_ms(lambda: [crop_face(image, face, policy) for image, face in pairs], len(pairs))
    console.print(f"Cutting one crop of {policy.crop_size}×{policy.crop_size}: {cropping:.1f} CPU ms")


if __name__ == "__main__":
    main()
