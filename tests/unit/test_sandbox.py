"""A child process decodes: whatever becomes of it, one video pays."""

import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.settings import StorageSettings
from infra.storage import ObjectChanged, ObjectNotFound, Storage
from models.video import sandbox as sandbox_module
from models.video.decode import decode_frames
from models.video.errors import DecoderCrashed, DecodeTimeout, NotMedia, OutOfMemory, TooLarge, Truncated
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from models.video.sandbox import DecodeSandbox
from models.video.wire import Answer, FrameHeader, receive
from tests.unit.video_corpus import file_of

ROOT = Path(__file__).resolve().parents[2]
POLICY = FramePolicy(every=20, limit=5)
LIMITS = DecodeLimits()


@pytest.fixture(scope="module")
def shared():
    with DecodeSandbox() as running:
        yield running


@pytest.fixture
def video(tmp_path) -> str:
    path = tmp_path / "video.mp4"
    path.write_bytes(file_of("h264_b"))
    return str(path)


def assert_decodes(sandbox: DecodeSandbox, uri: str) -> None:
    sampled, stat, *_ = sandbox.decode(uri, POLICY, LIMITS)
    assert [frame.index for frame in sampled.frames] == [0, 20, 40, 60, 80]
    assert stat.size_bytes == len(file_of("h264_b"))


@contextmanager
def once_asked(act: Callable[[], object]) -> Iterator[None]:
    """Act in the middle of a video: when the child has been asked, before its answer is read."""

    def acting(*args: Any, **kwargs: Any) -> object:
        act()
        return receive(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox_module, "receive", acting)
        yield


def test_the_digest_is_of_the_whole_object(shared, video):
    plain, digested = (shared.decode(video, POLICY, LIMITS, with_digest=flag) for flag in (False, True))
    assert plain.sha256 is None
    assert digested.sha256 == hashlib.sha256(file_of("h264_b")).hexdigest()
    assert 0 < plain.fetched_bytes <= digested.fetched_bytes


@pytest.mark.parametrize("name", ["h264_b", "h264_avi", "vp9", "h264_raw"])
@pytest.mark.parametrize("mode", ["exact", "keyframe"])
def test_frames_cross_unchanged(shared, tmp_path, name, mode):
    policy = FramePolicy(indices=(3, 25, 70), mode=mode)
    path = tmp_path / name
    path.write_bytes(file_of(name))
    sampled, stat, *_ = shared.decode(str(path), policy, LIMITS)
    with path.open("rb") as source:
        expected = decode_frames(source, policy, LIMITS, name=name)
    assert stat == Storage().stat(str(path))
    assert (sampled.width, sampled.height, sampled.duration_s, sampled.codec) == (
        expected.width,
        expected.height,
        expected.duration_s,
        expected.codec,
    )
    for frame, other in zip(sampled.frames, expected.frames, strict=True):
        assert np.array_equal(frame.rgb, other.rgb)
        assert frame.pts_s == other.pts_s or np.isnan(frame.pts_s) == np.isnan(other.pts_s)
        assert (frame.index, frame.damaged, frame.shift) == (other.index, other.damaged, other.shift)


def test_one_child_serves_many_videos(shared, video):
    assert_decodes(shared, video)
    child = shared.child_pid
    for _ in range(3):
        assert_decodes(shared, video)
    assert shared.child_pid == child


def test_typed_errors_keep_their_class(shared, tmp_path, video):
    shared.start()
    child = shared.child_pid
    missing = str(tmp_path / "missing.mp4")
    with pytest.raises(ObjectNotFound, match=r"missing\.mp4"):
        shared.decode(missing, POLICY, LIMITS)
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(NotMedia, match=r"text\.mp4"):
        shared.decode(str(tmp_path / "text.mp4"), POLICY, LIMITS)
    (tmp_path / "half.mp4").write_bytes(file_of("h264_faststart")[:15000])
    with pytest.raises(Truncated):
        shared.decode(str(tmp_path / "half.mp4"), POLICY, LIMITS)
    with pytest.raises(TooLarge, match="max_file_bytes=10"):
        shared.decode(video, POLICY, DecodeLimits(max_file_bytes=10))
    with pytest.raises(ObjectChanged):
        shared.decode(video, POLICY, LIMITS, etag="another")
    assert shared.child_pid == child


def test_relative_uris_are_relative_to_the_caller(shared, video, monkeypatch):
    monkeypatch.chdir(Path(video).parent)
    assert_decodes(shared, "video.mp4")


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (signal.SIGSEGV, DecoderCrashed, "SIGSEGV"),
        (signal.SIGABRT, DecoderCrashed, "SIGABRT"),
        (signal.SIGKILL, OutOfMemory, "out of memory"),
        (signal.SIGXCPU, DecodeTimeout, "max_cpu_s"),
    ],
)
def test_a_dead_child_is_laid_to_its_video(shared, video, number, error, message):
    assert_decodes(shared, video)
    child = shared.child_pid
    os.kill(child, signal.SIGSTOP)  # so that it cannot answer before it dies

    def end():
        os.kill(child, number)
        os.kill(child, signal.SIGCONT)

    with once_asked(end), pytest.raises(error, match=message) as caught:
        shared.decode(video, POLICY, LIMITS)
    assert video in str(caught.value)
    assert_decodes(shared, video)


def test_an_interrupted_child_decodes_nothing_more(video, monkeypatch):
    """It takes a moment to die; a video that came in that moment was said to have taken all memory."""
    with DecodeSandbox() as sandbox:
        sandbox.start()
        child = sandbox._child
        with monkeypatch.context() as slow:
            slow.setattr(child, "kill", lambda: None)
            sandbox.interrupt()
            assert child.poll() is None
        assert_decodes(sandbox, video)
        assert sandbox.child_pid != child.pid


def test_an_interrupted_video_says_so(shared, video):
    shared.start()
    os.kill(shared.child_pid, signal.SIGSTOP)
    with once_asked(shared.interrupt), pytest.raises(DecoderCrashed, match="was interrupted"):
        shared.decode(video, POLICY, LIMITS)
    assert_decodes(shared, video)


def test_what_nobody_waits_for_is_not_begun(shared, video):
    """Its interruption came before its child: that one would not be stopped any more."""
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(DecoderCrashed, match="was interrupted"):
        shared.decode(video, POLICY, LIMITS, cancelled=cancelled)
    assert_decodes(shared, video)


def test_a_silent_child_is_a_timeout(shared, video):
    assert_decodes(shared, video)
    child = shared.child_pid
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(DecodeTimeout, match=r"max_wall_s=0\.2"):
        shared.decode(video, POLICY, DecodeLimits(max_wall_s=0.2))
    assert not Path(f"/proc/{child}").exists()
    assert_decodes(shared, video)


def test_a_child_that_died_between_videos_is_replaced(shared, video):
    assert_decodes(shared, video)
    child = shared.child_pid
    os.kill(child, signal.SIGKILL)
    while Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert_decodes(shared, video)
    assert shared.child_pid != child


def png(side: int) -> bytes:
    """A black one-bit image: few bytes, many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 1)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_memory_is_limited(shared, tmp_path, video):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(12800))
    with pytest.raises(OutOfMemory):
        shared.decode(str(path), POLICY, DecodeLimits(max_pixels=10**9, max_memory_bytes=1 << 29))
    assert_decodes(shared, video)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(frames=(FrameHeader(height=2, width=2, index=0, pts_s=0, damaged=False, shift=0),)),
        Answer(frames=(FrameHeader(height=1, width=1, index=0, pts_s=0, damaged=False, shift=0),) * 4),
        Answer(frames=(FrameHeader(height=1, width=1, index=0, pts_s=0, damaged=False, shift=0),) * 6),
    ],
    ids=["size", "order", "number"],
)
def test_a_lying_child_is_a_crash(shared, video, monkeypatch, answer):
    monkeypatch.setattr(
        sandbox_module, "receive", lambda *_, **__: (answer.model_dump(), bytearray(3 * len(answer.frames)))
    )
    shared.close()
    monkeypatch.setattr(DecodeSandbox, "_running", lambda self: NoSocket())
    with pytest.raises(DecoderCrashed, match="nonsense"):
        shared.decode(video, POLICY, LIMITS)


class NoSocket:
    def settimeout(self, timeout): ...

    def sendall(self, data): ...


def test_a_child_that_is_killed_in_its_start_is_replaced(monkeypatch, video):
    popen, started = subprocess.Popen, []

    def killed_at_first(*arguments, **options):
        child = popen(*arguments, **options)
        if not started:
            child.kill()
        started.append(child)
        return child

    monkeypatch.setattr(sandbox_module.subprocess, "Popen", killed_at_first)
    with DecodeSandbox() as sandbox:
        assert_decodes(sandbox, video)
    assert len(started) == 2


def test_a_digest_that_is_not_the_expected_one_comes_before_any_failure(shared, tmp_path):
    path = tmp_path / "half.mp4"
    path.write_bytes(file_of("h264_b")[:-2000])
    with pytest.raises(ObjectChanged, match="its sha256 is"):
        shared.decode(str(path), POLICY, LIMITS, with_digest=True, sha256=hashlib.sha256(b"whole").hexdigest())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(Truncated):
        shared.decode(str(path), POLICY, LIMITS, with_digest=True, sha256=digest)


def test_a_child_that_cannot_start_is_nobodys_video(monkeypatch, video):
    monkeypatch.setattr(sandbox_module, "ROOT", Path("/nowhere"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with DecodeSandbox() as sandbox, pytest.raises(RuntimeError, match=r"does not start.*models"):
        sandbox.decode(video, POLICY, LIMITS)


def test_settings_reach_the_child(video):
    settings = StorageSettings(access_key_id="id", secret_access_key="secret", read_ahead_bytes=4096)
    assert sandbox_module._plain(settings)["secret_access_key"] == "secret"
    with DecodeSandbox(settings) as sandbox:
        assert_decodes(sandbox, video)
        arguments = Path(f"/proc/{sandbox.child_pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{sandbox.child_pid}/environ").read_bytes()
    assert b"secret" not in arguments + environment


def test_close_ends_the_child(video):
    sandbox = DecodeSandbox()
    assert sandbox.child_pid is None
    assert_decodes(sandbox, video)
    child = sandbox.child_pid
    sandbox.close()
    assert not Path(f"/proc/{child}").exists()
    assert_decodes(sandbox, video)
    sandbox.close()


def test_the_child_dies_with_its_parent(video):
    script = (
        "import os, sys; from models.video.sandbox import *\n"
        "sandbox = DecodeSandbox(); sandbox.decode(sys.argv[1], FramePolicy(), DecodeLimits())\n"
        "print(sandbox.child_pid, flush=True); os._exit(1)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", script, video], cwd=ROOT, capture_output=True, text=True, check=False
    )
    child = int(parent.stdout)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()


def test_the_child_imports_little():
    script = "import models.video.child, sys; print({'torch', 'ray', 'mlflow', 'boto3'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
