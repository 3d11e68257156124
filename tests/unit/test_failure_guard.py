"""When a run is stopped: all fail alike at first, or too much fails later."""

import pytest

from ray_jobs.failure_guard import FailureGuard, FailureLimits


def guard(**limits: float) -> FailureGuard:
    return FailureGuard(FailureLimits.model_validate({"max_rate": 0.5, "min_videos": 10, "first": 4} | limits))


def test_the_first_videos_that_all_fail_alike_are_held_back_and_then_stop_the_run() -> None:
    watch = guard()
    assert not watch.holds_back, "nothing has arrived: nothing to hold back"
    watch.add(["access_denied"] * 3)
    assert (watch.holds_back, watch.all_failed_alike) == (True, None)
    watch.add(["access_denied"])
    assert (watch.holds_back, watch.all_failed_alike) == (False, "access_denied")


@pytest.mark.parametrize("other", [None, "truncated"])
def test_one_that_differs_lets_them_go(other: str | None) -> None:
    watch = guard()
    watch.add(["access_denied"] * 3)
    watch.add([other])
    assert (watch.holds_back, watch.all_failed_alike) == (False, None)
    watch.add(["access_denied"] * 20)
    assert watch.all_failed_alike is None


def test_a_success_first_and_failures_later_are_not_failing_first() -> None:
    watch = guard()
    watch.add([None])
    assert not watch.holds_back
    watch.add(["corrupt"] * 8)
    assert (watch.holds_back, watch.all_failed_alike, watch.is_over) == (False, None, False)


def test_zero_never_stops_at_first() -> None:
    watch = guard(first=0)
    watch.add(["corrupt"] * 9)
    assert (watch.holds_back, watch.all_failed_alike) == (False, None)


def test_the_share_counts_after_enough_videos_and_only_beyond_the_limit() -> None:
    watch = guard(first=0)
    watch.add(["corrupt"] * 5 + [None] * 4)
    assert not watch.is_over, "nine are too few"
    watch.add([None])
    assert not watch.is_over, "half is allowed"
    watch.add(["truncated"])
    assert watch.is_over
    assert watch.reasons == {"corrupt": 5, "truncated": 1}


def test_a_limit_of_one_never_stops() -> None:
    watch = guard(first=0, max_rate=1)
    watch.add(["corrupt"] * 1000)
    assert not watch.is_over
