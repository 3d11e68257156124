"""Limits, images, and how the decoder treats its source and the process it runs in."""

import io
import resource

import numpy as np
import pytest
from PIL import Image

from infra.errors import TypedError
from models.video.decode import decode_frames
from models.video.errors import Corrupt, DecodeTimeout, TooLarge, TooLong, TooManyPixels, Truncated
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from tests.unit.video_corpus import HEIGHT, WIDTH, X264, file_of, picture, video

POLICY = FramePolicy(short_side=4096)


def decoded(data: bytes, policy: FramePolicy = POLICY, **limits):
    return decode_frames(io.BytesIO(data), policy, DecodeLimits(**limits), name="video")


@pytest.mark.parametrize("name", ["h264_b", "hevc", "vp9", "av1", "mpeg4_avi", "mjpeg", "gif"])
def test_pictures_beyond_the_pixel_limit_are_refused(name):
    with pytest.raises(TooManyPixels, match="max_pixels=6143"):
        decoded(file_of(name), max_pixels=WIDTH * HEIGHT - 1)
    assert decoded(file_of(name), max_pixels=WIDTH * HEIGHT).frames


@pytest.mark.parametrize("container_format", ["h264", "mpegts"])
def test_a_picture_that_grows_is_refused_by_the_decoder(container_format):
    """The header says 96×64; a later sequence says 640×480."""
    small, large = (
        video("libx264", X264, container_format, num_frames=20, width=width, height=height)
        for width, height in ((WIDTH, HEIGHT), (640, 480))
    )
    with pytest.raises(TooManyPixels):
        decoded(small + large, FramePolicy(indices=(0, 30)), max_pixels=WIDTH * HEIGHT)


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"max_file_bytes": 1000}, TooLarge, "more than max_file_bytes=1000"),
        ({"max_duration_s": 3}, TooLong, "longer than max_duration_s=3"),
        ({"max_cpu_s": 1e-6}, DecodeTimeout, "more than max_cpu_s=1e-06"),
    ],
)
def test_limits_have_their_reasons(limits, error, message):
    with pytest.raises(error, match=message):
        decoded(file_of("h264_b"), **limits)


def test_reasons_are_distinct():
    classes = [TypedError]
    for kind in classes:
        classes += kind.__subclasses__()
    mine = [kind for kind in classes if kind.__module__ == "models.video.errors"]
    assert len({kind.reason for kind in mine}) == len(mine) == 12


def image(file_format: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    rgb = Image.fromarray(picture(3))
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)))
    (rgb if mode == "RGBA" else rgb.convert(mode)).save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "codec", "tolerance"),
    [
        (image("PNG"), "png", 0),
        (image("PNG", "RGBA"), "png", 0),
        (image("JPEG", quality=95), "mjpeg", 12),
        (image("WEBP", lossless=True), "webp", 0),
        (image("PNG", "P"), "png", 40),
    ],
    ids=["png", "rgba", "jpeg", "webp", "palette"],
)
def test_an_image_is_a_video_of_one_frame(data, codec, tolerance):
    sampled = decoded(data)
    assert (len(sampled.frames), sampled.codec, sampled.duration_s) == (1, codec, None)
    frame = sampled.frames[0]
    assert (frame.index, frame.pts_s, frame.damaged) == (0, 0.0, False)
    assert np.abs(frame.rgb.astype(int) - picture(3)).mean() <= tolerance


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_grey_images_keep_their_brightness(mode):
    grey = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    file = io.BytesIO()
    Image.fromarray(grey if mode == "L" else grey.astype(np.uint16) * 257).save(file, "PNG")
    assert np.array_equal(decoded(file.getvalue()).frames[0].rgb, np.repeat(grey[:, :, None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {
        1: lambda rgb: rgb,
        2: lambda rgb: rgb[:, ::-1],
        3: lambda rgb: rgb[::-1, ::-1],
        4: lambda rgb: rgb[::-1],
        5: lambda rgb: rgb.transpose(1, 0, 2),
        6: lambda rgb: rgb.transpose(1, 0, 2)[:, ::-1],
        7: lambda rgb: rgb.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda rgb: rgb.transpose(1, 0, 2)[::-1],
    }
    upright = turns[orientation](picture(3))
    sampled = decoded(image(file_format, exif=exif.tobytes()))
    assert (sampled.height, sampled.width) == upright.shape[:2]
    assert np.abs(sampled.frames[0].rgb.astype(int) - upright).mean() < 20


def test_images_are_scaled_and_limited():
    assert decoded(image("PNG"), FramePolicy(short_side=32)).frames[0].rgb.shape == (32, 48, 3)
    with pytest.raises(TooManyPixels):
        decoded(image("JPEG"), max_pixels=WIDTH * HEIGHT - 1)
    assert decoded(image("PNG"), FramePolicy(indices=(1, 2))).frames == ()


def test_broken_images():
    with pytest.raises(Truncated):
        decoded(image("JPEG")[:-500])
    with pytest.raises(Truncated):
        decoded(image("PNG")[:-500])
    data = bytearray(image("PNG"))
    data[len(data) // 2] ^= 255
    with pytest.raises(Corrupt):
        decoded(bytes(data))


class Failing(io.BytesIO):
    """A source whose reads fail after some bytes, as a store does."""

    class Gone(TypedError):
        reason = "gone"

    def __init__(self, data: bytes, num_good_bytes: int) -> None:
        super().__init__(data)
        self._num_good_bytes = num_good_bytes

    def read(self, size=-1):
        if self.tell() + max(size, 0) > self._num_good_bytes and self.tell() < len(self.getvalue()):
            raise self.Gone("the store is gone")
        return super().read(size)


@pytest.mark.parametrize("container_format", ["mp4", "matroska", "mpegts", "avi"])
def test_errors_of_the_source_are_passed_on(container_format, capfd):
    data = video("libx264", X264 | {"g": "5", "crf": "1"}, container_format, num_frames=400)
    for share in (0, 0.4, 0.9):
        with pytest.raises(Failing.Gone):
            decode_frames(Failing(data, int(share * len(data))), POLICY, DecodeLimits(), name="video")
    assert capfd.readouterr().err == ""


class Counting(io.BytesIO):
    num_reads = num_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        self.num_reads += 1
        self.num_bytes += len(data)
        return data


def test_only_the_beginning_of_a_long_video_is_read():
    data = video("libx264", X264 | {"g": "50", "crf": "1"}, "mp4", num_frames=2000)
    source = Counting(data)
    assert len(decode_frames(source, FramePolicy(every=10, limit=5), DecodeLimits(), name="long").frames) == 5
    assert source.num_bytes < 0.5 * len(data)
    assert source.num_reads <= 8


def test_opening_many_videos_keeps_memory():
    def open_some(count):
        for number in range(count):
            name = ("h264_b", "hevc", "vp9", "h264_ts", "mjpeg")[number % 5]
            decoded(file_of(name), FramePolicy(indices=(number % 20,)))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before_kib = open_some(60)
    assert open_some(300) - before_kib < 8 * 1024
