"""From a decoded picture to an upright RGB frame of the wanted size."""

import struct
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from models.video.container import check_pixels, raise_if_memory
from models.video.errors import Corrupt
from models.video.frames import Frame, Rgb
from models.video.limits import DecodeLimits
from models.video.sampling import scaled_size

# How a display matrix [a b; c d] maps the picture's axes: (transpose first, then mirror x, then mirror y).
Upright = tuple[bool, bool, bool]
AS_IT_IS: Upright = (False, False, False)


def upright_from_matrix(matrix: bytes) -> Upright:
    """How to turn a picture upright, from FFmpeg's display matrix (nine int32; rotation to the nearest 90°).

    The matrix maps a pixel (x, y) to (a·x + c·y, b·x + d·y), as ISO/IEC 14496-12 (8.3.2) has it.
    """
    a, b, _, c, d = struct.unpack("<5i", matrix[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def turn_upright(rgb: Rgb, upright: Upright) -> Rgb:
    """The picture ``uint8[H, W, 3]``, turned and mirrored; contiguous."""
    transposed, mirror_x, mirror_y = upright
    if transposed:
        rgb = rgb.transpose(1, 0, 2)
    if mirror_x:
        rgb = rgb[:, ::-1]
    if mirror_y:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


class Developer:
    """Turns decoded pictures of one video into frames; remembers the size of the first."""

    def __init__(self, short_side: int, limits: DecodeLimits, name: str) -> None:
        self._short_side = short_side
        self._limits = limits
        self._name = name
        self._reformatter = VideoReformatter()
        self.size: tuple[int, int] | None = None

    def frame(self, picture: av.VideoFrame, index: int, pts_s: float, *, damaged: bool = False) -> Frame:
        """The frame of a picture that is shown at ``pts_s``.

        Raises:
            TooManyPixels: the picture is larger than its header said and than the limit.
            Corrupt: its pixel format cannot be converted.
        """
        check_pixels(picture.width, picture.height, self._limits, self._name)
        upright = _upright(picture)
        width, height = scaled_size(picture.width, picture.height, self._short_side)
        try:
            scaled = self._reformatter.reformat(
                picture, width, height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
            )
        except (av.FFmpegError, MemoryError) as error:
            raise_if_memory(error, self._name)
            raise Corrupt(f"{self._name}: frame {index} cannot be converted to RGB ({error})") from error
        if self.size is None:
            sides = (picture.width, picture.height)
            self.size = sides[::-1] if upright[0] else sides
        return Frame(turn_upright(_rgb(scaled), upright), index, pts_s, damaged)


def _rgb(picture: av.VideoFrame) -> Rgb:
    rgb = picture.to_ndarray()
    assert rgb.dtype == np.uint8, rgb.dtype
    return rgb.astype(np.uint8, copy=False)


def _upright(picture: av.VideoFrame) -> Upright:
    try:
        side_data: Mapping[Any, Any] = picture.side_data
    except ValueError:
        # PyAV 18.1 refuses all side data where one kind is newer than itself; it still tells the angle.
        return _upright_from_angle(picture.rotation)
    if SideDataType.DISPLAYMATRIX not in side_data:
        return AS_IT_IS
    return upright_from_matrix(bytes(side_data[SideDataType.DISPLAYMATRIX]))


def _upright_from_angle(counterclockwise_deg: int) -> Upright:
    quarters: tuple[Upright, ...] = (AS_IT_IS, (True, False, True), (False, True, True), (True, True, False))
    return quarters[round(counterclockwise_deg / 90) % 4]
