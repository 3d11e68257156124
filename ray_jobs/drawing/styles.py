"""The three drawing styles: how a drawn person and its background become a picture."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from ray_jobs.drawing.canvas import Color, mix

_PAPER: Color = (244, 241, 234)


def background(style: int, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """What stands behind a person, RGB: a blurred room, paper, or two flat colours."""
    first, second = (_pastel(rng) for _ in range(2))
    if style == 1:
        return Image.new("RGB", (width, height), _PAPER)
    if style == 2:
        picture = Image.new("RGB", (width, height), mix(first, (255, 255, 255), 0.25))
        edge = int(height * rng.uniform(0.55, 0.8))
        picture.paste(mix(second, (90, 90, 110), 0.3), (0, edge, width, height))
        return picture
    # A few soft blocks of light, blown up from some pixels.
    blocks = np.array([[mix(first, second, float(rng.random())) for _ in range(5)] for _ in range(4)], dtype=np.float64)
    blocks *= rng.uniform(0.45, 0.9)
    return Image.fromarray(blocks.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def _pastel(rng: np.random.Generator) -> Color:
    red, green, blue = (int(part) for part in rng.integers(120, 230, 3))
    return mix((red, green, blue), (176, 176, 176), 0.5)


def finish_person(person: Image.Image, style: int, rng: np.random.Generator) -> Image.Image:
    """Gives a drawn person, RGBA, the surface of its style."""
    if style == 0:
        alpha = person.getchannel("A")
        grain = rng.normal(0, 5, (person.height, person.width, 1)).astype(np.float32)
        pixels = np.asarray(person.convert("RGB"), dtype=np.float32) + grain
        surface = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
        surface.putalpha(alpha)
        return surface
    if style == 1:
        return _pencil(person, rng)
    return person


def _pencil(person: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lines where the drawing changes (a colour dodge), and hatching where it is dark."""
    alpha = person.getchannel("A")
    on_paper = Image.new("RGBA", person.size, (*_PAPER, 255))
    on_paper.alpha_composite(person)
    gray = on_paper.convert("L")
    values = np.asarray(gray, dtype=np.float32)
    around = np.asarray(gray.filter(ImageFilter.GaussianBlur(max(2, person.height / 110))), dtype=np.float32)
    lines = np.clip(values / np.maximum(around, 1), 0, 1)
    rows, columns = np.mgrid[0 : person.height, 0 : person.width]
    hatch = 0.5 + 0.5 * np.sin((rows + columns) * 1.6 + rng.normal(0, 0.5, values.shape))
    tone = 1 - (1 - values / 255) * (0.45 + 0.5 * hatch)
    gray_values = np.clip(lines**3.5 * tone * _PAPER[0], 0, 255).astype(np.uint8)
    sketch = Image.merge("RGB", [Image.fromarray(gray_values).filter(ImageFilter.GaussianBlur(0.7))] * 3)
    sketch.putalpha(alpha)
    return sketch


def camera_grain(width: int, height: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """The noise of a camera: int16[height, width], to be added to each channel."""
    return rng.normal(0, 2, (height, width)).round().astype(np.int16)


def with_grain(picture: npt.NDArray[np.uint8], grain: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """The picture, uint8[H, W, 3], with the noise int16[H, W] added."""
    noisy: npt.NDArray[np.int16] = picture + grain[:, :, None]
    return np.clip(noisy, 0, 255).astype(np.uint8)
