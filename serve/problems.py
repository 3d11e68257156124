"""Errors as clients see them: problem+json (RFC 9457) with a stable code."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from infra.errors import TypedError, UserError
from serve.telemetry import log, request_id_of

MEDIA_TYPE = "application/problem+json"
# What a client may do about each status, where the code says no more.
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}
# Status of what decoding and storage refuse with a typed reason, which is the code.
_REASONS = {
    "not_media": 415,
    "no_video_stream": 415,
    "unsupported_codec": 415,
    "too_large": 413,
    "too_many_pixels": 413,
    "too_long": 413,
    "truncated": 422,
    "corrupt": 422,
    "decoder_crashed": 422,
    "out_of_memory": 422,
    "timeout": 504,
    "not_found": 404,
    "access_denied": 403,
    "invalid_uri": 422,
    "changed": 409,
}


class Problem(Exception):
    """A request that is refused or has failed: what the client is told, and how it is counted.

    Args:
        status: HTTP status.
        code: stable name of the cause, for programs.
        detail: one sentence for people: the value, the rule, the way out.
        retry_after_s: seconds after which another try may succeed.
        extra: further members of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        retry_after_s: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.retry_after_s, self.extra = retry_after_s, extra or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _problem_of, (self.status, self.code, self.detail, self.retry_after_s, self.extra)


def _problem_of(status: int, code: str, detail: str, retry_after_s: int | None, extra: dict[str, Any]) -> Problem:
    return Problem(status, code, detail, retry_after_s=retry_after_s, extra=extra)


def of_typed(error: TypedError, name: str) -> Problem:
    """What a typed failure of decoding or storage means for the request; ``name`` replaces local paths."""
    status = _REASONS.get(error.reason, 503 if error.retryable else 422)
    detail = str(error).partition(": ")[2] or error.reason
    return Problem(status, error.reason, f"{name}: {detail}", retry_after_s=5 if status == 503 else None)


def answer(problem: Problem, request_id: str) -> JSONResponse:
    """The problem as a response."""
    body = {
        "type": f"urn:facereel:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        "request_id": request_id,
        **problem.extra,
    }
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=problem.status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        request.state.code = error.code
        return answer(error, request_id_of(request.scope))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"field": ".".join(map(str, item["loc"])), "problem": item["msg"]} for item in error.errors()[:20]]
        detail = "; ".join(f"{item['field']}: {item['problem']}" for item in errors)
        code = "invalid_json" if any(item["type"] == "json_invalid" for item in error.errors()) else "invalid_request"
        request.state.code = code
        return answer(Problem(422, code, detail, extra={"errors": errors}), request_id_of(request.scope))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "http_error")
        request.state.code = code
        response = answer(Problem(error.status_code, code, str(error.detail)), request_id_of(request.scope))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(UserError)
    async def _user(request: Request, error: UserError) -> JSONResponse:
        request.state.code = "invalid_request"
        return answer(Problem(422, "invalid_request", str(error)), request_id_of(request.scope))


def unexpected(error: Exception, request_id: str) -> JSONResponse:
    """A bug, or a resource that has failed: logged whole, told without its insides."""
    log.exception("unexpected error", extra={"request_id": request_id}, exc_info=error)
    return answer(Problem(500, "internal_error", "an unexpected error; it is logged with the request's id"), request_id)
