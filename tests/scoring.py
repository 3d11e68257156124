"""Small runs of scoring: catalogs, what stands in their tables, and a run in the process of a test."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infra.settings import ClusterSettings
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs import score_run, scoring
from ray_jobs.score_config import ScoreConfig
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.sizing import Cluster, Node, Resources, Wanted, size_pipeline
from ray_jobs.stages.extract import ExtractConfig, extract_stage
from ray_jobs.stages.predict import PredictStage, ShippedScorer
from tests.integration.conftest import World

CLUSTER = Cluster((Node(num_cpus=4),))


def write_catalog(folder: Path, world: World, *, num_missing: int, num_videos: int = 0) -> str:
    """Missing files first, then the same drawn face under many ids."""
    face = next((world.folder / "videos").glob("face-0001*"))
    lines = ["video_id,uri"]
    lines += [f"missing-{number},{folder}/nowhere-{number}.mp4" for number in range(num_missing)]
    lines += [f"face-{number},{face}" for number in range(num_videos)]
    path = folder / "catalog.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def small_config(world: World, catalog: str, tables: Path, **options: Any) -> ScoreConfig:
    """Of a run with one task."""
    scorers = {"fs2k": world.scorers["fs2k"]}
    return ScoreConfig(catalog=catalog, tables=str(tables), scorers=scorers, command="the command", **options)


def ids_in(tables: Path) -> Counter[str]:
    """How often each video stands in the tables: scored or quarantined."""
    found: Counter[str] = Counter()
    for name in (score_table("fs2k"), QUARANTINE):
        dataset = DeltaStore(str(tables), Storage()).dataset(name)
        if dataset is not None:
            found.update(dataset.to_table(["video_id"])["video_id"].to_pylist())
    return found


@contextmanager
def scoring_here() -> Iterator[None]:
    """The same driver and the same stages, row after row, without a cluster: for what a driver plans and commits."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "fit", _fit)
        patch.setattr(score_run, "look", lambda: CLUSTER)
        patch.setattr(score_run, "RoomWatch", partial(score_run.RoomWatch, look=lambda: CLUSTER))
        patch.setattr(score_run, "due_datasets", _due_tables)
        patch.setattr(score_run, "scored", _scored)
        patch.setattr(score_run, "Arrivals", nullcontext)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _fit(wanted: Wanted, settings: ClusterSettings) -> tuple[Resources, Cluster]:
    return size_pipeline(wanted, CLUSTER), CLUSTER


def _due_tables(due: str, storage: Storage) -> Iterator[pa.Table]:
    for stat in storage.list_prefix(due):
        yield pq.read_table(pa.BufferReader(storage.read_all(stat.uri)))


def _scored(
    videos: pa.Table, extract: ExtractConfig, scorers: Sequence[ShippedScorer], resources: Resources
) -> Iterator[pa.Table]:
    predict = PredictStage(scorers, Storage(extract.storage), "cpu")
    for row in extract_stage(extract)(videos):
        yield predict(row)
