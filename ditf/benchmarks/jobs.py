"""The pieces of matching that fill the cores: all pairs of some targets, or one pair whose features are projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..concat import joint_pca
from ..errors import InputError
from ..types import FeatureMap
from .poses import with_mirrored
from .protocols import Framed, Protocol
from .rules import MatchDtype, best_places, queries_at

__all__ = ["Job", "Numbered", "PairJob", "Solved", "TargetsJob"]

Numbered = tuple[int, Framed]
"""A pair and its position in the set."""

Solved = tuple[int, Framed, np.ndarray, np.ndarray]
"""Position, pair, places (K, 2) and scores (K,)."""


@dataclass(frozen=True, eq=False)
class TargetsJob:
    """Some targets with all that is looked for in them; ``groups``: per target its pairs."""

    groups: Sequence[list[Numbered]]
    queries: list[torch.Tensor]
    maps: list[FeatureMap]
    protocol: Protocol
    dtype: MatchDtype
    backend: str | None

    def solve(self) -> list[Solved]:
        sizes = [group[0][1].target_size for group in self.groups]
        results = best_places(self.queries, self.maps, sizes, self.protocol, self.dtype, self.backend)
        found: list[Solved] = []
        for group, (places, scores) in zip(self.groups, results, strict=True):
            counts = [len(one.truth) for _, one in group]
            for (i, one), place, score in zip(group, places.split(counts), scores.split(counts), strict=True):
                found.append((i, one, place.numpy(), score.numpy()))
        return found


@dataclass(frozen=True, eq=False)
class PairJob:
    """One pair on the principal components of its own maps, which no other pair shares.

    Attributes:
        maps: source, target, and the mirrored source where that is matched; they are projected together.
        channels: to keep.
    """

    number: int
    framed: Framed
    maps: Sequence[FeatureMap]
    channels: int
    protocol: Protocol
    dtype: MatchDtype
    backend: str | None

    def solve(self) -> list[Solved]:
        """Raises InputError for more channels than the maps' tokens span."""
        most = min(self.maps[0].tokens.shape[1], sum(len(one.tokens) for one in self.maps) - 1)
        if self.channels > most:
            raise InputError.of("--fuse-channels", self.channels, f"at most {most} at this size of images")
        source, target, *mirrored = joint_pca(self.maps, self.channels)
        one = self.framed
        query = queries_at(source, one.lookup, one.source_size, self.protocol, self.dtype)
        for other in mirrored:
            query = with_mirrored(query, other, one, self.protocol, self.dtype)
        [(place, score)] = best_places([query], [target], [one.target_size], self.protocol, self.dtype, self.backend)
        return [(self.number, one, place.numpy(), score.numpy())]


Job = TargetsJob | PairJob
