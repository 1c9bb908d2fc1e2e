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
from .jobs import Job, Numbered, PairJob, TargetsJob
from .methods import Method, ModelMethod, Picture, key_of
from .pairs import ImageInfo, Pair
from .poses import mirrored_is_nearer, with_mirrored
from .protocols import Framed, Protocol, errors_in_frame
from .rules import MatchDtype, queries_at
from .workers import Workers

__all__ = ["Found", "Progress", "Work", "found_at", "sides_of"]

log = logging.getLogger("ditf")

Progress = Callable[[str, int, int], None]
"""Called with "images", "features", "poses" or "pairs", how many are done, and how many there are."""

UNIT_PAIRS = 256  # of one file of results
_MEMORY = 1 << 30  # bytes of feature maps held at once
_UNIT = 2  # version of those files
_POSES = (None, False, True)  # as they are written there: no choice, as it is, mirrored


@dataclass(frozen=True, eq=False)
class Found:
    """Where one method found the points of one pair.

    Attributes:
        predicted: (K, 2) float64 in the pair's frame; (-1, -1) where no place could be chosen.
        score: (K,) float32 cosine similarity, NaN there.
        errors: (K,) float64 in the units of the protocol, infinite there.
        mirrored: whether the mirrored source was matched; None unless the protocol aligns poses.
    """

    predicted: np.ndarray
    score: np.ndarray
    errors: np.ndarray
    mirrored: bool | None = None


def sides_of(pair: Pair) -> tuple[tuple[Path, str], tuple[Path, str]]:
    """Path and prompt of the source image and of the target image."""
    return (pair.source, pair.source_prompt), (pair.target, pair.target_prompt)


def found_at(
    predicted: np.ndarray, score: np.ndarray, framed: Framed, protocol: Protocol, mirrored: bool | None = None
) -> Found:
    """What was predicted in the frame that points are compared in, (K, 2) and (K,), with its errors there."""
    return Found(predicted, score, errors_in_frame(predicted, framed, protocol), mirrored)


@dataclass(frozen=True, eq=False)
class _Unit:
    """Some pairs of one category, ordered by target."""

    pairs: tuple[Numbered, ...]


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
        self._poses_done, self._poses = 0, self._pairs - self._pairs_done
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
        pairs = [one.pair for unit in units for _, one in unit.pairs]
        sides = {(*side, False) for pair in pairs for side in sides_of(pair)}
        if self.protocol.align_pose:
            sides |= {(pair.source, pair.source_prompt, True) for pair in pairs}
        return [Picture(path, self._images[path], category, mirrored) for path, category, mirrored in sorted(sides)]

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
            mirrored = self._mirrored(method, unit, workers)
            projected = _channels(method) is not None
            jobs = (self._pair_jobs if projected else self._target_jobs)(method, unit, mirrored)
            for some in workers.each(lambda job: job.solve(), jobs):
                for i, one, place, score in some:
                    found[i] = found_at(place, score, one, self.protocol, mirrored.get(i))
                self._pairs_done += len(some)
                self.progress("pairs", self._pairs_done, self._pairs)
        self._write(key, unit, found)
        return found

    def _target_jobs(self, method: Method, unit: _Unit, mirrored: Mapping[int, bool]) -> Iterator[Job]:
        queries: dict[int, torch.Tensor] = {}
        for side, group in _by(unit.pairs, lambda one: sides_of(one.pair)[0]):
            features = self._map(method, self._picture(side))
            for i, one in group:
                queries[i] = queries_at(features, one.lookup, one.source_size, self.protocol, self.dtype)
            turned = [(i, one) for i, one in group if mirrored.get(i)]
            features = self._map(method, self._picture(side, mirrored=True)) if turned else features
            for i, one in turned:
                queries[i] = with_mirrored(queries[i], features, one, self.protocol, self.dtype)
        for groups in _batches(unit, method):
            targets = [sides_of(group[0][1].pair)[1] for group in groups]
            yield TargetsJob(
                groups=groups,
                queries=[torch.cat([queries.pop(i) for i, _ in group]) for group in groups],
                maps=[self._map(method, self._picture(target)) for target in targets],
                protocol=self.protocol,
                dtype=self.dtype,
                backend=method.backend,
            )

    def _pair_jobs(self, method: Method, unit: _Unit, mirrored: Mapping[int, bool]) -> Iterator[Job]:
        for i, one in unit.pairs:
            source, target = sides_of(one.pair)
            pictures = [self._picture(source), self._picture(target)]
            pictures += [self._picture(source, mirrored=True)] if mirrored.get(i) else []
            maps = [self._map(method, picture) for picture in pictures]
            channels = _channels(method) or 0
            yield PairJob(i, one, maps, channels, self.protocol, self.dtype, method.backend)

    def _mirrored(self, method: Method, unit: _Unit, workers: Workers) -> dict[int, bool]:
        """Of each pair whether its mirrored source is nearer to the target; of none unless poses are aligned."""
        if not self.protocol.align_pose:
            return {}
        jobs = (
            (
                i,
                self._map(method, self._picture(source)),
                self._map(method, self._picture(source, mirrored=True)),
                self._map(method, self._picture(target)),
            )
            for i, one in unit.pairs
            for source, target in [sides_of(one.pair)]
        )

        def solve(job: tuple[int, FeatureMap, FeatureMap, FeatureMap]) -> tuple[int, bool]:
            return job[0], mirrored_is_nearer(*job[1:], self.protocol, method.backend)

        found: dict[int, bool] = {}
        for i, nearer in workers.each(solve, jobs):
            found[i] = nearer
            self._poses_done += 1
            self.progress("poses", self._poses_done, self._poses)
        return found

    def _picture(self, side: tuple[Path, str], mirrored: bool = False) -> Picture:
        return Picture(side[0], self._images[side[0]], side[1], mirrored)

    # --- units on disk

    def _unit_key(self, method: Method, unit: _Unit) -> str:
        """SHA-256 of all that decides a unit's numbers."""
        keys = {side: "" for _, one in unit.pairs for side in sides_of(one.pair)}
        keys = {side: key_of(method, self._picture(side)) for side in keys}
        p = self.protocol
        rule = [p.match, p.canvas, p.hit, p.window, p.compare, self.dtype, method.device.type, method.backend]
        rule.append(_channels(method))
        pairs = [
            [keys[side] for side in sides_of(one.pair)]
            + [one.lookup.tolist(), one.source_size, one.target_size]
            + ([] if one.mirrored is None else [np.where(np.isfinite(one.mirrored), one.mirrored, -1.0).tolist()])
            for _, one in unit.pairs
        ]
        return digest({"version": _UNIT, "rule": rule, "pairs": pairs})

    def _write(self, key: str, unit: _Unit, found: Mapping[int, Found]) -> None:
        from safetensors.numpy import save

        ordered = [found[i] for i, _ in unit.pairs]
        tensors = {
            "predicted": np.concatenate([one.predicted for one in ordered]),
            "score": np.concatenate([one.score for one in ordered]),
            "mirrored": np.array([_POSES.index(one.mirrored) for one in ordered], np.int8),
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
            predicted, score, poses = tensors["predicted"], tensors["score"], tensors["mirrored"]
            if len(predicted) != ends[-1] or len(score) != ends[-1] or len(poses) != len(ends):
                raise ValueError(f"{len(predicted)} points, expected {ends[-1]}")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            log.warning("%s cannot be read (%s); computing it again", path, error)
            return None
        parts = zip(np.split(predicted, ends[:-1]), np.split(score, ends[:-1]), poses.tolist(), strict=True)
        return {
            i: found_at(p, s, one, self.protocol, _POSES[pose])
            for (i, one), (p, s, pose) in zip(unit.pairs, parts, strict=True)
        }


def _channels(method: Method) -> int | None:
    """Principal components to which a pair's features are projected together, or None."""
    return method.channels if isinstance(method, FusedMethod) else None


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


def _batches(unit: _Unit, method: Method) -> Iterator[list[list[Numbered]]]:
    """Pairs by target, and targets of one call: many on a GPU, one on a CPU."""
    targets = [group for _, group in _by(unit.pairs, lambda one: sides_of(one.pair)[1])]
    step = 64 if method.device.type == "cuda" else 1
    for i in range(0, len(targets), step):
        yield targets[i : i + step]
