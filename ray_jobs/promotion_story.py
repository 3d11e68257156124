"""The promotion demo: three scorers come up for promotion; two pass the gates, the third is better only on average."""

import csv
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infra.errors import RunStopped
from infra.settings import Settings
from infra.tracking import tracking_client
from models import promotion
from models.faces.policy import FacePolicy
from models.video.sampling import FramePolicy
from ray_jobs.console import console, print_plan
from ray_jobs.drawing.catalog import DrawnCatalog, draw_catalog
from ray_jobs.overseeing import print_changes
from ray_jobs.preparing import PrepareConfig, run_prepare
from ray_jobs.promoting.deciding import PromoteConfig, run_promote
from ray_jobs.promoting.gates import CalibrationGate, Gates, HardwareGate, QualityGate, ShadowGate, SliceGate
from ray_jobs.promoting.record import Decision
from ray_jobs.score_config import ScoreConfig, plan_run, resolve_scorers
from ray_jobs.scoring import print_result, run_score
from ray_jobs.training.config import TrainConfig
from ray_jobs.training.recipe import resolve_recipe
from ray_jobs.training.run import run_train

TASK = "attractiveness"
FRAME_POLICY, FACE_POLICY = FramePolicy(every=12, limit=3), FacePolicy(crop_size=64)
NUM_FRAMES = 30
# The drawn scorers change more from one to the next than real ones would, and a handful of people calibrates them. The
# part that the third one learns wrongly is one that somebody watches: it has a limit of its own.
HAIR, TOO_HIGH = "red", 18  # the hair of which the third scorer learns wrong scores, and by how many points
GATES = Gates(
    quality=QualityGate(max_loss=0.1),
    slices=SliceGate(max_loss=0.2, min_rows=20, limits={f"hair_color: {HAIR}": 0.15}),
    calibration=CalibrationGate(max_ece_rise=0.2, max_undercoverage=0.4),
    hardware=HardwareGate(max_time_ratio=3),
    shadow=ShadowGate(max_psi=6, max_ks=0.6, min_rank_correlation=0.1, max_changed=0.9),
)
SAMPLE = 60


@dataclass(frozen=True, slots=True)
class Story:
    """What the parts of the story share."""

    folder: Path
    settings: Settings
    drawn: DrawnCatalog
    evaluation: str  # crops dataset of people whom no scorer is trained on


def prepare_story(folder: Path, settings: Settings, *, num_videos: int, seed: int) -> Story:
    """Draw the catalog, and prepare a small training set, a larger one with wrong labels, and the evaluation set."""
    drawn = draw_catalog(
        folder, num_videos, 0, 0, seed, num_frames=NUM_FRAMES, labelled_part=0.5, num_processes=os.cpu_count() or 1
    )
    rows, fields = _rows(drawn.labels)
    people = list(dict.fromkeys(row["creator_id"] for row in rows))
    first = [row for row in rows if row["creator_id"] in people[: len(people) * 2 // 3]]
    wrong = [
        row | {"score": str(min(99, int(row["score"]) + TOO_HIGH))} if row["hair_color"] == HAIR else row
        for row in rows
    ]
    truth, _ = _rows(drawn.truth)
    unseen = [row for row in truth if row["creator_id"] not in people and int(row["age"]) >= 18]
    for name, chosen in (("labels", first), ("wrong", wrong), ("unseen", unseen)):
        with (folder / f"{name}-{TASK}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(chosen)
        run_prepare(
            PrepareConfig(
                out=str(folder / name),
                labels=str(folder / f"{name}-{TASK}.csv"),
                frame_policy=FRAME_POLICY,
                face_policy=FACE_POLICY,
            ),
            settings,
        )
    return Story(folder, settings, drawn, str(folder / "unseen"))


def train_version(story: Story, name: str, dataset: str, *, epochs: int, start: str = "none") -> str:
    """Train and register; the version's number."""
    # A handful of people validates: of averaged weights the epoch is chosen less by chance.
    fields = {"epochs": epochs, "weights": start, "batch_size": 16, "ema": 0.95}
    config = TrainConfig(
        task=TASK,
        dataset=str(story.folder / dataset),
        name=name,
        storage=str(story.folder / "train"),
        recipe=resolve_recipe("demo", fields),
        cpus_per_worker=2,
    )
    return run_train(config, story.settings).version


def decide(story: Story, version: str, *, reason: str, out: str, gates: Gates = GATES) -> Decision | None:
    """Put a version before the gates; None where they refuse it."""
    config = PromoteConfig(
        task=TASK,
        version=version,
        gates=gates,
        dataset=story.evaluation,
        split="all",
        catalog=str(story.drawn.catalog),
        sample=SAMPLE,
        slices=("hair_color",),
        reason=reason,
        out=str(story.folder / out),
    )
    try:
        return run_promote(config, story.settings)[0]
    except RunStopped as stopped:
        console.print(f"refused: {stopped}", highlight=False)
        return None


def score(story: Story, *, limit: int | None = None) -> int:
    """Show the plan and score with the champion; how many videos were due."""
    config = ScoreConfig(catalog=str(story.drawn.catalog), tables=str(story.folder / "tables"), scorers={})
    config = replace(config, portion=replace(config.portion, limit=limit))
    with plan_run(config, resolve_scorers(config.scorers, story.settings), story.settings) as plan:
        print_plan(plan)
        num_due = plan.num_due
    print_result(run_score(config, story.settings))
    return num_due


def run_story(folder: Path, settings: Settings, *, num_videos: int, seed: int) -> Story:
    """Train, decide, score, decide again, go back: every step printed as it would be typed."""
    start = time.monotonic()

    def step(what: str) -> None:
        console.print(f"{time.monotonic() - start:4.0f} s  {what}", style="bold", highlight=False)

    step(
        f"drawing {num_videos} videos; preparing crops: few to train on, more with wrong labels, and those to judge by"
    )
    story = prepare_story(folder, settings, num_videos=num_videos, seed=seed)
    step("training version 1, and putting it before the gates")
    first = train_version(story, "v1", "labels", epochs=6)
    decide(story, first, reason="the first one", out="decision-1")
    step("scoring the catalog")
    score(story)
    step("training version 2, from version 1 on")
    second = train_version(story, "v2", "labels", epochs=10, start="champion")
    decide(story, second, reason="trained for longer", out="decision-2")
    step("its rows are stale: scoring a first portion again, then the rest")
    score(story, limit=20)
    score(story)
    step("training version 3 on more people: better on average, wrong about those with red hair")
    third = train_version(story, "v3", "wrong", epochs=16, start="champion")
    decide(story, third, reason="better on average", out="decision-3")
    step("rolling back: version 2 was withdrawn for this demo")
    promotion.rollback(tracking_client(settings.tracking), TASK, reason="to show the way back")
    score(story)
    print_changes(tracking_client(settings.tracking), TASK)
    step(f"done: open {folder / 'decision-3' / 'decision.html'}")
    return story


def _rows(path: Path) -> tuple[list[dict[str, str]], Sequence[str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        return list(reader), reader.fieldnames or ()
