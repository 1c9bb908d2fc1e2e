"""Procedural video with known truth: things that move, turn and grow over a textured background.

The things are of the kinds of ``ditf.tiny.kinds``, in a style of ``ditf.tiny.styles`` and each with a texture of its
own. They are cut out once and then placed in every frame by a similarity map; the background pans, the light changes
and the camera adds noise. Every frame is drawn when it is asked for, the same for the same seed, so a clip may be as
long as one likes. Masks are exact, and so is where on its thing each pixel lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..errors import InputError
from ..tiny.kinds import ALL_KINDS, KINDS
from ..tiny.styles import Flat, make_style
from ..types import FeatureMap
from ..video.masks import resized_nearest

__all__ = ["Clip", "ClipFrame", "make_clip", "oracle_features", "true_tracks"]

_SPRITE = 192  # pixels along the side of a cut-out
_FINE = 2  # frames are drawn so many times larger and averaged down
_NOISE = 2.0  # grey levels, standard deviation


@dataclass(frozen=True, eq=False)
class ClipFrame:
    """One frame and what is true of it.

    Attributes:
        pixels: (H, W, 3) uint8.
        mask: (H, W) uint8, 0 the background, things from 1 on.
        place: (H, W, 2) float32: where on its thing, or on the background, each pixel lies, in pixels of frame 0's
            scale.
    """

    pixels: np.ndarray
    mask: np.ndarray
    place: np.ndarray


@dataclass(frozen=True, eq=False)
class _Thing:
    """A cut-out and how it moves: round an ellipse, turning, growing and shrinking."""

    sprite: Image.Image  # RGBA
    side: float  # of the cut-out in frame 0's pixels, at scale 1
    centre: np.ndarray
    reach: np.ndarray
    phase: float
    pace: float  # radians per frame
    spin: float  # radians per frame
    tilt: float
    breath: float  # log of the largest scale

    def at(self, t: int) -> np.ndarray:
        """(2, 3): a point of the cut-out, from -0.5 to 0.5, times it is a pixel of the frame."""
        angle, around = self.tilt + self.spin * t, self.phase + self.pace * t
        scale = self.side * math.exp(self.breath * math.sin(around * 1.7) - self.breath * math.sin(self.phase * 1.7))
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        x, y = self.centre + self.reach * np.array([math.cos(around), math.sin(around)])
        return np.array([[cos, -sin, x], [sin, cos, y]])


@dataclass(frozen=True, eq=False)
class Clip:
    """A video of ``len(clip)`` frames; ``clip[t]`` draws one.

    Attributes:
        seed: of everything in it.
        size: (H, W) in pixels.
        length: frames.
    """

    seed: int
    size: tuple[int, int]
    length: int
    _things: tuple[_Thing, ...]
    _background: Image.Image

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[ClipFrame]:
        return (self[t] for t in range(self.length))

    def __getitem__(self, t: int) -> ClipFrame:
        if not 0 <= t < self.length:
            raise IndexError(t)
        height, width = self.size
        pan = np.array([1.0 + 0.1 * math.sin(0.05 * t), 1.0 - 0.1 * math.cos(0.04 * t)]) * [width / 2, height / 2]
        y, x = np.mgrid[:height, :width].astype(np.float64)
        canvas = _placed(self._background, np.array([[1.0, 0.0, pan[0]], [0.0, 1.0, pan[1]]]), self.size)
        mask = np.zeros(self.size, np.uint8)
        place = np.stack([x + pan[0], y + pan[1]], -1)
        for number, thing in enumerate(self._things, 1):
            back = np.linalg.inv(np.vstack([thing.at(t), [0, 0, 1]]))[:2]  # pixel -> cut-out
            to_sprite = back * _SPRITE + np.array([0, 0, _SPRITE / 2 - 0.5])
            drawn = _placed(thing.sprite, to_sprite, self.size)
            canvas = Image.alpha_composite(canvas, drawn)
            inside = np.asarray(drawn)[..., 3] >= 128
            mask[inside] = number
            own = (back[:, :2] @ np.stack([x.ravel(), y.ravel()]) + back[:, 2:]).T.reshape(
                height, width, 2
            ) * thing.side
            place[inside] = own[inside]
        light = 1.0 + 0.12 * math.sin(0.11 * t + self.seed)
        noise = np.random.default_rng([self.seed, t]).normal(size=(height, width, 3)) * _NOISE
        pixels = np.asarray(canvas.convert("RGB"), np.float32) * light + noise
        return ClipFrame(np.rint(pixels.clip(0, 255)).astype(np.uint8), mask, place.astype(np.float32))

    @property
    def masks(self) -> np.ndarray:
        """(T, H, W) uint8."""
        return np.stack([frame.mask for frame in self])


def make_clip(
    seed: int,
    length: int = 24,
    *,
    size: tuple[int, int] = (120, 160),
    things: int = 2,
    kinds: Sequence[str] = tuple(KINDS),
    style: str = "flat",
) -> Clip:
    """A clip drawn from a seed: the same at every length.

    Args:
        length: frames, at least 2.
        size: (H, W) in pixels, at least 16.
        things: how many, 1 to 9; later ones before earlier ones.
        kinds: names of ``ditf.tiny.kinds.ALL_KINDS`` to draw from; by default those that training sees.
        style: of ``ditf.tiny.styles``, for things and background alike.

    Raises:
        InputError: a value outside its domain.
    """
    if length < 2:
        raise InputError.of("length", length, "at least 2 frames")
    if min(size) < 16:
        raise InputError.of("size", size, "(H, W) of at least 16 pixels")
    if not 1 <= things <= 9:
        raise InputError.of("things", things, "1 to 9")
    unknown = [kind for kind in kinds if kind not in ALL_KINDS]
    if unknown or not kinds:
        raise InputError.of("kinds", tuple(kinds), f"some of {', '.join(ALL_KINDS)}")
    random = np.random.default_rng([seed, 7])
    on_things, behind = make_style(style, seed, 2.0), make_style(style, seed, 0.5)  # things are about half as large
    return Clip(seed, size, length, _things(random, size, things, kinds, on_things), _background(random, size, behind))


def oracle_features(frame: ClipFrame, grid: tuple[int, int], *, channels: int = 256, width: float = 2.0) -> FeatureMap:
    """Features that know the truth: random Fourier features of where on its thing each token's middle lies.

    Their cosine is about exp(-(distance / (width * token))^2 / 2) on one thing and about 0 between two things.

    Args:
        grid: (h, w) tokens.
        width: of that bell, in tokens.
    """
    size = frame.mask.shape[0], frame.mask.shape[1]
    rows, columns = (_middles(n, length) for n, length in zip(grid, size, strict=True))
    number = torch.from_numpy(frame.mask[rows[:, None], columns].ravel().astype(np.int64))
    place = torch.from_numpy(frame.place[rows[:, None], columns].reshape(-1, 2))
    random = torch.Generator().manual_seed(0)
    waves = torch.randn(2, channels // 2, generator=random) / (width * size[0] / grid[0])
    phase = torch.rand(256, channels // 2, generator=random) * 2 * math.pi  # a thing's own
    angle = place @ waves + phase[number]
    return FeatureMap(tokens=torch.cat([angle.cos(), angle.sin()], 1), grid=grid, image_size=size)


def true_tracks(frames: Sequence[ClipFrame], points: np.ndarray) -> np.ndarray:
    """(T, K, 2) float64 pixels where points (K, 2) of the first frame are; NaN where they are hidden or outside.

    To the pixel: the one of the same thing whose place is nearest, if that is within a pixel of frame 0's scale.
    """
    columns, rows = np.rint(points).astype(int).T
    numbers, places = frames[0].mask[rows, columns], frames[0].place[rows, columns]
    tracks = np.full((len(frames), len(points), 2), np.nan)
    for t, frame in enumerate(frames):
        for k, (number, place) in enumerate(zip(numbers, places, strict=True)):
            y, x = np.nonzero(frame.mask == number)
            apart = ((frame.place[y, x] - place) ** 2).sum(1)
            if len(apart) and apart.min() < 1.0:
                tracks[t, k] = x[apart.argmin()], y[apart.argmin()]
    return tracks


def _middles(tokens: int, pixels: int) -> np.ndarray:
    """The pixel at the middle of each token, the one that masks are read at."""
    return resized_nearest(torch.arange(pixels)[None], (1, tokens))[0].numpy()


def _placed(picture: Image.Image, to_picture: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """RGBA: the picture seen through a map (2, 3) from pixels of the frame to pixels of the picture."""
    drawn = to_picture / _FINE  # Pillow's maps are between corners of pixels, ours between their centres
    drawn[:, 2] = to_picture[:, 2] + 0.5 - to_picture[:, :2].sum(1) / 2
    large = picture.transform(
        (size[1] * _FINE, size[0] * _FINE), Image.Transform.AFFINE, tuple(drawn.ravel()), Image.Resampling.BICUBIC
    )
    return large.resize((size[1], size[0]), Image.Resampling.BOX)


def _things(
    random: np.random.Generator, size: tuple[int, int], count: int, kinds: Sequence[str], style: Flat
) -> tuple[_Thing, ...]:
    """Apart from each other in the first frame, most of the time, and all of them going round one way."""
    start, turning = random.uniform(0, 2 * math.pi), [-1, 1][int(random.integers(2))]
    phases = [start + 2 * math.pi * i / count for i in range(count)]
    return tuple(_thing(random, size, phase, turning * random.uniform(0.07, 0.1), kinds, style) for phase in phases)


def _thing(
    random: np.random.Generator, size: tuple[int, int], phase: float, pace: float, kinds: Sequence[str], style: Flat
) -> _Thing:
    height, width = size
    sprite = _cut_out(random, str(random.choice(list(kinds))), style)
    side = random.uniform(0.5, 0.62) * height
    centre = np.array([random.uniform(0.4, 0.6) * width, random.uniform(0.42, 0.58) * height])
    reach = np.array([random.uniform(0.2, 0.3) * width, random.uniform(0.18, 0.26) * height])
    return _Thing(
        sprite=sprite,
        side=side,
        centre=centre,
        reach=reach,
        phase=phase,
        pace=pace,
        spin=random.normal() * 0.03,
        tilt=random.normal() * 0.3,
        breath=random.uniform(0.1, 0.25),
    )


def _cut_out(random: np.random.Generator, kind: str, style: Flat) -> Image.Image:
    """A textured thing on nothing, (192, 192) RGBA."""
    parts = ALL_KINDS[kind](random).parts
    corners = np.concatenate([part.outline for part in parts])
    low, high = corners.min(0), corners.max(0)
    zoom, side = 0.96 / (high - low).max(), _SPRITE * 2
    canvas, mask = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    for part in parts:
        outline = ((part.outline - (low + high) / 2) * zoom + 0.5) * side
        style.part(canvas, outline + 0.5, part.colour, None)
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in outline], fill=255)
    canvas = style.finish(canvas)
    canvas.putalpha(mask)
    pixels = np.asarray(canvas.resize((_SPRITE, _SPRITE), Image.Resampling.BOX)).astype(np.float32)
    pixels[..., :3] += 38 * _clouds(random, _SPRITE, 12)[..., None]
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def _background(random: np.random.Generator, size: tuple[int, int], style: Flat) -> Image.Image:
    """Twice the frame's sides, RGBA: colours in clouds of two sizes."""
    side = 2 * max(size)
    base = random.uniform(60, 190, 3)
    layers = [sum(a * _clouds(random, side, n) for n, a in ((10, 28.0), (40, 22.0))) for _ in range(3)]
    colours = np.rint((base + np.stack(layers, -1)).clip(0, 255)).astype(np.uint8)
    canvas = style.finish(style.ground(Image.fromarray(colours))).convert("RGBA")
    return canvas.crop((0, 0, 2 * size[1], 2 * size[0]))


def _clouds(random: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """(side, side) float32 of smooth normal noise with ``cells`` bumps along a side."""
    coarse = torch.from_numpy(random.normal(size=(1, 1, cells, cells)).astype(np.float32))
    return F.interpolate(coarse, (side, side), mode="bicubic")[0, 0].numpy()
