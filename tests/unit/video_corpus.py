"""A corpus of small videos that the decoder's tests make for themselves: codecs, containers and their oddities."""

import io
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import av.logging
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

WIDTH, HEIGHT = 96, 64
REALTIME = {"deadline": "realtime", "cpu-used": "8", "g": "30", "b": "100k"}
X264 = {"preset": "ultrafast", "crf": "30"}
B_FRAMES = X264 | {"bf": "3", "g": "40", "b-pyramid": "normal", "refs": "3", "x264-params": "b-adapt=0"}


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A moving texture with the frame number in its first rows, bit by bit."""
    noise = np.random.default_rng(7).integers(0, 256, (height // 8 + 20, width // 8 + 20, 3), dtype=np.uint8)
    texture = noise.repeat(8, 0).repeat(8, 1)
    y, x = (index * 2) % 80, (index * 3) % 80
    rgb = texture[y : y + height, x : x + width].copy()
    for bit in range(8):
        rgb[:8, bit * width // 8 : (bit + 1) * width // 8] = 255 * (index >> bit & 1)
    return rgb


def video(
    codec: str,
    options: dict[str, str],
    container_format: str,
    *,
    num_frames: int = 90,
    mux_options: dict[str, str] | None = None,
    times: Callable[[int], int] | None = None,
    prepare: Callable[[av.VideoStream], None] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> bytes:
    """A video file."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_format, options=mux_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if prepare is not None:
            prepare(stream)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, width, height), format="rgb24")
            if times is None:
                frame.pts, frame.time_base = index, Fraction(1, 25)
            else:
                frame.pts, frame.time_base = times(index), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def remux(
    data: bytes,
    container_format: str,
    *,
    mux_options: dict[str, str] | None = None,
    skip_packets: int = 0,
    skip_keyframes: int = 0,
    shift_frames: int = 0,
    drop_packets: frozenset[int] | set[int] = frozenset(),
) -> bytes:
    """The same packets in another container, without the first or some others, or shown that many frames earlier."""
    with tempfile.TemporaryDirectory() as folder, av.open(io.BytesIO(data)) as source:
        path = Path(folder) / "video"
        with av.open(str(path), "w", format=container_format, options=mux_options or {}) as sink:
            stream = sink.add_stream_from_template(source.streams.video[0])
            for number, packet in enumerate(source.demux(video=0)):
                skip_keyframes -= packet.is_keyframe
                if packet.dts is None or number < skip_packets or skip_keyframes >= 0 or number in drop_packets:
                    continue
                shift = shift_frames * packet.duration
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                sink.mux(packet)
        return path.read_bytes()


def audio(container_format: str, *, cover: bool = False) -> bytes:
    """A second of sound, with cover art or without."""
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream("aac", rate=16000)
        art = None
        if cover:
            art = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            art.disposition = 0x400
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        if art is not None:
            container.mux(art.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
            container.mux(art.encode(None))
        container.mux(stream.encode(None))
    return file.getvalue()


def _rotated(degrees: int, *, hflip: bool = False, vflip: bool = False) -> bytes:
    return video(
        "libx264",
        X264,
        "mp4",
        num_frames=12,
        prepare=lambda stream: stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip),
    )


def _hevc(parameters: str) -> dict[str, str]:
    return {"preset": "ultrafast", "x265-params": f"log-level=none:pools=none:frame-threads=1:{parameters}"}


def _make() -> Iterator[tuple[str, Callable[[], bytes]]]:
    b_frames = cache(lambda: video("libx264", B_FRAMES, "mp4"))
    open_gop = cache(lambda: video("libx264", B_FRAMES | {"x264-params": "keyint=30:open-gop=1:b-adapt=0"}, "mp4"))
    hevc_open = cache(lambda: video("libx265", _hevc("keyint=30:open-gop=1:bframes=3:b-adapt=0"), "mp4"))
    yield "h264_b", b_frames
    yield "h264_no_b", lambda: video("libx264", X264 | {"bf": "0", "g": "12"}, "mp4")
    yield "h264_one_gop", lambda: video("libx264", B_FRAMES | {"g": "1000"}, "mp4")
    yield "h264_open_gop", open_gop
    yield "h264_intra_refresh", lambda: video("libx264", X264 | {"x264-params": "keyint=20:intra-refresh=1"}, "mp4")
    yield "h264_slices", lambda: video("libx264", B_FRAMES | {"slices": "4"}, "mp4")
    yield (
        "h264_interlaced",
        lambda: video("libx264", B_FRAMES | {"x264-params": "tff=1:b-adapt=0", "flags": "+ildct+ilme"}, "mp4"),
    )
    yield "h264_all_intra", lambda: video("libx264", X264 | {"g": "1"}, "mp4")
    yield "h264_vfr", lambda: video("libx264", B_FRAMES, "mp4", times=lambda index: index * 40 + (index % 7) * 13 % 40)
    yield "h264_faststart", lambda: remux(b_frames(), "mp4", mux_options={"movflags": "faststart"})
    yield "h264_fragmented", lambda: remux(b_frames(), "mp4", mux_options={"movflags": "frag_keyframe+empty_moov"})
    yield (
        "h264_edit_list",
        lambda: remux(b_frames(), "mp4", mux_options={"avoid_negative_ts": "disabled"}, shift_frames=17),
    )
    yield "h264_mkv", lambda: remux(b_frames(), "matroska")
    yield (
        "h264_mkv_negative",
        lambda: remux(b_frames(), "matroska", mux_options={"avoid_negative_ts": "disabled"}, shift_frames=5),
    )
    yield "h264_mkv_mid_gop", lambda: remux(b_frames(), "matroska", skip_packets=25)
    yield "h264_mkv_open_start", lambda: remux(open_gop(), "matroska", skip_keyframes=1)
    yield "h264_ts", lambda: remux(b_frames(), "mpegts")
    yield "h264_ts_mid_gop", lambda: remux(b_frames(), "mpegts", skip_packets=25)
    yield "h264_avi", lambda: video("libx264", B_FRAMES, "avi")
    yield "h264_flv", lambda: remux(b_frames(), "flv")
    yield "h264_raw", lambda: remux(b_frames(), "h264")
    yield "h264_one_frame", lambda: video("libx264", X264, "mp4", num_frames=1)
    yield "hevc", lambda: video("libx265", _hevc("keyint=30:open-gop=0:bframes=3:b-adapt=0"), "mp4")
    yield "hevc_open_gop", hevc_open
    yield "hevc_open_start", lambda: remux(hevc_open(), "matroska", skip_keyframes=1)
    yield (
        "hevc_layers",
        lambda: video("libx265", _hevc("keyint=40:bframes=3:b-adapt=0:b-pyramid=1:temporal-layers=1"), "mp4"),
    )
    yield "hevc_ts", lambda: remux(hevc_open(), "mpegts")
    yield (
        "vp9",
        lambda: video(
            "libvpx-vp9",
            {
                "deadline": "realtime",
                "cpu-used": "8",
                "g": "30",
                "auto-alt-ref": "1",
                "lag-in-frames": "12",
                "b": "100k",
            },
            "webm",
        ),
    )
    yield "vp8", lambda: video("libvpx", REALTIME, "webm")
    yield "av1", lambda: video("libsvtav1", {"preset": "12", "g": "30", "svtav1-params": "lp=1"}, "mp4")
    yield "mpeg4_avi", lambda: video("mpeg4", {"g": "20", "bf": "2"}, "avi")
    yield "mpeg2_ts", lambda: video("mpeg2video", {"g": "15", "bf": "2"}, "mpegts")
    yield "mjpeg", lambda: video("mjpeg", {}, "mov", num_frames=40)
    yield "gif", lambda: video("gif", {}, "gif", num_frames=20)


VIDEOS = dict(_make())
ROTATIONS = {
    (degrees, hflip, vflip): (lambda d=degrees, h=hflip, v=vflip: _rotated(d, hflip=h, vflip=v))
    for degrees in (0, 90, 180, 270)
    for hflip, vflip in ((False, False), (True, False), (False, True))
}


@cache
def file_of(name: str) -> bytes:
    """A video of the corpus; made once."""
    return VIDEOS[name]()


def decode_fully(data: bytes, *, restart: bool = False) -> list[tuple[int | None, np.ndarray]]:
    """(pts, ``uint8[H, W, 3]``) of every frame that a plain decode yields, in its order, errors stepped over.

    With ``restart`` the decoder is flushed before every keyframe: FFmpeg's concealment otherwise lets an error show in
    later, independent GOPs.
    """
    reformatter = VideoReformatter()
    found: list[tuple[int | None, np.ndarray]] = []
    with av.logging.Capture(), av.open(io.BytesIO(data), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        demuxer = container.demux(stream)
        while True:
            try:
                packet = next(demuxer, None)
            except av.FFmpegError:
                packet = None
            is_end = packet is None or not packet.size
            frames = _decode(stream.codec_context, None) if is_end or (restart and packet.is_keyframe) else []
            if not is_end:
                if restart and packet.is_keyframe:
                    stream.codec_context.flush_buffers()
                frames += _decode(stream.codec_context, packet)
            for frame in frames:
                rgb = reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1)
                found.append((frame.pts, rgb.to_ndarray()))
            if is_end:
                return found


def _decode(codec_context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return codec_context.decode(packet)
    except av.FFmpegError:
        return []


@cache
def frames_of(name: str) -> list[tuple[int | None, np.ndarray]]:
    """All frames of a video of the corpus."""
    return decode_fully(file_of(name))
