"""What several public functions ask of their arguments; each names the argument, what it got and what it expects."""

from __future__ import annotations

import operator
from typing import Any

import torch

__all__ = ["FLOATS", "check_dtype", "check_integer", "checked_pair"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """A floating-point dtype that the kernels take."""
    if dtype not in FLOATS:
        raise ValueError(f"{name}: got {dtype}, expected float32, bfloat16 or float16")


def check_integer(name: str, value: Any, least: int, most: int | None) -> None:
    """An integer, also one that is traced, within bounds."""
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}{upper}")


def checked_pair(name: str, value: Any) -> tuple[int, int]:
    """Two integers of at least 1: the height and width of a grid or an image."""
    try:
        first, second = (operator.index(v) for v in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {value!r}, expected two integers (height, width)") from None
    if first < 1 or second < 1:
        raise ValueError(f"{name}: got {(first, second)}, expected two integers of at least 1")
    return first, second
