"""Colours of the pictures: palettes that colour-blind eyes can tell apart, and colours of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "HUES",
    "INFERNO",
    "INK",
    "PAPER",
    "SOFT_INK",
    "UNMATCHED",
    "VIRIDIS",
    "Color",
    "luminance",
    "read_colors",
    "share_of",
    "span_of",
    "viridis",
]

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (32, 36, 46)
SOFT_INK: Color = (104, 110, 124)
UNMATCHED: Color = (150, 152, 158)

# Okabe and Ito's palette, then five of Tol's that stay apart from it for colour-blind eyes.
HUES: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (255, 255, 255), (136, 34, 85), (187, 204, 51), (122, 72, 38),
)  # fmt: skip

# Seventeen evenly spaced colours of matplotlib's viridis and inferno (CC0), read with linear interpolation.
VIRIDIS = "44015448186a472d7b4240863b528b33638d2c728e26828e21918c1fa08828ae803fbc735ec96284d44baddc30d8e219fde725"
INFERNO = "0000040b0724210c4a3d096557106e71196e8a226aa32c61bc3754d24644e45a31f1731df98e09fcac11f9cb35f2ea69fcffa4"


def viridis(share: float) -> Color:
    """The colour of a number in 0..1."""
    red, green, blue = read_colors(VIRIDIS, np.array([share]))[0].round().tolist()
    return int(red), int(green), int(blue)


def read_colors(table: str, shares: np.ndarray) -> np.ndarray:
    """(..., 3) float colours 0..255 of shares in [0, 1]."""
    stops = np.frombuffer(bytes.fromhex(table), np.uint8).reshape(-1, 3).astype(np.float32)
    at = np.linspace(0.0, 1.0, len(stops))
    return np.stack([np.interp(shares, at, stops[:, channel]) for channel in range(3)], axis=-1)


def span_of(values: np.ndarray) -> tuple[float, float] | None:
    """(least, largest) of the finite values."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def share_of(value: Any, span: tuple[float, float]) -> Any:
    """Where a value lies between the two ends, 0 to 1; all of it the upper end where they are one."""
    low, high = span
    return (value - low) / (high - low) if high > low else value * 0.0 + 1.0


def luminance(color: Color) -> float:
    """Relative luminance, 0 (black) to 1 (white)."""
    red, green, blue = ((v / 255) ** 2.2 for v in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
