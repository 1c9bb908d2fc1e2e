"""How one geometry becomes many pictures: as flat colours, lit from a side, drawn with a pen, printed in dots.

A style never moves anything: under every style of one seed the same part lies at the same place. Lengths in styles are
shares of the picture's side, so that a scene looks the same at every resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..errors import InputError

__all__ = ["HELD_OUT_STYLES", "STYLES", "Flat", "make_style", "stretched_map"]


class Flat:
    """One colour for each part, with the instance's texture on some. The base of all other styles.

    Args:
        random: of the style's own choices, such as where the light comes from.
        scale: of pens and screens, for a canvas that is shown smaller or larger than a whole picture.

    Attributes:
        fineness: how many times larger than the picture the canvas of a small picture is; then it is averaged down.
    """

    fineness = 4

    def __init__(self, random: np.random.Generator, scale: float = 1.0) -> None:
        self._random = random

    def ground(self, canvas: Image.Image) -> Image.Image:
        """The empty background in this style."""
        return canvas

    def beneath(self, canvas: Image.Image, outlines: Sequence[np.ndarray]) -> Image.Image:
        """The finished background, before an instance with parts of these outlines, in pixels, is drawn on it."""
        return canvas

    def part(self, canvas: Image.Image, outline: np.ndarray, colour: np.ndarray, texture: np.ndarray | None) -> None:
        """Draw one part.

        Args:
            outline: (n, 2) corners in pixels of the canvas; (0, 0) is the outer corner of the first pixel.
            colour: (3,) in [0, 1].
            texture: (side, side) brightness to add, or None.
        """
        if texture is None:
            ImageDraw.Draw(canvas).polygon(_corners(outline), fill=tuple(_bytes(colour).tolist()))
            return
        box = _box(outline, canvas.width)
        x0, y0, x1, y1 = box
        _fill(canvas, outline, box, np.clip(colour, 0, 1) + texture[y0:y1, x0:x1, None])

    def finish(self, canvas: Image.Image) -> Image.Image:
        """The whole picture, once everything is drawn."""
        return canvas


class _Shaded(Flat):
    """Every part is a little round and lit from one side; the instance throws a soft shadow."""

    fineness = 3  # in time: every pixel of the canvas is computed

    def __init__(self, random: np.random.Generator, scale: float = 1.0) -> None:
        super().__init__(random, scale)
        angle = random.uniform(-np.pi, 0)  # from above
        self._light = np.array([np.cos(angle), np.sin(angle)], np.float32)
        self._relief, self._shadow = np.float32(random.uniform(0.15, 0.45)), random.uniform(0.2, 0.6)
        self._reach, self._softness = random.uniform(0.02, 0.09), random.uniform(0.01, 0.04)

    def beneath(self, canvas: Image.Image, outlines: Sequence[np.ndarray]) -> Image.Image:
        coarse = 4
        mask = Image.new("L", (canvas.width // coarse, canvas.height // coarse))
        draw = ImageDraw.Draw(mask)
        for outline in outlines:
            draw.polygon(_corners((outline - self._light * self._reach * canvas.width) / coarse), fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(self._softness * mask.width))
        shadow = mask.point([round(value * self._shadow) for value in range(256)]).resize(canvas.size)
        canvas.paste((0, 0, 0), (0, 0), shadow)
        return canvas

    def part(self, canvas: Image.Image, outline: np.ndarray, colour: np.ndarray, texture: np.ndarray | None) -> None:
        box = _box(outline, canvas.width)
        lit = self._lit(outline, box)[..., None] * np.clip(colour, 0, 1).astype(np.float32)
        if texture is not None:
            x0, y0, x1, y1 = box
            lit += texture[y0:y1, x0:x1, None]
        _fill(canvas, outline, box, lit)

    def _lit(self, outline: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        """(h, w) float32 brightness in the box of a part: more where it faces the light."""
        middle, half = (outline.min(0) + outline.max(0)) / 2, np.ptp(outline, axis=0) / 2 + 1
        bent = []
        for axis in (0, 1):
            place = np.arange(box[axis], box[axis + 2], dtype=np.float32)
            place = (place + np.float32(0.5 - middle[axis])) / np.float32(half[axis])
            bent.append(self._relief * (place * self._light[axis] - 0.3 * place * place))
        return (1 + bent[0])[None, :] + bent[1][:, None]


class _Rough(_Shaded):
    """Lit, and nothing is plain: the grain of wood, wool or stone on every part and on the ground, and camera noise."""

    def __init__(self, random: np.random.Generator, scale: float = 1.0) -> None:
        super().__init__(random, scale)
        self._field = _pink_noise(random)
        self._grain, self._noise = random.uniform(0.04, 0.12), random.uniform(0.005, 0.03)
        self._stretched: np.ndarray | None = None

    def ground(self, canvas: Image.Image) -> Image.Image:
        grain = self._random.uniform(0.5, 2.0) * self._grain * 255 * self._at(canvas.width)[::-1, ::-1]
        return _brightened(canvas, grain.astype(np.int16)[..., None])

    def part(self, canvas: Image.Image, outline: np.ndarray, colour: np.ndarray, texture: np.ndarray | None) -> None:
        box = x0, y0, x1, y1 = _box(outline, canvas.width)
        grain = np.float32(self._random.uniform(0.3, 1.5) * self._grain) * self._at(canvas.width)[y0:y1, x0:x1]
        if texture is not None:
            grain = grain + texture[y0:y1, x0:x1]
        lit = self._lit(outline, box)[..., None] * np.clip(colour, 0, 1).astype(np.float32)
        _fill(canvas, outline, box, lit + grain[..., None])

    def finish(self, canvas: Image.Image) -> Image.Image:
        noise = self._random.standard_normal((128, 128, 3), np.float32) * (2 * 255 * self._noise)
        cell = -(-canvas.width // 128)
        noise = noise.astype(np.int16).repeat(cell, 0).repeat(cell, 1)
        return _brightened(canvas, noise[: canvas.height, : canvas.width])

    def _at(self, side: int) -> np.ndarray:
        if self._stretched is None or len(self._stretched) != side:
            self._stretched = stretched_map(self._field, side)
        return self._stretched


class _Line(Flat):
    """Pen on paper: contours, and hardly any colour."""

    def __init__(self, random: np.random.Generator, scale: float = 1.0) -> None:
        super().__init__(random, scale)
        self._paper = np.clip(random.uniform(0.86, 1.0) + random.normal(size=3) * 0.03, 0, 1)
        self._ink = random.uniform(0, 0.25, 3)
        self._width, self._tint = random.uniform(0.008, 0.016) * scale, random.uniform(0.0, 0.3)

    def ground(self, canvas: Image.Image) -> Image.Image:
        paper = Image.new("RGB", canvas.size, tuple(_bytes(self._paper).tolist()))
        return Image.blend(paper, canvas, self._tint / 2)

    def part(self, canvas: Image.Image, outline: np.ndarray, colour: np.ndarray, texture: np.ndarray | None) -> None:
        pale = self._paper + (np.clip(colour, 0, 1) - self._paper) * self._tint
        super().part(canvas, outline, pale, None if texture is None else texture / 2)
        _contour(canvas, outline, self._ink, self._width)


class _Halftone(Flat):
    """Printed in dots, each colour on a screen of its own angle."""

    def __init__(self, random: np.random.Generator, scale: float = 1.0) -> None:
        super().__init__(random, scale)
        self._angle, self._pitch = random.uniform(0, np.pi / 2), random.uniform(1 / 48, 1 / 32) * scale
        self._ink = random.uniform(0.0, 0.15)

    def finish(self, canvas: Image.Image) -> Image.Image:
        value = np.asarray(canvas, np.float32) / 255
        screens = [_waves(canvas.size, self._angle + turn, self._pitch) for turn in (0.0, np.pi / 6, np.pi / 3)]
        dots = value > np.stack(screens, -1)
        return Image.fromarray(_bytes(self._ink + (0.97 - self._ink) * dots))


class _Sketch(Flat):
    """Pencil: contours, and hatching where it is dark. No colour."""

    def __init__(self, random: np.random.Generator, scale: float = 1.0) -> None:
        super().__init__(random, scale)
        self._angle, self._pitch = random.uniform(0, np.pi), random.uniform(1 / 60, 1 / 40) * scale
        self._width, self._pencil = random.uniform(0.006, 0.012) * scale, random.uniform(0.1, 0.35)

    def ground(self, canvas: Image.Image) -> Image.Image:
        return Image.blend(canvas, Image.new("RGB", canvas.size, (255, 255, 255)), 0.5)

    def part(self, canvas: Image.Image, outline: np.ndarray, colour: np.ndarray, texture: np.ndarray | None) -> None:
        super().part(canvas, outline, 0.25 + 0.75 * np.clip(colour, 0, 1), texture)
        _contour(canvas, outline, np.zeros(3), self._width)

    def finish(self, canvas: Image.Image) -> Image.Image:
        dark = 1 - np.asarray(canvas.convert("L"), np.float32) / 255
        one, other = (_stripes(canvas.size, self._angle + turn, self._pitch) for turn in (0.0, np.pi / 2.6))
        drawn = np.maximum(one < 1.2 * dark - 0.15, other < 1.6 * dark - 0.8)
        grey = _bytes(0.96 - (0.96 - self._pencil) * drawn)
        return Image.fromarray(np.repeat(grey[..., None], 3, 2))


_TRAINING: dict[str, type[Flat]] = {"flat": Flat, "shaded": _Shaded, "rough": _Rough}
_HELD_OUT: dict[str, type[Flat]] = {"line": _Line, "halftone": _Halftone, "sketch": _Sketch}

STYLES: tuple[str, ...] = tuple(_TRAINING)
"""The styles that training sees."""

HELD_OUT_STYLES: tuple[str, ...] = tuple(_HELD_OUT)
"""The styles that it never sees."""


def make_style(name: str, seed: int = 0, scale: float = 1.0) -> Flat:
    """A style with its own choices drawn from a seed.

    Args:
        scale: of pens and screens, for a canvas that is shown smaller or larger than a whole picture.

    Raises:
        InputError: an unknown style.
    """
    if name == "flat":
        return _FLAT
    known = _TRAINING | _HELD_OUT
    if name not in known:
        raise InputError.of("style", name, f"one of {', '.join(known)}")
    return known[name](np.random.default_rng([seed, 5]), scale)


_FLAT = Flat(np.random.default_rng(0))  # it chooses nothing, and a generator takes a while to make


def stretched_map(values: np.ndarray, side: int) -> np.ndarray:
    """(n, n) -> (side, side) float32, bicubic."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))


def _corners(outline: np.ndarray) -> list[float]:
    """x, y, x, y and so on, between the corners of pixels as Pillow has them."""
    return (outline - 0.5).ravel().tolist()


def _box(outline: np.ndarray, side: int) -> tuple[int, int, int, int]:
    """The pixels (x0, y0, x1, y1) that a polygon may touch, at least one, inside the canvas."""
    low, high = outline.min(0).tolist(), outline.max(0).tolist()
    x0, y0 = (min(max(math.floor(value) - 1, 0), side - 1) for value in low)
    x1, y1 = (min(max(math.ceil(value) + 1, 1), side) for value in high)
    return x0, y0, x1, y1


def _fill(canvas: Image.Image, outline: np.ndarray, box: tuple[int, int, int, int], surface: np.ndarray) -> None:
    """Fill a polygon with the colours (h, w, 3) of its box."""
    x0, y0, x1, y1 = box
    mask = Image.new("L", (x1 - x0, y1 - y0))
    ImageDraw.Draw(mask).polygon(_corners(outline - box[:2]), fill=255)
    canvas.paste(Image.fromarray(_bytes(surface)), (x0, y0), mask)


def _brightened(canvas: Image.Image, by: np.ndarray) -> Image.Image:
    """Grey levels (H, W, 1 or 3) int16 added to every pixel."""
    return Image.fromarray(np.clip(np.asarray(canvas) + by, 0, 255).astype(np.uint8))


def _contour(canvas: Image.Image, outline: np.ndarray, ink: np.ndarray, width: float) -> None:
    corners = _corners(outline)
    pixels = max(1, round(width * canvas.width))
    ImageDraw.Draw(canvas).line([*corners, *corners[:4]], tuple(_bytes(ink).tolist()), pixels, joint="curve")


def _along(size: tuple[int, int], angle: float) -> np.ndarray:
    """(H, W) float32: how far each pixel lies in a direction, in shares of the width."""
    x, y = ((np.arange(side, dtype=np.float32) + 0.5) / size[0] for side in size)
    return x[None, :] * np.float32(np.cos(angle)) + y[:, None] * np.float32(np.sin(angle))


def _waves(size: tuple[int, int], angle: float, pitch: float) -> np.ndarray:
    """(H, W) thresholds from 0 to 1, about evenly spread, in round dots."""
    one, other = (np.cos(_along(size, turned) * (2 * np.pi / pitch)) for turned in (angle, angle + np.pi / 2))
    return 0.5 + (one + other) / 4


def _stripes(size: tuple[int, int], angle: float, pitch: float) -> np.ndarray:
    """(H, W) thresholds from 0 to 1, evenly spread, in lines."""
    return np.abs((_along(size, angle) / pitch) % 1 - 0.5) * 2


def _pink_noise(random: np.random.Generator) -> np.ndarray:
    """(96, 96) float32 of about unit spread, with as much in each octave: the spectrum of photographs."""
    layers = [stretched_map(random.normal(size=(n, n)), 96) for n in (5, 11, 23, 47, 96)]
    total = np.sum(layers, axis=0)
    return (total / total.std()).astype(np.float32)


def _bytes(colour: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
