"""What a history of kills plays with: small scorers, a few drawn faces, catalogs of them, and a dataset of crops."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.faces.policy import FacePolicy
from models.scorer import load_scorer, save_scorer
from models.video.sampling import FramePolicy
from ray_jobs.crops.dataset import MANIFEST
from ray_jobs.drawing.attributes import FaceAttributes
from ray_jobs.drawing.video import draw_frames
from tests.unit.scorers import small_manifest, small_network
from tests.unit.test_crops_dataset import build, manifest_of, picture, video


def make_scorers(folder: Path, tasks: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Directories and digests of a scorer of random weights for each task."""
    directories = {}
    for task in tasks:
        policies = {"frame_policy": FramePolicy(limit=1), "face_policy": FacePolicy(crop_size=48)}
        save_scorer(folder / task, small_network(task), small_manifest(task).model_copy(update=policies))
        directories[task] = str(folder / task)
    return directories, {task: load_scorer(Path(path)).digest for task, path in directories.items()}


def make_images(folder: Path) -> list[Path]:
    """A few small pictures with a drawn face each."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(4):
        frame = next(iter(draw_frames(FaceAttributes.random(rng), 1, (240, 180), rng)))
        paths.append(folder / f"face-{number}.png")
        Image.fromarray(frame).save(paths[-1])
    return paths


def make_catalog(place: Path, images: Sequence[Path], num_videos: int) -> Path:
    """A catalog of these pictures under many ids, one in twenty broken or missing (column ``expected``)."""
    place.mkdir()
    broken = place / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:900])
    lines = ["video_id,uri,expected"]
    for number in range(num_videos):
        uri, expected = images[number % len(images)], "ok"
        if number % 20 == 7:
            uri, expected = (broken, "truncated") if number % 40 == 7 else (place / "missing.mp4", "not_found")
        lines.append(f"v{number:04},{uri},{expected}")
    path = place / "catalog.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def make_crops_dataset(folder: Path, num_crops: int = 48) -> str:
    """A dataset for attractiveness of small pictures with any scores, a quarter of them to validate with."""
    videos = [
        video(
            f"v{number:03}",
            [picture(number)],
            score=60 + number % 40,
            split="val" if number % 4 == 0 else "train",
            creator=f"creator-{number}",
        )
        for number in range(num_crops)
    ]
    found = build(folder, videos)
    (folder / MANIFEST).write_text(manifest_of(found).model_dump_json())
    return str(folder)
