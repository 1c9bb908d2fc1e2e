"""Tiny random diffusers models and pipelines, complete with text encoders and tokenizers, made without a network.

Weights that training would have moved from zero (modulation) are drawn at random, else the tests would prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": True,
}
SD3: dict[str, Any] = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 64,
    "out_channels": 4,
    "pos_embed_max_size": 24,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
PIXART: dict[str, Any] = {
    "sample_size": 8,
    "num_layers": 3,
    "patch_size": 2,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "caption_channels": 32,
    "in_channels": 4,
    "cross_attention_dim": 24,
    "out_channels": 8,
}
FLUX2: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}
DIT: dict[str, Any] = {
    "sample_size": 8,
    "num_layers": 3,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_embeds_ada_norm": 10,
}
SANA: dict[str, Any] = {
    "sample_size": 32,
    "num_layers": 3,
    "patch_size": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 8,
    "timestep_scale": 0.5,
}
QWEN_IMAGE: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (8, 4, 4),
}
Z_IMAGE: dict[str, Any] = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": [8, 4, 4],
    "axes_lens": [1024, 32, 32],
}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """Every weight that starts at zero or is a modulation, drawn anew; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2 and (not weight.any() or "adaln" in name.lower() or "scale_shift" in name):
                weight.copy_(drawn * 0.5 / (1.0 if "scale_shift" in name else math.sqrt(weight.shape[-1])))
            elif "bias" in name and not weight.any():
                weight.copy_(drawn * 0.05)
    return model.eval()


def flux(**changes: Any) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return randomised(FluxTransformer2DModel(**{**FLUX, **changes}))


def sd3(**changes: Any) -> Any:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return randomised(SD3Transformer2DModel(**{**SD3, **changes}))


def pixart(**changes: Any) -> Any:
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    return randomised(PixArtTransformer2DModel(**{**PIXART, **changes}))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flux_inputs(height: int = 4, width: int = 6, batch: int = 2, text: int = 7) -> dict[str, Any]:
    """Arguments of the FLUX forward for a grid of height x width tokens."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None]
    return {
        "hidden_states": noise(batch, height * width, FLUX["in_channels"]),
        "encoder_hidden_states": noise(batch, text, 32, seed=1),
        "pooled_projections": noise(batch, 32, seed=2),
        "timestep": torch.full((batch,), 0.26),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
    }


def sd3_inputs(height: int = 4, width: int = 6, batch: int = 2) -> dict[str, Any]:
    """Arguments of the SD3 forward for a grid of height x width tokens."""
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, 11, 32, seed=1),
        "pooled_projections": noise(batch, 64, seed=2),
        "timestep": torch.full((batch,), 260.0),
    }


def pixart_inputs(height: int = 4, width: int = 6, batch: int = 2) -> dict[str, Any]:
    """Arguments of the PixArt forward for a grid of height x width tokens."""
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, 5, 32, seed=1),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])[:batch],
        "timestep": torch.full((batch,), 261),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def vae(channels: int = 4, **config: Any) -> Any:
    """Eight pixels per latent cell."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
        **config,
    ).eval()


def clip_tokenizer() -> Any:
    """One token per letter, as CLIP's byte-pair encoding without merges."""
    from transformers import CLIPTokenizer

    symbols = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    return CLIPTokenizer(vocab={s: i for i, s in enumerate(symbols)}, merges=[], model_max_length=16)


def t5_tokenizer() -> Any:
    """One token per letter, as T5's unigram model."""
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(vocab=[*special, *((letter, -3.0) for letter in LETTERS)], extra_ids=0)


def clip_encoder(width: int = 32, projection: bool = False, seed: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=2 + 2 * len(LETTERS),
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_encoder(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(3)
    config = T5Config(
        d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=4 + len(LETTERS), pad_token_id=0
    )
    return T5EncoderModel(config).eval()


def flux_pipeline(**changes: Any) -> Any:
    """A whole tiny FluxPipeline in memory."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=flux(**changes),
    )


def sd3_pipeline(**changes: Any) -> Any:
    """A whole tiny StableDiffusion3Pipeline in memory."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        transformer=sd3(**{"joint_attention_dim": 64, **changes}),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(projection=True, seed=1),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(64),
        tokenizer_3=t5_tokenizer(),
    )


def pixart_pipeline(**changes: Any) -> Any:
    """A whole tiny PixArtAlphaPipeline in memory."""
    from diffusers import DDPMScheduler, PixArtAlphaPipeline

    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae(scaling_factor=0.18215),
        transformer=pixart(**changes),
        scheduler=DDPMScheduler(beta_start=0.0001, beta_end=0.02),
    )


def flux2_vae(channels: int = 4) -> Any:
    """Eight pixels per latent cell, before 2 x 2 of them become one; statistics as if it had been trained."""
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    model = AutoencoderKLFlux2(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
    )
    model.bn.running_mean.copy_(noise(4 * channels, seed=5) * 0.1)
    model.bn.running_var.copy_(noise(4 * channels, seed=6).abs() + 0.5)
    return model.eval()


def qwen_vae() -> Any:
    """A video autoencoder, eight pixels per latent cell; a mean and a deviation per channel."""
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    ).eval()


def sana_vae() -> Any:
    """32 pixels per latent cell, no posterior."""
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(4, 8, 8, 8, 8, 8),
        decoder_block_out_channels=(4, 8, 8, 8, 8, 8),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
        attention_head_dim=2,
    ).eval()


def qwen_tokenizer() -> Any:
    """One token per byte, as Qwen's byte-pair encoding without merges, with a chat template."""
    from transformers import Qwen2Tokenizer

    letters = [*(chr(code) for code in range(33, 127)), "Ġ", "Ċ"]
    tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    return tokenizer


def gemma_tokenizer() -> Any:
    """One token per letter, as Gemma's byte-pair encoding without merges."""
    from transformers import GemmaTokenizer

    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    return GemmaTokenizer(vocab={s: i for i, s in enumerate(symbols)}, merges=[])


_LANGUAGE_MODEL: dict[str, Any] = {
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 128,
}


def qwen3_encoder(width: int, layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(4)
    config = Qwen3Config(**_LANGUAGE_MODEL, hidden_size=width, num_hidden_layers=layers)
    return Qwen3ForCausalLM(config).eval()


def gemma2_encoder(width: int) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(4)
    return Gemma2Model(Gemma2Config(**_LANGUAGE_MODEL, hidden_size=width, num_hidden_layers=2)).eval()


def qwen25_vl_encoder(width: int) -> Any:
    """Vision and language; only its language is used."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(4)
    text = {**_LANGUAGE_MODEL, "hidden_size": width, "num_hidden_layers": 2}
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        },
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def flux2_pipeline(**changes: Any) -> Any:
    """A whole tiny Flux2KleinPipeline in memory; its texts are the states of three layers."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel

    torch.manual_seed(0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=qwen3_encoder(8, 28),
        tokenizer=qwen_tokenizer(),
        transformer=randomised(Flux2Transformer2DModel(**{**FLUX2, **changes})),
        is_distilled=True,
    )


def dit_pipeline(**changes: Any) -> Any:
    """A whole tiny DiTPipeline in memory, with the labels of three of its ten classes."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTPipeline(
        transformer=randomised(DiTTransformer2DModel(**{**DIT, **changes})),
        vae=vae(scaling_factor=0.18215),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02),
        id2label={0: "tench, Tinca tinca", 1: "goldfish", 7: "golden retriever"},
    )


def sana_pipeline(**changes: Any) -> Any:
    """A whole tiny SanaPipeline in memory."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    torch.manual_seed(0)
    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma2_encoder(8),
        vae=sana_vae(),
        transformer=randomised(SanaTransformer2DModel(**{**SANA, **changes})),
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    )


def qwen_image_pipeline(**changes: Any) -> Any:
    """A whole tiny QwenImagePipeline in memory."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    torch.manual_seed(0)
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=qwen25_vl_encoder(16),
        tokenizer=qwen_tokenizer(),
        transformer=randomised(QwenImageTransformer2DModel(**{**QWEN_IMAGE, **changes})),
    )


def z_image_pipeline(**changes: Any) -> Any:
    """A whole tiny ZImagePipeline in memory."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(0)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3_encoder(16, 2),
        tokenizer=qwen_tokenizer(),
        transformer=randomised(ZImageTransformer2DModel(**{**Z_IMAGE, **changes})),
    )


PIPELINES: dict[str, Callable[..., Any]] = {
    "flux": flux_pipeline,
    "flux2": flux2_pipeline,
    "sd3": sd3_pipeline,
    "pixart": pixart_pipeline,
    "dit": dit_pipeline,
    "sana": sana_pipeline,
    "qwen-image": qwen_image_pipeline,
    "z-image": z_image_pipeline,
}
"""One whole tiny pipeline of each family that ditf feeds itself."""


def saved(name: str, folder: str | Path, *, shard: str | None = None, **changes: Any) -> str:
    """Save a tiny pipeline of a family to a folder (the transformer in shards of this size) and return its path."""
    return _saved(PIPELINES[name](**changes), folder, shard)


def _saved(pipeline: Any, folder: str | Path, shard: str | None) -> str:
    pipeline.save_pretrained(folder)
    if shard is not None:
        pipeline.transformer.save_pretrained(Path(folder) / "transformer", max_shard_size=shard)
        single = Path(folder) / "transformer" / "diffusion_pytorch_model.safetensors"
        single.unlink(missing_ok=True)
    return str(folder)


def tiny_flux_pipeline(folder: str | Path, *, shard: str | None = None, **changes: Any) -> str:
    """Save a tiny FLUX pipeline to a folder (the transformer in shards of this size) and return its path."""
    return _saved(flux_pipeline(**changes), folder, shard)


def tiny_sd3_pipeline(folder: str | Path, *, shard: str | None = None, **changes: Any) -> str:
    """Save a tiny SD3.5 pipeline (dual attention in block 0) to a folder and return its path."""
    return _saved(sd3_pipeline(**changes), folder, shard)


def tiny_pixart_pipeline(folder: str | Path, *, shard: str | None = None, **changes: Any) -> str:
    """Save a tiny PixArt-alpha pipeline to a folder and return its path."""
    return _saved(pixart_pipeline(**changes), folder, shard)
