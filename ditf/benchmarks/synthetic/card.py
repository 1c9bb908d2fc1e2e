"""What was run: the model, its settings and who says so, the versions of all that draws, runs and matches."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import torch

from ...extractor import FeatureExtractor
from ...store import model_identity
from .evaluation import Evaluation
from .methods import config_dict

__all__ = ["card_of"]

_PACKAGES = ("numpy", "pillow", "scikit-image", "opencv-python-headless", "opencv-python")


def card_of(extractors: Mapping[str, FeatureExtractor], evaluation: Evaluation) -> dict[str, Any]:
    """As plain JSON values, the same for equal runs.

    Args:
        extractors: task -> the model at that task's setting.
    """
    from ... import __version__

    first = next(iter(extractors.values()))
    return {
        "ditf": __version__,
        **model_identity(first),
        "seed": first.config.seed,
        "settings": {
            task: {"config": config_dict(fx.config), "source": _source(fx)} for task, fx in extractors.items()
        },
        "threads": torch.get_num_threads(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "unavailable": dict(evaluation.unavailable),
    }


def _source(fx: FeatureExtractor) -> dict[str, str]:
    """Field -> who says so; those that were given are not the preset's."""
    values, preset = config_dict(fx.config), config_dict(fx.preset.config)
    return {name: who if values[name] == preset[name] else "given" for name, who in fx.preset.source.items()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
