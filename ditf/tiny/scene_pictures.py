"""Pictures of the procedural scenes, for the documentation.

python -m ditf.tiny.scene_pictures --out docs/scenes
"""

from __future__ import annotations

import argparse
import colorsys
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import DitfError, StoreError
from ..types import write_atomically
from .scenes import ALL_KINDS, HELD_OUT_KINDS, HELD_OUT_STYLES, KINDS, STYLES, SceneImage, sample_scene, scene_pair
from .views import view_pair

__all__ = ["clip_picture", "kinds_picture", "main", "pairs_picture", "views_picture"]

_GAP = 4


def kinds_picture(side: int = 80) -> Image.Image:
    """Every kind, one a column, in every style, one a row, with its named points."""
    seeds = dict(zip(ALL_KINDS, (3, 4, 5, 6, 7, 13, 10, 11), strict=True))
    return _sheet(
        [_marked(sample_scene(seeds[kind], side, kind, style=style), radius=1) for kind in ALL_KINDS]
        for style in STYLES + HELD_OUT_STYLES
    )


def pairs_picture(side: int = 104) -> Image.Image:
    """Six semantic pairs, a column each: points of one name have one colour, hidden ones are left out."""
    hard = {"clutter": True, "occluders": 2, "viewpoint": 0.7}
    pairs = [
        scene_pair(1, side, "quad"),
        scene_pair(2, side, "bird", style="shaded"),
        scene_pair(3, side, "car", style="rough", **hard),
        scene_pair(4, side, "fish", style="shaded", **hard),
        scene_pair(5, side, "aeroplane", viewpoint=0.7),
        scene_pair(6, side, "person", style="line", occluders=2),
    ]
    return _sheet([[_marked(pair[row], radius=2) for pair in pairs] for row in range(2)])


def views_picture(side: int = 104, grid: int = 4) -> Image.Image:
    """Six scenes under two views, a column each: points of one colour are one point of the scene."""
    kinds, styles = ("car", "quad", "bird", "chair", "butterfly", "person"), STYLES + HELD_OUT_STYLES
    rows: list[list[np.ndarray]] = [[], []]
    for seed, (kind, style) in enumerate(zip(kinds, styles, strict=True), 40):
        pair = view_pair(seed, side, kind, style=style, grid=grid)
        for row, pixels, points in ((0, pair.source, pair.source_points), (1, pair.target, pair.target_points)):
            rows[row].append(_dotted(pixels, points.tolist(), radius=2))
    return _sheet(rows)


def clip_picture(frames: int = 5, step: int = 8) -> Image.Image:
    """Frames of two clips, a row each, and under each their masks."""
    from ..benchmarks.clips import make_clip

    rows = []
    for seed, kinds, style in ((20, tuple(KINDS), "shaded"), (23, tuple(HELD_OUT_KINDS), "line")):
        clip = make_clip(seed, frames * step, size=(90, 120), kinds=kinds, style=style)
        shown = [clip[t] for t in range(0, frames * step, step)]
        rows.append([frame.pixels for frame in shown])
        rows.append([_MASKS[frame.mask] for frame in shown])
    return _sheet(rows)


_MASKS = np.array([[30, 30, 34], [230, 120, 40], [60, 150, 230]], np.uint8)


def _marked(scene: SceneImage, radius: int) -> np.ndarray:
    """(H, W, 3) uint8 with the visible points in the colours of their names."""
    points = [point if scene.visible[name] else None for name, point in scene.keypoints.items()]
    return _dotted(scene.pixels, points, radius)


def _dotted(pixels: np.ndarray, points: Sequence[Sequence[float] | None], radius: int) -> np.ndarray:
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for number, point in enumerate(points):
        if point is None:
            continue
        red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(number / len(points), 1.0, 1.0))
        x, y = (round(v) for v in point)
        for grown, colour in ((1, (0, 0, 0)), (0, (red, green, blue))):
            reach = radius + grown
            draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=colour)
    return np.asarray(picture)


def _sheet(rows: Iterable[Iterable[np.ndarray]]) -> Image.Image:
    """Pictures of one size in rows, with white gaps, in 256 colours."""
    tiles = [list(row) for row in rows]
    height, width = tiles[0][0].shape[:2]
    size = len(tiles[0]) * (width + _GAP) - _GAP, len(tiles) * (height + _GAP) - _GAP
    sheet = Image.new("RGB", size, (255, 255, 255))
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            sheet.paste(Image.fromarray(tile), (j * (width + _GAP), i * (height + _GAP)))
    return sheet.quantize(256, kmeans=3, dither=Image.Dither.NONE)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ditf.tiny.scene_pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args(arguments).out
    pictures = {"kinds": kinds_picture, "pairs": pairs_picture, "views": views_picture, "clips": clip_picture}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in pictures.items():
            content = io.BytesIO()
            make().save(content, "PNG", optimize=True)
            write_atomically(folder / f"{name}.png", content.getvalue())
            print(f"{folder / name}.png: {len(content.getvalue()) / 1000:.0f} kB")
    except OSError as error:
        print(f"error: {StoreError(f'{folder}: cannot be written ({error.strerror})')}", file=sys.stderr)
        return 1
    except DitfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
