"""What a data set of labelled pairs is read into, and what is said about the part of it that cannot be used.

Points are (x, y) in pixel-index coordinates as the annotations have them, sizes are (H, W).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..store import digest

__all__ = ["DAMAGE", "ImageInfo", "Pair", "PairSet", "Problems", "index_images", "read_json"]

DAMAGE = ("missing image", "unreadable image", "missing annotation", "malformed annotation", "unknown category")
"""Problems that leave out pairs which a whole data set has: a score without them is not comparable."""

_NAMED = 20  # names of one kind in a result file


class Problems:
    """What was left out or altered, by kind; counted, and the first of each kind named."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def copy(self) -> Problems:
        other = Problems()
        other._found = {kind: list(names) for kind, names in self._found.items()}
        return other

    def add(self, kind: str, name: str) -> None:
        self._found.setdefault(kind, []).append(name)

    def count(self, kind: str) -> int:
        return len(self._found.get(kind, []))

    def __bool__(self) -> bool:
        return bool(self._found)

    def names(self, kind: str) -> list[str]:
        return list(self._found.get(kind, []))

    @property
    def damage(self) -> bool:
        """Whether pairs are missing that a whole data set has."""
        return any(self.count(kind) for kind in DAMAGE)

    def to_dict(self) -> dict[str, Any]:
        return {kind: {"count": len(v), "first": sorted(v)[:_NAMED]} for kind, v in sorted(self._found.items())}

    def sentences(self) -> list[str]:
        """One per kind, for people."""
        said = []
        for kind, names in sorted(self._found.items()):
            some = ", ".join(sorted(names)[:3])
            said.append(f"{kind}: {len(names)} ({some}{', ...' if len(names) > 3 else ''})")
        return said


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images and points of one that are found in the other.

    Attributes:
        name: unique in its set.
        category: what scores are averaged by.
        source, target: image files.
        source_size, target_size: (H, W) as annotated, or None where the annotations do not say.
        points, truth: (K, 2) float64 corresponding points of source and target.
        lengths: reference lengths in pixels of the target that its annotations give, by name: "box", ...
        source_prompt, target_prompt: what fills ``{category}`` in the prompt of each image.
        factors: by what the points of source and target are multiplied once they are on the canvas, (K,) each, where a
            published evaluator does that to points it takes for half visible; None: they are not.
        geometry: (K,) bool which points are geometry-aware, see :mod:`ditf.benchmarks.symmetry`; None: not known.
        counterparts: (K, 2) float64 where in the source each point's counterpart in a mirror is, NaN where it is not
            seen; None: not known.
    """

    name: str
    category: str
    source: Path
    target: Path
    source_size: tuple[int, int] | None
    target_size: tuple[int, int] | None
    points: np.ndarray
    truth: np.ndarray
    lengths: Mapping[str, float]
    source_prompt: str
    target_prompt: str
    factors: tuple[np.ndarray, np.ndarray] | None = None
    geometry: np.ndarray | None = None
    counterparts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class PairSet:
    """The pairs of one split, in the order in which they are listed.

    Attributes:
        benchmark, split: which.
        folder: where it was read.
        pairs: those with at least one point to score.
        problems: what is not among them, and why.
        facts: what the reader knows about the list: where it comes from, whether it is the published one.
    """

    benchmark: str
    split: str
    folder: Path
    pairs: tuple[Pair, ...]
    problems: Problems
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def list_hash(self) -> str:
        """SHA-256 of the names and points: two equal hashes mean the same work."""
        return digest([[p.name, p.category, p.points.tolist(), p.truth.tolist()] for p in self.pairs])

    @property
    def categories(self) -> list[str]:
        return sorted({pair.category for pair in self.pairs})


@dataclass(frozen=True)
class ImageInfo:
    """A readable image file: SHA-256 of its bytes, and (H, W) of its pixels as stored."""

    digest: str
    size: tuple[int, int]


def index_images(
    paths: Iterable[Path], problems: Problems, progress: Callable[[int, int], None] | None = None
) -> dict[Path, ImageInfo]:
    """Read and decode every image once, before any model runs; those that cannot be are named in ``problems``."""
    from PIL import Image

    found: dict[Path, ImageInfo] = {}
    distinct = sorted(set(paths))
    for done, path in enumerate(distinct):
        if progress is not None:
            progress(done, len(distinct))
        if not path.is_file():
            problems.add("missing image", str(path))
            continue
        try:
            content = path.read_bytes()
            with Image.open(path) as image:
                image.load()
                found[path] = ImageInfo(hashlib.sha256(content).hexdigest(), (image.height, image.width))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            problems.add("unreadable image", str(path))
    if progress is not None:
        progress(len(distinct), len(distinct))
    return found


def read_json(path: Path, problems: Problems, name: str | None = None) -> dict[str, Any] | None:
    """A JSON object, or None with the reason noted."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.add("missing annotation", name or str(path))
        return None
    except (OSError, ValueError):
        problems.add("malformed annotation", name or str(path))
        return None
    if not isinstance(content, dict):
        problems.add("malformed annotation", name or str(path))
        return None
    return content


def as_points(values: Any) -> np.ndarray:
    """(K, 2) float64.

    Raises:
        ValueError: anything that is not K times two finite numbers.
    """
    points = np.asarray(values, dtype=np.float64).reshape(-1, 2) if len(values) else np.zeros((0, 2))
    if len(points) != len(values) or not np.isfinite(points).all():
        raise ValueError("points are not K times two finite numbers")
    return points


def check_split(split: str, known: Sequence[str], benchmark: str) -> None:
    """Raises InputError for a split that the data set does not have."""
    if split not in known:
        raise InputError.of("--split", split, f"one of {', '.join(known)} for {benchmark}")
