"""The pictures that ``discard="auto"`` looks for massive channels on, and the settings it does so at.

Sixteen procedural pictures that come with the package: creatures and cars, half of them before clutter, drawn by
``ditf.tiny.scenes``. They are no photographs. Massive channels hardly depend on the image (DiTF, arXiv 2505.18584), and
who wants them from photographs gives those to :func:`ditf.find_massive_channels` and the result to ``discard=``.
Pictures and settings are the same for every user, so that a model has the same channels everywhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .types import ExtractConfig

__all__ = ["CALIBRATION_PROMPT", "calibration_card", "calibration_config", "calibration_pictures"]

CALIBRATION_PROMPT = ""
_SHEET = Path(__file__).parent / "calibration.png"
_SIDE = 256  # pixels of a picture on the sheet
_TOKENS = 32  # along a side of a picture, as the model sees it


def calibration_pictures() -> list[np.ndarray]:
    """Sixteen (256, 256, 3) uint8."""
    with Image.open(_SHEET) as image:
        sheet = np.array(image)
    corners = [(y, x) for y in range(0, sheet.shape[0], _SIDE) for x in range(0, sheet.shape[1], _SIDE)]
    return [np.ascontiguousarray(sheet[y : y + _SIDE, x : x + _SIDE]) for y, x in corners]


def calibration_config(block: int, timestep: float, pixels_per_token: int) -> ExtractConfig:
    """Raw tokens of 32 x 32 cells under one noise, without a text."""
    side = _TOKENS * pixels_per_token
    return ExtractConfig(
        block=block,
        timestep=timestep,
        normalization="none",
        discard="none",
        resize="stretch",
        size=(side, side),
        prompt=CALIBRATION_PROMPT,
    )


def calibration_card() -> dict[str, object]:
    """What was looked at, as plain JSON values."""
    return {"pictures": "16 of ditf's own", "tokens": [_TOKENS, _TOKENS], "prompt": CALIBRATION_PROMPT, "seed": 0}
