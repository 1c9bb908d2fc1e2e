"""How every block class of diffusers makes the shift and scale of its first AdaLN, one row per class.

A rule calls the block's own modules, never their weights, so quantised and offloaded layers work. It is compared with
what the block feeds its attention when a block is first used; a class without a row is probed
(:mod:`ditf.backbones.modulation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["MODULATION", "Rule", "ShiftScale"]

ShiftScale = tuple[Tensor | None, Tensor | None]
"""Each (B, 1|S, D), or None where the block has none."""

Rule = Callable[[Any, Mapping[str, Any], Tensor], ShiftScale]
"""(block, its call's arguments by name, the tokens (B, S, D) entering its first norm) -> shift, scale.

Raises LookupError for a variant of the class that the rule does not describe.
"""


def _leading(vector: Tensor, tokens: Tensor, order: str) -> ShiftScale:
    """The chunks of width D that a vector (B, nD) or (B, 1|S, nD) begins with, named in order; "-" is none of ours."""
    width, rows = tokens.shape[-1], vector[:, None] if vector.ndim == 2 else vector
    found = {name: rows[..., i * width : (i + 1) * width] for i, name in enumerate(order.split())}
    return found.get("shift"), found.get("scale")


def _linear(norm: str = "norm1", given: str = "temb", order: str = "shift scale", *, silu: bool = True) -> Rule:
    """The norm has a layer of its own: ``linear(silu(temb))``."""

    def rule(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
        module = getattr(block, norm)
        return _leading(module.linear(module.silu(call[given]) if silu else call[given]), tokens, order)

    return rule


def _network(path: str, given: str, order: str = "shift scale") -> Rule:
    """The block has a network beside its norm."""

    def rule(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
        return _leading(block.get_submodule(path)(call[given]), tokens, order)

    return rule


def _given(name: str) -> Rule:
    """The model makes one modulation for all its blocks and passes it on."""
    return lambda block, call, tokens: _leading(call[name], tokens, "shift scale")


def _table(given: str, *, in_float32: bool = False, tokens_last: bool = False) -> Rule:
    """A table (n, D) of the block plus what the model makes of the timestep, per row or per token.

    Args:
        given: (B, nD), (B, n, D), (B, 1|S, nD) or (B, S, n, D).
        in_float32: the block adds them in float32.
        tokens_last: (B, n, S, D) in place of the last.
    """

    def rule(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
        table = block.scale_shift_table.flatten(end_dim=-2)  # (n, D), some with a leading 1
        made = call[given].float() if in_float32 else call[given]
        if tokens_last and made.ndim == 4:
            made = made.transpose(1, 2)
        elif made.ndim == 3 and made.shape[-1] == tokens.shape[-1]:
            made = made[:, None]
        made = made.reshape(made.shape[0], -1 if made.ndim > 2 else 1, *table.shape)
        both = table.to(made.device) + made
        return both[:, :, 0], both[:, :, 1]

    return rule


def _basic(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    """PixArt and Latte have a table, DiT's norms embed timestep and class themselves."""
    if block.norm_type == "ada_norm_single":
        return _table("timestep")(block, call, tokens)
    if block.norm_type == "ada_norm_zero":
        norm = block.norm1
        embedded = norm.emb(call["timestep"], call["class_labels"], hidden_dtype=tokens.dtype)
        return _leading(norm.linear(norm.silu(embedded)), tokens, "shift scale")
    raise LookupError(block.norm_type)


def _hunyuan_dit(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    norm, temb = block.norm1, call["temb"]
    return norm.linear(norm.silu(temb.float()).to(temb.dtype))[:, None], None


def _chroma(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    """``temb`` (B, n, D) holds the vectors themselves; those of the image come first."""
    return call["temb"][:, 0:1], call["temb"][:, 1:2]


def _krea2(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    scale, shift = (call["temb"].unflatten(-1, (6, -1)) + block.scale_shift_table).unbind(-2)[:2]
    return shift, scale


def _ernie(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    """One modulation for all blocks, repeated for every token: (S, B, D)."""
    shift, scale = call["temb"][:2]
    return shift[:1].transpose(0, 1), scale[:1].transpose(0, 1)


def _prx(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    (shift, scale, _), _ = block.modulation(call["temb"])
    return shift, scale


def _joy_image(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    shift, scale = block.img_mod(call["temb"])[:2]
    return _per_row(shift), _per_row(scale)


def _cosmos(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    """A low-rank layer of the block plus a vector of the model."""
    norm = block.norm1
    made = norm.linear_2(norm.linear_1(norm.activation(call["embedded_timestep"])))
    made = made if call.get("temb") is None else made + call["temb"]
    return _leading(made, tokens, "shift scale")


def _qwen(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    """Tokens with index 1 take the second half of the rows: those of references, at timestep 0."""
    shift, scale = _leading(block.img_mod(call["temb"]), tokens, "shift scale")
    index = call.get("modulate_index")
    if index is None or shift is None or scale is None:
        return shift, scale
    own, rows = index[..., None] == 0, len(shift) // 2
    return torch.where(own, shift[:rows], shift[rows:]), torch.where(own, scale[:rows], scale[rows:])


def _qwen21(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    """Tokens that are not the target's take the last row, at timestep 0."""
    _, scale = _leading(call["modulation"], tokens, "scale")
    own = call.get("target_token_mask")
    if own is None or scale is None:
        return None, scale
    return None, torch.where(own[None, :, None], scale[:-1], scale[-1:])


def _token_replace(norm: str) -> Rule:
    """The tokens of the first frame have a timestep of their own."""

    def rule(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
        first = (torch.arange(tokens.shape[1], device=tokens.device) < call["num_tokens"])[None, :, None]
        theirs = _linear(norm, "token_replace_emb")(block, call, tokens)
        others = _linear(norm)(block, call, tokens)
        shift, scale = (torch.where(first, a, b) for a, b in zip(theirs, others, strict=True))  # pyright: ignore
        return shift, scale

    return rule


def _none(block: Any, call: Mapping[str, Any], tokens: Tensor) -> ShiftScale:
    return None, None


def _per_row(vector: Tensor) -> Tensor:
    return vector[:, None] if vector.ndim == 2 else vector


MODULATION: dict[str, Rule] = {
    # AdaLayerNormZero, AdaLayerNormZeroSingle and their relatives
    "FluxTransformerBlock": _linear("norm1"),
    "FluxSingleTransformerBlock": _linear("norm"),
    "JointTransformerBlock": _linear("norm1"),
    "AuraFlowJointTransformerBlock": _linear("norm1"),
    "AuraFlowSingleTransformerBlock": _linear("norm1"),
    "BriaTransformerBlock": _linear("norm1"),
    "BriaSingleTransformerBlock": _linear("norm"),
    "BriaFiboTransformerBlock": _linear("norm1"),
    "BriaFiboSingleTransformerBlock": _linear("norm"),
    "LongCatImageTransformerBlock": _linear("norm1"),
    "LongCatImageSingleTransformerBlock": _linear("norm"),
    "OvisImageTransformerBlock": _linear("norm1"),
    "OvisImageSingleTransformerBlock": _linear("norm"),
    "HunyuanImageTransformerBlock": _linear("norm1"),
    "HunyuanImageSingleTransformerBlock": _linear("norm"),
    "HunyuanVideoTransformerBlock": _linear("norm1"),
    "HunyuanVideoSingleTransformerBlock": _linear("norm"),
    "HunyuanVideoTokenReplaceTransformerBlock": _token_replace("norm1"),
    "HunyuanVideoTokenReplaceSingleTransformerBlock": _token_replace("norm"),
    "HunyuanVideo15TransformerBlock": _linear("norm1"),
    "MotifVideoTransformerBlock": _linear("norm1"),
    "MotifVideoSingleTransformerBlock": _linear("norm"),
    "CogVideoXBlock": _linear("norm1"),
    "EasyAnimateTransformerBlock": _linear("norm1"),
    "CogView3PlusTransformerBlock": _linear("norm1", "emb"),
    "CogView4TransformerBlock": _linear("norm1", order="shift - scale", silu=False),
    "GlmImageTransformerBlock": _linear("norm1", order="shift - scale", silu=False),
    "LuminaNextDiTBlock": _linear("norm1", order="scale"),
    "Lumina2TransformerBlock": _linear("norm1", order="scale"),
    "MochiTransformerBlock": _linear("norm1", order="scale"),
    "HunyuanDiTBlock": _hunyuan_dit,
    "CosmosTransformerBlock": _cosmos,
    # a table in the block
    "BasicTransformerBlock": _basic,
    "SanaTransformerBlock": _table("timestep"),
    "SanaVideoTransformerBlock": _table("timestep"),
    "AllegroTransformerBlock": _table("temb"),
    "LTXVideoTransformerBlock": _table("temb"),
    "LTX2VideoTransformerBlock": _table("temb"),
    "WanTransformerBlock": _table("temb", in_float32=True),
    "HeliosTransformerBlock": _table("temb", in_float32=True),
    "SkyReelsV2TransformerBlock": _table("temb", in_float32=True, tokens_last=True),
    "Krea2TransformerBlock": _krea2,
    # a network in the block
    "QwenImageTransformerBlock": _qwen,
    "NucleusMoEImageTransformerBlock": _network("img_mod", "temb", "scale"),
    "JoyImageTransformerBlock": _joy_image,
    "HiDreamBlock": _network("block.adaLN_modulation", "temb"),
    "ZImageTransformerBlock": _network("adaLN_modulation", "adaln_input", "scale"),
    "Ideogram4TransformerBlock": _network("adaln_modulation", "adaln_input", "scale"),
    "Kandinsky5TransformerDecoderBlock": _network("visual_modulation", "time_embed"),
    "PRXBlock": _prx,
    # made once, for all blocks
    "Flux2TransformerBlock": _given("temb_mod_img"),
    "Flux2SingleTransformerBlock": _given("temb_mod"),
    "Flux3ModeTransformerBlock": _given("temb_mod"),
    "Flux3SingleTransformerBlock": _given("temb_mod"),
    "ChromaTransformerBlock": _chroma,
    "ChromaSingleTransformerBlock": _chroma,
    "ErnieImageSharedAdaLNBlock": _ernie,
    "QwenImage21TransformerBlock": _qwen21,
    # none: the timestep is a token
    "OmniGenBlock": _none,
}
