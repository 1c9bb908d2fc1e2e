"""Rows ready for the table of a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["latex_table"]

_MARKS = {mark: f"\\{mark}" for mark in "&%$#_{}"} | {
    "\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}",
}  # fmt: skip


def latex_table(about: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """A tabular of booktabs; the first ``names`` columns are left-aligned, ``about`` is a comment above it."""
    lines = [
        f"% {' '.join(about.split())}",
        f"\\begin{{tabular}}{{{'l' * names}{'r' * (len(headings) - names)}}}",
        "\\toprule",
        _row(headings),
        "\\midrule",
        *map(_row, rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join("".join(_MARKS.get(c, c) for c in cell) for cell in cells) + " \\\\"
