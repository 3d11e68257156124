"""Selective decoding gives exactly the frames of a full decode, over codecs, containers and their oddities."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.video import decode, selective
from models.video.decode import decode_frames
from models.video.frames import SampledFrames
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from tests.unit.video_corpus import HEIGHT, ROTATIONS, VIDEOS, WIDTH, file_of, frames_of, picture

LIMITS = DecodeLimits()
# Their packets do not tell the order, or their codec is not looked into: every frame is decoded and counted.
COUNTED = {
    "gif",
    "h264_avi",
    "h264_interlaced",
    "h264_mkv_mid_gop",
    "h264_mkv_negative",
    "h264_mkv_open_start",
    "h264_raw",
    "h264_ts_mid_gop",
    "hevc_open_start",
    "mpeg2_ts",
    "mpeg4_avi",
    "vp8",
}


def decoded(data: bytes, *indices: int, short_side: int = 4096, **policy) -> SampledFrames:
    wanted = FramePolicy(indices=indices or None, short_side=short_side, **policy)
    return decode_frames(io.BytesIO(data), wanted, LIMITS, name="video")


@pytest.mark.parametrize("name", VIDEOS)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(numbers=st.sets(st.integers(0, 95), min_size=1, max_size=8))
def test_wanted_frames_are_those_of_a_full_decode(name, numbers):
    full = frames_of(name)
    sampled = decoded(file_of(name), *numbers)
    assert [frame.index for frame in sampled.frames] == sorted(number for number in numbers if number < len(full))
    for frame in sampled.frames:
        assert np.array_equal(frame.rgb, full[frame.index][1]), frame
        assert not frame.damaged
        assert frame.shift == 0


@pytest.mark.parametrize("name", VIDEOS)
def test_every_frame_at_once(name):
    full = frames_of(name)
    sampled = decoded(file_of(name), *range(len(full) + 3))
    assert [frame.index for frame in sampled.frames] == list(range(len(full)))
    assert all(np.array_equal(frame.rgb, full[frame.index][1]) for frame in sampled.frames)


@pytest.mark.parametrize("name", VIDEOS)
def test_which_videos_are_decoded_selectively(name, monkeypatch):
    counted = []
    decode_all = decode.decode_all
    monkeypatch.setattr(decode, "decode_all", lambda *args: counted.append(name) or decode_all(*args))
    decoded(file_of(name), 0, 10, 30)
    assert bool(counted) == (name in COUNTED)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("h264_no_b", 5),
        ("h264_b", 10),
        ("h264_open_gop", 14),
        ("h264_ts", 10),
        ("hevc", 14),
        ("hevc_layers", 12),
        ("av1", 22),
    ],
)
def test_little_more_than_the_wanted_frame_is_decoded(name, most, monkeypatch):
    """For frame 52, GOPs of 12, 40, 30 and 40 frames: neither the GOPs before, nor pictures that no other refers to."""
    fed = []
    feed = selective._decode
    monkeypatch.setattr(selective, "_decode", lambda *args: fed.append(args[1]) or feed(*args))
    assert len(decoded(file_of(name), 52).frames) == 1
    assert 1 <= sum(packet is not None for packet in fed) <= most


def test_the_corpus_shows_distinct_numbered_pictures():
    for name in ("h264_b", "hevc_open_gop", "vp9", "av1"):
        for frame in decoded(file_of(name), 0, 1, 46, 47, 89).frames:
            rows = frame.rgb[2:6].mean(axis=(0, 2))
            bits = [rows[bit * WIDTH // 8 + 4 : (bit + 1) * WIDTH // 8 - 4].mean() > 127 for bit in range(8)]
            assert sum(1 << bit for bit, is_set in enumerate(bits) if is_set) == frame.index


@pytest.mark.parametrize("name", VIDEOS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(numbers=st.sets(st.integers(0, 95), min_size=1, max_size=6))
def test_keyframes_are_real_frames_with_their_shift(name, numbers):
    full = frames_of(name)
    wanted = sorted(number for number in numbers if number < len(full))
    sampled = decoded(file_of(name), *numbers, mode="keyframe")
    assert bool(sampled.frames) == bool(wanted)
    for frame in sampled.frames:
        assert np.array_equal(frame.rgb, full[frame.index][1]), frame
        assert not frame.damaged
        meant = frame.index - frame.shift
        assert meant in wanted
        assert abs(frame.shift) == min(abs(other.index - meant) for other in sampled.frames)


def test_keyframes_are_the_nearest_ones():
    # Clean starts of h264_b: 0, 40, 80 of 90 frames.
    def shifts(*indices):
        return [(frame.index, frame.shift) for frame in decoded(file_of("h264_b"), *indices, mode="keyframe").frames]

    assert shifts(0) == [(0, 0)]
    assert shifts(20) == [(0, -20)]
    assert shifts(21) == [(40, 19)]
    assert shifts(39, 41) == [(40, 1)]
    assert shifts(5, 60, 89) == [(0, -5), (40, -20), (80, -9)]
    assert shifts(90) == []


def test_default_policy_on_a_short_video():
    sampled = decoded(file_of("h264_b"))
    assert [frame.index for frame in sampled.frames] == [0, 50]
    assert [frame.pts_s for frame in sampled.frames] == [0.0, 2.0]
    assert (sampled.width, sampled.height, sampled.codec) == (WIDTH, HEIGHT, "h264")
    assert sampled.duration_s == pytest.approx(3.6)


def test_only_frames_beyond_the_end():
    assert decoded(file_of("h264_b"), 90, 1000).frames == ()


def test_edit_list_counts_shown_frames_only():
    assert len(frames_of("h264_edit_list")) == 90 - 17
    first = decoded(file_of("h264_edit_list"), 0).frames[0]
    assert np.array_equal(first.rgb, frames_of("h264_b")[17][1])


def test_times_of_a_variable_frame_rate():
    times = [frame.pts_s for frame in decoded(file_of("h264_vfr"), *range(8)).frames]
    assert times == pytest.approx([0, 0.053, 0.106, 0.159, 0.172, 0.225, 0.278, 0.28], abs=2e-3)


@pytest.mark.parametrize("name", ["h264_b", "hevc", "vp9", "av1", "mjpeg"])
def test_frames_are_scaled_to_the_short_side(name):
    sampled = decoded(file_of(name), 3, short_side=32)
    assert sampled.frames[0].rgb.shape == (32, 48, 3)
    assert (sampled.width, sampled.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("degrees", "hflip", "vflip"), ROTATIONS)
def test_pictures_are_turned_upright(degrees, hflip, vflip):
    """The container says: turn counterclockwise by ``degrees``, then mirror."""
    upright = np.rot90(picture(5), degrees // 90)
    if hflip:
        upright = upright[:, ::-1]
    if vflip:
        upright = upright[::-1]
    sampled = decoded(ROTATIONS[degrees, hflip, vflip](), 5)
    frame = sampled.frames[0]
    assert frame.rgb.shape == upright.shape
    assert (sampled.height, sampled.width) == upright.shape[:2]
    assert np.abs(frame.rgb.astype(int) - upright).mean() < 25
    assert frame.rgb.flags.c_contiguous


def test_the_source_is_left_open_and_read_from_its_start():
    source = io.BytesIO(file_of("h264_b"))
    source.seek(1234)
    for _ in range(2):
        assert len(decode_frames(source, FramePolicy(), LIMITS, name="video").frames) == 2
    assert not source.closed
