"""A web server on 127.0.0.1 that does what servers do to downloads; each path is one kind of trouble."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Handler = Callable[["Request"], None]


@dataclass
class Site:
    """The server's state: paths to handlers, and what was asked for, with times."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    robots: str | None = None
    asked: list[tuple[float, str]] = field(default_factory=list)
    ranges: dict[str, list[str | None]] = field(default_factory=lambda: defaultdict(list))
    num_open: Counter[str] = field(default_factory=Counter)
    most_open: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def times(self, path: str) -> int:
        """How often the path was asked for."""
        return sum(asked == path for _, asked in self.asked)


class Request(BaseHTTPRequestHandler):
    """One request; the site is the server's."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site, path = self.site, self.path
        with site.lock:
            site.asked.append((time.monotonic(), path))
            site.ranges[path].append(self.headers.get("Range"))
            site.num_open["all"] += 1
            site.most_open = max(site.most_open, site.num_open["all"])
        try:
            if path == "/robots.txt":
                robots = site.robots
                self.answer(404 if robots is None else 200, (robots or "").encode(), {"Content-Type": "text/plain"})
            elif path in site.handlers:
                site.handlers[path](self)
            else:
                self.answer(404, b"")
        finally:
            with site.lock:
                site.num_open["all"] -= 1

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: int | None = None
    ) -> None:
        """Send an answer; ``cut`` closes the connection after so many bytes of the body."""
        self.send_response(status)
        given = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients hang up, as they are meant to here."""


@contextmanager
def serving() -> Iterator[Site]:
    """A running server on a free port of the loopback."""
    site = Site()
    handler = type("SiteRequest", (Request,), {"site": site})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def media(body: bytes, **headers: str) -> Handler:
    """The file, whole or the asked range of it, as a good server sends it."""

    def handle(request: Request) -> None:
        etag = '"of-this-content"'
        common = {"Content-Type": "video/mp4", "ETag": etag, "Accept-Ranges": "bytes", **headers}
        span = request.headers.get("Range")
        if span and request.headers.get("If-Range", etag) == etag:
            start = int(span.removeprefix("bytes=").partition("-")[0])
            if start >= len(body):
                request.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            rest = body[start:]
            request.answer(206, rest, {**common, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
        else:
            request.answer(200, body, common)

    return handle


def breaking_off(body: bytes, times: int, keep: int) -> Handler:
    """Sends ``keep`` bytes of what is asked for and hangs up, the first ``times`` times; good afterwards."""
    whole = media(body)
    left = [times]

    def handle(request: Request) -> None:
        if left[0] == 0:
            whole(request)
            return
        left[0] -= 1
        span = request.headers.get("Range")
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        headers = {"Content-Type": "video/mp4", "ETag": '"of-this-content"'}
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        request.answer(206 if span else 200, body[start:], headers, cut=keep)

    return handle


def status(code: int, times: int = -1, then: Handler | None = None, **headers: str) -> Handler:
    """That status, for ever or ``times`` times and ``then`` something else; header names with ``_`` for ``-``."""
    left = [times]
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def handle(request: Request) -> None:
        if left[0] == 0 and then is not None:
            then(request)
            return
        left[0] -= 1
        request.answer(code, b"", named)

    return handle


def in_seconds(seconds: float) -> str:
    """A date as Retry-After may hold it."""
    return formatdate(time.time() + seconds, usegmt=True)
