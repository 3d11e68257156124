"""Shadow scoring: both scorers on one sample of the catalog, and how far their answers lie apart."""

from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import spearmanr

from infra.errors import UserError
from infra.scanning import scratch_database
from infra.settings import Settings
from infra.storage import Storage
from models.registry import ResolvedScorer
from models.tasks.base import Task
from ray_jobs.catalog import open_catalog
from ray_jobs.cluster import fit
from ray_jobs.console import RunProgress
from ray_jobs.exclusion import excluded
from ray_jobs.shift import Shift, class_shift, numeric_shift
from ray_jobs.sizing import Resources
from ray_jobs.stages.extract import ExtractConfig
from ray_jobs.stages.pipeline import arriving, scored
from ray_jobs.stages.predict import CarriedScorer

MIN_SLICE = 20
NUM_MOVERS = 12

Rows = Sequence[Mapping[str, Any]]  # output columns, a row a video


class SliceShift(BaseModel):
    """How far a numeric answer's mean moves in a part of the sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str = Field(description="Column of the catalog.")
    value: str = Field(description="Its value.")
    num_videos: int = Field(description="Videos of the sample with it.")
    shift: float = Field(description="Challenger's mean less the champion's, in standard deviations of the champion's.")


class AnswerShift(BaseModel):
    """What the change does to one answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: Shift = Field(description="Champion's answers against the challenger's.")
    rank_correlation: float | None = Field(description="Spearman's, video by video; null for classes.")
    changed: float = Field(description="Share of videos in another band of the scale, or of another class.")
    slices: tuple[SliceShift, ...] = Field(description="By the asked columns of the catalog.")


class Mover(BaseModel):
    """A video whose answers move much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video_id: str = Field(description="The catalog's id.")
    uri: str = Field(description="Where it lies.")
    etag: str | None = Field(description="Of its content, where the catalog has one.")
    changes: tuple[tuple[str, str, str], ...] = Field(description="Answer, the champion's word, the challenger's.")
    size: float = Field(description="Largest change: points of a numeric answer, or the number of changed classes.")


class Shadow(BaseModel):
    """Both scorers on the sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalog: str = Field(description="Where the sample is from.")
    num_videos: int = Field(description="Videos that both scorers answered.")
    num_lost: int = Field(description="Videos that the champion answered and the challenger did not.")
    num_gained: int = Field(description="Videos that the challenger answered and the champion did not.")
    num_without: int = Field(description="Videos that neither answered: no face, or not readable.")
    answers: tuple[AnswerShift, ...] = Field(description="One an answer.")
    movers: tuple[Mover, ...] = Field(description="The largest first.")


def shadow_scores(
    task: Task,
    challenger: ResolvedScorer,
    champion: ResolvedScorer,
    catalog: str,
    settings: Settings,
    *,
    num_videos: int,
    bands: Sequence[float],
    slices: Sequence[str] = (),
    opt_out: str | None = None,
    resources: Resources,
    seed: int = 0,
) -> Shadow:
    """Score a fixed random sample of the catalog with both scorers; writes nothing.

    Args:
        task: What they answer.
        challenger: The scorer that may become champion.
        champion: The one in use.
        catalog: A table of videos or a storage prefix.
        settings: Cluster and storage.
        num_videos: Size of the sample; the same seed and catalog give the same sample.
        bands: Where the bands of a numeric answer begin.
        slices: Columns of the catalog.
        opt_out: Whom to leave out, as `score` does; minors are left out anyway.
        resources: Of the cluster.
        seed: Of the sample.

    Raises:
        UserError: The catalog is unusable, or no video gave both an answer.
    """
    sample = _sample(catalog, Storage(settings.storage), num_videos, opt_out, seed)
    if unknown := [name for name in slices if name not in sample.column_names]:
        raise UserError(f"--catalog-slice {unknown[0]}: the catalog has the columns {', '.join(sample.column_names)}")
    resources, cluster = fit(resources, settings.cluster)
    resources = resources.spread(sample.num_rows, cluster.num_cpus_now)
    now, before = _scored(task, challenger, champion, sample, settings, resources)
    both = [name for name in sample["video_id"].to_pylist() if name in now and name in before]
    if not both:
        raise UserError(f"{catalog}: none of the {sample.num_rows} videos of the sample gave both scorers a face")
    place = {name: index for index, name in enumerate(sample["video_id"].to_pylist())}
    chosen = sample.take(pa.array([place[name] for name in both]))
    pairs = [now[name] for name in both], [before[name] for name in both]
    columns = {name: chosen[name].to_pylist() for name in slices}
    return Shadow(
        catalog=catalog,
        num_videos=len(both),
        num_lost=len(before.keys() - now.keys()),
        num_gained=len(now.keys() - before.keys()),
        num_without=sample.num_rows - len(now.keys() | before.keys()),
        answers=tuple(compare(task, *pairs, columns, bands)),
        movers=tuple(movers(task, *pairs, chosen)),
    )


def compare(
    task: Task, now: Rows, before: Rows, columns: Mapping[str, Sequence[object]], bands: Sequence[float]
) -> list[AnswerShift]:
    """The shift of every answer between two lists of output rows of the same videos."""
    found = []
    for head in task.heads:
        ours, theirs = ([row[head.name] for row in rows] for rows in (now, before))
        if not isinstance(ours[0], float):
            changed = float(np.mean([one != other for one, other in zip(ours, theirs, strict=True)]))
            classes = (False, True) if head.is_binary else head.classes
            shift = class_shift(head.name, classes, theirs, ours)
            found.append(AnswerShift(shift=shift, rank_correlation=None, changed=changed, slices=()))
            continue
        values, others = (np.asarray(rows, dtype=np.float64) for rows in (ours, theirs))
        ranked = np.ptp(values) > 0 and np.ptp(others) > 0
        moved = np.searchsorted(bands, values, "right") != np.searchsorted(bands, others, "right")
        found.append(
            AnswerShift(
                shift=numeric_shift(head.name, others, values),
                rank_correlation=float(spearmanr(values, others).statistic) if ranked else 0.0,
                changed=float(moved.mean()),
                slices=tuple(_slice_shifts(values, others, columns)),
            )
        )
    return found


def movers(task: Task, now: Rows, before: Rows, videos: pa.Table) -> list[Mover]:
    """The videos whose answers change most, the largest first; those that do not change are none."""
    etags = videos["etag"].to_pylist() if "etag" in videos.column_names else [None] * videos.num_rows
    found = []
    for index, (ours, theirs) in enumerate(zip(now, before, strict=True)):
        changes, size = [], 0.0
        for head in task.heads:
            one, other = ours[head.name], theirs[head.name]
            if isinstance(one, float):
                changes.append((head.name, f"{other:.1f}", f"{one:.1f}"))
                size = max(size, abs(one - other))
            elif one != other:
                changes.append((head.name, str(other), str(one)))
                size += 1
        if size:
            name, uri = (str(videos[column][index]) for column in ("video_id", "uri"))
            found.append(Mover(video_id=name, uri=uri, etag=etags[index], changes=tuple(changes), size=size))
    return sorted(found, key=lambda item: (-item.size, item.video_id))[:NUM_MOVERS]


def _slice_shifts(
    values: npt.NDArray[np.float64], others: npt.NDArray[np.float64], columns: Mapping[str, Sequence[object]]
) -> list[SliceShift]:
    std = float(others.std()) or 1.0
    found = []
    for column, given in columns.items():
        of = np.asarray(["" if value is None else str(value).lower() for value in given])
        for value in sorted(set(of.tolist()) - {""}):
            chosen = of == value
            if chosen.sum() >= MIN_SLICE:
                shift = float(values[chosen].mean() - others[chosen].mean()) / std
                found.append(SliceShift(column=column, value=value, num_videos=int(chosen.sum()), shift=shift))
    return found


def _sample(catalog: str, storage: Storage, num_videos: int, opt_out: str | None, seed: int) -> pa.Table:
    """Videos drawn by a hash of their ids, so that a grown catalog keeps most of its sample."""
    with TemporaryDirectory(prefix="facereel-shadow-", ignore_cleanup_errors=True) as folder:
        connection = scratch_database(folder)
        try:
            open_catalog(catalog, storage, connection)
            excluding, _ = excluded(connection, catalog, opt_out, storage)
            connection.execute(
                f"CREATE TEMP TABLE drawn AS SELECT rowid AS row FROM catalog c WHERE {excluding} IS NULL "
                f"ORDER BY md5(video_id || '{seed}'), video_id LIMIT {num_videos}"
            )
            return connection.sql(
                "SELECT * FROM catalog WHERE rowid IN (SELECT row FROM drawn) ORDER BY video_id"
            ).to_arrow_table()
        finally:
            connection.close()


def _scored(
    task: Task,
    challenger: ResolvedScorer,
    champion: ResolvedScorer,
    sample: pa.Table,
    settings: Settings,
    resources: Resources,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Video id -> output columns of the videos with a face, of each; one decode serves both where it can."""
    names = {"challenger": challenger, "champion": champion}
    policies = {(found.scorer.manifest.frame_policy, found.scorer.manifest.face_policy) for found in names.values()}
    runs = [list(names)] if len(policies) == 1 else [[name] for name in names]
    rows: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for run in runs:
        manifest = names[run[0]].scorer.manifest
        config = ExtractConfig(
            frame_policy=manifest.frame_policy, face_policy=manifest.face_policy, storage=settings.storage
        )
        due = sample.append_column("due_tasks", pa.array([run] * sample.num_rows, pa.list_(pa.string())))
        due = due.append_column("attempts", pa.array([0] * sample.num_rows, pa.int32()))
        carried = [
            CarriedScorer.carry(names[name].directory, task.name, names[name].scorer.digest, name=name) for name in run
        ]
        with RunProgress(f"shadow: {' and '.join(run)}", sample.num_rows) as progress:
            num_done = 0
            for block in arriving(scored(ray.data.from_arrow(due), config, carried, resources)):
                num_done += block.num_rows
                progress.update(num_done)
                for name in run:
                    pairs = zip(block["video_id"].to_pylist(), block[name].to_pylist(), strict=True)
                    rows[name] |= {video: values for video, values in pairs if values is not None}
    return rows["challenger"], rows["champion"]
