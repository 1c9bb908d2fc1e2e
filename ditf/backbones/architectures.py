"""Where every transformer class of diffusers keeps its blocks, one row per class.

A subclass inherits its parent's row. What a row says was proved on a tiny model of the class, block by block
(tests/backbones/test_every_class.py); a class without a row is guessed (:mod:`ditf.backbones.stacks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ARCHITECTURES", "Architecture", "Layout", "Place", "Stack"]

Layout = Literal["image", "image+text", "text+image", "last", "middle", "ragged", "marked"]
"""Where the image sits among the tokens of a block.

"image": alone, or before its reference images. "image+text": before text or padding. "text+image": after the text,
before its reference images. "last": after anything else (text, history, references). "middle": between history and
text. "ragged": after a text whose length differs from row to row (``encoder_attention_mask`` counts it).
"marked": wherever ``indicator`` is 2.
"""


Place = Literal["norm", "attention", "projection", "feed_forward"]
"""Where in a block: what enters its norms, enters or leaves its attention, its queries, keys and values, what enters or
leaves its feed-forward network."""


@dataclass(frozen=True)
class Stack:
    """A list of blocks.

    Attributes:
        path: the transformer's attribute that holds them.
        count: the config entry that says how many there are; None where only the list knows.
        layout: of the tokens entering a block's first norm.
        attention: layout of the tokens entering its attention, where it is another one.
        projected: layout of its queries, keys and values, where text joins them inside the attention.
        fed: layout of the tokens entering its feed-forward network, where it is another one.
        sequence_first: its tokens are (S, B, D); those in and around its attention are (B, S, D).
        frames_in_batch: its rows are frames, (B*t, h*w, D).
    """

    path: str
    count: str | None = None
    layout: Layout = "image"
    attention: Layout | None = None
    projected: Layout | None = None
    fed: Layout | None = None
    sequence_first: bool = False
    frames_in_batch: bool = False

    def layout_at(self, place: Place) -> Layout:
        """Of the tokens at this place."""
        other = {"norm": None, "attention": self.attention, "projection": self.projected, "feed_forward": self.fed}
        return other[place] or (self.attention if place != "norm" else None) or self.layout


@dataclass(frozen=True)
class Architecture:
    """A transformer class: its stacks in execution order, and the parts only the output needs."""

    stacks: tuple[Stack, ...]
    head: tuple[str, ...] = ("norm_out", "proj_out")


_JOINT = Stack("transformer_blocks", "num_layers")
_SINGLE = Stack("single_transformer_blocks", "num_single_layers", "text+image")
_SINGLE_IMAGE_FIRST = Stack(
    "single_transformer_blocks", "num_single_layers", "image+text", attention="image", projected="image+text"
)
_JOINED_INSIDE = Stack("transformer_blocks", "num_layers", projected="last")
_JOINED_TWICE = Stack("transformer_blocks", "num_layers", projected="last", fed="last")
_BLOCKS = Stack("blocks", "num_layers")
_WITH_TABLE = ("norm_out", "scale_shift_table", "proj_out")

ARCHITECTURES: dict[str, Architecture] = {
    # blocks with a stream for the image and one for the text, then blocks with one stream for both
    "FluxTransformer2DModel": Architecture((_JOINT, _SINGLE)),
    "Flux2Transformer2DModel": Architecture((_JOINT, _SINGLE)),
    "Flux3Transformer2DModel": Architecture((
        Stack("mode_blocks.image", "num_layers"),
        Stack("single_transformer_blocks", "num_single_layers", "image+text", attention="text+image"),
    )),
    "ChromaTransformer2DModel": Architecture((_JOINT, _SINGLE)),
    "BriaTransformer2DModel": Architecture((_JOINT, _SINGLE)),
    "BriaFiboTransformer2DModel": Architecture((_JOINT, _SINGLE)),
    "LongCatImageTransformer2DModel": Architecture((_JOINT, _SINGLE)),
    "OvisImageTransformer2DModel": Architecture((_JOINT, _SINGLE)),
    "AuraFlowTransformer2DModel": Architecture((
        Stack("joint_transformer_blocks", "num_mmdit_layers"),
        Stack("single_transformer_blocks", "num_single_dit_layers", "text+image"),
    )),
    "HunyuanImageTransformer2DModel": Architecture((_JOINT, _SINGLE_IMAGE_FIRST)),
    "HunyuanVideoTransformer3DModel": Architecture((_JOINT, _SINGLE_IMAGE_FIRST)),
    "HunyuanVideoFramepackTransformer3DModel": Architecture((
        Stack("transformer_blocks", "num_layers", "last"),
        Stack("single_transformer_blocks", "num_single_layers", "middle", attention="last", projected="middle"),
    )),
    "MotifVideoTransformer3DModel": Architecture((_JOINT, _SINGLE_IMAGE_FIRST)),
    "HiDreamImageTransformer2DModel": Architecture(
        (
            Stack("double_stream_blocks", "num_layers", "image+text"),
            Stack("single_stream_blocks", "num_single_layers", "image+text"),
        ),
        head=("final_layer",),
    ),
    # a stream for the image and one for the text
    "SD3Transformer2DModel": Architecture((_JOINT,)),
    "QwenImageTransformer2DModel": Architecture((_JOINT,)),
    "CogView3PlusTransformer2DModel": Architecture((_JOINED_TWICE,)),
    "CogView4Transformer2DModel": Architecture((_JOINED_INSIDE,)),
    "GlmImageTransformer2DModel": Architecture((_JOINED_INSIDE,)),
    "NucleusMoEImageTransformer2DModel": Architecture((_JOINT,)),
    "JoyImageEditTransformer3DModel": Architecture((Stack("double_blocks", "num_layers"),)),
    "HunyuanVideo15Transformer3DModel": Architecture((_JOINT,)),
    "MochiTransformer3DModel": Architecture((_JOINT,)),
    "CogVideoXTransformer3DModel": Architecture((_JOINED_TWICE,), head=("norm_final", "norm_out", "proj_out")),
    "EasyAnimateTransformer3DModel": Architecture((_JOINT,), head=("norm_final", "norm_out", "proj_out")),
    # text by cross-attention, or none
    "DiTTransformer2DModel": Architecture((_JOINT,), head=("norm_out", "proj_out_1", "proj_out_2")),
    "PixArtTransformer2DModel": Architecture((_JOINT,), head=_WITH_TABLE),
    "SanaTransformer2DModel": Architecture((_JOINT,), head=_WITH_TABLE),
    "HunyuanDiT2DModel": Architecture((_BLOCKS,)),
    "LuminaNextDiT2DModel": Architecture((Stack("layers", "num_layers"),), head=("norm_out",)),
    "PRXTransformer2DModel": Architecture((Stack("blocks", "depth"),), head=("final_layer",)),
    "Kandinsky5Transformer3DModel": Architecture(
        (Stack("visual_transformer_blocks", "num_visual_blocks"),), head=("out_layer",)
    ),
    "WanTransformer3DModel": Architecture((_BLOCKS,), head=_WITH_TABLE),
    "WanVACETransformer3DModel": Architecture((_BLOCKS,), head=_WITH_TABLE),
    "ChronoEditTransformer3DModel": Architecture((_BLOCKS,), head=_WITH_TABLE),
    "SkyReelsV2Transformer3DModel": Architecture((_BLOCKS,), head=_WITH_TABLE),
    "HeliosTransformer3DModel": Architecture((Stack("blocks", "num_layers", "last"),)),
    "LTXVideoTransformer3DModel": Architecture((_JOINT,), head=_WITH_TABLE),
    "LTX2VideoTransformer3DModel": Architecture(
        (_JOINT,), head=(*_WITH_TABLE, "audio_norm_out", "audio_scale_shift_table", "audio_proj_out")
    ),
    "CosmosTransformer3DModel": Architecture((_JOINT,)),
    "AllegroTransformer3DModel": Architecture((_JOINT,), head=_WITH_TABLE),
    "LatteTransformer3DModel": Architecture(  # its spatial blocks; those over time see one place in all frames
        (Stack("transformer_blocks", "num_layers", frames_in_batch=True),), head=_WITH_TABLE
    ),
    "SanaVideoTransformer3DModel": Architecture((_JOINT,), head=_WITH_TABLE),
    # one stream for image and text
    "Lumina2Transformer2DModel": Architecture((Stack("layers", "num_layers", "ragged"),), head=("norm_out",)),
    "ZImageTransformer2DModel": Architecture((Stack("layers", "n_layers", "image+text"),), head=("all_final_layer",)),
    "OmniGenTransformer2DModel": Architecture(
        (Stack("layers", "num_layers", "last"),), head=("norm", "norm_out", "proj_out")
    ),
    "Krea2Transformer2DModel": Architecture(
        (Stack("transformer_blocks", "num_layers", "text+image"),), head=("final_layer",)
    ),
    "Ideogram4Transformer2DModel": Architecture((Stack("layers", "num_layers", "marked"),), head=("final_layer",)),
    "ErnieImageTransformer2DModel": Architecture(
        (Stack("layers", "num_layers", "image+text", sequence_first=True),), head=("final_norm", "final_linear")
    ),
    "QwenImage21Transformer2DModel": Architecture((Stack("transformer_blocks", "num_layers", "last"),)),
}  # fmt: skip
