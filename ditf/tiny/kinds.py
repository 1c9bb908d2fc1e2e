"""Four kinds of things that scenes show: each a random drawing of flat parts, with named points on its parts.

A kind is drawn facing right in its own units (about 2 across), x to the right and y down. Parts are listed back to
front. The names of the points are shared by all instances of a kind: that is what "the same part" means here.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["KINDS", "Drawing", "Part", "hsv"]

Point = np.ndarray | Sequence[float]

_BLACK = np.zeros(3)
_WHITE = np.full(3, 0.97)


@dataclass(frozen=True, eq=False)
class Part:
    """A filled polygon.

    Attributes:
        outline: (n, 2) float64 corners.
        colour: (3,) float64 RGB in [0, 1].
        textured: whether the instance's texture is laid over it.
    """

    outline: np.ndarray
    colour: np.ndarray
    textured: bool = False


@dataclass(frozen=True, eq=False)
class Drawing:
    """Parts back to front, and the named points on them."""

    parts: tuple[Part, ...]
    keypoints: Mapping[str, np.ndarray]


class _Frame:
    """An ellipse with its own axes: ``at(1, 0)`` is its front, ``at(0, -1)`` its top."""

    def __init__(self, centre: Point, radii: Point, angle: float = 0.0) -> None:
        self.centre, self.radii = np.asarray(centre, float), np.asarray(radii, float)
        cos, sin = np.cos(angle), np.sin(angle)
        self.axes = np.array([[cos, sin], [-sin, cos]])

    def turned(self, x: float, y: float) -> np.ndarray:
        """A step in this frame's directions, in units of the drawing."""
        return np.array([x, y]) @ self.axes

    def at(self, x: float, y: float) -> np.ndarray:
        return self.centre + self.turned(x * self.radii[0], y * self.radii[1])

    def ellipse(self, x: float, y: float, radii: Point) -> np.ndarray:
        """An ellipse around a point of this frame, with its axes."""
        return _ellipse(self.at(x, y), radii, self.axes)

    @property
    def outline(self) -> np.ndarray:
        return _ellipse(self.centre, self.radii, self.axes)


def _quadruped(random: np.random.Generator) -> Drawing:
    """Dog, horse, giraffe: everything on four legs."""
    uniform, coat, accent = random.uniform, _Coat(random), _bright(random, 0.2, 0.3)
    length, height = uniform(0.45, 0.65), uniform(0.18, 0.29)
    leg, thick = uniform(0.25, 0.55), uniform(0.05, 0.085)
    neck_length, neck_angle = uniform(0.1, 0.6), uniform(0.35, 1.25)
    body = coat.shade()
    neck = np.array([length * 0.78, -height * 0.25])
    head_length = uniform(0.15, 0.22)
    head_radii = head_length, head_length * uniform(0.65, 0.85)
    snout, head_angle = uniform(0.1, 0.22), uniform(-0.15, 0.35)
    along_neck = neck_length * np.array([np.cos(neck_angle), -np.sin(neck_angle)])
    head = _Frame(neck + along_neck + [0.1, -0.05], head_radii, head_angle)
    tail_base = np.array([-length * 0.96, -height * 0.25])
    tail_angle, tail_length = uniform(-0.9, 1.0), uniform(0.25, 0.5)
    tail_tip = tail_base - tail_length * np.array([np.cos(tail_angle), np.sin(tail_angle)])
    legs, foot = coat.shade(), hsv(random.random(), uniform(0, 0.4), uniform(0.05, 0.3))
    ear = accent if random.random() < 0.5 else body * uniform(0.5, 0.8)

    parts: list[Part] = []
    for side in (1, -1):  # the far legs, darker
        hip = np.array([side * length * 0.68 + uniform(-0.03, 0.03), height * 0.2])
        paw = np.array([hip[0] + uniform(-0.16, 0.16), height * 0.6 + leg])
        parts.append(Part(_limb(hip, paw, thick * 1.2, thick * 0.8), legs * 0.6))
        parts.append(Part(_ellipse(paw + [0.02, 0], (thick * 1.1, thick * 0.7)), foot * 0.7))
    parts.append(Part(_limb(tail_base, tail_tip, 0.05, 0.03), coat.shade()))
    parts.append(Part(_ellipse(tail_tip, (0.06, 0.06)), accent))
    parts.append(Part(_limb(neck, head.centre, height * 0.75, head_radii[1] * 0.75), body))
    parts.append(Part(_ellipse((0, 0), (length, height)), body, textured=True))
    parts.append(Part(_ellipse((0, height * 0.55), (length * 0.7, height * 0.35)), body * 1.25 + 0.08))
    feet = {}
    for side, name in ((1, "front"), (-1, "hind")):  # the near legs
        hip = np.array([side * length * 0.68 + uniform(-0.03, 0.03), height * 0.3])
        paw = np.array([hip[0] + uniform(-0.16, 0.16), height * 0.75 + leg])
        parts.append(Part(_limb(hip, paw, thick * 1.3, thick * 0.85), legs))
        parts.append(Part(_ellipse(paw + [0.02, 0], (thick * 1.2, thick * 0.8)), foot))
        feet |= {f"{name} foot": paw, f"{name} knee": hip * 0.45 + paw * 0.55}
    ear_tip = head.at(-0.75, -1.0) - [0, uniform(0.08, 0.22)]
    parts.append(Part(np.array([head.at(-0.85, -0.3), head.at(-0.1, -0.75), ear_tip]), ear))
    parts.append(Part(head.outline, body, textured=True))
    nose = head.at(0.8, 0.3) + head.turned(snout, 0)
    muzzle = _ellipse((head.at(0.75, 0.25) + nose) / 2, (snout * 0.6 + 0.04, head_radii[1] * 0.5), head.axes)
    parts.append(Part(muzzle, body * 1.2 + 0.05))
    parts.append(Part(_ellipse(nose, (0.045, 0.045)), np.array([0.08, 0.05, 0.06])))
    eye = head.at(0.2, -0.25)
    parts += _eye(eye, 0.055)
    keypoints = {
        **feet, "eye": eye, "nose": nose, "ear": head.at(-0.6, -1.1), "withers": [length * 0.6, -height * 0.72],
        "back": [0, -height * 0.9], "belly": [0, height * 0.8], "tail base": tail_base, "tail tip": tail_tip,
        "chest": [length * 0.85, height * 0.3],
    }  # fmt: skip
    return _drawing(parts, keypoints)


def _bird(random: np.random.Generator) -> Drawing:
    uniform, coat, accent = random.uniform, _Coat(random), _bright(random, 0.2, 0.3)
    body = _Frame((0, 0), (uniform(0.42, 0.55), uniform(0.24, 0.34)), -uniform(0.05, 0.45))
    length, height = body.radii
    plumage = coat.shade()
    head_radius = uniform(0.16, 0.23)
    head = body.at(0.85, -0.55) + [uniform(0, 0.08), -head_radius * uniform(0.4, 1.0)]
    beak_length, beak_drop = uniform(0.14, 0.3), uniform(-0.15, 0.25)
    beak_colour = hsv(uniform(0.02, 0.14), uniform(0.6, 1), uniform(0.7, 1))
    tail_length, tail_width = uniform(0.25, 0.5), uniform(0.06, 0.16)
    tail_base = body.at(-1, 0)
    tail_tip = tail_base + body.turned(-tail_length, uniform(-0.05, 0.1))
    leg_length, leg_colour = uniform(0.25, 0.45), beak_colour * uniform(0.7, 1.0)

    parts: list[Part] = []
    feet = {}
    for x, shade, name in ((0.05, 0.65, "far foot"), (-0.1, 1.0, "near foot")):
        hip = np.array([x + 0.03, height * 0.7])
        foot = np.array([x + uniform(-0.05, 0.12), height + leg_length])
        parts.append(Part(_limb(hip, foot, 0.03, 0.025), leg_colour * shade))
        parts.append(Part(_limb(foot, foot + [0.13, 0.01], 0.03, 0.02), leg_colour * shade))
        feet[name] = foot
    across = np.array([(tail_tip - tail_base)[1], -(tail_tip - tail_base)[0]]) / np.linalg.norm(tail_tip - tail_base)
    near, far = across * 0.05, across * tail_width
    tail = [tail_base + near, tail_tip + far, tail_tip - far, tail_base - near]
    parts.append(Part(np.array(tail), coat.shade() * 0.8))
    parts.append(Part(_limb(body.at(0.55, -0.2), head, height * 0.7, head_radius * 0.8), plumage))
    parts.append(Part(body.outline, plumage, textured=True))
    parts.append(Part(body.ellipse(0.45, 0.35, (length * 0.42, height * 0.5)), plumage * 1.2 + 0.15))
    wing_length = uniform(0.28, 0.4)
    wing_root = body.at(0.35, -0.2)
    wing_tip = wing_root + body.turned(-wing_length * 1.6, uniform(-0.1, 0.15))
    down, middle = body.turned(0, height), (wing_root + wing_tip) / 2
    wing = [wing_root - down * 0.3, wing_root + down * 0.3, middle + down * 0.45, wing_tip, middle - down * 0.25]
    parts.append(Part(np.array(wing), accent, textured=True))
    beak_tip = head + [head_radius * 0.8 + beak_length, beak_length * np.sin(beak_drop)]
    beak = [head + [head_radius * 0.7, -head_radius * 0.4], beak_tip, head + [head_radius * 0.7, head_radius * 0.4]]
    parts.append(Part(np.array(beak), beak_colour))
    head_colour = plumage if random.random() < 0.5 else coat.shade(0.1, 0.2, 0.2)
    parts.append(Part(_ellipse(head, (head_radius, head_radius)), head_colour))
    eye = head + [head_radius * 0.3, -head_radius * 0.2]
    parts += _eye(eye, 0.06)
    keypoints = {
        **feet, "eye": eye, "beak": beak_tip, "head top": head + [-head_radius * 0.2, -head_radius * 0.85],
        "breast": body.at(0.85, 0.35), "wing root": wing_root, "wing tip": wing_tip, "tail base": tail_base,
        "tail tip": tail_tip, "belly": body.at(0, 0.85),
    }  # fmt: skip
    return _drawing(parts, keypoints)


def _fish(random: np.random.Generator) -> Drawing:
    uniform, coat, fin = random.uniform, _Coat(random), _bright(random, 0.2, 0.3)
    length, height = uniform(0.5, 0.7), uniform(0.2, 0.4)
    body = coat.shade()
    tail_base = np.array([-length * 0.92, 0.0])
    tail_length, tail_height = uniform(0.22, 0.4), uniform(0.18, 0.36)
    tail_up = tail_base + [-tail_length, -tail_height]
    tail_down = tail_base + [-tail_length, tail_height * uniform(0.8, 1.1)]
    notch = tail_base + [-tail_length * 0.5, 0]
    tail = np.array([tail_base + [0.08, -0.06], tail_up, notch, tail_down, tail_base + [0.08, 0.06]])
    dorsal_x, dorsal_height = uniform(-0.1, 0.15), uniform(0.15, 0.32)
    dorsal = np.array([dorsal_x - 0.2, -height - dorsal_height])
    pelvic_x, pelvic_height = uniform(-0.1, 0.1), uniform(0.1, 0.22)
    pelvic = np.array([pelvic_x - 0.15, height + pelvic_height])
    shoulder = np.array([length * 0.2, height * 0.15])
    fin_end = shoulder + [-0.2, 0.06]
    mouth = np.array([length * 0.97, height * 0.12])
    eye = np.array([length * 0.68, -height * 0.25])
    back_edge, belly_edge = -height * 0.75, height * 0.8
    pectoral = [shoulder + [0, -0.06], fin_end + [0, -0.06], fin_end + [0, 0.08], shoulder + [0, 0.06]]
    parts = [
        Part(tail, fin, textured=True),
        Part(np.array([[dorsal_x + 0.25, back_edge], dorsal, [dorsal_x - 0.3, back_edge]]), fin * 0.85),
        Part(np.array([[pelvic_x + 0.15, belly_edge], pelvic, [pelvic_x - 0.12, belly_edge]]), fin * 0.85),
        Part(_ellipse((0, 0), (length, height)), body, textured=True),
        Part(_ellipse((0, height * 0.55), (length * 0.7, height * 0.35)), body * 1.2 + 0.12),
        Part(_ellipse((length * 0.72, 0), (length * 0.28, height * 0.66)), coat.shade(0.05, 0.1, 0.2)),
        Part(np.array(pectoral), fin * 0.7),
        Part(_ellipse(mouth, (0.06, 0.05)), hsv(uniform(-0.05, 0.05), uniform(0.5, 0.9), uniform(0.5, 0.9))),
        *_eye(eye, 0.07),
    ]
    keypoints = {
        "eye": eye, "mouth": mouth, "dorsal fin": dorsal * 0.9 + np.array([dorsal_x, -height]) * 0.1,
        "pelvic fin": pelvic * 0.85 + np.array([pelvic_x, height]) * 0.15, "tail base": tail_base,
        "upper tail": tail_up * 0.9 + tail_base * 0.1, "lower tail": tail_down * 0.9 + tail_base * 0.1,
        "pectoral fin": (shoulder + fin_end) / 2, "back": [-length * 0.45, -height * 0.7],
        "belly": [length * 0.35, height * 0.75],
    }  # fmt: skip
    return _drawing(parts, keypoints)


def _car(random: np.random.Generator) -> Drawing:
    uniform, coat = random.uniform, _Coat(random)
    length, half, cabin = uniform(0.65, 0.9), uniform(0.13, 0.2), uniform(0.18, 0.3)
    paint = coat.shade()
    rear, front = -length * uniform(0.45, 0.9), length * uniform(0.2, 0.45)  # of the cabin, at its foot
    roof_rear, roof_front = rear + uniform(0.04, 0.2), front - uniform(0.1, 0.25)
    middle, pillar, top = (roof_rear + roof_front) / 2, 0.035, -half - cabin
    glass = hsv(uniform(0.5, 0.65), uniform(0.1, 0.5), uniform(0.5, 0.95))

    def side(foot: float, roof: float, share: float) -> np.ndarray:
        return np.array([foot + (roof - foot) * share, -half - cabin * share])

    def window(foot: float, roof: float, inward: float) -> np.ndarray:
        edge = middle - inward * pillar / 2
        low, high = side(foot, roof, 0.1) + [inward * pillar, 0], side(foot, roof, 0.85) + [inward * pillar, 0]
        return np.array([low, high, [edge, -half - cabin * 0.85], [edge, -half - cabin * 0.1]])

    rear_window, front_window = window(rear, roof_rear, 1.0), window(front, roof_front, -1.0)
    hull = [[-length, -half], [length * 0.55, -half], [length, -half * 0.4], [length, half], [-length, half]]
    parts = [
        Part(np.array([[rear, -half], [roof_rear, top], [roof_front, top], [front, -half]]), paint * 0.9),
        Part(rear_window, glass),
        Part(front_window, glass),
        Part(np.array(hull), paint, textured=True),
        Part(_limb((-length, half * 0.85), (length, half * 0.85), 0.04, 0.04), paint * 0.45),
    ]
    radius = uniform(0.12, 0.18)
    wheels = {"front wheel": length * uniform(0.52, 0.66), "rear wheel": -length * uniform(0.52, 0.66)}
    hub = hsv(random.random(), uniform(0, 0.3), uniform(0.5, 0.95))
    for x in wheels.values():
        parts.append(Part(_ellipse((x, half), (radius, radius)), np.array([0.07, 0.07, 0.08])))
        parts.append(Part(_ellipse((x, half), (radius * 0.5, radius * 0.5)), hub))
    headlight, taillight = np.array([length * 0.95, -half * 0.1]), np.array([-length * 0.96, -half * 0.5])
    parts.append(Part(_ellipse(headlight, (0.055, 0.06)), hsv(uniform(0.12, 0.17), uniform(0.2, 0.7), 1.0)))
    red = hsv(uniform(-0.03, 0.02), uniform(0.8, 1), uniform(0.7, 1))
    parts.append(Part(_ellipse(taillight, (0.045, 0.07)), red))
    keypoints = {
        **{name: [x, half] for name, x in wheels.items()}, "headlight": headlight, "taillight": taillight,
        "roof front": [roof_front, top], "roof rear": [roof_rear, top], "front window": front_window.mean(0),
        "rear window": rear_window.mean(0), "hood": [(front + length * 0.8) / 2, -half * 0.75], "door": [middle, 0.0],
        "windscreen base": [front, -half],
    }  # fmt: skip
    return _drawing(parts, keypoints)


KINDS: dict[str, Callable[[np.random.Generator], Drawing]] = {
    "quad": _quadruped,
    "bird": _bird,
    "fish": _fish,
    "car": _car,
}
"""Kind -> draws a random instance of it."""


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in [0, 1]; hue wraps around, saturation and value are clipped."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)))


class _Coat:
    """An instance's main colour; every shade of it is a little different. The hue is anything at all."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._base = random.random(), random.uniform(0.15, 0.9), random.uniform(0.35, 0.95)

    def shade(self, hue: float = 0.04, saturation: float = 0.1, value: float = 0.12) -> np.ndarray:
        spread = zip(self._base, (hue, saturation, value), strict=True)
        return hsv(*(base + self._random.normal() * sigma for base, sigma in spread))


def _bright(random: np.random.Generator, saturation: float, value: float) -> np.ndarray:
    return hsv(random.random(), random.uniform(saturation, 0.9), random.uniform(value, 1.0))


def _eye(centre: np.ndarray, radius: float) -> list[Part]:
    return [
        Part(_ellipse(centre, (radius, radius)), _WHITE),
        Part(_ellipse(centre, (radius / 2, radius / 2)), _BLACK),
    ]


_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 20, endpoint=False)) for f in (np.cos, np.sin)], axis=1)


def _ellipse(centre: Point, radii: Point, axes: np.ndarray | None = None) -> np.ndarray:
    points = _CIRCLE * np.asarray(radii)
    return (points if axes is None else points @ axes) + np.asarray(centre)


def _limb(start: Point, end: Point, start_width: float, end_width: float) -> np.ndarray:
    """A quadrilateral along a line; widths are half-widths."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = (end - start) / (np.linalg.norm(end - start) + 1e-9)
    across = np.array([-along[1], along[0]])
    return np.array(
        [start + across * start_width, end + across * end_width, end - across * end_width, start - across * start_width]
    )


def _drawing(parts: Sequence[Part], keypoints: Mapping[str, Point]) -> Drawing:
    return Drawing(tuple(parts), {name: np.asarray(point, float) for name, point in keypoints.items()})
