"""The decoded frames of a video, as they leave the decoder."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        rgb: ``uint8[H, W, 3]``, upright, the shorter side as the frame policy asked.
        index: number of the picture in presentation order, from 0.
        pts_s: presentation time that the container gives, seconds; nan where it gives none.
        damaged: decoded with errors, or from pictures that were.
        shift: ``index`` minus the wanted index; 0 in exact mode.
    """

    rgb: Rgb
    index: int
    pts_s: float
    damaged: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        assert self.rgb.dtype == np.uint8, self.rgb.dtype
        assert self.rgb.ndim == 3, self.rgb.shape
        assert self.rgb.shape[2] == 3, self.rgb.shape
        assert self.index >= 0, self.index

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.rgb.shape))
        return f"Frame({self.index}, {self.pts_s:.3f}s, {shape}, damaged={self.damaged}, shift={self.shift})"


@dataclass(frozen=True, slots=True, eq=False)
class SampledFrames:
    """The wanted frames of one video, in increasing order of their index.

    Attributes:
        frames: the frames; a wanted one that the video does not reach is absent.
        width: width of the upright source picture, pixels.
        height: height of the upright source picture, pixels.
        duration_s: what the container says, seconds; None where it says nothing.
        codec: FFmpeg's name of the codec (``h264``, ``hevc``, ``av1``, ``mjpeg``, …).
    """

    frames: tuple[Frame, ...]
    width: int
    height: int
    duration_s: float | None
    codec: str

    def __post_init__(self) -> None:
        numbers = [frame.index for frame in self.frames]
        assert all(a < b for a, b in pairwise(numbers)), numbers
