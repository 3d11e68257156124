"""The Python client: blocking and asynchronous, with retries that keep to Retry-After.

with Client("http://127.0.0.1:8000") as client:
    answer = client.score_image(Path("photo.jpg"))
    print(answer.tasks["attractiveness"].values["score"])
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict

import httpx
from typing_extensions import Unpack

from serve.schemas import Batch, ScoreAnswer, ServiceInfo

ENDED = frozenset({"succeeded", "failed", "stopped", "lost"})
_TRY_AGAIN = frozenset({429, 502, 503})
_PROBLEM = "application/problem+json"
Picture = Path | bytes


class ScoreOptions(TypedDict, total=False):
    """What a request for a score may say besides.

    ``uri`` is an object in an allowed bucket, instead of bytes; ``tasks`` are all by default; ``model`` is whom to ask;
    ``several_people`` is what to do where a frame shows more than one face.
    """

    uri: str | None
    tasks: Sequence[str]
    model: Literal["champion", "challenger"] | None
    several_people: Literal["answer", "abstain"]


class BatchOptions(TypedDict, total=False):
    """What a batch may be told.

    ``videos`` (``video_id``, ``uri``, perhaps ``creator_id``) stand instead of a catalog; ``tasks`` are all by default;
    ``limit`` is the most videos to score; the same ``idempotency_key`` starts one batch.
    """

    videos: list[dict[str, str]] | None
    tasks: list[str] | None
    limit: int | None
    idempotency_key: str | None


class ServiceError(Exception):
    """What the service has refused, or why it cannot be reached.

    Attributes:
        status: HTTP status; 0 where there was no answer.
        code: the problem's stable name; ``no_answer`` where there was none.
        request_id: of the last try, for whoever reads the service's log.
    """

    def __init__(self, status: int, code: str, detail: str, request_id: str = "") -> None:
        super().__init__(f"{detail} ({code}{f', request {request_id}' if request_id else ''})")
        self.status, self.code, self.detail, self.request_id = status, code, detail, request_id


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how patiently a request is tried again, where that may help.

    That is 429, 502, 503, no connection, and a 5xx that is no problem+json: the service has not said it, but the proxy
    before it, whose replica has gone (under Ray Serve HAProxy says 500 then). No request does a thing twice.

    Attributes:
        most: tries, the first included.
        first_wait_s: before the second try; doubled from try to try, each shortened by up to a half by lot, and added
            to what Retry-After asks, so that those who were refused together do not come back together.
        longest_wait_s: bound of a wait, also of what Retry-After asks.
    """

    most: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 30.0

    def wait_s(self, num_tries: int, response: httpx.Response | None) -> float | None:
        """Seconds until the next try; None: there is none."""
        if num_tries >= self.most or (response is not None and not _may_pass(response)):
            return None
        own: float = self.first_wait_s * 2 ** (num_tries - 1) * random.uniform(0.5, 1)
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        return min(self.longest_wait_s, own + (float(asked) if asked.isdigit() else 0.0))


def _may_pass(response: httpx.Response) -> bool:
    """Whether the same request may be answered better a little later."""
    is_problem = response.headers.get("Content-Type", "").partition(";")[0].strip() == _PROBLEM
    return response.status_code in _TRY_AGAIN or (response.is_server_error and not is_problem)


@dataclass(frozen=True, slots=True)
class _Request:
    """A request before it is sent."""

    method: str
    path: str
    params: list[tuple[str, str | int | float | bool | None]] = field(default_factory=list)
    content: bytes | None = None
    json: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def build(self, client: "httpx.Client | httpx.AsyncClient") -> httpx.Request:
        return client.build_request(
            self.method, self.path, params=self.params, content=self.content, json=self.json, headers=self.headers
        )


def _score(kind: Literal["images", "videos"], source: Picture | None, options: ScoreOptions) -> _Request:
    uri = options.get("uri")
    if (source is None) == (uri is None):
        raise ValueError("give either the bytes (or a path) or a uri")
    params: list[tuple[str, str | int | float | bool | None]] = [("task", task) for task in options.get("tasks", ())]
    given = {"several_people": options.get("several_people"), "model": options.get("model"), "uri": uri}
    params += [(name, value) for name, value in given.items() if value is not None]
    content = source.read_bytes() if isinstance(source, Path) else source
    headers = {"Content-Type": "application/octet-stream"} if content is not None else {}
    return _Request("POST", f"/v1/{kind}:score", params, content, headers=headers)


def _batch(catalog: str | None, options: BatchOptions) -> _Request:
    body = {name: value for name, value in {"catalog": catalog, **options}.items() if value is not None}
    # With a key of its own even a caller who gives none starts one batch, however often the request is tried.
    key = str(body.pop("idempotency_key", None) or uuid.uuid4().hex)
    return _Request("POST", "/v1/batches", json=body, headers={"Idempotency-Key": key})


def _answer(response: httpx.Response) -> Any:
    """The JSON of a good answer.

    Raises:
        ServiceError: It is none.
    """
    if response.is_success:
        return response.json()
    try:
        problem = response.json()
        code, detail, request_id = str(problem["code"]), str(problem["detail"]), str(problem["request_id"])
    except (ValueError, KeyError, TypeError):
        request_id = ""
        code, detail = "http_error", f"the service answered {response.status_code}: {response.text[:200]}"
    raise ServiceError(response.status_code, code, detail, request_id)


def _no_answer(error: httpx.TransportError, num_tries: int) -> ServiceError:
    return ServiceError(0, "no_answer", f"no answer in {num_tries} tries: {error or type(error).__name__}")


def _options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=5.0), "trust_env": False}


class Client:
    """The blocking client; usable from several threads.

    Args:
        url: of the service.
        api_key: where it needs one.
        timeout_s: of one try.
        retries: how tries are repeated.
        transport: httpx's; for tests.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 120.0,
        retries: Retries = Retries(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_options(url, api_key, timeout_s), transport=transport)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def score_image(self, image: Picture | None = None, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """Score a picture: bytes, a path, or the uri of an object in an allowed bucket.

        Raises:
            ServiceError: It was refused, or the service cannot be reached.
        """
        return ScoreAnswer.model_validate(self._send(_score("images", image, options)))

    def score_video(self, video: Picture | None = None, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """Score a video; as `score_image`."""
        return ScoreAnswer.model_validate(self._send(_score("videos", video, options)))

    def service(self) -> ServiceInfo:
        """The scorers in use and the limits of a request."""
        return ServiceInfo.model_validate(self._send(_Request("GET", "/v1/service")))

    def create_batch(self, catalog: str | None = None, **options: Unpack[BatchOptions]) -> Batch:
        """Start a batch over a catalog's uri, or over videos (``video_id``, ``uri``, perhaps ``creator_id``)."""
        return Batch.model_validate(self._send(_batch(catalog, options)))

    def get_batch(self, batch_id: str) -> Batch:
        """The batch as it stands."""
        return Batch.model_validate(self._send(_Request("GET", f"/v1/batches/{batch_id}")))

    def stop_batch(self, batch_id: str) -> Batch:
        """Stop the batch; what it has committed stays."""
        return Batch.model_validate(self._send(_Request("DELETE", f"/v1/batches/{batch_id}")))

    def wait_for_batch(
        self, batch_id: str, *, every_s: float = 5.0, progress: Callable[[Batch], None] = lambda batch: None
    ) -> Batch:
        """The batch when it has ended; ``progress`` is called with each look at it."""
        while True:
            batch = self.get_batch(batch_id)
            progress(batch)
            if batch.state in ENDED:
                return batch
            time.sleep(every_s)

    def _send(self, request: _Request) -> Any:
        num_tries = 0
        while True:
            num_tries += 1
            try:
                response = self._http.send(request.build(self._http))
            except httpx.TransportError as error:
                wait_s = self._retries.wait_s(num_tries, None)
                if wait_s is None:
                    raise _no_answer(error, num_tries) from error
            else:
                wait_s = self._retries.wait_s(num_tries, response)
                if wait_s is None or response.is_success:
                    return _answer(response)
            time.sleep(wait_s)


class AsyncClient:
    """The asynchronous client; arguments and methods as those of `Client`."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 120.0,
        retries: Retries = Retries(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, api_key, timeout_s), transport=transport)
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def score_image(self, image: Picture | None = None, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """As `Client.score_image`."""
        return ScoreAnswer.model_validate(await self._send(_score("images", image, options)))

    async def score_video(self, video: Picture | None = None, **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """As `Client.score_video`."""
        return ScoreAnswer.model_validate(await self._send(_score("videos", video, options)))

    async def service(self) -> ServiceInfo:
        """As `Client.service`."""
        return ServiceInfo.model_validate(await self._send(_Request("GET", "/v1/service")))

    async def create_batch(self, catalog: str | None = None, **options: Unpack[BatchOptions]) -> Batch:
        """As `Client.create_batch`."""
        return Batch.model_validate(await self._send(_batch(catalog, options)))

    async def get_batch(self, batch_id: str) -> Batch:
        """As `Client.get_batch`."""
        return Batch.model_validate(await self._send(_Request("GET", f"/v1/batches/{batch_id}")))

    async def stop_batch(self, batch_id: str) -> Batch:
        """As `Client.stop_batch`."""
        return Batch.model_validate(await self._send(_Request("DELETE", f"/v1/batches/{batch_id}")))

    async def wait_for_batch(
        self, batch_id: str, *, every_s: float = 5.0, progress: Callable[[Batch], None] = lambda batch: None
    ) -> Batch:
        """As `Client.wait_for_batch`."""
        while True:
            batch = await self.get_batch(batch_id)
            progress(batch)
            if batch.state in ENDED:
                return batch
            await asyncio.sleep(every_s)

    async def _send(self, request: _Request) -> Any:
        num_tries = 0
        while True:
            num_tries += 1
            try:
                response = await self._http.send(request.build(self._http))
            except httpx.TransportError as error:
                wait_s = self._retries.wait_s(num_tries, None)
                if wait_s is None:
                    raise _no_answer(error, num_tries) from error
            else:
                wait_s = self._retries.wait_s(num_tries, response)
                if wait_s is None or response.is_success:
                    return _answer(response)
            await asyncio.sleep(wait_s)
