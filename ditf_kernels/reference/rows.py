"""What the twins share: rows of tokens taken in blocks that fit a CPU's cache, and their lengths."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NORM_FLOOR = 1e-12  # F.normalize's: a shorter vector counts as zero
BLOCK = 1 << 18  # elements of one temporary: 1 MiB of float32


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (K, D) in float32 over their lengths (at least 1e-12); NaN rows where the length is not finite."""
    rows = rows.to(torch.float32)
    length = rows.norm(dim=-1, keepdim=True)
    length = length.masked_fill(~length.isfinite(), torch.nan)
    return rows / length.clamp_min(NORM_FLOOR)


def blocks(count: int, elements: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Ranges over count rows of so many elements; a GPU takes larger bites."""
    budget = BLOCK if device.type == "cpu" else 64 * BLOCK
    step = max(1, budget // max(1, elements))
    return ((first, min(first + step, count)) for first in range(0, count, step))
