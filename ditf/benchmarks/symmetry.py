"""Which points of an object are alike, and which change places in a mirror: the hard part of semantic matching.

GeoAware-SC (Zhang et al., arXiv 2311.17034) scores its geometry-aware subset apart: points of which the target shows
another of the same kind (a left and a right ear), so that telling them apart takes geometry. Its pose alignment asks
of a mirrored image where each point's counterpart is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

__all__ = ["Symmetry", "geometry_aware", "mirror_places", "of_names", "read_symmetry"]

EVERY = "*"
_SIDES = {"left": "right", "right": "left"}
_PLACES = ("left", "right", "front", "back")


@dataclass(frozen=True)
class Symmetry:
    """Of every category's points, by the ids that the data set gives them.

    Attributes:
        alike: category -> groups of ids of one kind; an id is in one group at most. "*": categories not named.
        mirror: category -> id -> the id that takes its place in a mirror; an id not named is its own. Not known of a
            category that is not named where there is no "*".
        about: where this comes from, as plain JSON values.
    """

    alike: Mapping[str, tuple[tuple[str, ...], ...]]
    mirror: Mapping[str, Mapping[str, str]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def groups(self, category: str) -> tuple[tuple[str, ...], ...]:
        return self.alike.get(category, self.alike.get(EVERY, ()))

    def counterpart(self, category: str, point: str) -> str:
        return self.mirror.get(category, self.mirror.get(EVERY, {})).get(point, point)

    def check(self, categories: Collection[str], mirror: bool) -> None:
        """Whether every category is described, its counterparts in a mirror too where ``mirror`` asks for them.

        Raises:
            InputError: one is not; its points would be left out, or matched by another's place, in silence.
        """
        missing = sorted(c for c in categories if c not in self.alike and EVERY not in self.alike)
        if missing:
            names = ", ".join(missing)
            raise InputError(f'--symmetry: nothing is said of {names}; add "{missing[0]}": {{}} if no points are alike')
        unknown = sorted(c for c in categories if c not in self.mirror and EVERY not in self.mirror)
        if mirror and unknown:
            names = ", ".join(unknown)
            raise InputError(f'--symmetry: "mirror" is missing for {names}; give [] where no points change places')


def geometry_aware(ids: Sequence[str], seen: Collection[str], groups: Sequence[Sequence[str]]) -> np.ndarray:
    """(K,) bool: which points have company of their own kind in the target.

    Args:
        ids: K points that both images show.
        seen: all points that the target shows.
        groups: ids of one kind each; a point counts where the target shows two or more of its group.
    """
    crowded = {point for group in groups if len(set(group) & set(seen)) >= 2 for point in group}
    return np.array([point in crowded for point in ids], bool)


def mirror_places(
    ids: Sequence[str], places: Mapping[str, Sequence[float]], symmetry: Symmetry, category: str
) -> np.ndarray:
    """(K, 2) float64 where in the source each point's counterpart is, NaN where the source does not show it.

    Args:
        ids: K points.
        places: (x, y) of all points that the source shows.
    """
    nowhere = (np.nan, np.nan)
    found = [places.get(symmetry.counterpart(category, point), nowhere) for point in ids]
    return np.array(found, np.float64).reshape(-1, 2)


def of_names(names: Sequence[str], about: Mapping[str, Any]) -> Symmetry:
    """One description for every category, of points whose names say it, such as "left front paw".

    Points are alike that have one name but for left, right, front and back; in a mirror left and right change places.
    The ids are the positions in the list.
    """
    kinds: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        kinds.setdefault(" ".join(w for w in name.split() if w not in _PLACES), []).append(str(i))
    mirror = {}
    for i, name in enumerate(names):
        other = " ".join(_SIDES.get(word, word) for word in name.split())
        if other != name:
            mirror[str(i)] = str(list(names).index(other))
    return Symmetry({EVERY: tuple(tuple(k) for k in kinds.values() if len(k) > 1)}, {EVERY: mirror}, about)


def read_symmetry(path: Path) -> Symmetry:
    """From a JSON object: ``{"cat": {"alike": [["0", "1"], ...], "mirror": [["0", "1"], ...]}, ...}``.

    "alike" holds groups of ids of one kind, "mirror" pairs of ids that change places in a mirror, which only pose
    alignment needs; "*" stands for categories that are not named.

    Raises:
        InputError: no such file, or content of another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--symmetry: no such file: {path} (now in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--symmetry: {path} cannot be read ({error}); give a JSON object of categories") from None
    if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
        raise InputError(f'--symmetry: {path} is no JSON object of categories, such as {{"cat": {{"alike": []}}}}')
    alike, mirror = {}, {}
    for category, one in content.items():
        if unknown := sorted(set(one) - {"alike", "mirror"}):
            raise InputError.of(f"--symmetry {category}", unknown[0], '"alike" and "mirror"')
        groups = _groups(f"--symmetry {category}: alike", one.get("alike", []), least=2)
        alike[category] = tuple(groups)
        if "mirror" in one:
            pairs = _groups(f"--symmetry {category}: mirror", one["mirror"], least=2, most=2)
            mirror[category] = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    return Symmetry(alike, mirror, {"file": path.name, "content": content})


def _groups(name: str, values: Any, least: int, most: int | None = None) -> list[tuple[str, ...]]:
    """Raises InputError unless these are lists of ids, none of them twice."""
    size = f"{least} ids" if most == least else f"{least} or more ids"
    if not isinstance(values, list) or not all(isinstance(group, list) for group in values):
        raise InputError.of(name, values, f"a list of lists of {size}")
    groups = [tuple(str(i) for i in group) for group in values]
    for group in groups:
        if len(group) < least or (most is not None and len(group) > most):
            raise InputError.of(name, list(group), f"lists of {size}")
    ids = [i for group in groups for i in group]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise InputError.of(name, f"{twice[0]} twice", "every id once")
    return groups
