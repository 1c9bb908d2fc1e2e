"""The kernels inside the transformer's own forward: swap them in, swap them out.

In every block, plain norms (LayerNorm, RMSNorm and their variants, except those of queries and keys) become norms that
wait for their modulation, so that ``norm(x) * (1 + scale) + shift`` runs as one kernel in any model, whatever its code;
see :mod:`ditf.fused_norm`. Parameters, names, hooks and saved files stay as they are.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .backbones.capture import exclusive, is_attention
from .backbones.modulation import norm_facts
from .backbones.stacks import block_sites, unwrap
from .errors import InputError
from .fused_norm import RAISED, SWAP, FusedNorm, Swap, disagreement, fused_class, modulated

__all__ = ["FuseReport", "fuse", "unfuse"]

log = logging.getLogger("ditf")

ALREADY = "already fused"
HOOKED = (
    "its forward has been replaced by a hook (offloading, casting, caching); "
    "call ditf.fuse before such hooks are attached"
)


@dataclass(frozen=True)
class FuseReport:
    """What :func:`fuse` did, norm by norm; print it.

    Attributes:
        swapped: names, in the transformer, of the norms that were fused with what follows them.
        left: names of the norms that stay as they were.
        reasons: for every name in ``left``, why.
    """

    swapped: tuple[str, ...]
    left: tuple[str, ...]
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{_norms(len(self.swapped))} fused, {len(self.left)} left as before"]
        lines += [f"  {len(names)} x {reason}: {_few(names)}" for reason, names in _by_reason(self.reasons).items()]
        return "\n".join(lines)


def fuse(transformer_or_pipeline: Any, *, before: int | None = None) -> FuseReport:
    """Run every AdaLN of a diffusion transformer as one Triton kernel where Triton can run, else as its PyTorch twin.

    For inference, and the same numbers up to rounding (one rounding instead of three). Where a gradient is needed,
    under ``torch.compile`` (Inductor fuses by itself), autocast, tracing and for other dtypes than float32, bfloat16
    and float16, a fused norm computes exactly what it did before. The ``ditf_kernels`` backend in force at the time of
    the forward applies: ``with ditf_kernels.use_backend("verify"):`` compares every result with the PyTorch twin.

    Checked twice. Here, each norm is evaluated on a few random tokens, times a random scale plus a random shift, both
    ways; this also finds out what it computes, whatever its class. Then, in the first forward, the first result of
    each norm is compared with what the block itself would have got, on the real numbers. What the kernel does not
    reproduce is left as it was, with a warning and a reason.

    Fused modules can be copied, pickled and saved (a checkpoint does not know). Fuse before offloading or layerwise
    casting is enabled: such hooks keep hold of a module's forward.

    Args:
        transformer_or_pipeline: a transformer of diffusers, also inside ``torch.compile``, or a pipeline with one.
        before: only blocks of a lower global index.

    Returns:
        What was swapped, and what was left and why; fusing twice changes nothing and says so.

    Raises:
        InputError: neither a transformer nor a pipeline with one, or a backend that cannot run here.
        ModelError: no transformer blocks found.
        VerificationError: the backend is "verify", and kernel and twin disagree; nothing was swapped.
    """
    core = _transformer_of(transformer_or_pipeline)
    swaps: dict[str, tuple[nn.Module, Swap]] = {}
    reasons: dict[str, str] = {}
    with exclusive(core):
        for name, norm, device in _norms_of(core, before):
            found = _swap_for(name, norm, device)
            if isinstance(found, Swap):
                swaps[name] = (norm, found)
            else:
                reasons[name] = found
        for norm, swap in swaps.values():
            norm.__class__ = fused_class(type(norm))
            setattr(norm, SWAP, swap)
    for reason, names in _by_reason(reasons).items():
        if reason != ALREADY:
            log.warning("%s stay as they were: %s (%s)", _norms(len(names)), reason, _few(names))
    return FuseReport(tuple(swaps), tuple(reasons), reasons)


def unfuse(transformer_or_pipeline: Any) -> None:
    """Undo :func:`fuse`, exactly; without effect on a transformer that is not fused.

    Raises:
        InputError: neither a transformer nor a pipeline with one.
    """
    core = _transformer_of(transformer_or_pipeline)
    with exclusive(core):
        for module in core.modules():
            if isinstance(module, FusedNorm):
                module.__class__ = module.plain_class  # pyright: ignore[reportAttributeAccessIssue]
            module.__dict__.pop(SWAP, None)


def _transformer_of(given: Any) -> nn.Module:
    transformer = given if isinstance(given, nn.Module) else getattr(given, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise InputError.of(
            "transformer_or_pipeline",
            type(given).__name__,
            "a diffusion transformer of diffusers, or a pipeline with one",
        )
    return unwrap(transformer)


def _norms_of(transformer: nn.Module, before: int | None) -> Iterator[tuple[str, nn.Module, torch.device]]:
    """Name, norm and device of every norm in the blocks, except those inside attention; one they share comes once."""
    seen: set[int] = set()
    for site in block_sites(transformer):
        if before is not None and site.index >= before:
            continue
        block = unwrap(site.module)
        device = next((p.device for p in block.parameters()), torch.device("cpu"))
        seen |= {id(m) for attention in block.modules() if is_attention(attention) for m in attention.modules()}
        for name, module in block.named_modules():
            if "Norm" in type(module).__name__ and not any(module.children()) and id(module) not in seen:
                seen.add(id(module))
                yield f"{site.name}.{name}", module, device


# --- what a norm computes --------------------------------------------------------------------------------------------


def _swap_for(name: str, norm: nn.Module, device: torch.device) -> Swap | str:
    """The formula that reproduces a norm, or why there is none."""
    if isinstance(norm, FusedNorm):
        return getattr(norm, SWAP).failure or ALREADY
    if "forward" in norm.__dict__:
        return HOOKED
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    device = device if weight is None else weight.device
    if device.type == "meta":
        return "its weights are not loaded"
    facts = norm_facts(norm)
    kinds: Any = ("rms", "layer") if facts.kind == "rms" else ("layer", "rms")  # what its class's name says comes first
    centres = (False,) if weight is None else (False, True)
    x, multiplier, shift = _probe(norm, facts.eps, device)
    try:
        plain = type(norm).forward(norm, x) * multiplier + shift
    except Exception as error:
        return f"{type(norm).__name__} does not take tokens ({type(error).__name__}: {error})"
    failure = ""
    for swap in (Swap(name, kind, facts.eps, zero_centred) for kind in kinds for zero_centred in centres):
        wrong = _disagreement(swap, x, multiplier, shift, weight, bias, plain)
        if not wrong:
            return swap
        failure = failure or wrong
    return f"{type(norm).__name__} is no LayerNorm or RMSNorm that the kernel reproduces ({failure})"


def _disagreement(
    swap: Swap, x: Tensor, multiplier: Tensor, shift: Tensor, weight: Any, bias: Any, plain: Tensor
) -> str:
    try:
        fused = modulated(swap, x, multiplier, shift, weight, bias, plain.dtype)
    except RAISED:
        raise
    except Exception as error:
        return f"the kernel failed with {type(error).__name__}: {error}"
    grain = max(torch.finfo(t.dtype).eps for t in (x, plain))
    return "the kernel cannot take its shape" if fused is None else disagreement(fused, plain, grain)


def _probe(norm: nn.Module, eps: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens (2, 4, D), a multiplier and a shift (2, 1, D).

    Of every four tokens one is far from zero, one so small that eps decides, and one has a massive channel: norms that
    differ only in their mean or their eps would agree on standard normal ones.
    """
    weight = getattr(norm, "weight", None)
    width, dtype = _width(norm, weight), torch.float32 if weight is None else weight.dtype
    generator = torch.Generator().manual_seed(0)
    x, multiplier, shift = (torch.randn(2, n, width, generator=generator) for n in (4, 1, 1))
    x[:, 1] = 30 * x[:, 1] + 50
    x[:, 2] *= eps**0.5
    x[:, 3, width // 2] = 100
    return x.to(device, dtype), multiplier.to(device, dtype), shift.to(device, dtype)


def _width(norm: nn.Module, weight: Tensor | None) -> int:
    """D; a norm that says nothing takes any."""
    if weight is not None:
        return weight.numel()
    shape = getattr(norm, "normalized_shape", None) or getattr(norm, "dim", None) or 0
    return int(shape if isinstance(shape, int) else shape[-1]) or 32


# --- words -----------------------------------------------------------------------------------------------------------


def _norms(count: int) -> str:
    return f"{count} norm" if count == 1 else f"{count} norms"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _by_reason(reasons: dict[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        grouped[reason].append(name)
    return grouped
