"""The mixed catalog that the decoding benchmark runs over, and the frame numbers that its pictures carry."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

NUM_PICTURES = 500
NUM_BITS = 12
NUMBER_SHARE = 22  # the frame number stands in the first 1/22 of the rows


@dataclass(frozen=True)
class Video:
    """One video of the catalog and how it is encoded."""

    name: str
    suffix: str
    codec: str
    width: int
    height: int
    options: dict[str, str]
    mux_options: dict[str, str] = field(default_factory=dict)
    time_ms: Callable[[int], int] | None = None
    rotation_deg: int = 0
    is_quick: bool = False


def _x264(gop: int, **options: str) -> dict[str, str]:
    fixed_gop = {"g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
    return {"preset": "medium", "crf": "23"} | fixed_gop | options


def _x265(parameters: str) -> dict[str, str]:
    parameters = f"log-level=none:pools=none:frame-threads=1:{parameters}"
    return {"preset": "ultrafast", "crf": "26", "x265-params": parameters}


CATALOG = [
    Video("720p GOP 250, B-frames", "mp4", "libx264", 1280, 720, _x264(250)),
    Video("720p GOP 50, B-frames", "mp4", "libx264", 1280, 720, _x264(50)),
    Video("720p GOP 30, none, 8 Mbps", "mp4", "libx264", 1280, 720, _x264(30, bf="0", crf="-1", b="8M")),
    Video("360p GOP 250, B-frames", "mp4", "libx264", 640, 360, _x264(250), is_quick=True),
    Video("720p HEVC, open GOP", "mp4", "libx265", 1280, 720, _x265("keyint=120:min-keyint=120:open-gop=1")),
    Video(
        "360p VFR, GOP 90",
        "mp4",
        "libx264",
        640,
        360,
        _x264(90),
        time_ms=lambda index: index * 33 + index % 5 * 6 + index // 40 * 200,
        is_quick=True,
    ),
    Video(
        "1080p phone, HEVC GOP 30, turned",
        "mp4",
        "libx265",
        1920,
        1080,
        _x265("keyint=30:min-keyint=30:open-gop=0:bframes=0"),
        rotation_deg=90,
    ),
    Video(
        "360p VP9, GOP 128",
        "webm",
        "libvpx-vp9",
        640,
        360,
        {"deadline": "realtime", "cpu-used": "7", "g": "128", "b": "600k"},
    ),
    Video("360p AV1, GOP 240", "mp4", "libsvtav1", 640, 360, {"preset": "11", "g": "240", "crf": "38"}),
    Video("480p MKV, GOP 250", "mkv", "libx264", 854, 480, _x264(250), is_quick=True),
    Video("720p MPEG-TS, GOP 50", "ts", "libx264", 1280, 720, _x264(50)),
    Video(
        "360p fragmented, GOP 60",
        "mp4",
        "libx264",
        640,
        360,
        _x264(60),
        mux_options={"movflags": "frag_keyframe+empty_moov"},
        is_quick=True,
    ),
    Video("360p open GOP 250", "mp4", "libx264", 640, 360, _x264(250) | {"x264-params": "open-gop=1"}),
]


class Scene:
    """Something to film: a smooth landscape that pans, things that move over it, grain; and the frame's number."""

    def __init__(self, width: int, height: int) -> None:
        rng = np.random.default_rng(3)
        self._width, self._height = width, height
        shape = (height + 400, width + 800)
        land = np.zeros((*shape, 3), np.float32)
        # Detail falls with its size, as in photographs. Chosen so that at 720p a keyframe is 10 times as large as the
        # average packet and takes 2.3 times as long to decode: filmed clips encoded alike have up to 12 and 2.5.
        for step, weight in ((160, 55), (40, 25), (10, 4), (3, 1)):
            coarse = rng.normal(0, weight, (shape[0] // step + 2, shape[1] // step + 2, 3)).astype(np.float32)
            channels = [
                Image.fromarray(coarse[..., channel]).resize(shape[::-1], Image.Resampling.BICUBIC)
                for channel in range(3)
            ]
            land += np.stack([np.asarray(channel) for channel in channels], axis=-1)
        self._land = np.clip(land + 120, 10, 245).astype(np.uint8)
        self._grain = rng.integers(-1, 2, (8, height, width, 1), dtype=np.int8).view(np.uint8)
        self._things = [self._land[at : at + height // 5, at : at + width // 8] // 2 + 60 for at in range(0, 300, 50)]

    def picture(self, index: int) -> np.ndarray:
        """``uint8[H, W, 3]``."""
        x, y = 400 + int(380 * np.sin(index / 90)), 200 + int(190 * np.sin(index / 130))
        rgb = self._land[y : y + self._height, x : x + self._width].copy()
        for number, thing in enumerate(self._things):
            height, width = thing.shape[:2]
            left = int((self._width - width) * (0.5 + 0.5 * np.sin(index / (25 + 9 * number) + number)))
            top = int((self._height - height) * (0.5 + 0.5 * np.cos(index / (31 + 7 * number))))
            rgb[top : top + height, left : left + width] = thing
        rgb += self._grain[index % 8]  # nothing here is so dark or bright that it would wrap around
        rgb[: self._height // NUMBER_SHARE] = 0
        for bit in range(NUM_BITS):
            cell = slice(bit * self._width // NUM_BITS, (bit + 1) * self._width // NUM_BITS)
            rgb[: self._height // NUMBER_SHARE, cell] = 235 * (index >> bit & 1)
        return rgb


def number_in(rgb: np.ndarray, video: Video) -> int:
    """The frame number that a decoded picture shows, whatever its size and whether it was turned upright."""
    if video.rotation_deg and rgb.shape[0] > rgb.shape[1]:
        rgb = np.rot90(rgb, -video.rotation_deg // 90)
    rows = rgb[: max(1, rgb.shape[0] // NUMBER_SHARE - 2)].mean(axis=(0, 2))
    width = len(rows)
    cells = [rows[bit * width // NUM_BITS + 4 : (bit + 1) * width // NUM_BITS - 4] for bit in range(NUM_BITS)]
    return sum(1 << bit for bit, cell in enumerate(cells) if cell.mean() > 120)


def make(video: Video, path: Path, *, num_copies: int = 3) -> None:
    """Encode the video to ``path``, unless it is there: so many copies of its 500 pictures, one after the other."""
    if path.exists():
        return
    first = path.with_suffix(".first.mp4")
    _encode(video, first)
    _repeat(first, path, num_copies, video.mux_options)
    first.unlink()


def _encode(video: Video, path: Path) -> None:
    scene = Scene(video.width, video.height)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(video.codec, rate=25, options=video.options)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        stream.codec_context.thread_count = 2
        if video.time_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if video.rotation_deg:
            stream.set_display_rotation(video.rotation_deg)
        for index in range(NUM_PICTURES):
            frame = av.VideoFrame.from_ndarray(scene.picture(index), format="rgb24")
            if video.time_ms is None:
                frame.pts, frame.time_base = index, Fraction(1, 25)
            else:
                frame.pts, frame.time_base = video.time_ms(index), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _repeat(short: Path, path: Path, num_copies: int, mux_options: dict[str, str]) -> None:
    partial = path.with_suffix(".partial" + path.suffix)
    with av.open(str(short)) as source, av.open(str(partial), "w", options=mux_options) as sink:
        template = source.streams.video[0]
        packets = [packet for packet in source.demux(template) if packet.size]
        data = [bytes(packet) for packet in packets]
        times = sorted(packet.pts for packet in packets)
        length = times[-1] - times[0] + round(1 / (25 * template.time_base))
        stream = sink.add_stream_from_template(template, opaque=True)
        for copy in range(num_copies):
            for original, content in zip(packets, data, strict=True):
                packet = av.Packet(content)
                packet.pts, packet.dts = original.pts + copy * length, original.dts + copy * length
                packet.time_base, packet.is_keyframe = template.time_base, original.is_keyframe
                packet.stream = stream
                sink.mux(packet)
    partial.rename(path)
