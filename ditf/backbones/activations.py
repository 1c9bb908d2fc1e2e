"""What a block's attention and feed-forward network compute, by the names that diffusers gives their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from ..errors import InputError
from .architectures import Place
from .capture import feed_forward_of, is_attention
from .stacks import BlockSite, unwrap

__all__ = ["Activation", "part_of"]

Activation = Literal["block", "q", "k", "v", "attention", "mlp"]

_ATTENTIONS = ("attn", "attn1", "attention", "self_attention", "self_attn")
_PROJECTIONS = {"q": ("to_q", "to_query"), "k": ("to_k", "to_key"), "v": ("to_v", "to_value")}
_FUSED = ("to_qkv", "img_qkv_proj", "img_attn_qkv", "to_qkv_mlp_proj")


def part_of(site: BlockSite, activation: Activation) -> tuple[nn.Module, Place, Callable[[Tensor], Tensor]]:
    """The module whose output holds an activation of the image's tokens, where that is, and what of it.

    Raises:
        InputError: the block has no such part.
    """
    block = unwrap(site.module)
    if activation == "mlp":
        network = feed_forward_of(block)
        if network is None:
            raise _without(site, activation, "feed-forward network of its own; its MLP runs beside the attention")
        return network, "feed_forward", lambda output: output
    attention = _attention_of(block)
    if attention is None:
        raise _without(site, activation, "attention that ditf finds")
    if activation == "attention":
        return attention, "attention", lambda output: output
    module, pick = _projection(attention, activation)
    if module is None:
        raise _without(site, activation, f"projection to it that ditf finds in its {type(attention).__name__}")
    return module, "projection", pick


def _attention_of(block: nn.Module) -> nn.Module | None:
    children = dict(getattr(block, "block", block).named_children())  # HiDream wraps its blocks
    named = [children[name] for name in _ATTENTIONS if name in children]
    return next(iter(named or [child for child in children.values() if is_attention(child)]), None)


def _projection(attention: Any, activation: str) -> tuple[nn.Module | None, Callable[[Tensor], Tensor]]:
    children = dict(attention.named_children())
    own = next((children[name] for name in _PROJECTIONS[activation] if name in children), None)
    fused = next((children[name] for name in _FUSED if name in children), None)
    if own is not None and not (fused is not None and getattr(attention, "fused_projections", False)):
        return own, lambda output: output
    index = "qkv".index(activation)

    def third(output: Tensor) -> Tensor:
        """Queries, keys and values are of one width; FLUX.2 has the MLP's input behind them."""
        width = attention.inner_dim if hasattr(attention, "mlp_hidden_dim") else output.shape[-1] // 3
        return output[..., index * width : (index + 1) * width]

    return fused, third


def _without(site: BlockSite, activation: str, what: str) -> InputError:
    return InputError(
        f'activation: got "{activation}", but block {site.index} ({type(site.module).__name__}) has no {what}'
    )
