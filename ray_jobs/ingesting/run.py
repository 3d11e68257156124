"""Fetch what is missing: give out requests as hosts allow, note what became of each, say it by reason."""

import hashlib
import secrets
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import ray
from rich.table import Table

from infra.errors import RunStopped, UserError
from infra.leases import Lease, duration, refuse_if_held
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tables import DeltaStore
from ray_jobs.cluster import connect
from ray_jobs.console import RunProgress, console
from ray_jobs.ingesting.failures import Failed, FetchFailure, RateLimited
from ray_jobs.ingesting.fetcher import OBJECTS, Answer, Fetcher, Next, Robots, Stored
from ray_jobs.ingesting.queues import HostQueues, Job
from ray_jobs.ingesting.resolvers import load_resolver
from ray_jobs.ingesting.rules import IngestRules
from ray_jobs.ingesting.sources import Addresses, read_addresses
from ray_jobs.ingesting.state import FETCHED, SCHEMA, TABLE, Known, read_state, row_of
from ray_jobs.interrupts import Interrupts
from ray_jobs.labels.rules import LabelRules
from ray_jobs.telemetry import begin_ingesting, tell_ingested

COMMIT_ROWS = 1000
COMMIT_S = 10.0
THREADS = 16  # requests that one fetching process has under way
NUM_HOSTS = 10
FETCHER_DIED = "fetcher_died"
LOOK_S = 0.5  # a signal waits this long at most


@dataclass(frozen=True, slots=True)
class IngestConfig:
    """One run."""

    source: str
    into: str
    resolver: str | None = None
    retry: tuple[str, ...] = ()
    limit: int | None = None
    dry_run: bool = False
    rules: IngestRules = field(default_factory=IngestRules)
    label_rules: LabelRules = field(default_factory=LabelRules)


def run_ingest(config: IngestConfig, settings: Settings) -> dict[str, Known]:
    """Fetch the addresses of the source that are not fetched yet; the newest word on each address of the source.

    Every address that ends is committed within seconds; one that a crash interrupts goes on in the next run, on the
    same machine from the byte where it stopped.

    Raises:
        UserError: The source is unusable, or another run writes there.
        RunStopped: A signal came; what was committed stays.
        TypedError: The table of addresses cannot be written.
    """
    storage = Storage(settings.storage)
    config = replace(config, into=storage.absolute(config.into))  # fetchers run in directories of their own
    source = read_addresses(config.source, storage, config.label_rules)
    if not source.urls:
        raise UserError(f"{config.source}: no address begins with http:// or https:// ({_spoken_source(source)})")
    if config.resolver is not None:
        load_resolver(config.resolver)  # its mistakes are the user's, and said before anything starts
    known = read_state(config.into, storage)
    due = [url for url in source.urls if _is_due(known.get(url), config.retry)]
    _print_plan(config, source, known, due)
    due = due[: config.limit]
    if due and not config.dry_run:
        refuse_if_held(storage, config.into)
        known |= _Run(config, settings, storage).fetch(due)
    return {url: known[url] for url in source.urls if url in known}


def _is_due(known: Known | None, retry: tuple[str, ...]) -> bool:
    if known is None:
        return True
    return known.state != FETCHED and (known.retryable or known.state in retry or "all" in retry)


class _Run:
    def __init__(self, config: IngestConfig, settings: Settings, storage: Storage) -> None:
        self._config, self._settings, self._storage = config, settings, storage
        self._rules = config.rules
        self._run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._queues = HostQueues(config.rules)
        self._rows: list[dict[str, Any]] = []
        self._num_commits, self._committed_s = 0, time.monotonic()
        self._ended: dict[str, Known] = {}
        self._counts: Counter[str] = Counter()
        self._num_bytes = self._num_resumed = self._num_same = 0

    def fetch(self, urls: list[str]) -> dict[str, Known]:
        """Fetch them all, or end each with a reason."""
        store = DeltaStore(self._config.into, self._storage)
        cluster = connect(self._settings.cluster)
        with (
            Interrupts() as interrupts,
            Lease(
                self._storage,
                self._config.into,
                f"run {self._run_id}, ingesting {self._config.source}",
                after=store.epoch(TABLE),
            ) as self._lease,
            RunProgress("ingest", len(urls), unit="addresses") as progress,
        ):
            self._store = store.with_epoch(self._lease.epoch)
            self._store.fence(TABLE, SCHEMA)
            begin_ingesting([FETCHED, FETCHER_DIED, *(kind.reason for kind in FetchFailure.__subclasses__())])
            fetchers = self._fetchers(cluster.num_cpus_now)
            for url in urls:
                self._add(Job(url, url))
            try:
                self._fetch_all(fetchers, len(urls), progress, interrupts)
            finally:
                for fetcher in fetchers:
                    ray.kill(fetcher)
        self._print_result(len(urls))
        return self._ended

    def _fetch_all(self, fetchers: list[Any], num_urls: int, progress: RunProgress, interrupts: Interrupts) -> None:
        running: dict[ray.ObjectRef[Answer], Job] = {}
        while True:
            self._give_out(fetchers, running)
            self._note_refused()
            progress.update(len(self._ended), self._note())
            if not running and not self._queues.num_waiting:
                break
            for reference in self._arrived(running):
                job = running.pop(reference)
                self._queues.done(job)
                self._take(job, _answer(reference))
            self._commit_if_due()
            if interrupts.received is not None:
                self._commit()
                message = f"stopped by {interrupts.received.name}: {len(self._ended)} of {num_urls} addresses ended"
                print(f"stopped: {message}; go on with the same command", file=sys.stderr, flush=True)
                raise RunStopped(message, 128 + interrupts.received)
        self._commit()

    def _fetchers(self, num_cpus: float) -> list[Any]:
        """Processes all over the cluster; each address always goes to the same one, where a part of it may lie."""
        number = max(1, min(-(-self._rules.concurrency // THREADS), int(num_cpus)))
        actor = ray.remote(Fetcher).options(
            num_cpus=0, max_concurrency=THREADS, max_restarts=-1, max_task_retries=2, scheduling_strategy="SPREAD"
        )
        arguments = (self._config.into, self._settings.storage, self._rules, self._config.resolver)
        return [actor.remote(*arguments) for _ in range(number)]

    def _give_out(self, fetchers: list[Any], running: dict[ray.ObjectRef[Answer], Job]) -> None:
        while len(running) < self._rules.concurrency:
            job = self._queues.take(time.monotonic())
            if job is None:
                return
            fetcher = fetchers[_place(job.url) % len(fetchers)]
            running[fetcher.fetch.remote(job)] = job

    def _arrived(self, running: Mapping[ray.ObjectRef[Answer], Job]) -> list[ray.ObjectRef[Answer]]:
        due_s = self._queues.due_s()
        is_full = len(running) >= self._rules.concurrency
        wait_s = LOOK_S if due_s is None or is_full else min(LOOK_S, max(0.0, due_s - time.monotonic()))
        if not running:
            time.sleep(wait_s)
            return []
        ready, rest = ray.wait(list(running), num_returns=1, timeout=wait_s)
        more, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if ready and rest else ([], [])
        return [*ready, *more]

    def _add(self, job: Job, not_before_s: float = 0.0) -> None:
        try:
            self._queues.add(job, not_before_s)
        except FetchFailure as failure:
            self._end(job, failure.as_value())

    def _note_refused(self) -> None:
        for job, failed in self._queues.refused():
            self._end(job, failed)

    def _take(self, job: Job, answer: Answer) -> None:
        """What follows from an answer: an end, another request, or another try."""
        if isinstance(answer, Robots):
            self._queues.opened(job, answer.text)
        elif isinstance(answer, Next):
            if answer.is_resolved:
                self._add(Job(job.url, answer.url, dict(answer.headers), is_resolved=True))
            else:
                self._add(job.moved(answer.url))
        elif isinstance(answer, Stored):
            self._end(job, answer)
        else:
            self._try_again(job, answer)

    def _try_again(self, job: Job, failed: Failed) -> None:
        asked_s = failed.retry_after_s or 0.0
        again_s = time.monotonic() + max(asked_s, self._rules.backoff_s * 2**job.attempts)
        is_patient = asked_s <= self._rules.max_retry_after_s
        if failed.reason == RateLimited.reason:  # the host as a whole wants to be left alone
            if is_patient:
                self._queues.pause(job, again_s)
            else:
                self._queues.refuse(job, replace(failed, detail=f"{failed.detail}, try again in {asked_s:.0f} s"))
        is_worth_it = failed.retryable and is_patient and job.attempts + 1 < self._rules.attempts
        if job.is_robots:  # the queue asks for it again, as long as it knows none
            if is_worth_it:
                self._queues.pause(job, again_s)
            else:
                self._queues.refuse(job, replace(failed, detail=f"{job.target}: {failed.detail}"))
        elif is_worth_it:
            self._add(replace(job, attempts=job.attempts + 1), again_s)
        else:
            self._end(job, failed)

    def _end(self, job: Job, answer: Stored | Failed) -> None:
        row = row_of(job, answer, self._run_id)
        self._rows.append(row)
        self._ended[job.url] = Known(*(row[name] for name in ("state", "retryable", "detail", "uri", "sha256")))
        self._counts[row["state"]] += 1
        tell_ingested(row["state"], row["size_bytes"] or 0)
        if isinstance(answer, Stored):
            self._num_bytes += answer.size_bytes
            self._num_resumed += answer.resumed_at > 0
            self._num_same += not answer.is_new

    def _commit_if_due(self) -> None:
        if len(self._rows) >= COMMIT_ROWS or time.monotonic() - self._committed_s >= COMMIT_S:
            self._commit()

    def _commit(self) -> None:
        self._committed_s = time.monotonic()
        if self._rows:
            self._lease.check()
            self._num_commits += 1
            rows = pa.Table.from_pylist(self._rows, schema=SCHEMA)
            self._store.append(TABLE, rows, run_id=self._run_id, sequence=self._num_commits)
            self._rows.clear()

    def _note(self) -> str:
        num_failed = self._counts.total() - self._counts[FETCHED]
        return f"{self._num_bytes / 1e6:.1f} MB, {num_failed} failed"

    def _print_result(self, num_urls: int) -> None:
        table = Table(title=f"run {self._run_id}: {num_urls:,} addresses")
        table.add_column("state")
        table.add_column("number", justify="right")
        table.add_column("tried again by the next run")
        table.add_column("for example", overflow="fold")
        for state, number in sorted(self._counts.items(), key=lambda item: (item[0] != FETCHED, -item[1], item[0])):
            url, known = next((url, known) for url, known in self._ended.items() if known.state == state)
            retried = "" if state == FETCHED else "yes" if known.retryable else f"no (--retry {state})"
            table.add_row(state, f"{number:,}", retried, f"{url}{': ' if known.detail else ''}{known.detail}")
        console.print(table)
        console.print(
            f"{self._num_bytes / 1e6:.1f} MB in {self._num_commits} commits; {self._num_same} addresses led to content "
            f"that was there already, {self._num_resumed} went on from a part of an earlier try\n"
            f"videos: {join(self._config.into, OBJECTS)}; every address: the Delta table "
            f"{join(self._config.into, TABLE)}",
            highlight=False,
        )


def _answer(reference: ray.ObjectRef[Answer]) -> Answer:
    try:
        answer: Answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Failed(FETCHER_DIED, " ".join(str(error).split())[:300], retryable=True)
    return answer


def _place(url: str) -> int:
    return int(hashlib.sha256(url.encode()).hexdigest()[:8], 16)


def _print_plan(config: IngestConfig, source: Addresses, known: Mapping[str, Known], due: Sequence[str]) -> None:
    console.print(f"{config.source}: {_spoken_source(source)}", highlight=False)
    states = Counter(known[url].state for url in source.urls if url in known)
    before = ", ".join(f"{number:,} {state}" for state, number in states.most_common()) or "nothing yet"
    console.print(f"{config.into}: {before}; {len(due):,} due now", highlight=False)
    if not config.dry_run:
        return
    hosts = Counter(urlsplit(url).hostname or "" for url in due)
    table = Table(title="would be asked")
    for name in ("host", "addresses", "at once", "requests/s", "at least"):
        table.add_column(name, justify="left" if name == "host" else "right")
    for host, number in hosts.most_common(NUM_HOSTS):
        limits = config.rules.of_host(host)
        at_least = duration(number / limits.requests_per_s)
        table.add_row(host, f"{number:,}", str(limits.concurrency), f"{limits.requests_per_s:g}", at_least)
    console.print(table)
    if len(hosts) > NUM_HOSTS:
        console.print(f"and {len(hosts) - NUM_HOSTS:,} more hosts")


def _spoken_source(source: Addresses) -> str:
    removed = f", {source.num_removed:,} of them removed by the rules for labels" if source.num_removed else ""
    stored = f", {source.num_in_storage:,} paths and objects" if source.num_in_storage else ""
    return f"{source.num_rows:,} rows{removed}; {len(source.urls):,} addresses of the web{stored}"
