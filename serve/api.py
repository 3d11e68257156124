"""The HTTP application: routes, the envelope around every request, and the page."""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.datastructures import Headers

from models.registry import CHAMPION
from serve import inference_protocol, problems
from serve.admission import Admission
from serve.batches import Batches
from serve.problems import Problem
from serve.schemas import PROBLEMS, Batch, BatchRequest, ModelInfo, ScoreAnswer, ServiceInfo
from serve.scoring import Engine, Kind, Wish
from serve.security import Caller, Gate
from serve.telemetry import log, metrics
from serve.uploads import read_body, read_source

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WEB = Path(__file__).parent / "web"
# Anybody may ask these: they say nothing of anybody's pictures.
_OPEN = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v1/openapi.json"})
# A replica takes requests once it has its scorers; a registry that does not answer keeps it from that no longer.
FIRST_LOOK_S = 60.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BATCH_BODY_BYTES = 32 << 20
_MAX_HEADER_BYTES = 32 << 10
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
        b"base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    ),
]
TaskNames = Annotated[
    list[str] | None, Query(description="task to answer; repeat for several; default: all", max_length=16)
]
Uri = Annotated[str | None, Query(description="an object in an allowed bucket, instead of a body", max_length=2048)]
People = Annotated[
    Literal["answer", "abstain"],
    Query(description="where a frame shows several faces: answer for the largest, or abstain"),
]
Model = Annotated[
    Literal["champion", "challenger"] | None, Query(description="whom to ask; default: the champion, or by share")
]
ModelHeader = Annotated[Literal["champion", "challenger"] | None, Header(alias="X-Facereel-Model")]
BatchId = Annotated[str, PathParameter(pattern=r"^batch-[0-9a-f]{16}$")]


def _asked(
    task: TaskNames = None, model: Model = None, several_people: People = "answer", x_facereel_model: ModelHeader = None
) -> Wish:
    return Wish(tuple(dict.fromkeys(task or ())), model or x_facereel_model, several_people)


Asked = Annotated[Wish, Depends(_asked)]


def create_app(
    engine: Engine, gate: Gate, batches: Batches | None, *, follow: bool = True, behind_serve: bool = False
) -> FastAPI:
    """The application around an engine.

    Args:
        engine: what answers.
        gate: who may ask.
        batches: None: they are not offered.
        follow: look for other champions while it runs; a test looks by itself.
        behind_serve: Ray Serve puts the request's id into the headers of answers itself.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(engine.following.run()) if follow else None
        if following is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.following.looked.wait(), FIRST_LOOK_S)
        try:
            yield
        finally:
            engine.admission.draining = True
            if following is not None:
                following.cancel()

    app = FastAPI(
        title="facereel",
        version="1",
        description="Scores the faces in pictures and videos. Errors are problem+json with a stable code.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    problems.install(app)
    app.add_middleware(Envelope, gate=gate, engine=engine, with_id=not behind_serve)
    app.include_router(inference_protocol.router(engine))
    _add_scoring(app, engine)
    _add_operations(app, engine, batches is not None)
    if batches is not None:
        _add_batches(app, engine, batches)
    else:

        @app.api_route("/v1/batches{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
        async def no_batches(rest: str) -> None:
            raise Problem(404, "no_batches", "this service offers no batches: serving.batches says where they lie")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/web", StaticFiles(directory=WEB))
    return app


def _add_scoring(app: FastAPI, engine: Engine) -> None:
    bodies = {
        kind: {
            "requestBody": {
                "required": False,
                "content": {
                    f"{kind}/*": {"schema": {"type": "string", "format": "binary"}},
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "properties": {"file": {"type": "string", "format": "binary"}},
                            "required": ["file"],
                            "additionalProperties": False,
                        }
                    },
                },
            }
        }
        for kind in ("image", "video")
    }

    async def score(request: Request, kind: Kind, uri: str | None, wish: Wish) -> JSONResponse:
        serving = engine.settings.serving
        engine.chosen(wish, "")  # before the body is read: who asks for what is not there need not send it
        async with engine.admission.slot() as queued_s:
            max_bytes = serving.max_image_bytes if kind == "image" else serving.max_video_bytes
            source = await read_source(request, uri, serving, max_bytes=max_bytes, what=kind)
            found = await engine.score(source, kind, wish, request.state.request_id, queued_s=queued_s)
        request.state.models = [f"{task}/{item.model.version}/{item.model.role}" for task, item in found.tasks.items()]
        return JSONResponse(found.model_dump(mode="json"))

    described: dict[str, Any] = {"response_model": ScoreAnswer, "responses": PROBLEMS, "tags": ["score"]}

    @app.post("/v1/images:score", openapi_extra=bodies["image"], **described)
    async def score_image(request: Request, wish: Asked, uri: Uri = None) -> JSONResponse:
        """Score the faces of a picture: JPEG, PNG or WebP, as the body, in a form, or in an allowed bucket."""
        return await score(request, "image", uri, wish)

    @app.post("/v1/videos:score", openapi_extra=bodies["video"], **described)
    async def score_video(request: Request, wish: Asked, uri: Uri = None) -> JSONResponse:
        """Score the faces in the frames of a video that the scorer's own frame policy wants."""
        return await score(request, "video", uri, wish)


def _add_operations(app: FastAPI, engine: Engine, with_batches: bool) -> None:
    @app.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"], responses={503: {"description": "No checked scorer is loaded yet."}})
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether every task has a scorer that is loaded and has passed its self-test."""
        ready = engine.following.ready and not engine.admission.draining
        response.status_code = 200 if ready else 503
        models = [f"{item.task}/{item.version}/{item.role}" for item in engine.following.scorers()]
        return {"ready": ready, "models": models}

    @app.get("/v1/service", response_model=ServiceInfo, tags=["operations"])
    async def service() -> ServiceInfo:
        """The scorers in use, and the limits of a request."""
        serving = engine.settings.serving
        models = []
        for item in engine.following.scorers():
            manifest = item.predictor.scorer.manifest
            models.append(
                ModelInfo(
                    task=item.task,
                    role=item.role,
                    version=item.version,
                    digest=item.digest,
                    description=item.predictor.task.description,
                    backbone=manifest.backbone,
                    crop_size=manifest.face_policy.crop_size,
                    metrics=dict(manifest.metrics),
                )
            )
        names = ("max_image_bytes", "max_video_bytes", "max_pixels", "max_duration_s", "max_request_s")
        limits: dict[str, Any] = {name: getattr(serving, name) for name in names}
        return ServiceInfo(models=models, refused=engine.following.troubles(), limits=limits, batches=with_batches)


def _add_batches(app: FastAPI, engine: Engine, batches: Batches) -> None:
    admission = Admission(2, 8, engine.settings.serving.retry_after_s)

    @app.post(
        "/v1/batches",
        response_model=Batch,
        status_code=201,
        responses={
            200: {"model": Batch, "description": "The batch that this Idempotency-Key has started."},
            **PROBLEMS,
        },
        tags=["batches"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": BatchRequest.model_json_schema()}},
            }
        },
    )
    async def create_batch(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(max_length=256, min_length=1)] = None,
    ) -> Batch:
        """Start a scoring job over a catalog or a list of videos."""
        async with admission.slot():
            body = await read_body(request, engine.settings.serving, max_bytes=_BATCH_BODY_BYTES, what="request")
            asked = await asyncio.to_thread(_validated, body)
        tasks = tuple(item.task for item in engine.chosen(Wish(tuple(asked.tasks or ()), CHAMPION), ""))
        batch, is_new = await batches.create(asked, tasks, _caller(request).name, idempotency_key)
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"/v1/batches/{batch.id}"
        return batch

    @app.get("/v1/batches/{batch_id}", response_model=Batch, responses=PROBLEMS, tags=["batches"])
    async def get_batch(request: Request, batch_id: BatchId) -> Batch:
        """How far a batch is, and where its results are."""
        return await batches.get(batch_id, _caller(request).name)

    @app.delete("/v1/batches/{batch_id}", response_model=Batch, responses=PROBLEMS, tags=["batches"])
    async def stop_batch(request: Request, batch_id: BatchId) -> Batch:
        """Stop a batch; what it has committed stays."""
        return await batches.stop(batch_id, _caller(request).name)


def _validated(body: bytes) -> BatchRequest:
    try:
        return BatchRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        code = "invalid_json" if first["type"] == "json_invalid" else "invalid_request"
        field = ".".join(map(str, first["loc"])) or "body"
        raise Problem(422, code, f"{field}: {first['msg']}") from error


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


class Envelope:
    """Around every request: its id, who asks, security headers, one log line, metrics, and no bare error."""

    def __init__(self, app: Any, gate: Gate, engine: Engine, *, with_id: bool) -> None:
        self._app, self._gate, self._engine, self._with_id = app, gate, engine, with_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0
        body_ended = "content-length" not in headers and "transfer-encoding" not in headers

        async def receive_to_the_end() -> MutableMapping[str, Any]:
            nonlocal body_ended
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                body_ended = True
            return message

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                added = [*_SECURITY_HEADERS]
                if self._with_id:
                    added.append((b"x-request-id", request_id.encode()))
                if not body_ended:
                    added.append((b"connection", b"close"))  # what is still sent is not waited for
                message["headers"] = [*message["headers"], *(item for item in added if item[0] not in names)]
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADER_BYTES:
                raise Problem(431, "headers_too_large", f"the headers have more than {_MAX_HEADER_BYTES} bytes")
            state["caller"] = await self._admit(scope, headers)
            await self._app(scope, receive_to_the_end, send_with_headers)
        except Problem as problem:
            state["code"] = problem.code
            await problems.answer(problem, request_id)(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            status = 499
            state["code"] = "client_left"
            raise
        except Exception as error:
            state["code"] = "internal_error"
            if not status:
                await problems.unexpected(error, request_id)(scope, receive, send_with_headers)
            else:
                raise
        finally:
            self._account(scope, state, status, time.perf_counter() - start)

    async def _admit(self, scope: Scope, headers: Headers) -> Caller:
        path = scope["path"]
        if path in _OPEN or path.startswith("/web/"):
            return Caller("anonymous")
        return await self._gate.admit(headers)

    def _account(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        code = state.get("code", "ok" if status < 400 else "error")
        metrics().requests.inc(1, {"route": route, "status": str(status), "code": code})
        metrics().latency.observe(seconds, {"route": route})
        self._engine.admission.show()
        if route in ("/healthz", "/readyz", "other") and status < 400:
            return
        caller = state.get("caller")
        log.info(
            "request",
            extra={
                "request_id": state["request_id"],
                "method": scope["method"],
                "route": route,
                "status": status,
                "code": code,
                "ms": round(seconds * 1000, 1),
                "caller": caller.name if caller else None,
                "models": state.get("models", []),
            },
        )
