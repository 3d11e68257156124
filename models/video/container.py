"""Opening a video: probing by content, refusing by limits, choosing the stream, naming what failed."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import av.logging
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from models.video.errors import (
    Corrupt,
    NotMedia,
    NoVideoStream,
    OutOfMemory,
    TooLarge,
    TooLong,
    TooManyPixels,
    Truncated,
    UnsupportedCodec,
    VideoError,
)
from models.video.limits import CpuClock, DecodeLimits

# Only formats that hold media themselves: playlists (HLS, DASH, concat, …) make FFmpeg open what they name.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,ivf,gif,h264,hevc,obu,m4v,mpegvideo,"
    "mp3,aac,flac,wav,aiff,amr"
)
BUFFER_BYTES = 1 << 20
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
# Matroska, AVI, FLV, Ogg, ASF, MPEG-PS
SIGNATURES = (b"\x1a\x45\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba")
PICTURE_TOO_BIG = "exceeds specified max pixel count"
# Decoding began at an open GOP, and pictures from before it are told to go.
BENIGN = "mmco: unref"
ENDS_EARLY = ("File ended prematurely", "partial file", "moov atom not found")


class _GuardedSource:
    """The source as FFmpeg sees it: without a name to guess a format from, and remembering what it raised.

    FFmpeg takes a failed read for the end of the file, now or later; `check` tells the two apart.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._source.read(size) if self._error is None else b""
        except BaseException as error:
            self._error = error
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._source.seek(offset, whence)
        except BaseException as error:
            self._error = error
            return -1

    def tell(self) -> int:
        return self.seek(0, io.SEEK_CUR)

    def check(self) -> None:
        """Raise what the source raised, if it did."""
        if self._error is not None:
            raise self._error


@dataclass(slots=True)
class OpenVideo:
    """An open container, its video stream, and what has been noticed about it so far.

    Attributes:
        reorder_depth: the decoder's own, to be set again after a flush.
        num_expected: packets that the container says the stream has; 0 where it says nothing.
        ends_early: the file was seen to end before what it says it holds.
        num_packets: packets read so far.
    """

    container: InputContainer
    stream: VideoStream
    codec: VideoCodecContext
    codec_name: str
    limits: DecodeLimits
    name: str
    duration_s: float | None
    logs: list[tuple[int, str, str]]
    clock: CpuClock
    source: _GuardedSource
    reorder_depth: int
    num_expected: int
    ends_early: bool = False
    num_packets: int = 0

    def packets(self) -> Iterator[tuple["Packet[VideoStream]", bool]]:
        """The stream's packets in decode order, each with a mark: did the demuxer lose something just before it?

        Raises:
            DecodeTimeout: the CPU seconds are used up.
            TypedError: whatever the source raised.
        """
        demuxer = self.container.demux(self.stream)
        ends_broken = False
        while True:
            self.clock.check()
            try:
                packet = next(demuxer, None)
            except av.FFmpegError as error:
                self.source.check()
                raise_if_memory(error, self.name)
                self.ends_early = True
                return
            self.source.check()
            messages = self.take_errors()
            self.ends_early |= any(text in message for message in messages for text in ENDS_EARLY)
            if packet is None or (packet.size == 0 and packet.dts is None):
                break  # PyAV ends with an empty packet that would drain the decoder
            self.num_packets += 1
            ends_broken = packet.is_corrupt
            if packet.size:
                yield packet, bool(messages)
        self.ends_early |= ends_broken
        self.ends_early |= self.num_packets < self.num_expected

    def seconds(self, pts: int) -> float:
        """A timestamp of the stream in seconds."""
        return float(pts * self.stream.time_base) if self.stream.time_base is not None else math.nan

    def take_errors(self) -> list[str]:
        """The error messages that FFmpeg has logged since the last call."""
        if not self.logs:
            return []
        messages = [message for _, _, message in self.logs if not message.startswith(BENIGN)]
        self.logs.clear()
        if any(PICTURE_TOO_BIG in message for message in messages):
            raise TooManyPixels(f"{self.name}: a picture has more than max_pixels={self.limits.max_pixels} pixels")
        return messages


def raise_if_memory(error: BaseException, name: str) -> None:
    """Raise `OutOfMemory` for FFmpeg's and Python's memory errors."""
    if isinstance(error, MemoryError):
        raise OutOfMemory(f"{name}: not enough memory to decode") from error


@contextmanager
def open_video(source: BinaryIO, limits: DecodeLimits, clock: CpuClock, name: str) -> Iterator[OpenVideo]:
    """Open the video that ``source`` holds, from its start, and close it afterwards.

    Raises:
        VideoError: NotMedia, NoVideoStream, Truncated, Corrupt, UnsupportedCodec, TooLong or TooManyPixels.
        TypedError: whatever the source raised.
    """
    source.seek(0)
    guarded = _GuardedSource(source)
    # Errors are counted: they are how damage shows. Identical ones in a row count too.
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    with av.logging.Capture() as logs:
        try:
            container = av.open(
                guarded,
                mode="r",
                options={"max_pixels": _decoder_max_pixels(limits)},
                container_options={"format_whitelist": FORMATS, "protocol_whitelist": "none"},
                metadata_errors="ignore",
                buffer_size=BUFFER_BYTES,
            )
        except (av.FFmpegError, MemoryError) as error:
            guarded.check()
            raise_if_memory(error, name)
            raise _open_error(source, logs, limits, name) from error
        with container:
            guarded.check()
            stream = _choose_stream(container, source, name)
            codec = stream.codec_context
            video = OpenVideo(
                container=container,
                stream=stream,
                codec=codec,
                codec_name=codec.codec.canonical_name,
                limits=limits,
                name=name,
                duration_s=_duration_s(container, stream),
                logs=logs,
                clock=clock,
                source=guarded,
                reorder_depth=codec.reorder_depth,
                num_expected=_num_expected(container, stream),
            )
            video.take_errors()
            _check_header(video)
            # More processes, not more threads: threads cost 5-30 % CPU for no wall time on busy cores.
            codec.thread_count = 1
            codec.thread_type = ThreadType.NONE
            codec.options = {"max_pixels": _decoder_max_pixels(limits)}
            yield video


def check_bytes(source: BinaryIO, limits: DecodeLimits, name: str) -> None:
    """Raise `NotMedia` for an empty file and `TooLarge` for one beyond the limit."""
    size_bytes = source.seek(0, io.SEEK_END)
    if size_bytes == 0:
        raise NotMedia(f"{name}: the file is empty")
    if size_bytes > limits.max_file_bytes:
        raise TooLarge(f"{name}: {size_bytes} bytes, more than max_file_bytes={limits.max_file_bytes}")


def _choose_stream(container: InputContainer, source: BinaryIO, name: str) -> VideoStream:
    """The video stream with the largest pictures; cover art and thumbnails are none."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        if container.format.name.startswith("mov") and _ends_inside_a_box(source):
            raise Truncated(f"{name}: an MP4 file whose index (moov) is cut off")
        raise NoVideoStream(f"{name}: {container.format.name} without a video stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise UnsupportedCodec(f"{name}: no decoder for its video stream")
    chosen = max(decodable, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
    for stream in container.streams:
        if stream.index != chosen.index:
            stream.discard = Discard.all
    return chosen


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if container.duration is not None and container.duration > 0:
        return float(container.duration / av.time_base)
    if stream.duration is not None and stream.duration > 0 and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None


def _num_expected(container: InputContainer, stream: VideoStream) -> int:
    """How many packets the container says the stream has; 0 where it says nothing."""
    if stream.frames and container.format.name.startswith("mov"):
        # An edit list can leave out samples that the header counts; the index holds what remains.
        return len(stream.index_entries)
    return stream.frames


def _check_header(video: OpenVideo) -> None:
    limits, name = video.limits, video.name
    if video.duration_s is not None and video.duration_s > limits.max_duration_s:
        raise TooLong(f"{name}: {video.duration_s:.0f} s, longer than max_duration_s={limits.max_duration_s:g}")
    check_pixels(video.codec.width, video.codec.height, limits, name)


def check_pixels(width: int, height: int, limits: DecodeLimits, name: str) -> None:
    """Raise `TooManyPixels` for a picture beyond the limit."""
    if width * height > limits.max_pixels:
        raise TooManyPixels(f"{name}: {width}×{height} pixels, more than max_pixels={limits.max_pixels}")


def _decoder_max_pixels(limits: DecodeLimits) -> str:
    """The limit that decoders hold before they allocate: a little higher, since they count aligned sides."""
    return str(limits.max_pixels + limits.max_pixels // 8 + (1 << 16))


def _open_error(source: BinaryIO, logs: list[Any], limits: DecodeLimits, name: str) -> VideoError:
    """What FFmpeg's refusal to open means: it says "invalid data" for text and for half a video alike."""
    messages = [message for _, _, message in logs]
    if any(PICTURE_TOO_BIG in message for message in messages):
        return TooManyPixels(f"{name}: a picture has more than max_pixels={limits.max_pixels} pixels")
    source.seek(0)
    head = source.read(16)
    detail = f" ({messages[-1].strip()})" if messages else ""
    if head[4:8] in MP4_BOXES:
        if _ends_inside_a_box(source) or any("moov atom not found" in message for message in messages):
            return Truncated(f"{name}: an MP4 file whose index (moov) is missing or cut off")
        return Corrupt(f"{name}: a broken MP4 file{detail}")
    if head.startswith(SIGNATURES):
        return Corrupt(f"{name}: a broken media file{detail}")
    return NotMedia(f"{name}: no video or image that is read here")


def _ends_inside_a_box(source: BinaryIO) -> bool:
    """Does a top-level box of this MP4 file say that it is longer than the file (ISO/IEC 14496-12, 4.2)?"""
    num_bytes = source.seek(0, io.SEEK_END)
    at = 0
    while at + 8 <= num_bytes:
        source.seek(at)
        header = source.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if size < 8:
            return False
        at += size
    return at != num_bytes
