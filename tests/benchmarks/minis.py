"""Miniature data sets in the real layouts, and features whose matches are known in closed form.

Every target is its source moved by whole feature cells, and every annotated point is off by a chosen vector, so that
oracle features find source + shift exactly and the error of a point is the length of its vector.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ditf import FeatureMap
from ditf.benchmarks.methods import Method, Picture

STRIDE = 8


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 smooth picture that nowhere repeats itself."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = random.normal(0, 0.12, (3, 12, 2)), random.uniform(0, 2 * math.pi, (3, 12))
    picture = np.stack(
        [
            sum(np.cos(fx * x + fy * y + p) for (fx, fy), p in zip(f, phases, strict=True))
            for f, phases in zip(*waves, strict=True)
        ],
        -1,
    )
    picture -= picture.min()
    return (picture / picture.max() * 255).astype(np.uint8)


def moved(picture: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Content moved right and down; the border is repeated."""
    rows = np.clip(np.arange(picture.shape[0]) - dy, 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(picture.shape[1]) - dx, 0, picture.shape[1] - 1)
    return picture[rows][:, columns]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95) if path.suffix == ".jpg" else Image.fromarray(pixels).save(path)


# --- SPair-71k -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpairPair:
    """``points``: x, y and the annotation's error ex, ey."""

    category: str
    source: str
    target: str
    size: tuple[int, int]
    shift: tuple[int, int]
    points: tuple[tuple[int, int, int, int], ...]
    box: tuple[int, int, int, int]
    ids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{SPAIR.index(self):06d}-{self.source}-{self.target}:{self.category}"


SPAIR = [
    SpairPair(
        "cat", "2008_000001", "2008_000002", (120, 160), (16, 8),
        ((40, 40, 0, 0), (56, 40, 3, 4), (40, 56, 6, 8), (72, 64, 0, 3)), (21, 21, 121, 91), (0, 1, 2, 3),
    ),
    SpairPair("cat", "2008_000002", "2008_000003", (120, 160), (0, 8), ((64, 48, 12, 0),), (1, 1, 101, 61), (4,)),
    SpairPair(
        "bicycle", "2009_000001", "2009_000002", (160, 120), (8, 16),
        ((40, 40, 0, 4), (48, 64, 5, 0), (56, 72, 0, 11)), (11, 11, 51, 51), (0, 2, 5),
    ),
]  # fmt: skip
SPAIR_SHIFTS = {  # of an image against the first of its chain
    "2008_000001": (0, 0), "2008_000002": (16, 8), "2008_000003": (16, 16),
    "2009_000001": (0, 0), "2009_000002": (8, 16),
}  # fmt: skip
SPAIR_ERRORS = [[0, 5, 10, 3], [12], [4, 5, 11]]
SPAIR_LENGTHS = [100, 100, 40]


def annotation(pair: SpairPair) -> dict[str, Any]:
    """Of PairAnnotation."""
    (height, width), (dx, dy) = pair.size, pair.shift
    return {
        "filename": pair.name,
        "src_imname": pair.source + ".jpg",
        "trg_imname": pair.target + ".jpg",
        "src_imsize": [width, height, 3],
        "trg_imsize": [width, height, 3],
        "src_bndbox": list(pair.box),
        "trg_bndbox": list(pair.box),
        "category": pair.category,
        "src_kps": [[x, y] for x, y, _, _ in pair.points],
        "trg_kps": [[x + dx + ex, y + dy + ey] for x, y, ex, ey in pair.points],
        "kps_ids": [str(i) for i in pair.ids],
        "mirror": 0,
        "viewpoint_variation": 0,
        "scale_variation": 0,
        "truncation": 0,
        "occlusion": 0,
        "pair_id": SPAIR.index(pair),
    }


def make_spair(folder: Path) -> Path:
    root = folder / "SPair-71k"
    points: dict[tuple[str, str], dict[str, list[int]]] = {}
    for i, pair in enumerate(SPAIR):
        content = annotation(pair)
        write_json(root / "PairAnnotation" / "test" / f"{pair.name}.json", content)
        for side, kind in ((pair.source, "src"), (pair.target, "trg")):
            own = points.setdefault((pair.category, side), {})
            own.update(zip(content["kps_ids"], content[f"{kind}_kps"], strict=True))
            path = root / "JPEGImages" / pair.category / f"{side}.jpg"
            base = texture(*pair.size, seed=10 + (i if pair.category == "bicycle" else 0))
            write_image(path, moved(base, *SPAIR_SHIFTS[side]))
    for (category, name), own in points.items():
        about = {"filename": f"{name}.jpg", "category": category, "bndbox": [1, 1, 100, 100]}
        kps = {str(i): own.get(str(i)) for i in range(30)}
        write_json(root / "ImageAnnotation" / category / f"{name}.json", {**about, "kps": kps})
    for layout in ("large", "small"):
        for split in ("trn", "val", "test"):
            path = root / "Layout" / layout / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{pair.name}\n" for pair in SPAIR) if split == "test" else "")
    return root


# --- AP-10K ----------------------------------------------------------------------------------------------------------

# 420 x 280 becomes 840 x 560 on the canvas, 140 down: x' = 2x, y' = 2y + 140, one pixel off the centre of a patch.
AP10K_POINTS = {0: (73, 87, 2), 1: (143, 87, 2), 2: (213, 157, 2), 5: (283, 157, 2)}
AP10K_TALL = {0: (87, 73, 2), 1: (87, 143, 2), 2: (157, 213, 2), 5: (157, 283, 2)}


def animal(number: int, family: str, species: str, size: tuple[int, int], points: dict[int, Any], box: Any) -> dict:
    """An image's annotation as GeoAware-SC merges it; ``size`` is (H, W), ``box`` left, top, width, height."""
    flat = [0] * 51
    for i, values in points.items():
        flat[3 * i : 3 * i + 3] = values
    return {
        "id": number, "image_id": number, "category_id": 1, "bbox": list(box), "iscrowd": 0, "keypoints": flat,
        "num_keypoints": sum(v > 0 for v in flat[2::3]), "file_name": f"{number:012d}.jpg", "height": size[0],
        "width": size[1], "name": species, "supercategory": family,
    }  # fmt: skip


def write_animal(root: Path, one: dict[str, Any]) -> str:
    """Its annotation and image; returns the annotation's path as pair files have it."""
    within = f"{one['supercategory']}/{one['name']}/{one['id']:012d}"
    write_json(root / "ImageAnnotation" / f"{within}.json", one)
    write_image(root / "JPEGImages" / f"{within}.jpg", texture(one["height"], one["width"], one["id"]))
    return f"data/ap-10k/ImageAnnotation/{within}.json"


def write_animals(root: Path, split: str, first: str, second: str, tag: str) -> Path:
    path = root / "PairAnnotation" / split / f"{Path(first).stem}-{Path(second).stem}:{tag}.json"
    write_json(path, {"src_json_path": first, "trg_json_path": second})
    return path


def make_ap10k(folder: Path) -> Path:
    """One pair in each of three settings, a cat with a point that is hidden in its target, and a bobcat."""
    root, wide, box = folder / "ap-10k", (280, 420), (70, 84, 210, 140)
    hidden = {**AP10K_POINTS, 5: (283, 157, 0)}
    cat = write_animal(root, animal(1, "Felidae", "cat", wide, AP10K_POINTS, box))
    other = write_animal(root, animal(2, "Felidae", "cat", wide, hidden, box))
    bobcat = write_animal(root, animal(3, "Felidae", "bobcat", wide, AP10K_POINTS, box))
    dog = write_animal(root, animal(4, "Canidae", "dog", (420, 280), AP10K_TALL, (84, 70, 140, 210)))
    write_animals(root, "test", cat, other, "cat")
    write_animals(root, "test_cross_species", cat, bobcat, "Felidae")
    write_animals(root, "test_cross_family", cat, dog, "all")
    return root


# --- PF-PASCAL, PF-WILLOW --------------------------------------------------------------------------------------------

PFPASCAL = [  # class, category, source, target, (H, W), shift, points with their errors
    (8, "cat", "2008_000001", "2008_000002", (120, 160), (16, 8),
     [(40, 40, 0, 0), (56, 40, 6, 5.25), (40, 56, 12, 9), (72, 64, 16, 0)]),
    (2, "bicycle", "2009_000001", "2009_000002", (160, 120), (8, 16), [(40, 40, 0, 4), (48, 64, 0, 20)]),
]  # fmt: skip
PFPASCAL_SHIFTS = {row[3]: row[5] for row in PFPASCAL}


def make_pfpascal(folder: Path) -> Path:
    from scipy.io import savemat

    root, lines = folder / "PF-dataset-PASCAL", ["source_image,target_image,class,XA,YA,XB,YB"]
    for number, category, source, target, (height, width), (dx, dy), points in PFPASCAL:
        at = np.array([[x, y] for x, y, _, _ in points], float)
        truth = np.array([[x + dx + ex, y + dy + ey] for x, y, ex, ey in points], float)
        box = np.array([[11, 11, width - 10, height - 10]])
        sides = ((source, (0, 0), [*at, [np.nan, np.nan]]), (target, (dx, dy), [*truth, [30, 30]]))
        for name, shift, own in sides:
            write_image(root / "JPEGImages" / f"{name}.jpg", moved(texture(height, width, number), *shift))
            mat = root / "Annotations" / category / f"{name}.mat"
            mat.parent.mkdir(parents=True, exist_ok=True)
            savemat(mat, {"kps": np.array(own), "bbox": box})
        columns = [";".join(repr(float(v)) for v in one) for one in (*at.T, *truth.T)]
        names = [f"PF-dataset-PASCAL/JPEGImages/{name}.jpg" for name in (source, target)]
        lines.append(",".join([*names, str(number), *columns]))
    (root / "test_pairs_pf_pascal.csv").write_text("\n".join(lines) + "\n")
    return root


PFWILLOW_ERRORS = [0, 0, 0, 0, 0, 4, 6, 9, 11, 0]


def make_pfwillow(folder: Path) -> Path:
    """One pair, moved by (8, 8); the target's points span 100 pixels, with padding of -1 they would span 139."""
    root, name = folder / "PF-dataset", "car(G)"
    for one, shift in (("a", 0), ("b", 8)):
        write_image(root / name / f"{one}.png", moved(texture(120, 160, 5), shift, shift))
    x, y = np.array([30, 40, 50, 60, 70, 80, 90, 100, 110, 130.0]), np.array([30, 35, 40, 45, 50, 55, 60, 65, 70, 80.0])
    headings = ["imageA", "imageB", *(f"{c}{i}" for c in ("XA", "YA", "XB", "YB") for i in range(1, 11))]
    numbers = np.concatenate([x, y, x + 8 + np.array(PFWILLOW_ERRORS), y + 8])
    row = [f"PF-dataset/{name}/a.png", f"PF-dataset/{name}/b.png", *(repr(float(v)) for v in numbers)]
    (root / "test_pairs_pf.csv").write_text(",".join(headings) + "\n" + ",".join(row) + "\n")
    return root


# --- features that know the answer -----------------------------------------------------------------------------------

_WAVES = torch.randn(96, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 14.0


def fourier(xy: torch.Tensor) -> torch.Tensor:
    """(..., 192) unit vectors of points (..., 2): nearer points are more alike, and a shift is a rotation."""
    angle = xy @ _WAVES.T
    return torch.cat([angle.cos(), angle.sin()], -1) / math.sqrt(len(_WAVES))


class Oracle:
    """Features of where each cell was before its image was moved.

    Args:
        shifts: stem of an image's file -> (dx, dy).
        canvas: a square of 60 x 60 cells instead of cells of 8 pixels; ``shifts`` are then in its 840 pixels.
    """

    def __init__(self, shifts: dict[str, tuple[float, float]], *, canvas: bool = False, name: str = "oracle") -> None:
        self.name, self.shifts, self.canvas = name, shifts, canvas
        self.device, self.backend = torch.device("cpu"), None
        self.seen: list[Path] = []

    def about(self) -> dict[str, Any]:
        return {"oracle": self.name, "shifts": {k: list(v) for k, v in self.shifts.items()}, "canvas": self.canvas}

    def about_picture(self, picture: Picture) -> dict[str, Any]:
        return {"stem": picture.path.stem}  # two images of one content may have been moved differently

    def extract(self, picture: Picture) -> Sequence[tuple[Method, FeatureMap]]:
        self.seen.append(picture.path)
        height, width = (840, 840) if self.canvas else picture.info.size
        stride = 14 if self.canvas else STRIDE
        h, w = height // stride, width // stride
        dx, dy = self.shifts.get(picture.path.stem, (0, 0))
        x = (torch.arange(w, dtype=torch.float64) + 0.5) * stride - 0.5 - dx
        y = (torch.arange(h, dtype=torch.float64) + 0.5) * stride - 0.5 - dy
        tokens = fourier(torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1)).flatten(0, 1).float()
        return [(self, FeatureMap(tokens=tokens, grid=(h, w), image_size=picture.info.size))]
