"""Ingesting from a server that misbehaves: every address ends with a word, and the next run fetches what is missing."""

import hashlib
import itertools
import os
import signal
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra.errors import RunStopped, UserError
from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs.ingesting.resolvers import Media
from ray_jobs.ingesting.rules import HostRules, IngestRules
from ray_jobs.ingesting.run import IngestConfig, run_ingest
from ray_jobs.ingesting.state import TABLE, ingested, read_state
from ray_jobs.labels.cleaning import NotInStorage, clean_labels
from ray_jobs.labels.rules import LabelRules
from tests.misbehaving import Request, Site, breaking_off, media, serving, status
from tests.storage_suite import s3_settings

pytestmark = pytest.mark.ray

LOOPBACK = (ip_network("127.0.0.0/8"),)
RULES = IngestRules(
    allow_networks=LOOPBACK,
    per_host=HostRules(concurrency=4, requests_per_s=500),
    backoff_s=0.05,
)
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(range(256)) * 400
OTHER = MP4 + b"another ending"
PAGE = {"Content-Type": "text/html"}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


def _listed(tmp_path: Path, site: Site, *paths: str) -> str:
    path = tmp_path / "urls.txt"
    path.write_text("".join(f"{site.url}{name}\n" for name in paths))
    return str(path)


def _run(tmp_path: Path, source: str, settings: Settings, rules: IngestRules = RULES, **more: object) -> dict[str, str]:
    config = IngestConfig(source=source, into=str(tmp_path / "videos"), rules=rules, **more)
    return {url.rpartition("/")[2]: known.state for url, known in run_ingest(config, settings).items()}


def test_each_trouble_costs_its_own_address_and_says_why(site: Site, tmp_path: Path, ray_cluster: Settings) -> None:
    site.robots = "User-agent: *\nDisallow: /private\n"
    site.handlers |= {
        "/good": media(MP4),
        "/copy": media(MP4),
        "/moved": status(301, Location="/good2"),
        "/good2": media(OTHER),
        "/circle": status(302, Location="/circle"),
        "/elsewhere": status(302, Location="file:///etc/passwd"),
        "/inside": status(302, Location="http://169.254.169.254/latest/meta-data"),
        "/forbidden": status(403),
        "/page": lambda request: request.answer(200, b"<html>", PAGE),
        "/text": lambda request: request.answer(200, b"{}", {"Content-Type": "application/json"}),
        "/large": media(MP4 * 30),
        "/empty": media(b""),
        "/flaky": status(500, times=2, then=media(MP4)),
        "/broken": status(500),
        "/private": media(MP4),
        "/breaks": breaking_off(MP4, times=2, keep=1000),
    }
    source = _listed(tmp_path, site, *site.handlers, "/gone")
    states = _run(tmp_path, source, ray_cluster, RULES.model_copy(update={"max_bytes": len(MP4) * 10}))
    assert states == {
        "good": "fetched",
        "copy": "fetched",
        "moved": "fetched",
        "good2": "fetched",
        "circle": "too_many_redirects",
        "elsewhere": "bad_url",
        "inside": "refused_address",
        "forbidden": "forbidden",
        "page": "not_media",
        "text": "not_media",
        "large": "too_large",
        "empty": "empty",
        "flaky": "fetched",
        "broken": "server_error",
        "private": "robots_disallow",
        "breaks": "fetched",
        "gone": "deleted",
    }
    assert site.times("/private") == 0
    assert site.times("/broken") == RULES.attempts
    assert site.ranges["/breaks"] == [None, "bytes=1000-", "bytes=2000-"]
    assert site.most_open <= 4
    found = sorted((tmp_path / "videos" / "objects").rglob("*.mp4"))
    assert [path.stem for path in found] == sorted(hashlib.sha256(body).hexdigest() for body in (MP4, OTHER))
    assert sorted(path.read_bytes() for path in found) == sorted([MP4, OTHER])


def test_the_next_run_fetches_what_is_missing_and_no_more(site: Site, tmp_path: Path, ray_cluster: Settings) -> None:
    site.handlers |= {"/a": media(MP4), "/b": status(500), "/c": status(404)}
    source = _listed(tmp_path, site, "/a", "/b", "/c")
    first = _run(tmp_path, source, ray_cluster)
    assert first == {"a": "fetched", "b": "server_error", "c": "deleted"}
    site.handlers |= {"/b": media(OTHER), "/c": media(MP4)}
    asked = len(site.asked)
    assert _run(tmp_path, source, ray_cluster, dry_run=True) == first
    assert len(site.asked) == asked
    assert _run(tmp_path, source, ray_cluster) == {"a": "fetched", "b": "fetched", "c": "deleted"}
    assert [path for _, path in site.asked[asked:]] == ["/robots.txt", "/b"]
    assert _run(tmp_path, source, ray_cluster, retry=("deleted",))["c"] == "fetched"
    asked = len(site.asked)
    assert set(_run(tmp_path, source, ray_cluster).values()) == {"fetched"}
    assert len(site.asked) == asked
    rows = DeltaStore(str(tmp_path / "videos"), Storage()).num_rows(TABLE)
    assert rows == 5  # three addresses, and a second word on two of them


def test_a_host_that_asks_for_patience_is_left_alone_as_a_whole(
    site: Site, tmp_path: Path, ray_cluster: Settings
) -> None:
    site.handlers |= {"/a": status(429, times=1, then=media(MP4), Retry_After="1"), "/b": media(OTHER)}
    rules = RULES.model_copy(update={"per_host": HostRules(concurrency=1, requests_per_s=500)})
    assert _run(tmp_path, _listed(tmp_path, site, "/a", "/b"), ray_cluster, rules) == {"a": "fetched", "b": "fetched"}
    times = [moment for moment, path in site.asked if path != "/robots.txt"]
    assert times[1] - times[0] >= 0.95
    site.handlers["/c"] = status(503, Retry_After="86400")
    site.handlers["/d"] = media(MP4)
    states = _run(tmp_path, _listed(tmp_path, site, "/c", "/d"), ray_cluster, rules)
    assert states == {"c": "rate_limited", "d": "rate_limited"}
    assert site.times("/d") == 0


def test_the_crawl_delay_of_robots_is_kept(site: Site, tmp_path: Path, ray_cluster: Settings) -> None:
    site.robots = "User-agent: *\nCrawl-delay: 1\n"
    site.handlers |= {"/a": media(MP4), "/b": media(OTHER)}
    _run(tmp_path, _listed(tmp_path, site, "/a", "/b"), ray_cluster)
    moments = [moment for moment, _ in site.asked]
    assert len(moments) == 3
    # The delay lies between the moments of asking; what arrives here may be late by what a busy machine costs.
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(moments[1:]))


def test_a_private_host_is_refused_once_for_all_its_addresses(
    site: Site, tmp_path: Path, ray_cluster: Settings
) -> None:
    states = _run(tmp_path, _listed(tmp_path, site, "/a", "/b"), ray_cluster, IngestRules())
    assert states == {"a": "refused_address", "b": "refused_address"}
    assert not site.asked


def test_a_signal_commits_and_the_next_run_goes_on(site: Site, tmp_path: Path, ray_cluster: Settings) -> None:
    names = [f"/{number}" for number in range(30)]

    def last(request: Request) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # the ten before it were taken: one request at a time
        media(MP4)(request)

    site.handlers |= {name: media(MP4) for name in names} | {"/10": last}
    rules = RULES.model_copy(update={"per_host": HostRules(concurrency=1, requests_per_s=10)})
    source = _listed(tmp_path, site, *names)
    with pytest.raises(RunStopped) as stopped:
        _run(tmp_path, source, ray_cluster, rules)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    committed = read_state(str(tmp_path / "videos"), Storage())
    assert 10 <= len(committed) < 30
    assert set(_run(tmp_path, source, ray_cluster).values()) == {"fetched"}
    assert all(site.times(name) == 1 for name in names if f"{site.url}{name}" in committed)


def test_a_bucket_takes_large_files_in_parts(site: Site, tmp_path: Path, ray_cluster: Settings) -> None:
    large = MP4 + os.urandom(17 << 20)
    site.handlers |= {"/large": media(large), "/small": media(MP4), "/again": media(large)}
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        storage = s3_settings(f"http://{host}:{port}", read_ahead_bytes=1 << 20)
        boto3.client(
            "s3",
            endpoint_url=storage.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        ).create_bucket(Bucket="fetched")
        settings = ray_cluster.model_copy(update={"storage": storage})
        source = _listed(tmp_path, site, *site.handlers)
        states = run_ingest(IngestConfig(source=source, into="s3://fetched/videos", rules=RULES), settings)
        assert {known.state for known in states.values()} == {"fetched"}
        assert len({known.uri for known in states.values()}) == 2
        uri = states[f"{site.url}/large"].uri
        assert uri is not None
        stored = Storage(storage)
        assert stored.read_all(uri) == large
        assert stored.stat(uri).etag.endswith("-2")  # an upload in two parts
    finally:
        server.stop()


class SecondPath:
    """A resolver of the test's own: the video of /page is at /page.mp4."""

    def resolve(self, url: str) -> Media:
        return Media(f"{url}.mp4", {"Referer": url})


def test_a_page_leads_to_its_video_by_a_resolver(site: Site, tmp_path: Path, ray_cluster: Settings) -> None:
    def guarded(request: Request) -> None:
        if request.headers["Referer"] == f"{site.url}/page":
            media(MP4)(request)
        else:
            request.answer(403, b"")

    site.handlers |= {
        "/page": lambda request: request.answer(200, b"<html>", PAGE),
        "/page.mp4": guarded,
        "/bare": lambda request: request.answer(200, b"<html>", PAGE),
    }
    source = _listed(tmp_path, site, "/page", "/bare")
    states = _run(tmp_path, source, ray_cluster, resolver="tests.integration.test_ingesting:SecondPath")
    assert states == {"page": "fetched", "bare": "deleted"}
    with pytest.raises(UserError, match="no_such_module"):
        _run(tmp_path, source, ray_cluster, resolver="no_such_module:Resolver")


def test_yt_dlp_finds_the_video_of_a_plain_page(site: Site, tmp_path: Path, ray_cluster: Settings) -> None:
    pytest.importorskip("yt_dlp", reason="yt-dlp is optional at run time")
    video = f'<html><body><video src="{site.url}/film.mp4"></video></body></html>'.encode()
    site.handlers |= {
        "/page": lambda request: request.answer(200, video, PAGE),
        "/bare": lambda request: request.answer(200, b"<html><body>words</body></html>", PAGE),
        "/film.mp4": media(MP4),
    }
    states = _run(tmp_path, _listed(tmp_path, site, "/page", "/bare"), ray_cluster, resolver="yt-dlp")
    assert states == {"page": "fetched", "bare": "no_video_on_page"}


def test_a_label_table_is_fetched_as_far_as_it_trains_and_prepared_from_what_came(
    site: Site, tmp_path: Path, ray_cluster: Settings
) -> None:
    site.handlers |= {"/a.mp4": media(MP4), "/copy.mp4": media(MP4), "/child.mp4": media(OTHER)}
    rows = [("/a.mp4", 70, ""), ("/copy.mp4", 71, ""), ("/child.mp4", 80, "儿童"), ("/gone.mp4", 75, "")]
    table = tmp_path / "labels.csv"
    table.write_text("链接,分数,备注\n" + "".join(f"{site.url}{path},{score},{note}\n" for path, score, note in rows))
    states = _run(tmp_path, str(table), ray_cluster)
    assert states == {"a.mp4": "fetched", "copy.mp4": "fetched", "gone.mp4": "deleted"}
    assert site.times("/child.mp4") == 0
    storage, rules = Storage(), LabelRules(conflicts="latest")
    locate = ingested(str(tmp_path / "videos"), storage)
    clean = clean_labels(str(table), storage, (), rules, locate)
    # Two addresses of one content are one video: its rows speak of the same one.
    assert clean.rows["score"].to_pylist() == [71]
    assert clean.rows["uri"].to_pylist() == [locate(f"{site.url}/a.mp4")]
    assert {cost.reason: cost.num_rows for cost in clean.report.costs()} == {
        "superseded": 1,
        "minor": 1,
        "not_fetched_deleted": 1,
    }
    with pytest.raises(NotInStorage, match="not_ingested"):
        locate("http://elsewhere.example/x")
    with pytest.raises(UserError, match="web_address"):
        clean_labels(str(table), storage, (), rules)
    with pytest.raises(UserError, match="nothing was ingested"):
        ingested(str(tmp_path / "nowhere"), storage)
