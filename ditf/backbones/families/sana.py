"""Sana: one token per cell of a 32-fold deep-compression latent, cross-attention to Gemma, rectified flow."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import ModelError
from .base import Family, Text, joined, per_row

__all__ = ["Sana"]


class Sana(Family):
    """As diffusers' ``SanaPipeline`` prepares its inputs, its instruction before the prompt included."""

    name = "sana"
    embeddings: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "prompt_attention_mask": "encoder_attention_mask",
    }
    text_width = "caption_channels"

    @property
    def patch(self) -> int:
        return int(self.config["patch_size"])

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        tokens, mask, _, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=device, complex_human_instruction=instruction
        )
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        scale = float(self.config["timestep_scale"])
        return {"hidden_states": latents, **joined(rows, latents), "timestep": per_row(timestep * scale, latents)}

    def check_latents(self, vae_channels: int | None) -> None:
        super().check_latents(vae_channels)
        if self.config["guidance_embeds"]:
            raise ModelError(
                "Sana-Sprint is trained on TrigFlow noise, which ditf does not make; use a Sana checkpoint that is "
                "not Sprint"
            )
