"""SPair-71k (Min et al., arXiv 1908.10543): 18 categories, 12,234 test pairs of 481 images.

::

    SPair-71k/JPEGImages/{category}/{image}.jpg
              PairAnnotation/{trn|val|test}/{number}-{source}-{target}:{category}.json
              ImageAnnotation/{category}/{image}.json
              Layout/{large|small}/{trn|val|test}.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from .pairs import Pair, PairSet, Problems, as_points, check_split, read_json
from .protocols import PROTOCOLS, Protocol
from .symmetry import Symmetry, geometry_aware, mirror_places

__all__ = ["CATEGORIES", "PAIRS", "check", "protocols", "read", "root_of"]

SPLITS = ("test", "val", "trn")
PAIRS = {"trn": 53340, "val": 5384, "test": 12234}
CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "train", "tvmonitor",
)  # fmt: skip

protocols: dict[str, Protocol] = PROTOCOLS


def root_of(folder: Path) -> Path:
    """The folder that holds PairAnnotation: the one given, or SPair-71k in it.

    Raises:
        InputError: neither.
    """
    for root in (folder, folder / "SPair-71k"):
        if (root / "PairAnnotation").is_dir() and not any((root / "ImageAnnotation").glob("*/*/")):  # that is AP-10K
            return root
    raise InputError(f"--data: {folder} has no PairAnnotation; give the folder SPair-71k of the unpacked archive")


def read(folder: Path, split: str, protocol: Protocol, symmetry: Symmetry | None = None) -> PairSet:
    """The pairs of Layout/large/{split}.txt, or all of PairAnnotation/{split} in sorted order where that is missing.

    Args:
        symmetry: by the ids of the points ("0" to "29"), which have no names in the annotations: what is alike is not
            known unless it is given.

    Raises:
        InputError: no such split, no pairs to score, or a category that ``symmetry`` leaves out.
    """
    check_split(split, SPLITS, "spair")
    root, problems = root_of(folder), Problems()
    names, listed = _names(root, split)
    pairs = []
    for name in names:
        pair = _pair(root, split, name, protocol, symmetry, problems)
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise InputError(
            f"--data: {root} has no pair to score in PairAnnotation/{split} ({'; '.join(problems.sentences())}); "
            f"ditf data check {root} says what is missing"
        )
    facts: dict[str, Any] = {"list": listed, "pairs_listed": len(names), "pairs_of_the_whole_split": PAIRS[split]}
    if symmetry is not None:
        symmetry.check({pair.category for pair in pairs}, mirror=protocol.align_pose)
        facts["symmetry"] = dict(symmetry.about)
    return PairSet("spair", split, root, tuple(pairs), problems, facts)


def check(folder: Path) -> list[str]:
    """What is missing, one sentence each; the images of the test pairs are looked for one by one."""
    root, missing = root_of(folder), []
    for split in SPLITS:
        names, listed = _names(root, split)
        if len(names) != PAIRS[split]:
            missing.append(f"{split}: {len(names)} pairs by {listed}, the published split has {PAIRS[split]}")
        there = {path.name for path in (root / "PairAnnotation" / split).glob("*.json")}
        absent = [name for name in names if f"{name}.json" not in there]
        if absent:
            missing.append(f"PairAnnotation/{split}: {len(absent)} of {len(names)} missing, first {absent[0]}.json")
    for category in CATEGORIES:
        for kind in ("JPEGImages", "ImageAnnotation"):
            if not (root / kind / category).is_dir():
                missing.append(f"{kind}/{category}: no such folder")
    images = {path for name in _names(root, "test")[0] for path in _image_paths(root, name)}
    absent = sorted(str(path.relative_to(root)) for path in images if not path.is_file())
    if absent:
        missing.append(f"{len(absent)} of {len(images)} images of the test pairs missing, first {absent[0]}")
    return missing


def _names(root: Path, split: str) -> tuple[list[str], str]:
    """Pair names without ".json", and where the list comes from."""
    layout = root / "Layout" / "large" / f"{split}.txt"
    if layout.is_file():
        lines = layout.read_text(encoding="utf-8").split("\n")
        return [line.strip() for line in lines if line.strip()], f"Layout/large/{split}.txt"
    files = sorted(p for p in (root / "PairAnnotation" / split).glob("*.json") if not p.name.startswith("."))
    return [path.name[: -len(".json")] for path in files], f"PairAnnotation/{split}, sorted"


def _image_paths(root: Path, name: str) -> list[Path]:
    """By the pair's name alone; none where it is no such name."""
    stem, colon, category = name.rpartition(":")
    parts = stem.split("-")
    if not colon or len(parts) != 3:
        return []
    return [root / "JPEGImages" / category / f"{part}.jpg" for part in parts[1:]]


def _pair(
    root: Path, split: str, name: str, protocol: Protocol, symmetry: Symmetry | None, problems: Problems
) -> Pair | None:
    """None where it cannot be scored; the reason is noted."""
    content = read_json(root / "PairAnnotation" / split / f"{name}.json", problems, f"PairAnnotation/{split}/{name}")
    if content is None:
        return None
    geometry = counterparts = None
    try:
        category = str(content["category"])  # never a part of the file's name: "cat" is one of "bobcat"
        if category not in CATEGORIES:
            problems.add("unknown category", f"{name} ({category})")
            return None
        box = [float(v) for v in content["trg_bndbox"]]
        sizes = [(int(s[1]), int(s[0])) for s in (content["src_imsize"], content["trg_imsize"])]
        names = [str(content[key]) for key in ("src_imname", "trg_imname")]
        points, truth = as_points(content["src_kps"]), as_points(content["trg_kps"])
        if len(points) != len(truth) or len(box) != 4:
            raise ValueError("points or box do not fit")
        length = max(box[2] - box[0], box[3] - box[1])  # 1-based inclusive corners; the plain difference, no + 1
        if protocol.annotations == "images" or symmetry is not None:
            sides = _image_points(root, category, names, problems)
            if sides is None:
                return None
            ids = [str(i) for i in content.get("kps_ids", [])]
            if protocol.annotations == "images":  # GeoAware-SC reads these, not the pair's
                ids = sorted(set(sides[0]) & set(sides[1]), key=int)
                points, truth = (as_points([side[i] for i in ids]) for side in sides)
            if symmetry is not None:
                if len(ids) != len(points):
                    raise ValueError("ids do not fit")
                geometry = geometry_aware(ids, sides[1], symmetry.groups(category))
                counterparts = mirror_places(ids, sides[0], symmetry, category)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        problems.add("malformed annotation", f"PairAnnotation/{split}/{name}")
        return None
    if not len(points):
        problems.add("pair without points", name)
        return None
    if not length > 0:
        problems.add("pair with an empty box", name)
        return None
    folder = root / "JPEGImages" / category
    return Pair(
        name, category, folder / names[0], folder / names[1], sizes[0], sizes[1], points, truth,
        {"box": length, "box width": box[2] - box[0], "box height": box[3] - box[1]}, category, category,
        geometry=geometry, counterparts=counterparts,
    )  # fmt: skip


def _image_points(
    root: Path, category: str, names: list[str], problems: Problems
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Id -> (x, y) of every point that source and target show, by their own annotations; None where one cannot be
    read, which is noted."""
    found: list[dict[str, Any]] = []
    for name in names:
        path = root / "ImageAnnotation" / category / (Path(name).stem + ".json")
        content = read_json(path, problems, f"ImageAnnotation/{category}/{path.name}")
        if content is None:
            return None
        found.append({k: v for k, v in content["kps"].items() if v is not None})
    return found[0], found[1]
