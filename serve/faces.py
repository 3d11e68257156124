"""From a picture's or a video's bytes to face crops: decoding children and detectors, as many at once as there are."""

import asyncio
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infra.errors import TypedError, UserError
from infra.settings import ServingSettings, StorageSettings
from infra.storage import Storage
from models.faces.detect import FaceDetector, build_detector
from models.faces.extract import FaceCrops, extract_faces
from models.faces.policy import FacePolicy
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from models.video.sandbox import Decoded, DecodeSandbox
from serve.problems import Problem, of_typed
from serve.telemetry import log
from serve.uploads import Source


@dataclass(frozen=True, slots=True)
class Policies:
    """What decides the crops of a scorer."""

    frames: FramePolicy
    faces: FacePolicy


@dataclass(frozen=True, slots=True, eq=False)
class Extracted:
    """The faces of one picture or video under one pair of policies.

    Attributes:
        crops: the faces.
        width: of the upright source, pixels.
        height: of the upright source, pixels.
        scale: source pixels a pixel of the frames that the faces were found in.
        num_frames: frames that were looked at.
        duration_s: seconds; None of an image, or where the container says nothing.
        codec: FFmpeg's name.
    """

    crops: FaceCrops
    width: int
    height: int
    scale: float
    num_frames: int
    duration_s: float | None
    codec: str


class FaceReader:
    """Decodes and detects, ``num_children`` sources at once; further ones wait.

    Args:
        storage: how objects are reached.
        serving: the limits of a request.
        num_children: decoding processes.
        device: of the detectors.
    """

    def __init__(
        self, storage: StorageSettings, serving: ServingSettings, *, num_children: int, device: str = "cpu"
    ) -> None:
        self._storage = Storage(storage)
        self._serving = serving
        self._device = device
        self._sandboxes = [DecodeSandbox(storage) for _ in range(num_children)]
        self._free: asyncio.Queue[DecodeSandbox] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(num_children, thread_name_prefix="faces")
        self._detectors: dict[FacePolicy, FaceDetector] = {}
        for sandbox in self._sandboxes:
            sandbox.start()
            self._free.put_nowait(sandbox)

    def prepare(self, policies: Policies) -> None:
        """Load what the policies need, so that the first request does not wait for it.

        Raises:
            UserError: They want more of a video than the service allows.
        """
        num_frames = len(policies.frames.wanted())
        if num_frames > self._serving.max_frames:
            raise UserError(
                f"its frame policy wants {num_frames} frames of a video, the service allows {self._serving.max_frames} "
                "(serving.max_frames)"
            )
        if policies.faces not in self._detectors:
            self._detectors[policies.faces] = build_detector(policies.faces, device=self._device)

    async def read(self, source: Source, wanted: tuple[Policies, ...]) -> dict[Policies, Extracted]:
        """The faces of the source under each pair of policies; it is decoded once for all that share their frames.

        Cancelled, it ends the decoder's process.

        Raises:
            Problem: The source is refused, broken, or takes too long.
        """
        sandbox = await self._free.get()
        left = threading.Event()
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._read, sandbox, source, wanted, left)
        # Not before the thread has ended is its sandbox another's, whoever has stopped waiting for it.
        future.add_done_callback(lambda _: self._free.put_nowait(sandbox))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            left.set()
            if not future.done():  # else the sandbox may be another's already
                sandbox.interrupt()
            future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody asks for it
            raise

    async def check(self) -> None:
        """Raise where a free decoder's process cannot be started any more."""
        if self._free.empty():
            return
        sandbox = self._free.get_nowait()
        try:
            await asyncio.to_thread(sandbox.start)
        finally:
            self._free.put_nowait(sandbox)

    def close(self) -> None:
        """End the decoding processes."""
        for sandbox in self._sandboxes:
            sandbox.interrupt()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for sandbox in self._sandboxes:
            sandbox.close()

    def _read(
        self, sandbox: DecodeSandbox, source: Source, wanted: tuple[Policies, ...], left: threading.Event
    ) -> dict[Policies, Extracted]:
        if source.uri is not None:
            return self._read_uri(sandbox, source, source.uri, wanted, left)
        assert source.data is not None
        try:
            # Without a name: it is gone with this process, however that ends.
            with tempfile.TemporaryFile(prefix="facereel-upload-") as file:
                file.write(source.data)
                file.flush()
                return self._read_uri(sandbox, source, f"/proc/{os.getpid()}/fd/{file.fileno()}", wanted, left)
        except OSError as error:
            log.error("an upload cannot be kept", extra={"error": str(error)})
            raise Problem(503, "no_space", "the service has no room for the upload", retry_after_s=30) from error

    def _read_uri(
        self, sandbox: DecodeSandbox, source: Source, uri: str, wanted: tuple[Policies, ...], left: threading.Event
    ) -> dict[Policies, Extracted]:
        decoded: dict[FramePolicy, Decoded] = {}
        found = {}
        for policies in wanted:
            self.prepare(policies)
            if policies.frames not in decoded:
                decoded[policies.frames] = self._decode(sandbox, source, uri, policies.frames, left)
            sampled = decoded[policies.frames].sampled
            _check_wanted(left)
            crops = extract_faces(sampled.frames, policies.faces, self._detectors[policies.faces])
            scale = sampled.width / sampled.frames[0].rgb.shape[1] if sampled.frames else 1.0
            found[policies] = Extracted(
                crops=crops,
                width=sampled.width,
                height=sampled.height,
                scale=scale,
                num_frames=len(sampled.frames),
                duration_s=sampled.duration_s,
                codec=sampled.codec,
            )
        return found

    def _decode(
        self, sandbox: DecodeSandbox, source: Source, uri: str, policy: FramePolicy, left: threading.Event
    ) -> Decoded:
        serving = self._serving
        limits = DecodeLimits(
            max_file_bytes=max(serving.max_image_bytes, serving.max_video_bytes),
            max_pixels=serving.max_pixels,
            max_duration_s=serving.max_duration_s,
            max_cpu_s=serving.max_request_s,
            max_wall_s=serving.max_request_s,
        )
        try:
            decoded = sandbox.decode(uri, policy, limits, cancelled=left)
            decoded.refuse_if_all_damaged()
        except TypedError as error:
            raise of_typed(error, source.name) from error
        return decoded


def _check_wanted(left: threading.Event) -> None:
    """End a thread whose request nobody waits for any more."""
    if left.is_set():
        raise Problem(499, "client_left", "nobody waits for this request")
