"""Decoding in a child process that can die alone: a hostile video costs one video."""

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np
from pydantic import SecretStr, ValidationError

from infra.errors import TypedError
from infra.settings import StorageSettings
from infra.storage import ObjectStat, Storage
from models.video.errors import Corrupt, DecoderCrashed, DecodeTimeout, OutOfMemory
from models.video.frames import Frame, SampledFrames
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from models.video.wire import READY, Answer, receive, send

MAX_START_S = 60
MAX_STARTS = 3
ROOT = Path(__file__).resolve().parents[2]


class Decoded(NamedTuple):
    """What came of one object.

    Attributes:
        sampled: the frames.
        stat: the object, in the version that was read.
        fetched_bytes: bytes that were read of it.
        sha256: hexadecimal digest of its bytes, where one was asked for; it makes every byte be read.
    """

    sampled: SampledFrames
    stat: ObjectStat
    fetched_bytes: int
    sha256: str | None

    def refuse_if_all_damaged(self) -> None:
        """Raise `Corrupt` where not one of the wanted frames is whole."""
        frames = self.sampled.frames
        if frames and all(frame.damaged for frame in frames):
            raise Corrupt(f"{self.stat.uri}: all {len(frames)} wanted frames are damaged")


class DecodeSandbox:
    """Decodes videos in one persistent child process, which is started when needed and replaced when it dies.

    The child reads the object itself, so that only frames travel: as raw bytes behind a JSON header, never as pickles.
    Usable from several threads, one video at a time.

    Args:
        settings: how the child reaches storage.
    """

    def __init__(self, settings: StorageSettings | None = None) -> None:
        self._settings = settings if settings is not None else StorageSettings()
        self._storage = Storage(self._settings)
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._interrupted: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._stderr: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def child_pid(self) -> int | None:
        """Process id of the child; None where none is running."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start the child now, so that the first video does not wait for it."""
        with self._lock:
            self._running()

    def interrupt(self) -> None:
        """Kill the child in the middle of what it does, from any thread: that `decode` raises `DecoderCrashed`.

        Where it does nothing, the next `decode` has a new child.
        """
        if (child := self._child) is not None:
            self._interrupted = child  # before it dies: that takes a moment, in which it still looks alive
            child.kill()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def decode(
        self,
        uri: str,
        policy: FramePolicy,
        limits: DecodeLimits,
        *,
        etag: str | None = None,
        with_digest: bool = False,
        sha256: str | None = None,
        cancelled: threading.Event | None = None,
    ) -> Decoded:
        """The frames that the policy wants of the object at ``uri``, and the object that they are from.

        Args:
            uri: local path or ``s3://``.
            policy: which frames, what size.
            limits: what the video may cost.
            etag: the version to read; None: the one found.
            with_digest: compute the SHA-256 of the whole object too.
            sha256: with ``with_digest``, what it has to be; of other content not even a failure is reported but this.
            cancelled: once it is set, decoding does not begin; what has begun is ended by `interrupt`.

        Raises:
            VideoError: a subclass that names the reason; `DecoderCrashed`, `DecodeTimeout` and `OutOfMemory` also when
                the child died of this video.
            StorageError: the object could not be read; `ObjectChanged` where its etag or digest is another one.
        """
        request = {
            "uri": self._storage.absolute(uri),
            "etag": etag,
            "with_digest": with_digest,
            "sha256": sha256,
            "policy": policy.model_dump(),
            "limits": limits.model_dump(),
        }
        with self._lock:
            connection = self._running()
            if cancelled is not None and cancelled.is_set():
                raise DecoderCrashed(f"{uri}: decoding was interrupted")
            deadline_s = time.monotonic() + limits.max_wall_s
            try:
                connection.settimeout(None)
                send(connection, request)
                header, pixels = receive(connection, max_bytes=limits.max_memory_bytes, deadline_s=deadline_s)
                answer = Answer.model_validate(header)
            except TimeoutError as error:
                self._stop()
                raise DecodeTimeout(f"{uri}: no answer within max_wall_s={limits.max_wall_s:g} seconds") from error
            except (EOFError, BrokenPipeError, ConnectionResetError) as error:
                raise self._death(uri, limits) from error
            except (ValueError, ValidationError) as error:
                self._stop()
                raise DecoderCrashed(f"{uri}: the decoder's process answered nonsense ({error})") from error
            except BaseException:
                self._stop()  # an interrupted exchange would be taken for the next video's
                raise
        if answer.error is not None:
            raise _typed_error(answer)
        stat = ObjectStat(uri, answer.size_bytes, answer.etag)
        return Decoded(_sampled(answer, pixels, policy, uri), stat, answer.fetched_bytes, answer.sha256)

    def _running(self) -> socket.socket:
        """The connection to a living child; starts one where none is."""
        if self._child is not None and (self._child is self._interrupted or self._child.poll() is not None):
            self._stop()
        last_line = ""
        for _ in range(MAX_STARTS):  # a child may be killed in its start, for what its neighbours took
            if self._connection is None:
                last_line = self._start()
            if self._connection is not None:
                assert self._stderr is not None
                self._stderr.seek(0)
                self._stderr.truncate()
                return self._connection
        # No video is to blame: not a typed error.
        raise RuntimeError(f"the decoder's process does not start: {last_line}")

    def _start(self) -> str:
        """Start a child; where it does not come up, its last words."""
        ours, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # One thread: numpy's BLAS would reserve address space for every core.
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "models.video.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                env=env,
            )
        self._connection = ours
        try:
            send(ours, _plain(self._settings))
            started, _ = receive(ours, deadline_s=time.monotonic() + MAX_START_S)
            assert started == READY, started
        except (OSError, EOFError):
            last_line = self._last_line()
            self._stop()
            return last_line
        return ""

    def _stop(self) -> None:
        """Kill the child, if one is running, and forget it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def _death(self, uri: str, limits: DecodeLimits) -> TypedError:
        """What the end of the child means for the video that it was decoding."""
        assert self._child is not None
        code = self._child.wait()
        last_line = self._last_line()
        interrupted = self._child is self._interrupted
        self._stop()
        if interrupted:
            return DecoderCrashed(f"{uri}: decoding was interrupted")
        if code == -signal.SIGXCPU:
            return DecodeTimeout(f"{uri}: decoding took more than max_cpu_s={limits.max_cpu_s:g} CPU seconds")
        if code == -signal.SIGKILL or "MemoryError" in last_line or "bad_alloc" in last_line:
            return OutOfMemory(f"{uri}: the decoder's process ran out of memory (exit code {code}; {last_line})")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecoderCrashed(f"{uri}: the decoder's process died: {how}{f' ({last_line})' if last_line else ''}")

    def _last_line(self) -> str:
        """The last line that the child has printed."""
        assert self._stderr is not None
        self._stderr.seek(0)
        lines = self._stderr.read()[-4096:].decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _plain(settings: StorageSettings) -> dict[str, object]:
    """The settings as JSON values, secrets included: the socket is private to the two processes."""
    return {
        key: value.get_secret_value() if isinstance(value, SecretStr) else value
        for key, value in settings.model_dump().items()
    }


def _typed_error(answer: Answer) -> TypedError:
    """The error that the child met, as the same class."""
    classes = [TypedError]
    for kind in classes:
        classes += kind.__subclasses__()
    kind = next((kind for kind in classes if kind.__name__ == answer.error), DecoderCrashed)
    error = kind.__new__(kind)
    error.args = (answer.message,)
    return error


def _sampled(answer: Answer, pixels: bytearray, policy: FramePolicy, uri: str) -> SampledFrames:
    """The frames of an answer, checked against what was asked: the child may be in a hostile video's hands."""
    sizes = [header.num_bytes for header in answer.frames]
    numbers = [header.index for header in answer.frames]
    if sum(sizes) != len(pixels) or len(sizes) > len(policy.wanted()) or sorted(set(numbers)) != numbers:
        raise DecoderCrashed(f"{uri}: the decoder's process answered nonsense ({len(sizes)} frames)")
    frames = []
    offset = 0
    for header in answer.frames:
        rgb = np.frombuffer(pixels, np.uint8, header.num_bytes, offset).reshape(header.height, header.width, 3)
        pts_s = math.nan if header.pts_s is None else header.pts_s
        frames.append(Frame(rgb, header.index, pts_s, header.damaged, header.shift))
        offset += header.num_bytes
    return SampledFrames(tuple(frames), answer.width, answer.height, answer.duration_s, answer.codec)
