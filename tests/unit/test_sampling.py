"""Frame policies and presentation order: pure arithmetic."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.video.order import MAX_REORDER, OrderUnknown, PresentationOrder
from models.video.sampling import FramePolicy, scaled_size


def test_default_policy_wants_ten_frames_fifty_apart():
    assert FramePolicy().wanted() == (0, 50, 100, 150, 200, 250, 300, 350, 400, 450)


@pytest.mark.parametrize(("every", "limit", "wanted"), [(1, 1, (0,)), (1, 3, (0, 1, 2)), (7, 2, (0, 7))])
def test_every_and_limit(every, limit, wanted):
    assert FramePolicy(every=every, limit=limit).wanted() == wanted


def test_explicit_indices_are_sorted_and_win():
    assert FramePolicy(every=5, limit=2, indices=(9, 0, 4)).wanted() == (0, 4, 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"indices": (3, -1)}, "frame number -1 is negative"),
        ({"indices": (3, 3)}, "stands twice"),
        ({"indices": ()}, "at least 1 item"),
        ({"every": 0}, "greater than or equal to 1"),
        ({"mode": "fast"}, "'exact' or 'keyframe'"),
        ({"evry": 5}, "Extra inputs"),
    ],
)
def test_wrong_policies_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        FramePolicy(**fields)


@given(st.sets(st.integers(0, 10**9), min_size=1, max_size=20))
def test_wanted_is_strictly_increasing(numbers):
    wanted = FramePolicy(indices=tuple(numbers)).wanted()
    assert set(wanted) == numbers
    assert all(a < b for a, b in pairwise(wanted))


@pytest.mark.parametrize(
    ("size", "short_side", "scaled"),
    [
        ((1280, 720), 360, (640, 360)),
        ((720, 1280), 360, (360, 640)),
        ((100, 80), 360, (100, 80)),
        ((360, 360), 360, (360, 360)),
        ((10000, 20), 16, (8000, 16)),
        ((853, 480), 256, (455, 256)),
    ],
)
def test_scaled_size(size, short_side, scaled):
    assert scaled_size(*size, short_side) == scaled


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(16, 4096))
def test_scaling_never_enlarges_and_keeps_the_shape(width, height, short_side):
    scaled_width, scaled_height = scaled_size(width, height, short_side)
    assert min(scaled_width, scaled_height) == min(width, height, short_side)
    assert abs(scaled_width * height - scaled_height * width) <= max(width, height)


def order_of(times: list[int]) -> list[tuple[int, int]]:
    order: PresentationOrder[int] = PresentationOrder()
    settled = [pair for time in times for pair in order.push(time, time)]
    return settled + order.flush()


@given(st.lists(st.integers(-(10**12), 10**12), unique=True, max_size=120), st.randoms(use_true_random=False))
def test_order_numbers_pictures_by_time(times, random):
    times.sort()
    blocks = [times[start : start + MAX_REORDER] for start in range(0, len(times), MAX_REORDER)]
    shuffled = [time for block in blocks for time in random.sample(block, len(block))]
    assert order_of(shuffled) == list(enumerate(times))


def test_order_settles_a_picture_after_the_longest_reordering():
    order: PresentationOrder[str] = PresentationOrder()
    assert [order.push(time, "x") for time in range(MAX_REORDER)] == [[]] * MAX_REORDER
    assert order.push(MAX_REORDER, "x") == [(0, "x")]
    assert order.num_pushed == MAX_REORDER + 1


@pytest.mark.parametrize("times", [[*range(20), 1], [0, 5, 5], [5, 5]])
def test_late_or_equal_times_have_no_order(times):
    with pytest.raises(OrderUnknown):
        order_of(times)
