"""Procedural pictures with known truth: creatures and cars with named parts, and any picture under a known warp.

Everything is drawn with numpy and Pillow from a seed, and is the same for the same seed on every machine. A scene does
not know its resolution: one seed at 64 and at 256 pixels is one scene. Seeds below ``TRAINING_SEED`` are for tests,
tuning and evaluation; training takes the seeds from there on.

Points are (x, y) in pixel-index coordinates, sizes are (H, W).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from ..errors import InputError
from .kinds import KINDS, Part, hsv

__all__ = [
    "TRAINING_SEED",
    "Instance",
    "Scene",
    "SceneImage",
    "WarpedPair",
    "apply_homography",
    "random_scene",
    "render",
    "sample_scene",
    "scene_pair",
    "warp_image",
    "warped_pair",
]

TRAINING_SEED = 2**32


Border = Literal["edge", "reflect", "plain"]


@dataclass(frozen=True, eq=False)
class Instance:
    """One individual of a kind, in the kind's own units.

    Attributes:
        kind: "quad", "bird", "fish" or "car".
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
        placement: (3, 2); a point of the instance (x, y, 1) times it is a point of the picture.
        flipped: whether the instance looks left.
        backdrop: (n, n, 3) colours in [0, 1], stretched over the picture.
        clutter: parts behind the instance, in units of the picture.
        blur: of the clutter, in units of the picture.
        light: brightness at the top and at the bottom.
    """

    instance: Instance
    placement: np.ndarray
    flipped: bool
    backdrop: np.ndarray
    clutter: tuple[Part, ...]
    blur: float
    light: tuple[float, float]


@dataclass(frozen=True, eq=False)
class SceneImage:
    """A rendered scene.

    Attributes:
        pixels: (H, W, 3) uint8.
        keypoints: name of the part -> (x, y) in pixels.
        visible: name of the part -> whether the point lies inside the picture.
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


@dataclass(frozen=True, eq=False)
class WarpedPair:
    """A picture and its copy under a known map.

    Attributes:
        source, target: (H, W, 3) uint8 of one size.
        source_points, target_points: (K, 2) float32; pairs of truly corresponding points, inside both pictures.
        matrix: (3, 3) float64 homography from source to target pixels.
    """

    source: np.ndarray
    target: np.ndarray
    source_points: Tensor
    target_points: Tensor
    matrix: Tensor


def sample_scene(seed: int, size: int = 64, kind: str | None = None, *, clutter: bool = False) -> SceneImage:
    """A random scene.

    Args:
        seed: the same seed is the same scene, at every size.
        size: side of the square picture in pixels.
        kind: "quad", "bird", "fish", "car", or None for any.
        clutter: a busy background and a smaller instance, instead of a plain one and an instance that fills it.
    """
    return render(random_scene(np.random.default_rng([seed, 0]), kind, clutter=clutter), size)


def scene_pair(
    seed: int, size: int = 64, kind: str | None = None, *, clutter: bool = False
) -> tuple[SceneImage, SceneImage]:
    """Two different instances of one kind, each in its own place: keypoints of one name correspond."""
    random = np.random.default_rng([seed, 1])
    kind = kind or str(random.choice(list(KINDS)))
    first, second = (random_scene(random, kind, clutter=clutter) for _ in range(2))
    return render(first, size), render(second, size)


def random_scene(random: np.random.Generator, kind: str | None = None, *, clutter: bool = False) -> Scene:
    """A scene drawn from a random generator; see :func:`sample_scene`.

    Raises:
        InputError: an unknown kind.
    """
    kind = kind or str(random.choice(list(KINDS)))
    if kind not in KINDS:
        raise InputError.of("kind", kind, f"one of {', '.join(KINDS)}")
    drawing = KINDS[kind](random)
    texture = None if not clutter and random.random() < 0.5 else _random_texture(random)
    instance = Instance(kind, drawing.parts, drawing.keypoints, texture)
    flipped = bool(random.random() < 0.5)
    share = random.uniform(0.6, 0.94) if clutter else random.uniform(0.8, 0.97)
    backdrop, behind, blur = _random_background(random) if clutter else (_plain_backdrop(random), (), 0.0)
    light = random.uniform(0.75, 1.2), random.uniform(0.75, 1.2)
    return Scene(instance, _random_placement(random, instance, flipped, share), flipped, backdrop, behind, blur, light)


def render(scene: Scene, size: int = 64) -> SceneImage:
    """Draw a scene as a square picture of ``size`` pixels.

    Raises:
        InputError: a size below 8.
    """
    if not isinstance(size, int) or size < 8:
        raise InputError.of("size", size, "an integer of at least 8")
    canvas_side = size * (4 if size <= 128 else 2)  # drawn without anti-aliasing, then averaged
    canvas = _stretched(scene.backdrop, canvas_side)
    for part in scene.clutter:
        _draw(canvas, part.outline * canvas_side, part.colour, None)
    if scene.blur > 0:
        canvas = canvas.filter(ImageFilter.GaussianBlur(scene.blur * canvas_side))
    instance, placement = scene.instance, scene.placement
    texture = None if instance.texture is None else _stretched_map(instance.texture, canvas_side)
    for part in instance.parts:
        outline = _placed(part.outline, placement) * canvas_side
        _draw(canvas, outline, part.colour, texture if part.textured else None)
    picture = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    light = np.linspace(*scene.light, size, dtype=np.float32)[:, None, None]
    pixels = np.rint(np.clip(picture * light, 0, 255)).astype(np.uint8)
    points = {name: _placed(point[None], placement)[0] * size - 0.5 for name, point in instance.keypoints.items()}
    corners = _placed(instance.outline, placement) * size - 0.5
    return SceneImage(
        pixels=pixels,
        keypoints={name: (float(x), float(y)) for name, (x, y) in points.items()},
        visible={name: bool(((p >= 0) & (p <= size - 1)).all()) for name, p in points.items()},
        bbox=(*map(float, corners.min(0)), *map(float, corners.max(0))),  # pyright: ignore[reportArgumentType]
        kind=instance.kind,
        flipped=scene.flipped,
    )


def warped_pair(
    image_or_seed: np.ndarray | int,
    *,
    rotation: float | None = -24.0,
    scale: float | None = 0.8,
    pivot: tuple[float, float] | None = (0.0, 0.0),
    recolour: bool = True,
    border: Border = "edge",
    size: int = 256,
    grid: int = 16,
    seed: int = 0,
) -> WarpedPair:
    """A picture and a rotated, scaled and recoloured copy of it, with the exact map between them.

    The map leaves one point in place, the pivot, and everything else moves the more the further it is from there. With
    the pivot in a corner, "the same coordinates" is a poor guess: PCK@0.1 of 4 to 8% on scikit-image's photographs with
    the defaults, below 10% for everything that is drawn.

    Args:
        image_or_seed: (H, W, 3) uint8, or the seed of a procedural scene.
        rotation: degrees, positive clockwise on the screen; None draws 18 to 30, either way.
        scale: None draws 0.72 to 0.85.
        pivot: the point that stays, as shares of width and height; None draws one just outside any corner.
        recolour: change the brightness and tint of the copy.
        border: what shows beyond the picture: its edge pixels repeated, the picture mirrored, or its mean colour.
        size: of a procedural scene, in pixels.
        grid: truth is given for a grid of this many points along the longer side, as far as both pictures show them.
        seed: of everything that is drawn.

    Raises:
        InputError: an image that is no (H, W, 3) uint8 array, or no point inside both pictures.
    """
    if isinstance(image_or_seed, int):
        source = sample_scene(image_or_seed, size).pixels
    else:
        source = _checked_picture(image_or_seed)
    random = np.random.default_rng([seed, 2])
    # All are drawn, whichever are given: giving one leaves the others as they were.
    drawn = float(random.uniform(18, 30) * random.choice([-1, 1])), random.uniform(0.72, 0.85), _random_pivot(random)
    rotation = drawn[0] if rotation is None else rotation
    scale = drawn[1] if scale is None else scale
    pivot = drawn[2] if pivot is None else pivot
    height, width = source.shape[:2]
    matrix = _similarity(rotation, scale, (pivot[0] * width - 0.5, pivot[1] * height - 0.5))
    target = warp_image(source, matrix, border=border)
    if recolour:
        tinted = target * random.uniform(0.7, 1.3, 3) + random.normal(size=3) * 12
        target = np.clip(tinted, 0, 255).astype(np.uint8)
    points = _grid_points(height, width, grid)
    moved = apply_homography(matrix, points)
    limit = torch.tensor([width - 1, height - 1])
    inside = ((moved >= 0) & (moved <= limit)).all(1)
    if not bool(inside.any()):
        raise InputError.of("pivot", pivot, "a point that leaves some of the picture inside the copy")
    return WarpedPair(source, target, points[inside], moved[inside], matrix)


def warp_image(image: np.ndarray, matrix: Tensor, *, border: Border = "edge") -> np.ndarray:
    """The picture under a homography, bicubic, at the same size.

    Args:
        image: (H, W, 3) uint8.
        matrix: (3, 3) from source to target, both in pixel-index coordinates: a dot centred on p shows up at matrix(p).
        border: what shows beyond the picture.
    """
    height, width = _checked_picture(image).shape[:2]
    backward = torch.linalg.inv(matrix.double())
    corners = torch.tensor([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=torch.float64)
    seen = apply_homography(backward, corners)
    reach = torch.cat([-seen, seen - torch.tensor([width - 1, height - 1])]).max().item()
    margin = max(0, math.ceil(reach)) + 3  # and the bicubic filter's own reach
    if border == "plain":
        padded = np.full([side + 2 * margin for side in (height, width)] + [3], image.mean((0, 1)).round(), np.uint8)
        padded[margin : margin + height, margin : margin + width] = image
    else:
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode=border)
    # Pillow maps the centre (x + 0.5, y + 0.5) of an output pixel to the input, where pixel 0 covers [0, 1].
    into_padded = _translation(margin + 0.5) @ backward @ _translation(-0.5)
    coefficients = (into_padded / into_padded[2, 2]).flatten()[:8].tolist()
    warped = Image.fromarray(padded).transform(
        (width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    return np.array(warped)


def apply_homography(matrix: Tensor, points: Tensor) -> Tensor:
    """(K, 2) points (x, y) mapped by a (3, 3) homography, in the points' dtype."""
    homogeneous = torch.cat([points.double(), torch.ones(len(points), 1, dtype=torch.float64)], dim=1)
    mapped = homogeneous @ matrix.double().T
    return (mapped[:, :2] / mapped[:, 2:]).to(points.dtype)


def _similarity(degrees: float, scale: float, pivot: tuple[float, float]) -> Tensor:
    """Rotation (clockwise on the screen, y being down) and scale about a point that stays."""
    cos, sin = (scale * f(math.radians(degrees)) for f in (math.cos, math.sin))
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    return _translation(*pivot) @ turn @ _translation(-pivot[0], -pivot[1])


def _translation(x: float, y: float | None = None) -> Tensor:
    return torch.tensor([[1, 0, x], [0, 1, x if y is None else y], [0, 0, 1]], dtype=torch.float64)


def _random_pivot(random: np.random.Generator) -> tuple[float, float]:
    x, y = random.uniform(-0.06, 0.0, 2)
    return (float(x if random.random() < 0.5 else 1 - x), float(y if random.random() < 0.5 else 1 - y))


def _grid_points(height: int, width: int, count: int) -> Tensor:
    """(K, 2) float32: the centres of about square cells, ``count`` along the longer side."""
    cell = max(height, width) / count
    xs, ys = (torch.arange(round(side / cell)) for side in (width, height))
    x, y = (xs + 0.5) * (width / len(xs)) - 0.5, (ys + 0.5) * (height / len(ys)) - 0.5
    return torch.cartesian_prod(y, x).flip(1).float()


def _checked_picture(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}".strip()
        raise InputError.of("image", got, "a (H, W, 3) uint8 array")
    return image


def _random_placement(random: np.random.Generator, instance: Instance, flipped: bool, share: float) -> np.ndarray:
    """Flip, stretch, shear and turn a little; then the larger side fills ``share`` of the picture, anywhere in it."""
    angle = random.normal() * 0.2
    cos, sin = np.cos(angle), np.sin(angle)
    sheared = np.array([[random.uniform(0.88, 1.14), 0], [random.normal() * 0.06, 1]])
    turn = np.diag([-1.0 if flipped else 1.0, 1.0]) @ sheared @ np.array([[cos, sin], [-sin, cos]])
    corners = instance.outline @ turn
    low, high = corners.min(0), corners.max(0)
    zoom = share / (high - low).max()
    offset = random.random(2) * (1 - (high - low) * zoom) - low * zoom
    return np.vstack([turn * zoom, offset])


def _random_texture(random: np.random.Generator) -> np.ndarray | None:
    """None, stripes, spots or clouds: brightness to add, on a small grid."""
    style = random.integers(4)
    if style == 0:
        return None
    if style == 1:
        y, x = np.mgrid[:64, :64] / 64
        angle, period = random.uniform(0, np.pi), random.uniform(0.0625, 0.1875)
        return 0.2 * np.sign(np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)))
    if style == 2:
        fine = _stretched_map(random.normal(size=(33, 33)), 128)
        return 0.22 * (fine > 0.5)
    return 0.13 * random.normal(size=(11, 11))


def _plain_backdrop(random: np.random.Generator) -> np.ndarray:
    return np.clip(random.normal(size=(3, 3, 3)) * 0.05 + random.random(3) * 0.9 + 0.05, 0, 1)


def _random_background(random: np.random.Generator) -> tuple[np.ndarray, tuple[Part, ...], float]:
    colour = random.random(3) * 0.9 + 0.05
    backdrop = np.clip(random.normal(size=(5, 5, 3)) * random.uniform(0.02, 0.25) + colour, 0, 1)
    if random.random() >= 0.6:
        return backdrop, (), 0.0
    parts = tuple(_random_shape(random) for _ in range(random.integers(4, 45)))
    return backdrop, parts, random.uniform(0.004, 0.03) if random.random() < 0.6 else 0.0


def _random_shape(random: np.random.Generator) -> Part:
    size = min(0.45, 0.03 / (random.random() + 0.05))  # many small ones, few large ones
    angle = np.sort(random.random(20 if random.random() < 0.5 else random.integers(3, 6))) * 2 * np.pi
    radii = size * random.uniform(0.4, 1.0, 2)
    outline = random.random(2) + np.stack([np.cos(angle), np.sin(angle)], 1) * radii
    return Part(outline, hsv(random.random(), random.uniform(0, 0.9), random.uniform(0.1, 1)))


def _placed(points: np.ndarray, placement: np.ndarray) -> np.ndarray:
    return points @ placement[:2] + placement[2]


def _draw(canvas: Image.Image, outline: np.ndarray, colour: np.ndarray, texture: np.ndarray | None) -> None:
    """Fill a polygon, with the texture's brightness added where there is one."""
    corners = [(float(x), float(y)) for x, y in outline - 0.5]
    if texture is None:
        ImageDraw.Draw(canvas).polygon(corners, fill=tuple(_bytes(colour).tolist()))
        return
    side = canvas.width
    x0, y0 = np.clip(np.floor(outline.min(0)).astype(int) - 1, 0, side - 1)
    x1, y1 = np.clip(np.ceil(outline.max(0)).astype(int) + 1, 1, side)
    mask = Image.new("L", (int(x1 - x0), int(y1 - y0)))
    ImageDraw.Draw(mask).polygon([(x - x0, y - y0) for x, y in corners], fill=255)
    surface = _bytes(np.clip(colour, 0, 1) + texture[y0:y1, x0:x1, None])
    canvas.paste(Image.fromarray(surface), (int(x0), int(y0)), mask)


def _stretched(colours: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(_bytes(colours)).resize((side, side), Image.Resampling.BICUBIC)


def _stretched_map(values: np.ndarray, side: int) -> np.ndarray:
    """(n, n) -> (side, side) float32."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))


def _bytes(colour: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
