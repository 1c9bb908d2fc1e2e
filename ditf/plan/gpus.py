"""Data-sheet figures of GPUs, for lower bounds on time."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError

__all__ = ["GPUS", "Gpu", "gpu_named"]


@dataclass(frozen=True)
class Gpu:
    """A card as its maker describes it; no program reaches these figures.

    Attributes:
        name: of the card.
        memory_bytes: the data sheet's GB, taken as 10^9 bytes. Cards have a few per cent more than that, which the
            CUDA context, cuDNN's workspaces and the allocator's gaps use.
        bandwidth: bytes per second between memory and chip.
        half_flops: bfloat16 and float16 matrix products per second, dense, accumulated in float32.
        single_flops: TF32 matrix products per second, dense: the fastest that float32 convolutions can run.
        source: of the figures.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    half_flops: float
    single_flops: float
    source: str


def gpu_named(name: str) -> Gpu:
    """The card of a short name such as "h100", in any case.

    Raises:
        InputError: none of :data:`GPUS`.
    """
    found = {_plain(key): gpu for key, gpu in GPUS.items()}.get(_plain(name))
    if found is None:
        raise InputError.of("gpu", name, f"one of {', '.join(GPUS)}")
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _gpu(name: str, memory_gb: int, gb_per_s: float, half_tflops: float, single_tflops: float, source: str) -> Gpu:
    return Gpu(name, memory_gb * 10**9, gb_per_s * 1e9, half_tflops * 1e12, single_tflops * 1e12, source)


_AMPERE = "NVIDIA Ampere GA102 whitepaper"
_ADA = "NVIDIA Ada GPU architecture whitepaper"

GPUS: dict[str, Gpu] = {
    "h200": _gpu("NVIDIA H200 SXM", 141, 4800, 989.5, 494.7, "NVIDIA H200 data sheet"),
    "h100": _gpu("NVIDIA H100 SXM", 80, 3350, 989.4, 494.7, "NVIDIA H100 data sheet"),
    "a100": _gpu("NVIDIA A100 80GB SXM", 80, 2039, 312, 156, "NVIDIA A100 data sheet"),
    "a100-80gb": _gpu("NVIDIA A100 80GB SXM", 80, 2039, 312, 156, "NVIDIA A100 data sheet"),
    "a100-40gb": _gpu("NVIDIA A100 40GB SXM", 40, 1555, 312, 156, "NVIDIA A100 data sheet"),
    "l40s": _gpu("NVIDIA L40S", 48, 864, 362.05, 183, "NVIDIA L40S data sheet"),
    "l4": _gpu("NVIDIA L4", 24, 300, 121, 60, "NVIDIA L4 data sheet"),
    "a10": _gpu("NVIDIA A10", 24, 600, 125, 62.5, "NVIDIA A10 data sheet"),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 24, 1008, 165.2, 82.6, _ADA),
    "rtx3090": _gpu("NVIDIA GeForce RTX 3090", 24, 936, 71, 35.6, _AMPERE),
}
"""By the name that ``--gpu`` takes. Figures with "sparsity" in a data sheet are halved."""
