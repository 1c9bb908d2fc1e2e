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
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DitfError, InputError, StoreError
from .pool_files import PIXELS, PoolRecipe, build_pool, card_of
from .scenes import STYLES

__all__ = ["Pool", "PoolRecipe", "build_pool", "main"]

_ORDERS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


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
        card = card_of(path)
        if card is None:
            raise StoreError(f"{path}: no finished pool; make one with python -m ditf.tiny.pool --out {path}")
        try:
            pixels = np.load(path / PIXELS, mmap_mode="r", allow_pickle=False)
            images, size = card["recipe"]["images"], card["recipe"]["size"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: the pool in it cannot be read ({error!r}); make it again") from None
        if pixels.shape != (images, size, size, 3) or pixels.dtype != np.uint8:
            raise StoreError(f"{path / PIXELS}: got {pixels.dtype} {pixels.shape}, its card has {images} pictures of "
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
        most, spare = self.size // 16, self.size - window
        shift = random.integers(-most, spare + most + 1, size=(2, count))
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
        build_pool(options.out, PoolRecipe(**fields), processes=options.processes, rebuild=options.rebuild)
        pool = Pool.open(options.out)
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
