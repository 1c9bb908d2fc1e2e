"""What things are drawn with: polygons, ellipses, limbs and colours.

Everything is in the units of a drawing: about 2 across, x to the right and y down.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Coat", "Drawing", "Frame", "Part", "Point", "bright", "drawing", "ellipse", "eye_parts", "hsv", "limb"]

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


class Frame:
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
        return ellipse(self.at(x, y), radii, self.axes)

    @property
    def outline(self) -> np.ndarray:
        return ellipse(self.centre, self.radii, self.axes)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in [0, 1]; hue wraps around, saturation and value are clipped."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)))


class Coat:
    """An instance's main colour; every shade of it is a little different. The hue is anything at all."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._base = random.random(), random.uniform(0.15, 0.9), random.uniform(0.35, 0.95)

    def shade(self, hue: float = 0.04, saturation: float = 0.1, value: float = 0.12) -> np.ndarray:
        spread = zip(self._base, (hue, saturation, value), strict=True)
        return hsv(*(base + self._random.normal() * sigma for base, sigma in spread))


def bright(random: np.random.Generator, saturation: float, value: float) -> np.ndarray:
    return hsv(random.random(), random.uniform(saturation, 0.9), random.uniform(value, 1.0))


def eye_parts(centre: np.ndarray, radius: float) -> list[Part]:
    return [
        Part(ellipse(centre, (radius, radius)), _WHITE),
        Part(ellipse(centre, (radius / 2, radius / 2)), _BLACK),
    ]


_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 20, endpoint=False)) for f in (np.cos, np.sin)], axis=1)


def ellipse(centre: Point, radii: Point, axes: np.ndarray | None = None) -> np.ndarray:
    points = _CIRCLE * np.asarray(radii)
    return (points if axes is None else points @ axes) + np.asarray(centre)


def limb(start: Point, end: Point, start_width: float, end_width: float) -> np.ndarray:
    """A quadrilateral along a line; widths are half-widths."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = (end - start) / (np.linalg.norm(end - start) + 1e-9)
    across = np.array([-along[1], along[0]])
    return np.array(
        [start + across * start_width, end + across * end_width, end - across * end_width, start - across * start_width]
    )


def drawing(parts: Sequence[Part], keypoints: Mapping[str, Point]) -> Drawing:
    return Drawing(tuple(parts), {name: np.asarray(point, float) for name, point in keypoints.items()})
