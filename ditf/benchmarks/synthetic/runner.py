"""Every group of pictures through every method, once; stopped at any moment, it goes on from there.

What a method found in a group is a file of its own, under a name made of all that decides it: the pictures, the points,
the model, its config and the version of ditf.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import StoreError
from ...store import digest
from ...types import write_atomically
from ..pck import distances
from .methods import Rows
from .sets import Group, PairSet, Split
from .summary import PairRecord

__all__ = ["Progress", "Units", "evaluate_set"]

log = logging.getLogger("ditf")

Progress = Callable[[str, int, int], None]
"""Called with what is counted, how many are done, and how many there are."""

_UNIT = 1  # version of the files


class Units:
    """Finished work in a folder, as JSON under keys.

    Raises:
        StoreError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder) / "units"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be created ({error.strerror}); choose another folder") from None
        write_atomically(self.folder / ".writable", b"")  # before the first forward, not after the last

    def get(self, about: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What ``make`` gave for this, now or in an earlier run; plain JSON values."""
        path = self.folder / f"{_key(about)}.json"
        if path.exists():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                log.warning("%s is damaged; computing it again", path)
        made = make()
        write_atomically(path, json.dumps(made, allow_nan=False).encode())
        return made


def evaluate_set(
    pairs: PairSet,
    methods: Sequence[Rows],
    units: Units,
    *,
    count: int,
    split: Split = "test",
    told: Callable[[int], None],
) -> list[PairRecord]:
    """All pairs of a set by all methods.

    Args:
        methods: whose rows have distinct names.
        count: pairs of all sets together, see :meth:`PairSet.groups`.
        told: how many pairs are done, after each group.

    Raises:
        ModelError: features that are not finite.
        StoreError: the folder cannot be written.
    """
    abouts = [method.about() for method in methods]  # a model's identity takes a look at its weights
    records: list[PairRecord] = []
    for group in pairs.groups(count, split):
        seen = digest_of(group)
        errors: dict[str, list[np.ndarray]] = {}
        for method, about in zip(methods, abouts, strict=True):
            found = units.get({"method": about, "pictures": seen}, lambda m=method, g=group: _errors(m, g))
            errors |= {name: [_numbers(one) for one in per_case] for name, per_case in found.items()}
        records += _records(group, errors)
        told(len(records))
    return records


def digest_of(group: Group) -> str:
    """SHA-256 of all pixels and points of a group."""
    whole = hashlib.sha256()
    for picture in group.pictures:
        whole.update(str(picture.shape).encode() + picture.tobytes())
    for case in group.cases:
        whole.update(case.points.numpy().tobytes() + case.truth.numpy().tobytes() + repr(float(case.length)).encode())
    return whole.hexdigest()


def _errors(method: Rows, group: Group) -> dict[str, list[list[float | None]]]:
    """Row -> per case, distance / length of each point; None where nothing was found."""
    found = method.find(group)
    return {
        name: [
            [e if math.isfinite(e) else None for e in (distances(place, case.truth) / float(case.length)).tolist()]
            for place, case in zip(found[name], group.cases, strict=True)
        ]
        for name in method.names
    }


def _numbers(errors: Sequence[float | None]) -> np.ndarray:
    return np.array([np.inf if e is None else e for e in errors], np.float64)


def _records(group: Group, errors: Mapping[str, Sequence[np.ndarray]]) -> list[PairRecord]:
    names = {id(picture): f"{group.name}/{i}" for i, picture in enumerate(group.pictures)}
    return [
        PairRecord(
            name=f"{names[id(case.source)]}-{names[id(case.target)].rsplit('/', 1)[1]}",
            category=group.category,
            cluster=group.clusters[i],
            source=names[id(case.source)],
            target=names[id(case.target)],
            length=float(case.length),
            errors={name: per_case[i] for name, per_case in errors.items()},
        )
        for i, case in enumerate(group.cases)
    ]


def _key(about: Mapping[str, Any]) -> str:
    from ... import __version__

    return digest({"version": _UNIT, "ditf": __version__, **about})
