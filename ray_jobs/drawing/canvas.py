"""A small antialiased drawing surface in face units: polygons, lines and soft spots on a transparent picture."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Points = npt.NDArray[np.float64]  # float64[n, 2], (x, y) in units

# Shapes are drawn this many times larger and averaged down.
_SUPERSAMPLING = 2


def ellipse(x: float, y: float, rx: float, ry: float, num_points: int = 40) -> Points:
    """Points of an ellipse, clockwise from its right end."""
    t = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def shade(color: Color, factor: float) -> Color:
    """A darker (below 1) or lighter (above 1) colour."""
    red, green, blue = (min(255, max(0, round(part * factor))) for part in color)
    return red, green, blue


def mix(a: Color, b: Color, part: float) -> Color:
    """The colour ``part`` of the way from a to b."""
    red, green, blue = (round(x + (y - x) * part) for x, y in zip(a, b, strict=True))
    return red, green, blue


class Canvas:
    """A transparent picture whose coordinates are units: one unit is half the width of a head.

    Args:
        left, top, right, bottom: the edges, units.
        unit_px: pixels of a unit in the finished picture.
        outline: colour of the line around every polygon, or None for none.
    """

    def __init__(
        self, left: float, top: float, right: float, bottom: float, *, unit_px: float, outline: Color | None = None
    ) -> None:
        self._origin = np.array([left, top])
        self._scale = unit_px * _SUPERSAMPLING
        size = (round((right - left) * unit_px), round((bottom - top) * unit_px))
        self._outline = outline
        self._image = Image.new("RGBA", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Points, color: Color, *, outlined: bool = True) -> None:
        """A filled shape."""
        pixels = self._pixels(points)
        self._draw.polygon(pixels, fill=(*color, 255))
        if outlined and self._outline is not None:
            self._draw.line(
                [*pixels, pixels[0], pixels[1]], fill=(*self._outline, 255), width=self._width(0.035), joint="curve"
            )

    def line(self, points: Points, color: Color, width: float) -> None:
        """An open line; its width is in units."""
        self._draw.line(self._pixels(points), fill=(*color, 255), width=self._width(width), joint="curve")

    def spot(self, x: float, y: float, rx: float, ry: float, color: Color, strength: float) -> None:
        """A soft spot of colour over what is there, from ``strength`` in the middle to nothing at twice the radii."""
        (cx, cy), radii = self._pixels(np.array([[x, y]]))[0], np.array([rx, ry]) * self._scale
        left, top = max(0, int(cx - 2 * radii[0])), max(0, int(cy - 2 * radii[1]))
        right = min(self._image.width, int(cx + 2 * radii[0]) + 1)
        bottom = min(self._image.height, int(cy + 2 * radii[1]) + 1)
        if right <= left or bottom <= top:
            return
        dx = (np.arange(left, right, dtype=np.float32) - np.float32(cx)) / np.float32(radii[0])
        dy = (np.arange(top, bottom, dtype=np.float32) - np.float32(cy)) / np.float32(radii[1])
        falloff = np.exp(-(dx[None, :] ** 2)) * np.exp(-(dy[:, None] ** 2))
        region = self._image.crop((left, top, right, bottom))
        mask = Image.fromarray((255 * strength * falloff).astype(np.uint8))
        tinted = Image.composite(Image.new("RGBA", region.size, (*color, 255)), region, mask)
        tinted.putalpha(region.getchannel("A"))
        self._image.paste(tinted, (left, top))

    def finish(self) -> Image.Image:
        """The finished picture, RGBA."""
        return self._image.reduce(_SUPERSAMPLING)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in (points - self._origin) * self._scale]

    def _width(self, units: float) -> int:
        return max(1, round(units * self._scale))
