"""Storage on the local disk: files seen as objects, written atomically, with size and mtime as etag."""

import errno
import io
import os
import shutil
import stat as stat_module
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from infra.storage_base import (
    AccessDenied,
    AlreadyExists,
    InvalidUri,
    ObjectNotFound,
    ObjectStat,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
    check_etag,
)
from infra.storage_reader import SeekableReader

FILE_SCHEME = "file://"
COPY_BYTES = 1 << 20
TEMP_PREFIX = ".facereel-tmp-"

# EEXIST: a file where a folder of the path should be (put-if-absent tells its own case apart before).
NOT_FOUND = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def local_path(uri: str) -> Path:
    """The path that a plain path or a ``file://`` uri names.

    Raises:
        InvalidUri: for an empty uri, a null byte or a ``file://`` uri of another host.
    """
    path = uri
    if uri.startswith(FILE_SCHEME):
        parts = urlsplit(uri.replace("?", "%3F").replace("#", "%23"))
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise InvalidUri(f"{uri}: a file uri names an absolute path on this machine: file:///folder/name")
        path = unquote(parts.path)
    if not path or "\0" in path:
        raise InvalidUri(f"{uri!r}: not a path")
    return Path(path)


class LocalBackend:
    """Files and folders of this machine."""

    def __init__(self, *, read_ahead_bytes: int) -> None:
        self._read_ahead_bytes = read_ahead_bytes

    def stat(self, uri: str) -> ObjectStat:
        """Describe the file."""
        with _typed_errors(uri):
            return _describe(uri, local_path(uri).stat())

    def list_prefix(self, uri: str) -> Iterator[ObjectStat]:
        """Yield every file below the folder in the order of S3 keys; links are followed."""
        root = local_path(uri)
        with _typed_errors(uri):
            status = root.stat()
            if not stat_module.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        yield from _walk(root, uri.rstrip("/"), ((status.st_dev, status.st_ino),))

    def read_range(self, uri: str, start: int, end: int, etag: str | None) -> bytes:
        """Read bytes [start, end), cut at the end of the file."""
        stat, descriptor = _open(uri, etag)
        try:
            return _fetch(stat, descriptor, start, min(end, stat.size_bytes))
        finally:
            os.close(descriptor)

    def read_all(self, uri: str) -> bytes:
        """Read the file."""
        stat, descriptor = _open(uri, None)
        try:
            return _fetch(stat, descriptor, 0, stat.size_bytes)
        finally:
            os.close(descriptor)

    def open_reader(self, uri: str, etag: str | None) -> SeekableReader:
        """Open the file as a reader that notices changes."""
        stat, descriptor = _open(uri, etag)
        return SeekableReader(
            stat,
            partial(_fetch, stat, descriptor),
            read_ahead_bytes=self._read_ahead_bytes,
            on_close=partial(os.close, descriptor),
        )

    def put(self, uri: str, data: bytes, *, if_absent: bool) -> ObjectStat:
        """Write the file whole or not at all, its folders included."""
        return self._put(uri, io.BytesIO(data), if_absent=if_absent)

    def put_file(self, uri: str, source: Path, *, if_absent: bool) -> ObjectStat:
        """Copy a file, whole or not at all."""
        with _typed_errors(str(source)), source.open("rb") as file:
            return self._put(uri, file, if_absent=if_absent)

    def _put(self, uri: str, data: BinaryIO, *, if_absent: bool) -> ObjectStat:
        path = local_path(uri)
        temp = path.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
        with _typed_errors(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temp.open("xb") as file:
                    shutil.copyfileobj(data, file, COPY_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                    stat = _describe(uri, os.fstat(file.fileno()))
                if if_absent:
                    # A link, unlike a rename, fails where the name is taken, and shows the file only when complete.
                    try:
                        os.link(temp, path)
                    except FileExistsError as error:
                        raise AlreadyExists(f"{uri}: exists already") from error
                else:
                    temp.replace(path)
            finally:
                temp.unlink(missing_ok=True)
        return stat

    def delete(self, uri: str) -> None:
        """Remove the file; none there is no error, as on S3."""
        with _typed_errors(uri), suppress(FileNotFoundError):
            local_path(uri).unlink()


def _open(uri: str, etag: str | None) -> tuple[ObjectStat, int]:
    """What the file is and a descriptor of it, which the caller closes."""
    with _typed_errors(uri):
        descriptor = os.open(local_path(uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with _typed_errors(uri):
            stat = _describe(uri, os.fstat(descriptor))
        check_etag(uri, etag, stat.etag)
    except StorageError:
        os.close(descriptor)
        raise
    return stat, descriptor


def _fetch(stat: ObjectStat, descriptor: int, start: int, end: int) -> bytes:
    parts: list[bytes] = []
    with _typed_errors(stat.uri):
        while start < end and (part := os.pread(descriptor, end - start, start)):
            parts.append(part)
            start += len(part)
        # After the read: what is unchanged now was unchanged while it was read.
        check_etag(stat.uri, stat.etag, _describe(stat.uri, os.fstat(descriptor)).etag)
    return b"".join(parts)


def _describe(uri: str, status: os.stat_result) -> ObjectStat:
    if not stat_module.S_ISREG(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder or device, not a file")
    return ObjectStat(uri, status.st_size, f"{status.st_size:x}-{status.st_mtime_ns:x}")


def _walk(folder: Path, uri: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[ObjectStat]:
    """Files below ``folder``; ``ancestors`` are (device, inode) of the folders above, so that links cannot loop."""
    with _typed_errors(str(folder)), os.scandir(folder) as entries:
        # S3 sorts whole keys, so a folder sorts with its slash: a.txt, a/b, a0.
        keys = sorted(os.fsencode(entry.name) + (b"/" if entry.is_dir() else b"") for entry in entries)
    for key in keys:
        try:
            name = key.decode().rstrip("/")
        except UnicodeDecodeError as error:
            raise InvalidUri(f"{uri}/{key!r}: the name is not UTF-8: rename it") from error
        child = f"{uri}/{quote(name) if uri.startswith(FILE_SCHEME) else name}"
        status = None
        # Gone since it was listed, or a dangling link: not an object.
        with _typed_errors(child), suppress(FileNotFoundError):
            status = (folder / name).stat()
        if status is None:
            continue
        identity = (status.st_dev, status.st_ino)
        if stat_module.S_ISDIR(status.st_mode) and identity not in ancestors:
            yield from _walk(folder / name, child, (*ancestors, identity))
        elif stat_module.S_ISREG(status.st_mode) and not name.startswith(TEMP_PREFIX):
            yield _describe(child, status)


@contextmanager
def _typed_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _typed(error)(f"{uri}: {error.strerror}") from error


def _typed(error: OSError) -> type[StorageError]:
    if error.errno in NOT_FOUND:
        return ObjectNotFound
    if error.errno in DENIED:
        return AccessDenied
    return StorageTimeout if error.errno == errno.ETIMEDOUT else StorageUnavailable
