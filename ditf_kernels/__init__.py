"""Triton kernels for dense features of diffusion transformers, each with a PyTorch twin that defines it."""

from ._registry import Explanation, explain
from .adaln import adaln, adaln_with_inverse_norm
from .backend import BackendError, VerificationError, use_backend
from .channels import massive_channels
from .nearest import MutualNearest, cosine_argmax, cosine_topk, mutual_nearest
from .propagate import propagate_topk
from .upsampled import upsampled_argmax, upsampled_argmax_batch, upsampled_planes
from .upsampled_dense import upsampled_nearest

__all__ = [
    "BackendError",
    "Explanation",
    "MutualNearest",
    "VerificationError",
    "adaln",
    "adaln_with_inverse_norm",
    "cosine_argmax",
    "cosine_topk",
    "explain",
    "massive_channels",
    "mutual_nearest",
    "propagate_topk",
    "upsampled_argmax",
    "upsampled_argmax_batch",
    "upsampled_nearest",
    "upsampled_planes",
    "use_backend",
]
