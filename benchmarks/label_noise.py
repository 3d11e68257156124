"""Label review: how many planted wrong labels it finds, and how many of those that it lists are wrong.

    python -m benchmarks.label_noise                          on drawn videos (score)
    python -m benchmarks.label_noise --dataset runs/fs2k      on a crops dataset of your own; repeat

One label in twenty is replaced by another class, drawn at random among the others; three seeds. ``listed`` is the
share of videos that the review calls likely wrong, ``of these planted`` how many of them were planted (labels that
were wrong before count against it), ``found`` the share of the planted ones that is listed, ``ranking`` the average
precision of the order of doubt, where chance gives 0.05.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score

from infra.settings import Settings, load_settings
from infra.storage import Storage
from models.tasks.base import Head, get_task
from ray_jobs.cluster import connect
from ray_jobs.crops.dataset import part_uris, read_manifest
from ray_jobs.labels.noise import find_doubts
from ray_jobs.reviewing import choose_crops, crop_features, labelled_videos

SHARE, SEEDS = 0.05, (0, 1, 2)


def drawn(folder: Path, settings: Settings) -> str:
    """A dataset of drawn videos."""
    from models.faces.policy import FacePolicy
    from models.video.sampling import FramePolicy
    from ray_jobs.drawing.catalog import draw_catalog
    from ray_jobs.preparing import PrepareConfig, run_prepare

    catalog = draw_catalog(folder / "drawn", 240, 2, 6, 0)
    out = str(folder / "crops")
    policies = {"frame_policy": FramePolicy(every=20, limit=3), "face_policy": FacePolicy(crop_size=128)}
    run_prepare(PrepareConfig(out=out, labels=str(catalog.truth), tasks=("attractiveness",), **policies), settings)
    return out


def measure(dataset: str, settings: Settings) -> list[tuple[str, ...]]:
    """A row a label."""
    storage = Storage(settings.storage)
    manifest = read_manifest(dataset, storage)
    heads = {head.name: head for task in manifest.tasks for head in get_task(task).heads}
    parts = [uri for split in ("train", "val") for uri in part_uris(dataset, manifest, split)]
    rows = choose_crops(parts, storage, list(heads), 3)
    features = crop_features(parts, storage, rows)
    table = []
    for head in heads.values():
        labelled = labelled_videos(head, rows)
        found = _found(features[labelled.known], labelled.items, labelled.targets, labelled.creators, head)
        table.append((head.name, f"{len(labelled.videos):,}", *found))
    return table


def _found(
    features: np.ndarray, items: np.ndarray, targets: np.ndarray, people: list[str], head: Head
) -> tuple[str, ...]:
    figures = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        planted = rng.random(len(targets)) < SHARE
        others = rng.integers(1, len(head.classes), len(targets))
        noisy = np.where(planted, (targets + others) % len(head.classes), targets)
        doubts = find_doubts(features, items, noisy, people, head.classes)
        listed = doubts.is_doubted
        figures.append(
            (
                listed.mean(),
                planted[listed].mean() if listed.any() else np.nan,
                listed[planted].mean(),
                average_precision_score(planted, doubts.doubt),
            )
        )
    return tuple(f"{value:.2f}" for value in np.mean(figures, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", action="append")
    args = parser.parse_args()
    settings = load_settings(None)
    connect(settings.cluster)
    with tempfile.TemporaryDirectory() as folder:
        for dataset in args.dataset or [drawn(Path(folder), settings)]:
            table = Table(title=f"5% of the labels of {dataset if args.dataset else 'drawn videos'} replaced")
            for name in ("label", "videos", "listed", "of these planted", "found", "ranking"):
                table.add_column(name, justify="left" if name == "label" else "right")
            for row in measure(dataset, settings):
                table.add_row(*row)
            Console(width=110).print(table)


if __name__ == "__main__":
    main()
