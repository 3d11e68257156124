"""The Python clients: their waits, their errors, one answer from both."""

import asyncio
import time

import httpx
import pytest

from serve.client import AsyncClient, Client, Retries, ServiceError
from serve.schemas import ScoreAnswer
from tests.serving import REEL, Service


def test_the_client_waits_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    answers = [
        httpx.Response(
            429, headers={"Retry-After": "3"}, json={"code": "overloaded", "detail": "later", "request_id": "r0"}
        ),
        httpx.Response(503, json={"code": "not_ready", "detail": "later", "request_id": "r0"}),
        httpx.Response(200, json={"models": [], "refused": {}, "limits": {}, "batches": False}),
    ]
    with Client("http://service", transport=httpx.MockTransport(lambda request: answers.pop(0))) as client:
        assert client.service().models == []
    assert 3 + 0.125 <= waits[0] <= 3 + 0.25
    assert 0.25 <= waits[1] <= 0.5
    refusal = httpx.Response(422, json={"code": "corrupt", "detail": "image: broken", "request_id": "r1"})
    with Client("http://service", transport=httpx.MockTransport(lambda request: refusal)) as client:
        with pytest.raises(ServiceError) as error:
            client.score_image(b"x")
        with pytest.raises(ValueError, match="either"):
            client.score_image()
    assert (error.value.status, error.value.code, error.value.request_id) == (422, "corrupt", "r1")
    assert len(waits) == 2


def test_what_the_service_has_not_said_itself_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's error in plain text, and the service's own of the same status."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    own = {"code": "internal_error", "detail": "an unexpected error", "request_id": "r0"}
    answers = [
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(504, html="<p>Gateway Timeout"),
        httpx.Response(500, headers={"Content-Type": "application/problem+json; charset=utf-8"}, json=own),
    ]
    with (
        Client("http://service", transport=httpx.MockTransport(lambda request: answers.pop(0))) as client,
        pytest.raises(ServiceError, match="unexpected") as error,
    ):
        client.service()
    assert (error.value.status, error.value.code, answers) == (500, "internal_error", [])


def test_both_clients_say_the_same(service: Service, client: Client) -> None:
    async def story() -> ScoreAnswer:
        async with AsyncClient(service.url) as one:
            with pytest.raises(ServiceError, match="not_an_image"):
                await one.score_image(b"nothing")
            await one.service()
            return await one.score_video(REEL, tasks=["fs2k"])

    assert asyncio.run(story()).tasks["fs2k"].values == client.score_video(REEL, tasks=["fs2k"]).tasks["fs2k"].values
    with (
        Client("http://127.0.0.1:9", retries=Retries(most=2, first_wait_s=0.01)) as nobody,
        pytest.raises(ServiceError, match="no_answer"),
    ):
        nobody.service()
