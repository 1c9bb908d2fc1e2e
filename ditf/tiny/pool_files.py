"""How a pool of training pictures gets on disk: by several processes, resumable, and whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, StoreError
from ..types import write_atomically
from .scenes import KINDS, STYLES, TRAINING_SEED, sample_scene

__all__ = ["CARD", "PIXELS", "PoolRecipe", "build_pool", "card_of"]

log = logging.getLogger("ditf")

PIXELS, CARD = "pool.npy", "pool.json"
_PARTIAL, _PROGRESS = "pool.npy.partial", "pool.partial.json"
_CHUNK = 256  # pictures that a process renders and writes at a time
_SAVE_EVERY = 5.0  # seconds between notes of how far it got


@dataclass(frozen=True)
class PoolRecipe:
    """Everything that decides the pictures.

    Attributes:
        images: how many.
        size: side of the square pictures in pixels.
        styles: of ``STYLES``, in equal shares.
        clutter, occluded: shares of pictures with a busy background and with one to three shapes before the instance.
        viewpoint: share of pictures with a tilted view, by up to the strongest tilt.
        seed: pools of different seeds share no scene.

    Raises:
        InputError: a field outside its domain.
    """

    images: int
    size: int = 64
    styles: tuple[str, ...] = STYLES
    clutter: float = 0.4
    occluded: float = 0.2
    viewpoint: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "styles", tuple(self.styles))
        if self.images < 1:
            raise InputError.of("images", self.images, "at least 1")
        if self.size < 8:
            raise InputError.of("size", self.size, "at least 8 pixels")
        if not self.styles or not set(self.styles) <= set(STYLES):
            raise InputError.of("styles", self.styles, f"some of {', '.join(STYLES)}")
        for name in ("clutter", "occluded", "viewpoint"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError.of(name, getattr(self, name), "a share from 0 to 1")
        if not 0 <= self.seed < 2**30:
            raise InputError.of("seed", self.seed, "from 0 to 2**30 - 1")

    def picture(self, index: int) -> np.ndarray:
        """(size, size, 3) uint8: one picture of the pool."""
        random = np.random.default_rng([self.seed, index, 6])
        place, (clutter, occluded, tilted) = (index + 0.5) / self.images, random.random(3)
        style, occluders = str(random.choice(self.styles)), int(random.integers(1, 4))
        viewpoint = float(random.uniform(0.2, 1.0))
        return sample_scene(
            TRAINING_SEED * (1 + self.seed) + index,
            self.size,
            clutter=bool(clutter < _chance(self.clutter, place)),
            style=style,
            occluders=occluders if occluded < _chance(self.occluded, place) else 0,
            viewpoint=viewpoint if tilted < _chance(self.viewpoint, place) else 0.0,
        ).pixels


def build_pool(
    folder: str | os.PathLike[str], recipe: PoolRecipe, *, processes: int | None = None, rebuild: bool = False
) -> None:
    """Render a pool, or go on with one that was left half done; a finished one of the same recipe is left as it is.

    Args:
        folder: made if missing.
        processes: that render; None is one per core.
        rebuild: throw away a pool of another recipe that the folder holds.

    Raises:
        StoreError: the folder holds a pool of another recipe, cannot be written, or has too little space; or a process
            was killed. What is rendered by then is kept.
    """
    path, made_of = Path(folder), _made_of(recipe)
    finished, begun = card_of(path), _json(path / _PROGRESS)
    if not rebuild:
        for found in (finished, begun):
            _check_same(path, found, made_of)
    if finished is not None and _same(finished, made_of):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        done, seconds = 0, 0.0
        if begun is not None and _same(begun, made_of) and (path / _PARTIAL).is_file():
            done, seconds = begun["done"], begun["seconds"]
        else:
            _reserve(path, recipe)
        seconds = _rendered(path, recipe, made_of, done, seconds, processes)
        (path / CARD).unlink(missing_ok=True)  # a card never stands beside other pictures than its own
        os.replace(path / _PARTIAL, path / PIXELS)
        card = {**made_of, "kinds": list(KINDS), "seconds": round(seconds, 1)}
        write_atomically(path / CARD, json.dumps(card, indent=1).encode())
        (path / _PROGRESS).unlink(missing_ok=True)
    except BrokenProcessPool:
        raise StoreError(f"{path}: a process that renders was killed, perhaps for memory; the same command goes on, "
                         "with fewer --processes if need be") from None  # fmt: skip
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); free some space or choose another folder, "
                         "then run the same again") from None  # fmt: skip


def card_of(path: Path) -> dict[str, Any] | None:
    """What the finished pool in a folder was made of, or None."""
    return _json(path / CARD) if (path / PIXELS).is_file() else None


def _chance(share: float, place: float) -> float:
    """Grows along the pool, from 0 to 1, as the power of the place whose mean is the share."""
    return 0.0 if share == 0 else place ** ((1 - share) / share)


def _made_of(recipe: PoolRecipe) -> dict[str, Any]:
    """The recipe, and a fingerprint of the program that draws: the sum of a few pictures."""
    tried = dataclasses.replace(recipe, images=24, size=32)
    pictures = b"".join(tried.picture(index).tobytes() for index in range(tried.images))
    fields = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {"recipe": fields, "drawing": hashlib.sha256(pictures).hexdigest()[:16]}


def _same(found: dict[str, Any] | None, made_of: dict[str, Any]) -> bool:
    return found is not None and all(found.get(key) == value for key, value in made_of.items())


def _check_same(path: Path, found: dict[str, Any] | None, made_of: dict[str, Any]) -> None:
    if found is None or _same(found, made_of):
        return
    old, new = found.get("recipe", {}), made_of["recipe"]
    changes = [f"{name} {old.get(name)!r}, now {value!r}" for name, value in new.items() if old.get(name) != value]
    changed = "; ".join(changes) or "drawn by another version of ditf"
    raise StoreError(f"{path}: holds a pool of another recipe ({changed}); add --rebuild or choose another folder")


def _reserve(path: Path, recipe: PoolRecipe) -> None:
    """An empty file of the full size, if there is space for it; nothing counts as done then."""
    shape = (recipe.images, recipe.size, recipe.size, 3)
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(path).free
    if needed > free:
        raise StoreError(f"{path}: a pool of {recipe.images} pictures needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} "
                         "GB are free; ask for fewer images or choose another folder")  # fmt: skip
    (path / _PROGRESS).unlink(missing_ok=True)
    with (path / _PARTIAL).open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + needed)


def _rendered(
    path: Path, recipe: PoolRecipe, made_of: dict[str, Any], done: int, seconds: float, processes: int | None
) -> float:
    """Fill the reserved file from picture ``done`` on; returns the seconds that the whole pool took."""
    started = said = time.monotonic()
    first, count = done, processes or os.cpu_count() or 1
    starts = range(done, recipe.images, _CHUNK)
    count = min(count, len(starts))
    where = (path / _PARTIAL).stat().st_size - recipe.images * recipe.size**2 * 3  # after the header
    render = partial(_render_chunk, path / _PARTIAL, where, recipe)
    with _Processes(count) as each:
        for done in each(render, starts):
            now = time.monotonic()
            if now - said > _SAVE_EVERY or done == recipe.images:
                said = now
                progress = {**made_of, "done": done, "seconds": seconds + now - started}
                write_atomically(path / _PROGRESS, json.dumps(progress).encode())
                speed = (done - first) / (now - started)
                log.info("%5.1f%%  %d pictures  %.0f pictures/s", 100 * done / recipe.images, done, speed)
    return seconds + time.monotonic() - started


class _Processes:
    """``map`` in the order of the jobs, in processes of its own where more than one is of use."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Any:
        if self._count < 2:
            return map
        server = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if server else "spawn")
        if server:
            context.set_forkserver_preload(["ditf.tiny.scenes"])
        self._pool = ProcessPoolExecutor(self._count, context)
        return self._pool.map

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _render_chunk(path: Path, where: int, recipe: PoolRecipe, start: int) -> int:
    """Render and write some pictures; returns the index after the last."""
    end = min(start + _CHUNK, recipe.images)
    pictures = np.stack([recipe.picture(index) for index in range(start, end)])
    with path.open("r+b") as file:
        file.seek(where + start * pictures[0].nbytes)
        file.write(pictures.tobytes())
    return end


def _json(path: Path) -> dict[str, Any] | None:
    """What a file holds, None where there is no file.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); delete it and make the pool again") from None
