"""What a sweep is scored on: pictures and known warps of themselves, or pairs with keypoints.

One half of the targets serves the choice of a setting, the other its report: every second warp of a picture; of pairs,
a half drawn once and for all, since files often list kinds or views in turn.

Points are (x, y) in pixel-index coordinates, sizes are (H, W).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .errors import InputError
from .images import load_image, prepare
from .types import ExtractConfig, checked_points
from .warps import warped_copy

__all__ = ["Case", "LabelledPair", "Source", "Target", "labelled_sources", "read_pairs", "warped_sources"]

_GRID = 10  # points along the longer side of a warped picture
_KEYS = ("source", "target", "source_points", "target_points", "length", "category")


@dataclass(frozen=True)
class LabelledPair:
    """Two pictures with points of one found in the other.

    Attributes:
        source, target: anything the extractor takes.
        source_points, target_points: K corresponding (x, y) pixels of each.
        length: an error counts as right up to alpha times this many pixels of the target, such as the larger side of
            the object's box; None: the larger side of the picture.
        category: fills ``{category}`` in the prompt.
    """

    source: Any
    target: Any
    source_points: tuple[tuple[float, float], ...]
    target_points: tuple[tuple[float, float], ...]
    length: float | None = None
    category: str | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """A picture to find points in.

    Attributes:
        picture: (H, W, 3) uint8.
        points, truth: (K, 2) float32 pixels of the source and of this picture.
        length: an error counts as right up to alpha times this many pixels.
        category: of the pair, or None.
    """

    picture: np.ndarray
    points: Tensor
    truth: Tensor
    length: float
    category: str | None


@dataclass(frozen=True, eq=False)
class Case:
    """A picture, (H, W, 3) uint8, and those its points are to be found in."""

    picture: np.ndarray
    targets: tuple[Target, ...]


@dataclass(frozen=True, eq=False)
class Source:
    """A case that is read when it is needed.

    Attributes:
        key: SHA-256 of all that decides pixels, points and lengths.
        halves: one per target: 0 serves the choice, 1 is held out.
        categories: all that its targets have.
        side: of the picture as the model sees it, the longer one, in pixels.
        load: gives the case.
    """

    key: str
    halves: tuple[int, ...]
    categories: tuple[str | None, ...]
    side: int
    load: Callable[[], Case]


def warped_sources(
    images: Iterable[Any], config: ExtractConfig, pixels_per_token: int, *, warps: int, seed: int
) -> list[Source]:
    """Every picture, no larger than the model sees it, and rotated, scaled and recoloured copies of it.

    A picture given twice counts once.

    Raises:
        InputError: no pictures, or unreadable ones.
    """
    found: dict[str, Source] = {}
    for image in images:
        picture, side = _as_seen(image, config, pixels_per_token)
        key = _digest("warps", warps, seed, _GRID, picture)

        def load(image: Any = image) -> Case:
            return _warped_case(_as_seen(image, config, pixels_per_token)[0], warps, seed)

        found.setdefault(key, Source(key, tuple(warp % 2 for warp in range(warps)), (None,), side, load))
    if not found:
        raise InputError.of("images", "none", "at least one picture")
    return list(found.values())


def labelled_sources(pairs: Sequence[LabelledPair], config: ExtractConfig, pixels_per_token: int) -> list[Source]:
    """The pairs, those of one source picture together.

    Raises:
        InputError: fewer than two pairs, points outside their picture, pictures that cannot be read.
    """
    if len(pairs) < 2:
        raise InputError.of("points", f"{len(pairs)} pairs", "two or more: one half chooses, the other reports")
    held_out = set(np.random.default_rng(0).permutation(len(pairs))[: len(pairs) // 2].tolist())
    groups: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(_digest(_pixels(pair.source)), []).append(i)
    sources = []
    for members in groups.values():
        own = [pairs[i] for i in members]
        case = _labelled_case(own)
        facts = [v for t in case.targets for v in (t.picture, t.points.numpy(), t.truth.numpy(), t.length, t.category)]
        key = _digest("labels", case.picture, *facts)
        categories = tuple(dict.fromkeys(pair.category for pair in own))
        side = max(prepare(case.picture, config, pixels_per_token).pixels.shape[:2])

        def load(own: list[LabelledPair] = own) -> Case:
            return _labelled_case(own)

        sources.append(Source(key, tuple(int(i in held_out) for i in members), categories, side, load))
    return sources


def read_pairs(path: str | os.PathLike[str]) -> list[LabelledPair]:
    """Pairs of a JSON file; paths of pictures are relative to the file's folder.

    .. code-block:: json

        {"pairs": [{"source": "cat-1.jpg", "target": "cat-2.jpg",
                    "source_points": [[120, 80], [64, 31.5]], "target_points": [[98, 60], [50, 22]],
                    "length": 240, "category": "cat"}]}

    ``length`` (pixels of the target; default its larger side) and ``category`` (fills ``{category}`` in the prompt)
    may be left out.

    Raises:
        InputError: a file that is missing, unreadable or malformed; names the pair.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"points: no such file: {path}; check the path (now in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"points: {path} cannot be read ({error}); give a JSON file of pairs") from None
    rows = document.get("pairs") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(
            f'points: {path} holds no pairs; expected {{"pairs": [{{"source": ..., "target": ..., '
            '"source_points": [[x, y], ...], "target_points": [[x, y], ...]}]}'
        )
    return [_pair(row, path.parent, f"{path}, pair {number}") for number, row in enumerate(rows, 1)]


def _pair(row: Any, folder: Path, where: str) -> LabelledPair:
    if not isinstance(row, dict):
        raise InputError(f"points: {where}: got {row!r}, expected an object")
    if unknown := [name for name in row if name not in _KEYS]:
        raise InputError(f"points: {where}: got {unknown[0]!r}, expected {', '.join(_KEYS)}")
    if missing := [name for name in _KEYS[:4] if name not in row]:
        raise InputError(f"points: {where}: {missing[0]!r} is missing")
    for name in ("source", "target", "category"):
        if name in row and not isinstance(row[name], str):
            raise InputError(f"points: {where}: {name} is {row[name]!r}, expected a text")
    if "length" in row and not _is_positive(row["length"]):
        raise InputError(f"points: {where}: length is {row['length']!r}, expected a positive number of pixels")
    points, truth = (_points(row[name], f"{where}: {name}") for name in ("source_points", "target_points"))
    pictures = str(folder / row["source"]), str(folder / row["target"])
    return LabelledPair(*pictures, points, truth, row.get("length"), row.get("category"))


def _points(rows: Any, where: str) -> tuple[tuple[float, float], ...]:
    try:
        return tuple((float(x), float(y)) for x, y in rows)
    except (TypeError, ValueError):
        raise InputError(f"points: {where} is {rows!r}, expected [[x, y], ...]") from None


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _as_seen(image: Any, config: ExtractConfig, pixels_per_token: int) -> tuple[np.ndarray, int]:
    """A picture no larger than the model sees it, and the longer side of what the model sees."""
    picture = load_image(image)
    side = max(prepare(picture, config, pixels_per_token).pixels.shape[:2])
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.array(picture), side


def _warped_case(picture: np.ndarray, warps: int, seed: int) -> Case:
    targets = []
    for warp in range(warps):
        # from the picture's own pixels: the same picture has the same warps in any list, two pictures have others
        drawn = int(_digest(seed, warp, picture)[:15], 16)
        pair = warped_copy(picture, grid=_GRID, seed=drawn)
        length = float(max(picture.shape[:2]))
        targets.append(Target(pair.target, pair.source_points, pair.target_points, length, None))
    return Case(picture, tuple(targets))


def _labelled_case(pairs: Sequence[LabelledPair]) -> Case:
    picture = _pixels(pairs[0].source)
    targets = []
    for pair in pairs:
        target = _pixels(pair.target)
        points = checked_points("source_points", pair.source_points, (picture.shape[0], picture.shape[1]))
        truth = checked_points("target_points", pair.target_points, (target.shape[0], target.shape[1]))
        if len(points) != len(truth) or not len(points):
            raise InputError.of("target_points", len(truth), f"as many as source_points ({len(points)}), at least one")
        length = float(max(target.shape[:2]) if pair.length is None else pair.length)
        targets.append(Target(target, points, truth, length, pair.category))
    return Case(picture, tuple(targets))


def _pixels(image: Any) -> np.ndarray:
    return np.array(load_image(image))


def _digest(*parts: Any) -> str:
    """SHA-256 of arrays (shape, dtype and bytes) and of plain values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"|{part.shape}{part.dtype}|".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(f"|{part!r}|".encode())
    return digest.hexdigest()
