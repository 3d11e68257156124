"""S3 servers that fail: silent, refusing, breaking off, or ignoring what they are asked; retries are bounded."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.storage import (
    AccessDenied,
    ObjectChanged,
    ObjectNotFound,
    Storage,
    StorageTimeout,
    StorageUnavailable,
)
from tests.storage_suite import s3_settings


def test_server_that_refuses_connections_is_unavailable():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        storage = Storage(s3_settings(f"http://127.0.0.1:{unused.getsockname()[1]}", max_attempts=2))
        with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1") as caught:
            storage.stat("s3://bucket/a.mp4")
    assert caught.value.retryable


def test_server_that_never_answers_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        storage = Storage(s3_settings(endpoint, max_attempts=2, read_timeout_s=0.2))
        with pytest.raises(StorageTimeout, match=endpoint) as caught:
            storage.open_reader("s3://bucket/a.mp4")
    assert (caught.value.reason, caught.value.retryable) == ("storage_timeout", True)


@contextmanager
def http_server(answer):
    """A server on a free port that answers each GET, HEAD and PUT by ``answer(handler, number of the request)``."""
    count = iter(range(10**6))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, next(count))

        do_HEAD = do_PUT = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def send(handler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize(
    ("status", "expected", "num_requests"),
    [
        (503, StorageUnavailable, 3),
        (502, StorageUnavailable, 3),
        (500, StorageUnavailable, 3),
        (429, StorageUnavailable, 3),
        (403, AccessDenied, 1),
        (400, AccessDenied, 1),
        (404, ObjectNotFound, 1),
        (409, StorageUnavailable, 1),
    ],
)
def test_failing_answers_are_typed_and_retries_bounded(status, expected, num_requests):
    seen: list[str] = []

    def fail(handler, number: int) -> None:
        seen.append(handler.command)
        send(handler, status, b"<html>not the words of S3<p></html>")

    with http_server(fail) as endpoint:
        with pytest.raises(expected) as caught:
            Storage(s3_settings(endpoint, max_attempts=3)).read_all("s3://bucket/a.mp4")
        assert "\n" not in str(caught.value)
        assert len(seen) == num_requests


@pytest.mark.parametrize(("num_broken", "succeeds"), [(2, True), (100, False)])
def test_body_that_breaks_off_is_asked_for_again_within_bounds(num_broken, succeeds):
    seen: list[str] = []

    def break_off(handler, number: int) -> None:
        seen.append(handler.headers["Range"])
        body = b"0123456789"
        headers = {"Content_Length": "10", "Content_Range": "bytes 0-9/10", "ETag": '"tag"'}
        send(handler, 206, body[:4] if number < num_broken else body, **headers)

    with http_server(break_off) as endpoint:
        storage = Storage(s3_settings(endpoint, max_attempts=3))
        if succeeds:
            with storage.open_reader("s3://bucket/a.mp4") as reader:
                assert reader.read() == b"0123456789"
        else:
            with pytest.raises(StorageUnavailable):
                storage.open_reader("s3://bucket/a.mp4")
    assert seen == ["bytes=0-63"] * 3


def test_server_without_ranges_is_refused_before_it_sends_the_whole_object():
    with http_server(lambda handler, _: send(handler, 200, b"0123456789", ETag='"tag"')) as endpoint:
        storage = Storage(s3_settings(endpoint))
        with pytest.raises(StorageUnavailable, match="ranges"):
            storage.read_range("s3://bucket/a.mp4", 2, 4)
        assert storage.read_all("s3://bucket/a.mp4") == b"0123456789"


def test_etag_is_checked_even_where_the_server_ignores_the_condition():
    def answer(handler, number: int) -> None:
        send(handler, 206, b"01", ETag=f'"tag{number}"', Content_Range="bytes 0-1/1000")

    with http_server(answer) as endpoint:
        reader = Storage(s3_settings(endpoint, read_ahead_bytes=2)).open_reader("s3://bucket/a.mp4")
        with pytest.raises(ObjectChanged, match="changed: its etag is tag1, expected tag0"):
            reader.read(4)


@pytest.mark.parametrize("page", [b"<html><p>Log in to the network</html>", b"<html></html>"])
def test_server_that_does_not_speak_s3_is_unavailable(page):
    with http_server(lambda handler, _: send(handler, 200, page)) as endpoint:
        storage = Storage(s3_settings(endpoint, max_attempts=2))
        for use in (storage.stat, storage.read_all, storage.open_reader, lambda uri: storage.put(uri, b"data")):
            with pytest.raises(StorageUnavailable, match=endpoint):
                use("s3://bucket/a.mp4")
