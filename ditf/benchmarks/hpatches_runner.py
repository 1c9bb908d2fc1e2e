"""Planes matched and their homographies estimated; stopped at any moment, it goes on with the next sequence.

For each of the images 2 to 6 of a sequence: mutual nearest neighbours between its keypoints and those of image 1, a
homography from them, and two scores. The homography is right at a threshold if the four corners of image 1 are on
average no further off than that (HPatches, as DIFT scores it); what cannot be estimated is wrong. Mean matching
accuracy (D2-Net, arXiv 1905.03561) is the share of a pair's matches within t pixels of the truth, 0 where it has none.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditf_kernels import mutual_nearest

from ..errors import InputError, StoreError, kernel_errors
from ..geometry import Homography, estimate_homography, sift_points
from ..geometry.keypoints import opencv
from ..geometry.robust import projected
from ..store import digest
from ..types import write_atomically
from .hpatches import PlaneProtocol, Sequence, SequenceSet, read_keypoints
from .hpatches_methods import Described, Describer
from .methods import Picture
from .pairs import ImageInfo, Problems, index_images

__all__ = ["IDENTITY", "PIXELS", "PairScore", "PlaneEvaluation", "estimated", "evaluate_planes", "matched"]

log = logging.getLogger("ditf")

IDENTITY = "identity"
PIXELS = tuple(range(1, 11))  # of the mean matching accuracy
CATEGORY = "image"
_UNIT = 2  # version of the files
_SAMPLE = 60  # matches kept to be drawn

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PairScore:
    """Image 1 of a sequence and another.

    Attributes:
        sequence, number: which.
        features: how many keypoints the two have.
        matches: of them.
        error: mean distance of the corners in pixels; infinite where there is no homography.
        within: matches within 1, 2, ... 10 pixels of where they should be.
        reason: why there is no homography, else empty.
        homography: the estimated one, row by row; None where there is none.
        sample: up to 60 of the matches, evenly taken: x, y in image 1 and x, y in the other.
    """

    sequence: str
    number: int
    features: tuple[int, int]
    matches: int
    error: float
    within: tuple[int, ...]
    reason: str = ""
    homography: tuple[float, ...] | None = None
    sample: tuple[tuple[float, ...], ...] = ()

    @property
    def accuracy(self) -> np.ndarray:
        """(10,) share of the matches within 1 .. 10 pixels; 0 where there is no match."""
        return np.array(self.within, np.float64) / max(self.matches, 1)


@dataclass(frozen=True, eq=False)
class PlaneEvaluation:
    """Scores of every pair by method, the identity among them; what was left out; how many images were used."""

    protocol: PlaneProtocol
    scores: Mapping[str, tuple[PairScore, ...]]
    problems: Problems
    images: int


def evaluate_planes(
    describers: list[Describer],
    planes: SequenceSet,
    protocol: PlaneProtocol,
    *,
    folder: str | os.PathLike[str],
    keypoints: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlaneEvaluation:
    """Match and score all pairs by all describers, and by the identity.

    Args:
        describers: of distinct names.
        folder: where finished sequences are kept, created if missing; equal work finds them again.
        keypoints: a folder of files, see :mod:`ditf.benchmarks.hpatches`; None: SIFT's strongest.
        seed: of MAGSAC++.

    Raises:
        InputError: describers of one name, nothing left to score, OpenCV missing.
        ModelError: features that are not finite.
        StoreError: the folder cannot be written.
    """
    names = [one.name for one in describers]
    if len(set(names)) != len(names) or IDENTITY in names:
        raise InputError.of("describers", names, f"distinct names, none of them {IDENTITY!r}")
    opencv("hpatches")
    progress = progress or (lambda stage, done, total: None)
    work = _Work(Path(folder), keypoints, protocol, seed, planes.problems.copy())
    paths = [path for one in planes.sequences for path in one.images.values()]
    work.images = index_images(paths, work.problems, lambda done, total: progress("images", done, total))
    usable = [one for one in map(work.usable, planes.sequences) if one is not None]
    if not usable:
        raise InputError(f"--data: no pair can be scored ({'; '.join(work.problems.sentences())})")
    scores: dict[str, list[PairScore]] = {name: [] for name in (*names, IDENTITY)}
    for done, sequence in enumerate(usable):
        progress("sequences", done, len(usable))
        for name, found in work.sequence(sequence, describers).items():
            scores[name] += found
    progress("sequences", len(usable), len(usable))
    images = sum(len(one.images) for one in usable)
    return PlaneEvaluation(protocol, {name: tuple(s) for name, s in scores.items()}, work.problems, images)


# --- one pair --------------------------------------------------------------------------------------------------------


def matched(first: Described, second: Described, metric: str, backend: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(M, 2) float64 points of both that are each other's nearest neighbours, the first among equals."""
    if not len(first.points) or not len(second.points):
        return np.zeros((0, 2)), np.zeros((0, 2))
    if metric == "cosine":
        with kernel_errors():
            found = mutual_nearest(first.features, second.features, backend=backend)
        forward, mutual = found.index_ab.cpu().numpy(), found.mutual.cpu().numpy()
    else:
        a, b = (one.features.detach().cpu().double().numpy() for one in (first, second))
        apart = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
        forward, backward = apart.argmin(1), apart.argmin(0)
        mutual = backward[forward] == np.arange(len(a))
    return first.points[mutual], second.points[forward[mutual]]


def estimated(source: np.ndarray, target: np.ndarray, protocol: PlaneProtocol, seed: int) -> Homography:
    """A homography from matches (M, 2); without a matrix, and with the reason, where there is none.

    "lmeds" and "ransac" are OpenCV's own on float32 points, as published evaluations call them.
    """
    p = protocol
    if p.estimator == "magsac":
        limits = {"threshold": p.threshold, "confidence": p.confidence, "max_iterations": p.max_iterations}
        return estimate_homography(source, target, method="magsac", seed=seed, **limits)
    if len(source) < 4:
        return Homography(None, reason=f"{len(source)} matches; a homography needs 4")
    cv2 = opencv("hpatches")
    flag = cv2.LMEDS if p.estimator == "lmeds" else cv2.RANSAC
    pair = [side.astype(np.float32).reshape(-1, 1, 2) for side in (source, target)]
    try:
        matrix, _ = cv2.findHomography(*pair, flag, p.threshold, maxIters=p.max_iterations, confidence=p.confidence)
    except cv2.error as error:
        return Homography(None, reason=f"OpenCV: {error.err}")
    if matrix is None or matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        return Homography(None, reason="no four matches agree on a homography")
    return Homography(torch.from_numpy(matrix))


def _score(sequence: Sequence, number: int, size: tuple[int, int], features: tuple[int, int],
           matches: tuple[np.ndarray, np.ndarray], found: Homography) -> PairScore:  # fmt: skip
    truth = sequence.homographies[number]
    apart = np.linalg.norm(projected(truth, matches[0]) - matches[1], axis=1)  # NaN is never within
    within = tuple(int((apart <= t).sum()) for t in PIXELS)
    error = found.corner_error(truth, size)
    matrix = None if found.matrix is None else tuple(found.matrix.double().flatten().tolist())
    shown = np.unique(np.linspace(0, len(apart) - 1, min(len(apart), _SAMPLE)).round().astype(int))
    sample = tuple(map(tuple, np.concatenate(matches, 1)[shown].tolist()))
    return PairScore(sequence.name, number, features, len(apart), error, within, found.reason, matrix, sample)


# --- sequences -------------------------------------------------------------------------------------------------------


class _Work:
    """Finished sequences from disk, the others from their pictures."""

    def __init__(
        self, folder: Path, keypoints: Path | None, protocol: PlaneProtocol, seed: int, problems: Problems
    ) -> None:  # fmt: skip
        self.units = folder / "units"
        try:
            self.units.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.units} cannot be created ({error.strerror}); choose another folder") from None
        write_atomically(self.units / ".writable", b"")
        self.keypoints, self.protocol, self.seed = keypoints, protocol, seed
        self.problems = problems
        self.images: dict[Path, ImageInfo] = {}
        self._given: dict[Path, np.ndarray] = {}

    def usable(self, sequence: Sequence) -> Sequence | None:
        """Without the images that cannot be read or have no keypoints, which are noted."""
        kept = {k: path for k, path in sequence.images.items() if path in self.images}
        if self.keypoints is not None:
            kept = {k: path for k, path in kept.items() if self._given_points(sequence.name, k, path)}
        homographies = {k: matrix for k, matrix in sequence.homographies.items() if k in kept}
        if 1 not in kept or not homographies:
            self.problems.add("sequence without a pair", sequence.name)
            return None
        return dataclasses.replace(sequence, images=kept, homographies=homographies)

    def _given_points(self, name: str, number: int, path: Path) -> bool:
        assert self.keypoints is not None
        try:
            points = read_keypoints(self.keypoints, name, number)
        except ValueError as error:
            self.problems.add("malformed annotation", str(error))
            return False
        if points is None:
            self.problems.add("missing annotation", f"keypoints of {name}/{number}.ppm")
            return False
        height, width = self.images[path].size
        inside = ((points >= 0) & (points <= [width - 1, height - 1])).all(1)
        if not inside.all():
            self.problems.add("keypoints outside their image, left out", f"{name}/{number}.ppm: {(~inside).sum()}")
        self._given[path] = np.unique(points[inside], axis=0)  # sorted: the order decides ties and samples
        return True

    def sequence(self, sequence: Sequence, describers: list[Describer]) -> dict[str, list[PairScore]]:
        pictures = {k: Picture(path, self.images[path], CATEGORY) for k, path in sequence.images.items()}
        keys = {one.name: self._key(one, sequence, pictures) for one in describers}
        found = {name: self._read(key) for name, key in keys.items()}
        points: dict[int, np.ndarray] = {}
        for one in describers:
            if found[one.name] is None:
                points = points or {k: self._points(picture) for k, picture in pictures.items()}
                found[one.name] = self._described(one, sequence, pictures, points)
                self._write(keys[one.name], found[one.name])
        key = digest({"identity": _UNIT, "of": self._about(sequence, pictures)})
        own = self._read(key)
        if own is None:
            points = points or {k: self._points(picture) for k, picture in pictures.items()}
            own = [self._identity(sequence, k, pictures, points) for k in sequence.homographies]
            self._write(key, own)
        return {name: scores or [] for name, scores in found.items()} | {IDENTITY: own}

    def _points(self, picture: Picture) -> np.ndarray:
        if picture.path in self._given:
            return self._given[picture.path]
        found = sift_points(picture.pixels(), self.protocol.keypoints).double().numpy()
        return np.unique(found.reshape(-1, 2), axis=0)

    def _described(
        self, one: Describer, sequence: Sequence, pictures: Mapping[int, Picture], points: Mapping[int, np.ndarray]
    ) -> list[PairScore]:
        one.begin(list(pictures.values()))
        first = one.describe(pictures[1], points[1])
        scores = []
        for k in sequence.homographies:
            second = one.describe(pictures[k], points[k])
            matches = matched(first, second, one.metric, one.backend)
            homography = estimated(*matches, self.protocol, self.seed)
            counts = len(first.points), len(second.points)
            scores.append(_score(sequence, k, pictures[1].info.size, counts, matches, homography))
        return scores

    def _identity(
        self, sequence: Sequence, k: int, pictures: Mapping[int, Picture], points: Mapping[int, np.ndarray]
    ) -> PairScore:
        """Every keypoint at the same relative position in the other image."""
        (height, width), (high, wide) = pictures[1].info.size, pictures[k].info.size
        x, y = wide / width, high / height
        matrix = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        source = points[1]
        matches = source, projected(matrix, source)
        counts = len(points[1]), len(points[k])
        return _score(sequence, k, (height, width), counts, matches, Homography(torch.from_numpy(matrix)))

    # --- on disk

    def _about(self, sequence: Sequence, pictures: Mapping[int, Picture]) -> dict[str, Any]:
        given = {str(k): digest(self._given[p.path].tolist()) for k, p in pictures.items() if p.path in self._given}
        return {
            "name": sequence.name,
            "images": {str(k): picture.info.digest for k, picture in pictures.items()},
            "homographies": {str(k): matrix.tolist() for k, matrix in sequence.homographies.items()},
            "keypoints": given or {"sift": self.protocol.keypoints, "opencv": opencv("hpatches").__version__},
        }

    def _key(self, one: Describer, sequence: Sequence, pictures: Mapping[int, Picture]) -> str:
        p = self.protocol
        rule = [one.metric, p.estimator, p.threshold, p.confidence, p.max_iterations, one.backend]
        rule += [self.seed if p.estimator == "magsac" else None, opencv("hpatches").__version__]
        about = {"version": _UNIT, "method": one.about(), "rule": rule, "sequence": self._about(sequence, pictures)}
        return digest(about)

    def _write(self, key: str, scores: list[PairScore] | None) -> None:
        rows = [
            {**dataclasses.asdict(one), "error": one.error if math.isfinite(one.error) else None}
            for one in scores or []
        ]
        write_atomically(self.units / f"{key}.json", json.dumps(rows, allow_nan=False).encode())

    def _read(self, key: str) -> list[PairScore] | None:
        path = self.units / f"{key}.json"
        if not path.exists():
            return None
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return [
                PairScore(
                    r["sequence"], r["number"], (r["features"][0], r["features"][1]), r["matches"],
                    math.inf if r["error"] is None else float(r["error"]), tuple(r["within"]), r["reason"],
                    None if r["homography"] is None else tuple(r["homography"]), tuple(map(tuple, r["sample"])),
                )
                for r in rows
            ]  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            log.warning("%s is damaged; computing it again", path)
            return None
