"""From a scene to its picture, and to where its named points lie in it.

Points are (x, y) in pixel-index coordinates, sizes are (H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from ..errors import InputError
from .shapes import Part
from .styles import make_style, stretched_map

__all__ = ["Instance", "Scene", "SceneImage", "developed", "painted", "render"]


@dataclass(frozen=True, eq=False)
class Instance:
    """One individual of a kind, in the kind's own units.

    Attributes:
        kind: a name of ``ditf.tiny.kinds.ALL_KINDS``.
        parts: back to front.
        keypoints: name of the part -> (2,) point.
        texture: (n, n) brightness added to textured parts, stretched over the picture, or None.
    """

    kind: str
    parts: tuple[Part, ...]
    keypoints: Mapping[str, np.ndarray]
    texture: np.ndarray | None

    @property
    def outline(self) -> np.ndarray:
        """(n, 2) corners of all parts."""
        return np.concatenate([part.outline for part in self.parts])


@dataclass(frozen=True, eq=False)
class Scene:
    """An instance in its place, in units of the picture: (0, 0) is its top-left corner, (1, 1) its bottom-right.

    Attributes:
        instance: what is shown.
        placement: (3, 2); a point of the instance (x, y, 1) times it is a point of the picture, seen from the front.
        flipped: whether the instance looks left.
        backdrop: (n, n, 3) colours in [0, 1], stretched over the picture.
        clutter: parts behind the instance, in units of the picture.
        blur: of the clutter, in units of the picture.
        light: brightness at the top and at the bottom.
        tilt: (3, 3) homography of the picture that turns the placed instance away from the front, or None.
        occluders: parts before the instance, in units of the picture.
        style, style_seed: how it is drawn; see ``ditf.tiny.styles``.
    """

    instance: Instance
    placement: np.ndarray
    flipped: bool
    backdrop: np.ndarray
    clutter: tuple[Part, ...]
    blur: float
    light: tuple[float, float]
    tilt: np.ndarray | None = None
    occluders: tuple[Part, ...] = ()
    style: str = "flat"
    style_seed: int = 0

    def located(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) of the instance in units of the picture."""
        placed = points @ self.placement[:2] + self.placement[2]
        if self.tilt is None:
            return placed
        mapped = placed @ self.tilt[:, :2].T + self.tilt[:, 2]
        return mapped[:, :2] / mapped[:, 2:]

    def hidden(self, points: np.ndarray) -> np.ndarray:
        """Whether something stands before each of the points (n, 2), given in units of the picture."""
        hidden = np.zeros(len(points), bool)
        for occluder in self.occluders:
            hidden |= _inside(points, occluder.outline)
        return hidden


@dataclass(frozen=True, eq=False)
class SceneImage:
    """A rendered scene.

    Attributes:
        pixels: (H, W, 3) uint8.
        keypoints: name of the part -> (x, y) in pixels.
        visible: name of the part -> whether the point lies inside the picture and nothing stands before it.
        bbox: (x0, y0, x1, y1) of the instance in pixels.
        kind: what is shown.
        flipped: whether it looks left.
    """

    pixels: np.ndarray
    keypoints: Mapping[str, tuple[float, float]]
    visible: Mapping[str, bool]
    bbox: tuple[float, float, float, float]
    kind: str
    flipped: bool


def render(scene: Scene, size: int = 64) -> SceneImage:
    """Draw a scene as a square picture of ``size`` pixels.

    Raises:
        InputError: a size below 8.
    """
    pixels = developed(painted(scene, size), scene.light, size)
    instance = scene.instance
    places = scene.located(np.stack(list(instance.keypoints.values())))
    points, corners = places * size - 0.5, scene.located(instance.outline) * size - 0.5
    seen = ((points >= 0) & (points <= size - 1)).all(1) & ~scene.hidden(places)
    return SceneImage(
        pixels=pixels,
        keypoints={name: (x, y) for name, (x, y) in zip(instance.keypoints, points.tolist(), strict=True)},
        visible=dict(zip(instance.keypoints, seen.tolist(), strict=True)),
        bbox=(*map(float, corners.min(0)), *map(float, corners.max(0))),  # pyright: ignore[reportArgumentType]
        kind=instance.kind,
        flipped=scene.flipped,
    )


def painted(scene: Scene, size: int) -> Image.Image:
    """The scene before its light, on a canvas several times larger than a picture of ``size`` pixels.

    Raises:
        InputError: a size below 8.
    """
    if not isinstance(size, int) or size < 8:
        raise InputError.of("size", size, "an integer of at least 8")
    style, instance = make_style(scene.style, scene.style_seed), scene.instance
    side = size * (style.fineness if size <= 128 else 2)  # drawn without anti-aliasing, then averaged
    canvas = style.ground(Image.fromarray(_bytes(scene.backdrop)).resize((side, side), Image.Resampling.BICUBIC))
    for part in scene.clutter:
        style.part(canvas, part.outline * side, part.colour, None)
    if scene.blur > 0:
        canvas = canvas.filter(ImageFilter.GaussianBlur(scene.blur * side))
    outlines = [scene.located(part.outline) * side for part in instance.parts]
    canvas = style.beneath(canvas, outlines)
    texture = None if instance.texture is None else _tilted(stretched_map(instance.texture, side), scene.tilt)
    for part, outline in zip(instance.parts, outlines, strict=True):
        style.part(canvas, outline, part.colour, texture if part.textured else None)
    for part in scene.occluders:
        style.part(canvas, part.outline * side, part.colour, None)
    return style.finish(canvas)


def developed(canvas: Image.Image, light: tuple[float, float], size: int) -> np.ndarray:
    """(size, size, 3) uint8: a large canvas averaged down, and lit from top to bottom."""
    picture = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    lit = np.linspace(*light, size, dtype=np.float32)[:, None, None]
    return np.rint(np.clip(picture * lit, 0, 255)).astype(np.uint8)


def _tilted(texture: np.ndarray, tilt: np.ndarray | None) -> np.ndarray:
    """A map over the picture, turned as the instance is. The instance's own pixels all come from inside the map."""
    if tilt is None:
        return texture
    side = len(texture)
    to_pixels = np.diag([side, side, 1.0])
    back = to_pixels @ np.linalg.inv(tilt) @ np.linalg.inv(to_pixels)
    coefficients = (back / back[2, 2]).ravel()[:8].tolist()
    picture = Image.fromarray(texture).transform(
        (side, side), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def _inside(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Whether points (n, 2) lie inside a polygon: a ray to the right crosses its edges an odd number of times."""
    x, y = points[:, 0, None], points[:, 1, None]
    (x0, y0), (x1, y1) = outline.T, np.roll(outline, -1, axis=0).T
    crosses = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):  # level edges, which no ray crosses
        right = x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return (crosses & right).sum(1) % 2 == 1


def _bytes(colour: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
