"""The process that decodes for a `DecodeSandbox`: ``python -m models.video.child FD``. It may die; nobody else does."""

import hashlib
import math
import resource
import signal
import socket
import sys
import time
from typing import Any

from infra.errors import TypedError
from infra.settings import StorageSettings
from infra.storage import ObjectChanged, SeekableReader, Storage
from models.video.decode import decode_frames
from models.video.errors import DecoderCrashed, OutOfMemory
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from models.video.wire import READY, Answer, FrameHeader, receive, send

DIGEST_BLOCK_BYTES = 4 << 20


def serve(connection: socket.socket) -> None:
    """Answer requests until the sandbox is gone."""
    settings, _ = receive(connection)
    storage = Storage(StorageSettings(**settings))
    send(connection, READY)
    while True:
        try:
            request, _ = receive(connection)
        except EOFError:
            return
        answer, payloads = _answer(storage, request)
        try:
            send(connection, answer.model_dump(), payloads)
        except (BrokenPipeError, ConnectionResetError):
            return


def _answer(storage: Storage, request: dict[str, Any]) -> tuple[Answer, list[memoryview]]:
    limits = DecodeLimits(**request["limits"])
    policy = FramePolicy(**request["policy"])
    uri = request["uri"]
    _limit_process(limits)
    try:
        with storage.open_reader(uri, request["etag"]) as reader:
            try:
                sampled = decode_frames(reader, policy, limits, name=uri)
            finally:
                # Also of what cannot be decoded: it may not be what was meant.
                sha256 = _checked_digest(reader, request["sha256"]) if request["with_digest"] else None
            stat, fetched_bytes = reader.stat, reader.bytes_read
    except TypedError as error:
        return Answer(error=type(error).__name__, message=str(error)), []
    except MemoryError:
        return Answer(error=OutOfMemory.__name__, message=f"{uri}: not enough memory to decode"), []
    except Exception as error:
        # Whatever a hostile file makes the libraries raise costs this file alone.
        return Answer(error=DecoderCrashed.__name__, message=f"{uri}: {type(error).__name__}: {error}"), []
    headers = tuple(
        FrameHeader(
            height=frame.rgb.shape[0],
            width=frame.rgb.shape[1],
            index=frame.index,
            pts_s=None if math.isnan(frame.pts_s) else frame.pts_s,
            damaged=frame.damaged,
            shift=frame.shift,
        )
        for frame in sampled.frames
    )
    answer = Answer(
        frames=headers,
        width=sampled.width,
        height=sampled.height,
        duration_s=sampled.duration_s,
        codec=sampled.codec,
        size_bytes=stat.size_bytes,
        etag=stat.etag,
        fetched_bytes=fetched_bytes,
        sha256=sha256,
    )
    return answer, [frame.rgb.reshape(-1).data for frame in sampled.frames]


def _checked_digest(reader: SeekableReader, expected: str | None) -> str:
    """SHA-256 of the version that the reader is pinned to; `ObjectChanged` where another one is expected."""
    reader.seek(0)
    digest = hashlib.sha256()
    while block := reader.read(DIGEST_BLOCK_BYTES):
        digest.update(block)
    found = digest.hexdigest()
    if expected is not None and found != expected.lower():
        raise ObjectChanged(f"{reader.name}: changed: its sha256 is {found}, expected {expected}")
    return found


def _limit_process(limits: DecodeLimits) -> None:
    """The kernel's limits for this video: the last line behind the checks between packets."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.max_memory_bytes, resource.RLIM_INFINITY))
    cpu_s = math.ceil(time.process_time() + limits.max_cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))


def main() -> None:
    """Serve the connection whose file descriptor is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it closes the connection
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
