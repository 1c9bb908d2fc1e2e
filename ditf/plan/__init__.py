"""What an extraction will read, hold and compute, known before a weight is loaded."""

from __future__ import annotations

from .build import plan_extraction
from .gpus import GPUS, Gpu
from .types import Fit, Part, Plan, Stage, StageTime

__all__ = ["GPUS", "Fit", "Gpu", "Part", "Plan", "Stage", "StageTime", "plan_extraction"]
