"""The data that travels between the rooms of the library: frozen dataclasses, nothing that computes features.

Points are (x, y) in pixel-index coordinates, the centre of the top-left pixel being (0, 0). Sizes are (H, W).
"""

from .checks import checked_points
from .config import ExtractConfig, Fused, backend_of
from .features import FeatureMap, Tapped
from .files import write_atomically
from .matches import DenseMatches, Matches, Tracks

__all__ = [
    "DenseMatches",
    "ExtractConfig",
    "FeatureMap",
    "Fused",
    "Matches",
    "Tapped",
    "Tracks",
    "backend_of",
    "checked_points",
    "write_atomically",
]
