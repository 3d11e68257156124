"""When which address may be asked for: one queue a host, with its limits, its pauses and its robots.txt."""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from urllib.robotparser import RobotFileParser

from ray_jobs.ingesting.addresses import origin_of, parse_url
from ray_jobs.ingesting.failures import Failed, RobotsDelay, RobotsDisallow
from ray_jobs.ingesting.rules import IngestRules


@dataclass(frozen=True, slots=True)
class Job:
    """One request to make on the way to the video of ``url``."""

    url: str  # as the table names it
    target: str  # what to ask for now: the url itself, where it was redirected to, or what a resolver found
    headers: dict[str, str] = field(default_factory=dict)
    attempts: int = 0  # tries of ``target`` that failed
    redirects: int = 0
    is_resolved: bool = False
    is_robots: bool = False  # ``target`` is a host's robots.txt; ``url`` is the host's origin

    def moved(self, target: str) -> "Job":
        """The next request after a redirect. Headers that were for one host do not go to another."""
        same = origin_of(parse_url(target)) == origin_of(parse_url(self.target))
        headers = self.headers if same else {}
        return replace(self, target=target, headers=headers, redirects=self.redirects + 1)


@dataclass(slots=True)
class _Host:
    jobs: list[tuple[float, int, Job]] = field(default_factory=list)  # a heap: not before, order of arrival
    num_running: int = 0
    not_before_s: float = 0.0
    interval_s: float = 0.0
    concurrency: int = 1
    robots: RobotFileParser | None = None  # None: not known yet
    is_asked: bool = False  # robots.txt is on its way
    num_asked: int = 0
    refusal: Failed | None = None  # nothing more is asked of the host in this run
    version: int = 0  # of its entry in the heap of hosts


class HostQueues:
    """Jobs by host, given out as the rules and the hosts allow. Times are those of one monotonic clock, in seconds."""

    def __init__(self, rules: IngestRules) -> None:
        self._rules = rules
        self._hosts: dict[str, _Host] = {}
        self._heap: list[tuple[float, int, str, int]] = []
        self._order = itertools.count()
        self._refused: list[tuple[Job, Failed]] = []
        self._num_waiting = 0

    def add(self, job: Job, not_before_s: float = 0.0) -> None:
        """Queue a job at its host.

        Raises:
            BadUrl: Its target is no address.
        """
        parts = parse_url(job.target)
        origin = origin_of(parts)
        host = self._hosts.get(origin)
        if host is None:
            limits = self._rules.of_host(parts.hostname or "")
            host = _Host(interval_s=1 / limits.requests_per_s, concurrency=limits.concurrency)
            if self._rules.robots == "ignore":
                host.robots = _allow_all()
            self._hosts[origin] = host
        if host.refusal is not None:
            self._refused.append((job, host.refusal))
            return
        heapq.heappush(host.jobs, (not_before_s, next(self._order), job))
        self._num_waiting += 1
        self._schedule(origin, host)

    def take(self, now_s: float) -> Job | None:
        """A job that may start now. Its host counts it until `done`."""
        while self._heap and self._heap[0][0] <= now_s:
            _, _, origin, version = heapq.heappop(self._heap)
            host = self._hosts[origin]
            if version != host.version:
                continue
            if host.robots is None:
                host.not_before_s = now_s + host.interval_s
                host.num_running, host.is_asked, host.num_asked = host.num_running + 1, True, host.num_asked + 1
                return Job(origin, f"{origin}/robots.txt", attempts=host.num_asked - 1, is_robots=True)
            _, _, job = heapq.heappop(host.jobs)
            self._num_waiting -= 1
            if not host.robots.can_fetch(self._rules.user_agent, job.target):
                self._refused.append((job, RobotsDisallow(f"{origin}/robots.txt asks not to fetch it").as_value()))
                self._schedule(origin, host)
                continue
            host.not_before_s = now_s + host.interval_s
            host.num_running += 1
            self._schedule(origin, host)
            return job
        return None

    def done(self, job: Job) -> None:
        """A job that was taken has ended, one way or the other."""
        origin = _origin(job)
        host = self._hosts[origin]
        host.num_running -= 1
        host.is_asked = host.is_asked and not job.is_robots
        self._schedule(origin, host)

    def opened(self, job: Job, robots: str) -> None:
        """The host's robots.txt has come, by this job; empty where it has none."""
        origin = _origin(job)
        host = self._hosts[origin]
        host.robots = _allow_all()
        host.robots.parse(robots.splitlines())
        host.robots.modified()
        delay_s = float(host.robots.crawl_delay(self._rules.user_agent) or 0)
        if delay_s > self._rules.max_crawl_delay_s:
            asked = f"{origin}/robots.txt asks for {delay_s:g} s between requests"
            limit = f"ingest.max_crawl_delay_s is {self._rules.max_crawl_delay_s:g}"
            self.refuse(job, RobotsDelay(f"{asked}; {limit}").as_value())
            return
        host.interval_s = max(host.interval_s, delay_s)
        self._schedule(origin, host)

    def pause(self, job: Job, until_s: float) -> None:
        """Ask nothing of the job's host before then."""
        origin = _origin(job)
        host = self._hosts[origin]
        host.not_before_s = max(host.not_before_s, until_s)
        self._schedule(origin, host)

    def refuse(self, job: Job, failure: Failed) -> None:
        """Give up on the job's host for this run: all that waits for it, and what comes, is refused for this reason."""
        origin = _origin(job)
        host = self._hosts[origin]
        host.refusal = failure
        self._refused.extend((job, failure) for _, _, job in sorted(host.jobs, key=lambda item: item[1]))
        self._num_waiting -= len(host.jobs)
        host.jobs.clear()
        self._schedule(origin, host)

    def refused(self) -> Iterator[tuple[Job, Failed]]:
        """Jobs that will not be made, and why; each once."""
        while self._refused:
            yield self._refused.pop()

    def due_s(self) -> float | None:
        """When the next job may start; None where none waits for its time alone."""
        while self._heap and self._heap[0][3] != self._hosts[self._heap[0][2]].version:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    @property
    def num_waiting(self) -> int:
        """Jobs that have not been taken."""
        return self._num_waiting

    def _schedule(self, origin: str, host: _Host) -> None:
        """Put the host's next moment into the heap; what stood there for it no longer counts."""
        host.version += 1
        if not host.jobs or host.num_running >= host.concurrency or host.is_asked:
            return
        first_s = 0.0 if host.robots is None else host.jobs[0][0]
        heapq.heappush(self._heap, (max(host.not_before_s, first_s), next(self._order), origin, host.version))


def _origin(job: Job) -> str:
    return origin_of(parse_url(job.target))


def _allow_all() -> RobotFileParser:
    robots = RobotFileParser()
    robots.parse([])
    return robots
