"""Qwen-Image: packed 2 x 2 latent patches, texts of any length, rectified flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import ModelError
from .base import Family, Text, per_row, placed
from .flux import pack

__all__ = ["QwenImage"]

_TEXT_TO_IMAGE = ("QwenImagePipeline", "QwenImageImg2ImgPipeline")


class QwenImage(Family):
    """As diffusers' ``QwenImagePipeline`` prepares its inputs, without guidance."""

    name = "qwen-image"
    embeddings: ClassVar[Mapping[str, str]] = {"prompt_embeds": "encoder_hidden_states"}
    text_width = "joint_attention_dim"

    @property
    def patch(self) -> int:
        return 2

    @property
    def latent_channels(self) -> int:
        return int(self.config["in_channels"]) // self.patch**2

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        tokens, _ = pipeline.encode_prompt(prompt=prompt, device=device)  # one prompt alone has no padding
        return {"encoder_hidden_states": tokens}

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        tokens, mask = _padded([row["encoder_hidden_states"][0] for row in rows])
        return {
            "hidden_states": pack(latents, self.patch),
            "encoder_hidden_states": placed(tokens, latents),
            "encoder_hidden_states_mask": None if bool(mask.all()) else placed(mask, latents),
            "timestep": per_row(timestep / 1000, latents),
            "img_shapes": [[(1, *self.grid(latents))]] * latents.shape[0],
        }

    def check_latents(self, vae_channels: int | None) -> None:
        super().check_latents(vae_channels)
        pipeline = self.index.get("_class_name", _TEXT_TO_IMAGE[0])
        if pipeline not in _TEXT_TO_IMAGE:
            raise ModelError(
                f"{pipeline} conditions on further images; ditf feeds the text-to-image checkpoint Qwen/Qwen-Image"
            )


def _padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, T, D) with zeros after each text, and the mask (B, T) int64 of what is text."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    mask = torch.arange(tokens.shape[1])[None] < torch.tensor([len(text) for text in texts])[:, None]
    return tokens, mask.long()
