"""Images in, feature maps out: the one class most people need."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from .backbones import Backbone, BlockInput, backbone_from, feature, load_backbone
from .errors import InputError, ModelError
from .images import Prepared, prepare
from .presets import find_preset
from .types import ExtractConfig, FeatureMap, Fused, backend_of

if TYPE_CHECKING:
    import os

    import numpy as np
    from PIL.Image import Image

    ImageLike = Image | np.ndarray | Tensor | str | os.PathLike[str]

__all__ = ["FeatureExtractor"]

log = logging.getLogger("ditf")

Texts = str | Sequence[str] | None
"""One text for all images, or one per image."""

_LATER = {"activation": "block", "condition": "t&c", "site": "attention"}


class FeatureExtractor:
    """Dense features of images from a diffusion transformer (DiTF, arXiv 2505.18584).

    The image's latent is noised to ``timestep``, the transformer runs up to ``block`` and stops; the tokens entering
    that block are averaged over the ensemble, their massive channels zeroed, normalised and modulated with the block's
    own AdaLN shift and scale.

    Args:
        pipeline: a diffusers pipeline or :class:`ditf.backbones.Backbone` that is already loaded.
        task: which preset: "semantic", "temporal" or "geometric".
        fused: True runs the Triton kernels where they can run, False the PyTorch twins, "verify" both, compared.
        batch_images: how many same-sized images share one forward. 1 keeps every image's features bitwise independent
            of its neighbours; more is faster and agrees to about 1e-5 relative in float32.
        protocol: "ditf-code" or "ditf-paper", where the model has published values.
        **overrides: any field of :class:`ExtractConfig`, or ``longest_side=``.

    Raises:
        InputError: an unknown preset or field, or a value outside its domain.
        ModelError: something that is no diffusion transformer.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        task: str = "semantic",
        fused: Fused = True,
        batch_images: int = 1,
        protocol: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        backend_of(fused)
        if not isinstance(batch_images, int) or batch_images < 1:
            raise InputError.of("batch_images", batch_images, "an integer of at least 1")
        if not isinstance(pipeline, Backbone):
            pipeline = backbone_from(pipeline, device=device, dtype=dtype)
        self.backbone: Backbone = pipeline
        self.fused: Fused = fused
        self.batch_images = batch_images
        preset = find_preset(self.backbone.name, task, num_blocks=self.backbone.num_blocks, protocol=protocol)
        self.preset = preset
        self.config = _resolved(preset.config, overrides, self.backbone)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        task: str = "semantic",
        fused: Fused = True,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        truncate: bool = True,
        batch_images: int = 1,
        protocol: str | None = None,
        **overrides: Any,
    ) -> FeatureExtractor:
        """Load a model by hub id, local folder or the bundled ``"ditf-tiny"``.

        Only configs are read here; weights come with the first image, in stages: text encoders (freed once the
        prompts are encoded), the VAE encoder, the transformer.

        Args:
            dtype: default bfloat16 on a GPU, float32 on a CPU.
            device: default cuda, else mps, else cpu.
            revision, token, local_files_only: as in ``huggingface_hub``.
            truncate: read neither the blocks after ``block``, nor the output head, nor the VAE decoder.

        Raises:
            ModelError: unknown, gated, offline or no diffusion transformer; says what to try.
            InputError: as the constructor.
        """
        backbone = load_backbone(
            model, dtype=dtype, device=device, revision=revision, token=token, local_files_only=local_files_only
        )
        extractor = cls(
            backbone, task=task, fused=fused, batch_images=batch_images, protocol=protocol, **overrides
        )  # fmt: skip
        if truncate:
            backbone.truncate_after(extractor.config.block)
        return extractor

    def __repr__(self) -> str:
        c = self.config
        return f"FeatureExtractor({self.backbone.name}, block={c.block}, timestep={c.timestep:g}, fused={self.fused})"

    @overload
    def __call__(
        self,
        images: ImageLike,
        *,
        prompt: Texts = ...,
        category: Texts = ...,
        seed: int | None = ...,
        blocks: None = None,
    ) -> FeatureMap: ...
    @overload
    def __call__(
        self,
        images: Sequence[Any],
        *,
        prompt: Texts = ...,
        category: Texts = ...,
        seed: int | None = ...,
        blocks: None = None,
    ) -> list[FeatureMap]: ...
    @overload
    def __call__(
        self,
        images: ImageLike,
        *,
        prompt: Texts = ...,
        category: Texts = ...,
        seed: int | None = ...,
        blocks: Sequence[int],
    ) -> dict[int, FeatureMap]: ...
    @overload
    def __call__(
        self,
        images: Sequence[Any],
        *,
        prompt: Texts = ...,
        category: Texts = ...,
        seed: int | None = ...,
        blocks: Sequence[int],
    ) -> list[dict[int, FeatureMap]]: ...

    def __call__(
        self,
        images: Any,
        *,
        prompt: Texts = None,
        category: Texts = None,
        seed: int | None = None,
        blocks: Sequence[int] | None = None,
    ) -> Any:
        """Features of one image, or of many.

        Args:
            images: a PIL image, path, URL, (H, W, 3) uint8 array or (3, H, W) tensor in [0, 1]; or a list of them.
            prompt: one text for all, or one per image; default the config's template.
            category: fills ``{category}`` in the template; one for all, or one per image.
            seed: of the noise; default the config's.
            blocks: tap these blocks in one forward instead of the config's.

        Returns:
            A FeatureMap, or a dict block -> FeatureMap with ``blocks``; a list of them for a list of images.

        Raises:
            InputError: an unreadable image, a block out of range, lists of different lengths.
            ModelError: the model cannot be loaded or has no VAE.
            VerificationError: with ``fused="verify"``, a kernel and its twin disagree.
        """
        many = isinstance(images, Sequence) and not isinstance(images, str)
        sources = list(images) if many else [images]
        config = self.config if seed is None else self.config.replace(seed=seed)
        wanted = [config.block] if blocks is None else self._checked_blocks(blocks)
        prompts = self._prompts(len(sources), prompt, category)
        prepared = [prepare(source, config, self.backbone.pixels_per_token) for source in sources]
        self.backbone.text(sorted(set(prompts)))
        results: list[Any] = [None] * len(sources)
        for pack in _packs(prepared, self.batch_images):
            layers = self._features([prepared[i] for i in pack], [prompts[i] for i in pack], wanted, config)
            for position, i in enumerate(pack):
                maps = {block: layers[block][position] for block in wanted}
                results[i] = maps if blocks is not None else maps[config.block]
        return results if many else results[0]

    def _features(
        self, images: list[Prepared], prompts: list[str], blocks: list[int], config: ExtractConfig
    ) -> dict[int, list[FeatureMap]]:
        """Block -> one FeatureMap per image, all in one forward; halves when memory runs out."""
        try:
            return self._forward(images, prompts, blocks, config)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
            half = len(images) // 2
            log.warning("out of memory with %d images in one forward; trying %d", len(images), half)
        first = self._features(images[:half], prompts[:half], blocks, config)
        second = self._features(images[half:], prompts[half:], blocks, config)
        return {block: first[block] + second[block] for block in blocks}

    @torch.no_grad()
    def _forward(
        self, images: list[Prepared], prompts: list[str], blocks: list[int], config: ExtractConfig
    ) -> dict[int, list[FeatureMap]]:
        latents = torch.cat([self._noised_latents(image, config) for image in images])  # (B*E, C, h, w)
        rows = [prompt for prompt in prompts for _ in range(config.ensemble)]
        inputs = self.backbone.inputs(latents, config.timestep, rows, config.guidance)
        grid = self.backbone.grid(latents)
        taps = self.backbone.run(blocks, inputs, grid)
        return {block: self._maps(taps[block], block, images, prompts, grid, config) for block in blocks}

    def _noised_latents(self, image: Prepared, config: ExtractConfig) -> Tensor:
        """(E, C, h, w) float32 on the model's device: the image's latent at the config's noise level."""
        posterior = self.backbone.posterior(image.tensor)
        members = []
        for member in range(config.ensemble):
            generator = noise_generator(image, config, member)
            latent = posterior.sample(generator) if config.latent == "sample" else posterior.mean()
            noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device)
            members.append(self.backbone.add_noise(latent, noise, config.timestep))
        return torch.cat(members)

    def _maps(
        self,
        tap: BlockInput,
        block: int,
        images: list[Prepared],
        prompts: list[str],
        grid: tuple[int, int],
        config: ExtractConfig,
    ) -> list[FeatureMap]:
        backend = backend_of(self.fused)
        tokens, inverse_norm = feature(  # (B, N, D), (B, N)
            tap,
            ensemble=config.ensemble,
            discard=() if isinstance(config.discard, str) else config.discard,
            discard_at=config.discard_at,
            topk_per_token=config.topk_per_token,
            normalization=config.normalization,
            backend=backend,
        )
        _check_finite(tokens, tap, self.backbone.dtype)
        return [
            FeatureMap(
                tokens=tokens[i],
                inverse_norm=inverse_norm[i],
                grid=grid,
                image_size=image.image_size,
                canvas=image.canvas,
                offset=image.offset,
                block=block,
                timestep=float(config.timestep),
                card=self._card(prompts[i], block, config),
                backend=backend,
            )
            for i, image in enumerate(images)
        ]

    def _card(self, prompt: str, block: int, config: ExtractConfig) -> dict[str, Any]:
        values = dataclasses.asdict(config) | {"block": block, "prompt": prompt}
        return {**self.backbone.card(), "config": values, "fused": self.fused}

    def _checked_blocks(self, blocks: Sequence[int]) -> list[int]:
        wanted = [int(block) for block in blocks]
        if not wanted or len(set(wanted)) != len(wanted):
            raise InputError.of("blocks", list(blocks), "distinct block indices, at least one")
        for block in wanted:
            if not 0 <= block < self.backbone.num_blocks:
                raise InputError.of("blocks", block, f"indices in 0..{self.backbone.num_blocks - 1}")
        return wanted

    def _prompts(self, count: int, prompt: Any, category: Any) -> list[str]:
        templates = _per_image("prompt", self.config.prompt if prompt is None else prompt, count)
        categories = _per_image("category", "object" if category is None else category, count)
        return [t.replace("{category}", c) for t, c in zip(templates, categories, strict=True)]


def noise_generator(image: Prepared, config: ExtractConfig, member: int) -> torch.Generator:
    """CPU generator of one ensemble member's noise, seeded by SHA-256 of seed, timestep, member and the pixels.

    The same image and seed give the same noise on every device and in any batch; two images give independent noise
    (shared noise is matched on) unless ``config.shared_noise``.
    """
    digest = hashlib.sha256(f"{config.seed}|{float(config.timestep)!r}|{member}|{image.pixels.shape}".encode())
    if not config.shared_noise:
        digest.update(image.pixels.tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "big") >> 1)


def _resolved(config: ExtractConfig, overrides: dict[str, Any], backbone: Backbone) -> ExtractConfig:
    """The preset with overrides, checked against the model; ``discard`` becomes channels or "none"."""
    preset_discard = config.discard
    config = config.replace(**overrides)
    if config.discard == "preset":
        config = config.replace(discard=preset_discard)
    if config.discard == "auto":
        raise InputError('discard: "auto" needs the detection of massive channels, which this version does not have; '
                         'give channel indices, "preset" or "none"')  # fmt: skip
    for name, available in _LATER.items():
        if getattr(config, name) != available:
            raise InputError.of(name, getattr(config, name), f'"{available}", the only one this version has')
    if config.block >= backbone.num_blocks:
        raise InputError.of("block", config.block, f"an index in 0..{backbone.num_blocks - 1} of {backbone.name}")
    if config.guidance is None and backbone.default_guidance is not None:
        config = config.replace(guidance=backbone.default_guidance)
    return config


def _per_image(name: str, value: Any, count: int) -> list[str]:
    values = [value] * count if isinstance(value, str) else list(value)
    if len(values) != count or not all(isinstance(v, str) for v in values):
        raise InputError.of(name, value, f"one text, or one per image ({count})")
    return values


def _packs(images: list[Prepared], size: int) -> Iterator[list[int]]:
    """Positions of same-sized images, at most ``size`` together, in first-seen order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.pixels.shape, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _check_finite(tokens: Tensor, tap: BlockInput, dtype: torch.dtype) -> None:
    if bool(torch.isfinite(tokens).all()):
        return
    if not bool(torch.isfinite(tap.tokens).all()):
        raise ModelError(
            f"the model's own activations are not finite in {dtype}; massive activations overflow float16: "
            "load with dtype=torch.bfloat16 or torch.float32"
        )
    channel = int((~torch.isfinite(tokens)).flatten(0, -2).any(0).nonzero()[0])
    largest = float(tap.tokens[..., channel].abs().max())
    raise ModelError(
        f"feature channel {channel} (|x| up to {largest:g}) overflows {tokens.dtype}; "
        f"discard it (discard=({channel},)) or run on the CPU in float32"
    )
