"""Matches for structure from motion: COLMAP's text files and the HDF5 files of hloc.

Both keep a list of keypoints per image and refer to them by position. A keypoint is listed once, however many matches
end in it.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import InputError, StoreError
from ..types import Matches, write_atomically
from .files import h5py_or_error

__all__ = ["export_colmap", "export_hloc", "image_names"]

_logger = logging.getLogger("ditf")

_DESCRIPTOR = " 0" * 128  # COLMAP wants SIFT's 128 numbers; imported matches never look at them


def export_colmap(folder: str | os.PathLike[str], matches: Matches, images: tuple[str, str]) -> list[Path]:
    """Write keypoints and matches for COLMAP's feature_importer and matches_importer; returns the paths.

    ``features/<image>.txt``: "N 128", then X Y SCALE ORIENTATION and a descriptor of zeros per keypoint.
    ``matches.txt``: the two image names, a line with two positions per match, an empty line. Import with::

        colmap feature_importer --database_path DB --image_path IMAGES --import_path FOLDER/features
        colmap matches_importer --database_path DB --match_list_path FOLDER/matches.txt --match_type raw

    COLMAP counts from the corner of the image: the centre of its top-left pixel is (0.5, 0.5), so 0.5 is added.

    Args:
        folder: created if need be; its files of these names are replaced.
        matches: those without a target give a source keypoint and no match. Of several matches of one source point,
            the one with the best score is kept, and the number of others logged.
        images: names of source and target as COLMAP knows them: paths relative to its image folder.

    Raises:
        InputError: equal names, or names that COLMAP's text files cannot hold (blanks, absolute paths).
        StoreError: the folder cannot be written.
    """
    _check_names(images)
    table = _Table.of(matches)
    folder = Path(folder)
    paths = []
    for name, points in zip(images, (table.source, table.target), strict=True):
        lines = [f"{len(points)} 128", *(f"{_decimal(x)} {_decimal(y)} 1 0{_DESCRIPTOR}" for x, y in points)]
        paths.append(_write(folder / "features" / f"{name}.txt", "\n".join(lines) + "\n"))
    pairs = [f"{first} {second}" for first, second in table.pairs]
    paths.append(_write(folder / "matches.txt", "\n".join([f"{images[0]} {images[1]}", *pairs, "", ""])))
    return paths


def export_hloc(folder: str | os.PathLike[str], matches: Matches, images: tuple[str, str]) -> list[Path]:
    """Write ``features.h5``, ``matches.h5`` and ``pairs.txt`` as hloc reads them; returns the paths.

    ``features.h5``: per image name a group with ``keypoints`` (N, 2) float32 and ``image_size`` (width, height).
    ``matches.h5``: per pair a group "<source>/<target>" (slashes in names become hyphens) with ``matches0`` (N,) int32,
    the position in the target or -1, and ``matching_scores0`` (N,) float32. hloc's pixel centres are whole numbers, as
    ours: nothing is added; hloc itself adds the 0.5 when it hands keypoints to COLMAP.

    Args:
        folder, matches, images: as :func:`export_colmap`.

    Raises:
        InputError: as :func:`export_colmap`; matches that do not know the sizes of their images; h5py missing.
        StoreError: the folder cannot be written.
    """
    h5py = h5py_or_error("export_hloc")
    _check_names(images)
    if matches.source_size is None or matches.target_size is None:
        raise InputError("matches: source_size or target_size is unknown, and hloc needs both; give them to Matches")
    table, folder = _Table.of(matches), Path(folder)
    features, found = io.BytesIO(), io.BytesIO()
    with h5py.File(features, "w") as file:
        sides = zip(images, (table.source, table.target), (matches.source_size, matches.target_size), strict=True)
        for name, points, (height, width) in sides:
            group = file.create_group(name)
            group.create_dataset("keypoints", data=points)
            group.create_dataset("image_size", data=np.array([width, height], np.int64))
    position = np.full(len(table.source), -1, np.int32)
    score = np.zeros(len(table.source), np.float32)
    position[table.pairs[:, 0]], score[table.pairs[:, 0]] = table.pairs[:, 1], table.scores
    with h5py.File(found, "w") as file:
        group = file.create_group("/".join(name.replace("/", "-") for name in images))
        group.create_dataset("matches0", data=position)
        group.create_dataset("matching_scores0", data=score)
    return [
        _write(folder / "features.h5", features.getvalue()),
        _write(folder / "matches.h5", found.getvalue()),
        _write(folder / "pairs.txt", f"{images[0]} {images[1]}\n"),
    ]


def image_names(source: str, target: str) -> tuple[str, str]:
    """Short names of two images that differ: those of the files, or their paths below the folder they share.

    Raises:
        InputError: one and the same file.
    """
    if source == target:
        raise InputError.of("images", source, "two different images")
    first, second = (PurePosixPath(Path(name.split("?")[0]).as_posix()) for name in (source, target))
    if first.name != second.name:
        return first.name, second.name
    tails = [p.parts[1:] if p.is_absolute() else p.parts for p in (first, second)]
    shared = 0
    while shared < min(map(len, tails)) - 1 and tails[0][shared] == tails[1][shared]:
        shared += 1
    names = ["/".join(part for part in tail[shared:] if part != "..") for tail in tails]
    if names[0] == names[1]:
        raise InputError.of("images", source, "two different images")
    return names[0], names[1]


@dataclass(frozen=True, eq=False)
class _Table:
    """Keypoints of both images and the matches between their positions.

    Attributes:
        source, target: (N, 2), (M, 2) float32, distinct points, in the order they first occur.
        pairs: (P, 2) int64 positions, each source at most once, ascending.
        scores: (P,) float32.
    """

    source: np.ndarray
    target: np.ndarray
    pairs: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, matches: Matches) -> _Table:
        source, target, score = (
            t.detach().cpu().float().numpy() for t in (matches.source, matches.target, matches.score)
        )
        found = np.isfinite(score) & (target >= 0).all(1)
        first, source_row = _distinct(source)
        second, target_row = _distinct(target[found])
        best: dict[int, tuple[float, int]] = {}
        found_rows = zip(source_row[found].tolist(), target_row.tolist(), score[found].tolist(), strict=True)
        for row, goal, value in found_rows:
            if row not in best or value > best[row][0]:
                best[row] = (value, goal)
        if dropped := int(found.sum()) - len(best):
            _logger.warning("%d matches of source points that have a better one are left out", dropped)
        rows = sorted(best)
        pairs = np.array([(row, best[row][1]) for row in rows], np.int64).reshape(-1, 2)
        return cls(first, second, pairs, np.array([best[row][0] for row in rows], np.float32))


def _distinct(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in the order they first occur, and for each row its place among them."""
    places: dict[tuple[float, ...], int] = {}
    row = np.array([places.setdefault(tuple(p), len(places)) for p in points.tolist()], np.int64)
    return np.array(list(places), np.float32).reshape(-1, 2), row


def _check_names(images: Sequence[str]) -> None:
    if len(images) != 2 or images[0] == images[1]:
        raise InputError.of("images", tuple(images), "two different names")
    for name in images:
        path = PurePosixPath(name)
        if not name or name.split() != [name] or path.is_absolute() or ".." in path.parts:
            raise InputError.of("images", name, "a name without blanks, relative to the image folder; rename the file")


def _decimal(value: float) -> str:
    """The float32 half a pixel further, in full: adding 0.5 in float64 loses nothing."""
    return np.format_float_positional(np.float64(value) + 0.5, trim="-")


def _write(path: Path, content: str | bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be created ({error.strerror}); choose another folder") from None
    write_atomically(path, content.encode() if isinstance(content, str) else content)
    return path
