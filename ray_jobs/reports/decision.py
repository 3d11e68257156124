"""The page of a promotion decision: verdicts, both scorers' figures, and what the change does to a catalog."""

from dataclasses import dataclass

from infra.settings import Settings
from models.scorer import ScorerManifest
from models.tasks.base import Task
from ray_jobs.promoting.record import Decision
from ray_jobs.promoting.shadow import Mover
from ray_jobs.reports.page import environment
from ray_jobs.reports.samples import Picture, Sample, take_picture
from ray_jobs.stages.extract import ExtractConfig, Extractor

MAX_SLICES = 20


@dataclass(frozen=True, slots=True)
class SliceRow:
    """A part of the evaluation set under both scorers."""

    name: str
    num_rows: int
    before: float
    now: float
    loss: float  # positive: worse now


def decision_page(task: Task, decision: Decision, manifest: ScorerManifest, settings: Settings) -> str:
    """The page as HTML, in one file.

    Args:
        task: Whose champion is in question.
        decision: What was measured and decided.
        manifest: The challenger's: how the movers' pictures are cut.
        settings: Where the catalog's videos lie.
    """
    movers = decision.shadow.movers if decision.shadow is not None else ()
    return (
        environment()
        .get_template("decision.html.j2")
        .render(
            task=task,
            decision=decision,
            slices=_slices(task, decision),
            pictures=_pictures(movers, manifest, settings),
            failed=sum(not verdict.passed for verdict in decision.verdicts),
        )
    )


def _slices(task: Task, decision: Decision) -> list[SliceRow]:
    """Parts of the evaluation set, the ones that lose most first."""
    now = decision.challenger.evaluation
    before = None if decision.champion is None else decision.champion.evaluation
    if now is None or before is None:
        return []
    theirs = {(item.column, item.value): item for item in before.slices}
    sign = 1 if task.higher_is_better else -1
    rows = [
        SliceRow(
            f"{item.column.replace('_', ' ')}: {item.value}",
            item.num_rows,
            other.figure.value,
            item.figure.value,
            sign * (other.figure.value - item.figure.value),
        )
        for item in now.slices
        if (other := theirs.get((item.column, item.value))) is not None
    ]
    return sorted(rows, key=lambda row: -row.loss)[:MAX_SLICES]


def _pictures(movers: tuple[Mover, ...], manifest: ScorerManifest, settings: Settings) -> dict[str, Picture]:
    if not movers:
        return {}
    extractor = Extractor(
        ExtractConfig(frame_policy=manifest.frame_policy, face_policy=manifest.face_policy, storage=settings.storage)
    )
    size = manifest.face_policy.crop_size
    return {
        mover.video_id: take_picture(Sample(mover.video_id, mover.uri, mover.etag, (), ()), extractor, size)
        for mover in movers
    }
