"""PF-PASCAL (Ham et al., arXiv 1703.07144): 299 test pairs, 4 to 17 points each.

::

    PF-dataset-PASCAL/JPEGImages/{image}.jpg
                      Annotations/{class}/{image}.mat                 kps (N, 2), NaN where missing; bbox (1, 4)
                      test_pairs_pf_pascal.csv  or  test_pairs.csv    (val_..., trn_... alike)
"""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import InputError
from .pairs import Pair, PairSet, Problems, as_points, check_split
from .protocols import PROTOCOLS, Protocol

__all__ = ["CLASSES", "check", "protocols", "read", "root_of"]

SPLITS = ("test", "val", "trn")
PAIRS = {"test": 299, "val": 308, "trn": 2940}
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_ALPHAS = (0.1, 0.05, 0.15)


def _of(base: str, **changes: Any) -> Protocol:
    return dataclasses.replace(PROTOCOLS[base], alphas=_ALPHAS, **{"length": "image", **changes})


protocols: dict[str, Protocol] = {
    p.name: p
    for p in (
        _of("ditf-code", about="DiTF's released matching; no source says which length it scores PF-PASCAL by: image"),
        _of("ditf-paper"),
        _of("dift"),
        _of("sd4match", length="compare"),
        _of("sd4match-softmax", length="compare"),
        _of("geoaware", arithmetic="float32", annotations="pairs"),
        _of("geoaware-window", arithmetic="float32", annotations="pairs"),
        _of("geoaware-window-strict", arithmetic="float32", annotations="pairs"),
        _of("sd-dino", arithmetic="float32"),
        _of(
            "ditf-code", name="hpf", about="hpf, CATs: larger side of the target image, mean over pairs",
            lookup="exact", arithmetic="float32", headline="image_micro",
        ),
        _of(
            "ditf-code", name="scnet", about="NCNet and before: points scaled to 224 x 224, length 224",
            lookup="exact", arithmetic="float32", compare=(224, 224), length="compare", headline="image_micro",
        ),
        _of(
            "ditf-code", name="bbox", about="larger side of the target's box in its .mat file, mean over pairs",
            lookup="exact", length="box", headline="image_micro",
        ),
        _of(
            "ditf-code", name="pf", about="the data set's own paper: largest extent of the source's points",
            lookup="exact", length="source points", headline="image_micro",
        ),
    )
}  # fmt: skip


def root_of(folder: Path) -> Path:
    """The folder that holds JPEGImages and Annotations with .mat files, or PF-dataset-PASCAL in it.

    Raises:
        InputError: neither.
    """
    for root in (folder, folder / "PF-dataset-PASCAL"):
        if (root / "JPEGImages").is_dir() and any((root / "Annotations").glob("*/*.mat")):
            return root
    raise InputError(f"--data: {folder} has no JPEGImages and Annotations/class/*.mat; give PF-dataset-PASCAL")


def read(folder: Path, split: str, protocol: Protocol) -> PairSet:
    """The pairs of the split's CSV file, in its order.

    Raises:
        InputError: no such split, no CSV file, no pairs to score, or scipy is missing where .mat files are needed.
    """
    check_split(split, SPLITS, "pfpascal")
    root, problems = root_of(folder), Problems()
    table = _table(root, split)
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
    pairs = []
    for number, row in enumerate(rows):
        pair = _pair(root, f"{number:04d}", row, protocol, problems)
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise InputError(f"--data: {table} has no pair to score ({'; '.join(problems.sentences())})")
    return PairSet("pfpascal", split, root, tuple(pairs), problems, {"list": table.name, "pairs_listed": len(rows)})


def check(folder: Path) -> list[str]:
    """What is missing, one sentence each."""
    root, missing = root_of(folder), []
    for split in ("test", "val"):
        try:
            table = _table(root, split)
        except InputError as error:
            missing.append(str(error).removeprefix("--data: "))
            continue
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
        if len(rows) != PAIRS[split]:
            missing.append(f"{table.name}: {len(rows)} pairs, the published split has {PAIRS[split]}")
        names = {PurePosixPath(row.get(k) or "").name for row in rows for k in ("source_image", "target_image")}
        absent = sorted(name for name in names if not (root / "JPEGImages" / name).is_file())
        if absent:
            missing.append(f"{table.name}: {len(absent)} of {len(names)} images missing, first JPEGImages/{absent[0]}")
    absent = [name for name in CLASSES if not (root / "Annotations" / name).is_dir()]
    if absent:
        missing.append(f"Annotations: {len(absent)} of {len(CLASSES)} classes missing, first {absent[0]}")
    return missing


def _table(root: Path, split: str) -> Path:
    names = (f"{split}_pairs_pf_pascal.csv", f"{split}_pairs.csv", *(["train_pairs.csv"] if split == "trn" else []))
    for name in names:
        if (root / name).is_file():
            return root / name
    raise InputError(f"--data: {root} has no {' or '.join(names)}; the archive lacks the pair lists, put them there")


def _pair(root: Path, number: str, row: dict[str, Any], protocol: Protocol, problems: Problems) -> Pair | None:
    """None where it cannot be scored; the reason is noted."""
    images = [PurePosixPath(row.get(key) or "").name for key in ("source_image", "target_image")]
    name = f"{number}-{PurePosixPath(images[0]).stem}-{PurePosixPath(images[1]).stem}"
    try:
        index = int(row["class"])
        if not 1 <= index <= len(CLASSES):  # 1-based, in VOC order
            problems.add("unknown category", f"{name} ({index})")
            return None
        category = CLASSES[index - 1]
        if row.get("flip") == "1":
            problems.add("mirrored pair, left out", name)
            return None
        points, truth = _points(root, category, images, row)
        lengths = {"source points": _extent(points)} if len(points) else {}
        if protocol.length == "box":
            box = _mat(root, category, images[1])["bbox"].astype(np.float64).ravel()
            lengths["box"] = float(max(box[2] - box[0], box[3] - box[1]))
    except FileNotFoundError:
        problems.add("missing annotation", name)
        return None
    except (KeyError, TypeError, ValueError, IndexError):
        problems.add("malformed annotation", name)
        return None
    if not len(points):
        problems.add("pair without points", name)
        return None
    if not lengths.get(protocol.length, 1.0) > 0:
        problems.add("pair with an empty box", name)
        return None
    source, target = (root / "JPEGImages" / image for image in images)
    return Pair(name, category, source, target, None, None, points, truth, lengths, category, category)


def _points(root: Path, category: str, images: list[str], row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of the CSV; where it has none, those that both .mat files have. Padding of -1 is no point.

    Raises:
        ValueError: not as many in both, or no numbers.
    """
    if row.get("XA"):
        x, y, u, v = ([float(t) for t in row[k].split(";") if t] for k in ("XA", "YA", "XB", "YB"))
        points = as_points([list(p) for p in zip(x, y, strict=True)])
        truth = as_points([list(p) for p in zip(u, v, strict=True)])
    else:
        points, truth = (_mat(root, category, image)["kps"].astype(np.float64) for image in images)
        if points.ndim != 2 or points.shape != truth.shape or points.shape[1] != 2:
            raise ValueError("key points that do not correspond")
        known = np.isfinite(points).all(1) & np.isfinite(truth).all(1)
        points, truth = points[known], truth[known]
    if len(points) != len(truth):
        raise ValueError("key points that do not correspond")
    real = ~((points == -1).all(1) | (truth == -1).all(1)) if len(points) else np.zeros(0, bool)
    return points[real], truth[real]


def _extent(points: np.ndarray) -> float:
    return float((points.max(0) - points.min(0)).max())


def _mat(root: Path, category: str, image: str) -> dict[str, np.ndarray]:
    """Raises FileNotFoundError, or ValueError for a file that is none."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise InputError('--protocol: .mat files need scipy; pip install "ditf[eval]"') from None
    path = root / "Annotations" / category / (PurePosixPath(image).stem + ".mat")
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        return loadmat(str(path))
    except (MatReadError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} is no .mat file") from error
