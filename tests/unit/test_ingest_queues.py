"""When hosts are asked: rate, concurrency, robots.txt and pauses, on a clock of the test's own."""

import pytest

from infra.errors import TypedError
from ray_jobs.ingesting.failures import Failed, FetchFailure
from ray_jobs.ingesting.queues import HostQueues, Job
from ray_jobs.ingesting.rules import HostRules, IngestRules

RULES = IngestRules(robots="ignore", per_host=HostRules(concurrency=2, requests_per_s=1))


def _job(url: str) -> Job:
    return Job(url, url)


def _queues(rules: IngestRules, *urls: str) -> HostQueues:
    queues = HostQueues(rules)
    for url in urls:
        queues.add(_job(url))
    return queues


def _taken(queues: HostQueues, now_s: float) -> list[str]:
    found = []
    while (job := queues.take(now_s)) is not None:
        found.append(job.target)
    return found


def test_a_host_is_asked_at_its_rate_and_no_more_at_once_than_it_may() -> None:
    queues = _queues(RULES, *(f"http://a/{n}" for n in range(4)))
    assert _taken(queues, 0.0) == ["http://a/0"]
    assert queues.due_s() == 1.0
    assert _taken(queues, 0.9) == []
    assert _taken(queues, 1.0) == ["http://a/1"]
    assert _taken(queues, 9.0) == []  # two are under way
    assert queues.due_s() is None
    queues.done(_job("http://a/0"))
    assert _taken(queues, 9.0) == ["http://a/2"]
    assert queues.num_waiting == 1


def test_hosts_do_not_wait_for_each_other_and_named_ones_have_their_own_limits() -> None:
    rules = RULES.model_copy(update={"hosts": {"b": HostRules(concurrency=3, requests_per_s=1000)}})
    queues = _queues(rules, "http://a/0", "http://a/1", "http://b/0", "http://b/1")
    assert _taken(queues, 0.0) == ["http://a/0", "http://b/0"]
    assert _taken(queues, 0.001) == ["http://b/1"]


def test_a_pause_holds_a_whole_host_and_a_later_job_waits_for_its_own_time() -> None:
    queues = _queues(RULES, "http://a/0", "http://b/0")
    queues.pause(_job("http://a/0"), 5.0)
    queues.add(_job("http://b/1"), 7.0)
    assert _taken(queues, 1.0) == ["http://b/0"]
    assert queues.due_s() == 5.0
    assert _taken(queues, 5.0) == ["http://a/0"]
    assert _taken(queues, 6.9) == []
    assert _taken(queues, 7.0) == ["http://b/1"]


def test_robots_comes_first_and_alone_and_its_delay_is_kept() -> None:
    rules = RULES.model_copy(update={"robots": "follow"})
    queues = _queues(rules, "http://a/0", "http://a/private/1", "http://a/2")
    robots = queues.take(0.0)
    assert robots is not None
    assert robots.is_robots
    assert robots.target == "http://a/robots.txt"
    assert _taken(queues, 50.0) == []
    queues.done(robots)
    queues.opened(robots, "User-agent: *\nCrawl-delay: 10\nDisallow: /private/")
    assert _taken(queues, 50.0) == ["http://a/0"]
    assert _taken(queues, 59.9) == []
    assert _taken(queues, 60.0) == ["http://a/2"]
    assert [(job.target, failed.reason) for job, failed in queues.refused()] == [
        ("http://a/private/1", "robots_disallow")
    ]
    assert queues.num_waiting == 0


def test_a_delay_beyond_the_rules_gives_the_host_up() -> None:
    rules = RULES.model_copy(update={"robots": "follow", "max_crawl_delay_s": 60})
    queues = _queues(rules, "http://a/0")
    robots = queues.take(0.0)
    assert robots is not None
    queues.done(robots)
    queues.opened(robots, "User-agent: facereel\nCrawl-delay: 86400")
    ((job, failed),) = queues.refused()
    assert (job.url, failed.reason) == ("http://a/0", "robots_delay")
    assert "86400 s" in failed.detail


def test_a_host_that_is_given_up_refuses_what_waits_and_what_comes() -> None:
    queues = _queues(RULES, "http://a/0", "http://a/1", "http://b/0")
    queues.refuse(_job("http://a/0"), Failed("rate_limited", "later", retryable=True))
    queues.add(_job("http://a/2"))
    assert sorted(job.url for job, _ in queues.refused()) == ["http://a/0", "http://a/1", "http://a/2"]
    assert list(queues.refused()) == []
    assert _taken(queues, 0.0) == ["http://b/0"]


@pytest.mark.parametrize(("target", "kept"), [("http://a/2", {"Referer": "x"}), ("http://b/2", {})])
def test_headers_for_one_host_do_not_go_to_another(target: str, kept: dict[str, str]) -> None:
    moved = Job("http://p/1", "http://a/1", {"Referer": "x"}).moved(target)
    assert (moved.url, moved.target, moved.headers, moved.redirects) == ("http://p/1", target, kept, 1)


def test_reasons_of_fetching_are_not_reasons_of_the_quarantine() -> None:
    assert not issubclass(FetchFailure, TypedError)
