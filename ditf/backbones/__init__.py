"""Diffusion transformers of diffusers: how they are loaded, fed and tapped."""

from .backbone import Backbone
from .feature import feature, tap
from .loading import backbone_from, load_backbone
from .run import BlockInput, run_to_blocks

__all__ = ["Backbone", "BlockInput", "backbone_from", "feature", "load_backbone", "run_to_blocks", "tap"]
