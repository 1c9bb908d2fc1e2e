"""Points from the command line and from files. No torch here: a wrong point is refused before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

__all__ = ["check_inside", "parse_point", "read_points"]

Point = tuple[float, float]


def parse_point(text: str) -> Point:
    """ "x,y" as two numbers.

    Raises:
        InputError: anything else.
    """
    parts = text.split(",")
    numbers = [_number(part) for part in parts]
    if len(parts) != 2 or None in numbers:
        raise InputError(f"--point: got {text!r}, expected two finite numbers x,y such as 120,80")
    x, y = (n for n in numbers if n is not None)
    return x, y


def check_inside(points: Sequence[Point], size: tuple[int, int], option: str, image: str) -> None:
    """Every point lies on a pixel of the image, (H, W) in size.

    Raises:
        InputError: the first that does not.
    """
    height, width = size
    for position, (x, y) in enumerate(points, 1):
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            which = "" if option == "--point" else f" (point {position})"
            raise InputError(
                f"{option}: got {x:g},{y:g}{which}, expected x in 0..{width - 1} and y in 0..{height - 1}: "
                f"{image} is {width} x {height} pixels"
            )


def read_points(path: Path) -> list[Point]:
    """Points of a CSV or JSON file.

    CSV: x and y per line, separated by comma, semicolon or tab; with a header, its columns x and y are taken. Blank
    lines and lines that begin with # are skipped. JSON: a list of [x, y], or an object with that list as "points".

    Raises:
        InputError: a file that is missing, unreadable, empty or malformed; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"--points: no such file: {path}; check the path (now in {Path.cwd()})") from None
    except UnicodeDecodeError:
        raise InputError(f"--points: {path} is no text; give a CSV or JSON file of points") from None
    except OSError as error:
        raise InputError(f"--points: {path} cannot be read ({error.strerror}); give a CSV or JSON file") from None
    is_json = path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{")
    points = _from_json(text, path) if is_json else _from_csv(text, path)
    if not points:
        raise InputError(f"--points: {path} holds no points; give at least one line x,y")
    return points


def _from_json(text: str, path: Path) -> list[Point]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--points: {path}, line {error.lineno}: no valid JSON ({error.msg})") from None
    rows = document.get("points") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise InputError(f'--points: {path} holds no list of points; expected [[x, y], ...] or {{"points": [...]}}')
    points = []
    for position, row in enumerate(rows, 1):
        numbers = [_number(value) for value in row] if isinstance(row, list) else []
        if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
            raise InputError(f"--points: {path}, point {position}: got {row!r}, expected [x, y], two finite numbers")
        points.append((numbers[0], numbers[1]))
    return points


def _from_csv(text: str, path: Path) -> list[Point]:
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"]
    separator = next((s for s in ";\t," if lines and s in lines[0][1]), ",")
    names = [cell.strip().lower() for cell in lines[0][1].split(separator)] if lines else []
    has_header = "x" in names and "y" in names
    x, y = (names.index("x"), names.index("y")) if has_header else (0, 1)
    points = []
    for number, line in lines[1:] if has_header else lines:
        cells = line.split(separator)
        whole = len(cells) == (len(names) if has_header else 2)
        numbers = [_number(cells[column]) for column in (x, y)] if whole else [None]
        if None in numbers:
            expected = (
                f"{len(names)} columns as in the header" if has_header and not whole else "two finite numbers x,y"
            )
            raise InputError(f"--points: {path}, line {number}: got {line.strip()!r}, expected {expected}")
        points.append((numbers[0], numbers[1]))
    return points


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
