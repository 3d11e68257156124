"""Presentation order from packets in decode order: which picture is frame k, before anything is decoded."""

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")

# H.264 and HEVC let at most 16 pictures precede a picture in decode order and follow it in presentation order
# (max_num_reorder_frames, ITU-T H.264 E.2.1; sps_max_num_reorder_pics, H.265 7.4.3.2). Other codecs reorder less.
MAX_REORDER = 16


class OrderUnknown(Exception):
    """The packets do not tell the presentation order: frames have to be decoded and counted."""


class PresentationOrder(Generic[T]):
    """Numbers shown pictures by pts while their packets arrive in decode order.

    A picture's number is settled once more than `MAX_REORDER` pictures with a later pts have arrived::

        decode order   pts 0 4 2 1 3 8 6 5 7 ...
        settled        frame 0 (pts 0), 1 (pts 1), 2 (pts 2), ...   each MAX_REORDER packets later
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, T]] = []
        self._num_pushed = 0
        self._num_settled = 0
        self._last_pts: int | None = None

    @property
    def num_pushed(self) -> int:
        """How many shown pictures have arrived."""
        return self._num_pushed

    def push(self, pts: int, item: T) -> list[tuple[int, T]]:
        """Take a shown picture and return the (number, item) pairs that it settles: none or one.

        Raises:
            OrderUnknown: the pts comes too late or twice.
        """
        heapq.heappush(self._waiting, (pts, self._num_pushed, item))
        self._num_pushed += 1
        return [self._pop()] if len(self._waiting) > MAX_REORDER else []

    def flush(self) -> list[tuple[int, T]]:
        """The pairs still waiting, in order, when no packet follows."""
        return [self._pop() for _ in range(len(self._waiting))]

    def _pop(self) -> tuple[int, T]:
        pts, _, item = heapq.heappop(self._waiting)
        if self._last_pts is not None and pts <= self._last_pts:
            raise OrderUnknown(f"pts {pts} after pts {self._last_pts}")
        self._last_pts = pts
        self._num_settled += 1
        return self._num_settled - 1, item
