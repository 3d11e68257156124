"""The Ray actor that makes requests: a download to its scratch disk, and from there into storage, once per content."""

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from infra.errors import TypedError
from infra.settings import StorageSettings
from infra.storage import AlreadyExists, Storage, StorageError, join
from ray_jobs.ingesting.addresses import parse_url
from ray_jobs.ingesting.download import Downloaded, Moved, Page, download, forget, read_text
from ray_jobs.ingesting.failures import Failed, FetchFailure, NotMedia, NotStored, ServerError, TooManyRedirects
from ray_jobs.ingesting.queues import Job
from ray_jobs.ingesting.resolvers import Resolver, load_resolver
from ray_jobs.ingesting.rules import IngestRules

OBJECTS = "objects"
KEEP_PARTS_S = 7 * 86400.0  # a part that no try has come back for
MAX_ROBOTS_BYTES = 500 << 10  # what RFC 9309 asks to read at least


@dataclass(frozen=True, slots=True)
class Stored:
    """The video is in storage."""

    uri: str
    etag: str
    size_bytes: int
    sha256: str
    content_type: str
    http_status: int
    resumed_at: int
    is_new: bool  # False: the same content was there already


@dataclass(frozen=True, slots=True)
class Next:
    """Another address has to be asked."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    is_resolved: bool = False


@dataclass(frozen=True, slots=True)
class Robots:
    """A host's robots.txt."""

    text: str


Answer = Stored | Failed | Next | Robots


class Fetcher:
    """Makes one request a call; built in a process of its own, called from several threads."""

    def __init__(self, into: str, settings: StorageSettings, rules: IngestRules, resolver: str | None) -> None:
        self._into, self._rules, self._resolver_name = into, rules, resolver
        self._storage = Storage(settings)
        self._scratch = scratch_folder()

    @cached_property
    def _resolver(self) -> Resolver | None:
        return None if self._resolver_name is None else load_resolver(self._resolver_name)

    def fetch(self, job: Job) -> Answer:
        """What became of the job; never raises what an address or a host is to blame for."""
        try:
            return self._robots(job) if job.is_robots else self._video(job)
        except FetchFailure as failure:
            return failure.as_value()
        except TypedError as error:
            return Failed(NotStored.reason, str(error), NotStored.retryable)
        except Exception as error:  # a server's answer can be as odd as it likes: it costs its own row
            return Failed(ServerError.reason, f"{type(error).__name__}: {error}"[:300], ServerError.retryable)

    def _robots(self, job: Job) -> Robots:
        target = job.target
        for _ in range(self._rules.max_redirects + 1):
            found = read_text(target, self._rules, max_bytes=MAX_ROBOTS_BYTES)
            if isinstance(found, str):
                return Robots(found)
            target = found.url
        raise TooManyRedirects(f"{job.target} is redirected more than {self._rules.max_redirects} times")

    def _video(self, job: Job) -> Answer:
        path = self._scratch / f"{hashlib.sha256(job.url.encode()).hexdigest()}.part"
        found = download(job.target, path, self._rules, job.headers)
        if isinstance(found, Moved):
            if job.redirects >= self._rules.max_redirects:
                raise TooManyRedirects(f"more than {self._rules.max_redirects} redirects, the last to {found.url}")
            parse_url(found.url)
            return Next(found.url)
        if isinstance(found, Page):
            if self._resolver is None or job.is_resolved:
                way_out = "" if job.is_resolved else "; --resolver finds the video on a page"
                raise NotMedia(f"the address is a web page ({found.content_type}){way_out}")
            media = self._resolver.resolve(job.target)
            parse_url(media.url)
            return Next(media.url, dict(media.headers), is_resolved=True)
        stored = self._stored(found)
        forget(path)
        return stored

    def _stored(self, found: Downloaded) -> Stored:
        """Put the file where its content says; the same content is stored once."""
        uri = join(self._into, OBJECTS, found.sha256[:2], f"{found.sha256}{found.suffix}")
        is_new = True
        try:
            stat = self._storage.put_file(uri, found.path, if_absent=True)
        except AlreadyExists:
            stat, is_new = self._storage.stat(uri), False
        except StorageError as error:
            raise NotStored(str(error)) from error
        if stat.size_bytes != found.size_bytes:
            raise NotStored(f"{uri} has {stat.size_bytes} bytes, {found.size_bytes} were fetched: remove it")
        return Stored(
            uri=uri,
            etag=stat.etag,
            size_bytes=found.size_bytes,
            sha256=found.sha256,
            content_type=found.content_type,
            http_status=found.http_status,
            resumed_at=found.resumed_at,
            is_new=is_new,
        )


def scratch_folder() -> Path:
    """Where downloads that broke off wait for the next try: this user's own folder on this machine."""
    folder = Path(tempfile.gettempdir()) / f"facereel-ingest-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is not this user's alone: remove it")
    for path in folder.iterdir():
        with suppress(OSError):  # another process may remove it too
            if time.time() - path.stat().st_mtime > KEEP_PARTS_S:
                path.unlink()
    return folder
