"""Drawn pictures and videos: a person who moves, tilts and blinks, or scenery without anybody."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ray_jobs.drawing.attributes import FaceAttributes
from ray_jobs.drawing.canvas import mix
from ray_jobs.drawing.face import EXTENT, draw_person
from ray_jobs.drawing.styles import background, camera_grain, finish_person, with_grain

# Half the width of a head in pictures of height 1.
_UNIT = 0.22

# How much wider and higher than a frame the scene is, so that a moving camera never leaves it.
_WIDER = 1.25


def draw_face(attributes: FaceAttributes, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draws one person before a background: uint8[size, size, 3] RGB, the face about half as high."""
    return next(draw_frames(attributes, 1, (size, size), rng))


def draw_video(
    path: Path,
    attributes: FaceAttributes,
    rng: np.random.Generator,
    *,
    num_frames: int = 90,
    size: tuple[int, int] = (320, 240),
    fps: int = 25,
    codec: str = "libx264",
) -> None:
    """Writes a video of one person; ``size`` is width and height, pixels."""
    encode_video(path, draw_frames(attributes, num_frames, size, rng), fps=fps, codec=codec)


def draw_scenery_video(
    path: Path,
    rng: np.random.Generator,
    *,
    num_frames: int = 90,
    size: tuple[int, int] = (320, 240),
    fps: int = 25,
    codec: str = "libx264",
) -> None:
    """Writes a video of hills under a passing sky, without any face."""
    encode_video(path, _scenery_frames(num_frames, size, rng), fps=fps, codec=codec)


def encode_video(path: Path, frames: Iterator[npt.NDArray[np.uint8]], *, fps: int, codec: str = "libx264") -> None:
    """Writes uint8[H, W, 3] RGB pictures as a video with a keyframe every 30; the same pictures, the same bytes."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: av.VideoStream | None = None
        for picture in frames:
            if stream is None:
                stream = cast(av.VideoStream, container.add_stream(codec, rate=fps))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.gop_size = 30
                stream.codec_context.time_base = Fraction(1, fps)
                stream.thread_count = 1
                if codec == "libx264":
                    # Fast, but with the B-frames that real catalogs are full of.
                    stream.options = {"preset": "ultrafast", "crf": "23", "bf": "2", "x264-params": "cabac=1"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        assert stream is not None, "a video has frames"
        container.mux(stream.encode())


def draw_frames(
    attributes: FaceAttributes, num_frames: int, size: tuple[int, int], rng: np.random.Generator
) -> Iterator[npt.NDArray[np.uint8]]:
    """Draws one person before a camera that sways, tilts and zooms a little, and lets them blink.

    Args:
        attributes: who is drawn.
        num_frames: how many frames.
        size: their width and height, pixels.
        rng: place, tilt, light and background; the same state draws the same frames.

    Yields:
        uint8[height, width, 3] RGB.
    """
    width, height = size
    unit_px = _UNIT * height * rng.uniform(0.85, 1.15)
    looks = int(rng.integers(2**31))
    scene = background(attributes.style, round(_WIDER * width), round(_WIDER * height), rng)
    # Where the middle of the head lies, off the middle of the scene.
    at = np.array([scene.width / 2 + width * rng.uniform(-0.1, 0.1), scene.height / 2 + height * rng.uniform(-0.06, 0)])
    tilt_deg, brightness = rng.uniform(-11, 11), rng.uniform(0.85, 1.08)
    pictures = []
    for blinking in (False, True)[:num_frames]:
        person = draw_person(attributes, np.random.default_rng(looks), unit_px=unit_px, blinking=blinking)
        person = finish_person(person, attributes.style, np.random.default_rng(looks))
        head = np.array([-EXTENT[0], -EXTENT[1]]) * unit_px
        placed = _view(person, scene.size, looked_at=head, appears_at=at, angle_deg=tilt_deg)
        picture = scene.copy()
        picture.paste(placed, mask=placed.getchannel("A"))
        pictures.append(picture.point(lambda value: value * brightness))
    grain = camera_grain(width, height, rng)
    phases = rng.uniform(0, 2 * math.pi, 4)
    blink_every, blink_at = int(rng.integers(35, 60)), int(rng.integers(5, 35))
    # On twos, as animators do: each picture is shown twice, for half the work.
    for i in range(0, num_frames, 2):
        sway = np.sin(2 * math.pi * i / 70 + phases)
        blinks = num_frames > 1 and (i - blink_at) % blink_every < 2
        frame = _view(
            pictures[1 if blinks else 0],
            size,
            looked_at=np.array([scene.width / 2 + 0.03 * width * sway[0], scene.height / 2 + 0.012 * height * sway[1]]),
            appears_at=np.array([width / 2, height / 2]),
            angle_deg=3 * sway[2],
            scale=1 + 0.04 * sway[3],
            resample=Image.Resampling.BILINEAR,
        )
        yield from [with_grain(np.asarray(frame), np.roll(grain, 37 * i, axis=1))] * min(2, num_frames - i)


def _view(
    picture: Image.Image,
    size: tuple[int, int],
    *,
    looked_at: npt.NDArray[np.float64],
    appears_at: npt.NDArray[np.float64],
    angle_deg: float,
    scale: float = 1.0,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """The picture turned clockwise and scaled about ``looked_at``, which comes to lie at ``appears_at``; pixels."""
    cos, sin = math.cos(math.radians(angle_deg)) / scale, math.sin(math.radians(angle_deg)) / scale
    (from_x, from_y), (x, y) = looked_at.tolist(), appears_at.tolist()
    inverse = (cos, sin, from_x - cos * x - sin * y, -sin, cos, from_y + sin * x - cos * y)
    return picture.transform(size, Image.Transform.AFFINE, inverse, resample=resample)


def _scenery_frames(
    num_frames: int, size: tuple[int, int], rng: np.random.Generator
) -> Iterator[npt.NDArray[np.uint8]]:
    """A wide landscape, drawn once, that the camera pans over."""
    width, height = size
    wide = width + 2 * num_frames
    sky, hills = (int(rng.integers(150, 230)), 205, 240), (70, int(rng.integers(110, 160)), 84)
    column = np.linspace(0, 1, height)[:, None, None]
    pixels = np.array(sky) * (1 - 0.35 * column) + 80 * column
    landscape = Image.fromarray(np.broadcast_to(pixels, (height, wide, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(landscape)
    x = np.arange(wide + 1)
    for layer in range(3):
        phase, length = rng.uniform(0, 6.3), rng.uniform(90, 200)
        ridge = height * (0.5 + 0.15 * layer) + height * 0.07 * np.sin(x / length * 2 * math.pi + phase)
        outline = [(float(a), float(b)) for a, b in zip(x, ridge, strict=True)]
        draw.polygon([*outline, (wide, height), (0, height)], fill=mix(hills, (26, 50, 36), layer / 3))
    grain = camera_grain(width, height, rng)
    picture = np.asarray(landscape)
    for i in range(num_frames):
        yield with_grain(picture[:, 2 * i : 2 * i + width], np.roll(grain, 37 * i, axis=1))
