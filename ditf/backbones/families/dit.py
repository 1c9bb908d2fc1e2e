"""DiT-XL/2: conditioned on an ImageNet class instead of a text, DDPM noise."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .base import DiffusionFamily, Text, joined

__all__ = ["DiT"]


class DiT(DiffusionFamily):
    """As diffusers' ``DiTPipeline`` prepares its inputs, without guidance.

    A prompt names a class: ``"class:207"``, or one of the pipeline's labels (``"golden retriever"``, in any case);
    the empty prompt is the model's null class, as in unconditional sampling.
    """

    name = "dit"

    @property
    def patch(self) -> int:
        return int(self.config["patch_size"])

    @property
    def reads_text(self) -> bool:
        return False

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        return {"class_labels": torch.tensor([self.class_of(prompt)])}

    def class_of(self, prompt: str) -> int:
        """The class a prompt names.

        Raises:
            InputError: no such class or label.
        """
        null, name = int(self.config["num_embeds_ada_norm"]), prompt.strip().lower()
        if not name:
            return null
        if name.startswith("class:"):
            number = name.removeprefix("class:").strip()
            if not number.isdecimal() or int(number) > null:
                raise InputError.of("prompt", prompt, f'"class:N" with N in 0..{null - 1}, or {null}, the null class')
            return int(number)
        labels = self._labels()
        if name not in labels:
            close = ", ".join(f'"{label}"' for label in difflib.get_close_matches(name, labels))
            expected = f'"class:N", a label of the model{f" such as {close}" if close else ""}, or "" for no class'
            raise InputError.of("prompt", prompt, expected)
        return labels[name]

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        return {"hidden_states": latents, **joined(rows, latents), "timestep": self.steps(timestep, latents)}

    def _labels(self) -> dict[str, int]:
        """Every name of every class, lower case; a class's names are separated by commas."""
        if given := self.index.get("labels"):  # of a pipeline that is already loaded
            return {label.lower(): int(number) for label, number in given.items()}
        named = self.index.get("id2label") or {}
        return {label.strip().lower(): int(number) for number, names in named.items() for label in names.split(",")}
