"""Diffusion transformers of diffusers: how they are loaded, fed and tapped."""

from .backbone import Backbone
from .loading import backbone_from, load_backbone
from .tap import BlockInput, run_to_blocks, tap

__all__ = ["Backbone", "BlockInput", "backbone_from", "load_backbone", "run_to_blocks", "tap"]
