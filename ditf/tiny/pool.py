"""Pictures for training, rendered beforehand and varied as they are drawn.

    python -m ditf.tiny.pool --out FOLDER --images 200000 --size 64

Rendering a scene takes milliseconds, drawing one from a pool microseconds. The folder holds ``pool.npy``, (N, size,
size, 3) uint8, and ``pool.json``, what it was made of. The pictures get harder along the pool: later ones have busy
backgrounds, shapes before the instance and a tilted view more often, so a curriculum is a matter of how far in one
draws. Held-out kinds and styles never get in.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DitfError, InputError, StoreError
from ..types import write_atomically
from .scenes import KINDS, STYLES, TRAINING_SEED, sample_scene

__all__ = ["Pool", "PoolRecipe", "build_pool", "main"]

log = logging.getLogger("ditf")

_PIXELS, _CARD = "pool.npy", "pool.json"
_PARTIAL, _PROGRESS = "pool.npy.partial", "pool.partial.json"
_CHUNK = 256  # pictures that a process renders and writes at a time
_ORDERS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


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


def _chance(share: float, place: float) -> float:
    """Grows along the pool, from 0 to 1, as the power of the place whose mean is the share."""
    return 0.0 if share == 0 else place ** ((1 - share) / share)


class Pool:
    """A finished pool, to draw batches from.

    Attributes:
        pixels: (N, size, size, 3) uint8, a memory-mapped array.
        card: what it was made of.
    """

    def __init__(self, pixels: np.ndarray, card: dict[str, Any]) -> None:
        self.pixels, self.card = pixels, card
        self._resident: Tensor | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Pool:
        """The pool of a folder.

        Raises:
            StoreError: there is no finished pool, or its files do not belong together.
        """
        path = Path(folder)
        card = _card(path)
        if card is None:
            raise StoreError(f"{path}: no finished pool; make one with python -m ditf.tiny.pool --out {path}")
        try:
            pixels = np.load(path / _PIXELS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path / _PIXELS}: cannot be read ({error}); make the pool again") from None
        images, size = card["recipe"]["images"], card["recipe"]["size"]
        if pixels.shape != (images, size, size, 3) or pixels.dtype != np.uint8:
            raise StoreError(f"{path / _PIXELS}: got {pixels.dtype} {pixels.shape}, its card has {images} pictures of "
                             f"{size} pixels; make the pool again")  # fmt: skip
        return cls(pixels, card)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.pixels.shape[1]

    def to(self, device: str | torch.device) -> Pool:
        """The same pool with all its pictures in a device's memory, so that no batch has to travel."""
        pool = Pool(self.pixels, self.card)
        pool._resident = torch.from_numpy(np.array(self.pixels)).to(device)
        return pool

    def batch(
        self,
        seed: int,
        step: int,
        count: int,
        *,
        size: int | None = None,
        reach: float = 1.0,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Pictures of one step of training: the same for the same arguments, whatever was drawn before.

        Each is flipped or not, has its colour channels in any order, and is moved by up to a sixteenth of its side, its
        border mirrored. When a smaller size is asked for, the batch is cut a little closer and scaled down.

        Args:
            seed, step: of all that is drawn.
            count: pictures, with repetition.
            size: side of the pictures, at most that of the pool (None).
            reach: draw from this first share of the pool, the easier pictures.
            device: where the batch is put together; a pool that lies in a device's memory has its own.

        Returns:
            (count, 3, size, size) uint8 on the device.

        Raises:
            InputError: an argument outside its domain.
        """
        size = self.size if size is None else size
        if count < 1:
            raise InputError.of("count", count, "at least 1")
        if not 8 <= size <= self.size:
            raise InputError.of("size", size, f"from 8 to the pool's {self.size} pixels")
        if not 0 < reach <= 1:
            raise InputError.of("reach", reach, "a share above 0, up to 1")
        random = np.random.default_rng([seed, step])
        indices = np.sort(random.integers(max(1, round(reach * len(self))), size=count))  # sorted: the disk prefers it
        window = self.size if size == self.size else int(random.integers(max(size, self.size * 4 // 5), self.size + 1))
        reach_of_shift = self.size // 16
        spare = self.size - window
        shift = random.integers(-reach_of_shift, spare + reach_of_shift + 1, size=(2, count))
        flipped, order = random.random(count) < 0.5, random.integers(len(_ORDERS), size=count)
        if self._resident is None:
            pictures = torch.from_numpy(self.pixels[indices]).to(device, non_blocking=True)
        else:
            pictures = self._resident[torch.from_numpy(indices).to(self._resident.device)]
        rows, columns = (_mirrored(shift[axis], window, self.size) for axis in (0, 1))
        columns = np.where(flipped[:, None], columns[:, ::-1], columns)
        cut = _gathered(pictures, torch.from_numpy(rows), torch.from_numpy(columns), _ORDERS[order])
        return cut if window == size else _scaled(cut, size)


def _mirrored(start: np.ndarray, window: int, side: int) -> np.ndarray:
    """(B, window) int64: rows or columns from each start on, mirrored at the picture's border."""
    place = start[:, None] + np.arange(window)
    return side - 1 - np.abs(side - 1 - np.abs(place))


def _gathered(pictures: Tensor, rows: Tensor, columns: Tensor, channels: Tensor) -> Tensor:
    """(B, S, S, 3) -> (B, 3, w, w): each picture by rows, columns (B, w) and channels (B, 3) of its own."""
    rows, columns, channels = (places.to(pictures.device) for places in (rows, columns, channels))
    number = torch.arange(len(pictures), device=pictures.device)[:, None]
    cut = pictures[number, rows].permute(0, 3, 1, 2)[number, channels]  # (B, 3, w, S)
    return torch.gather(cut, 3, columns[:, None, None, :].expand(-1, 3, rows.shape[1], -1))


def _scaled(pictures: Tensor, size: int) -> Tensor:
    """Scaled down with a filter as wide as the step, to uint8."""
    small = torch.nn.functional.interpolate(pictures.float(), (size, size), mode="bilinear", antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8)


def build_pool(
    folder: str | os.PathLike[str], recipe: PoolRecipe, *, processes: int | None = None, rebuild: bool = False
) -> Pool:
    """Render a pool, or go on with one that was left half done; a finished one of the same recipe is only opened.

    Args:
        folder: made if missing.
        processes: that render; None is one per core.
        rebuild: throw away a pool of another recipe that the folder holds.

    Raises:
        StoreError: the folder holds a pool of another recipe, cannot be written, or has too little space.
    """
    path, made_of = Path(folder), _made_of(recipe)
    finished, begun = _card(path), _json(path / _PROGRESS)
    if not rebuild:
        for found in (finished, begun):
            _check_same(path, found, made_of)
    if finished is not None and _same(finished, made_of):
        return Pool.open(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        done, seconds = 0, 0.0
        if begun is not None and _same(begun, made_of) and (path / _PARTIAL).is_file():
            done, seconds = begun["done"], begun["seconds"]
        else:
            _reserve(path, recipe)
        seconds = _rendered(path, recipe, made_of, done, seconds, processes)
        (path / _CARD).unlink(missing_ok=True)  # a card never stands beside other pictures than its own
        os.replace(path / _PARTIAL, path / _PIXELS)
        card = {**made_of, "kinds": list(KINDS), "seconds": round(seconds, 1)}
        write_atomically(path / _CARD, json.dumps(card, indent=1).encode())
        (path / _PROGRESS).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); free some space or choose another folder, "
                         "then run the same again") from None  # fmt: skip
    return Pool.open(path)


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
    """An empty file of the full size, if there is space for it."""
    shape = (recipe.images, recipe.size, recipe.size, 3)
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(path).free
    if needed > free:
        raise StoreError(f"{path}: a pool of {recipe.images} pictures needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} "
                         "GB are free; ask for fewer images or choose another folder")  # fmt: skip
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
            if now - said > 5 or done == recipe.images:
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


def _card(path: Path) -> dict[str, Any] | None:
    return _json(path / _CARD) if (path / _PIXELS).is_file() else None


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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ditf.tiny.pool", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--images", type=int, required=True, metavar="N")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS")
    parser.add_argument("--styles", nargs="+", default=STYLES, metavar="STYLE", help=f"some of {', '.join(STYLES)}")
    for name in ("clutter", "occluded", "viewpoint"):
        default = getattr(PoolRecipe, name)
        parser.add_argument(f"--{name}", type=float, default=default, metavar="SHARE", help=f"default {default}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, metavar="N", help="default: one per core")
    parser.add_argument("--rebuild", action="store_true", help="throw away a pool of another recipe")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(PoolRecipe)}
        pool = build_pool(options.out, PoolRecipe(**fields), processes=options.processes, rebuild=options.rebuild)
    except DitfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{options.out}: {len(pool)} pictures of {pool.size} pixels; {_speed(pool):.0f} a second in batches of 256")
    return 0


def _speed(pool: Pool, batches: int = 40) -> float:
    """Pictures a second that batches take out of the pool, on this machine's CPU."""
    pool.batch(0, 0, 256)
    started = time.perf_counter()
    for step in range(batches):
        pool.batch(0, step, 256)
    return batches * 256 / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
