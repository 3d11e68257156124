"""Replicas follow the registry, and only to scorers that pass their checks; requests notice nothing."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from infra.settings import TrackingSettings
from infra.tracking import experiment_id, tracking_client
from models import registry
from serve.client import Client, Retries
from serve.following import Following
from tests.serving import FACE, running_service
from tests.unit.scorers import small_manifest, small_network, small_scorer

NAME = registry.model_name("fs2k")


class Registry:
    """A registry of its own, with scorers that are good, damaged, or good for nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
        self.client: MlflowClient = tracking_client(settings)
        self.run_id = str(self.client.create_run(experiment_id(self.client, settings)).info.run_id)
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
        from models.scorer import save_scorer

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
        run_id = str(self.client.create_run("1").info.run_id)
        version = str(registry.register(self.client, self.folder / str(self.num_made), run_id=run_id).version)
        self.digests[version] = digest
        return version


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def looked(following: Following) -> tuple[str | None, str | None]:
    """Versions of champion and challenger in use, after a look."""
    asyncio.run(following.look())
    live = [following.get("fs2k", role) for role in ("champion", "challenger")]
    return live[0].version if live[0] else None, live[1].version if live[1] else None


def test_it_follows_to_what_is_good(store: Registry) -> None:
    following = Following(store.client, ())
    assert looked(following) == (None, None)
    assert not following.ready
    first, second = store.good(), store.good()
    store.point("champion", first)
    assert looked(following) == (first, None)
    assert following.ready
    assert following.tasks() == ("fs2k",)
    store.point("champion", second)
    store.point("challenger", first)
    assert looked(following) == (second, first)
    store.client.delete_registered_model_alias(NAME, "challenger")
    assert looked(following) == (second, None)
    store.client.delete_registered_model_alias(NAME, "champion")
    assert looked(following) == (second, None)  # a champion answers until there is another one


@pytest.mark.parametrize(
    ("kind", "why"), [("damaged", "DIGEST"), ("gone", r"scorer\.json"), ("wild", "no probabilities")]
)
def test_what_is_bad_never_replaces_what_is_good(store: Registry, kind: str, why: str) -> None:
    following = Following(store.client, ("fs2k",))
    good = store.good()
    bad = getattr(store, kind)()
    store.point("champion", good)
    assert looked(following) == (good, None)
    scorer = following.get("fs2k", "champion")
    store.point("champion", bad)
    assert looked(following) == (good, None)
    assert following.get("fs2k", "champion") is scorer
    assert following.ready
    ((name, told),) = following.troubles().items()
    assert name == f"fs2k@champion version {bad}"
    import re

    assert re.search(why, told)
    newer = store.good()
    store.point("champion", newer)
    assert looked(following) == (newer, None)
    assert following.troubles() == {}


def test_a_registry_that_is_away_changes_nothing(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    following = Following(store.client, ("fs2k",))
    good = store.good()
    store.point("champion", good)
    assert looked(following) == (good, None)

    def away(*args: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(store.client, "get_model_version_by_alias", away)
    assert looked(following) == (good, None)


def changes_under_load(store: Registry, num_changes: int, num_bad: int, num_clients: int = 3) -> int:
    """Change the champion again and again, some of the times to broken artifacts, under load; the number of answers."""
    good = [store.good() for _ in range(5)]
    bad = [make() for make in (store.damaged, store.gone, store.wild, store.damaged)]
    store.point("champion", good[0])
    ended = threading.Event()
    answers: list[tuple[str, str]] = []
    with running_service(store.folder, registry=store.client, poll_s=0.02) as service:
        following = service.engine.following
        deadline = time.monotonic() + 60
        while not following.ready:
            assert time.monotonic() < deadline
            time.sleep(0.02)

        def ask() -> None:
            with Client(service.url, retries=Retries(most=1)) as client:
                while not ended.is_set():
                    model = client.score_image(FACE, tasks=["fs2k"]).tasks["fs2k"].model
                    answers.append((model.version, model.digest))

        with ThreadPoolExecutor(num_clients) as pool:
            clients = [pool.submit(ask) for _ in range(num_clients)]
            try:
                every = num_changes // num_bad
                for number in range(1, num_changes + 1):
                    is_bad = number % every == 0
                    version = bad[number // every % len(bad)] if is_bad else good[number % len(good)]
                    before = following.get("fs2k", "champion")
                    store.point("champion", version)
                    deadline = time.monotonic() + 30
                    while True:
                        live = following.get("fs2k", "champion")
                        assert live is not None
                        if is_bad and f"fs2k@champion version {version}" in following.troubles():
                            assert live is before
                            break
                        if not is_bad and live.version == version:
                            break
                        assert time.monotonic() < deadline, f"change {number} to {version} is not followed"
                        assert not any(client.done() for client in clients), [client.exception() for client in clients]
                        time.sleep(0.005)
            finally:
                ended.set()
            for client in clients:
                client.result()  # a failed request is raised here
    assert all(store.digests[version] == digest for version, digest in answers)
    assert {version for version, _ in answers} <= set(good)
    return len(answers)


def test_changes_under_load_fail_no_request(store: Registry) -> None:
    assert changes_under_load(store, num_changes=20, num_bad=4) > 20


@pytest.mark.slow
def test_two_hundred_changes_under_load_fail_no_request(store: Registry) -> None:
    num_changes = int(os.environ.get("CHANGES", "200"))
    assert changes_under_load(store, num_changes, num_bad=max(1, num_changes // 10)) > num_changes
