"""The service in this process on a free loopback port, around small scorers: HTTP as clients meet it, without Ray."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from mlflow.tracking import MlflowClient

from infra.settings import Settings, load_settings
from models.predictor import Predictor
from models.registry import CHALLENGER, CHAMPION
from serve.api import create_app
from serve.batches import Batches, Jobs
from serve.faces import FaceReader
from serve.following import Following, LiveScorer, Role
from serve.scoring import Engine
from serve.security import Gate
from tests.unit.scorers import small_scorer

SAMPLES = Path(__file__).parents[1] / "serve" / "web" / "samples"
FACE, TWO, REEL = (SAMPLES / name for name in ("face.jpg", "two-faces.jpg", "reel.mp4"))


class NoRegistry:
    """Scorers that were put there by hand; nobody is asked."""

    tracking_uri = "none"

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        raise ConnectionError("no registry in this test")


@dataclass
class Service:
    """A running service, and its insides."""

    url: str
    settings: Settings
    engine: Engine
    reader: FaceReader
    scorers: dict[str, Predictor]
    jobs: Jobs | None = None

    def use(self, task: str, predictor: Predictor, version: str, role: Role = CHAMPION) -> None:
        """Take a scorer into use."""
        live = LiveScorer(task, role, version, predictor.scorer.digest, predictor)
        self.engine.following.take(live)
        self.engine.following.looked.set()

    def drop(self, task: str, role: Role = CHALLENGER) -> None:
        self.engine.following._live.pop((task, role), None)


@dataclass
class FakeJobs(Jobs):
    """Ray's job API in memory."""

    jobs: dict[str, tuple[str, str]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    down: bool = False

    def submit(self, job_id: str, entrypoint: str, env: dict[str, str]) -> None:
        if self.down:
            raise ConnectionError("no cluster")
        if job_id not in self.jobs:
            self.jobs[job_id], self.commands[job_id], self.env = ("PENDING", ""), entrypoint, env

    def status(self, job_id: str) -> tuple[str, str] | None:
        if self.down:
            raise ConnectionError("no cluster")
        return self.jobs.get(job_id)

    def stop(self, job_id: str) -> None:
        self.jobs[job_id] = ("STOPPED", "")


@contextmanager
def running_service(
    folder: Path, jobs: Jobs | None = None, *, registry: MlflowClient | None = None, **serving: Any
) -> Iterator[Service]:
    """The service with a scorer of random weights for each task, or with those of a registry."""
    settings = load_settings("/dev/null", serving=serving)
    reader = FaceReader(settings.storage, settings.serving, num_children=1)
    client = registry if registry is not None else NoRegistry()
    following = Following(client, (), poll_s=settings.serving.poll_s, prepare=reader.prepare)
    scorers = {}
    for task in ("attractiveness", "fs2k") if registry is None else ():
        path = folder / f"{task}-scorer"
        scorers[task] = Predictor(small_scorer(path, task))
    engine = Engine(settings, following, reader, reader)
    gate = Gate(settings.serving.api_keys, settings.serving.rate)
    batches = Batches(settings, jobs) if jobs is not None else None
    app = create_app(engine, gate, batches, follow=registry is not None)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, timeout_keep_alive=30)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    service = Service(f"http://127.0.0.1:{port}", settings, engine, reader, scorers, jobs)
    for task, predictor in scorers.items():
        service.use(task, predictor, "1")
    try:
        yield service
    finally:
        server.should_exit = True
        thread.join(20)
        engine.close()
        reader.close()
