"""One request against a server that misbehaves: what comes of it, what stays for the next try, and why not."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from ray_jobs.ingesting import download as download_module
from ray_jobs.ingesting import failures
from ray_jobs.ingesting.download import Downloaded, Moved, Page, download, read_text
from ray_jobs.ingesting.rules import IngestRules
from tests.misbehaving import Request, Site, breaking_off, in_seconds, media, serving, status

RULES = IngestRules(allow_networks=(ip_network("127.0.0.0/8"),), read_timeout_s=30, connect_timeout_s=30)
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(range(256)) * 400


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


def _get(site: Site, path: Path, rules: IngestRules = RULES, name: str = "/v") -> Downloaded:
    found = download(site.url + name, path / "v.part", rules, {})
    assert isinstance(found, Downloaded)
    return found


def test_a_file_comes_whole_with_digest_and_kind(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = media(MP4)
    found = _get(site, tmp_path)
    assert (found.size_bytes, found.suffix, found.content_type) == (len(MP4), ".mp4", "video/mp4")
    assert found.sha256 == hashlib.sha256(MP4).hexdigest()
    assert found.path.read_bytes() == MP4


def test_what_broke_off_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = breaking_off(MP4, times=2, keep=1000)
    for _ in range(2):
        with pytest.raises(failures.Truncated) as failure:
            _get(site, tmp_path)
        assert failure.value.retryable
    found = _get(site, tmp_path)
    assert site.ranges["/v"] == [None, "bytes=1000-", "bytes=2000-"]
    assert (found.resumed_at, found.sha256) == (2000, hashlib.sha256(MP4).hexdigest())


def test_a_file_that_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = breaking_off(MP4, times=1, keep=1000)
    with pytest.raises(failures.Truncated):
        _get(site, tmp_path)
    changed = MP4[:500] + b"another" * 3000

    def handle(request: Request) -> None:  # If-Range does not match: the whole new file
        assert request.headers["If-Range"] == '"of-this-content"'
        request.answer(200, changed, {"Content-Type": "video/mp4", "ETag": '"new"'})

    site.handlers["/v"] = handle
    assert _get(site, tmp_path).path.read_bytes() == changed


def test_a_shorter_file_than_the_part_at_hand_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = breaking_off(MP4, times=1, keep=5000)
    with pytest.raises(failures.Truncated):
        _get(site, tmp_path)
    site.handlers["/v"] = media(MP4[:4000])
    with pytest.raises(failures.Truncated, match="changed"):
        _get(site, tmp_path)
    assert _get(site, tmp_path).size_bytes == 4000


def test_a_range_that_was_not_asked_for_is_not_glued_on(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = breaking_off(MP4, times=1, keep=1000)
    with pytest.raises(failures.Truncated):
        _get(site, tmp_path)
    lying = {"Content-Range": f"bytes 0-{len(MP4) - 1}/{len(MP4)}", "Content-Type": "video/mp4"}
    site.handlers["/v"] = lambda request: request.answer(206, MP4, lying)
    with pytest.raises(failures.Truncated, match="begins at 0"):
        _get(site, tmp_path)
    assert not (tmp_path / "v.part").exists()


def test_a_file_that_came_whole_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    site.handlers["/v.mp4"] = media(MP4)
    first = _get(site, tmp_path, name="/v.mp4")
    again = _get(site, tmp_path, name="/v.mp4")
    assert (again.sha256, again.suffix, again.size_bytes) == (first.sha256, first.suffix, len(MP4))
    assert site.ranges["/v.mp4"] == [None, f"bytes={len(MP4)}-"]


def test_without_a_strong_validator_nothing_is_resumed(site: Site, tmp_path: Path) -> None:
    def handle(request: Request) -> None:
        assert request.headers["Range"] is None
        request.answer(200, MP4, {"Content-Type": "video/mp4", "ETag": 'W/"weak"'}, cut=1000)

    site.handlers["/v"] = handle
    for _ in range(2):
        with pytest.raises(failures.Truncated):
            _get(site, tmp_path)


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (404, failures.Deleted, False),
        (410, failures.Deleted, False),
        (401, failures.Forbidden, False),
        (403, failures.Forbidden, False),
        (451, failures.Forbidden, False),
        (408, failures.Timeout, True),
        (418, failures.BadAnswer, False),
        (429, failures.RateLimited, True),
        (500, failures.ServerError, True),
        (503, failures.ServerError, True),
    ],
)
def test_statuses_are_reasons(
    site: Site, tmp_path: Path, code: int, kind: type[failures.FetchFailure], retryable: bool
) -> None:
    site.handlers["/v"] = status(code)
    with pytest.raises(kind) as failure:
        _get(site, tmp_path)
    assert (failure.value.http_status, failure.value.retryable) == (code, retryable)


def test_retry_after_is_read_as_seconds_and_as_a_date(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = status(503, Retry_After="7")
    with pytest.raises(failures.RateLimited) as failure:
        _get(site, tmp_path)
    assert failure.value.retry_after_s == 7
    site.handlers["/v"] = status(429, Retry_After=in_seconds(1000))
    with pytest.raises(failures.RateLimited) as failure:
        _get(site, tmp_path)
    assert failure.value.retry_after_s == pytest.approx(1000, abs=60)
    site.handlers["/v"] = status(429, Retry_After="soon")
    with pytest.raises(failures.RateLimited) as failure:
        _get(site, tmp_path)
    assert failure.value.retry_after_s is None


def test_pages_and_redirects_are_answers_and_not_followed(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = lambda request: request.answer(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"})
    assert download(site.url + "/v", tmp_path / "v.part", RULES, {}) == Page("text/html")
    site.handlers["/v"] = status(302, Location="../other?x=1")
    assert download(site.url + "/v", tmp_path / "v.part", RULES, {}) == Moved(site.url + "/other?x=1")
    site.handlers["/v"] = status(302)
    with pytest.raises(failures.BadAnswer, match="nowhere"):
        _get(site, tmp_path)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"error": "gone"}' * 10, "application/json"),
        (b"  <!doctype html><p>gone", "video/mp4"),
        (b'{"error": "gone"}', "application/octet-stream"),
        (b"PK\x03\x04" + bytes(100), "video/mp4"),
        (bytes(5000), "video/mp4"),
        (b"neither fish nor flesh" * 9, "application/octet-stream"),
    ],
)
def test_what_is_no_media_is_told_by_type_or_bytes(site: Site, tmp_path: Path, body: bytes, content_type: str) -> None:
    site.handlers["/v"] = lambda request: request.answer(200, body, {"Content-Type": content_type})
    with pytest.raises(failures.NotMedia):
        _get(site, tmp_path)
    assert not (tmp_path / "v.part").exists()


def test_media_without_known_first_bytes_go_by_the_name(site: Site, tmp_path: Path) -> None:
    site.handlers["/v.ts"] = lambda request: request.answer(200, b"\x47\x40\x11" * 100, {"Content-Type": "video/mp2t"})
    assert _get(site, tmp_path, name="/v.ts").suffix == ".ts"


def test_what_is_too_large_is_refused_by_its_announcement_or_on_the_way(site: Site, tmp_path: Path) -> None:
    rules = RULES.model_copy(update={"max_bytes": 1000})
    site.handlers["/v"] = media(MP4)
    with pytest.raises(failures.TooLarge, match=f"{len(MP4)} bytes"):
        _get(site, tmp_path, rules)

    def unannounced(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "video/mp4")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for _ in range(20):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(MP4), MP4))

    site.handlers["/v"] = unannounced
    with pytest.raises(failures.TooLarge, match="more than"):
        _get(site, tmp_path, rules)
    assert not (tmp_path / "v.part").exists()


def test_an_empty_file_is_no_video(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = media(b"")
    with pytest.raises(failures.Empty):
        _get(site, tmp_path)


def test_silence_is_a_timeout(site: Site, tmp_path: Path) -> None:
    rules = RULES.model_copy(update={"read_timeout_s": 0.2})
    site.handlers["/v"] = lambda request: time.sleep(1)
    with pytest.raises(failures.Timeout):
        _get(site, tmp_path, rules)


def _dripping(request: Request) -> None:
    headers = {"Content-Type": "video/mp4", "Content-Length": "100000"}
    request.send_response(200)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    with contextlib.suppress(OSError):  # until the other side has had enough
        while True:
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.05)


def test_a_drip_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "SPEED_WINDOW_S", 0.2)
    site.handlers["/v"] = _dripping
    with pytest.raises(failures.Timeout, match="slower"):
        _get(site, tmp_path)
    monkeypatch.undo()
    with pytest.raises(failures.Timeout, match="max_s"):
        _get(site, tmp_path, RULES.model_copy(update={"max_s": 0.2}))


def test_an_answer_that_is_no_http_or_none_is_unreachable(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = lambda request: request.wfile.write(b"hello\r\n\r\n")
    with pytest.raises(failures.Unreachable):
        _get(site, tmp_path)
    with pytest.raises(failures.Unreachable):
        download("http://127.0.0.1:1/v", tmp_path / "v.part", RULES, {})


def test_private_addresses_are_refused_before_anything_is_asked(site: Site, tmp_path: Path) -> None:
    site.handlers["/v"] = media(MP4)
    with pytest.raises(failures.RefusedAddress, match=r"127\.0\.0\.1"):
        _get(site, tmp_path, IngestRules())
    assert not site.asked


def test_robots_is_read_empty_where_there_is_none_and_fails_where_the_server_does(site: Site) -> None:
    url = site.url + "/robots.txt"
    assert read_text(url, RULES, max_bytes=100) == ""
    site.robots = "User-agent: *\nCrawl-delay: 3\n"
    assert read_text(url, RULES, max_bytes=100) == site.robots
    site.handlers["/broken"] = status(500)
    with pytest.raises(failures.ServerError):
        read_text(site.url + "/broken", RULES, max_bytes=100)


def test_paths_in_any_script_are_percent_encoded(site: Site, tmp_path: Path) -> None:
    site.handlers["/%E8%A7%86%E9%A2%91%201.mp4?x=%C3%A4"] = media(MP4)
    assert _get(site, tmp_path, name="/视频 1.mp4?x=ä").size_bytes == len(MP4)
    assert _get(site, tmp_path, name="/%E8%A7%86%E9%A2%91%201.mp4?x=%C3%A4").size_bytes == len(MP4)
