"""Dense features from diffusion transformers, and visual correspondence with them.

>>> import ditf
>>> fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny")
>>> source, target = fx(["one.jpg", "other.jpg"])
>>> matches = ditf.match_points(source, target, [(100, 80)])
"""

from . import massive, sweep, video
from .backbones import tap
from .concat import joint_pca
from .dense import match_dense
from .dino import DinoExtractor
from .errors import DitfError, InputError, ModelError, StoreError, VerificationError
from .extractor import FeatureExtractor
from .fuse import FuseReport, fuse, unfuse
from .geometry import Homography, estimate_homography
from .massive import MassiveReport, find_massive_channels
from .matching import match_points, similarity_map
from .types import DenseMatches, ExtractConfig, FeatureMap, Matches, Tapped, Tracks
from .video import propagate_labels, track_points

__version__ = "0.1.0"

__all__ = [
    "DenseMatches",
    "DinoExtractor",
    "DitfError",
    "ExtractConfig",
    "FeatureExtractor",
    "FeatureMap",
    "FuseReport",
    "Homography",
    "InputError",
    "MassiveReport",
    "Matches",
    "ModelError",
    "StoreError",
    "Tapped",
    "Tracks",
    "VerificationError",
    "estimate_homography",
    "find_massive_channels",
    "fuse",
    "joint_pca",
    "massive",
    "match_dense",
    "match_points",
    "propagate_labels",
    "similarity_map",
    "sweep",
    "tap",
    "track_points",
    "unfuse",
    "video",
]
