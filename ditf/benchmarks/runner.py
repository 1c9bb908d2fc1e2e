"""Every image's features once, every pair matched from them; stopped at any moment, it goes on from there.

Pairs are taken category by category: the images of one are extracted (or found in the store), their features at all
points of all pairs are read while each map is in memory, and then every target meets all of its queries in one call of
the kernel, which needs its Gram planes once. Finished units of a few hundred pairs are files of their own.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, ModelError, StoreError
from ..store import FeatureStore, digest
from ..types import FeatureMap, write_atomically
from .methods import Method, ModelMethod, Picture, key_of
from .pairs import ImageInfo, Pair, PairSet, Problems, index_images
from .protocols import Framed, Outside, Protocol, errors_in_frame, frame_pair
from .rules import MatchDtype, best_places, queries_at

__all__ = ["IDENTITY", "Evaluation", "Found", "evaluate", "frame_pairs"]

log = logging.getLogger("ditf")

Progress = Callable[[str, int, int], None]
"""Called with "images", "features" or "pairs", how many are done, and how many there are."""

IDENTITY = "identity"

UNIT_PAIRS = 256  # of one file of results
_MEMORY = 1 << 30  # bytes of feature maps held at once
_UNIT = 1  # version of those files


@dataclass(frozen=True, eq=False)
class Found:
    """Where one method found the points of one pair.

    Attributes:
        predicted: (K, 2) float64 in the pair's frame; (-1, -1) where no place could be chosen.
        score: (K,) float32 cosine similarity, NaN there.
        errors: (K,) float64 in the units of the protocol, infinite there.
    """

    predicted: np.ndarray
    score: np.ndarray
    errors: np.ndarray


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
        InputError: methods of one name, nothing left to score.
        ModelError: features that are not finite.
        StoreError: the folder cannot be written.
    """
    names = [method.name for method in methods]
    if len(set(names)) != len(names) or IDENTITY in names:
        raise InputError.of("methods", names, f"distinct names, none of them {IDENTITY!r}")
    if dtype not in ("float32", "float16"):
        raise InputError.of("dtype", dtype, '"float32" or "float16"')
    progress = progress or (lambda stage, done, total: None)
    work = _Work(Path(folder), store, protocol, dtype, progress)
    problems = Problems()
    for kind, noted in ((kind, pairs.problems.names(kind)) for kind in pairs.problems.to_dict()):
        for name in noted:
            problems.add(kind, name)
    framed, images = frame_pairs(pairs, protocol, outside, problems, progress)
    found = work.run(methods, framed, images)
    found[IDENTITY] = [_found(_identity(one), np.full(len(one.truth), np.nan), one, protocol) for one in framed]
    pictures = {(path, category) for one in framed for path, category in _sides(one.pair)}
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


def _sides(pair: Pair) -> tuple[tuple[Path, str], tuple[Path, str]]:
    return (pair.source, pair.source_prompt), (pair.target, pair.target_prompt)


def _identity(framed: Framed) -> np.ndarray:
    """The same relative position in the other image."""
    scale = np.array(framed.target_size[::-1], np.float64) / np.array(framed.source_size[::-1], np.float64)
    return np.clip((framed.points + 0.5) * scale - 0.5, 0, None)


def _found(predicted: np.ndarray, score: np.ndarray, framed: Framed, protocol: Protocol) -> Found:
    return Found(predicted, score, errors_in_frame(predicted, framed, protocol))


# --- the work --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Unit:
    """Some pairs of one category, ordered by target: (position in the set, pair)."""

    pairs: tuple[tuple[int, Framed], ...]


class _Work:
    """Features from memory, the store or the model; results from the units on disk or the kernels."""

    def __init__(
        self, folder: Path, store: FeatureStore | None, protocol: Protocol, dtype: MatchDtype, progress: Progress
    ) -> None:
        self.units = folder / "units"
        try:
            self.units.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.units} cannot be created ({error.strerror}); choose another folder") from None
        write_atomically(self.units / ".writable", b"")  # before the first forward, not after the last
        self.store = FeatureStore(folder / "features") if store is None else store
        self.protocol, self.progress = protocol, progress
        self.dtype: MatchDtype = dtype
        self._maps: OrderedDict[str, FeatureMap] = OrderedDict()
        self._images: dict[Path, ImageInfo] = {}

    def run(
        self, methods: Sequence[Method], framed: Sequence[Framed], images: dict[Path, ImageInfo]
    ) -> dict[str, list[Found]]:
        self._images = images
        groups = [_units(group) for group in _groups(framed)]
        found: dict[str, dict[int, Found]] = {method.name: {} for method in methods}
        missing: dict[tuple[str, int, int], str] = {}  # method, group, unit -> key
        for method, (g, group) in itertools.product(methods, enumerate(groups)):
            for u, unit in enumerate(group):
                key = self._unit_key(method, unit)
                known = self._read(key, unit)
                if known is None:
                    missing[method.name, g, u] = key
                else:
                    found[method.name] |= known
        self._pairs_done = sum(len(known) for known in found.values())
        self._pairs = len(framed) * len(methods)
        self._count_features(methods, groups, missing)
        self.progress("pairs", self._pairs_done, self._pairs)
        self._prepare_texts(methods, groups, missing)
        for g, group in enumerate(groups):
            todo = [(m, u) for m in methods for u in range(len(group)) if (m.name, g, u) in missing]
            needed = {m.name: [group[u] for n, u in todo if n is m] for m, _ in todo}
            pictures = {m.name: self._pictures(needed[m.name]) for m, _ in todo}
            self.store.keep(key_of(m, p) for m, _ in todo for p in pictures[m.name])
            for method in dict.fromkeys(m for m, _ in todo):
                self._extract(method, pictures[method.name])
            for method, u in todo:
                found[method.name] |= self._match(method, group[u], missing[method.name, g, u])
            self._maps.clear()
        return {name: [known[i] for i in range(len(framed))] for name, known in found.items()}

    # --- features

    def _pictures(self, units: Sequence[_Unit]) -> list[Picture]:
        sides = {side for unit in units for _, one in unit.pairs for side in _sides(one.pair)}
        return [Picture(path, self._images[path], category) for path, category in sorted(sides)]

    def _count_features(self, methods: Sequence[Method], groups: list[list[_Unit]], missing: Mapping[Any, str]) -> None:
        self._features = self._features_done = 0
        for method, (g, group) in itertools.product(methods, enumerate(groups)):
            pictures = self._pictures([unit for u, unit in enumerate(group) if (method.name, g, u) in missing])
            self._features += len(pictures)
        self.progress("features", 0, self._features)

    def _prepare_texts(self, methods: Sequence[Method], groups: list[list[_Unit]], missing: Mapping[Any, str]) -> None:
        for method in methods:
            if isinstance(method, ModelMethod):
                units = [
                    unit
                    for g, group in enumerate(groups)
                    for u, unit in enumerate(group)
                    if (method.name, g, u) in missing
                ]
                pictures = [p for p in self._pictures(units) if key_of(method, p) not in self.store]
                if pictures:
                    method.prepare_texts(pictures)

    def _extract(self, method: Method, pictures: Sequence[Picture]) -> None:
        """Every picture's features into the store, one forward each."""
        for picture in pictures:
            if key_of(method, picture) not in self.store:
                self._forward(method, picture)
            self._features_done += 1
            self.progress("features", self._features_done, self._features)

    def _forward(self, method: Method, picture: Picture) -> FeatureMap:
        own = None
        for who, features in method.extract(picture):
            if not bool(torch.isfinite(features.tokens).all()):
                raise ModelError(
                    f"{picture.path}: the features of {who.name} are not finite; try another --model-dtype"
                )
            key = key_of(who, picture)
            self.store.put(key, features)
            self._hold(key, features)
            own = features if who is method else own
        if own is None:
            raise ModelError(f"{method.name} gave no features of {picture.path}")
        return own

    def _map(self, method: Method, picture: Picture) -> FeatureMap:
        key = key_of(method, picture)
        if key in self._maps:
            self._maps.move_to_end(key)
            return self._maps[key]
        features = self.store.get(key)
        features = self._forward(method, picture) if features is None else features
        features = features.to(method.device)
        self._hold(key, features)
        return features

    def _hold(self, key: str, features: FeatureMap) -> None:
        self._maps[key] = features
        self._maps.move_to_end(key)
        held = sum(one.tokens.nbytes for one in self._maps.values())
        while len(self._maps) > 1 and held > _MEMORY:
            held -= self._maps.popitem(last=False)[1].tokens.nbytes

    # --- pairs

    def _match(self, method: Method, unit: _Unit, key: str) -> dict[int, Found]:
        queries: dict[int, torch.Tensor] = {}
        for (path, category), group in _by(unit.pairs, lambda one: _sides(one.pair)[0]):
            features = self._map(method, Picture(path, self._images[path], category))
            for i, one in group:
                queries[i] = queries_at(features, one.lookup, one.source_size, self.protocol, self.dtype)
        by_target = [group for _, group in _by(unit.pairs, lambda one: _sides(one.pair)[1])]
        found: dict[int, Found] = {}
        for some in _batches(by_target, method):
            found |= self._match_targets(method, some, queries)
            self._pairs_done += sum(map(len, some))
            self.progress("pairs", self._pairs_done, self._pairs)
        self._write(key, unit, found)
        return found

    def _match_targets(
        self, method: Method, groups: Sequence[list[tuple[int, Framed]]], queries: dict[int, torch.Tensor]
    ) -> dict[int, Found]:
        maps, sizes, packed = [], [], []
        for group in groups:
            pair = group[0][1].pair
            maps.append(self._map(method, Picture(pair.target, self._images[pair.target], pair.target_prompt)))
            sizes.append(group[0][1].target_size)
            packed.append(torch.cat([queries.pop(i) for i, _ in group]))
        results = best_places(packed, maps, sizes, self.protocol, self.dtype, method.backend)
        found: dict[int, Found] = {}
        for group, (places, scores) in zip(groups, results, strict=True):
            counts = [len(one.truth) for _, one in group]
            for (i, one), place, score in zip(group, places.split(counts), scores.split(counts), strict=True):
                found[i] = _found(place.numpy(), score.numpy(), one, self.protocol)
        return found

    # --- units on disk

    def _unit_key(self, method: Method, unit: _Unit) -> str:
        """SHA-256 of all that decides a unit's numbers."""
        keys = {side: "" for _, one in unit.pairs for side in _sides(one.pair)}
        keys = {side: key_of(method, Picture(side[0], self._images[side[0]], side[1])) for side in keys}
        p = self.protocol
        rule = [p.match, p.canvas, p.hit, p.window, self.dtype, method.device.type, method.backend]
        pairs = [
            [keys[side] for side in _sides(one.pair)] + [one.lookup.tolist(), one.source_size, one.target_size]
            for _, one in unit.pairs
        ]
        return digest({"version": _UNIT, "rule": rule, "pairs": pairs})

    def _write(self, key: str, unit: _Unit, found: Mapping[int, Found]) -> None:
        from safetensors.numpy import save

        ordered = [found[i] for i, _ in unit.pairs]
        tensors = {
            "predicted": np.concatenate([one.predicted for one in ordered]),
            "score": np.concatenate([one.score for one in ordered]),
        }
        write_atomically(self.units / f"{key}.safetensors", save(tensors))

    def _read(self, key: str, unit: _Unit) -> dict[int, Found] | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.units / f"{key}.safetensors"
        if not path.exists():
            return None
        ends = np.cumsum([len(one.truth) for _, one in unit.pairs])
        try:
            tensors = load_file(path)
            predicted, score = tensors["predicted"], tensors["score"]
            if len(predicted) != ends[-1] or len(score) != ends[-1]:
                raise ValueError(f"{len(predicted)} points, expected {ends[-1]}")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            log.warning("%s cannot be read (%s); computing it again", path, error)
            return None
        parts = zip(np.split(predicted, ends[:-1]), np.split(score, ends[:-1]), strict=True)
        return {
            i: _found(p, s, one, self.protocol) for (i, one), (p, s) in zip(unit.pairs, parts, strict=True)
        }  # fmt: skip


def _groups(framed: Sequence[Framed]) -> list[list[tuple[int, Framed]]]:
    """By category, in sorted order."""
    return [group for _, group in _by(list(enumerate(framed)), lambda one: one.pair.category)]


def _units(group: list[tuple[int, Framed]]) -> list[_Unit]:
    """Pairs of few targets together; the pairs of one target are not torn apart but for a unit's size."""
    ordered = [one for _, same in _by(group, lambda one: _sides(one.pair)[1]) for one in same]
    return [_Unit(tuple(ordered[i : i + UNIT_PAIRS])) for i in range(0, len(ordered), UNIT_PAIRS)]


def _by(
    pairs: Sequence[tuple[int, Framed]], key: Callable[[Framed], Any]
) -> list[tuple[Any, list[tuple[int, Framed]]]]:
    """Grouped by a key, sorted by it; in order within."""
    groups: dict[Any, list[tuple[int, Framed]]] = {}
    for i, one in pairs:
        groups.setdefault(key(one), []).append((i, one))
    return sorted(groups.items(), key=lambda item: item[0])


def _batches(groups: Sequence[Any], method: Method) -> Iterator[Sequence[Any]]:
    """Targets of one call: many on a GPU, one on a CPU, whose progress is then finer."""
    step = 64 if method.device.type == "cuda" else 1
    for i in range(0, len(groups), step):
        yield groups[i : i + step]
