"""What both kinds of storage share: the facts about an object and the typed errors."""

from dataclasses import dataclass
from typing import ClassVar

from infra.errors import TypedError


class StorageError(TypedError):
    """Base of all storage failures; the message names the uri and, for S3, the endpoint."""


class ObjectNotFound(StorageError):
    """No such object, folder or bucket."""

    reason: ClassVar[str] = "not_found"


class AccessDenied(StorageError):
    """The store refuses the request: no or wrong credentials, no permission, or a request that it does not accept."""

    reason: ClassVar[str] = "access_denied"


class StorageTimeout(StorageError):
    """The store did not answer in time, on any attempt."""

    reason: ClassVar[str] = "storage_timeout"
    retryable: ClassVar[bool] = True


class ObjectChanged(StorageError):
    """The object is no longer the one whose etag was seen or asked for."""

    reason: ClassVar[str] = "changed"
    retryable: ClassVar[bool] = True


class StorageUnavailable(StorageError):
    """The store cannot be reached, fails, or asks for fewer requests, on every attempt."""

    reason: ClassVar[str] = "storage_unavailable"
    retryable: ClassVar[bool] = True


class AlreadyExists(StorageError):
    """A put-if-absent found an object in its place."""

    reason: ClassVar[str] = "already_exists"


class InvalidUri(StorageError):
    """The uri names nothing that storage can hold: another scheme, no bucket, no key."""

    reason: ClassVar[str] = "invalid_uri"


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """One object as the store describes it.

    ``etag`` changes with the content and is comparable only with etags of the same uri: S3's own without its quotes,
    or size and modification time of a local file.
    """

    uri: str
    size_bytes: int
    etag: str


def check_etag(uri: str, expected: str | None, found: str) -> None:
    """Raise `ObjectChanged` unless ``found`` is the ``expected`` etag (quotes do not matter; None expects nothing)."""
    if expected is not None and expected.strip('"') != found:
        raise ObjectChanged(f"{uri}: changed: its etag is {found}, expected {expected}")
