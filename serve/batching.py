"""Dynamic batches: what came while the batch before was computed goes together, and nobody waits for one to fill."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.predictor import Crops, VideoPrediction
from serve.following import LiveScorer


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """The crops of one request for one scorer."""

    live: LiveScorer
    crops: Crops


class Batcher:
    """Runs a function over batches of items, one batch after the other, in a thread of its own.

    Ray Serve's own (`ray.serve.batch`) takes its next batch before the one that runs has ended, so that hardly anything
    is put together, and refuses a single item that is larger than a batch.

    Args:
        predict: what makes of some items their predictions, in order.
        max_faces: most faces in a batch; a single larger item goes alone.
    """

    def __init__(self, predict: Callable[[Sequence[Item]], list[VideoPrediction]], max_faces: int) -> None:
        self._predict, self._max_faces = predict, max_faces
        self._waiting: deque[tuple[Item, asyncio.Future[VideoPrediction]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._running: asyncio.Task[None] | None = None

    async def predict(self, item: Item) -> VideoPrediction:
        """The item's prediction; cancelled before its batch begins, it takes no part."""
        future: asyncio.Future[VideoPrediction] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    def close(self) -> None:
        """End the thread; what waits is not predicted."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self) -> None:
        while batch := self._next():
            items = [item for item, _ in batch]
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, items)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), prediction in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(prediction)

    def _next(self) -> list[tuple[Item, asyncio.Future[VideoPrediction]]]:
        batch: list[tuple[Item, asyncio.Future[VideoPrediction]]] = []
        num_faces = 0
        while self._waiting:
            item, future = self._waiting[0]
            if future.done():  # its client has left
                self._waiting.popleft()
                continue
            if batch and num_faces + len(item.crops) > self._max_faces:
                break
            batch.append(self._waiting.popleft())
            num_faces += len(item.crops)
        return batch
