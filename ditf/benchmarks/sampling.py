"""Some pairs of every category, drawn as GeoAware-SC and sd-dino draw theirs: quick, and another number than all."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from ..errors import InputError
from .pairs import Pair, PairSet

__all__ = ["SEED", "sample_pairs"]

SEED = 42


def sample_pairs(pairs: PairSet, count: int, seed: int = SEED) -> PairSet:
    """So many pairs of every category, drawn with replacement from its pairs in the order of their names.

    Both published evaluators draw 20 unless told otherwise: numpy's legacy generator, seeded anew for every category,
    ``choice(n, count)``. A pair that is drawn twice counts twice; its second name says so.

    Raises:
        InputError: a count below 1.
    """
    if count < 1:
        raise InputError.of("--sample", count, "at least one pair of every category")
    drawn: list[Pair] = []
    for category in pairs.categories:
        own = sorted((p for p in pairs.pairs if p.category == category), key=lambda pair: pair.name)
        drawn += [own[i] for i in np.random.RandomState(seed).choice(len(own), count)]
    seen: Counter[str] = Counter()
    named = []
    for pair in drawn:
        seen[pair.name] += 1
        again = seen[pair.name]
        named.append(pair if again == 1 else dataclasses.replace(pair, name=f"{pair.name} (draw {again})"))
    about = {"pairs_of_a_category": count, "seed": seed, "with_replacement": True}
    about |= {"of_pairs": len(pairs.pairs), "of_list_sha256": pairs.list_hash}
    return dataclasses.replace(pairs, pairs=tuple(named), facts={**pairs.facts, "sample": about})
