"""From the address of a web page to that of the video on it: a small interface, and yt-dlp behind it."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.errors import UserError
from ray_jobs.ingesting.failures import Deleted, FetchFailure, Forbidden, NoVideoOnPage, Unreachable

YT_DLP = "yt-dlp"


@dataclass(frozen=True, slots=True)
class Media:
    """Where a page's video is."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)  # that its host wants to see: Referer, say


class Resolver(Protocol):
    """What ``--resolver`` names: built once in each fetching process, called from several threads."""

    def resolve(self, url: str) -> Media:
        """The video of a page; its address is fetched as any other, with the same limits.

        Raises:
            FetchFailure: The page has none.
        """
        ...


def load_resolver(name: str) -> Resolver:
    """``yt-dlp``, or ``package.module:Class`` of your own.

    Raises:
        UserError: There is no such class, or yt-dlp is not installed.
    """
    if name == YT_DLP:
        return YtDlp()
    module, _, attribute = name.partition(":")
    try:
        resolver: Resolver = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--resolver {name}: give {YT_DLP}, or package.module:Class ({error})") from error
    return resolver


class YtDlp:
    """yt-dlp's extractors; it asks the page's host by itself, outside of the fetcher's limits on addresses."""

    def __init__(self) -> None:
        try:
            import yt_dlp
        except ImportError as error:
            raise UserError(f"--resolver {YT_DLP}: yt-dlp is not installed: pip install yt-dlp") from error
        self._module: Any = yt_dlp

    def resolve(self, url: str) -> Media:
        """The best single file with picture that one HTTP request gives."""
        options = {
            "quiet": True,
            "no_warnings": True,
            "noplaylist": True,
            "skip_download": True,
            "format": "best[protocol^=http]/bestvideo[protocol^=http]",
            "logger": _Silent(),
        }
        try:
            with self._module.YoutubeDL(options) as page:
                found = page.extract_info(url, download=False)
        except self._module.utils.DownloadError as error:
            raise _failure(error) from error
        entries = found.get("entries")
        if entries is not None:
            found = next(iter(entries), None) or {}
        if not found.get("url"):
            raise NoVideoOnPage("the page has no video that one request gives")
        return Media(found["url"], {str(name): str(value) for name, value in found.get("http_headers", {}).items()})


def _failure(error: Exception) -> FetchFailure:
    """yt-dlp tells reasons by words alone."""
    text = " ".join(str(error).split()).removeprefix("ERROR: ")[:300]
    words = text.lower()
    if any(word in words for word in ("404", "410", "removed", "deleted", "unavailable", "no longer")):
        return Deleted(text)
    if any(word in words for word in ("private", "403", "401", "log in", "login", "sign in")):
        return Forbidden(text)
    if any(word in words for word in ("timed out", "connection", "temporar", "resolve")):
        return Unreachable(text)
    return NoVideoOnPage(text)


class _Silent:
    def debug(self, message: str) -> None:
        """Drop it."""

    info = warning = error = debug
