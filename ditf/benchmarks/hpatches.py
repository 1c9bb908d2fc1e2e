"""HPatches sequences (Balntas et al., arXiv 1704.05939): planes seen six times, and the homographies between.

::

    hpatches-sequences-release/{i_*|v_*}/{1..6}.ppm     light changes (i_), or the camera moves (v_)
                                         H_1_2 .. H_1_6  3 x 3 numbers; maps pixels of image 1 to those of image k

Keypoints may be read from files, as SuperPoint's licence keeps its detector out of here: one file per image, any of

::

    FOLDER/{sequence}-{k}.kp           a row "x y" per point (DIFT's superpoint-1k)
    FOLDER/{sequence}-{k}.npz          an array "keypoints" (K, 2 or more), x and y first (D2-Net's arrays)
    FOLDER/{sequence}/{k}.npz          the same
    FOLDER/{sequence}/{k}.ppm.{name}   the same, as D2-Net names them; one {name} per image

Points are (x, y) in pixels of the stored image, the centre of the top-left pixel being (0, 0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from .pairs import Problems, check_split
from .protocols import Protocol
from .published import fewer

__all__ = [
    "LEFT_OUT",
    "PlaneProtocol",
    "Sequence",
    "SequenceSet",
    "check",
    "protocols",
    "read",
    "read_keypoints",
    "root_of",
]

SPLITS = ("all", "illumination", "viewpoint")
VIEWS = range(2, 7)  # each is matched with image 1
LEFT_OUT = (
    "i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans", "v_astronautis", "v_talent",
)  # fmt: skip
"""By D2-Net's convention, which all later work keeps: their images are larger than 1600 x 1200."""

_PREFIX = {"illumination": "i_", "viewpoint": "v_"}
_PUBLISHED = {"i_": 57, "v_": 59}  # sequences in the archive
_NAME = re.compile(r"[iv]_\w+")


@dataclass(frozen=True)
class PlaneProtocol:
    """One way from two images with keypoints to a homography and its score.

    Attributes:
        name, about: what it is called, whose it is.
        size: both sides of the square that images are stretched to, in pixels.
        sampling: where a keypoint's feature is taken. "center": bilinear between token centres, clamped at the border.
            "shifted": DIFT's, half a pixel too far left at x = 0 and right at x = W - 1, fading to zero at the border.
        metric: "cosine", or "l2": the shortest distance between features as they are.
        estimator: "magsac" (MAGSAC++, seeded), or OpenCV's "lmeds" and "ransac", which always draw the same.
        threshold: pixels up to which a match is an inlier; "lmeds" has none.
        confidence, max_iterations: when sampling stops.
        keypoints: how many SIFT finds at most where no files are given.
        alphas: thresholds in pixels of the mean corner error.
        left_out: sequences that do not count.
    """

    name: str
    about: str
    size: int = 768
    sampling: Literal["center", "shifted"] = "center"
    metric: Literal["cosine", "l2"] = "cosine"
    estimator: Literal["magsac", "lmeds", "ransac"] = "magsac"
    threshold: float = 3.0
    confidence: float = 0.999
    max_iterations: int = 10_000
    keypoints: int = 1000
    alphas: tuple[float, ...] = (1.0, 3.0, 5.0)
    left_out: tuple[str, ...] = LEFT_OUT

    @property
    def picture(self) -> Protocol:
        """How images are brought to a model. Nothing is known of a picture, so there is no text."""
        return Protocol(self.name, self.about, resize="stretch", size=self.size, prompt="")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}


def _dift(name: str, about: str, **values: Any) -> PlaneProtocol:
    return PlaneProtocol(name, about, sampling="shifted", confidence=0.995, max_iterations=2000, **values)


protocols: dict[str, PlaneProtocol] = {
    p.name: p
    for p in (
        PlaneProtocol("ditf", "ditf's own, as DiTF published none: features at the keypoints, MAGSAC++"),
        _dift(
            "dift-sd", "DIFT with Stable Diffusion (arXiv 2306.03881): t 0, 8 noises; cosine, LMEDS", estimator="lmeds"
        ),
        _dift(
            "dift-adm", "DIFT with ADM (arXiv 2306.03881): t 41, 4 noises; distance, RANSAC", metric="l2",
            estimator="ransac",
        ),
        PlaneProtocol("ditf-116", "ditf's own over all 116 sequences, as some work has it", left_out=()),
    )
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sequence:
    """One plane.

    Attributes:
        name: of its folder.
        images: number -> file; 1 among them, and at least one more.
        homographies: number -> (3, 3) float64, pixels of image 1 to those of that image; for all but 1.
    """

    name: str
    images: dict[int, Path]
    homographies: dict[int, np.ndarray]

    @property
    def group(self) -> str:
        return "illumination" if self.name.startswith("i_") else "viewpoint"


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """The sequences of one split by name, what is not among them, and what is known of the folder."""

    split: str
    folder: Path
    sequences: tuple[Sequence, ...]
    problems: Problems
    facts: dict[str, Any]


def root_of(folder: Path) -> Path:
    """The folder that holds the sequences' folders, or hpatches-sequences-release in it.

    Raises:
        InputError: neither.
    """
    for root in (folder, folder / "hpatches-sequences-release"):
        if any(_is_sequence(path) for path in root.glob("[iv]_*")):
            return root
    raise InputError(
        f"--data: {folder} has no folder i_* or v_* with images and H_1_k; give the folder hpatches-sequences-release"
    )


def read(folder: Path, split: str, protocol: PlaneProtocol) -> SequenceSet:
    """The sequences in sorted order. Images are looked for, not yet opened; homographies are read.

    Raises:
        InputError: no such split, or no sequence that can be scored.
    """
    check_split(split, SPLITS, "hpatches")
    root, problems = root_of(folder), Problems()
    names = _names(root, problems)
    wanted = [name for name in names if split == "all" or name.startswith(_PREFIX[split])]
    counted = [name for name in wanted if name not in protocol.left_out]
    sequences = [one for one in (_sequence(root / name, problems) for name in counted) if one is not None]
    if not sequences:
        raise InputError(f"--data: {root} has no sequence to score ({'; '.join(problems.sentences()) or 'none'})")
    facts = {
        "sequences_found": len(wanted),
        "left_out_by_convention": [name for name in wanted if name in protocol.left_out],
        "fewer": fewer(len(counted), _published(split, protocol)),
    }
    return SequenceSet(split, root, tuple(sequences), problems, facts)


def check(folder: Path) -> list[str]:
    """What is missing, one sentence each."""
    root, problems = root_of(folder), Problems()
    names, missing = _names(root, Problems()), []
    for prefix, count in _PUBLISHED.items():
        if (found := sum(name.startswith(prefix) for name in names)) != count:
            missing.append(f"{prefix}*: {found} sequences, the published archive has {count}")
    for name in names:
        _sequence(root / name, problems)
    return missing + problems.sentences()


# --- keypoints -------------------------------------------------------------------------------------------------------


def read_keypoints(folder: Path, sequence: str, number: int) -> np.ndarray | None:
    """(K, 2) float64 as the file has them, or None where there is no file.

    Raises:
        ValueError: a file that holds no K times two finite numbers; says which.
    """
    for path in _keypoint_files(folder, sequence, number):
        if not path.is_file():
            continue
        try:
            points = _rows(path) if path.suffix == ".kp" else _array(path)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} ({error})") from None
        if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points[:, :2]).all():
            raise ValueError(f"{path} (shape {points.shape}, expected (K, 2) finite numbers)")
        return np.ascontiguousarray(points[:, :2])
    return None


def _keypoint_files(folder: Path, sequence: str, number: int) -> list[Path]:
    own = folder / sequence
    return [
        folder / f"{sequence}-{number}.kp",
        folder / f"{sequence}-{number}.npz",
        own / f"{number}.npz",
        *sorted(own.glob(f"{number}.ppm.*")),
    ]


def _rows(path: Path) -> np.ndarray:
    """(rows, columns) float64 of a text of numbers; (0, 2) of an empty one."""
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    return np.array([[float(v) for v in line] for line in lines], np.float64).reshape(len(lines), -1 if lines else 2)


def _array(path: Path) -> np.ndarray:
    from zipfile import BadZipFile

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["keypoints"], np.float64)
    except (BadZipFile, AttributeError, TypeError):  # not an archive of arrays, or one array alone
        raise ValueError("no .npz archive") from None


# --- folders ---------------------------------------------------------------------------------------------------------


def _is_sequence(path: Path) -> bool:
    return path.is_dir() and (any(path.glob("*.ppm")) or any(path.glob("H_1_*")))


def _published(split: str, protocol: PlaneProtocol) -> int:
    """How many sequences of the split count under a protocol."""
    prefixes = [prefix for prefix in _PUBLISHED if _PREFIX.get(split, prefix) == prefix]
    return sum(_PUBLISHED[prefix] for prefix in prefixes) - sum(name[:2] in prefixes for name in protocol.left_out)


def _names(root: Path, problems: Problems) -> list[str]:
    """The sequences' folders in sorted order; anything else is noted."""
    names = []
    for path in sorted(root.iterdir()):
        if path.is_dir() and _NAME.fullmatch(path.name):
            names.append(path.name)
        else:
            problems.add("neither i_* nor v_*, left aside", path.name)
    return names


def _sequence(folder: Path, problems: Problems) -> Sequence | None:
    """What of a sequence can be matched; what cannot is noted."""
    images = {1: folder / "1.ppm"}
    homographies: dict[int, np.ndarray] = {}
    if not images[1].is_file():
        problems.add("missing image", f"{folder.name}/1.ppm")
        return None
    for number in VIEWS:
        image, name = folder / f"{number}.ppm", f"{folder.name}/H_1_{number}"
        if not image.is_file():
            problems.add("missing image", f"{folder.name}/{number}.ppm")
            continue
        if not (folder / f"H_1_{number}").is_file():
            problems.add("missing annotation", name)
            continue
        matrix = _matrix(folder / f"H_1_{number}")
        if matrix is None:
            problems.add("malformed annotation", name)
            continue
        images[number], homographies[number] = image, matrix
    return Sequence(folder.name, images, homographies) if homographies else None


def _matrix(path: Path) -> np.ndarray | None:
    """(3, 3) float64 of full rank, or None."""
    try:
        values = [
            [float(v) for v in line.split()] for line in path.read_text(encoding="ascii").splitlines() if line.strip()
        ]
        matrix = np.array(values, np.float64)
    except (OSError, ValueError):
        return None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix) < 3:
        return None
    return matrix
