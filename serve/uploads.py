"""What a request brings: bytes of a file in a form or as the body, or the uri of an object in an allowed bucket."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from infra.settings import ServingSettings
from infra.storage import Storage, is_s3
from serve.problems import Problem

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
HEAD_BYTES = 16
_MAX_FIELDS = 8
_FORM_OVERHEAD_BYTES = 64 << 10
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where the bytes of a picture or video are: in memory, or in an allowed bucket.

    Attributes:
        name: what messages call it; never a path of this machine.
        data: the bytes; None of an object.
        uri: of an object; None of bytes.
    """

    name: str
    data: bytes | None = None
    uri: str | None = None


async def read_source(
    request: Request, uri: str | None, limits: ServingSettings, *, max_bytes: int, what: str
) -> Source:
    """The picture or video of a request.

    Args:
        request: its body is a form with one ``file``, the bytes themselves, or empty.
        uri: of an object, instead of a body.
        limits: the service's settings.
        max_bytes: largest file.
        what: ``image`` or ``video``.

    Raises:
        Problem: Nothing came, or both, too much, too slowly, or what is not allowed.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    overhead = _FORM_OVERHEAD_BYTES if content_type == "multipart/form-data" else 0
    limited = Request(request.scope, _limited(request, max_bytes + overhead, max_bytes, limits.max_body_s, what))
    try:
        if content_type == "multipart/form-data":
            data = await _file_of_form(limited, max_bytes, what)
        else:
            data = await limited.body()  # whatever it is called: the bytes say what they are
    except ClientDisconnect as error:
        raise Problem(400, "body_incomplete", "the connection ended before the body did") from error
    if data and uri is not None:
        raise Problem(422, "two_sources", "there is a body and a uri: give one of them")
    if uri is not None:
        return Source(name=uri, uri=allowed_uri(uri, limits))
    if not data:
        raise Problem(
            422, "no_source", f"there is no {what}: send it as the body, as 'file' of a form, or name it by ?uri=s3://…"
        )
    return Source(name=what, data=data)


async def read_body(request: Request, limits: ServingSettings, *, max_bytes: int, what: str) -> bytes:
    """The body of a request.

    Raises:
        Problem: It is too large, too slow, or ends early.
    """
    try:
        return await Request(request.scope, _limited(request, max_bytes, max_bytes, limits.max_body_s, what)).body()
    except ClientDisconnect as error:
        raise Problem(400, "body_incomplete", "the connection ended before the body did") from error


def _limited(request: Request, max_body_bytes: int, max_bytes: int, max_s: float, what: str) -> Receive:
    """The request's ``receive``, which ends a body that is too large or too slow."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(what, max_bytes)
    deadline_s = asyncio.get_running_loop().time() + max_s
    num_bytes = 0

    async def receive() -> MutableMapping[str, Any]:
        nonlocal num_bytes
        try:
            async with asyncio.timeout_at(deadline_s):
                message = await request.receive()
        except TimeoutError as error:
            raise Problem(408, "body_timeout", f"the body did not arrive within {max_s:g} seconds") from error
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_body_bytes:
            raise _too_large(what, max_bytes)
        return message

    return receive


def _too_large(what: str, max_bytes: int) -> Problem:
    return Problem(413, "body_too_large", f"the {what} is larger than {max_bytes} bytes")


async def _file_of_form(request: Request, max_bytes: int, what: str) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_FORM_OVERHEAD_BYTES) as form:
            unknown = set(form) - {"file"}
            if unknown:
                raise Problem(
                    422, "unknown_field", f"the form has {', '.join(sorted(map(repr, unknown)))}: it takes 'file' alone"
                )
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Problem(422, "no_source", f"the form has no file: send the {what} as its part 'file'")
            data = await file.read(max_bytes + 1)
    except (MultiPartException, MultipartParseError, HTTPException, KeyError, UnicodeError) as error:
        detail = getattr(error, "detail", None) or str(error)
        raise Problem(400, "invalid_form", f"the form cannot be read: {detail}") from error
    if len(data) > max_bytes:
        raise _too_large(what, max_bytes)
    return data


def allowed_uri(uri: str, settings: ServingSettings) -> str:
    """The uri, where it lies under one of the allowed prefixes.

    Raises:
        Problem: It does not, or it is no uri of an object.
    """
    if "\x00" in uri or len(uri) > 2048:
        raise Problem(422, "invalid_uri", "the uri is longer than 2048 characters, or has a zero byte")
    if ".." in uri.split("/") or "?" in uri or "#" in uri:
        raise Problem(422, "invalid_uri", "the uri has '..', '?' or '#': name the object itself")
    for prefix in settings.buckets:
        if is_s3(prefix) and is_s3(uri) and f"{uri}/".startswith(prefix.rstrip("/") + "/"):
            return uri
        if not is_s3(prefix) and not _SCHEME.match(uri) and _lies_in(uri, prefix):
            return str(Path(uri).resolve())
    raise Problem(
        403,
        "uri_not_allowed",
        "the object lies outside of the buckets that this service reads"
        + (" (it reads none: serving.buckets)" if not settings.buckets else ""),
    )


def _lies_in(path: str, folder: str) -> bool:
    """Whether a local file lies in the folder, links followed."""
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def first_bytes(uri: str, storage: Storage, max_bytes: int, what: str) -> bytes:
    """The head of an object, by which its kind is told.

    Raises:
        Problem: It is larger than ``max_bytes``.
        TypedError: It is not there, or cannot be reached.
    """
    if storage.stat(uri).size_bytes > max_bytes:
        raise _too_large(what, max_bytes)
    return storage.read_range(uri, 0, HEAD_BYTES)
