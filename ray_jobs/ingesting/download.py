"""One HTTP request into a file: pinned to a checked address, resumed where it broke off, limited in size and time."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, urljoin

import filetype
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from ray_jobs.catalog import MEDIA_SUFFIXES
from ray_jobs.ingesting.addresses import parse_url, resolve
from ray_jobs.ingesting.failures import (
    BadAnswer,
    BadCertificate,
    Deleted,
    Empty,
    FetchFailure,
    Forbidden,
    NotMedia,
    NotStored,
    RateLimited,
    ServerError,
    Timeout,
    TooLarge,
    Truncated,
    Unreachable,
)
from ray_jobs.ingesting.rules import IngestRules

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 4096
SPEED_WINDOW_S = 30.0
_REDIRECTS = (301, 302, 303, 307, 308)
# What a server may call a video: its own kind, or that it does not know.
_CONTENT_TYPES = ("video/", "image/", "application/octet-stream", "binary/octet-stream", "application/mp4")
_SUFFIXES = {"quicktime": ".mov", "x-matroska": ".mkv", "mp2t": ".ts", "mpeg": ".mpg", "x-msvideo": ".avi"}


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole file on the scratch disk."""

    path: Path
    size_bytes: int
    sha256: str
    suffix: str  # of its content, with the dot
    content_type: str
    http_status: int
    resumed_at: int  # bytes that were there before this request; 0: all came now


@dataclass(frozen=True, slots=True)
class Moved:
    """The host answered with another address."""

    url: str


@dataclass(frozen=True, slots=True)
class Page:
    """The host answered with a web page."""

    content_type: str


def download(url: str, path: Path, rules: IngestRules, headers: Mapping[str, str]) -> Downloaded | Moved | Page:
    """Make one request for ``url``, and write what it gives to ``path``.

    A file that breaks off stays there with its validator (ETag or Last-Modified) beside it; the next call asks for the
    rest of it, on the condition that it has not changed.

    Raises:
        FetchFailure: The reason why there is no whole file.
    """
    partial = _Partial(path)
    with _request(url, rules, {**headers, **partial.condition()}) as (parts, response):
        status = response.status
        if status == 416 and partial.num_bytes:
            if response.headers.get("Content-Range", "").rpartition("/")[2] == str(partial.num_bytes):
                return _whole(partial, parts, status)  # it came before, and storage did not take it
            partial.forget()
            raise Truncated("the file has changed since a part of it was fetched", http_status=status)
        if status in _REDIRECTS:
            return _moved(url, response)
        if status not in (200, 206):
            raise _refusal(response)
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type in ("text/html", "application/xhtml+xml"):
            return Page(content_type)
        if content_type and not content_type.startswith(_CONTENT_TYPES):
            raise NotMedia(f"the host calls it {content_type}", http_status=status)
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise NotMedia(f"it comes packed as {response.headers['Content-Encoding']}", http_status=status)
        start = partial.continue_at(response)
        size = _announced_size(response, start)
        if size is not None and size > rules.max_bytes:
            partial.forget()
            raise TooLarge(f"{size} bytes; ingest.max_bytes is {rules.max_bytes}", http_status=status)
        sha256, num_bytes, head = _write(response, partial, start, rules)
    if size is not None and num_bytes != size:
        raise Truncated(f"{num_bytes} of {size} bytes came", http_status=status)
    if not num_bytes:
        partial.forget()
        raise Empty("the file has no bytes", http_status=status)
    try:
        suffix = _suffix(head, parts, content_type)
    except NotMedia:
        partial.forget()
        raise
    return Downloaded(path, num_bytes, sha256, suffix, content_type, status, start)


def read_text(url: str, rules: IngestRules, *, max_bytes: int) -> str | Moved:
    """A small text file (robots.txt), cut at ``max_bytes``; where a 4xx says that there is none, an empty one.

    Raises:
        FetchFailure: The host does not answer, or with an error of its own.
    """
    with _request(url, rules, {}) as (_, response):
        if response.status in _REDIRECTS:
            return _moved(url, response)
        if 400 <= response.status < 500 and response.status != 429:
            return ""
        if response.status != 200:
            raise _refusal(response)
        with _typed_errors(url):
            return response.read(max_bytes).decode("utf-8", errors="replace")


def _whole(partial: "_Partial", parts: SplitResult, status: int) -> Downloaded:
    """A file of which nothing is missing any more."""
    with partial.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        suffix = _suffix(file.read(HEAD_BYTES), parts, "")
    return Downloaded(partial.path, partial.num_bytes, sha256, suffix, "", status, partial.num_bytes)


class _Partial:
    """What has come of a file in earlier requests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts = path.with_suffix(".json")
        self._validator = ""
        self.num_bytes = 0
        with suppress(OSError, ValueError, KeyError):
            self._validator = json.loads(self._facts.read_text())["validator"]
            self.num_bytes = path.stat().st_size if self._validator else 0

    def condition(self) -> dict[str, str]:
        """Headers that ask for the rest only."""
        if not self.num_bytes:
            return {}
        return {"Range": f"bytes={self.num_bytes}-", "If-Range": self._validator}

    def continue_at(self, response: urllib3.BaseHTTPResponse) -> int:
        """How many bytes of the file at hand count; notes the answer's validator."""
        start = 0
        if response.status == 206:
            start = _range_start(response)
            if start != self.num_bytes:
                self.forget()
                raise Truncated(f"asked for byte {self.num_bytes} on, the answer begins at {start}", http_status=206)
        etag = response.headers.get("ETag", "")
        # A weak ETag does not promise the same bytes.
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        try:
            self._facts.write_text(json.dumps({"validator": validator}))
        except OSError as error:
            raise NotStored(f"{self._facts}: {error.strerror}") from error
        return start

    def forget(self) -> None:
        """Remove what has come."""
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)


def forget(path: Path) -> None:
    """Remove a download and what was noted about it."""
    _Partial(path).forget()


@contextmanager
def _request(
    url: str, rules: IngestRules, headers: Mapping[str, str]
) -> Iterator[tuple[SplitResult, urllib3.BaseHTTPResponse]]:
    parts = parse_url(url)
    host = parts.hostname or ""
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    address = resolve(host, port, rules.allow_networks)
    timeout = urllib3.Timeout(connect=rules.connect_timeout_s, read=rules.read_timeout_s)
    pool: urllib3.HTTPConnectionPool
    if is_tls:  # the certificate is checked against the name, whatever the address
        pool = urllib3.HTTPSConnectionPool(
            address, port, timeout=timeout, server_hostname=host, assert_hostname=host, cert_reqs="CERT_REQUIRED"
        )
    else:
        pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    sent = {
        "User-Agent": rules.user_agent,
        "Accept-Encoding": "identity",
        **headers,
        "Host": parts.netloc.rpartition("@")[2],
    }
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    with pool, _typed_errors(url):
        response = pool.urlopen(
            "GET", target, headers=sent, redirect=False, retries=False, preload_content=False, decode_content=False
        )
        try:
            yield parts, response
        finally:
            response.close()


@contextmanager
def _typed_errors(url: str) -> Iterator[None]:
    try:
        yield
    except SSLError as error:
        raise BadCertificate(str(error)) from error
    except (ConnectTimeoutError, ReadTimeoutError) as error:
        if isinstance(error, NewConnectionError):
            raise Unreachable(_short(error)) from error
        raise Timeout(_short(error)) from error
    except HTTPError as error:
        raise Unreachable(_short(error)) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _moved(url: str, response: urllib3.BaseHTTPResponse) -> Moved:
    location = response.headers.get("Location")
    if not location:
        raise BadAnswer("a redirect to nowhere", http_status=response.status)
    return Moved(urljoin(url, location))


def _refusal(response: urllib3.BaseHTTPResponse) -> FetchFailure:
    status, wait_s = response.status, _retry_after_s(response.headers.get("Retry-After"))
    detail = f"HTTP {status} {response.reason or ''}".strip()
    if status in (404, 410):
        return Deleted(detail, http_status=status)
    if status in (401, 403, 407, 451):
        return Forbidden(detail, http_status=status)
    if status == 429 or (status == 503 and wait_s is not None):
        return RateLimited(detail, http_status=status, retry_after_s=wait_s)
    if status >= 500:
        return ServerError(detail, http_status=status)
    if status == 408:
        return Timeout(detail, http_status=status)
    return BadAnswer(detail, http_status=status)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from now: the header holds a number of them, or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _range_start(response: urllib3.BaseHTTPResponse) -> int:
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1


def _announced_size(response: urllib3.BaseHTTPResponse, start: int) -> int | None:
    """The size of the whole file, where the host says it."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status == 206 and total.isdigit():
        return int(total)
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _write(
    response: urllib3.BaseHTTPResponse, partial: _Partial, start: int, rules: IngestRules
) -> tuple[str, int, bytes]:
    """Append the body to the file from byte ``start`` on; digest, size and first bytes of the whole."""
    digest, num_bytes = hashlib.sha256(), 0
    began_s = window_s = time.monotonic()
    window_bytes = start
    try:
        with partial.path.open("r+b" if start else "wb") as file:
            while num_bytes < start:
                part = file.read(min(CHUNK_BYTES, start - num_bytes))
                digest.update(part)
                num_bytes += len(part)
            file.truncate()
            while part := response.read1(CHUNK_BYTES):
                digest.update(part)
                file.write(part)
                num_bytes += len(part)
                if num_bytes > rules.max_bytes:
                    file.close()
                    partial.forget()
                    raise TooLarge(f"more than ingest.max_bytes ({rules.max_bytes})", http_status=response.status)
                now_s = time.monotonic()
                if now_s - began_s > rules.max_s:
                    raise Timeout(f"{num_bytes} bytes in {now_s - began_s:.0f} s (ingest.max_s)")
                if now_s - window_s > SPEED_WINDOW_S:
                    if (num_bytes - window_bytes) / (now_s - window_s) < rules.min_bytes_per_s:
                        raise Timeout(f"slower than {rules.min_bytes_per_s:g} bytes/s (ingest.min_bytes_per_s)")
                    window_s, window_bytes = now_s, num_bytes
        with partial.path.open("rb") as file:
            return digest.hexdigest(), num_bytes, file.read(HEAD_BYTES)
    except ProtocolError as error:
        raise Truncated(_short(error)) from error
    except OSError as error:
        raise NotStored(f"{partial.path}: {error.strerror or error}") from error


def _suffix(head: bytes, parts: SplitResult, content_type: str) -> str:
    """What the first bytes show the file to be; where they tell nothing, what address and host call it."""
    kind = filetype.guess(head)
    if kind is not None:
        suffix = f".{kind.extension}"
        if suffix not in MEDIA_SUFFIXES:
            raise NotMedia(f"its first bytes are those of {kind.mime}")
        return suffix
    if head.lstrip()[:1] in (b"<", b"{") or not head.strip(b"\0"):
        raise NotMedia(f"its first bytes are {head[:16]!r}")
    for suffix in (
        PurePosixPath(parts.path).suffix.lower(),
        _SUFFIXES.get(content_type.partition("/")[2], f".{content_type.partition('/')[2]}"),
    ):
        if suffix in MEDIA_SUFFIXES:
            return suffix
    raise NotMedia(f"neither bytes ({head[:16]!r}) nor name tell a video or an image")
