"""Masks of objects: read, resized, drawn, and written as indexed PNG in the colours of DAVIS and PASCAL VOC."""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from ..types import write_atomically

__all__ = ["LARGEST_ID", "draw_labels", "load_mask", "palette", "resized_nearest", "save_mask"]

LARGEST_ID = 255  # of an indexed PNG


def load_mask(source: Any) -> Tensor:
    """(H, W) int64 object ids on the CPU, 0 the background.

    Args:
        source: (H, W) array or tensor of integers or bool, a picture, or the path of one: the index of an indexed
            picture (as DAVIS has them), the value of a grey one. A colour picture counts where it is grey all over.

    Raises:
        InputError: not readable, no mask, or negative ids.
    """
    if isinstance(source, str | os.PathLike):
        source = _opened(Path(source).expanduser())
    if isinstance(source, Image.Image):
        source = _ids(source)
    if not isinstance(source, Tensor | np.ndarray):
        raise InputError.of("mask", type(source).__name__, "an array (H, W) of integers, a picture or its path")
    mask = torch.tensor(source) if isinstance(source, np.ndarray) else source.detach().cpu()
    if mask.ndim != 2 or 0 in mask.shape or mask.is_floating_point() or mask.is_complex():
        raise InputError.of("mask", f"{tuple(mask.shape)} {mask.dtype}", "an array (H, W) of integers, an id per pixel")
    mask = mask.to(torch.int64)
    if int(mask.min()) < 0:
        raise InputError.of("mask", int(mask.min()), "ids of at least 0")
    return mask


def save_mask(path: str | os.PathLike[str], labels: Tensor | np.ndarray) -> Path:
    """Write (H, W) object ids as an indexed PNG, under a temporary name, then renamed.

    Raises:
        InputError: an id above 255, the most that an indexed PNG holds.
        StoreError: the folder is missing or cannot be written.
    """
    ids = load_mask(labels).numpy()
    if ids.max() > LARGEST_ID:
        raise InputError.of("labels", f"id {ids.max()}", f"ids of at most {LARGEST_ID}, what an indexed PNG holds")
    image = Image.fromarray(ids.astype(np.uint8)).convert("L")
    image.putpalette(palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(Path(path), buffer.getvalue())
    return Path(path)


@cache
def palette() -> np.ndarray:
    """(256, 3) uint8: the colour of every id. Bit k of an id, from the lowest, goes in turn to red, green and blue,
    of each the highest bit first."""
    ids, colors = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colors[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    colors.flags.writeable = False
    return colors


def draw_labels(image: Image.Image, labels: Tensor | np.ndarray, *, opacity: float = 0.5) -> Image.Image:
    """The image with every object tinted in its colour and outlined; ids above 255 take the colours again from 1.

    Raises:
        InputError: labels of another size than the image.
    """
    ids = load_mask(labels).numpy()
    if ids.shape != (image.height, image.width):
        raise InputError.of("labels", ids.shape, f"(H, W) of the image, {(image.height, image.width)}")
    pixels = np.asarray(image.convert("RGB"), np.float32)
    colors = palette()[np.where(ids > LARGEST_ID, (ids - 1) % LARGEST_ID + 1, ids)].astype(np.float32)
    tinted = np.where((ids > 0)[..., None], (1 - opacity) * pixels + opacity * colors, pixels)
    border = _borders(ids)
    tinted[border] = np.where((ids[border] > 0)[:, None], colors[border], tinted[border])
    return Image.fromarray(np.rint(tinted).astype(np.uint8))


def resized_nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) int64 labels at another size (H, W), each pixel the nearest one's, as Pillow does."""
    picture = Image.fromarray(labels.to(torch.int32).numpy())  # mode I
    return torch.from_numpy(np.array(picture.resize((size[1], size[0]), Image.Resampling.NEAREST)).astype(np.int64))


def _borders(ids: np.ndarray) -> np.ndarray:
    """Pixels with another label beside, above or below them."""
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    border[1:] |= ids[1:] != ids[:-1]
    border[:-1] |= ids[:-1] != ids[1:]
    return border


def _opened(path: Path) -> Image.Image:
    if not path.exists():
        raise InputError(f"mask: no such file: {path}; check the path (now in {Path.cwd()})")
    try:
        with Image.open(path) as image:
            image.load()
            if image.format == "JPEG":
                raise InputError(f"mask: {path} is a JPEG, which blurs ids; save the mask as PNG")
            return image.copy()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"mask: {path} cannot be read ({error}); give an indexed or grey PNG") from None


def _ids(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if values.ndim == 3:
        colors = values[..., :3] if image.mode in ("RGB", "RGBA") else values[..., :1]
        if (colors != colors[..., :1]).any():
            raise InputError(
                f"mask: got a picture in colours (mode {image.mode}), expected ids: save it as indexed or grey PNG, "
                "0 the background"
            )
        values = colors[..., 0]
    return values
