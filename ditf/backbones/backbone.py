"""One diffusion transformer with all that stands before it: text, VAE, noise, packing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from .activations import Activation
from .conditions import Condition
from .families import Family, Pixel
from .families.base import Text
from .families.recording import mapped
from .latents import Posterior, encode
from .parts import Parts
from .run import BlockInput, run_to_blocks
from .text_cache import TextCache

__all__ = ["Backbone"]

log = logging.getLogger("ditf")


class Backbone:
    """From pixels and prompts to what enters a block. Made by :func:`load_backbone` or :func:`backbone_from`.

    Attributes:
        name: hub id, folder, or class of what was given.
        revision: commit of the hub, or None.
        family: "flux", "flux2", "sd3", "pixart", "dit", "sana", "qwen-image", "z-image", "pixel" or "recorded".
        num_blocks: how many blocks the transformer has, loaded or not.
        pixels_per_token: side of a token in pixels; images must be multiples of it.
        default_guidance: guidance to embed when none is given, or None for models without.
    """

    def __init__(
        self,
        name: str,
        revision: str | None,
        family: Family,
        parts: Parts,
        num_blocks: int,
        text_cache: TextCache | None = None,
    ) -> None:
        self.name, self.revision, self.num_blocks = name, revision, num_blocks
        self._family, self._parts, self._text_cache = family, parts, text_cache
        self._texts: dict[str, Text] = {}
        self._lock = threading.RLock()
        if family.name == "flux" and self.dtype == torch.float16:
            log.warning("%s in float16: FLUX's massive activations overflow it; use bfloat16 or float32", name)

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, {self.family}, {self.num_blocks} blocks, {self.dtype} on {self.device})"

    @property
    def family(self) -> str:
        return self._family.name

    @property
    def device(self) -> torch.device:
        return self._parts.device

    @property
    def dtype(self) -> torch.dtype:
        return self._parts.dtype

    @property
    def pixels_per_token(self) -> int:
        return self._family.pixels_per_token

    @property
    def default_guidance(self) -> float | None:
        return self._family.default_guidance

    @property
    def transformer(self) -> torch.nn.Module:
        """The transformer itself, loaded when first asked for."""
        return self._parts.transformer

    def card(self) -> dict[str, Any]:
        """What was run, as plain JSON values."""
        import diffusers

        return {
            "model": self.name,
            "revision": self.revision,
            "family": self.family,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "versions": {"torch": str(torch.__version__), "diffusers": diffusers.__version__},
        }

    def truncate_after(self, block: int) -> None:
        """Load no blocks after this one, no output head and no VAE decoder. Without effect on a pipeline given whole.

        Raises:
            InputError: no such block.
        """
        if not 0 <= block < self.num_blocks:
            raise InputError.of("block", block, f"an index in 0..{self.num_blocks - 1} of {self.name}")
        self._parts.truncate_after(block)

    def text(self, prompts: Sequence[str]) -> dict[str, Text]:
        """Encode each distinct prompt once, alone; later calls answer from memory, later runs from disk.

        Returns:
            Prompt -> what the transformer's forward takes of it, one row each, on the CPU.

        Raises:
            InputError: a prompt that the model cannot take (DiT-XL/2 takes classes).
            ModelError: text encoders that cannot be loaded.
        """
        with self._lock:
            new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
            new = [prompt for prompt in new if not self._recalled(prompt)]
            if new and self._family.reads_text:
                log.info("encoding %d prompts", len(new))
                self._parts.use_text(lambda pipeline, device: self._encode(new, pipeline, device))
            elif new:
                self._encode(new, None, self.device)
            return {prompt: self._texts[prompt] for prompt in prompts}

    def remember(self, prompt: str, **embeddings: Any) -> None:
        """Take these embeddings wherever ``prompt`` is asked for; no text encoder is loaded for it.

        Args:
            prompt: any text, the name under which the embeddings are asked for later.
            **embeddings: of one row each, named as the arguments of the model's diffusers pipeline: what its
                ``encode_prompt`` gives, such as ``prompt_embeds=(1, T, D)`` and ``pooled_prompt_embeds=(1, D)``.

        Raises:
            InputError: a name too many or too few, or a tensor of another shape.
        """
        with self._lock:
            self._texts[prompt] = self._family.given_text(prompt, embeddings)

    def posterior(self, pixels: Tensor) -> Posterior:
        """What the VAE says about one image; run once, sampled as often as needed.

        Args:
            pixels: (1, 3, H, W) in [-1, 1], sides multiples of ``pixels_per_token``.

        Raises:
            InputError: another shape.
            ModelError: no VAE.
        """
        side = self.pixels_per_token
        if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
            raise InputError.of("pixels", tuple(pixels.shape), "shape (1, 3, H, W)")
        if not pixels.shape[2] or not pixels.shape[3] or pixels.shape[2] % side or pixels.shape[3] % side:
            raise InputError.of("pixels", tuple(pixels.shape), f"height and width multiples of {side}")
        if isinstance(self._family, Pixel):
            return Posterior(self._family.as_latent(pixels).to(self.device))
        posterior = encode(self._parts.vae, pixels, self.device)
        self._family.check_latents(posterior.location.shape[1])
        return posterior

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image of a size that the model has no positions for, before anything is loaded.

        Args:
            height, width: pixels of the prepared image, multiples of ``pixels_per_token``.

        Raises:
            InputError: naming the size and the limit.
        """
        cell = self._family.pixels_per_latent
        self._family.grid(torch.empty(1, 1, height // cell, width // cell, device="meta"))

    def encode_image(self, pixels: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """(1, C, h, w) float32 latent, shifted and scaled as the transformer expects; see :meth:`posterior`."""
        posterior = self.posterior(pixels)
        return posterior.sample(generator) if sample else posterior.mean()

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """The latent at a noise level in 0..1000.

        Flow matching: sigma = timestep / 1000 without resolution shift; DDPM: ``alphas_cumprod[round(timestep)]``.
        """
        return self._family.add_noise(latent, noise, timestep)

    def inputs(
        self, latents: Tensor, timestep: float, prompts: Sequence[str], guidance: float | None = None
    ) -> dict[str, Any]:
        """Arguments of the transformer's forward.

        Args:
            latents: (B, C, h, w) noisy latents.
            timestep: their noise level in 0..1000.
            prompts: B texts.
            guidance: distilled guidance to embed; None takes the default of models that have one.

        Raises:
            InputError: counts or sides that do not fit.
            ModelError: text encoders that cannot be loaded.
        """
        if len(prompts) != latents.shape[0]:
            raise InputError.of("prompts", len(prompts), f"one text per row of the batch ({latents.shape[0]})")
        texts = self.text(prompts)
        placed = latents.to(self.device, self.dtype)
        return self._family.inputs(placed, float(timestep), [texts[prompt] for prompt in prompts], guidance)

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """(h, w) of the tokens of latents (B, C, h', w')."""
        return self._family.grid(latents)

    def run(
        self,
        blocks: Sequence[int],
        inputs: Mapping[str, Any],
        grid: tuple[int, int],
        *,
        site: Literal["attention", "mlp"] = "attention",
        activation: Activation = "block",
        condition: Condition = "t&c",
    ) -> dict[int, BlockInput]:
        """One forward that shows these blocks and leaves at the deepest; see :func:`run_to_blocks`."""
        return run_to_blocks(
            self._parts.transformer, blocks, inputs, grid, site=site, activation=activation, condition=condition
        )

    def _recalled(self, prompt: str) -> bool:
        """Whether the encoded prompt was on disk; it is in memory now."""
        if self._text_cache is None:
            return False
        if self._family.learned is None:
            learned = self._text_cache.load(None)
            if learned is None:
                return False
            self._family.relearn(learned)
        text = self._text_cache.load(prompt)
        if text is not None:
            self._texts[prompt] = text
        return text is not None

    def _encode(self, prompts: Sequence[str], pipeline: Any, device: torch.device) -> None:
        with torch.inference_mode(False), torch.no_grad():  # cached tensors outlive the caller's mode
            for prompt in prompts:
                text = self._family.encode_prompt(pipeline, prompt, device)
                self._texts[prompt] = mapped(text, lambda value: value.detach().cpu())
                if self._text_cache is not None:
                    self._text_cache.save(prompt, self._texts[prompt])
        if self._text_cache is not None and self._family.learned:
            self._text_cache.save(None, self._family.learned)
