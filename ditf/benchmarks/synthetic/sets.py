"""What is evaluated on: sets of pairs, each drawn from seeds of its own.

A picture serves in several pairs, so that forwards are few. Pairs that share a picture stand in one group. The first
groups of a large run are those of a small one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from ...errors import InputError
from ...tiny.kinds import HELD_OUT_KINDS, KINDS
from ...tiny.scenes import HELD_OUT_STYLES, STYLES, TEST_SEED, VALIDATION_SEED, SceneImage, sample_scene
from ...tiny.views import view_pair
from ...warps import WarpedPair, apply_homography, warped_copy
from .cases import PHOTOGRAPH_SIDE, PHOTOGRAPHS, SCENE_SIDE, VALIDATION_PHOTOGRAPHS, Case, photograph

__all__ = ["FULL", "PAIR_SETS", "QUICK", "Group", "PairSet", "Split", "find_sets"]

Split = Literal["test", "validation"]

QUICK, FULL = 400, 4000
"""Pairs of all sets together."""

_SEEDS = {"test": TEST_SEED, "validation": VALIDATION_SEED}
_SEEDS_OF_A_SET, _SEEDS_OF_A_GROUP = 50_000, 10
_GRID = 10  # points along the longer side of a picture


@dataclass(frozen=True, eq=False)
class Group:
    """Pictures and the pairs among them.

    Attributes:
        name: such as "semantic/3".
        category: that averages are taken over: a kind, a style, a photograph.
        word: what the pictures show, for a model that reads a text.
        cases: the pairs; a picture that stands in several of them is one object.
        clusters: per case: cases of one name share what is drawn when an interval is made.
    """

    name: str
    category: str
    word: str
    cases: tuple[Case, ...]
    clusters: tuple[str, ...]

    @property
    def pictures(self) -> list[np.ndarray]:
        """Every picture once, in the order in which the cases name them."""
        return list({id(one): one for case in self.cases for one in (case.source, case.target)}.values())


@dataclass(frozen=True)
class PairSet:
    """A kind of pair.

    Attributes:
        name: on the command line.
        about: one sentence.
        task: whose preset holds.
        share: of all pairs.
        pairs: in a group.
        categories: that groups take turns in; those of validation are others where they are said.
        number: of its seeds.
    """

    name: str
    about: str
    task: Literal["semantic", "geometric"]
    share: float
    pairs: int
    categories: tuple[str, ...]
    number: int
    make: Callable[[str, int, int], tuple[list[Case], list[str], str]] = field(repr=False)
    validation: tuple[str, ...] | None = None

    def count_groups(self, pairs: int) -> int:
        """How many groups are the set's part of about ``pairs`` pairs in all sets: one or more."""
        return max(1, round(pairs * self.share / self.pairs))

    def groups(self, pairs: int, split: Split = "test") -> Iterator[Group]:
        """They are drawn as they are asked for."""
        names = self.categories if split == "test" or self.validation is None else self.validation
        for i in range(self.count_groups(pairs)):
            category = names[i % len(names)]
            seed = _SEEDS[split] + _SEEDS_OF_A_SET * self.number + _SEEDS_OF_A_GROUP * i
            cases, clusters, word = self.make(category, i // len(names), seed)
            yield Group(f"{self.name}/{i}", category, word, tuple(cases), tuple(f"{i}/{one}" for one in clusters))


def find_sets(names: Sequence[str] | None) -> list[PairSet]:
    """Sets of pairs by name, in their own order; None: all.

    Raises:
        InputError: an unknown name.
    """
    for name in names or ():
        if name not in PAIR_SETS:
            raise InputError.of("sets", name, f"one or more of {', '.join(PAIR_SETS)}, joined by commas")
    return [one for one in PAIR_SETS.values() if names is None or one.name in names]


# --- parts of one instance in another ---------------------------------------------------------------------------------


def _instances(kind: str, turn: int, seed: int) -> tuple[list[Case], list[str], str]:
    return _semantic(kind, turn, seed, STYLES)


def _instances_in_style(style: str, turn: int, seed: int) -> tuple[list[Case], list[str], str]:
    kinds = tuple(KINDS)
    hard = turn + turn // len(kinds)  # so that every kind has its turn both ways
    return _semantic(kinds[turn % len(kinds)], hard, seed, (style,))


def _semantic(
    kind: str, turn: int, seed: int, styles: Sequence[str], *, instances: int = 3
) -> tuple[list[Case], list[str], str]:
    """All ordered pairs of some instances of a kind: by turns filling a plain picture, or in clutter, turned away by up
    to half of what they can be, with something before them."""
    scenes = []
    for i in range(instances):
        random = np.random.default_rng([seed + i, 4])
        style = str(random.choice(list(styles)))
        hard = {"clutter": True, "occluders": 1, "viewpoint": float(random.uniform(0, 0.5))} if turn % 2 else {}
        scenes.append(sample_scene(seed + i, SCENE_SIDE, kind, style=style, **hard))
    cases = [
        case for one in scenes for other in scenes if one is not other and (case := _same_parts(one, other)) is not None
    ]
    return cases, ["all"] * len(cases), kind


def _same_parts(one: SceneImage, other: SceneImage) -> Case | None:
    """Parts that both show; the reference length is the larger side of the target's box. None where there is none."""
    names = [name for name in one.keypoints if one.visible[name] and other.visible[name]]
    if not names:
        return None
    points, truth = (torch.tensor([scene.keypoints[name] for name in names]) for scene in (one, other))
    x0, y0, x1, y1 = other.bbox
    return Case(one.pixels, other.pixels, points, truth, max(x1 - x0, y1 - y0))


# --- one thing twice --------------------------------------------------------------------------------------------------


def _two_views(category: str, turn: int, seed: int) -> tuple[list[Case], list[str], str]:
    kind = tuple(KINDS)[turn % len(KINDS)]
    style = str(np.random.default_rng([seed, 4]).choice(list(STYLES)))
    cases: list[Case] = []
    if category == "views":
        for i in range(3):
            pair = view_pair(seed + i, SCENE_SIDE, kind, style=style, grid=_GRID)
            cases += _both_ways(pair, SCENE_SIDE)
        return cases, [f"scene {i // 2}" for i in range(len(cases))], kind
    first = sample_scene(seed, SCENE_SIDE, kind, clutter=True, style=style)
    for i in range(1, 4):
        viewpoint = float(np.random.default_rng([seed + i, 4]).uniform(0.4, 1.0))
        second = sample_scene(seed, SCENE_SIDE, kind, clutter=True, style=style, viewpoint=viewpoint)
        cases += _turned(first, second, seed + i)
    return cases, ["all"] * len(cases), kind


def _turned(first: SceneImage, second: SceneImage, seed: int) -> list[Case]:
    """The second view, itself rotated, scaled and recoloured: parts of one instance, both ways."""
    copy = warped_copy(second.pixels, seed=seed)
    names = [name for name in first.keypoints if first.visible[name] and second.visible[name]]
    if not names:
        return []
    points, seen = (torch.tensor([scene.keypoints[name] for name in names]) for scene in (first, second))
    moved = apply_homography(copy.matrix, seen)
    inside = ((moved >= 0) & (moved <= SCENE_SIDE - 1)).all(1)
    if not bool(inside.any()):
        return []
    there, here = points[inside], moved[inside]
    return [
        Case(first.pixels, copy.target, there, here, float(SCENE_SIDE)),
        Case(copy.target, first.pixels, here, there, float(SCENE_SIDE)),
    ]


def _photographs(name: str, turn: int, seed: int) -> tuple[list[Case], list[str], str]:
    """Four copies of a photograph; the pairs of one copy are a cluster, as it is the copies that are drawn."""
    picture = photograph(name, PHOTOGRAPH_SIDE)
    pairs = [warped_copy(picture, grid=_GRID, seed=seed + i) for i in range(4)]
    cases = [
        dataclasses.replace(case, source=one, target=other)  # one object for the picture in all of its pairs
        for pair in pairs
        for case, (one, other) in zip(
            _both_ways(pair, PHOTOGRAPH_SIDE), ((picture, pair.target), (pair.target, picture)), strict=True
        )
    ]
    return cases, [f"copy {i // 2}" for i in range(len(cases))], name


def _both_ways(pair: WarpedPair, length: float) -> list[Case]:
    there, here = pair.source_points, pair.target_points
    return [
        Case(pair.source, pair.target, there, here, float(length), pair.matrix),
        Case(pair.target, pair.source, here, there, float(length), torch.linalg.inv(pair.matrix)),
    ]


_HARD = "every second group in clutter, turned away by up to 27 degrees, something before it"
_WARP = "rotated by 18 to 30 degrees, scaled by 0.72 to 0.85 about a point just outside a corner, recoloured; both ways"

PAIR_SETS: dict[str, PairSet] = {
    one.name: one
    for one in (
        PairSet(
            "semantic", f"Parts of one instance in another of its kind, of the kinds and styles of training; {_HARD}.",
            "semantic", 0.30, 6, tuple(KINDS), 0, _instances,
        ),
        PairSet(
            "held-out-kinds", f"The same of kinds that training never draws; {_HARD}.",
            "semantic", 0.18, 6, tuple(HELD_OUT_KINDS), 1, _instances,
        ),
        PairSet(
            "held-out-styles", f"The same of the kinds of training, in styles that it never draws; {_HARD}.",
            "semantic", 0.18, 6, HELD_OUT_STYLES, 2, _instances_in_style,
        ),
        PairSet(
            "geometric", "Two perspective views of one cluttered scene; one instance from the front and turned away "
            f"by 13 to 55 degrees, {_WARP}.", "geometric", 0.18, 6, ("views", "turned"), 3, _two_views,
        ),
        PairSet(
            "photographs", f"Photographs that lie in scikit-image's package and their copies, {_WARP}.",
            "geometric", 0.16, 8, PHOTOGRAPHS, 4, _photographs, VALIDATION_PHOTOGRAPHS,
        ),
    )
}  # fmt: skip
