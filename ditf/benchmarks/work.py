"""Features from memory, the store or the model; matches from finished units on disk or the kernels."""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError, StoreError
from ..store import FeatureStore, digest
from ..types import FeatureMap, write_atomically
from .fusion import FusedMethod
from .methods import Method, ModelMethod, Picture, key_of
from .pairs import ImageInfo, Pair
from .protocols import Framed, Protocol, errors_in_frame
from .rules import MatchDtype, best_places, queries_at
from .workers import Workers

__all__ = ["Found", "Progress", "Work", "found_at", "sides_of"]

log = logging.getLogger("ditf")

Progress = Callable[[str, int, int], None]
"""Called with "images", "features" or "pairs", how many are done, and how many there are."""

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


def sides_of(pair: Pair) -> tuple[tuple[Path, str], tuple[Path, str]]:
    """Path and prompt of the source image and of the target image."""
    return (pair.source, pair.source_prompt), (pair.target, pair.target_prompt)


def found_at(predicted: np.ndarray, score: np.ndarray, framed: Framed, protocol: Protocol) -> Found:
    """What was predicted in the frame that points are compared in, (K, 2) and (K,), with its errors there."""
    return Found(predicted, score, errors_in_frame(predicted, framed, protocol))


_Numbered = tuple[int, Framed]
"""A pair and its position in the set."""


@dataclass(frozen=True, eq=False)
class _Unit:
    """Some pairs of one category, ordered by target."""

    pairs: tuple[_Numbered, ...]


class Work:
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
        sides = {side for unit in units for _, one in unit.pairs for side in sides_of(one.pair)}
        return [Picture(path, self._images[path], category) for path, category in sorted(sides)]

    def _count_features(self, methods: Sequence[Method], groups: list[list[_Unit]], missing: Mapping[Any, str]) -> None:
        self._features = self._features_done = 0
        for method, (g, group) in itertools.product(methods, enumerate(groups)):
            pictures = self._pictures([unit for u, unit in enumerate(group) if (method.name, g, u) in missing])
            self._features += len(pictures)
        self.progress("features", 0, self._features)

    def _prepare_texts(self, methods: Sequence[Method], groups: list[list[_Unit]], missing: Mapping[Any, str]) -> None:
        for method in methods:
            if isinstance(method, ModelMethod | FusedMethod):
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
        found: dict[int, Found] = {}
        with Workers(method.device) as workers:
            queries: dict[int, torch.Tensor] = {}
            for (path, category), group in _by(unit.pairs, lambda one: sides_of(one.pair)[0]):
                features = self._map(method, Picture(path, self._images[path], category))
                for i, one in group:
                    queries[i] = queries_at(features, one.lookup, one.source_size, self.protocol, self.dtype)
            jobs = (self._job(method, groups, queries) for groups in _batches(unit, method))
            for some in workers.each(_solve, jobs):
                found |= {i: found_at(place, score, one, self.protocol) for i, one, place, score in some}
                self._pairs_done += len(some)
                self.progress("pairs", self._pairs_done, self._pairs)
        self._write(key, unit, found)
        return found

    def _job(self, method: Method, groups: Sequence[list[_Numbered]], queries: dict[int, torch.Tensor]) -> _Job:
        pairs = [group[0][1].pair for group in groups]
        return _Job(
            groups=groups,
            queries=[torch.cat([queries.pop(i) for i, _ in group]) for group in groups],
            maps=[self._map(method, Picture(p.target, self._images[p.target], p.target_prompt)) for p in pairs],
            protocol=self.protocol,
            dtype=self.dtype,
            backend=method.backend,
        )

    # --- units on disk

    def _unit_key(self, method: Method, unit: _Unit) -> str:
        """SHA-256 of all that decides a unit's numbers."""
        keys = {side: "" for _, one in unit.pairs for side in sides_of(one.pair)}
        keys = {side: key_of(method, Picture(side[0], self._images[side[0]], side[1])) for side in keys}
        p = self.protocol
        rule = [p.match, p.canvas, p.hit, p.window, self.dtype, method.device.type, method.backend]
        pairs = [
            [keys[side] for side in sides_of(one.pair)] + [one.lookup.tolist(), one.source_size, one.target_size]
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
            i: found_at(p, s, one, self.protocol) for (i, one), (p, s) in zip(unit.pairs, parts, strict=True)
        }  # fmt: skip


def _groups(framed: Sequence[Framed]) -> list[list[tuple[int, Framed]]]:
    """By category, in sorted order."""
    return [group for _, group in _by(list(enumerate(framed)), lambda one: one.pair.category)]


def _units(group: list[tuple[int, Framed]]) -> list[_Unit]:
    """Pairs of few targets together; the pairs of one target are not torn apart but for a unit's size."""
    ordered = [one for _, same in _by(group, lambda one: sides_of(one.pair)[1]) for one in same]
    return [_Unit(tuple(ordered[i : i + UNIT_PAIRS])) for i in range(0, len(ordered), UNIT_PAIRS)]


def _by(
    pairs: Sequence[tuple[int, Framed]], key: Callable[[Framed], Any]
) -> list[tuple[Any, list[tuple[int, Framed]]]]:
    """Grouped by a key, sorted by it; in order within."""
    groups: dict[Any, list[tuple[int, Framed]]] = {}
    for i, one in pairs:
        groups.setdefault(key(one), []).append((i, one))
    return sorted(groups.items(), key=lambda item: item[0])


def _batches(unit: _Unit, method: Method) -> Iterator[list[list[_Numbered]]]:
    """Pairs by target, and targets of one call: many on a GPU, one on a CPU."""
    targets = [group for _, group in _by(unit.pairs, lambda one: sides_of(one.pair)[1])]
    step = 64 if method.device.type == "cuda" else 1
    for i in range(0, len(targets), step):
        yield targets[i : i + step]


@dataclass(frozen=True, eq=False)
class _Job:
    """Some targets with all that is looked for in them; ``groups``: per target its pairs."""

    groups: Sequence[list[_Numbered]]
    queries: list[torch.Tensor]
    maps: list[FeatureMap]
    protocol: Protocol
    dtype: MatchDtype
    backend: str | None


def _solve(job: _Job) -> list[tuple[int, Framed, np.ndarray, np.ndarray]]:
    """Position, pair, places and scores of every pair of a job."""
    sizes = [group[0][1].target_size for group in job.groups]
    results = best_places(job.queries, job.maps, sizes, job.protocol, job.dtype, job.backend)
    found = []
    for group, (places, scores) in zip(job.groups, results, strict=True):
        counts = [len(one.truth) for _, one in group]
        for (i, one), place, score in zip(group, places.split(counts), scores.split(counts), strict=True):
            found.append((i, one, place.numpy(), score.numpy()))
    return found
