"""Broken videos: no crash, a typed reason, and frames without the damage mark can be trusted."""

import io

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.video.decode import decode_frames
from models.video.errors import Corrupt, NotMedia, NoVideoStream, Truncated, VideoError
from models.video.frames import Frame
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from tests.unit.video_corpus import VIDEOS, audio, decode_fully, file_of, frames_of, remux

LIMITS = DecodeLimits(max_cpu_s=30)
# FFmpeg's decoders of the others fill what is missing with whatever memory holds: two decodes of one file differ.
REPEATABLE = [
    "av1",
    "h264_all_intra",
    "h264_avi",
    "h264_b",
    "h264_edit_list",
    "h264_faststart",
    "h264_flv",
    "h264_fragmented",
    "h264_interlaced",
    "h264_mkv",
    "h264_no_b",
    "h264_open_gop",
    "h264_slices",
    "h264_ts",
    "h264_vfr",
    "mjpeg",
]


def decoded(data: bytes, *indices: int) -> tuple[Frame, ...]:
    policy = FramePolicy(indices=indices or None, short_side=4096)
    return decode_frames(io.BytesIO(data), policy, LIMITS, name="video").frames


@st.composite
def damages(draw):
    """A function that damages a file: flipped bits, a hole of zeros, a cut out piece, a lost end."""
    kind = draw(st.sampled_from(["flip", "zero", "cut", "end"]))
    places = [draw(st.floats(0, 1, exclude_max=True)) for _ in range(draw(st.integers(1, 4)) if kind == "flip" else 1)]
    bit, size = draw(st.integers(0, 7)), draw(st.integers(10, 3000))

    def damage(data: bytes) -> bytes:
        broken = bytearray(data)
        for place in places:
            at = int(place * len(broken))
            if kind == "flip":
                broken[at] ^= 1 << bit
            elif kind == "zero":
                broken[at : at + size] = bytes(len(broken[at : at + size]))
            elif kind == "cut":
                del broken[at : at + size]
            else:
                del broken[at:]
        return bytes(broken)

    return damage


@pytest.mark.parametrize("name", VIDEOS)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damage=damages(), numbers=st.sets(st.integers(0, 89), min_size=1, max_size=6))
def test_damage_costs_a_typed_error_at_most(name, damage, numbers):
    broken = damage(file_of(name))
    try:
        frames = decoded(broken, *numbers)
    except VideoError:
        return
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames} & numbers)
    if name not in REPEATABLE:
        return
    # What an error leaves behind depends on everything decoded before it, in FFmpeg even across independent GOPs. A
    # frame without the mark is what a full decode shows, or what the undamaged stretch shows.
    truths = [
        rgb for full in (frames_of(name), decode_fully(broken), decode_fully(broken, restart=True)) for _, rgb in full
    ]
    for frame in frames:
        assert frame.damaged or any(same_picture(frame.rgb, rgb) for rgb in truths), frame


def same_picture(rgb: np.ndarray, other: np.ndarray) -> bool:
    # A flipped bit may turn the picture instead of damaging it.
    return rgb.size == other.size and (rgb.shape != other.shape or np.array_equal(rgb, other))


@pytest.mark.parametrize(("name", "gop"), [("h264_b", 40), ("h264_no_b", 12), ("hevc", 30)])
def test_a_hole_marks_the_frames_that_need_it(name, gop):
    """Zeros inside a P picture of the second GOP: some frames of it are marked, those of the others are not."""
    data = bytearray(file_of(name))
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size][gop : 2 * gop]
    largest = max((packet for packet in packets if not packet.is_keyframe), key=lambda packet: packet.size)
    at = largest.pos + largest.size // 2
    data[at : at + 24] = bytes(24)
    frames = decoded(bytes(data), *range(90))
    assert any(frame.damaged for frame in frames)
    for frame in frames:
        assert frame.damaged or np.array_equal(frame.rgb, frames_of(name)[frame.index][1])
        assert not frame.damaged or gop <= frame.index < 2 * gop


@pytest.mark.parametrize("name", ["h264_mkv", "h264_ts", "h264_flv"])
def test_a_lost_reference_marks_what_follows(name):
    """Without any error of container or decoder, H.264's own numbering tells that a picture is missing."""
    container_format = {"h264_mkv": "matroska", "h264_ts": "mpegts", "h264_flv": "flv"}[name]
    data = remux(file_of("h264_no_b"), container_format, drop_packets={30})
    marks = [frame.damaged for frame in decoded(data, *range(89))]
    # Clean starts every 12 frames: frame 30 (now 31) to 35 suffer.
    assert marks == [number in range(30, 35) for number in range(89)]


@pytest.mark.parametrize("name", ["h264_faststart", "h264_fragmented", "h264_mkv", "h264_avi", "h264_flv", "vp9"])
def test_a_file_that_ends_early_is_truncated(name):
    data = file_of(name)
    with pytest.raises(Truncated, match="ends after"):
        decoded(data[: len(data) // 2], 0, 89)


@pytest.mark.parametrize("name", ["h264_faststart", "h264_fragmented", "h264_mkv", "h264_ts", "vp9"])
def test_frames_before_an_early_end_are_served(name):
    data = file_of(name)
    frames = decoded(data[: len(data) // 2], 0, 10, 20)
    assert [frame.index for frame in frames] == [0, 10, 20]
    assert all(np.array_equal(frame.rgb, frames_of(name)[frame.index][1]) for frame in frames)
    assert not any(frame.damaged for frame in frames)


@pytest.mark.parametrize("name", ["h264_b", "hevc", "av1", "mjpeg"])
def test_an_mp4_without_its_index_is_truncated(name):
    data = file_of(name)
    index = data.index(b"moov") - 4
    for num_bytes in (200, index // 2, index, index + 4, index + 300):
        with pytest.raises(Truncated, match="moov"):
            decoded(data[:num_bytes])


def test_a_video_of_which_nothing_decodes_is_corrupt():
    data = bytearray(file_of("h264_faststart"))
    start = data.index(b"mdat") + 4
    data[start:] = bytes(b ^ 0x55 for b in data[start:])
    with pytest.raises(Corrupt):
        decoded(bytes(data))


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no video\n" * 200,
        bytes(5000),
        np.random.default_rng(0).bytes(5000),
        HLS,
        b"ffconcat version 1.0\nfile '/etc/hosts'\n",
        b"1\n00:00:01,000 --> 00:00:02,000\na subtitle\n\n",
        b"<html><body>404</body></html>",
    ],
    ids=["empty", "text", "zeros", "noise", "playlist", "concat", "subtitle", "html"],
)
def test_what_is_no_video_is_not_media(data):
    with pytest.raises(NotMedia):
        decoded(data)


def test_names_do_not_matter(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("I am a text, whatever my name says.\n" * 50)
    with path.open("rb") as source, pytest.raises(NotMedia):
        decode_frames(source, FramePolicy(), LIMITS, name=str(path))
    video = tmp_path / "video.txt"
    video.write_bytes(file_of("h264_b"))
    with video.open("rb") as source:
        assert len(decode_frames(source, FramePolicy(), LIMITS, name=str(video)).frames) == 2


@pytest.mark.parametrize("data", [audio("mp4"), audio("mp4", cover=True), audio("adts")], ids=["m4a", "cover", "aac"])
def test_sound_has_no_video_stream(data):
    with pytest.raises(NoVideoStream):
        decoded(data)
