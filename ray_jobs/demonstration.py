"""The demo: the main job end to end on a drawn catalog, in one folder, measured on people the models never saw."""

import os
import shutil
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.csv
from rich.table import Table

from infra.errors import UserError
from infra.settings import Settings, load_settings
from infra.storage import Storage
from infra.tables import DeltaStore
from infra.tracking import tracking_client
from models import promotion, registry
from models.faces.policy import FacePolicy
from models.video.sampling import FramePolicy
from ray_jobs.console import console
from ray_jobs.drawing.catalog import DrawnCatalog, draw_catalog
from ray_jobs.held_out import Comparison, compare
from ray_jobs.preparing import PrepareConfig, print_manifest, run_prepare
from ray_jobs.reporting import write_report
from ray_jobs.reports.scores import Section
from ray_jobs.score_config import ScoreConfig
from ray_jobs.scoring import print_result, run_score
from ray_jobs.training.config import TrainConfig
from ray_jobs.training.recipe import resolve_recipe
from ray_jobs.training.run import print_result as print_training
from ray_jobs.training.run import run_train

TASKS = ("attractiveness", "fs2k")
EPOCHS = {"attractiveness": 11, "fs2k": 6}
MARKER = ".facereel-demo"
NUM_FRAMES = 30
FRAME_POLICY = FramePolicy(every=12, limit=3)
FACE_POLICY = FacePolicy(crop_size=96)


def demo_settings(folder: Path) -> Settings:
    """Settings of a demo that keeps everything in its folder."""
    return load_settings(
        tracking={"uri": f"sqlite:///{folder.resolve()}/mlflow.db", "experiment": "facereel-demo"},
        cluster={"num_cpus": 3},  # what the pipeline needs; each process more costs ten seconds of imports
    )


def run_demo(folder: Path, settings: Settings, *, num_videos: int, seed: int) -> Path:
    """Draw, prepare, train, promote, score twice, compare, report; returns the report's path."""
    start = time.monotonic()
    _step(start, f"drawing {num_videos} videos with faces, 6 without, 6 broken ones")
    drawn = draw_catalog(folder, num_videos, 6, 6, seed, num_frames=NUM_FRAMES, num_processes=os.cpu_count() or 1)
    _step(start, f"preparing crops from {drawn.num_labelled} labelled videos")
    dataset = str(folder / "crops")
    manifest = run_prepare(
        PrepareConfig(
            out=dataset,
            labels=str(drawn.labels),
            frame_policy=FRAME_POLICY,
            face_policy=FACE_POLICY,
        ),
        settings,
    )
    print_manifest(manifest, dataset)
    for task in TASKS:
        _step(start, f"training {task} with two workers")
        trained = run_train(_train_config(task, dataset, folder, seed), settings)
        print_training(trained)
        promotion.promote(tracking_client(settings.tracking), task, trained.version, reason="the demo's first champion")
        console.print(f"{registry.model_name(task)}: champion is version {trained.version} now", highlight=False)
    config = ScoreConfig(
        catalog=str(drawn.catalog),
        tables=str(folder / "tables"),
        scorers={},
        commit_every_s=5,
    )
    _step(start, "scoring the catalog with both champions")
    first = run_score(config, settings)
    print_result(first)
    _step(start, "scoring the catalog again")
    second = run_score(config, settings)
    print_result(second)
    held_out = _held_out_people(drawn, settings, folder / "tables")
    _print_held_out(held_out)
    report = folder / "report.html"
    sections = [
        Section(
            "People whom no model saw",
            f"{held_out[0].num_videos} drawn videos of people who stand in no training or validation split: the score "
            "table against the truth. The trivial answer is the labels' mean or most frequent value.",
            ("Column", "Figure", "Scorer", "Trivial answer"),
            [(row.column, row.figure, round(row.scorer, 3), round(row.baseline, 3)) for row in held_out],
        ),
        Section(
            "Second run",
            f"Scoring the same catalog again found {second.plan.num_due} of {second.plan.num_videos} videos due.",
        ),
    ]
    write_report(str(folder / "tables"), str(report), settings, sections=sections, title="The demo's score report")
    _step(start, f"done: open {report}")
    console.print(
        f"to ask its champions over HTTP: FACEREEL_TRACKING__URI={settings.tracking.uri} python -m serve",
        highlight=False,
        soft_wrap=True,
    )
    return report


def _step(start: float, what: str) -> None:
    console.print(f"{time.monotonic() - start:4.0f} s  {what}", style="bold", highlight=False)


def empty(folder: Path) -> None:
    """Make the folder new for a demo.

    Raises:
        UserError: It holds something that is no demo.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UserError(f"{folder} holds something that is no demo: give another --dir, or empty it first")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _train_config(task: str, dataset: str, folder: Path, seed: int) -> TrainConfig:
    return TrainConfig(
        task=task,
        dataset=dataset,
        name=task,
        storage=str(folder / "train"),
        recipe=resolve_recipe("demo", {"epochs": EPOCHS[task], "seed": seed}),
        num_workers=2,
    )


def _held_out_people(drawn: DrawnCatalog, settings: Settings, tables: Path) -> list[Comparison]:
    truth, labelled = pyarrow.csv.read_csv(drawn.truth), pyarrow.csv.read_csv(drawn.labels)
    unseen = truth.filter(pc.invert(pc.is_in(truth["creator_id"], labelled["creator_id"])))
    return compare(unseen, labelled, DeltaStore(str(tables), Storage(settings.storage)), TASKS)


def _print_held_out(rows: list[Comparison]) -> None:
    table = Table(title=f"{rows[0].num_videos} videos of people whom no model saw: the score table against the truth")
    for name in ("column", "figure", "scorer", "trivial answer"):
        table.add_column(name, justify="left" if name in ("column", "figure") else "right")
    for row in rows:
        table.add_row(row.column, row.figure, f"{row.scorer:.3f}", f"{row.baseline:.3f}")
    console.print(table)
