"""Triton kernels for dense features of diffusion transformers, each with a PyTorch twin that defines it."""

from ._registry import Explanation, explain
from .adaln import adaln, adaln_with_inverse_norm
from .backend import BackendError, VerificationError, use_backend
from .channels import massive_channels
from .upsampled import upsampled_argmax, upsampled_argmax_batch, upsampled_planes

__all__ = [
    "BackendError",
    "Explanation",
    "VerificationError",
    "adaln",
    "adaln_with_inverse_norm",
    "explain",
    "massive_channels",
    "upsampled_argmax",
    "upsampled_argmax_batch",
    "upsampled_planes",
    "use_backend",
]
