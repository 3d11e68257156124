"""Replicas follow the registry, and only to scorers that pass their checks; requests notice nothing."""

import asyncio
import os
import threading
from pathlib import Path

import httpx
import pytest

from serve.following import Following
from tests.serving import running_service
from tests.serving_registry import NAME, Registry, changes_under_load


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


def test_a_service_that_has_started_has_its_scorers(store: Registry, tmp_path: Path) -> None:
    """What sends requests to a replica that has started (Ray Serve, an upgrade on Kubernetes) gets no 503."""
    store.point("champion", store.good())
    with running_service(tmp_path / "service", registry=store.client, tasks=("fs2k",)) as service:
        assert service.engine.following.ready


def test_a_registry_that_does_not_answer_keeps_no_service_from_starting(
    store: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("serve.api.FIRST_LOOK_S", 0.1)
    monkeypatch.setattr(store.client, "get_model_version_by_alias", lambda *_: ended.wait())
    try:
        with running_service(tmp_path / "service", registry=store.client, tasks=("fs2k",)) as service:
            assert not service.engine.following.looked.is_set()
            assert httpx.get(f"{service.url}/healthz").status_code == 200
            assert httpx.get(f"{service.url}/readyz").status_code == 503
            ended.set()
    finally:
        ended.set()


def test_a_registry_that_is_away_changes_nothing(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    following = Following(store.client, ("fs2k",))
    good = store.good()
    store.point("champion", good)
    assert looked(following) == (good, None)

    def away(*args: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(store.client, "get_model_version_by_alias", away)
    assert looked(following) == (good, None)


def changes(store: Registry, num_changes: int, num_bad: int) -> int:
    with running_service(store.folder, registry=store.client, poll_s=0.02) as service:
        return len(changes_under_load(service.url, store, num_changes=num_changes, num_bad=num_bad))


def test_changes_under_load_fail_no_request(store: Registry) -> None:
    assert changes(store, num_changes=20, num_bad=4) >= 20


@pytest.mark.slow
def test_two_hundred_changes_under_load_fail_no_request(store: Registry) -> None:
    num_changes = int(os.environ.get("CHANGES", "200"))
    assert changes(store, num_changes, num_bad=max(1, num_changes // 10)) >= num_changes
