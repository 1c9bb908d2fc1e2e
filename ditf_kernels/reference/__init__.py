"""Every op in plain PyTorch: its definition, the oracle of the tests, and what runs where Triton does not.

The functions take arguments that the public functions have already checked. They accumulate in float32 whatever the
input dtype, are differentiable (in their scores, where they choose), and work in blocks that fit a CPU's cache, so that
temporaries stay at a few megabytes whatever the image. One file per op.
"""

from .adaln import adaln, adaln_with_inverse_norm, zero_largest
from .channels import channel_magnitude, massive_channels
from .nearest import cosine_argmax, cosine_at, cosine_topk, inverse_norms, is_mutual, mutual_nearest
from .propagate import blended_labels, chosen_cosine, propagate_topk
from .rows import NORM_FLOOR, unit_rows
from .upsampled import (
    CANCELLED,
    AxisTaps,
    axis_taps,
    sample_grid,
    score_at,
    upsampled_argmax,
    upsampled_inverse_norm,
    upsampled_planes,
    upsampled_similarity,
)
from .upsampled_dense import chosen_score, upsampled_nearest

__all__ = [
    "CANCELLED",
    "NORM_FLOOR",
    "AxisTaps",
    "adaln",
    "adaln_with_inverse_norm",
    "axis_taps",
    "blended_labels",
    "channel_magnitude",
    "chosen_cosine",
    "chosen_score",
    "cosine_argmax",
    "cosine_at",
    "cosine_topk",
    "inverse_norms",
    "is_mutual",
    "massive_channels",
    "mutual_nearest",
    "propagate_topk",
    "sample_grid",
    "score_at",
    "unit_rows",
    "upsampled_argmax",
    "upsampled_inverse_norm",
    "upsampled_nearest",
    "upsampled_planes",
    "upsampled_similarity",
    "zero_largest",
]
