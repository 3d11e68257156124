"""Training, measured side by side: the reader's cost, losses, numbers of workers, and a run that is killed.

    python -m benchmarks.training                      steps on the real reader against one batch over and over
    python -m benchmarks.training --device cuda        the same on a GPU, as the recipe attractiveness-best runs there
    python -m benchmarks.training interpreter          the reader beside a loop in Python, as one on a fast GPU is
    python -m benchmarks.training losses               attractiveness by loss, unseen creators
    python -m benchmarks.training workers              one worker and two with the same global batch
    python -m benchmarks.training resume               an undisturbed run and one whose worker is killed twice

The last three train by the demo's recipe (--videos, --epochs, --seeds, --losses); figures are the mean and the range
over seeds of the best epoch's validation errors, in points.
"""

import argparse
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from infra.settings import Settings, load_settings
from infra.storage import Storage
from infra.tracking import tracking_client
from models.faces.policy import FacePolicy
from models.network import build_network
from models.tasks.base import get_task
from models.transforms import AugmentConfig, InputConfig, to_training_input
from models.video.sampling import FramePolicy
from ray_jobs.crops.jpeg import decode_crop, encode_crop
from ray_jobs.drawing.catalog import draw_catalog
from ray_jobs.preparing import PrepareConfig, run_prepare
from ray_jobs.training.checkpoint import LAST, Checkpoints
from ray_jobs.training.config import TrainConfig
from ray_jobs.training.learning import make_optimizer
from ray_jobs.training.reader import Batch, CropReader
from ray_jobs.training.recipe import Recipe, resolve_recipe
from ray_jobs.training.run import TrainResult, run_train

NUM_CROPS, STEPS, WARM_UP, ROUNDS = 2_000, 15, 3, 7
NUM_FRAMES = 30


@dataclass(frozen=True, slots=True)
class Bench:
    """What the comparisons on drawn videos share."""

    console: Console
    settings: Settings
    folder: Path
    dataset: str
    epochs: int
    seeds: tuple[int, ...]
    losses: tuple[str, ...]


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


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of the reader's comparison computes."""

    device: str
    backbone: str
    size: int
    batch: int


STEP_OF = {"cpu": Step("cpu", "resnet18", 64, 32), "cuda": Step("cuda", "resnet50", 224, 64)}


def steps_per_s(batches: Iterator[Batch], kind: Step) -> tuple[float, float]:
    """Optimizer steps a second on these batches after a few to warm up, and the share of the time that they waited."""
    task, recipe = get_task("attractiveness"), Recipe(input_size=kind.size)
    network = build_network(kind.backbone, task.heads).to(kind.device)
    if kind.device == "cuda":
        network = network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, recipe)
    start = waited = 0.0
    for step in range(STEPS + WARM_UP):
        if step == WARM_UP:
            if kind.device == "cuda":
                torch.cuda.synchronize()
            start, waited = time.perf_counter(), 0.0
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        crops = batch.crops.to(kind.device, non_blocking=True)
        generator = torch.Generator().manual_seed(step)
        images = to_training_input(crops, InputConfig(size=kind.size), AugmentConfig(), generator)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind.device, dtype=torch.bfloat16, enabled=kind.device == "cuda"):
            logits = network(images)
        task.loss(logits, batch.targets.to(kind.device, non_blocking=True)).backward()
        optimizer.step()
    if kind.device == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - start
    return STEPS / taken, waited / taken


def print_reader(console: Console, kind: Step) -> None:
    """Each source in turn, several times: the machine's own swings fall on all alike."""
    if kind.device == "cpu":
        torch.set_num_threads(1)
    table = Table(
        title=f"steps a second on {kind.device}: {kind.backbone}, {kind.size} pixels, {kind.batch} crops of 256 pixels "
        f"a step; medians of {ROUNDS} rounds"
    )
    for name in ("batches from", "steps/s", "of one batch", "of the time waited"):
        table.add_column(name, justify="left" if name == "batches from" else "right")
    rates: dict[str, list[tuple[float, float]]] = {"one batch, again and again": [], "memory": [], "streamed files": []}
    with tempfile.TemporaryDirectory() as folder:
        uri = part(Path(folder))
        options = {"batch_size": kind.batch, "rank": 0, "world": 1, "seed": 0, "num_decoders": num_decoders()}
        memory, files = (
            CropReader([uri], Storage(), get_task("attractiveness"), None, resident=resident, **options)
            for resident in (True, False)
        )
        one = next(iter(memory.epoch(0)))
        for epoch in range(ROUNDS):
            sources = (repeat(one), memory.epoch(epoch), files.epoch(epoch))
            for found, batches in zip(rates.values(), sources, strict=True):
                found.append(steps_per_s(batches, kind))
    # Ratios within a round: the machine's swings fall on its three sources alike.
    alone = [rate for rate, _ in rates["one batch, again and again"]]
    for name, found in rates.items():
        ratio = median(rate / other for (rate, _), other in zip(found, alone, strict=True))
        waited = median(share for _, share in found)
        table.add_row(name, f"{median(rate for rate, _ in found):.2f}", f"{ratio:.0%}", f"{waited:.2%}")
    console.print(table)


def num_decoders() -> int:
    """Half of the CPUs, eight at most."""
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def print_interpreter(console: Console) -> None:
    """Steps of Python alone, each as much work: whoever decodes in this process takes the interpreter from them.

    In a run on a fast GPU the loop is such: it hardly computes, and must be back in time to start the next kernels.
    """
    table = Table(title=f"steps a second of a loop in Python, 16 crops of 256 pixels each; medians of {ROUNDS} rounds")
    for name in ("batches from", "steps/s", "of one batch"):
        table.add_column(name, justify="left" if name == "batches from" else "right")
    with tempfile.TemporaryDirectory() as folder:
        uri = part(Path(folder))
        encoded = pq.read_table(uri, columns=["crop"])["crop"].to_pylist()
        reader = CropReader(
            [uri],
            Storage(),
            get_task("attractiveness"),
            None,
            batch_size=16,
            rank=0,
            world=1,
            seed=0,
            resident=False,
            num_decoders=num_decoders(),
        )
        rates: dict[str, list[float]] = {"one batch, again and again": [], "decoding processes": [], "threads": []}
        for epoch in range(ROUNDS):
            for found, batches in zip(
                rates.values(), (repeat(None), reader.epoch(epoch), in_threads(encoded)), strict=True
            ):
                for step in range(STEPS + WARM_UP):
                    if step == WARM_UP:
                        start = time.perf_counter()
                    next(batches)
                    sum(number % 7 for number in range(400_000))
                found.append(STEPS / (time.perf_counter() - start))
    for name, found in rates.items():
        alone = rates["one batch, again and again"]
        ratio = median(rate / other for rate, other in zip(found, alone, strict=True))
        table.add_row(name, f"{median(found):.1f}", f"{ratio:.0%}")
    console.print(table)


def in_threads(encoded: list[bytes]) -> Iterator[list[npt.NDArray[np.uint8]]]:
    """The rival: batches of 16 crops decoded ahead in four threads of this process."""
    with ThreadPoolExecutor(4) as pool:
        ahead: deque[list[Future[npt.NDArray[np.uint8]]]] = deque()
        for first in range(0, len(encoded), 16):
            ahead.append([pool.submit(decode_crop, crop) for crop in encoded[first : first + 16]])
            if len(ahead) > 4:
                yield [future.result() for future in ahead.popleft()]


def drawn_dataset(folder: Path, settings: Settings, num_videos: int) -> str:
    """A crops dataset of drawn videos, split by creator."""
    drawn = draw_catalog(folder, num_videos, 0, 0, 0, num_frames=NUM_FRAMES, num_processes=2)
    policies = {"frame_policy": FramePolicy(every=12, limit=3), "face_policy": FacePolicy(crop_size=96)}
    out = str(folder / "crops")
    run_prepare(PrepareConfig(out=out, labels=str(drawn.truth), tasks=("attractiveness",), **policies), settings)
    return out


def trained(bench: Bench, name: str, **options: Any) -> TrainResult:
    """A run of the demo's recipe with some fields replaced; options of the run itself by their names."""
    run = {key: options.pop(key) for key in list(options) if key in TrainConfig.model_fields}
    recipe = resolve_recipe("demo", {"epochs": bench.epochs, **options})
    storage = str(bench.folder / "train")
    return run_train(
        TrainConfig(task="attractiveness", dataset=bench.dataset, name=name, storage=storage, recipe=recipe, **run),
        bench.settings,
    )


def figures(results: list[TrainResult], *names: str) -> list[str]:
    """Mean and range over runs of each validation metric."""
    values = np.asarray([[result.manifest.metrics[name] for name in names] for result in results])
    return [f"{column.mean():.2f} ({column.min():.2f}–{column.max():.2f})" for column in values.T]


def print_losses(bench: Bench) -> None:
    table = Table(title=f"attractiveness on drawn videos by loss: validation errors, points, {len(bench.seeds)} seeds")
    for name in ("loss", "MAE of the mean", "of the median", "of the likeliest", "training mean"):
        table.add_column(name, justify="left" if name == "loss" else "right")
    for loss in bench.losses:
        results = [trained(bench, f"{loss}-{seed}", loss=loss, seed=seed) for seed in bench.seeds]
        constant = results[0].manifest.baseline_metrics["mae"]
        table.add_row(loss, *figures(results, "mae", "mae_median", "mae_argmax"), f"{constant:.2f}")
    bench.console.print(table)


def print_workers(bench: Bench) -> None:
    table = Table(title=f"the same batch of 32 crops on one worker and on two: validation, {len(bench.seeds)} seeds")
    for name in ("workers", "MAE", "RMSE", "Spearman", "loss of the last epoch"):
        table.add_column(name, justify="right")
    for num_workers in (1, 2):
        results = [
            trained(bench, f"workers{num_workers}-{seed}", num_workers=num_workers, seed=seed) for seed in bench.seeds
        ]
        losses = [result.manifest.training.curves["loss"][-1] for result in results]
        span = f"{np.mean(losses):.3f} ({min(losses):.3f}–{max(losses):.3f})"
        table.add_row(str(num_workers), *figures(results, "mae", "rmse", "spearman"), span)
    bench.console.print(table)


def print_resume(bench: Bench) -> None:
    table = Table(title="an undisturbed run, and one whose worker is killed (SIGKILL) in the middle of two epochs")
    for name in ("run", "kills", "MAE", "loss of the last epoch", "steps in MLflow", "of which twice", "digest"):
        table.add_column(name, justify="left" if name == "run" else "right")
    options = {"checkpoint_every_steps": 2, "log_every_steps": 1, "ema": 0.9}
    client, storage = tracking_client(bench.settings.tracking), str(bench.folder / "train")
    for name, epochs in (("undisturbed", ()), ("killed", (2, 5))):
        killer = Killer(Checkpoints(storage, name, Storage()), list(epochs))
        killer.start()
        result = trained(bench, name, **options)
        killer.stop.set()
        killer.join()
        steps = [metric.step for metric in client.get_metric_history(result.run_id, "train_loss")]
        training = result.manifest.training
        row = [f"{result.manifest.metrics['mae']:.6f}", f"{training.curves['loss'][-1]:.6f}", str(len(set(steps)))]
        table.add_row(name, str(killer.num_kills), *row, str(len(steps) - len(set(steps))), result.digest[:12])
    bench.console.print(table)


class Killer(threading.Thread):
    """Kills this process's training worker once in the middle of each of some epochs."""

    def __init__(self, checkpoints: Checkpoints, epochs: list[int]) -> None:
        super().__init__(daemon=True)
        self._checkpoints, self._epochs = checkpoints, epochs
        self.stop = threading.Event()
        self.num_kills = 0

    def run(self) -> None:
        while self._epochs and not self.stop.wait(0.02):
            state = self._checkpoints.load(LAST)
            if state is None or state["epoch"] < self._epochs[0] or state["step"] == 0:
                continue
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    self.num_kills += 1
            self._epochs.pop(0)
            self.stop.wait(5)  # until it is gone


COMPARISONS = {"losses": print_losses, "workers": print_workers, "resume": print_resume}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", help="reader (default), interpreter, losses, workers, resume"
    )
    parser.add_argument("--videos", type=int, default=480, help="drawn videos (480)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each run (12)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds (0 1)")
    parser.add_argument("--device", choices=list(STEP_OF), default="cpu", help="of the reader's comparison (cpu)")
    losses = get_task("attractiveness").losses
    parser.add_argument("--losses", nargs="+", default=losses, choices=losses, metavar="LOSS", help="losses (all)")
    given = parser.parse_args()
    chosen = given.what or ["reader"]
    if unknown := set(chosen) - {"reader", "interpreter", *COMPARISONS}:
        parser.error(f"no comparison {', '.join(sorted(unknown))}")
    console = Console(width=120)
    if "reader" in chosen:
        print_reader(console, STEP_OF[given.device])
    if "interpreter" in chosen:
        print_interpreter(console)
    if comparisons := [name for name in COMPARISONS if name in chosen]:
        with tempfile.TemporaryDirectory(prefix="facereel-training-") as folder:
            settings = load_settings(None, tracking={"uri": f"sqlite:///{folder}/mlflow.db"})
            dataset = drawn_dataset(Path(folder), settings, given.videos)
            bench = Bench(
                console, settings, Path(folder), dataset, given.epochs, tuple(given.seeds), tuple(given.losses)
            )
            for name in comparisons:
                COMPARISONS[name](bench)


if __name__ == "__main__":
    main()
