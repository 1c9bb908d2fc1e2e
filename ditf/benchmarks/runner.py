"""Every image's features once, every pair matched from them; stopped at any moment, it goes on from there.

Pairs are taken category by category: the images of one are extracted (or found in the store), their features at all
points of all pairs are read while each map is in memory, and then every target meets all of its queries in one call of
the kernel, which needs its Gram planes once. Finished units of a few hundred pairs are files of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..store import FeatureStore
from .methods import Method
from .pairs import ImageInfo, Pair, PairSet, Problems, index_images
from .protocols import Framed, Outside, Protocol, frame_pair
from .rules import MatchDtype, check_dtype
from .work import Found, Progress, Work, found_at, sides_of

__all__ = ["IDENTITY", "Evaluation", "Found", "Progress", "evaluate", "frame_pairs"]

IDENTITY = "identity"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        pairs: as they were scored, in the order of the data set's list.
        found: method name -> one :class:`Found` per pair; the identity among them.
        problems: what was left out or altered.
        images: how many distinct pictures (image and prompt) were used.
    """

    protocol: Protocol
    pairs: tuple[Framed, ...]
    found: Mapping[str, tuple[Found, ...]]
    problems: Problems
    images: int


def evaluate(
    methods: Sequence[Method],
    pairs: PairSet,
    protocol: Protocol,
    *,
    folder: str | os.PathLike[str],
    store: FeatureStore | None = None,
    outside: Outside = "clip",
    dtype: MatchDtype = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Match all pairs by all methods, and by the identity.

    Args:
        methods: of distinct names; they are run side by side, category by category.
        folder: where finished units are kept, created if missing; equal work finds them again.
        store: of features; default ``folder/features``, without a limit.
        outside: what becomes of source points outside their image.
        dtype: of the matching, see :func:`ditf.benchmarks.rules.queries_at`.

    Raises:
        InputError: methods of one name, nothing left to score, a dtype that the protocol does not have.
        ModelError: features that are not finite.
        StoreError: the folder cannot be written.

    Example:
        >>> protocol = PROTOCOLS["ditf-code"]
        >>> pairs = spair.read(Path("SPair-71k"), "test", protocol)
        >>> evaluation = evaluate([ModelMethod("ours", fx, protocol)], pairs, protocol, folder="work")
        >>> result_document(evaluation, pairs, find_benchmark("spair").about, card={})["methods"][0]["pck"]
    """
    names = [method.name for method in methods]
    if len(set(names)) != len(names) or IDENTITY in names:
        raise InputError.of("methods", names, f"distinct names, none of them {IDENTITY!r}")
    check_dtype(dtype, protocol)
    progress = progress or (lambda stage, done, total: None)
    work = Work(Path(folder), store, protocol, dtype, progress)
    problems = pairs.problems.copy()
    framed, images = frame_pairs(pairs, protocol, outside, problems, progress)
    found = work.run(methods, framed, images)
    found[IDENTITY] = [found_at(_identity(one), np.full(len(one.truth), np.nan), one, protocol) for one in framed]
    pictures = {(path, category) for one in framed for path, category in sides_of(one.pair)}
    return Evaluation(protocol, tuple(framed), {k: tuple(v) for k, v in found.items()}, problems, len(pictures))


def frame_pairs(
    pairs: PairSet, protocol: Protocol, outside: Outside, problems: Problems, progress: Progress
) -> tuple[list[Framed], dict[Path, ImageInfo]]:
    """The pairs whose images can be read, in their protocol's frame; the others are noted.

    Raises:
        InputError: none is left.
    """
    paths = {path for pair in pairs.pairs for path in (pair.source, pair.target)}
    images = index_images(paths, problems, lambda done, total: progress("images", done, total))
    framed = []
    for pair in pairs.pairs:
        if pair.source not in images or pair.target not in images:
            problems.add("pair without its image", pair.name)
            continue
        sizes = images[pair.source].size, images[pair.target].size
        if any(annotated not in (None, real) for annotated, real in zip(_annotated(pair), sizes, strict=True)):
            problems.add("image of another size than annotated", pair.name)
        one = frame_pair(pair, protocol, sizes, outside)
        if one.clipped:
            problems.add("pair with source points outside the image, moved to its border", pair.name)
        if len(one.truth) < len(pair.truth):
            problems.add("pair with source points outside the image, left out", pair.name)
        height, width = sizes[1]
        if (pair.truth < 0).any() or (pair.truth > np.array([width - 1, height - 1])).any():
            problems.add("pair with target points outside the image, scored as they are", pair.name)
        if not len(one.truth):
            problems.add("pair without points", pair.name)
            continue
        framed.append(one)
    if not framed:
        raise InputError(f"--data: no pair can be scored ({'; '.join(problems.sentences())})")
    return framed, images


def _annotated(pair: Pair) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    return pair.source_size, pair.target_size


def _identity(framed: Framed) -> np.ndarray:
    """The same relative position in the other image."""
    scale = np.array(framed.target_size[::-1], np.float64) / np.array(framed.source_size[::-1], np.float64)
    return np.clip((framed.points + 0.5) * scale - 0.5, 0, None)
