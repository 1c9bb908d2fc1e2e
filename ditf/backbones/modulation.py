"""The shift and scale a block's own AdaLN applies, and the norm beneath it.

One row per block class gives them exactly as the block computes them. A class without a row is probed: the block is
re-entered with tokens of +1 and -1, for which every LayerNorm and RMSNorm is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MODULATION", "Modulation", "NormFacts", "modulate", "modulation_of", "norm_facts", "probe"]

Rule = Callable[[Any, Mapping[str, Any]], tuple[Tensor | None, Tensor | None]]
"""(block, its call's arguments) -> shift, scale; each (B, 1|S, D) or None."""


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


def _from_linear(norm_name: str) -> Rule:
    """AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX: ``linear(silu(temb))`` starts shift, scale."""

    def rule(block: Any, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        norm, width = getattr(block, norm_name), call["hidden_states"].shape[-1]
        parts = norm.linear(norm.silu(call["temb"]))[:, None]
        return parts[..., :width], parts[..., width : 2 * width]

    return rule


def _from_table(block: Any, call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``BasicTransformerBlock`` with ada_norm_single: a table of the block plus the model's own timestep projection."""
    if block.norm_type != "ada_norm_single":
        raise LookupError(block.norm_type)
    table = block.scale_shift_table[None] + call["timestep"].reshape(call["hidden_states"].shape[0], 6, -1)
    return table[:, 0:1], table[:, 1:2]


MODULATION: dict[str, Rule] = {
    "FluxTransformerBlock": _from_linear("norm1"),
    "FluxSingleTransformerBlock": _from_linear("norm"),
    "JointTransformerBlock": _from_linear("norm1"),
    "BasicTransformerBlock": _from_table,
}


def modulation_of(block: nn.Module, call: Mapping[str, Any], norm: nn.Module) -> Modulation | None:
    """From the table; None for a block class without a row."""
    rule = next((MODULATION[c.__name__] for c in type(block).__mro__ if c.__name__ in MODULATION), None)
    if rule is None:
        return None
    try:
        shift, scale = rule(block, call)
    except LookupError:  # a variant of the class that the row does not describe
        return None
    return Modulation(norm_facts(norm), shift, scale)


def probe(reenter: Callable[[Tensor], Tensor], norm: nn.Module, tokens: Tensor) -> Modulation:
    """Recover the modulation of any block by feeding it tokens whose norm is known.

    For p = (+1, -1, +1, ...) both norms give ``p / sqrt(1 + eps)``, so the answers to +p and -p determine multiplier
    and shift; a constant token is 0 after a LayerNorm and ``1 / sqrt(1 + eps)`` after an RMSNorm, which tells them
    apart. Affine parameters of the norm end up in the result, so its own norm is plain.

    Args:
        reenter: runs the block with these tokens (B, S, D) in place of its first norm's input and returns what its
            first attention gets.
        norm: the block's first norm.
        tokens: (B, S, D) what entered it: the shape to probe with.
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
    while isinstance(inner := getattr(norm, "norm", None), nn.Module):
        norm = inner
    eps = getattr(norm, "eps", None)
    return NormFacts(
        kind="rms" if "RMS" in type(norm).__name__ else "layer",
        eps=torch.finfo(torch.float32).eps if eps is None else float(eps),
        weight=getattr(norm, "weight", None),
        bias=getattr(norm, "bias", None),
    )


def _narrow(vector: Tensor) -> Tensor:
    """One row per image where all tokens share it."""
    first = vector[:, :1]
    return first if bool((vector == first).all()) else vector
