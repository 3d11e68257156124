"""Draws one person, head to shoulders, from FaceAttributes: simple shapes on a head that can turn."""

import math

import numpy as np
from PIL import Image

from ray_jobs.drawing.attributes import FaceAttributes
from ray_jobs.drawing.canvas import Canvas, Color, Points, ellipse, mix, shade

_HAIR: dict[str, Color] = {
    "brown": (110, 66, 34),
    "black": (30, 27, 31),
    "red": (186, 62, 24),
    "golden": (232, 190, 92),
}
_SKIN_LIGHT, _SKIN_DARK = (247, 211, 186), (150, 98, 66)
_BLUSH: Color = (226, 62, 84)
_INK: Color = (44, 32, 34)
_WHITE: Color = (250, 248, 246)
_GOLD: Color = (245, 200, 60)
_IRISES: tuple[Color, ...] = ((74, 104, 140), (86, 112, 70), (96, 62, 36))
_CLOTHES: tuple[Color, ...] = ((70, 96, 140), (140, 70, 80), (72, 120, 104), (96, 84, 120), (120, 108, 92))

# The head is an ellipsoid: half width 1, half height 1.3, narrower towards the chin.
_HEAD_HEIGHT = 1.3

# What the picture of a person covers, units: left, top, right, bottom.
EXTENT = (-2.5, -1.9, 2.5, 3.7)


class _Head:
    """A head turned to the side; features are given as seen from the front and put where the turn moves them."""

    def __init__(self, turn_deg: float) -> None:
        self._cos, self._sin = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))

    def on(self, points: Points, lift: float = 0.0) -> Points:
        """Points of the head's surface, or ``lift`` units before it."""
        x, y = points[:, 0], points[:, 1]
        depth = 0.95 * np.sqrt(np.clip(1 - x**2 - (y / _HEAD_HEIGHT) ** 2, 0, None)) + lift
        return np.stack([x * self._cos + depth * self._sin, y], axis=1)

    def at(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float]:
        """One point of the surface."""
        moved = self.on(np.array([[x, y]]), lift)[0]
        return float(moved[0]), float(moved[1])

    def narrowed(self, x: float) -> float:
        """How wide a small thing at x looks, as a part of its width."""
        depth = max(0.3, math.sqrt(max(0.0, 1 - x * x)))
        return max(0.3, self._cos - x / depth * self._sin)

    def outline(self, grow: float = 0.0) -> Points:
        """The silhouette, which a turn hardly changes."""
        points = ellipse(0, 0, 1 + grow, _HEAD_HEIGHT + grow, 72)
        below = np.clip(points[:, 1] / _HEAD_HEIGHT, 0, 1)
        points[:, 0] = points[:, 0] * (1 - 0.14 * below**2) + 0.12 * self._sin * below
        return points


def draw_person(
    attributes: FaceAttributes, rng: np.random.Generator, *, unit_px: float, blinking: bool = False
) -> Image.Image:
    """Draws a person on a transparent picture, RGBA, that covers ``EXTENT`` with the head's middle at (0, 0).

    Args:
        attributes: what is shown; the drawing style counts for colours and outlines only, see ``styles``.
        rng: what varies besides: the exact turn, colours of eyes and clothes. The same state draws the same person.
        unit_px: half the width of the head, pixels.
        blinking: draws the eyes half closed.
    """
    side = 1 if rng.random() < 0.5 else -1
    turn_deg = rng.uniform(-6, 6) if attributes.frontal_face else side * rng.uniform(20, 25)
    iris = _IRISES[int(rng.integers(len(_IRISES)))]
    clothes = _CLOTHES[int(rng.integers(len(_CLOTHES)))]
    head = _Head(turn_deg)
    # A pencil leaves skin nearly white.
    skin = mix(_SKIN_LIGHT, _SKIN_DARK, attributes.skin * (0.35 if attributes.style == 1 else 1))
    canvas = Canvas(*EXTENT, unit_px=unit_px, outline=None if attributes.style == 0 else _INK)
    _back_hair(canvas, attributes)
    _body(canvas, skin, clothes, flat=attributes.style == 2)
    _skull(canvas, head, skin, flat=attributes.style == 2)
    _blush(canvas, head, attributes)
    if attributes.beard:
        _beard(canvas, head, attributes, skin)
    for x in (-0.42, 0.42):
        _eye(canvas, head, x, attributes, iris, skin, blinking=blinking)
        _brow(canvas, head, x, attributes)
    _nose(canvas, head, attributes, skin)
    _mouth(canvas, head, attributes, skin)
    if attributes.hair:
        _front_hair(canvas, head, attributes)
    if attributes.earring:
        _earrings(canvas, turn_deg)
    return canvas.finish()


def _hair_color(attributes: FaceAttributes) -> Color:
    return _HAIR.get(attributes.hair_color, (96, 80, 72))


def _back_hair(canvas: Canvas, attributes: FaceAttributes) -> None:
    if attributes.hair and attributes.gender == "female":
        top = ellipse(0, -0.15, 1.3, 1.42, 40)[20:]
        t = np.linspace(-1, 1, 31)
        ends = np.stack([1.36 * np.sin(-t * np.pi / 2), 0.1 + 1.75 * np.cos(t * np.pi / 2) ** 0.3], axis=1)
        canvas.polygon(np.concatenate([top, ends]), shade(_hair_color(attributes), 0.75))


def _body(canvas: Canvas, skin: Color, clothes: Color, *, flat: bool) -> None:
    canvas.polygon(np.array([[-0.45, 0.8], [0.45, 0.8], [0.55, 2.05], [-0.55, 2.05]]), shade(skin, 0.86))
    shoulders = [[-0.5, 1.6], [-1.4, 1.85], [-2.05, 2.3], [-2.4, 3.8], [2.4, 3.8], [2.05, 2.3], [1.4, 1.85], [0.5, 1.6]]
    neckline = ellipse(0, 1.6, 0.5, 0.35, 40)[:21]
    canvas.polygon(np.concatenate([np.array(shoulders), neckline]), clothes)
    if not flat:
        canvas.spot(0, 1.25, 0.5, 0.35, shade(skin, 0.5), 0.55)


def _skull(canvas: Canvas, head: _Head, skin: Color, *, flat: bool) -> None:
    for x in (-0.98, 0.98):
        canvas.polygon(ellipse(x, 0.05, 0.16, 0.28), shade(skin, 0.92))
    canvas.polygon(head.outline(), skin)
    for x in (-0.42, 0.42):
        canvas.spot(*head.at(x, -0.14), 0.26 * head.narrowed(x), 0.16, shade(skin, 0.6), 0.6)
    if flat:
        return
    canvas.spot(*head.at(-0.1, -0.65), 0.5, 0.35, (255, 250, 240), 0.35)
    for x in (-0.95, 0.95):
        canvas.spot(x, 0.45, 0.28, 0.6, shade(skin, 0.55), 0.5)
    canvas.spot(0, 1.28, 0.6, 0.16, shade(skin, 0.55), 0.5)


def _blush(canvas: Canvas, head: _Head, attributes: FaceAttributes) -> None:
    radius = 0.1 + 0.12 * attributes.strength
    for x in (-0.56, 0.56):
        cx, cy = head.at(x, 0.4)
        if attributes.style == 2:
            cheek = ellipse(cx, cy, radius * 1.3 * head.narrowed(x), radius * 1.1)
            canvas.polygon(
                cheek,
                mix(mix(_SKIN_LIGHT, _SKIN_DARK, attributes.skin), _BLUSH, 0.15 + 0.7 * attributes.strength),
                outlined=False,
            )
        else:
            canvas.spot(cx, cy, radius * 1.5 * head.narrowed(x), radius * 1.2, _BLUSH, 0.08 + 0.8 * attributes.strength)


def _eye(
    canvas: Canvas, head: _Head, x: float, attributes: FaceAttributes, iris: Color, skin: Color, *, blinking: bool
) -> None:
    size = 0.82 + 0.62 * attributes.strength
    width, height, y = 0.21 * size**0.5, 0.1 * size * (0.5 if blinking else 1), -0.08
    t = np.linspace(-1, 1, 17)
    upper = np.stack([x + width * t, y - height * (1 - t**2) ** 0.7], axis=1)
    lower = np.stack([x + width * t, y + 0.75 * height * (1 - t**2)], axis=1)
    lash = 0.075 if attributes.gender == "female" else 0.045
    canvas.polygon(head.on(np.concatenate([upper, lower[::-1]])), _WHITE, outlined=False)
    # The lids cut the iris off.
    for radius, color in ((0.118 * size, iris), (0.062 * size, (18, 14, 16))):
        disk = ellipse(x, y - 0.005, radius, radius, 32)
        along = np.clip(1 - ((disk[:, 0] - x) / width) ** 2, 0, 1)
        disk[:, 1] = np.clip(disk[:, 1], y - height * along**0.7, y + 0.75 * height * along)
        canvas.polygon(head.on(disk), color, outlined=False)
    canvas.polygon(head.on(ellipse(x + 0.035, y - 0.045, 0.024, 0.024, 12)), _WHITE, outlined=False)
    canvas.line(head.on(upper), _INK, lash)
    canvas.line(head.on(lower), mix(skin, _INK, 0.45), 0.02)
    if attributes.gender == "female":
        outer = math.copysign(1, x)
        for part, length in ((0.95, 0.13), (0.6, 0.11)):
            root = [x + outer * width * part, y - height * (1 - part**2) ** 0.7]
            canvas.line(head.on(np.array([root, [root[0] + outer * length, root[1] - length * 0.8]])), _INK, 0.03)


def _brow(canvas: Canvas, head: _Head, x: float, attributes: FaceAttributes) -> None:
    outer = math.copysign(1, x)
    color = mix(shade(_hair_color(attributes), 0.7), _INK, 0.55)
    t = np.linspace(0, 1, 9)
    if attributes.gender == "female":
        arch, width, y = 0.12, 0.04, -0.37
    else:
        arch, width, y = 0.05, 0.095, -0.33
    points = np.stack([x + outer * (t - 0.45) * 0.5, y - arch * np.sin(np.pi * t * 0.8) + 0.04 * t], axis=1)
    canvas.line(head.on(points), color, width)


def _nose(canvas: Canvas, head: _Head, attributes: FaceAttributes, skin: Color) -> None:
    tip_x, tip_y = head.at(0, 0.33, 0.28)
    if attributes.style > 0:
        bridge = head.at(0, -0.02, 0.12)
        away = 0.1 if tip_x >= 0 else -0.1
        canvas.line(np.array([bridge, (tip_x + away, tip_y), (tip_x - away * 0.6, tip_y + 0.08)]), _INK, 0.04)
    canvas.spot(tip_x, tip_y + 0.1, 0.17, 0.07, shade(skin, 0.5), 0.7)
    canvas.spot((tip_x + head.at(0.2, 0)[0]) / 2 + 0.02, 0.12, 0.05, 0.22, shade(skin, 0.6), 0.4)
    canvas.spot(tip_x, tip_y - 0.05, 0.07, 0.14, (255, 248, 238), 0.5)
    for x in (-0.085, 0.085):
        canvas.polygon(ellipse(tip_x + x, tip_y + 0.1, 0.038, 0.024, 12), shade(skin, 0.35), outlined=False)


def _mouth(canvas: Canvas, head: _Head, attributes: FaceAttributes, skin: Color) -> None:
    lips = mix(skin, (196, 36, 58), 0.8) if attributes.gender == "female" else mix(skin, (140, 62, 60), 0.75)
    fullness = 1.3 if attributes.gender == "female" else 0.9
    t = np.linspace(-1, 1, 15)
    if attributes.smile:
        corner = 0.69 - 0.16 * t**2
        upper = np.stack([0.46 * t, corner - 0.02], axis=1)
        lower = np.stack([0.46 * t, corner + 0.25 * (1 - t**2)], axis=1)
        canvas.polygon(head.on(np.concatenate([upper, lower[::-1]]), 0.05), _WHITE, outlined=False)
        canvas.line(head.on(lower, 0.05), lips, 0.075 * fullness)
        canvas.line(head.on(upper, 0.05), lips, 0.055 * fullness)
        return
    upper = np.stack([0.31 * t, 0.74 - 0.075 * fullness * (1 - t**2) * (1 - 0.35 * np.exp(-((t / 0.2) ** 2)))], axis=1)
    middle = np.stack([0.31 * t, 0.74 + 0.02 * t**2], axis=1)
    lower = np.stack([0.31 * t, 0.74 + 0.11 * fullness * (1 - t**2)], axis=1)
    canvas.polygon(head.on(np.concatenate([upper, lower[::-1]]), 0.05), lips, outlined=False)
    canvas.line(head.on(middle, 0.05), shade(lips, 0.45), 0.045)


def _beard(canvas: Canvas, head: _Head, attributes: FaceAttributes, skin: Color) -> None:
    color = mix(skin, shade(_hair_color(attributes), 0.6), 0.72)
    outline = head.outline(0.01)
    jaw = outline[outline[:, 1] > 0.2]
    # From ear to ear: down the cheeks, and over the mouth as a moustache.
    x = np.linspace(-0.93, 0.93, 41)
    cheeks = 0.2 + 0.44 * np.clip((0.93 - np.abs(x)) / 0.4, 0, 1) ** 0.7
    moustache = 0.14 * np.exp(-((x / 0.3) ** 4))
    canvas.polygon(
        np.concatenate([jaw[np.argsort(-jaw[:, 0])], head.on(np.stack([x, cheeks - moustache], axis=1))]), color
    )


def _front_hair(canvas: Canvas, head: _Head, attributes: FaceAttributes) -> None:
    color = _hair_color(attributes)
    reach, fringe = (0.14, -0.62) if attributes.gender == "female" else (0.1, -0.74)
    cap = head.outline(reach)
    cap = cap[cap[:, 1] < 0.05]
    cap = cap[np.argsort(cap[:, 0])]
    temple = 0.05 if attributes.gender == "female" else -0.2
    t = np.linspace(1, -1, 25)
    parting = 0.25
    line = head.on(
        np.stack(
            [0.97 * t, fringe + (temple - fringe) * np.abs(t) ** 3 - 0.16 * np.exp(-(((t - parting) / 0.3) ** 2))],
            axis=1,
        )
    )
    canvas.polygon(np.concatenate([cap, line]), color)
    if attributes.style == 2:
        return
    canvas.spot(-0.35, -1.15, 0.3, 0.1, shade(mix(color, _WHITE, 0.35), 1.1), 0.6)
    for strand in np.linspace(-0.85, 0.85, 18):
        x = 0.25 + 0.3 * (strand - 0.25)
        root = (x, -(_HEAD_HEIGHT + reach) * math.sqrt(1 - (x / (1 + reach)) ** 2) + 0.05)
        end = head.at(strand, fringe + (temple - fringe) * abs(strand) ** 3 - 0.1)
        path = np.array([root, ((root[0] + end[0]) / 2 + 0.15 * (strand - 0.25), (root[1] + end[1]) / 2 - 0.05), end])
        canvas.line(path, shade(color, 0.8 if round(strand * 10) % 2 else 1.18), 0.018)


def _earrings(canvas: Canvas, turn_deg: float) -> None:
    for x in (-1.03, 1.03):
        # A turned head hides the ear on the side it turns to.
        if x * turn_deg < 0 or abs(turn_deg) < 20:
            canvas.polygon(ellipse(x, 0.36, 0.05, 0.05, 16), shade(_GOLD, 0.7), outlined=False)
            canvas.polygon(ellipse(x, 0.55, 0.14, 0.17, 24), shade(_GOLD, 0.6))
            canvas.polygon(ellipse(x - 0.01, 0.54, 0.11, 0.14, 24), _GOLD, outlined=False)
            canvas.polygon(ellipse(x - 0.04, 0.5, 0.035, 0.045, 12), _WHITE, outlined=False)
