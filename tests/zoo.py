"""Tiny random transformers of diffusers, one per architecture and variant, with inputs that run: 63 of 50 classes.

Widths of tens, two or three blocks, a batch of two, grids that are not square. Modulations that training would have
moved from zero are drawn at random, and so are the weights of norms, else nothing done to them would be seen.

>>> sample = ZOO["wan-2.1"]()
>>> sample.model(**sample.inputs)
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from .backbones import tiny_models as tiny
from .backbones.tiny_models import noise

BATCH = 2


class Sample(NamedTuple):
    """A transformer in eval mode, arguments of its forward by name, and the grid of its image or video tokens."""

    model: Any
    inputs: dict[str, Any]
    grid: tuple[int, ...]

    @torch.no_grad()
    def forward(self) -> Tensor:
        """All numbers the model gives, in one row. Some models change the lists they are given, so they get copies."""
        output = self.model(**copy.deepcopy(self.inputs), return_dict=False)
        return torch.cat([part.flatten() for part in _tensors(output)])


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [part for item in tree for part in _tensors(item)] if isinstance(tree, (list, tuple)) else []


# --- parts -----------------------------------------------------------------------------------------------------------


def made(cls: type[nn.Module], **config: Any) -> Any:
    """A model of this class, as if it had been trained."""
    torch.manual_seed(0)
    model = cls(**config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _train(name.lower(), weight)
    return model.eval()


def _train(name: str, weight: Tensor) -> None:
    if weight.ndim >= 2:
        if not weight.any() or any(part in name for part in ("mod", "adaln", "scale_shift")):
            weight.copy_(torch.randn(weight.shape) * 0.5 / (1.0 if "table" in name else math.sqrt(weight.shape[-1])))
    elif "bias" in name and not weight.any():
        weight.copy_(torch.randn(weight.shape) * 0.05)
    elif "norm" in name and "weight" in name:
        weight.add_(torch.randn(weight.shape) * 0.1)


def level(value: float, batch: int = BATCH) -> Tensor:
    """A timestep or guidance for every row; an integer stays one."""
    return torch.full((batch,), value)


def image_ids(height: int, width: int, axes: int = 3) -> Tensor:
    """(h*w, axes): row and column on axes 1 and 2."""
    ids = torch.zeros(height, width, axes)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None]
    return ids.reshape(-1, axes)


def packed(text: int = 7, text_width: int = 32, channels: int = 4, timestep: float = 0.26) -> dict[str, Any]:
    """What FLUX-like models are given: packed tokens of a 4 x 6 grid, text, and the ids of both."""
    return {
        "hidden_states": noise(BATCH, 24, channels),
        "encoder_hidden_states": noise(BATCH, text, text_width, seed=1),
        "timestep": level(timestep),
        "img_ids": image_ids(4, 6),
        "txt_ids": torch.zeros(text, 3),
    }


def latent(text: int = 5, text_width: int = 8, channels: int = 4, timestep: float = 260.0) -> dict[str, Any]:
    """What models with a patch size of 2 are given for a 4 x 6 grid."""
    return {
        "hidden_states": noise(BATCH, channels, 8, 12),
        "encoder_hidden_states": noise(BATCH, text, text_width, seed=1),
        "timestep": level(timestep),
    }


def video(text: int = 5, text_width: int = 16, channels: int = 4, frames: int = 3) -> dict[str, Any]:
    """The same for videos of so many latent frames."""
    return {**latent(text, text_width), "hidden_states": noise(BATCH, channels, frames, 8, 12)}


def with_references(make: Callable[[], Sample], count: int = 6) -> Sample:
    """The sample with tokens of reference images after its own, marked on the first axis of the ids."""
    sample = make()
    given, own = sample.inputs, sample.inputs["img_ids"]
    references = torch.cat([torch.ones(count, 1), image_ids(1, count, own.shape[1])[:, 1:]], 1)
    more = noise(BATCH, count, given["hidden_states"].shape[2], seed=9)
    inputs = {
        **given,
        "hidden_states": torch.cat([given["hidden_states"], more], 1),
        "img_ids": torch.cat([own, references]),
    }
    if isinstance(mask := given.get("attention_mask"), Tensor):
        inputs["attention_mask"] = torch.cat([mask, mask.new_ones(BATCH, count)], 1)
    return Sample(sample.model, inputs, sample.grid)


# Configurations are packed by hand: one entry a line would be a thousand lines.
# fmt: off

# --- images ----------------------------------------------------------------------------------------------------------


def flux() -> Sample:
    return Sample(tiny.flux(), tiny.flux_inputs(), (4, 6))


def flux2() -> Sample:
    """One modulation shared by all blocks; plain LayerNorms modulated inline."""
    model = made(
        diffusers.Flux2Transformer2DModel, patch_size=1, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, timestep_guidance_channels=256,
        axes_dims_rope=[4, 4, 4, 4],
    )
    text_ids = torch.zeros(7, 4)
    text_ids[:, 3] = torch.arange(7)
    ids = {"img_ids": image_ids(4, 6, 4), "txt_ids": text_ids}
    return Sample(model, {**packed(), **ids, "guidance": level(4.0)}, (4, 6))


def flux3() -> Sample:
    """Image blocks in a dict of modes; modulation per token; tokens of a condition image beside the image's."""
    model = made(
        diffusers.Flux3Transformer2DModel, in_channels=4, cond_in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4),
    )
    text_ids = torch.zeros(7, 4)
    text_ids[:, 3] = torch.arange(7)
    more = {
        "img_ids": image_ids(4, 6, 4), "txt_ids": text_ids,
        "image_cond_hidden_states": noise(BATCH, 5, 4, seed=3), "image_cond_ids": image_ids(1, 5, 4),
    }
    return Sample(model, {**packed(), **more}, (4, 6))


def sd3(**changes: Any) -> Sample:
    return Sample(tiny.sd3(**changes), tiny.sd3_inputs(), (4, 6))


def pixart(*, conditions: bool = False) -> Sample:
    """``conditions``: PixArt-alpha at 1024 px is told resolution and aspect ratio."""
    inputs = tiny.pixart_inputs()
    if conditions:
        told = {"resolution": torch.tensor([[64.0, 96.0]] * BATCH), "aspect_ratio": torch.tensor([[0.66]] * BATCH)}
        inputs["added_cond_kwargs"] = told
    return Sample(tiny.pixart(use_additional_conditions=conditions), inputs, (4, 6))


def dit() -> Sample:
    """Classes instead of text; every block embeds timestep and class itself; its output is square."""
    model = made(
        diffusers.DiTTransformer2DModel, in_channels=4, out_channels=8, attention_bias=True, attention_head_dim=8,
        num_attention_heads=2, num_layers=2, num_embeds_ada_norm=8, sample_size=8, patch_size=2,
    )
    inputs = {"hidden_states": noise(BATCH, 4, 8, 8), "timestep": level(261), "class_labels": torch.tensor([3, 8])}
    return Sample(model, inputs, (4, 4))


def sana(*, guidance: bool = False) -> Sample:
    model = made(
        diffusers.SanaTransformer2DModel, patch_size=1, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=8, sample_size=32, guidance_embeds=guidance,
    )
    inputs = {**latent(), "hidden_states": noise(BATCH, 4, 4, 6)}
    return Sample(model, {**inputs, "guidance": level(0.45)} if guidance else inputs, (4, 6))


def hunyuan_dit() -> Sample:
    """Modulated by a shift alone; the later blocks first take in the output of an earlier one."""
    model = made(
        diffusers.HunyuanDiT2DModel, sample_size=8, patch_size=2, in_channels=4, num_layers=6, attention_head_dim=8,
        num_attention_heads=2, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4,
        hidden_size=16, text_len=4, text_len_t5=4, activation_fn="gelu-approximate",
    )
    more = {
        "text_embedding_mask": torch.ones(BATCH, 4),
        "encoder_hidden_states_t5": noise(BATCH, 4, 8, seed=2), "text_embedding_mask_t5": torch.ones(BATCH, 4),
        "image_meta_size": torch.tensor([[1024.0, 1024, 16, 16, 0, 0]] * BATCH),
        "style": torch.zeros(BATCH, dtype=torch.long),
        "image_rotary_emb": (noise(24, 8, seed=3), noise(24, 8, seed=4)),
    }
    return Sample(model, {**latent(text=4, timestep=261.0), **more}, (4, 6))


def hunyuan_image() -> Sample:
    model = made(
        diffusers.HunyuanImageTransformer2DModel, in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=16, num_layers=2, num_single_layers=2, num_refiner_layers=1, patch_size=(1, 1),
        text_embed_dim=16, text_embed_2_dim=12, rope_axes_dim=(8, 8), guidance_embeds=False,
    )
    more = {
        "hidden_states": noise(BATCH, 4, 4, 6),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        "encoder_hidden_states_2": noise(BATCH, 3, 12, seed=2),
        "encoder_attention_mask_2": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    return Sample(model, {**latent(7, 16), **more}, (4, 6))


def auraflow() -> Sample:
    model = made(
        diffusers.AuraFlowTransformer2DModel, sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=2,
        num_single_dit_layers=2, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=32, out_channels=4, pos_embed_max_size=256,
    )
    return Sample(model, latent(11, 32, timestep=0.26), (4, 6))


def lumina_next() -> Sample:
    """RMSNorm with weights, modulated by a scale alone."""
    model = made(
        diffusers.LuminaNextDiT2DModel, sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, norm_eps=1e-5, learn_sigma=False, qk_norm=True,
        cross_attention_dim=32,
    )
    model.pad_token.data.zero_()
    more = {
        "encoder_mask": torch.ones(BATCH, 5), "image_rotary_emb": noise(384, 384, 4, seed=2),
        "cross_attention_kwargs": {},
    }
    return Sample(model, {**latent(5, 32, timestep=0.74), **more}, (4, 6))


def lumina2() -> Sample:
    """The text's length differs between the images of a batch."""
    model = made(
        diffusers.Lumina2Transformer2DModel, sample_size=16, patch_size=2, in_channels=4, hidden_size=24,
        num_layers=2, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2, norm_eps=1e-5,
        axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=32,
    )
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    return Sample(model, {**latent(9, 32, timestep=0.74), "encoder_attention_mask": mask}, (4, 6))


def chroma() -> Sample:
    """All modulations come out of one network, and none out of the blocks."""
    model = made(
        diffusers.ChromaTransformer2DModel, patch_size=1, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[4, 4, 8],
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )
    return Sample(model, {**packed(), "attention_mask": torch.ones(BATCH, 31)}, (4, 6))


def qwen_image(*, edit: bool = False) -> Sample:
    """``edit``: with a reference image whose tokens are modulated as at timestep 0 (Qwen-Image-Edit-2511)."""
    model = made(
        diffusers.QwenImageTransformer2DModel, patch_size=2, in_channels=16, out_channels=4, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        zero_cond_t=edit,
    )
    inputs = {
        "hidden_states": noise(BATCH, 30 if edit else 24, 16),
        "encoder_hidden_states": noise(BATCH, 7, 16, seed=1),
        "encoder_hidden_states_mask": torch.ones(BATCH, 7, dtype=torch.long),
        "timestep": level(0.26),
        "img_shapes": [[(1, 4, 6), (1, 2, 3)] if edit else [(1, 4, 6)]] * BATCH,
    }
    return Sample(model, inputs, (4, 6))


def qwen_image_21() -> Sample:
    """Text and image in one sequence; a scale alone; text tokens are modulated as at timestep 0."""
    model = made(
        diffusers.QwenImage21Transformer2DModel, patch_size=1, in_channels=8, out_channels=8, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, context_in_dim=16, axes_dims_rope=(8, 4, 4), mlp_ratio=2,
        causal_condition=True,
    )
    inputs = {
        "hidden_states": noise(BATCH, 24, 8),
        "encoder_hidden_states": noise(BATCH, 7, 16, seed=1),
        "timestep": level(0.26, batch=1),
        "img_shapes": [[(1, 4, 6)]] * BATCH,
        "img_mask": (torch.arange(13) >= 7).repeat(BATCH, 1),  # a quarter of the tokens, after the text
    }
    return Sample(model, inputs, (4, 6))


def z_image() -> Sample:
    """Takes lists of images and of texts; pads both."""
    model = made(
        diffusers.ZImageTransformer2DModel, all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32,
        n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, qk_norm=True, cap_feat_dim=16, rope_theta=256.0,
        t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )
    inputs = {
        "x": [noise(4, 1, 8, 12), noise(4, 1, 8, 12, seed=1)], "t": level(0.74),
        "cap_feats": [noise(5, 16, seed=2), noise(9, 16, seed=3)],
    }
    return Sample(model, inputs, (4, 6))


def cogview3_plus() -> Sample:
    model = made(
        diffusers.CogView3PlusTransformer2DModel, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=2,
        pos_embed_max_size=8, sample_size=8,
    )
    return Sample(model, {**latent(), **_cogview_sizes(), "timestep": level(261)}, (4, 6))


def cogview4() -> Sample:
    model = made(
        diffusers.CogView4Transformer2DModel, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=4,
    )
    return Sample(model, {**latent(), **_cogview_sizes(), "timestep": level(261)}, (4, 6))


def _cogview_sizes() -> dict[str, Any]:
    size = torch.tensor([[64, 96]] * BATCH)
    return {"original_size": size, "target_size": size, "crop_coords": torch.zeros(BATCH, 2, dtype=torch.long)}


def glm_image() -> Sample:
    model = made(
        diffusers.GlmImageTransformer2DModel, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, text_embed_dim=32, time_embed_dim=16, condition_dim=8,
        prior_vq_quantizer_codebook_size=64,
    )
    more = {
        "prior_token_id": torch.arange(24).repeat(BATCH, 1),
        "prior_token_drop": torch.ones(BATCH, 24, dtype=torch.bool),
        "target_size": torch.tensor([[64.0, 96.0]] * BATCH), "crop_coords": torch.zeros(BATCH, 2),
    }
    return Sample(model, {**latent(5, 32), **more}, (4, 6))


def hidream() -> Sample:
    """Blocks inside wrappers; images that are not square are padded."""
    model = made(
        diffusers.HiDreamImageTransformer2DModel, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        num_single_layers=2, attention_head_dim=8, num_attention_heads=4, caption_channels=[8, 4], text_emb_dim=8,
        num_routed_experts=2, num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(16, 16),
        llama_layers=(0, 1, 0, 1), force_inference_output=True,
    )
    inputs = {
        "hidden_states": noise(BATCH, 4, 8, 12), "timesteps": level(260.0),
        "encoder_hidden_states_t5": noise(BATCH, 5, 8, seed=1),
        "encoder_hidden_states_llama3": noise(2, BATCH, 5, 4, seed=2), "pooled_embeds": noise(BATCH, 8, seed=3),
    }
    return Sample(model, inputs, (4, 6))


def omnigen() -> Sample:
    """No modulation: time is a token."""
    model = made(
        diffusers.OmniGenTransformer2DModel, hidden_size=16, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=32, num_layers=2, in_channels=4, time_step_dim=4,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]}, pad_token_id=0, vocab_size=1000,
    )
    length = 6 + 1 + 24  # text with a small input image, time, image
    inputs = {
        "hidden_states": noise(BATCH, 4, 8, 12), "timestep": level(0.74),
        "input_ids": torch.arange(6).repeat(BATCH, 1), "input_img_latents": [noise(1, 4, 4, 4, seed=1)],
        "input_image_sizes": {0: [[0, 4]]}, "attention_mask": torch.ones(BATCH, length, length),
        "position_ids": torch.arange(length).repeat(BATCH, 1),
    }
    return Sample(model, inputs, (4, 6))


def bria() -> Sample:
    model = made(
        diffusers.BriaTransformer2DModel, patch_size=1, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[0, 4, 4],
    )
    return Sample(model, packed(timestep=260.0), (4, 6))


def bria_fibo() -> Sample:
    """Half of the text's channels are replaced before every block."""
    model = made(
        diffusers.BriaFiboTransformer2DModel, patch_size=1, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, text_encoder_dim=12,
        axes_dims_rope=[0, 4, 4],
    )
    layers = [noise(BATCH, 7, 12, seed=seed) for seed in range(2, 6)]
    return Sample(model, {**packed(timestep=260.0), "text_encoder_layers": layers}, (4, 6))


def kandinsky5() -> Sample:
    """Channels last, in and out."""
    model = made(
        diffusers.Kandinsky5Transformer3DModel, in_visual_dim=4, in_text_dim=12, in_text_dim2=8, time_dim=16,
        out_visual_dim=4, patch_size=(1, 2, 2), model_dim=32, ff_dim=64, num_text_blocks=1, num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    more = {
        "hidden_states": noise(BATCH, 1, 8, 12, 4), "pooled_projections": noise(BATCH, 8, seed=2),
        "visual_rope_pos": [torch.arange(1), torch.arange(4), torch.arange(6)], "text_rope_pos": torch.arange(5),
    }
    return Sample(model, {**latent(5, 12), **more}, (1, 4, 6))


def prx() -> Sample:
    model = made(
        diffusers.PRXTransformer2DModel, in_channels=4, patch_size=2, context_in_dim=16, hidden_size=32, mlp_ratio=2.0,
        num_heads=2, depth=2, axes_dim=[8, 8],
    )
    mask = torch.ones(BATCH, 5, dtype=torch.bool)
    return Sample(model, {**latent(5, 16, timestep=0.26), "attention_mask": mask}, (4, 6))


def longcat_image() -> Sample:
    model = made(
        diffusers.LongCatImageTransformer2DModel, patch_size=1, in_channels=4, num_layers=2, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    return Sample(model, packed(), (4, 6))


def ovis_image() -> Sample:
    model = made(
        diffusers.OvisImageTransformer2DModel, patch_size=1, in_channels=4, out_channels=4, num_layers=2,
        num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return Sample(model, packed(), (4, 6))


def ernie_image() -> Sample:
    """Tokens before batch in every block; RMSNorm with weights, scale and shift."""
    model = made(
        diffusers.ErnieImageTransformer2DModel, hidden_size=16, num_attention_heads=1, num_layers=2,
        ffn_hidden_size=16, in_channels=16, out_channels=16, patch_size=1, text_in_dim=12, rope_axes_dim=(8, 4, 4),
    )
    inputs = {
        "hidden_states": noise(BATCH, 16, 4, 6), "timestep": level(260.0),
        "text_bth": noise(BATCH, 5, 12, seed=1), "text_lens": torch.tensor([5, 3]),
    }
    return Sample(model, inputs, (4, 6))


def krea2() -> Sample:
    """RMSNorm that multiplies by 1 + its weight."""
    model = made(
        diffusers.Krea2Transformer2DModel, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=3,
        text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=16,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
    )
    inputs = {
        "hidden_states": noise(BATCH, 24, 16), "encoder_hidden_states": noise(BATCH, 5, 3, 16, seed=1),
        "timestep": level(0.26), "position_ids": torch.cat([torch.zeros(5, 3), image_ids(4, 6)]),
        "encoder_attention_mask": torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    }
    return Sample(model, inputs, (4, 6))


def ideogram4() -> Sample:
    """Text and image tokens in one sequence, told apart by an indicator."""
    model = made(
        diffusers.Ideogram4Transformer2DModel, in_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, intermediate_size=32, adaln_dim=16, llm_features_dim=24, rope_theta=10000,
        mrope_section=(2, 1, 1),
    )
    length = 5 + 24
    positions = torch.cat([torch.arange(5)[:, None].expand(5, 3), image_ids(4, 6).long() + 65536])
    inputs = {
        "hidden_states": noise(BATCH, length, 16), "timestep": level(0.74),
        "encoder_hidden_states": noise(BATCH, length, 24, seed=1), "position_ids": positions.repeat(BATCH, 1, 1),
        "segment_ids": torch.ones(BATCH, length, dtype=torch.long),
        "indicator": torch.tensor([3] * 5 + [2] * 24).repeat(BATCH, 1),
    }
    return Sample(model, inputs, (4, 6))


def nucleus_image() -> Sample:
    model = made(
        diffusers.NucleusMoEImageTransformer2DModel, patch_size=2, in_channels=16, out_channels=4, num_layers=2,
        attention_head_dim=16, num_attention_heads=4, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        moe_enabled=False, capacity_factors=[8.0, 8.0],
    )
    inputs = {
        "hidden_states": noise(BATCH, 24, 16), "encoder_hidden_states": noise(BATCH, 7, 16, seed=1),
        "encoder_hidden_states_mask": torch.ones(BATCH, 7, dtype=torch.long), "timestep": level(0.26),
        "img_shapes": [(1, 4, 6)] * BATCH,
    }
    return Sample(model, inputs, (4, 6))


def joy_image_edit() -> Sample:
    model = made(
        diffusers.JoyImageEditTransformer3DModel, patch_size=[1, 2, 2], in_channels=16, hidden_size=32,
        num_attention_heads=2, text_dim=16, num_layers=2, rope_dim_list=[4, 6, 6], theta=256,
    )
    return Sample(model, video(channels=16, frames=1), (1, 4, 6))


# --- videos ----------------------------------------------------------------------------------------------------------

WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 16, "freq_dim": 256, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
}


def wan(*, per_token: bool = False) -> Sample:
    """``per_token``: every token has its own timestep, the first frame's is 0 (Wan 2.2 TI2V)."""
    inputs = video()
    if per_token:
        inputs["timestep"] = torch.tensor([0.0] * 24 + [260.0] * 48).repeat(BATCH, 1)
    return Sample(made(diffusers.WanTransformer3DModel, **WAN, rope_max_seq_len=32), inputs, (3, 4, 6))


def wan_vace() -> Sample:
    """Blocks for a control video, whose output is added to the others'."""
    changes = {
        "in_channels": 16, "out_channels": 16, "text_dim": 32, "num_layers": 4, "rope_max_seq_len": 32,
        "vace_layers": [0, 2], "vace_in_channels": 48,
    }
    model = made(diffusers.WanVACETransformer3DModel, **{**WAN, **changes})
    control = noise(BATCH, 48, 2, 8, 12, seed=2)
    return Sample(model, {**video(5, 32, channels=16, frames=2), "control_hidden_states": control}, (2, 4, 6))


def chronoedit() -> Sample:
    changes = {
        "in_channels": 16, "out_channels": 16, "text_dim": 32, "freq_dim": 16, "rope_max_seq_len": 64,
        "rope_temporal_skip_len": 8,
    }
    model = made(diffusers.ChronoEditTransformer3DModel, **{**WAN, **changes})
    return Sample(model, video(5, 32, channels=16, frames=2), (2, 4, 6))


def helios() -> Sample:
    """Tokens of earlier frames, at three resolutions, before the video's own."""
    model = made(
        diffusers.HeliosTransformer3DModel, **WAN, qk_norm="rms_norm_across_heads", rope_dim=(4, 4, 4),
        has_multi_term_memory_patch=True, guidance_cross_attn=True, zero_history_timestep=True,
        is_amplify_history=False,
    )
    inputs: dict[str, Any] = {
        "hidden_states": noise(1, 4, 2, 16, 16), "timestep": level(260, batch=1),
        "encoder_hidden_states": noise(1, 12, 16, seed=1), "indices_hidden_states": torch.ones(1, 2),
    }
    for seed, (term, frames) in enumerate({"short": 1, "mid": 1, "long": 4}.items(), start=2):
        inputs[f"latents_history_{term}"] = noise(1, 4, frames, 16, 16, seed=seed)
        inputs[f"indices_latents_history_{term}"] = torch.ones(1, frames)
    return Sample(model, inputs, (2, 8, 8))


def skyreels(*, forcing: bool = False) -> Sample:
    """``forcing``: every frame has its own timestep (diffusion forcing)."""
    inputs = video()
    if forcing:
        inputs |= {"timestep": torch.tensor([[0.0, 130.0, 260.0]] * BATCH), "enable_diffusion_forcing": True}
    return Sample(made(diffusers.SkyReelsV2Transformer3DModel, **WAN, rope_max_seq_len=32), inputs, (3, 4, 6))


def cogvideox(*, rotary: bool = False) -> Sample:
    """Frames before channels; one norm serves video and text."""
    model = made(
        diffusers.CogVideoXTransformer3DModel, num_attention_heads=2, attention_head_dim=8, in_channels=4,
        out_channels=4, time_embed_dim=2, text_embed_dim=8, num_layers=2, sample_width=12, sample_height=8,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=8,
        use_rotary_positional_embeddings=rotary,
    )
    inputs = {**latent(text=8), "hidden_states": noise(BATCH, 3, 4, 8, 12), "timestep": level(261)}
    if rotary:
        inputs["image_rotary_emb"] = (noise(72, 8, seed=2), noise(72, 8, seed=3))
    return Sample(model, inputs, (3, 4, 6))


HUNYUAN_VIDEO: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
    "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1, "guidance_embeds": True,
    "text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4),
}


def hunyuan_video(*, condition: str | None = None) -> Sample:
    """``condition="token_replace"``: the first frame's tokens are modulated as at timestep 0."""
    more = {
        "pooled_projections": noise(BATCH, 8, seed=2), "guidance": level(6000.0),
        "encoder_attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2]),
    }
    model = made(diffusers.HunyuanVideoTransformer3DModel, **HUNYUAN_VIDEO, image_condition_type=condition)
    return Sample(model, {**video(), **more}, (3, 4, 6))


def hunyuan_video_15() -> Sample:
    model = made(
        diffusers.HunyuanVideo15Transformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=8, num_layers=2, num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1,
        text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16,
        task_type="t2v",
    )
    more = {
        "hidden_states": noise(BATCH, 4, 3, 4, 6), "encoder_attention_mask": torch.ones(BATCH, 5),
        "encoder_hidden_states_2": noise(BATCH, 4, 8, seed=2), "encoder_attention_mask_2": torch.ones(BATCH, 4),
        "image_embeds": noise(BATCH, 3, 12, seed=3),
    }
    return Sample(model, {**video(), **more}, (3, 4, 6))


def framepack() -> Sample:
    """Tokens of earlier frames, at three resolutions, before the video's own; text after both."""
    model = made(
        diffusers.HunyuanVideoFramepackTransformer3DModel, **HUNYUAN_VIDEO, image_condition_type=None,
        has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True,
    )
    inputs: dict[str, Any] = {
        "hidden_states": noise(1, 4, 3, 4, 4), "indices_latents": torch.ones(3), "timestep": level(260, batch=1),
        "encoder_hidden_states": noise(1, 12, 16, seed=1), "encoder_attention_mask": torch.ones(1, 12),
        "pooled_projections": noise(1, 8, seed=2), "image_embeds": noise(1, 12, 16, seed=3),
        "guidance": level(6000, batch=1),
    }
    for seed, (name, frames) in enumerate({"clean": 2, "history_2x": 2, "history_4x": 8}.items(), start=4):
        inputs[f"latents_{name}"] = noise(1, 4, frames, 4, 4, seed=seed)
        inputs[f"indices_latents_{name}"] = torch.ones(frames)
    return Sample(model, inputs, (3, 2, 2))


def ltx(*, per_token: bool = False) -> Sample:
    """RMSNorm without weights, scale and shift; ``per_token`` as in image-to-video."""
    model = made(
        diffusers.LTXVideoTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=8, cross_attention_dim=16, num_layers=2, qk_norm="rms_norm_across_heads",
        caption_channels=16,
    )
    timestep = torch.tensor([0.0] * 24 + [260.0] * 48).repeat(BATCH, 1) if per_token else level(260.0)
    inputs = {
        "hidden_states": noise(BATCH, 72, 4), "encoder_hidden_states": noise(BATCH, 5, 16, seed=1),
        "timestep": timestep, "encoder_attention_mask": torch.ones(BATCH, 5, dtype=torch.bool),
        "num_frames": 3, "height": 4, "width": 6,
    }
    return Sample(model, inputs, (3, 4, 6))


def ltx2() -> Sample:
    """Video and audio in one model; each norm's result is modulated more than once."""
    model = made(
        diffusers.LTX2VideoTransformer3DModel, in_channels=4, out_channels=4, patch_size=1, patch_size_t=1,
        num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, audio_in_channels=4,
        audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4, audio_cross_attention_dim=8,
        num_layers=2, qk_norm="rms_norm_across_heads", caption_channels=16, rope_double_precision=False,
    )
    inputs = {
        "hidden_states": noise(BATCH, 72, 4), "audio_hidden_states": noise(BATCH, 9, 4, seed=1),
        "encoder_hidden_states": noise(BATCH, 5, 16, seed=2), "timestep": level(260.0),
        "audio_encoder_hidden_states": noise(BATCH, 5, 16, seed=3),
        "encoder_attention_mask": torch.ones(BATCH, 5, dtype=torch.bool),
        "num_frames": 3, "height": 4, "width": 6, "fps": 25.0, "audio_num_frames": 9,
    }
    return Sample(model, inputs, (3, 4, 6))


def mochi() -> Sample:
    """A scale alone; the residual's gate multiplies a norm too."""
    model = made(
        diffusers.MochiTransformer3DModel, patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3,
        pooled_projection_dim=12, in_channels=4, out_channels=None, qk_norm="rms_norm", text_embed_dim=16,
        time_embed_dim=4, activation_fn="swiglu", max_sequence_length=16,
    )
    mask = torch.ones(BATCH, 16, dtype=torch.bool)
    return Sample(model, {**video(text=16), "timestep": level(740.0), "encoder_attention_mask": mask}, (3, 4, 6))


def cosmos(*, positions: str | None = "learnable") -> Sample:
    """``positions``: an embedding added inside every block, before its norm (Cosmos 1)."""
    model = made(
        diffusers.CosmosTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=12, num_layers=2, mlp_ratio=2, text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32),
        patch_size=(1, 2, 2), rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type=positions,
    )
    return Sample(model, {**video(), "timestep": level(0.26), "fps": 30}, (3, 4, 6))


def allegro() -> Sample:
    model = made(
        diffusers.AllegroTransformer3DModel, num_attention_heads=2, attention_head_dim=8, in_channels=4,
        out_channels=4, num_layers=2, cross_attention_dim=16, sample_width=12, sample_height=8, sample_frames=8,
        caption_channels=8,
    )
    return Sample(model, {**video(text_width=8), "timestep": level(261)}, (3, 4, 6))


def latte() -> Sample:
    """Frames folded into the batch."""
    model = made(
        diffusers.LatteTransformer3DModel, sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=8, in_channels=4, cross_attention_dim=16, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )
    inputs = {**video(text_width=8, frames=1), "timestep": level(261), "enable_temporal_attentions": True}
    return Sample(model, inputs, (4, 6))


def sana_video() -> Sample:
    model = made(
        diffusers.SanaVideoTransformer3DModel, in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=12, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=12,
        cross_attention_dim=24, caption_channels=16, mlp_ratio=2.5, patch_size=(1, 2, 2), sample_size=8,
        rope_max_seq_len=32, qk_norm="rms_norm_across_heads",
    )
    return Sample(model, video(), (3, 4, 6))


def easyanimate() -> Sample:
    model = made(
        diffusers.EasyAnimateTransformer3DModel, num_attention_heads=2, attention_head_dim=16, in_channels=4,
        mmdit_layers=2, num_layers=2, out_channels=4, patch_size=2, sample_height=60, sample_width=90,
        text_embed_dim=16, time_embed_dim=8, time_position_encoding_type="3d_rope", timestep_activation_fn="silu",
    )
    return Sample(model, video(), (3, 4, 6))


def motif_video() -> Sample:
    model = made(
        diffusers.MotifVideoTransformer3DModel, in_channels=33, out_channels=16, num_attention_heads=2,
        attention_head_dim=12, num_layers=2, num_single_layers=2, num_decoder_layers=0, patch_size=2, patch_size_t=1,
        text_embed_dim=32, image_embed_dim=4, rope_axes_dim=(4, 4, 4), norm_type="layer_norm",
    )
    return Sample(model, video(5, 32, channels=33), (3, 4, 6))


# fmt: on

ZOO: dict[str, Callable[[], Sample]] = {
    "flux": flux,
    "flux-kontext": functools.partial(with_references, flux),
    "flux2": flux2,
    "flux2-edit": functools.partial(with_references, flux2),
    "flux3": flux3,
    "sd3": functools.partial(sd3, dual_attention_layers=(), qk_norm=None),
    "sd3.5-dual": functools.partial(sd3, dual_attention_layers=(0, 1)),
    "pixart-sigma": pixart,
    "pixart-alpha-1024": functools.partial(pixart, conditions=True),
    "dit": dit,
    "sana": sana,
    "sana-sprint": functools.partial(sana, guidance=True),
    "hunyuan-dit": hunyuan_dit,
    "hunyuan-image-2.1": hunyuan_image,
    "auraflow": auraflow,
    "lumina-next": lumina_next,
    "lumina-2": lumina2,
    "chroma": chroma,
    "chroma-references": functools.partial(with_references, chroma),
    "qwen-image": qwen_image,
    "qwen-image-edit-2511": functools.partial(qwen_image, edit=True),
    "qwen-image-2.1": qwen_image_21,
    "z-image": z_image,
    "cogview-3-plus": cogview3_plus,
    "cogview-4": cogview4,
    "glm-image": glm_image,
    "hidream": hidream,
    "omnigen": omnigen,
    "bria": bria,
    "bria-fibo": bria_fibo,
    "kandinsky-5": kandinsky5,
    "prx": prx,
    "longcat-image": longcat_image,
    "ovis-image": ovis_image,
    "ernie-image": ernie_image,
    "krea-2": krea2,
    "ideogram-4": ideogram4,
    "nucleus-image": nucleus_image,
    "joy-image-edit": joy_image_edit,
    "wan-2.1": wan,
    "wan-2.2-per-token": functools.partial(wan, per_token=True),
    "wan-vace": wan_vace,
    "chronoedit": chronoedit,
    "helios": helios,
    "skyreels-v2": skyreels,
    "skyreels-v2-forcing": functools.partial(skyreels, forcing=True),
    "cogvideox-2b": cogvideox,
    "cogvideox-5b": functools.partial(cogvideox, rotary=True),
    "hunyuan-video": hunyuan_video,
    "hunyuan-video-token-replace": functools.partial(hunyuan_video, condition="token_replace"),
    "hunyuan-video-1.5": hunyuan_video_15,
    "framepack": framepack,
    "ltx": ltx,
    "ltx-per-token": functools.partial(ltx, per_token=True),
    "ltx-2": ltx2,
    "mochi": mochi,
    "cosmos-1": cosmos,
    "cosmos-2": functools.partial(cosmos, positions=None),
    "allegro": allegro,
    "latte": latte,
    "sana-video": sana_video,
    "easyanimate": easyanimate,
    "motif-video": motif_video,
}
