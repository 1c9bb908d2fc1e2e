"""AP-10K's original archive made into pairs, as GeoAware-SC describes it, but in an order that is the same everywhere.

The published lists exist as no file: the code that made them reads folders in the order of its file system and draws
from what it finds. Here everything is sorted first and drawn with seed 42, and the folder says so.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, StoreError
from ..store import digest
from ..types import write_atomically
from .ap10k import MARKER

__all__ = ["prepare"]

SEED = 42
TEST, VAL = 30, 20  # images of a species
LEAST_POINTS = 3  # visible in an image, and in both images of a pair
PAIRS_PER_TRAINING_IMAGE = 50
CROSS_SPECIES = {"test": 900, "val": 400}  # of a family
CROSS_FAMILY = {"test": 30, "val": 20}  # of two families

Annotation = dict[str, Any]
Progress = Callable[[int, int], None]


def prepare(
    folder: Path, *, crowd: Path | None = None, train: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Write ImageAnnotation, JPEGImages and PairAnnotation into the archive's folder; images are linked or copied.

    Args:
        folder: with ``annotations/ap10k-{train,val,test}-split1.json`` and ``data/``.
        crowd: a text file of 12-digit image ids to leave out (GeoAware-SC's ``ap-10k_is_crowd.txt``); without it
            only what the annotations call a crowd is.
        train: also the training pairs, some 260,000 files.

    Returns:
        What was written: counts, and a hash of every pair list.

    Raises:
        InputError: not the archive, or a folder that was prepared already, by whomever.
        StoreError: the folder cannot be written.
    """
    begun = folder / (MARKER + ".begun")
    if (folder / MARKER).is_file():
        raise InputError(f"FOLDER: {folder} was prepared already; remove {MARKER} and PairAnnotation to do it again")
    if any((folder / "PairAnnotation").glob("*/*.json")) and not begun.is_file():
        raise InputError(f"FOLDER: {folder} has pair lists already; they are taken as they are")
    merged, missing = _merged(folder)
    crowds = _crowd_ids(crowd)
    species = _kept(merged, crowds)
    try:
        if begun.is_file():  # what a run that was stopped left may be of another list of crowds
            shutil.rmtree(folder / "PairAnnotation", ignore_errors=True)
        write_atomically(begun, b"")
        about = _write(folder, species, train, progress or (lambda done, total: None))
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror}); choose a writable copy") from None
    about |= {
        "crowd_list": None if crowd is None else crowd.name,
        "images_without_file": {"count": len(missing), "first": sorted(missing)[:20]},
        "order": "sorted; drawn with seed 42; not the published list",
    }
    write_atomically(folder / MARKER, (json.dumps(about, indent=1) + "\n").encode())
    begun.unlink(missing_ok=True)
    return about


def _merged(folder: Path) -> tuple[list[Annotation], list[str]]:
    """The first annotation of every image, with its image and category; and the images that have no file."""
    seen: dict[int, Annotation] = {}
    missing = []
    for split in ("train", "val", "test"):
        path = folder / "annotations" / f"ap10k-{split}-split1.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            images = {image["id"]: image for image in content["images"]}
            categories = {category["id"]: category for category in content["categories"]}
            for one in sorted(content["annotations"], key=lambda a: (a["image_id"], a["id"])):
                image = images[one["image_id"]]
                if image["id"] in seen:
                    continue
                category = categories[one["category_id"]]
                names = {"name": category["name"], "supercategory": category["supercategory"]}
                seen[image["id"]] = {**one, **image, **names, "image_id": image["id"]}
        except FileNotFoundError:
            raise InputError(f"FOLDER: {path} is missing; give the folder ap-10k of the unpacked archive") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"FOLDER: {path} cannot be used ({error!r}); unpack the archive again") from None
    found = []
    for image_id in sorted(seen):
        one = seen[image_id]
        if (folder / "data" / one["file_name"]).is_file():
            found.append(one)
        else:
            missing.append(one["file_name"])
    if not found:
        raise InputError(f"FOLDER: {folder / 'data'} has none of the annotated images; unpack the archive again")
    return found, missing


def _crowd_ids(path: Path | None) -> set[int]:
    if path is None:
        return set()
    try:
        return {int(line) for line in path.read_text(encoding="utf-8").split()}
    except (OSError, ValueError) as error:
        raise InputError(f"--crowd: {path} cannot be used ({error}); one image id a line") from None


def _kept(annotations: Sequence[Annotation], crowds: set[int]) -> dict[tuple[str, str], list[Annotation]]:
    """(family, species) -> images with enough points, sorted."""
    species: dict[tuple[str, str], list[Annotation]] = {}
    for one in annotations:
        if one["id"] in crowds or one.get("iscrowd") or one["num_keypoints"] < LEAST_POINTS:
            continue
        species.setdefault((one["supercategory"], one["name"]), []).append(one)
    return dict(sorted(species.items()))


def split_images(images: Sequence[Any]) -> dict[str, list[Any]]:
    """The last 30 are for the test, up to 20 before them for validation, the rest for training."""
    test = list(images[-TEST:])
    before = list(images[: len(images) - len(test)])
    return {"test": test, "val": before[-VAL:], "trn": before[:-VAL]}


def _write(
    folder: Path, species: dict[tuple[str, str], list[Annotation]], train: bool, progress: Progress
) -> dict[str, Any]:
    splits = {who: split_images(images) for who, images in species.items()}
    lists: dict[str, list[tuple[str, Annotation, Annotation]]] = {}
    for split in ("test", "val", *(["trn"] if train else [])):
        lists[split] = [
            (name, *pair)
            for (_, name), own in splits.items()
            for pair in _intra(own[split], PAIRS_PER_TRAINING_IMAGE * len(own["trn"]) if split == "trn" else None)
        ]
    for split in ("test", "val"):
        lists[f"{split}_cross_species"] = _cross_species(splits, split)
        lists[f"{split}_cross_family"] = _cross_family(splits, split)
    total, done = sum(map(len, species.values())) + sum(map(len, lists.values())), 0
    for (family, name), images in species.items():
        for one in images:
            _write_image(folder, family, name, one)
            done += 1
            progress(done, total)
        for split, own in (("train", "trn"), ("val", "val"), ("test", "test")):
            ids = "".join(f"{one['id']:012d}\n" for one in splits[family, name][own])
            write_atomically(folder / "ImageAnnotation" / family / name / f"{split}_filtered.txt", ids.encode())
    hashes = {}
    for split, pairs in lists.items():
        target = folder / "PairAnnotation" / split
        target.mkdir(parents=True, exist_ok=True)
        for tag, a, b in pairs:
            content = {"src_json_path": _relative(a), "trg_json_path": _relative(b)}
            (target / f"{a['id']:012d}-{b['id']:012d}:{tag}.json").write_text(json.dumps(content, indent=4))
            done += 1
            progress(done, total)
        hashes[split] = {"pairs": len(pairs), "sha256": digest([[tag, a["id"], b["id"]] for tag, a, b in pairs])}
    return {"species": len(species), "images": sum(map(len, species.values())), "lists": hashes}


def _write_image(folder: Path, family: str, name: str, one: Annotation) -> None:
    path = folder / "ImageAnnotation" / family / name / f"{one['id']:012d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(one))
    image = folder / "JPEGImages" / family / name / f"{one['id']:012d}.jpg"
    image.parent.mkdir(parents=True, exist_ok=True)
    if image.exists():
        return
    try:
        os.link(folder / "data" / one["file_name"], image)
    except OSError:  # another file system, or one without links
        shutil.copyfile(folder / "data" / one["file_name"], image)


def _relative(one: Annotation) -> str:
    return f"ImageAnnotation/{one['supercategory']}/{one['name']}/{one['id']:012d}.json"


# --- pairs -----------------------------------------------------------------------------------------------------------


def _flags(images: Sequence[Annotation]) -> np.ndarray:
    """(n, 17) half of each point's flag: 1 where it is visible."""
    return np.array([one["keypoints"][2::3] for one in images], np.float64).reshape(-1, 17) / 2


def _intra(images: Sequence[Annotation], most: int | None) -> list[tuple[Annotation, Annotation]]:
    """All combinations of a shuffled list that share enough visible points, or a sample of them."""
    shuffled = list(images)
    random.Random(SEED).shuffle(shuffled)
    flags = _flags(shuffled)
    shared = flags @ flags.T >= LEAST_POINTS
    pairs = [
        (shuffled[i], shuffled[j]) for i, j in itertools.combinations(range(len(shuffled)), 2) if shared[i, j]
    ]  # fmt: skip
    return pairs if most is None or most >= len(pairs) else random.Random(SEED).sample(pairs, most)


def _between(first: Sequence[Annotation], second: Sequence[Annotation]) -> list[tuple[Annotation, Annotation]]:
    if not first or not second:
        return []
    rows, columns = np.nonzero(_flags(first) @ _flags(second).T >= LEAST_POINTS)
    return [(first[i], second[j]) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]


def _cross_species(splits: dict[tuple[str, str], Any], split: str) -> list[tuple[str, Annotation, Annotation]]:
    found = []
    for family in sorted({family for family, _ in splits}):
        members = [splits[who][split] for who in splits if who[0] == family]
        pairs = [pair for a, b in itertools.combinations(members, 2) for pair in _between(a, b)]
        most = CROSS_SPECIES[split]
        pairs = pairs if most >= len(pairs) else random.Random(SEED).sample(pairs, most)
        found += [(family, *pair) for pair in pairs]
    return found


def _cross_family(splits: dict[tuple[str, str], Any], split: str) -> list[tuple[str, Annotation, Annotation]]:
    families: dict[str, list[Annotation]] = {}
    for (family, _), own in splits.items():
        families.setdefault(family, []).extend(own[split])
    found = []
    for a, b in itertools.combinations(sorted(families), 2):
        pairs = _between(families[a], families[b])
        most = CROSS_FAMILY[split]
        pairs = pairs if most >= len(pairs) else random.Random(SEED).sample(pairs, most)
        found += [("all", *pair) for pair in pairs]
    return found
