"""Batches: a catalog or a list becomes a scoring job on the cluster; its record outlives the service."""

import asyncio
import contextlib
import hashlib
import json
import secrets
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from infra.errors import TypedError, UserError
from infra.settings import ENV_DELIMITER, ENV_PREFIX, Settings
from infra.storage import AlreadyExists, ObjectNotFound, Storage, join
from infra.tracking import absolute_uri, shown_uri
from serve.problems import Problem, of_typed
from serve.schemas import Batch, BatchCounts, BatchRequest
from serve.uploads import allowed_uri

P = ParamSpec("P")
R = TypeVar("R")
ROOT = Path(__file__).resolve().parents[1]
_CREDENTIALS = frozenset({"access_key_id", "secret_access_key", "session_token"})
State = Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
_STATES: dict[str, State] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


class Jobs(Protocol):
    """Ray's job API, as far as batches need it; every method blocks."""

    def submit(self, job_id: str, entrypoint: str, env: dict[str, str]) -> None:
        """Start the job, once for each id: of two the second changes nothing."""
        ...

    def status(self, job_id: str) -> tuple[str, str] | None:
        """State and message as Ray says them; None of a job that the cluster does not know."""
        ...

    def stop(self, job_id: str) -> None:
        """Ask the job to end (SIGTERM); one that has ended, or is not known, is left alone."""
        ...


class RayJobs:
    """Jobs on the cluster that this process belongs to, or on the one at ``address``."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def submit(self, job_id: str, entrypoint: str, env: dict[str, str]) -> None:
        """See `Jobs.submit`."""
        if self.status(job_id) is not None:
            return
        runtime_env = {"working_dir": self._working_dir(), "env_vars": env}
        try:
            self._client().submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
        except RuntimeError:
            if self.status(job_id) is None:  # else another request was first
                raise

    def status(self, job_id: str) -> tuple[str, str] | None:
        """See `Jobs.status`."""
        try:
            info = self._client().get_job_info(job_id)
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise
        return str(info.status.value), info.message or ""

    def stop(self, job_id: str) -> None:
        """See `Jobs.stop`."""
        if self.status(job_id) is not None:
            self._client().stop_job(job_id)

    def _client(self) -> Any:
        import ray
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self._address or ray.get_runtime_context().gcs_address)

    @staticmethod
    def _working_dir() -> str:
        """The code of this application where it was uploaded to, else its folder on this machine."""
        import ray

        uploaded = ray.get_runtime_context().runtime_env.get("working_dir")
        return str(uploaded or ROOT)


class _Record(BaseModel):
    """``batch.json``: what was asked, by whom."""

    model_config = ConfigDict(extra="ignore")

    id: str
    caller: str
    created_at: datetime
    request_digest: str
    catalog: str
    tables: str
    tasks: list[str]
    limit: int | None = None
    stopped: bool = False


class _Outcome(BaseModel):
    """The account in a run's ``run.json``, as `ray_jobs.run_record` writes it."""

    model_config = ConfigDict(extra="ignore")

    scored: int = 0
    no_face: int = 0
    quarantined: dict[str, int] = {}


class _Run(BaseModel):
    model_config = ConfigDict(extra="ignore")

    state: str
    message: str = ""
    started_at: datetime
    num_due: int = 0
    outcome: _Outcome = _Outcome()


RUN_FOLDER = "_runs"
_MOST_S = 60.0
# From the record of a batch to its job: until then nothing is lost.
_SUBMIT_S = 120.0


def _without_job(record: _Record, run: _Run | None) -> State:
    """What has become of a batch whose job the cluster does not know."""
    ended: dict[str, State] = {"done": "succeeded", "stopped": "stopped", "failed": "failed"}
    if run is not None and run.state in ended:
        return ended[run.state]
    if record.stopped:
        return "stopped"
    age_s = (datetime.now(UTC) - record.created_at).total_seconds()
    return "pending" if run is None and age_s < _SUBMIT_S else "lost"


class Batches:
    """Starts, shows and stops batches.

    Args:
        settings: ``serving.batches`` is the folder or prefix of records and results.
        jobs: where they run.

    Raises:
        UserError: There is no place for them.
    """

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        if settings.serving.batches is None:
            raise UserError("serving.batches is unset: name a folder or s3:// prefix for batches")
        self._settings = settings
        self._jobs = jobs
        self._storage = Storage(settings.storage)
        self._root = self._storage.absolute(settings.serving.batches)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="batches")

    async def create(
        self, request: BatchRequest, tasks: tuple[str, ...], caller: str, idempotency_key: str | None
    ) -> tuple[Batch, bool]:
        """Start a batch; with a key that was used before, the batch of then.

        Returns:
            The batch, and whether it is new.

        Raises:
            Problem: The request is not valid, the key was used for another one, or the cluster does not answer.
        """
        return await self._guarded(self._create, request, tasks, caller, idempotency_key)

    async def get(self, batch_id: str, caller: str) -> Batch:
        """The batch as it stands.

        Raises:
            Problem: This caller has no such batch, or it cannot be looked up.
        """
        return await self._guarded(lambda: self._show(self._read(batch_id, caller)))

    async def stop(self, batch_id: str, caller: str) -> Batch:
        """Stop the batch; what it has committed stays.

        Raises:
            Problem: This caller has no such batch, or it cannot be stopped.
        """
        return await self._guarded(self._stop, batch_id, caller)

    async def _guarded(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            async with asyncio.timeout(_MOST_S):
                call = partial(function, *args, **kwargs)
                return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except TimeoutError as error:
            raise Problem(504, "timeout", f"no answer of storage or cluster within {_MOST_S:g} seconds") from error
        except TypedError as error:
            raise of_typed(error, "the batch") from error
        except (ConnectionError, RuntimeError) as error:
            raise Problem(503, "cluster_unavailable", f"Ray's job API: {str(error)[:300]}", retry_after_s=5) from error

    def _create(
        self, request: BatchRequest, tasks: tuple[str, ...], caller: str, idempotency_key: str | None
    ) -> tuple[Batch, bool]:
        serving = self._settings.serving
        if (request.catalog is None) == (request.videos is None):
            raise Problem(422, "invalid_request", "give either catalog or videos")
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        token = secrets.token_hex(8)
        if idempotency_key is not None:
            token = hashlib.sha256(f"{caller}\n{idempotency_key}".encode()).hexdigest()[:16]
        batch_id = f"batch-{token}"
        if idempotency_key is not None and (before := self._find(batch_id)) is not None:
            return self._again(before, digest), False
        catalog = self._catalog(request, batch_id, serving.max_batch_videos)
        record = _Record(
            id=batch_id,
            caller=caller,
            created_at=datetime.now(UTC),
            request_digest=digest,
            catalog=catalog,
            tables=join(self._root, batch_id, "tables"),
            tasks=list(request.tasks or tasks),
            limit=request.limit,
        )
        try:
            self._storage.put_if_absent(self._uri(batch_id), record.model_dump_json(indent=1).encode())
        except AlreadyExists:
            before = self._find(batch_id)
            assert before is not None
            return self._again(before, digest), False
        self._submit(record)
        return self._show(record), True

    def _again(self, before: _Record, digest: str) -> Batch:
        if before.request_digest != digest:
            raise Problem(
                422, "idempotency_conflict", f"the Idempotency-Key belongs to another request (batch {before.id})"
            )
        shown = self._show(before)
        if shown.state not in ("pending", "lost"):
            return shown
        self._submit(before)  # whoever wrote the record may have ended before its job began
        return self._show(before)

    def _catalog(self, request: BatchRequest, batch_id: str, max_videos: int) -> str:
        if request.catalog is not None:
            return self._storage.absolute(allowed_uri(request.catalog, self._settings.serving))
        assert request.videos is not None
        if len(request.videos) > max_videos:
            raise Problem(
                422,
                "too_many_videos",
                f"{len(request.videos)} videos in the list: at most {max_videos}, or give a catalog",
            )
        lines = []
        seen: set[str] = set()
        for number, video in enumerate(request.videos):
            if video.video_id in seen:
                raise Problem(422, "invalid_request", f"videos.{number}.video_id {video.video_id!r} stands there twice")
            seen.add(video.video_id)
            try:
                uri = self._storage.absolute(allowed_uri(video.uri, self._settings.serving))
            except Problem as problem:
                raise Problem(problem.status, problem.code, f"videos.{number}.uri: {problem.detail}") from problem
            lines.append(json.dumps(video.model_dump(exclude_none=True) | {"uri": uri}))
        # By its content: two requests with one key and other videos must not write one file.
        content = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        catalog = join(self._root, batch_id, f"catalog-{content}.jsonl")
        self._storage.put(catalog, "\n".join(lines).encode())
        return catalog

    def _submit(self, record: _Record) -> None:
        command = [sys.executable, "-m", "ray_jobs", "score", "--catalog", record.catalog, "--tables", record.tables]
        for task in record.tasks:
            command += ["--task", task]
        for prefix in self._settings.serving.buckets:
            command += ["--within", self._storage.absolute(prefix)]  # the job works in a folder of its own
        if record.limit is not None:
            command += ["--limit", str(record.limit)]
        self._jobs.submit(record.id, shlex.join(command), self._env())
        # Whoever stopped it before its job was there has found none to stop.
        if (stored := self._find(record.id)) is not None and stored.stopped:
            self._jobs.stop(record.id)

    def _env(self) -> dict[str, str]:
        """Storage and tracking for the job, without secrets: those are the cluster's own environment."""
        env = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}  # from SIGTERM to SIGKILL: time for the last commit
        tracking = self._settings.tracking.uri
        if shown_uri(tracking) == tracking:  # else a password stands in it
            env[f"{ENV_PREFIX}TRACKING{ENV_DELIMITER}URI"] = absolute_uri(tracking)
        env[f"{ENV_PREFIX}TRACKING{ENV_DELIMITER}EXPERIMENT"] = self._settings.tracking.experiment
        for name, value in self._settings.storage.model_dump(exclude=set(_CREDENTIALS), exclude_none=True).items():
            assert not isinstance(value, SecretStr), name
            env[f"{ENV_PREFIX}STORAGE{ENV_DELIMITER}{name.upper()}"] = str(value)
        return env

    def _stop(self, batch_id: str, caller: str) -> Batch:
        record = self._read(batch_id, caller)
        before = self._show(record)
        if before.state not in ("pending", "running"):
            return before
        record.stopped = True
        self._storage.put(self._uri(batch_id), record.model_dump_json(indent=1).encode())
        self._jobs.stop(batch_id)
        return self._show(record)

    def _show(self, record: _Record) -> Batch:
        run = self._newest_run(record.tables)
        found = self._jobs.status(record.id)
        if found is None:
            # Of a job of a cluster that is gone its own last word counts.
            state, message = _without_job(record, run), "the cluster does not know its job: ask again with its key"
        else:
            state, message = _STATES.get(found[0], "failed"), _last_word(found[1])
            if record.stopped and state == "failed":
                state = "stopped"
        if run is not None and run.message:
            message = run.message
        counts = None
        if run is not None:
            num_quarantined = sum(run.outcome.quarantined.values())
            counts = BatchCounts(
                due=run.num_due,
                done=run.outcome.scored + run.outcome.no_face + num_quarantined,
                scored=run.outcome.scored,
                no_face=run.outcome.no_face,
                quarantined=num_quarantined,
            )
        links = {"self": f"/v1/batches/{record.id}", "catalog": record.catalog, "tables": record.tables}
        return Batch(
            id=record.id,
            state=state,
            message="" if state in ("pending", "running", "succeeded") else message[-1000:],
            created_at=record.created_at,
            catalog=record.catalog,
            tables=record.tables,
            tasks=record.tasks,
            counts=counts,
            links=links,
        )

    def _newest_run(self, tables: str) -> _Run | None:
        runs = []
        try:
            uris = [
                stat.uri
                for stat in self._storage.list_prefix(join(tables, RUN_FOLDER))
                if stat.uri.endswith("/run.json")
            ]
        except ObjectNotFound:
            return None
        for uri in uris:
            with contextlib.suppress(ValidationError, ObjectNotFound):
                runs.append(_Run.model_validate_json(self._storage.read_all(uri)))
        return max(runs, key=lambda run: run.started_at, default=None)

    def _uri(self, batch_id: str) -> str:
        return join(self._root, batch_id, "batch.json")

    def _find(self, batch_id: str) -> _Record | None:
        try:
            return _Record.model_validate_json(self._storage.read_all(self._uri(batch_id)))
        except ObjectNotFound:
            return None

    def _read(self, batch_id: str, caller: str) -> _Record:
        record = self._find(batch_id)
        if record is None or record.caller != caller:
            raise Problem(404, "unknown_batch", f"there is no batch {batch_id}")
        return record


def _last_word(message: str) -> str:
    """What the verb says itself, within Ray's word about a job, which quotes the end of its log; else all of it."""
    errors = [line for line in message.splitlines() if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else message
