"""One local Ray cluster for all tests of a session, and a small drawn world to work on."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.settings import Settings, load_settings
from models.faces.policy import FacePolicy
from models.scorer import save_scorer
from models.video.sampling import FramePolicy
from ray_jobs.drawing.catalog import DrawnCatalog, draw_catalog
from tests.unit.scorers import small_manifest, small_network

os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")

FRAME_POLICY = FramePolicy(every=20, limit=3)
FACE_POLICY = FacePolicy(crop_size=64)


@dataclass(frozen=True, slots=True)
class World:
    """A drawn catalog, its settings, and a scorer of random weights for each task."""

    folder: Path
    drawn: DrawnCatalog
    settings: Settings
    scorers: dict[str, str]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With a tracking store of their own."""
    folder = tmp_path_factory.mktemp("tracking")
    return load_settings(
        os.devnull,
        tracking={"uri": f"sqlite:///{folder}/mlflow.db"},
        cluster={"num_cpus": 4, "object_store_bytes": 200 << 20},
    )


@pytest.fixture(scope="session")
def ray_cluster(settings: Settings) -> Iterator[Settings]:
    """Connected to a local cluster."""
    import ray

    from ray_jobs.cluster import connect

    connect(settings.cluster)
    yield settings
    ray.shutdown()


@pytest.fixture(scope="session")
def world(drawn_world: World, ray_cluster: Settings) -> World:
    """Connected to a local cluster."""
    return drawn_world


@pytest.fixture(scope="session")
def drawn_world(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> World:
    folder = tmp_path_factory.mktemp("world")
    drawn = draw_catalog(folder, 13, 2, 6, 0)
    scorers = {}
    for task in ("attractiveness", "fs2k"):
        manifest = small_manifest(task).model_copy(update={"frame_policy": FRAME_POLICY, "face_policy": FACE_POLICY})
        save_scorer(folder / task, small_network(task), manifest)
        scorers[task] = str(folder / task)
    return World(folder, drawn, settings, scorers)
