"""A benchmark that needs no download: procedural scenes, and photographs that come with scikit-image."""

from __future__ import annotations

from .cases import PHOTOGRAPH_SIDE, PHOTOGRAPHS, SCENE_SIDE, Case, photograph_cases, scene_cases
from .massive import massive_channels_of_blocks
from .model import BEST, Network, Setting, random_checkpoint, top_channel, variants
from .scores import ALPHAS, Score, interval

__all__ = [
    "ALPHAS",
    "BEST",
    "PHOTOGRAPHS",
    "PHOTOGRAPH_SIDE",
    "SCENE_SIDE",
    "Case",
    "Network",
    "Score",
    "Setting",
    "interval",
    "massive_channels_of_blocks",
    "photograph_cases",
    "random_checkpoint",
    "scene_cases",
    "top_channel",
    "variants",
]
