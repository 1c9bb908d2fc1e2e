"""Dense features from diffusion transformers, and visual correspondence with them.

>>> import ditf
>>> fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny")
>>> source, target = fx(["one.jpg", "other.jpg"])
>>> matches = ditf.match_points(source, target, [(100, 80)])

What is used is imported when it is first used, PyTorch included: ``ditf --help`` waits for none of it.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import massive, sweep, video
    from .backbones import tap
    from .concat import joint_pca
    from .dense import match_dense
    from .dino import DinoExtractor
    from .errors import DitfError, InputError, ModelError, StoreError, VerificationError
    from .extractor import FeatureExtractor
    from .fusing import FuseReport, fuse, unfuse
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

# No module may have the name of something here: importing the module would put it in that name's place.
_HOMES = {
    "backbones": ("tap",),
    "concat": ("joint_pca",),
    "dense": ("match_dense",),
    "dino": ("DinoExtractor",),
    "errors": ("DitfError", "InputError", "ModelError", "StoreError", "VerificationError"),
    "extractor": ("FeatureExtractor",),
    "fusing": ("FuseReport", "fuse", "unfuse"),
    "geometry": ("Homography", "estimate_homography"),
    "massive": ("MassiveReport", "find_massive_channels"),
    "matching": ("match_points", "similarity_map"),
    "types": ("DenseMatches", "ExtractConfig", "FeatureMap", "Matches", "Tapped", "Tracks"),
    "video": ("propagate_labels", "track_points"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package, imported now and kept."""
    if name in _HOME:
        globals()[name] = found = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return found
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
