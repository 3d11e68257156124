"""The service when there is more to do than it can: queues, deadlines, batches, clients that leave."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from models.predictor import VideoPrediction
from serve.admission import Admission
from serve.batching import Batcher, Item
from serve.client import Client, Retries
from serve.faces import FaceReader
from serve.problems import Problem
from serve.scoring import Wish
from serve.uploads import Source
from tests.serving import FACE, REEL, Service, running_service


def test_beyond_its_queue_it_refuses_at_once() -> None:
    async def story() -> None:
        admission = Admission(max_running=1, max_waiting=1, retry_after_s=7)
        leave = asyncio.Event()

        async def work() -> None:
            async with admission.slot():
                await leave.wait()

        running, waiting = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (admission.num_running, admission.num_waiting) == (1, 1)
        with pytest.raises(Problem) as refused:
            async with admission.slot():
                pass
        assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "overloaded", 7)
        waiting.cancel()  # its client has left
        await asyncio.gather(waiting, return_exceptions=True)
        assert admission.num_waiting == 0
        leave.set()
        await running
        assert admission.num_running == 0
        admission.draining = True
        with pytest.raises(Problem, match="ending"):
            async with admission.slot():
                pass

    asyncio.run(story())


def test_overload_is_told_and_passes(tmp_path: Path) -> None:
    with running_service(tmp_path, max_running=1, max_waiting=1, retry_after_s=1) as service:
        data = FACE.read_bytes()

        def once(_: int) -> tuple[int, str | None]:
            response = httpx.post(f"{service.url}/v1/images:score", content=data, timeout=60)
            return response.status_code, response.headers.get("Retry-After")

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(once, range(24)))
        assert {status for status, _ in answers} == {200, 429}
        assert all(after == "1" for status, after in answers if status == 429)
        # A client that waits as it is told.
        with Client(service.url, retries=Retries(most=1000)) as patient, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: patient.score_image(data, tasks=["fs2k"]), range(8)))
        assert len(found) == 8
        assert service.engine.admission.num_running == service.engine.admission.num_waiting == 0


def test_a_request_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with running_service(tmp_path, max_request_s=0.02) as service:
        response = httpx.post(f"{service.url}/v1/videos:score", content=REEL.read_bytes(), timeout=60)
        assert (response.status_code, response.json()["code"]) == (504, "timeout")
        assert service.engine.admission.num_running == 0


def test_a_cancelled_read_ends_its_decoder(service: Service, tmp_path: Path) -> None:
    async def story() -> None:
        reader = FaceReader(service.settings.storage, service.settings.serving, num_children=1)
        policies = service.engine.chosen(Wish(("fs2k",)), "")[0].policies
        slow = replace(policies, frames=policies.frames.model_copy(update={"every": 1, "limit": 60}))
        (sandbox,) = reader._sandboxes
        before = sandbox.child_pid
        task = asyncio.create_task(reader.read(Source("video", data=REEL.read_bytes()), (slow,)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = await reader.read(Source("video", data=REEL.read_bytes()), (policies,))
        assert len(found[policies].crops.crops) > 0
        assert sandbox.child_pid != before
        reader.close()

    asyncio.run(story())


def test_who_leaves_takes_no_other_request_along(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled at whatever moment, a read never interrupts a decoder that it has already given back."""

    class AtOnce(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(function(*args, **kwargs))
            return future

    reader = FaceReader(service.settings.storage, service.settings.serving, num_children=1)
    (sandbox,) = reader._sandboxes
    given_back = []

    async def story() -> None:
        policies = service.engine.chosen(Wish(("fs2k",)), "")[0].policies
        monkeypatch.setattr(reader, "_read", lambda *_: {})
        monkeypatch.setattr(reader, "_threads", AtOnce())
        monkeypatch.setattr(sandbox, "interrupt", lambda: given_back.append(not reader._free.empty()))
        for num_ticks in range(8):
            task = asyncio.create_task(reader.read(Source("picture", data=b""), (policies,)))
            for _ in range(num_ticks):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while reader._free.empty():
                await asyncio.sleep(0)

    asyncio.run(story())
    assert not any(given_back)
    monkeypatch.undo()
    reader.close()


def test_batches_form_while_one_is_computed() -> None:
    """What waits goes together; what is too large goes alone; who leaves or fails takes nobody along."""
    live: Any = object()
    sizes: list[list[int]] = []
    go = threading.Event()

    def predict(items: Sequence[Item]) -> list[VideoPrediction]:
        sizes.append([len(item.crops) for item in items])
        go.wait(10)
        if any(len(item.crops) == 13 for item in items):
            raise RuntimeError("unlucky")
        return [VideoPrediction({"n": len(item.crops)}, {}) for item in items]

    async def story() -> None:
        batcher = Batcher(predict, max_faces=8)

        def ask(num_faces: int) -> asyncio.Task[VideoPrediction]:
            return asyncio.create_task(batcher.predict(Item(live, np.empty((num_faces, 1, 1, 3), np.uint8))))

        first = ask(1)
        while not sizes:
            await asyncio.sleep(0.001)
        tasks = [ask(number) for number in (2, 3, 3, 4, 100, 13, 1)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        go.set()
        found = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert sizes == [[1], [2, 3], [4], [100], [13], [1]]
        assert isinstance(found[2], asyncio.CancelledError)
        assert isinstance(found[6], RuntimeError)
        answers = [one.columns["n"] for one in found if isinstance(one, VideoPrediction) and one.columns]
        assert answers == [1, 2, 3, 4, 100, 1]
        assert (await ask(5)).columns == {"n": 5}
        batcher.close()

    asyncio.run(story())


def test_more_crops_than_a_batch_are_answered(service: Service) -> None:
    crops = np.zeros((100, 40, 40, 3), np.uint8)
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        tensor = triton.InferInput("crops", list(crops.shape), "UINT8")
        tensor.set_data_from_numpy(crops)
        assert client.infer("fs2k", [tensor]).as_numpy("smile").shape == (100,)
