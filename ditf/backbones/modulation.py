"""The shift and scale a block's own AdaLN applies, and the norm beneath it.

One row per block class gives them exactly as the block computes them. A class without a row is probed: the block is
re-entered with tokens of +1 and -1, for which every LayerNorm and RMSNorm is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rules import MODULATION

__all__ = ["Modulation", "NormFacts", "modulate", "modulation_of", "norm_facts", "probe"]

_AROUND_ONE = ("Krea2RMSNorm", "QwenImage21ZeroCenterRMSNorm")
"""Norms that multiply by 1 + their weight."""


@dataclass(frozen=True, eq=False)
class NormFacts:
    """A plain norm: its kind, eps and affine parameters."""

    kind: Literal["layer", "rms"]
    eps: float
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Modulation:
    """``y = norm(x) * (1 + scale) + shift``; shift and scale (B, 1|S, D) or None, over all tokens S of the block."""

    norm: NormFacts
    shift: Tensor | None
    scale: Tensor | None


def modulation_of(block: nn.Module, call: Mapping[str, Any], norm: nn.Module, tokens: Tensor) -> Modulation | None:
    """From the table; None for a block class without a row.

    Args:
        call: arguments of the block.
        norm: its first norm.
        tokens: (B, S, D) what entered it.
    """
    rule = next((MODULATION[c.__name__] for c in type(block).__mro__ if c.__name__ in MODULATION), None)
    if rule is None:
        return None
    try:
        shift, scale = rule(block, call, tokens)
    except LookupError:  # a variant of the class that the row does not describe
        return None
    return Modulation(_at(tokens.device, norm), shift, scale)


def probe(reenter: Callable[[Tensor], Tensor], norm: nn.Module, tokens: Tensor) -> Modulation:
    """Recover the modulation of any block by feeding it tokens whose norm is known.

    For p = (+1, -1, +1, ...) both norms give ``p / sqrt(1 + eps)``, so the answers to +p and -p determine multiplier
    and shift; a constant token is 0 after a LayerNorm and ``1 / sqrt(1 + eps)`` after an RMSNorm, which tells them
    apart. Affine parameters of the norm end up in the result, so its own norm is plain.

    Args:
        reenter: runs the block with these tokens in place of its first norm's input and returns what its first
            attention gets, (B, S, D).
        norm: the block's first norm.
        tokens: what entered it, (B, S, D) or (S, B, D): the shape to probe with.

    Returns:
        The modulation of the tokens that the attention gets.
    """
    sign = tokens.new_ones(tokens.shape[-1])
    sign[1::2] = -1
    eps = norm_facts(norm).eps
    size = (1 + eps) ** -0.5
    plus, minus, constant = (
        reenter(row.expand_as(tokens).contiguous()).float() for row in (sign, -sign, torch.ones_like(sign))
    )
    scale = (plus - minus) / (2 * size) * sign.float()
    shift = (plus + minus) / 2
    layer_gap, rms_gap = (constant - shift).abs().max(), (constant - shift - scale * size).abs().max()
    kind = "layer" if bool(layer_gap <= rms_gap) else "rms"
    return Modulation(NormFacts(kind, eps, None, None), _narrow(shift), _narrow(scale - 1))


def modulate(tokens: Tensor, modulation: Modulation) -> Tensor:
    """``norm(x) * (1 + scale) + shift`` in float32, for comparison."""
    norm, x = modulation.norm, tokens.float()
    if norm.kind == "rms":
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    else:
        y = F.layer_norm(x, x.shape[-1:], eps=norm.eps)
    y = y if norm.weight is None else y * norm.weight.float()
    y = y if norm.bias is None else y + norm.bias.float()
    y = y if modulation.scale is None else y * (1 + modulation.scale.float())
    return y if modulation.shift is None else y + modulation.shift.float()


def norm_facts(norm: nn.Module) -> NormFacts:
    """Kind, eps and affine parameters of the plain norm inside an AdaLN module."""
    norm = _plain(norm)
    eps, weight = getattr(norm, "eps", None), getattr(norm, "weight", None)
    if weight is not None and any(c.__name__ in _AROUND_ONE for c in type(norm).__mro__):
        weight = 1 + weight
    return NormFacts(
        kind="rms" if "RMS" in type(norm).__name__ else "layer",
        eps=torch.finfo(torch.float32).eps if eps is None else float(eps),
        weight=weight,
        bias=getattr(norm, "bias", None),
    )


def _plain(norm: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(norm, "norm", None) or getattr(norm, "norm_x", None), nn.Module):
        norm = inner
    return norm


def _at(device: torch.device, norm: nn.Module) -> NormFacts:
    """The facts with their tensors on this device, also where offloading keeps them elsewhere."""
    facts = norm_facts(norm)
    if facts.weight is None or facts.weight.device == device:
        return facts
    if not facts.weight.is_meta:
        return replace(
            facts, weight=facts.weight.to(device), bias=None if facts.bias is None else facts.bias.to(device)
        )
    # only the norm itself can fetch its parameters: (+1, -1, ...) is itself after both norms, up to eps
    sign = torch.ones(1, facts.weight.numel(), device=device)
    sign[:, 1::2] = -1
    plus, minus = (_plain(norm)(row)[0].float() for row in (sign, -sign))
    weight = (plus - minus) / 2 * sign[0] * (1 + facts.eps) ** 0.5
    return replace(facts, weight=weight, bias=None if facts.bias is None else (plus + minus) / 2)


def _narrow(vector: Tensor) -> Tensor:
    """One row per image where all tokens share it."""
    first = vector[:, :1]
    return first if bool((vector == first).all()) else vector
