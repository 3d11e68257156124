"""A registry whose scorers are good, damaged, or good for nothing, and changes of its champion under load."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from mlflow.tracking import MlflowClient

from infra.settings import TrackingSettings
from infra.tracking import experiment_id, tracking_client
from models import registry
from models.scorer import save_scorer
from serve.client import Client, Retries
from serve.schemas import ServiceInfo
from tests.serving import FACE
from tests.unit.scorers import small_manifest, small_network, small_scorer

NAME = registry.model_name("fs2k")


class Registry:
    """A registry of its own, with scorers that are good, damaged, or good for nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        settings = TrackingSettings(uri=self.uri)
        self.client: MlflowClient = tracking_client(settings)
        self._experiment = experiment_id(self.client, settings)
        self.num_made = 0
        self.digests: dict[str, str] = {}

    def good(self) -> str:
        """A version whose numbers are its own."""
        self.num_made += 1
        scorer = small_scorer(self.folder / str(self.num_made), "fs2k", seed=self.num_made)
        return self._register(scorer.digest)

    def damaged(self) -> str:
        """A version whose weights are not those of its digest."""
        version = self.good()
        (weights,) = Path(self.source(version)).glob("weights.safetensors")
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        return version

    def gone(self) -> str:
        """A version whose files are not there."""
        version = self.good()
        for path in Path(self.source(version)).iterdir():
            path.unlink()
        return version

    def wild(self) -> str:
        """A version that loads, and answers what is no probability."""
        self.num_made += 1
        network = small_network("fs2k", self.num_made)
        with torch.no_grad():
            network.classifier.weight.fill_(3e38)  # finite, but no sum of them is
        digest = save_scorer(self.folder / str(self.num_made), network, small_manifest("fs2k"))
        return self._register(digest)

    def point(self, alias: str, version: str) -> None:
        """As anybody may who can write to the registry: without the checks of a promotion."""
        self.client.set_registered_model_alias(NAME, alias, version)

    def source(self, version: str) -> str:
        return str(self.client.get_model_version(NAME, version).source).removeprefix("file://")

    def _register(self, digest: str) -> str:
        # Each has artifacts of its own: a run's would be one folder.
        run_id = str(self.client.create_run(self._experiment).info.run_id)
        version = str(registry.register(self.client, self.folder / str(self.num_made), run_id=run_id).version)
        self.digests[version] = digest
        return version


def changes_under_load(
    url: str, store: Registry, *, num_changes: int, num_bad: int, num_clients: int = 3, also: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """Change the champion again and again, some of the times to broken artifacts, while clients ask without a pause.

    Each change waits until a replica says that it follows, or that it refuses, and for an answer. No request may fail,
    and none be answered by what is broken; ``also`` are versions beside those of the change.

    Returns:
        Version and digest of the scorer that each request was answered by.
    """
    good = [store.good() for _ in range(5)]
    bad = [make() for make in (store.damaged, store.gone, store.wild, store.damaged)]
    ended = threading.Event()
    answers: list[tuple[str, str]] = []

    def ask() -> None:
        with Client(url, retries=Retries(most=1)) as client:
            while not ended.is_set():
                model = client.score_image(FACE, tasks=["fs2k"]).tasks["fs2k"].model
                answers.append((model.version, model.digest))

    with Client(url) as client, ThreadPoolExecutor(num_clients) as pool:

        def wait_until(what: str, is_so: Callable[[ServiceInfo], bool]) -> None:
            deadline = time.monotonic() + 120
            while not is_so(client.service()):
                assert time.monotonic() < deadline, what
                assert not any(one.done() for one in asking), [one.exception() for one in asking]
                time.sleep(0.02)

        asking: list[Future[None]] = []
        store.point("champion", good[0])
        wait_until("the first champion is not loaded", lambda now: champion(now) == good[0])
        asking = [pool.submit(ask) for _ in range(num_clients)]
        try:
            every = num_changes // num_bad
            for number in range(1, num_changes + 1):
                is_bad = number % every == 0
                version = bad[number // every % len(bad)] if is_bad else good[number % len(good)]
                store.point("champion", version)
                num_answers = len(answers)
                if is_bad:
                    name = f"fs2k@champion version {version}"
                    wait_until(f"change {number}: {version} is not refused", lambda now, name=name: name in now.refused)
                else:
                    wait_until(
                        f"change {number}: {version} is not followed",
                        lambda now, version=version: champion(now) == version,
                    )
                wait_until("no answer comes any more", lambda _, before=num_answers: len(answers) > before)
        finally:
            ended.set()
        for one in asking:
            one.result()  # a failed request is raised here
    assert all(store.digests[version] == digest for version, digest in answers)
    assert {version for version, _ in answers} <= {*good, *also}
    return answers


def champion(now: ServiceInfo) -> str | None:
    """The version that a replica has in use."""
    return next((model.version for model in now.models if model.role == "champion"), None)
