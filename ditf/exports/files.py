"""Matches in one file. Coordinates stay as they are: (x, y), the centre of the top-left pixel being (0, 0)."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, StoreError
from ..types import Matches, write_atomically

__all__ = ["ENDINGS", "h5py_or_error", "load_matches", "save_matches"]

Arrays = dict[str, np.ndarray]

ENDINGS = (".json", ".csv", ".npz", ".h5", ".hdf5")
_COLUMNS = ("source_x", "source_y", "target_x", "target_y", "score")
_ROWS = ("source", "target", "score", "topk", "cycle_error")


def save_matches(
    path: str | os.PathLike[str],
    matches: Matches,
    *,
    images: tuple[str, str] | None = None,
    homography: Any = None,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write matches into one file, whose ending says how; returns its path.

    - ``.json``: one object with the lists of :meth:`ditf.Matches.to_dict`, ``source_size`` and ``target_size``
      [height, width], and ``images``, ``homography`` and ``card`` where given. No match is null.
    - ``.csv``: a header and one line per match: source_x, source_y, target_x, target_y, score, then cycle_error and
      top2_x, top2_y, top2_score, ... where known, and inlier (0 or 1) with a homography. No match is an empty cell.
      Sizes, images and card have no place in it.
    - ``.npz``: arrays ``source`` (K, 2), ``target`` (K, 2), ``score`` (K,), ``topk``, ``cycle_error``,
      ``source_size`` (2,), ``target_size`` (2,), ``images`` (2,), ``homography`` (3, 3), ``inliers`` (K,), as far as
      known; ``mirrored``; ``card`` is JSON text. Readable with ``allow_pickle=False``.
    - ``.h5``, ``.hdf5``: datasets of the same names (h5py; ``pip install "ditf[export]"``).

    Args:
        path: its name and ending; the folder must exist.
        matches: K matches.
        images: names of the source and target image.
        homography: what :func:`ditf.estimate_homography` made of these matches.
        card: where the features come from, as plain values.

    Raises:
        InputError: another ending, a homography of other matches, or h5py missing.
        StoreError: the folder is missing or cannot be written.
    """
    path = Path(path)
    writer = _writer(path)
    if homography is not None and homography.found and len(homography.inliers) != len(matches):
        raise InputError.of(
            "homography", f"{len(homography.inliers)} inliers", f"one for each of {len(matches)} matches"
        )
    made_from = _document if writer is _json_bytes else _arrays
    content = writer(made_from(matches, images, homography, card))
    write_atomically(path, content)
    return path


def load_matches(path: str | os.PathLike[str]) -> Matches:
    """Read what :func:`save_matches` wrote, on the CPU; a CSV knows no sizes.

    Raises:
        InputError: another ending, or h5py missing.
        StoreError: no such file, or not one of ours.
    """
    path = Path(path)
    reader = {".json": _from_json, ".csv": _from_csv, ".npz": _from_npz}.get(_ending(path), _from_h5)
    try:
        arrays = reader(path.read_bytes())
        rows = {name: torch.from_numpy(np.array(arrays[name], np.float32)) for name in _ROWS if name in arrays}
        if not all(len(rows[name]) == len(rows["source"]) for name in rows) or rows["source"].shape[1:] != (2,):
            raise ValueError("lists of different lengths")
        return Matches(
            *(rows[name] for name in ("source", "target", "score")),
            topk=rows.get("topk"),
            cycle_error=rows.get("cycle_error"),
            source_size=_size(arrays.get("source_size")),
            target_size=_size(arrays.get("target_size")),
            mirrored=None if arrays.get("mirrored") is None else bool(arrays["mirrored"]),
        )
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; give a file written by save_matches") from None
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: cannot be read as matches ({error}); give a file written by save_matches") from None


def h5py_or_error(what: str) -> Any:
    """The module h5py.

    Raises:
        InputError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f'{what}: h5py is not installed; pip install "ditf[export]"') from None
    return h5py


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError.of("path", str(path), f"a name that ends in {', '.join(ENDINGS)}")
    return ending


def _writer(path: Path) -> Callable[[Any], bytes]:
    writers = {".json": _json_bytes, ".csv": _csv_bytes, ".npz": _npz_bytes}
    if (ending := _ending(path)) in writers:
        return writers[ending]
    h5py_or_error(str(path))
    return _h5_bytes


def _size(value: Any) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))


def _document(matches: Matches, images: Any, homography: Any, card: Any) -> dict[str, Any]:
    known = {
        "source_size": matches.source_size and list(matches.source_size),
        "target_size": matches.target_size and list(matches.target_size),
        "images": images and {"source": images[0], "target": images[1]},
        "homography": homography and homography.to_dict(),
        "card": card and dict(card),
    }
    return {**matches.to_dict(), **{name: value for name, value in known.items() if value is not None}}


def _arrays(matches: Matches, images: Any, homography: Any, card: Any) -> Arrays:
    out = {name: getattr(matches, name).detach().cpu().numpy() for name in _ROWS if getattr(matches, name) is not None}
    for name in ("source_size", "target_size"):
        if getattr(matches, name) is not None:
            out[name] = np.array(getattr(matches, name), np.int64)
    if matches.mirrored is not None:
        out["mirrored"] = np.array(matches.mirrored)
    if images is not None:
        out["images"] = np.array(images)
    if homography is not None and homography.found:
        out |= {"homography": homography.matrix.numpy(), "inliers": homography.inliers.numpy()}
    if card is not None:
        out["card"] = np.array(json.dumps(dict(card), sort_keys=True))
    return out


def _json_bytes(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _csv_bytes(arrays: Arrays) -> bytes:
    names: list[str] = list(_COLUMNS)
    columns = [*arrays["source"].T, *arrays["target"].T, arrays["score"]]
    if "cycle_error" in arrays:
        names.append("cycle_error")
        columns.append(arrays["cycle_error"])
    if "topk" in arrays:  # the first is the match itself, before refinement
        for place in range(arrays["topk"].shape[1]):
            names += [f"top{place + 1}_x", f"top{place + 1}_y", f"top{place + 1}_score"]
            columns += list(arrays["topk"][:, place].T)
    lost = ~np.isfinite(arrays["score"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    flags = arrays.get("inliers")
    writer.writerow([*names, *(["inlier"] if flags is not None else [])])
    for row, values in enumerate(zip(*columns, strict=True)):
        cells = [
            "" if lost[row] and name.startswith("target") else _cell(v) for name, v in zip(names, values, strict=True)
        ]
        writer.writerow([*cells, *([int(flags[row])] if flags is not None else [])])
    return text.getvalue().encode()


def _cell(value: np.floating) -> str:
    """The shortest decimal that reads back as the same float32."""
    return np.format_float_positional(np.float32(value), trim="-") if math.isfinite(value) else ""


def _npz_bytes(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _h5_bytes(arrays: Arrays) -> bytes:
    h5py = h5py_or_error("save_matches")
    file = io.BytesIO()
    with h5py.File(file, "w") as out:
        for name, values in arrays.items():
            text = values.dtype.kind == "U"
            kind = h5py.string_dtype("utf-8") if text else None
            out.create_dataset(name, data=values.astype(object) if text else values, dtype=kind)
    return file.getvalue()


def _from_json(content: bytes) -> Mapping[str, Any]:
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("no object")
    for name in ("score", "cycle_error"):
        if document.get(name) is not None:
            document[name] = [math.nan if value is None else value for value in document[name]]
    if document.get("topk") is not None:
        document["topk"] = [[[x, y, math.nan if s is None else s] for x, y, s in row] for row in document["topk"]]
    for name in ("source", "target"):
        document[name] = np.array(document[name], np.float32).reshape(-1, 2)
    return {name: value for name, value in document.items() if value is not None}


def _from_csv(content: bytes) -> Mapping[str, Any]:
    header, *lines = csv.reader(io.StringIO(content.decode("utf-8-sig")))
    table = np.array([[float(cell) if cell else math.nan for cell in line] for line in lines]).reshape(-1, len(header))
    column = {name: table[:, place] for place, name in enumerate(header)}
    target = np.stack([column["target_x"], column["target_y"]], 1)
    out: dict[str, Any] = {
        "source": np.stack([column["source_x"], column["source_y"]], 1),
        "target": np.where(np.isfinite(target), target, -1.0),
        "score": column["score"],
    }
    if "cycle_error" in column:
        out["cycle_error"] = column["cycle_error"]
    count = sum(name.startswith("top") and name.endswith("_x") for name in header)
    if count:
        names = [f"top{place + 1}_{axis}" for place in range(count) for axis in ("x", "y", "score")]
        out["topk"] = np.stack([column[name] for name in names], 1).reshape(-1, count, 3)
    return out


def _from_npz(content: bytes) -> Mapping[str, Any]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _from_h5(content: bytes) -> Mapping[str, Any]:
    h5py = h5py_or_error("load_matches")
    with h5py.File(io.BytesIO(content), "r") as file:
        return {name: file[name][()] for name in file}
