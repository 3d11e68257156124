"""The scorers in use: replicas follow the registry's aliases, and change only to versions that pass their checks."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from models.predictor import Predictor
from models.registry import CHALLENGER, CHAMPION, find_version, registered
from models.tasks.base import task_names
from serve.faces import Policies
from serve.telemetry import log, metrics

Role = Literal["champion", "challenger"]
ROLES: tuple[Role, ...] = (CHAMPION, CHALLENGER)
_RETRY_S = 60.0


class SelfTestFailed(UserError):
    """A scorer that loads, but does not answer as a scorer does."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveScorer:
    """A scorer in use; whoever began with it ends with it, whatever comes after."""

    task: str
    role: Role
    version: str
    digest: str
    predictor: Predictor

    @property
    def policies(self) -> Policies:
        """What decides its crops."""
        manifest = self.predictor.scorer.manifest
        return Policies(manifest.frame_policy, manifest.face_policy)


def self_test(predictor: Predictor) -> None:
    """Predict crops that are known, twice: probabilities must be finite, sum to 1, and not change.

    Raises:
        SelfTestFailed: They are not, or predicting fails.
    """
    size = predictor.scorer.manifest.face_policy.crop_size
    crops = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    try:
        first, second = predictor.probabilities(crops), predictor.probabilities(crops)
        predictor.predict([crops[:1], crops[1:], crops[:0]])
    except Exception as error:  # whatever a network may raise: it is not taken into use
        raise SelfTestFailed(f"predicting fails: {type(error).__name__}: {error}") from error
    for head, p in first.items():
        if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
            raise SelfTestFailed(f"head {head}: its answers are no probabilities")
        if np.abs(p - second[head]).max() > 1e-4:
            raise SelfTestFailed(f"head {head}: the same crops give other answers the second time")


class Following:
    """Keeps, for each task, the champion and the challenger of the registry loaded and checked.

    A version is loaded beside the one in use, its files are held to its digest, it is warmed up and tested, and only
    then takes over, for requests that begin from then on. What fails stays out, is logged and counted, and is tried
    again after a minute; a registry that cannot be reached changes nothing.

    Args:
        client: of the registry.
        tasks: what to answer; empty: every task that has a champion.
        device: of the predictors.
        batch_size: most faces in one pass through a network.
        poll_s: seconds between two looks at the registry.
        prepare: called with a scorer's policies before it is taken into use.
    """

    def __init__(
        self,
        client: MlflowClient,
        tasks: tuple[str, ...],
        *,
        device: str = "auto",
        batch_size: int = 64,
        poll_s: float = 10.0,
        prepare: Callable[[Policies], None] = lambda policies: None,
    ) -> None:
        if unknown := set(tasks) - set(task_names()):
            raise UserError(f"serving.tasks: there is no task {sorted(unknown)[0]!r}; known: {', '.join(task_names())}")
        self._client = client
        self._tasks = tasks or task_names()
        self.wanted = frozenset(self._tasks)
        self._required = bool(tasks)
        self._device, self._batch_size, self._poll_s = device, batch_size, poll_s
        self._prepare = prepare
        self._live: dict[tuple[str, Role], LiveScorer] = {}
        self._refused: dict[tuple[str, Role], tuple[str, float, str]] = {}
        self._lock = asyncio.Lock()
        self.looked = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether every task has a champion that is loaded and checked.

        Without a list of tasks: every one that had a champion at the first look, and at least one.
        """
        loaded = {task for task, role in self._live if role == CHAMPION}
        return loaded == set(self._tasks) if self._required else self.looked.is_set() and bool(loaded)

    def scorers(self) -> list[LiveScorer]:
        """All that are in use."""
        return [self._live[key] for key in sorted(self._live)]

    def take(self, live: LiveScorer) -> None:
        """Take a checked scorer into use, for requests that begin from now on."""
        self._live[(live.task, live.role)] = live

    def tasks(self) -> tuple[str, ...]:
        """The tasks that can be answered now."""
        return tuple(sorted({task for task, role in self._live if role == CHAMPION}))

    def get(self, task: str, role: Role) -> LiveScorer | None:
        """The scorer in use, or None."""
        return self._live.get((task, role))

    def troubles(self) -> dict[str, str]:
        """Versions that were refused: what is asked for, and why it is not in use."""
        return {f"{task}@{role} version {version}": why for (task, role), (version, _, why) in self._refused.items()}

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            with contextlib.suppress(Exception):  # logged there: a look that fails is not the last
                await self.look()
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        """Look at the registry once, and take over what has changed and passes its checks."""
        async with self._lock:
            for task in self._tasks:
                for role in ROLES:
                    await self._look(task, role)
            self.looked.set()
            metrics().ready.set(float(self.ready))
            for live in self.scorers():
                metrics().in_use(live.task, live.role, live.version)

    async def _look(self, task: str, role: Role) -> None:
        key = (task, role)
        try:
            version, digest = await asyncio.to_thread(self._find, task, role)
        except Exception as error:  # the registry, or the way to it
            log.warning("the registry does not answer", extra={"task": task, "error": str(error)[:300]})
            return
        live = self._live.get(key)
        if version is None:
            # An alias that is gone: a challenger ends with it; a champion answers on until there is another one.
            if role == CHALLENGER and self._live.pop(key, None) is not None:
                metrics().version.set(0, {"task": task, "role": role})
            self._refused.pop(key, None)
            return
        if live is not None and (live.version, live.digest) == (version, digest):
            self._refused.pop(key, None)
            return
        refused = self._refused.get(key)
        if refused is not None and refused[0] == version and time.monotonic() < refused[1]:
            return
        start = time.perf_counter()
        try:
            found = await asyncio.to_thread(self._load, task, role, version)
        except Exception as error:  # a broken artifact may raise anything; the one in use stays in use
            self._refused[key] = (version, time.monotonic() + _RETRY_S, str(error)[:500])
            metrics().refused_models.inc(1, {"task": task, "role": role})
            log.error(
                "a version is refused",
                extra={
                    "task": task,
                    "role": role,
                    "version": version,
                    "error": str(error)[:500],
                    "in_use": live.version if live else None,
                },
            )
            return
        self._refused.pop(key, None)
        self.take(found)
        log.info(
            "a version is in use",
            extra={
                "task": task,
                "role": role,
                "version": version,
                "digest": found.digest,
                "before": live.version if live else None,
                "seconds": round(time.perf_counter() - start, 2),
            },
        )

    def _find(self, task: str, role: Role) -> tuple[str | None, str | None]:
        """Version and digest that the alias names now; (None, None) where it names none."""
        try:
            found = find_version(self._client, role, task=task)
        except UserError as error:
            cause = error.__cause__
            if isinstance(cause, MlflowException) and cause.error_code in (
                "RESOURCE_DOES_NOT_EXIST",
                "INVALID_PARAMETER_VALUE",
            ):
                return None, None
            raise
        return str(found.version), found.tags.get("digest")

    def _load(self, task: str, role: Role, version: str) -> LiveScorer:
        """The version, loaded, held to its digest, warmed up and tested."""
        resolved = registered(self._client, version, task=task)
        predictor = Predictor(resolved.scorer, device=self._device, batch_size=self._batch_size)
        self_test(predictor)
        scorer = LiveScorer(task, role, version, resolved.scorer.digest, predictor)
        self._prepare(scorer.policies)
        return scorer
