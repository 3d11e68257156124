"""Training: what the reader costs, and which loss of attractiveness learns best.

    python -m benchmarks.training --reader                 steps on the real reader against one batch over and over
    python -m benchmarks.training --losses                 three losses on drawn videos, unseen creators, three seeds

``--reader`` measures steps of ResNet-18 at 64 pixels, batches of 32 crops of 256 pixels, in one process. ``--losses``
trains by the demo's recipe; the figures are the mean and the range over seeds of the best epoch's validation errors, in
points.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from infra.settings import Settings, load_settings
from infra.storage import Storage
from models.network import build_network
from models.tasks.base import get_task
from models.transforms import AugmentConfig, InputConfig, to_training_input
from ray_jobs.crops.dataset import encode_crop
from ray_jobs.training.learning import make_optimizer
from ray_jobs.training.reader import Batch, CropReader
from ray_jobs.training.recipe import Recipe, resolve_recipe

NUM_CROPS, CROP_SIZE, BATCH, STEPS = 2_000, 256, 32, 40
SEEDS = (0, 1, 2)


def part(folder: Path) -> str:
    """A Parquet part of pictures like photographs in their bytes."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_CROPS):
        rough = rng.integers(0, 256, (16, 16, 3)).repeat(16, 0).repeat(16, 1)
        crop = np.clip(rough + rng.normal(0, 12, rough.shape), 0, 255).astype(np.uint8)
        rows.append({"video_id": str(number), "crop": encode_crop(crop), "score": 60 + number % 40})
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet", row_group_size=500)
    return str(folder / "train-00000.parquet")


def steps_per_s(batches: Iterator[Batch]) -> float:
    """Optimizer steps a second on these batches, after a few to warm up."""
    task, recipe = get_task("attractiveness"), Recipe(input_size=64)
    network = build_network("resnet18", task.heads)
    optimizer = make_optimizer(network, recipe)
    start = 0.0
    for step, batch in zip(range(STEPS + 3), batches, strict=False):
        if step == 3:
            start = time.perf_counter()
        images = to_training_input(
            batch.crops, InputConfig(size=64), AugmentConfig(), torch.Generator().manual_seed(step)
        )
        optimizer.zero_grad(set_to_none=True)
        task.loss(network(images), batch.targets).backward()
        optimizer.step()
    return STEPS / (time.perf_counter() - start)


def print_reader(console: Console) -> None:
    table = Table(title="steps a second: ResNet-18, 64 pixels, 32 crops of 256 pixels a step")
    for name in ("batches from", "steps/s", "of one batch"):
        table.add_column(name, justify="left" if name == "batches from" else "right")
    with tempfile.TemporaryDirectory() as folder:
        uri = part(Path(folder))
        options = {"batch_size": BATCH, "rank": 0, "world": 1, "seed": 0}
        readers = {
            name: CropReader([uri], Storage(), get_task("attractiveness"), None, resident=resident, **options)
            for name, resident in (("memory", True), ("streamed files", False))
        }
        one = next(iter(readers["memory"].epoch(0)))
        rates = {"one batch, again and again": steps_per_s(repeat(one))}
        for name, reader in readers.items():
            rates[name] = steps_per_s(reader.epoch(0))
        rates["one batch, again and again"] = max(rates["one batch, again and again"], steps_per_s(repeat(one)))
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.2f}", f"{rate / rates['one batch, again and again']:.0%}")
    console.print(table)


def print_losses(console: Console, settings: Settings, folder: Path) -> None:
    from models.faces.policy import FacePolicy
    from models.video.sampling import FramePolicy
    from ray_jobs.drawing.catalog import draw_catalog
    from ray_jobs.preparing import PrepareConfig, run_prepare
    from ray_jobs.training.config import TrainConfig
    from ray_jobs.training.run import run_train

    drawn = draw_catalog(folder, 140, 0, 0, 0, num_processes=2)
    policies = {"frame_policy": FramePolicy(every=12, limit=3), "face_policy": FacePolicy(crop_size=96)}
    out = str(folder / "crops")
    run_prepare(PrepareConfig(out=out, labels=str(drawn.truth), tasks=("attractiveness",), **policies), settings)
    table = Table(title="attractiveness on drawn videos by loss: validation errors over three seeds, points")
    for name in ("loss", "MAE of the mean", "of the median", "of the likeliest", "best constant"):
        table.add_column(name, justify="left" if name == "loss" else "right")
    for loss in ("label_distribution", "mean_variance", "cross_entropy"):
        found = []
        for seed in SEEDS:
            recipe = resolve_recipe("demo", {"epochs": 11, "loss": loss, "seed": seed})
            config = TrainConfig(
                task="attractiveness", dataset=out, name=f"{loss}-{seed}", storage=str(folder / "train"), recipe=recipe
            )
            manifest = run_train(config, settings).manifest
            found.append([manifest.metrics[name] for name in ("mae", "mae_median", "mae_argmax")])
        values = np.asarray(found)
        cells = [f"{column.mean():.2f} ({column.min():.2f}–{column.max():.2f})" for column in values.T]
        table.add_row(loss, *cells, f"{manifest.baseline_metrics['mae']:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="store_true")
    parser.add_argument("--losses", action="store_true")
    args = parser.parse_args()
    console = Console(width=110)
    if args.reader or not args.losses:
        torch.set_num_threads(1)
        print_reader(console)
    if args.losses:
        with tempfile.TemporaryDirectory(prefix="facereel-losses-") as folder:
            settings = load_settings(None, tracking={"uri": f"sqlite:///{folder}/mlflow.db"})
            print_losses(console, settings, Path(folder))


if __name__ == "__main__":
    main()
