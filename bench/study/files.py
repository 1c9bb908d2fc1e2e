"""Result files of the study: one JSON per part, each with the card of what it was measured on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ditf import tiny
from ditf.errors import InputError
from ditf.types import write_atomically

PARTS = ("rows", "grid", "ensemble", "massive", "growth", "variants")
FORMAT = "ditf method study"
_VERSION = 1
_BUNDLED = Path(tiny.__file__).parent
_PACKAGES = ("torch", "diffusers", "numpy", "opencv-python-headless", "scikit-image")
_NUMBERS = re.compile(r"\[\s+((?:-?[\d.e+-]+|null)(?:,\s+(?:-?[\d.e+-]+|null))*)\s+\]")


def model_card(checkpoint: str) -> dict[str, Any]:
    """Which weights these are: name, hash, parameters, what the training wrote.

    Raises:
        InputError: no checkpoint there.
    """
    folder = _BUNDLED if checkpoint == "ditf-tiny" else Path(checkpoint)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise InputError.of("checkpoint", checkpoint, "ditf-tiny or a folder with model.safetensors")
    digest = hashlib.sha256(weights.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    return {
        "name": checkpoint if checkpoint == "ditf-tiny" else folder.name,
        "sha256": digest.hexdigest(),
        "double_blocks": config["num_layers"],
        "single_blocks": config["num_single_layers"],
        "width": config["num_attention_heads"] * config["attention_head_dim"],
    }


def versions() -> dict[str, str | None]:
    """Of the packages that can move a number."""
    found: dict[str, str | None] = {}
    for name in ("ditf", *_PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def read_part(folder: Path, part: str) -> dict[str, Any] | None:
    """The result file of a part, or None where there is none.

    Raises:
        InputError: a file of another kind or version.
    """
    path = folder / f"{part}.json"
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: no JSON ({error}); delete it and measure the part again") from None
    if not isinstance(document, dict) or document.get(FORMAT) != _VERSION or document.get("part") != part:
        raise InputError(f"{path}: no result of this study's part {part!r}; delete it and measure the part again")
    return document


def write_part(folder: Path, part: str, card: Mapping[str, Any], found: Mapping[str, Any]) -> Path:
    """Write the result file of a part; equal results give equal bytes.

    Raises:
        StoreError: the folder cannot be written.
    """
    path = folder / f"{part}.json"
    text = json.dumps({FORMAT: _VERSION, "part": part, "card": dict(card), **found}, indent=1)
    write_atomically(path, (_NUMBERS.sub(_on_one_line, text) + "\n").encode())
    return path


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{', '.join(numbers[1].replace(',', ' ').split())}]"
