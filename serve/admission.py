"""So many requests in work and so many in the queue: whoever comes beyond is told at once to come later."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve.problems import Problem
from serve.telemetry import metrics


class Admission:
    """A bounded queue in front of bounded work.

    Args:
        max_running: requests in work at once.
        max_waiting: requests that wait for that.
        retry_after_s: what whoever comes beyond is told.
        max_wait_s: longest wait in the queue.
    """

    def __init__(self, max_running: int, max_waiting: int, retry_after_s: int, *, max_wait_s: float = 60.0) -> None:
        self._max_wait_s = max_wait_s
        self._slots = asyncio.Semaphore(max_running)
        self._max_waiting, self._retry_after_s = max_waiting, retry_after_s
        self.num_running = 0
        self.num_waiting = 0
        self.draining = False

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """A place to work in; the seconds that were waited for it.

        Raises:
            Problem: 429, without a wait, where the queue is full; 503 where the service is ending, or the wait is long.
        """
        if self.draining:
            raise Problem(503, "draining", "the service is ending: ask again", retry_after_s=self._retry_after_s)
        if self._slots.locked() and self.num_waiting >= self._max_waiting:
            raise Problem(
                429,
                "overloaded",
                f"{self.num_running} requests are in work and {self.num_waiting} wait: come back later",
                retry_after_s=self._retry_after_s,
            )
        start = time.perf_counter()
        self.num_waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s):
                await self._slots.acquire()
        except TimeoutError as error:
            waited = f"{self._max_wait_s:g} seconds in the queue: come back later"
            raise Problem(503, "queue_timeout", waited, retry_after_s=self._retry_after_s) from error
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        try:
            yield time.perf_counter() - start
        finally:
            self.num_running -= 1
            self._slots.release()

    def show(self) -> None:
        """Publish how many there are."""
        metrics().running.set(self.num_running)
        metrics().waiting.set(self.num_waiting)
