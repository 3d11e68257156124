"""Storage over local paths and ``s3://`` uris: one small interface, typed errors, and access for Delta and Arrow."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from infra.settings import StorageSettings
from infra.storage_base import (
    AccessDenied,
    AlreadyExists,
    InvalidUri,
    ObjectChanged,
    ObjectNotFound,
    ObjectStat,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
)
from infra.storage_local import LocalBackend, local_path
from infra.storage_reader import SeekableReader

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from infra.storage_s3 import S3Backend

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "InvalidUri",
    "ObjectChanged",
    "ObjectNotFound",
    "ObjectStat",
    "SeekableReader",
    "Storage",
    "StorageError",
    "StorageTimeout",
    "StorageUnavailable",
    "is_s3",
    "join",
]

S3_SCHEME = "s3://"
OTHER_SCHEME = re.compile(r"(?!file://)[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_s3(uri: str) -> bool:
    """Whether the uri lies in a bucket rather than on the local disk."""
    return uri.startswith(S3_SCHEME)


def join(uri: str, *parts: str) -> str:
    """Append parts, which may hold slashes, to a folder's uri; an empty last part ends the uri in a slash."""
    for part in parts:
        uri = f"{uri}{'' if uri.endswith('/') else '/'}{part.lstrip('/')}"
    return uri


class Storage:
    """Objects on the local disk (a plain path, ``file://``) and in S3 (``s3://bucket/key``).

    Cheap to build, picklable, and usable from several threads; a process makes one boto3 client for equal settings, on
    first use. Every method raises a `StorageError` of the kind that its name says: `ObjectNotFound`, `AccessDenied`,
    `StorageTimeout`, `ObjectChanged`, `StorageUnavailable`, `AlreadyExists`, `InvalidUri`.
    """

    def __init__(self, settings: StorageSettings | None = None) -> None:
        self.settings = settings if settings is not None else StorageSettings()
        self._local = LocalBackend(read_ahead_bytes=self.settings.read_ahead_bytes)

    def absolute(self, uri: str) -> str:
        """The uri as processes with another working directory need it; local paths become plain absolute ones."""
        return str(local_path(uri).absolute()) if isinstance(self._backend(uri), LocalBackend) else uri

    def stat(self, uri: str) -> ObjectStat:
        """Size and etag of an object."""
        return self._backend(uri).stat(uri)

    def exists(self, uri: str) -> bool:
        """Whether there is such an object; raises what `stat` raises but `ObjectNotFound`."""
        try:
            self.stat(uri)
        except ObjectNotFound:
            return False
        return True

    def list_prefix(self, uri: str) -> Iterator[ObjectStat]:
        """Yield, lazily and sorted by key, every object below the folder ``uri``, at any depth.

        Their uris begin with ``uri`` as given. ``s3://bucket/a`` lists ``a/…`` and not ``ab/…``, as for a local folder,
        where links are followed. A missing folder or prefix raises `ObjectNotFound` on the first step.
        """
        return self._backend(uri).list_prefix(uri)

    def read_range(self, uri: str, start: int, end: int, etag: str | None = None) -> bytes:
        """Bytes [start, end), cut at the end of the object; with ``etag``, of that version or `ObjectChanged`."""
        assert 0 <= start <= end, (start, end)
        return self._backend(uri).read_range(uri, start, end, etag)

    def read_all(self, uri: str) -> bytes:
        """The whole object."""
        return self._backend(uri).read_all(uri)

    def open_reader(self, uri: str, etag: str | None = None) -> SeekableReader:
        """A seekable file with read-ahead, pinned to the version found now; with ``etag``, to that one."""
        return self._backend(uri).open_reader(uri, etag)

    def put(self, uri: str, data: bytes) -> ObjectStat:
        """Write the object, replacing one that is there; readers see the old or the new one, whole."""
        return self._backend(uri).put(uri, data, if_absent=False)

    def put_file(self, uri: str, path: Path, *, if_absent: bool = False) -> ObjectStat:
        """Write the object from a local file of any size, as `put` does, or as `put_if_absent` does."""
        return self._backend(uri).put_file(uri, path, if_absent=if_absent)

    def put_if_absent(self, uri: str, data: bytes) -> ObjectStat:
        """Write the object, or raise `AlreadyExists`; of several writers one succeeds, if the server keeps its word.

        A server may have stored the object although its answer was lost; the retry then reports `AlreadyExists`. Who
        must know reads the object back.
        """
        return self._backend(uri).put(uri, data, if_absent=True)

    def delete(self, uri: str) -> None:
        """Remove the object; none there is no error."""
        self._backend(uri).delete(uri)

    def delta_options(self, uri: str) -> dict[str, str]:
        """``storage_options`` for `deltalake` on the table ``uri``; empty for the local disk.

        They hold the credentials of this moment, which expire with a role: ask again for each table that is opened.
        """
        backend = self._backend(uri)
        if isinstance(backend, LocalBackend):
            return {}
        from infra.storage_options import delta_options

        return delta_options(backend, uri)

    def arrow_filesystem(self, uri: str) -> tuple["FileSystem", str]:
        """An Arrow filesystem with the same settings, and the path of ``uri`` in it; credentials as `delta_options`."""
        backend = self._backend(uri)
        if isinstance(backend, LocalBackend):
            from pyarrow.fs import LocalFileSystem

            return LocalFileSystem(), str(local_path(uri).absolute())
        from infra.storage_options import arrow_filesystem

        return arrow_filesystem(backend), uri.removeprefix(S3_SCHEME)

    def _backend(self, uri: str) -> "LocalBackend | S3Backend":
        if is_s3(uri):
            return _s3_backend(self.settings, os.getpid())
        if OTHER_SCHEME.match(uri):
            raise InvalidUri(f"{uri}: unknown scheme; give a local path, file:///path or s3://bucket/key")
        return self._local


@lru_cache(maxsize=4)
def _s3_backend(settings: StorageSettings, process_id: int) -> "S3Backend":
    """A client for these settings: making one takes a tenth of a second, and a forked process must not share it."""
    # boto3 is not paid by what stays on the local disk.
    from infra.storage_s3 import S3Backend

    return S3Backend(settings)
