"""AP-10K animal pose (Yu et al., arXiv 2108.12617) as pairs, in the layout of GeoAware-SC (arXiv 2311.17034).

::

    ap-10k/ImageAnnotation/{family}/{species}/{image}.json      COCO annotation merged with its image and category
           JPEGImages/{family}/{species}/{image}.jpg
           PairAnnotation/{test|val|trn}/{source}-{target}:{species}.json
           PairAnnotation/{test|val}_cross_species/{source}-{target}:{family}.json
           PairAnnotation/{test|val}_cross_family/{source}-{target}:all.json

``ditf data prepare ap10k`` makes that of the original archive.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import InputError
from .pairs import Pair, PairSet, Problems, check_split, read_json
from .protocols import PROTOCOLS, Protocol
from .symmetry import Symmetry, geometry_aware, mirror_places, of_names

__all__ = ["MARKER", "POINTS", "SYMMETRY", "check", "protocols", "read", "root_of"]

SPLITS = (
    "test", "test_cross_species", "test_cross_family", "val", "val_cross_species", "val_cross_family", "trn",
)  # fmt: skip
MARKER = "ditf-pairs.json"
"""Written by ``ditf data prepare``: says that the pair lists are ditf's, and their hashes."""

POINTS = (
    "left eye", "right eye", "nose", "neck", "root of tail", "left shoulder", "left elbow", "left front paw",
    "right shoulder", "right elbow", "right front paw", "left hip", "left knee", "left back paw", "right hip",
    "right knee", "right back paw",
)  # fmt: skip
"""Names of the 17 points, in their order."""
SYMMETRY = of_names(POINTS, {"by": "the points' names", "note": "GeoAware-SC's own list of groups may differ"})

_RELEASED = dataclasses.replace(
    PROTOCOLS["geoaware"],
    name="geoaware-released",
    about="GeoAware-SC's released loader: points of flag 1 count too, their coordinates on the canvas halved",
    visible=1,
)
protocols: dict[str, Protocol] = {**PROTOCOLS, _RELEASED.name: _RELEASED}


def root_of(folder: Path) -> Path:
    """The folder that holds ImageAnnotation/{family}/{species}, or the original archive's annotations.

    Raises:
        InputError: neither here nor in ap-10k.
    """
    for root in (folder, folder / "ap-10k"):
        if any((root / "ImageAnnotation").glob("*/*/")) or any((root / "annotations").glob("ap10k-*.json")):
            return root
    raise InputError(f"--data: {folder} has neither ImageAnnotation/family/species nor annotations/ap10k-*.json; give "
                     "the folder ap-10k of the unpacked archive")  # fmt: skip


def read(folder: Path, split: str, protocol: Protocol, symmetry: Symmetry | None = None) -> PairSet:
    """The pairs of PairAnnotation/{split}, category by category, in sorted order.

    Args:
        symmetry: by the positions of the points ("0" to "16") and the pairs' categories; None: by their names.

    Raises:
        InputError: no such split, pairs that were never prepared, or none to score.
    """
    check_split(split, SPLITS, "ap10k")
    root, problems = root_of(folder), Problems()
    files = _pair_files(root, split)
    if not files:
        raise InputError(
            f"--data: {root / 'PairAnnotation' / split} has no pairs; make them: ditf data prepare ap10k {root}"
        )
    known, symmetry = _categories(root, split), symmetry or SYMMETRY
    annotations: dict[Path, dict[str, Any] | None] = {}
    pairs = []
    for path in files:
        category = path.name[: -len(".json")].rpartition(":")[2]
        if category not in known:
            problems.add("unknown category", f"{path.name} ({category})")
            continue
        pair = _pair(root, path, category, protocol, symmetry, annotations, problems)
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise InputError(f"--data: {root} has no pair to score in {split} ({'; '.join(problems.sentences())})")
    symmetry.check({pair.category for pair in pairs}, mirror=protocol.align_pose)
    facts = {"pairs_listed": len(files), **_origin(root), "symmetry": dict(symmetry.about)}
    return PairSet("ap10k", split, root, tuple(pairs), problems, facts)


def check(folder: Path) -> list[str]:
    """What is missing, one sentence each; every image of the test pairs is looked for."""
    root, missing = root_of(folder), []
    if not any((root / "ImageAnnotation").glob("*/*/")):
        return [f"ImageAnnotation, JPEGImages, PairAnnotation: not prepared; run ditf data prepare ap10k {root}"]
    for split in SPLITS[:3]:
        files = _pair_files(root, split)
        if not files:
            missing.append(f"PairAnnotation/{split}: no pairs")
        wanted: set[Path] = set()
        for path in files:
            content = read_json(path, Problems())
            for key in ("src_json_path", "trg_json_path"):
                annotation = _annotation_path(root, str(content.get(key))) if content else None
                if annotation is None:
                    missing.append(f"PairAnnotation/{split}/{path.name}: malformed")
                    break
                wanted |= {annotation, _image_path(root, annotation)}
        absent = sorted(str(path.relative_to(root)) for path in wanted if not path.is_file())
        if absent:
            missing.append(f"{split}: {len(absent)} of {len(wanted)} annotations and images missing, first {absent[0]}")
    return missing


def _pair_files(root: Path, split: str) -> list[Path]:
    """By category, then by name: a prefix of one category never sees another's ("cat", "bobcat")."""
    found = [p for p in (root / "PairAnnotation" / split).glob("*.json") if not p.name.startswith(".")]
    return sorted(found, key=lambda path: (path.name[: -len(".json")].rpartition(":")[2], path.name))


def _categories(root: Path, split: str) -> set[str]:
    """Species, families, or "all"."""
    if split.endswith("_cross_family"):
        return {"all"}
    depth = "*/" if split.endswith("_cross_species") else "*/*/"
    return {path.name for path in (root / "ImageAnnotation").glob(depth) if path.is_dir()}


def _origin(root: Path) -> dict[str, Any]:
    """Whose pair lists these are."""
    marker = root / MARKER
    if not marker.is_file():
        return {"list": "taken as found (GeoAware-SC's order depends on the file system it was prepared on)"}
    try:
        about = json.loads(marker.read_text(encoding="utf-8"))
        return {"list": "prepared by ditf in sorted order: not the published list", "prepared": about}
    except (OSError, ValueError):
        raise InputError(f"--data: {marker} cannot be read; run ditf data prepare ap10k {root} again") from None


def _annotation_path(root: Path, written: str) -> Path | None:
    """Pair files name paths relative to another checkout: what follows ImageAnnotation counts."""
    parts = PurePosixPath(written.replace("\\", "/")).parts
    if "ImageAnnotation" not in parts or ".." in parts:
        return None
    return root.joinpath(*parts[parts.index("ImageAnnotation") :])


def _image_path(root: Path, annotation: Path) -> Path:
    """Only the suffix changes: a folder may be called "json"."""
    within = annotation.relative_to(root / "ImageAnnotation")
    return root / "JPEGImages" / within.parent / f"{annotation.stem}.jpg"


def _pair(
    root: Path, path: Path, category: str, protocol: Protocol, symmetry: Symmetry,
    known: dict[Path, dict[str, Any] | None], problems: Problems,
) -> Pair | None:  # fmt: skip
    """None where it cannot be scored; the reason is noted."""
    name = f"PairAnnotation/{path.parent.name}/{path.name}"
    content = read_json(path, problems, name)
    if content is None:
        return None
    sides = []
    for key in ("src_json_path", "trg_json_path"):
        annotation = _annotation_path(root, str(content.get(key)))
        if annotation is None:
            problems.add("malformed annotation", name)
            return None
        if annotation not in known:
            known[annotation] = read_json(annotation, problems)
        side = known[annotation]
        if side is None:
            problems.add("pair without its annotation", path.name)
            return None
        sides.append((annotation, side))
    try:
        flags, points = zip(*(_key_points(side) for _, side in sides), strict=True)
        width, height = (float(v) for v in sides[1][1]["bbox"][2:4])
        sizes = [(int(side["height"]), int(side["width"])) for _, side in sides]
        species = [str(side["name"]) for _, side in sides]
    except (KeyError, TypeError, ValueError):
        problems.add("malformed annotation", name)
        return None
    seen = (flags[0] >= protocol.visible) & (flags[1] >= protocol.visible)
    if not seen.any():
        problems.add("pair without points", path.name)
        return None
    if not max(width, height) > 0:
        problems.add("pair with an empty box", path.name)
        return None
    factors = (flags[0][seen] / 2, flags[1][seen] / 2) if protocol.visible == 1 else None
    images = [_image_path(root, annotation) for annotation, _ in sides]
    lengths = {"box": max(width, height), "box width": width, "box height": height}
    ids, target_ids = _ids(seen), _ids(flags[1] >= protocol.visible)
    places = {i: tuple(points[0][int(i)]) for i in _ids(flags[0] >= protocol.visible)}
    return Pair(
        path.name[: -len(".json")], category, images[0], images[1], sizes[0], sizes[1], points[0][seen],
        points[1][seen], lengths, species[0], species[1], factors,
        geometry_aware(ids, target_ids, symmetry.groups(category)), mirror_places(ids, places, symmetry, category),
    )  # fmt: skip


def _ids(shown: np.ndarray) -> list[str]:
    """Positions of the points that are."""
    return [str(i) for i in np.flatnonzero(shown)]


def _key_points(annotation: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(17,) flags 0 none, 1 occluded, 2 visible; (17, 2) points.

    Raises:
        KeyError, ValueError: not 17 times three finite numbers.
    """
    values = np.asarray(annotation["keypoints"], dtype=np.float64).reshape(17, 3)
    if not np.isfinite(values).all():
        raise ValueError("key points that are not finite")
    return values[:, 2], values[:, :2]
