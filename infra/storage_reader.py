"""A seekable file over ranged reads, with read-ahead: what PyAV opens, for S3 and local files alike."""

import io
import os
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from infra.storage_base import ObjectStat

# A container is read from the front while its index lies at the end: two blocks keep both ends at hand.
NUM_BLOCKS = 2
MAX_GROWTH = 4


class SeekableReader(io.BufferedIOBase, BinaryIO):
    """Read-only binary file over ``fetch(start, end)``, which answers exactly these bytes of one pinned object.

    A read that misses fetches a block of ``read_ahead_bytes``; a read that continues a block fetches twice its length,
    up to four times ``read_ahead_bytes``, so that a video costs few requests and a look at one place few bytes.

    Attributes:
        stat: the object as it was when opened; all bytes come from this version of it.
        bytes_read: bytes fetched so far, read-ahead included.
        num_requests: fetches so far.
    """

    mode = "rb"

    def __init__(
        self,
        stat: ObjectStat,
        fetch: Callable[[int, int], bytes],
        *,
        read_ahead_bytes: int,
        head: bytes = b"",
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Start at position 0; ``head`` is what a backend has fetched already to open the object."""
        self.stat = stat
        self.bytes_read = len(head)
        self.num_requests = 1 if head else 0
        self._fetch = fetch
        self._read_ahead_bytes = read_ahead_bytes
        self._on_close = on_close
        self._position = 0
        self._blocks: deque[tuple[int, bytes]] = deque(maxlen=NUM_BLOCKS)
        if head:
            self._blocks.append((0, head))

    @property
    def name(self) -> str:
        """The uri, for messages of libraries that read this file."""
        return self.stat.uri

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move as a file does; past the end is allowed and reads nothing."""
        self._check_open()
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.stat.size_bytes}
        if whence not in origins:
            raise ValueError(f"whence is {whence}; it must be 0, 1 or 2")
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"{self.name}: seek to {position}, before the start")
        self._position = position
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read ``size`` bytes, fewer only at the end of the object; None or a negative size reads all that is left.

        Raises:
            StorageError: of the backend, `ObjectChanged` when the object was replaced since it was opened.
        """
        self._check_open()
        end = self.stat.size_bytes
        if size is not None and size >= 0:
            end = min(end, self._position + size)
        parts: list[memoryview] = []
        while self._position < end:
            start, block = self._block_at(self._position, end)
            part = memoryview(block)[self._position - start : end - start]
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Drop the blocks and release what the backend holds open."""
        if not self.closed:
            self._blocks.clear()
            if self._on_close is not None:
                self._on_close()
        super().close()

    def _block_at(self, position: int, end: int) -> tuple[int, bytes]:
        """The block that holds ``position``, fetched (up to ``end`` at least) if it is not there."""
        length = self._read_ahead_bytes
        for start, block in self._blocks:
            if start <= position < start + len(block):
                return start, block
            if start + len(block) == position:
                length = max(length, min(2 * len(block), MAX_GROWTH * self._read_ahead_bytes))
        stop = min(max(position + length, end), self.stat.size_bytes)
        block = self._fetch(position, stop)
        assert len(block) == stop - position, f"{self.name}: {len(block)} bytes for [{position}, {stop})"
        self.bytes_read += len(block)
        self.num_requests += 1
        self._blocks.append((position, block))
        return position, block

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.name}: read of a closed file")
