"""Accuracy on test pairs: what the model's card says, with the rivals beside."""

from __future__ import annotations

from typing import Any

from ditf.tiny.evaluate import report


def rows_of(checkpoint: str, pairs: int | None) -> dict[str, Any]:
    """Task -> setting, pairs, rows with intervals, differences with intervals."""
    counts = {} if pairs is None else {"scenes": pairs, "warps": max(1, round(pairs / 3))}
    numbers = report(checkpoint, **counts)
    return {"tasks": {task: numbers[task] for task in ("semantic", "photographs")}}
