"""Pictures that move."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InputError
from ..images import load_image
from ..types import write_atomically

__all__ = ["save_gif"]


def save_gif(
    frames: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    frames_per_second: float = 8.0,
    loop: bool = True,
) -> Path:
    """Write images as an animated GIF; returns its path.

    Each frame has 256 colours of its own, without dithering, so flat colours stay flat. Equal frames give equal files.

    Args:
        frames: at least one image of one size; anything :func:`ditf.images.load_image` reads.
        path: a name that ends in .gif, in a folder that exists.
        frames_per_second: up to 50; GIF counts in hundredths of a second.
        loop: start again after the last frame.

    Raises:
        InputError: no frames, frames of different sizes, another ending, a speed that GIF cannot say.
        StoreError: the folder is missing or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise InputError.of("path", str(path), "a name that ends in .gif")
    if not 0.02 <= frames_per_second <= 50:
        raise InputError.of("frames_per_second", frames_per_second, "a number in 0.02..50")
    images = [load_image(frame) for frame in frames]
    if not images:
        raise InputError.of("frames", "none", "at least one image")
    for position, image in enumerate(images):
        if image.size != images[0].size:
            got = (image.height, image.width)
            raise InputError.of(f"frames[{position}]", got, f"the (H, W) of the first, {images[0].size[::-1]}")
    few = [image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for image in images]
    file = io.BytesIO()
    duration = 10 * round(100 / frames_per_second)  # milliseconds
    options: dict[str, Any] = {"loop": 0} if loop else {}
    few[0].save(file, "GIF", save_all=True, append_images=few[1:], duration=duration, disposal=1, **options)
    write_atomically(path, file.getvalue())
    return path
