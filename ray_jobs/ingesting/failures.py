"""Why an address gave no video: typed reasons, and whether another try may help."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Failed:
    """A failure as a value, to travel between processes."""

    reason: str
    detail: str
    retryable: bool
    http_status: int | None = None
    retry_after_s: float | None = None


class FetchFailure(Exception):
    """Base of the reasons; ``retry_after_s`` is what the host asked for, ``http_status`` its answer's code.

    No `TypedError`: the reasons of those are the quarantine table's, and some names are the same.
    """

    reason: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, http_status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.http_status, self.retry_after_s = http_status, retry_after_s

    def as_value(self) -> Failed:
        """What it says."""
        return Failed(self.reason, str(self), self.retryable, self.http_status, self.retry_after_s)


class BadUrl(FetchFailure):
    """No http(s) address."""

    reason: ClassVar[str] = "bad_url"


class RefusedAddress(FetchFailure):
    """The host's address is private, link-local or otherwise not public."""

    reason: ClassVar[str] = "refused_address"


class UnknownHost(FetchFailure):
    """The name does not resolve, now."""

    reason: ClassVar[str] = "unknown_host"
    retryable: ClassVar[bool] = True


class Unreachable(FetchFailure):
    """No connection, or one that broke before an answer."""

    reason: ClassVar[str] = "unreachable"
    retryable: ClassVar[bool] = True


class BadCertificate(FetchFailure):
    """TLS failed: the host cannot prove who it is."""

    reason: ClassVar[str] = "bad_certificate"


class Timeout(FetchFailure):
    """Silent, slow, or longer than the rules allow."""

    reason: ClassVar[str] = "timeout"
    retryable: ClassVar[bool] = True


class Truncated(FetchFailure):
    """The body ended before its announced size; what came is kept for the next try."""

    reason: ClassVar[str] = "truncated"
    retryable: ClassVar[bool] = True


class Deleted(FetchFailure):
    """404 or 410."""

    reason: ClassVar[str] = "deleted"


class Forbidden(FetchFailure):
    """401, 403, 407 or 451: behind a login, or not for everyone."""

    reason: ClassVar[str] = "forbidden"


class RobotsDisallow(FetchFailure):
    """robots.txt asks not to fetch this."""

    reason: ClassVar[str] = "robots_disallow"


class RobotsDelay(FetchFailure):
    """robots.txt asks for longer delays than the rules allow."""

    reason: ClassVar[str] = "robots_delay"


class RateLimited(FetchFailure):
    """429, or 503 with Retry-After: the host wants to be left alone for a while."""

    reason: ClassVar[str] = "rate_limited"
    retryable: ClassVar[bool] = True


class ServerError(FetchFailure):
    """Another 5xx, or an answer that is no HTTP."""

    reason: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = True


class BadAnswer(FetchFailure):
    """Another 4xx, or a redirect without a target."""

    reason: ClassVar[str] = "bad_answer"


class TooManyRedirects(FetchFailure):
    """More redirects than the rules allow, or a circle."""

    reason: ClassVar[str] = "too_many_redirects"


class NotMedia(FetchFailure):
    """Neither a video nor an image: a web page, text, an archive."""

    reason: ClassVar[str] = "not_media"


class TooLarge(FetchFailure):
    """Larger than the rules allow."""

    reason: ClassVar[str] = "too_large"


class Empty(FetchFailure):
    """No bytes at all."""

    reason: ClassVar[str] = "empty"


class NoVideoOnPage(FetchFailure):
    """The resolver found no video on the page."""

    reason: ClassVar[str] = "no_video_on_page"


class NotStored(FetchFailure):
    """Fetched, but storage or the scratch disk did not take it."""

    reason: ClassVar[str] = "not_stored"
    retryable: ClassVar[bool] = True
