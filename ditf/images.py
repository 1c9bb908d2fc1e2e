"""Images in: anything a person calls an image becomes RGB pixels, then the pixels a model sees."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import InputError
from .types import ExtractConfig

__all__ = ["Prepared", "load_image", "prepare"]

_URL_TIMEOUT_S = 30
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image at the size a model sees.

    Attributes:
        pixels: (H', W', 3) uint8.
        image_size: (H, W) of the original.
        canvas: (H, W) in original pixels that ``pixels`` shows, or None for the image itself.
        offset: (x, y) of the original's top-left pixel on the canvas.
    """

    pixels: np.ndarray
    image_size: tuple[int, int]
    canvas: tuple[int, int] | None
    offset: tuple[int, int]

    @property
    def tensor(self) -> Tensor:
        """(1, 3, H', W') float32 in [-1, 1]."""
        return torch.from_numpy(self.pixels).permute(2, 0, 1)[None].to(torch.float32) / 127.5 - 1.0


def load_image(source: Any) -> Image.Image:
    """Any image as 8-bit RGB, upright (EXIF), transparency laid on white, 16-bit scaled to 8.

    Args:
        source: PIL image, path, http(s) URL, array (H, W, 3) uint8 or tensor (3, H, W) in [0, 1].

    Raises:
        InputError: what cannot be read as an image, and why.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "image")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, str | os.PathLike):
        return _from_file(os.fspath(source))
    raise InputError.of(
        "image", type(source).__name__, "a PIL image, path, URL, (H, W, 3) uint8 array or (3, H, W) tensor in [0, 1]"
    )


def prepare(source: Any, config: ExtractConfig, pixels_per_token: int) -> Prepared:
    """Load an image and bring it to the size the config asks for.

    Sides become multiples of ``config.multiple`` (the model's pixels per token when None), at least one of them; the
    grid then covers the whole image, its aspect changed by the rounding alone, as in the reference.
    "pad" pads the image first and resizes the square; published evaluators that resize first have a protocol of their
    own in :mod:`ditf.benchmarks.protocols`, since there the image need not begin at a whole pixel of the canvas.

    Raises:
        InputError: an unreadable image, or a multiple that is none of the model's pixels per token.
    """
    multiple = config.multiple or pixels_per_token
    if multiple % pixels_per_token:
        raise InputError.of("multiple", multiple, f"a multiple of {pixels_per_token}, the model's pixels per token")
    image = load_image(source)
    size = (image.height, image.width)
    canvas, offset = None, (0, 0)
    if config.resize == "pad":
        image, canvas, offset = _centred_on_square(image)
    height, width = (_rounded(side, multiple, config.rounding) for side in _sides(image, config))
    resized = image.resize((width, height), _FILTERS[config.resample])
    return Prepared(np.array(resized), size, canvas, offset)


def _from_file(source: str) -> Image.Image:
    if source.startswith(("http://", "https://")):
        return _decoded(BytesIO(_downloaded(source)), source)
    path = Path(source).expanduser()
    if path.is_dir():
        raise InputError(f"image: {source} is a folder; give a file in it")
    if not path.exists():
        raise InputError(f"image: no such file: {source}; check the path (now in {Path.cwd()})")
    return _decoded(path, source)


def _decoded(file: Path | BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return _rgb(image, name)
    except UnidentifiedImageError:
        raise InputError(f"image: {name} is no image that Pillow can read; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"image: {name} is too large ({error}); scale it down first") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image: {name} cannot be read ({error}); the file may be truncated or damaged") from None


def _downloaded(url: str) -> bytes:
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={"User-Agent": "ditf"}), timeout=_URL_TIMEOUT_S) as answer:
            return answer.read()
    except (URLError, OSError, ValueError) as error:
        raise InputError(
            f"image: {url} cannot be downloaded ({error}); download it yourself and give the path"
        ) from None


def _rgb(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.width < 1 or image.height < 1:
        raise InputError(f"image: {name} has no pixels ({image.width} x {image.height}); give another")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep(np.asarray(image), name)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_deep(values: np.ndarray, name: str) -> Image.Image:
    """Grey levels of 16 bits (or floats in [0, 1]) as 8-bit RGB."""
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError(f"image: {name} holds floats outside [0, 1]; scale them to 8 or 16 bits first")
        grey = np.rint(values * 255.0)
    else:
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"image: {name} holds values outside 0..65535; scale them to 8 or 16 bits first")
        grey = np.rint(values.astype(np.float64) / 257.0)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise InputError.of("image", f"array {array.shape} {array.dtype}", "an array (H, W, 3) of uint8")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.is_floating_point() or 0 in tensor.shape:
        raise InputError.of(
            "image", f"tensor {tuple(tensor.shape)} {tensor.dtype}", "a float tensor (3, H, W) in [0, 1]"
        )
    values = tensor.detach().to("cpu", torch.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError.of("image", f"tensor with values in {low:g}..{high:g}", "values in [0, 1]")
    return Image.fromarray((values * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _centred_on_square(image: Image.Image) -> tuple[Image.Image, tuple[int, int], tuple[int, int]]:
    side = max(image.size)
    offset = ((side - image.width) // 2, (side - image.height) // 2)
    square = Image.new("RGB", (side, side))
    square.paste(image, offset)
    return square, (side, side), offset


def _sides(image: Image.Image, config: ExtractConfig) -> tuple[float, float]:
    """(height, width) before rounding."""
    if isinstance(config.size, tuple):
        return config.size
    if config.resize == "stretch":
        return config.size, config.size
    reference = min(image.size) if config.resize == "shortest" else max(image.size)
    scale = config.size / reference
    return image.height * scale, image.width * scale


def _rounded(side: float, multiple: int, rounding: str) -> int:
    steps = side / multiple
    if rounding == "half-even":
        return max(1, round(steps)) * multiple
    return max(1, int(steps if rounding == "floor" else steps + 0.5)) * multiple
