"""PF-WILLOW (Ham et al., arXiv 1511.05065): 900 pairs of 10 sub-classes, 10 points each.

::

    PF-dataset/{car(G), car(M), ..., winebottle(woC)}/{image}.png
               test_pairs_pf.csv  or  test_pairs.csv          imageA, imageB, 10 XA, 10 YA, 10 XB, 10 YB
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import InputError
from .pairs import Pair, PairSet, Problems, check_split
from .protocols import PROTOCOLS, Protocol

__all__ = ["CLASSES", "check", "protocols", "read", "root_of"]

SPLITS = ("test",)
PAIRS = 900
CLASSES = (
    "car(G)", "car(M)", "car(S)", "duck(S)", "motorbike(G)", "motorbike(M)", "motorbike(S)", "winebottle(M)",
    "winebottle(wC)", "winebottle(woC)",
)  # fmt: skip

_TABLES = ("test_pairs_pf.csv", "test_pairs.csv")
_POINTS = 10


def _of(base: str, **changes: Any) -> Protocol:
    changes = {"length": "target points", "alphas": (0.1, 0.05, 0.15), "annotations": "pairs", **changes}
    return dataclasses.replace(PROTOCOLS[base], **changes)


protocols: dict[str, Protocol] = {
    p.name: p
    for p in (
        _of("ditf-code", about="DiTF's released matching; it reports no PF-WILLOW: extent of the target's points"),
        _of("ditf-paper"),
        _of("dift"),
        _of("sd4match", length="compare box"),
        _of("sd4match-softmax", length="compare box"),
        _of("geoaware"),
        _of("geoaware-window"),
        _of("geoaware-window-strict"),
        _of("sd-dino"),
        _of(
            "ditf-code", name="hpf", about="hpf as corrected: extent of the target's points, mean over pairs",
            lookup="exact", arithmetic="float32", headline="image_micro",
        ),
        _of(
            "ditf-code", name="hpf-padded",
            about="a published mistake, to compare with numbers that carry it: the extent counts the padding of -1",
            lookup="exact", arithmetic="float32", headline="image_micro", length="padded target points",
        ),
        _of(
            "ditf-code", name="weakalign", about="extent of the source's points (WeakAlign, DenseMatching; those match "
            "target to source)", lookup="exact", headline="image_micro", length="source points",
        ),
        _of(
            "ditf-code", name="img", about="larger side of the target image, mean over pairs",
            lookup="exact", headline="image_micro", length="image",
        ),
    )
}  # fmt: skip


def root_of(folder: Path) -> Path:
    """The folder that holds the sub-classes' folders, or PF-dataset in it.

    Raises:
        InputError: neither.
    """
    for root in (folder, folder / "PF-dataset"):
        if any((root / name).is_dir() for name in CLASSES):
            return root
    raise InputError(f"--data: {folder} has none of the folders {', '.join(CLASSES[:3])}, ...; give PF-dataset")


def read(folder: Path, split: str, protocol: Protocol) -> PairSet:
    """The pairs of the CSV file, in its order.

    Raises:
        InputError: no such split, no CSV file, or no pairs to score.
    """
    check_split(split, SPLITS, "pfwillow")
    root, problems = root_of(folder), Problems()
    table, rows = _rows(root)
    pairs = []
    for number, row in enumerate(rows):
        pair = _pair(root, number, row, protocol, problems)
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise InputError(f"--data: {table} has no pair to score ({'; '.join(problems.sentences())})")
    return PairSet("pfwillow", split, root, tuple(pairs), problems, {"list": table.name, "pairs_listed": len(rows)})


def check(folder: Path) -> list[str]:
    """What is missing, one sentence each."""
    root = root_of(folder)
    missing = [f"{name}: no such folder" for name in CLASSES if not (root / name).is_dir()]
    try:
        table, rows = _rows(root)
    except InputError as error:
        return [*missing, str(error).removeprefix("--data: ")]
    if len(rows) != PAIRS:
        missing.append(f"{table.name}: {len(rows)} pairs, the published list has {PAIRS}")
    images = {_image(root, name) for row in rows for name in row[:2]}
    absent = sorted(str(path.relative_to(root)) for path in images if not path.is_file())
    if absent:
        missing.append(f"{table.name}: {len(absent)} of {len(images)} images missing, first {absent[0]}")
    return missing


def _rows(root: Path) -> tuple[Path, list[list[str]]]:
    """Without the line of headings."""
    for name in _TABLES:
        if (root / name).is_file():
            lines = list(csv.reader(io.StringIO((root / name).read_text(encoding="utf-8-sig"))))
            return root / name, [line for line in lines[1:] if line]
    raise InputError(f"--data: {root} has no {' or '.join(_TABLES)}; the archive lacks the pair list, put it there")


def _image(root: Path, written: str) -> Path:
    """The list's names start with PF-dataset/."""
    return root.joinpath(*PurePosixPath(written).parts[-2:])


def _pair(root: Path, number: int, row: list[str], protocol: Protocol, problems: Problems) -> Pair | None:
    """None where it cannot be scored; the reason is noted."""
    name = f"{number:04d}-{'-'.join(PurePosixPath(one).stem for one in row[:2])}"
    try:
        values = np.array([float(v) for v in row[2 : 2 + 4 * _POINTS]]).reshape(4, _POINTS)
        source, target = (_image(root, one) for one in row[:2])
        if not np.isfinite(values).all():
            raise ValueError("numbers that are not finite")
    except (ValueError, IndexError):
        problems.add("malformed annotation", name)
        return None
    category = target.parent.name
    if category not in CLASSES:
        problems.add("unknown category", f"{name} ({category})")
        return None
    points, truth = values[:2].T, values[2:].T
    real = ~((points == -1).all(1) | (truth == -1).all(1))
    points, truth = points[real], truth[real]
    if not len(points):
        problems.add("pair without points", name)
        return None
    width, height = (truth.max(0) - truth.min(0)).tolist()
    lengths = {
        "target points": max(width, height),
        "box width": width,
        "box height": height,
        "source points": _extent(points),
        "padded target points": _extent(np.concatenate([truth, [[-1.0, -1.0]]])),
    }
    needed = "target points" if protocol.length == "compare box" else protocol.length
    if not lengths.get(needed, 1.0) > 0:
        problems.add("pair with an empty box", name)
        return None
    prompt = category.partition("(")[0]
    return Pair(name, category, source, target, None, None, points, truth, lengths, prompt, prompt)


def _extent(points: np.ndarray) -> float:
    return float((points.max(0) - points.min(0)).max())
