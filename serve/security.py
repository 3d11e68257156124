"""Who may ask: API keys that are stored as hashes, and how often each may."""

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers

from infra.errors import UserError
from serve.problems import Problem
from serve.telemetry import log

PREFIX = "frk_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LINE = re.compile(rf"({_NAME.pattern})\s+sha256:([0-9a-f]{{64}})")
ANONYMOUS = "anonymous"


def hashed(key: str) -> str:
    """How a key is stored: SHA-256, since a key is 256 random bits and no password that could be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> dict[str, str]:
    """Name to hash, of a file with one ``NAME sha256:HEX`` a line; ``#`` begins a comment.

    Raises:
        UserError: The file cannot be read, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the file of API keys cannot be read: {error}") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise UserError(
                f"{path}: line {number} is no 'NAME sha256:HEX'; make one by `python -m serve keys add NAME`"
            )
        if match[1] in keys:
            raise UserError(f"{path}: line {number}: there is a key {match[1]!r} already")
        keys[match[1]] = match[2]
    return keys


def add_key(path: Path, name: str) -> str:
    """Add a key of that name to the file, and return it: it is shown this once.

    Raises:
        UserError: The name is none, or is taken.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of a key: letters, digits, '.', '_' and '-', at most 64")
    if path.exists() and name in read_keys(path):
        raise UserError(f"{path}: there is a key {name!r} already: remove its line first, or choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    path.touch(mode=0o600)
    before = path.read_text(encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{'' if not before or before.endswith(chr(10)) else chr(10)}{name} sha256:{hashed(key)}\n")
    return key


def is_loopback(host: str | None) -> bool:
    """Whether a server that listens on ``host`` can be reached from its own machine alone."""
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of the key, or ``anonymous`` where none is needed."""

    name: str


class Gate:
    """Lets requests in: by key, and at most so many a minute of each.

    The file of keys is read again when it has changed; one that cannot be read leaves the keys of before.

    Args:
        path: the file of keys; None: everybody is let in.
        rate: as ``600/minute``; counted by each replica.

    Raises:
        UserError: The file or the rate cannot be read.
    """

    def __init__(self, path: Path | None, rate: str) -> None:
        self._path = path
        self._read_at = 0
        self._keys: dict[str, str] = {}
        self._trouble = ""
        if path is not None:
            self._keys = read_keys(path)
            self._read_at = path.stat().st_mtime_ns
        try:
            self._rate = parse(rate)
        except ValueError as error:
            raise UserError(f"serving.rate {rate!r} is no rate: give 10/second or 600/minute") from error
        self._windows = MovingWindowRateLimiter(MemoryStorage())

    async def admit(self, headers: Headers) -> Caller:
        """Who asks.

        Raises:
            Problem: 401 without a known key, 429 where it asks too often; without keys 403 for other sites' pages.
        """
        if self._path is None:
            _refuse_other_sites(headers)
            return Caller(ANONYMOUS)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        if not key:
            raise Problem(401, "unauthorized", "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        name = self._name_of(key)
        if name is None:
            raise Problem(401, "unauthorized", "the API key is not known here")
        if not await self._windows.hit(self._rate, name):
            reset_at, _ = await self._windows.get_window_stats(self._rate, name)
            wait_s = max(1, round(reset_at - time.time()))
            raise Problem(429, "rate_limited", f"more than {self._rate}: wait", retry_after_s=wait_s)
        return Caller(name)

    def _name_of(self, key: str) -> str | None:
        self._refresh()
        digest, found = hashed(key), None
        for name, stored in self._keys.items():  # all of them: the time taken tells nothing of which one matched
            if hmac.compare_digest(digest, stored):
                found = name
        return found

    def _refresh(self) -> None:
        assert self._path is not None
        try:
            changed_at = self._path.stat().st_mtime_ns
            if changed_at != self._read_at:
                self._keys, self._read_at = read_keys(self._path), changed_at
        except (OSError, UserError) as error:
            if str(error) != self._trouble:
                log.error("the file of API keys cannot be read: the keys of before count", extra={"error": str(error)})
            self._trouble = str(error)
            return
        self._trouble = ""


def _refuse_other_sites(headers: Headers) -> None:
    """Without keys, the pages of other sites in this machine's browser are nobody: they could start batches.

    Raises:
        Problem: The request comes from such a page, or asks for a name that is not this machine's.
    """
    host = urlsplit(f"//{headers.get('host', '')}")
    if not is_loopback(host.hostname):
        raise Problem(403, "foreign_host", "without API keys the service answers to 127.0.0.1 and localhost alone")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host.netloc:
        raise Problem(403, "cross_site", "the page of another site asks: that needs an API key")
