"""Configs of well-known checkpoints that come with ditf, so that a plan needs no network."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Shipped", "shipped_configs"]

_FOLDER = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Shipped:
    """One checkpoint's configs, without weights.

    Attributes:
        model: hub id.
        sources: where the values come from.
        index: its ``model_index.json``: pipeline class, and library and class of each part.
        parts: part -> its ``config.json``.
        stored: part -> dtype of its weights on the hub, where that is known.
    """

    model: str
    sources: tuple[str, ...]
    index: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]
    stored: Mapping[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def as_folder(self) -> Iterator[Path]:
        """A pipeline folder of the checkpoint's own name that holds configs only; gone at the end."""
        with tempfile.TemporaryDirectory(prefix="ditf-configs-") as top:
            folder = Path(top) / self.model.rpartition("/")[2]
            folder.mkdir()
            (folder / "model_index.json").write_text(json.dumps(dict(self.index)), encoding="utf-8")
            for part, config in self.parts.items():
                (folder / part).mkdir()
                (folder / part / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
            yield folder


@cache
def shipped_configs() -> dict[str, Shipped]:
    """Hub id in lower case -> its configs."""
    found = (_read(path) for path in sorted(_FOLDER.glob("*.json")))
    return {shipped.model.lower(): shipped for shipped in found}


def _read(path: Path) -> Shipped:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Shipped(
        content["model"],
        tuple(content["sources"]),
        content["model_index"],
        content["parts"],
        content.get("stored", {}),
    )
