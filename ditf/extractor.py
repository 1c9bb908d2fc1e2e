"""Images in, feature maps out: the one class most people need."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels import use_backend
from ditf_kernels.backend import resolve

from .backbones import Backbone, BlockInput, backbone_from, feature, load_backbone
from .calibration import CALIBRATION_PROMPT, calibration_card
from .errors import InputError, ModelError, kernel_errors
from .fusing import fuse
from .images import Prepared, prepare
from .massive import calibrated_channels
from .presets import Preset, find_preset, load_preset
from .types import ExtractConfig, FeatureMap, Fused, backend_of

if TYPE_CHECKING:
    import os

    import numpy as np
    from PIL.Image import Image

    ImageLike = Image | np.ndarray | Tensor | str | os.PathLike[str]

__all__ = ["FeatureExtractor", "TappedImage"]

log = logging.getLogger("ditf")

Texts = str | Sequence[str] | None
"""One text for all images, or one per image."""

_AFTER_THE_FORWARD = ("block", "discard", "discard_at", "topk_per_token", "normalization", "ensemble")
"""Settings that the forward does not depend on; a smaller ensemble is part of a larger one."""


@dataclass(frozen=True, eq=False)
class TappedImage:
    """Tokens of one image entering some blocks, from one forward.

    Attributes:
        image: as the model saw it.
        prompt: as the model read it.
        grid: (h, w) of the tokens.
        taps: block -> what entered it, one row per ensemble member.
        config: at which it was run.
    """

    image: Prepared
    prompt: str
    grid: tuple[int, int]
    taps: Mapping[int, BlockInput]
    config: ExtractConfig


class FeatureExtractor:
    """Dense features of images from a diffusion transformer (DiTF, arXiv 2505.18584).

    The image's latent is noised to ``timestep``, the transformer runs up to ``block`` and stops; the tokens entering
    that block are averaged over the ensemble, their massive channels zeroed, normalised and modulated with the block's
    own AdaLN shift and scale.

    Args:
        pipeline: a diffusers pipeline or :class:`ditf.backbones.Backbone` that is already loaded.
        task: which preset: "semantic", "temporal" or "geometric".
        fused: True runs the Triton kernels where they can run, False the PyTorch twins, "verify" both, compared. Where
            Triton runs, the blocks before the tapped one are fused too, and stay so: see :func:`ditf.fuse`.
        batch_images: how many same-sized images share one forward. 1 keeps every image's features bitwise independent
            of its neighbours; more is faster and agrees to about 1e-5 relative in float32.
        protocol: "ditf-code" or "ditf-paper", where the model has published values.
        preset: a file that ``ditf sweep`` wrote for this model, in place of ``task``'s preset.
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
        preset: str | os.PathLike[str] | None = None,
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
        self.preset: Preset = _preset(self.backbone, task, protocol, preset)
        self.config = _resolved(self.preset.config, overrides, self.backbone)
        self._fused: tuple[torch.nn.Module, int] | None = None  # the transformer, and before which block

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
        preset: str | os.PathLike[str] | None = None,
        prompt_cache: bool | str | os.PathLike[str] = True,
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
            prompt_cache: keep encoded prompts on disk, so that the next run loads no text encoder for them: True for
                ``$DITF_CACHE/prompts`` or ``~/.cache/ditf/prompts``, or a folder; False, or an empty ``DITF_CACHE``,
                keeps none.

        Raises:
            ModelError: unknown, gated, offline or no diffusion transformer; says what to try.
            InputError: as the constructor.
        """
        backbone = load_backbone(
            model, dtype=dtype, device=device, revision=revision, token=token, local_files_only=local_files_only,
            prompt_cache=prompt_cache,
        )  # fmt: skip
        extractor = cls(
            backbone, task=task, fused=fused, batch_images=batch_images, protocol=protocol, preset=preset, **overrides
        )  # fmt: skip
        if truncate:
            backbone.truncate_after(extractor.config.block)
        return extractor

    def __repr__(self) -> str:
        c = self.config
        return f"FeatureExtractor({self.backbone.name}, block={c.block}, timestep={c.timestep:g}, fused={self.fused})"

    def replace(self, **overrides: Any) -> FeatureExtractor:
        """The same loaded model with other settings: any field of :class:`ExtractConfig`, or ``longest_side=``.

        Raises:
            InputError: an unknown field or a value outside its domain.
        """
        if overrides.get("discard") == "preset":
            overrides["discard"] = self.preset.config.discard
        other = copy.copy(self)
        other.config = _resolved(self.config, overrides, self.backbone)
        return other

    @overload
    def __call__(
        self,
        images: ImageLike,
        *,
        prompt: Texts = ...,
        category: Texts = ...,
        seed: int | None = ...,
        blocks: None = None,
        timesteps: Sequence[float] | None = ...,
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
        timesteps: Sequence[float] | None = ...,
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
        timesteps: Sequence[float] | None = ...,
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
        timesteps: Sequence[float] | None = ...,
    ) -> list[dict[int, FeatureMap]]: ...

    def __call__(
        self,
        images: Any,
        *,
        prompt: Texts = None,
        category: Texts = None,
        seed: int | None = None,
        blocks: Sequence[int] | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> Any:
        """Features of one image, or of many.

        Args:
            images: a PIL image, path, URL, (H, W, 3) uint8 array or (3, H, W) tensor in [0, 1]; or a list of them.
            prompt: one text for all, or one per image; default the config's template.
            category: fills ``{category}`` in the template; one for all, or one per image.
            seed: of the noise; default the config's.
            blocks: tap these blocks in one forward instead of the config's.
            timesteps: the mean over these noise levels instead of the config's one. At each, the features are made
                with that level's own shift and scale and brought to unit length, so that all levels count alike.

        Returns:
            A FeatureMap, or a dict block -> FeatureMap with ``blocks``; a list of them for a list of images.

        Raises:
            InputError: an unreadable image, a size that the model has no positions for, a block out of range, lists of
                different lengths, several timesteps with ``normalization="none"``.
            ModelError: the model cannot be loaded or has no VAE.
            VerificationError: with ``fused="verify"``, a kernel and its twin disagree.
        """
        many = isinstance(images, Sequence) and not isinstance(images, str)
        sources = list(images) if many else [images]
        config = self.config if seed is None else self.config.replace(seed=seed)
        levels = [config] if timesteps is None else _at_timesteps(config, timesteps)
        wanted = [config.block] if blocks is None else self._checked_blocks(blocks)
        prompts = self._prompts(len(sources), prompt, category)
        prepared = [prepare(source, config, self.backbone.pixels_per_token) for source in sources]
        for image in prepared:
            self.backbone.check_size(*image.tensor.shape[-2:])
        auto = config.discard == "auto"
        self.backbone.text(sorted({*prompts, CALIBRATION_PROMPT} if auto else set(prompts)))
        for level in levels if auto else ():
            calibrated_channels(self, wanted, level.timestep)
        results: list[Any] = [None] * len(sources)
        for pack in _packs(prepared, self.batch_images):
            pixels, texts = [prepared[i] for i in pack], [prompts[i] for i in pack]
            layers = [self._features(pixels, texts, wanted, level) for level in levels]
            for position, i in enumerate(pack):
                found = {block: [layer[block][position] for layer in layers] for block in wanted}
                maps = {block: one[0] if timesteps is None else _mean(one) for block, one in found.items()}
                results[i] = maps if blocks is not None else maps[config.block]
        return results if many else results[0]

    def tap_image(
        self, image: ImageLike, *, blocks: Sequence[int], prompt: str | None = None, category: str | None = None
    ) -> TappedImage:
        """One forward of one image, kept as tokens: :meth:`features_of` makes features of many settings from it.

        Args:
            image, prompt, category: as in a call.
            blocks: taken in this one forward.

        Raises:
            InputError, ModelError: as a call.
        """
        wanted = self._checked_blocks(blocks)
        prompts = self._prompts(1, prompt, category)
        prepared = prepare(image, self.config, self.backbone.pixels_per_token)
        self.backbone.text(prompts)
        taps, grid = self._tapped([prepared], prompts, wanted, self.config)
        return TappedImage(prepared, prompts[0], grid, taps, self.config)

    def features_of(self, tapped: TappedImage, block: int) -> FeatureMap:
        """Features of a tapped image at this extractor's discard, normalization and ensemble, without a forward.

        A smaller ensemble is the first members of the tapped one.

        Args:
            tapped: by an extractor of the same model that differs in ``block``, ``discard``, ``discard_at``,
                ``topk_per_token``, ``normalization`` and ``ensemble`` at most.
            block: one that was tapped.

        Raises:
            InputError: settings that ask for another forward.
            VerificationError: with ``fused="verify"``, a kernel and its twin disagree.
        """
        config = self.config.replace(block=block)
        kept = {name: getattr(config, name) for name in _AFTER_THE_FORWARD}
        if block not in tapped.taps or tapped.config.replace(**kept) != config:
            raise InputError.of("tapped", tapped.config, f"block {block}, tapped at {config}")
        if config.ensemble > tapped.config.ensemble:
            raise InputError.of("ensemble", config.ensemble, f"at most the {tapped.config.ensemble} that were tapped")
        members = _first_members(tapped.taps[block], config.ensemble)
        return self._maps(members, block, [tapped.image], [tapped.prompt], tapped.grid, config)[0]

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
        taps, grid = self._tapped(images, prompts, blocks, config)
        return {block: self._maps(taps[block], block, images, prompts, grid, config) for block in blocks}

    @torch.no_grad()
    def _tapped(
        self, images: list[Prepared], prompts: list[str], blocks: list[int], config: ExtractConfig
    ) -> tuple[dict[int, BlockInput], tuple[int, int]]:
        """What enters the blocks, rows b*E + e, in one forward; and the grid of the tokens."""
        latents = torch.cat([self._noised_latents(image, config) for image in images])  # (B*E, C, h, w)
        rows = [prompt for prompt in prompts for _ in range(config.ensemble)]
        inputs = self.backbone.inputs(latents, config.timestep, rows, config.guidance)
        grid = self.backbone.grid(latents)
        with self._kernels(max(blocks)):
            taps = self.backbone.run(
                blocks, inputs, grid, site=config.site, activation=config.activation, condition=config.condition
            )
        return taps, grid

    @contextlib.contextmanager
    def _kernels(self, deepest: int) -> Iterator[None]:
        """The backend that ``fused`` asks for; where it runs Triton, the blocks before the deepest are fused."""
        asked = backend_of(self.fused)
        with kernel_errors():
            runs_triton = resolve(asked, self.backbone.device.type) != "torch"
        if runs_triton:
            transformer = self.backbone.transformer
            if self._fused is None or self._fused[0] is not transformer or self._fused[1] < deepest:
                fuse(transformer, before=deepest)
                self._fused = transformer, deepest
        with use_backend(asked) if asked else contextlib.nullcontext():
            yield

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

    @torch.no_grad()
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
            discard=self._discarded(block, config),
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
        card = {**self.backbone.card(), "config": values, "fused": self.fused}
        if config.discard == "auto":
            values["discard"] = self._discarded(block, config)
            card["discard_found_on"] = calibration_card()
        return card

    def _discarded(self, block: int, config: ExtractConfig) -> tuple[int, ...]:
        """Channels to zero; for "auto" those found before the first forward."""
        if config.discard == "auto":
            return calibrated_channels(self, [block], config.timestep)[block]
        return () if isinstance(config.discard, str) else config.discard

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


def _preset(backbone: Backbone, task: str, protocol: str | None, file: str | os.PathLike[str] | None) -> Preset:
    if file is None:
        return find_preset(backbone.name, task, num_blocks=backbone.num_blocks, protocol=protocol)
    if protocol is not None:
        raise InputError("preset: got protocol= as well; give one of the two")
    return load_preset(file, backbone.name, num_blocks=backbone.num_blocks, revision=backbone.revision)


def _resolved(config: ExtractConfig, overrides: dict[str, Any], backbone: Backbone) -> ExtractConfig:
    """The preset with overrides, checked against the model; ``discard`` becomes channels, "auto" or "none"."""
    preset_discard = config.discard
    config = config.replace(**overrides)
    if config.discard == "preset":
        config = config.replace(discard=preset_discard)
    if config.block >= backbone.num_blocks:
        raise InputError.of("block", config.block, f"an index in 0..{backbone.num_blocks - 1} of {backbone.name}")
    if config.guidance is None and backbone.default_guidance is not None:
        config = config.replace(guidance=backbone.default_guidance)
    return config


def _at_timesteps(config: ExtractConfig, timesteps: Sequence[float]) -> list[ExtractConfig]:
    levels = list(timesteps)
    if not levels or len(set(levels)) != len(levels):
        raise InputError.of("timesteps", levels, "distinct noise levels in 0..1000, at least one")
    if config.normalization == "none":
        raise InputError.of(
            "timesteps", levels, 'normalization="adaln" or "layernorm": raw tokens of several timesteps have no common '
            "scale"
        )  # fmt: skip
    return [config.replace(timestep=level) for level in levels]


def _mean(maps: Sequence[FeatureMap]) -> FeatureMap:
    """The mean of one image's features at several timesteps, every token brought to unit length first."""
    first = maps[0]
    total = torch.zeros_like(first.tokens, dtype=torch.float32)
    for one in maps:
        total += F.normalize(one.tokens.float(), dim=-1, eps=1e-12)
    mean = total / len(maps)
    values = {**first.card["config"], "timestep": [one.timestep for one in maps]}
    if "discard_found_on" in first.card:  # found at each timestep
        values["discard"] = [one.card["config"]["discard"] for one in maps]
    return dataclasses.replace(
        first,
        tokens=mean.to(first.tokens.dtype),
        inverse_norm=mean.norm(dim=-1).clamp_min(1e-12).reciprocal(),
        timestep=None,
        card={**first.card, "config": values},
    )


def _first_members(tap: BlockInput, count: int) -> BlockInput:
    """The first rows of one image's ensemble."""
    shift, scale = (v if v is None or len(v) == 1 else v[:count] for v in (tap.shift, tap.scale))
    return dataclasses.replace(tap, tokens=tap.tokens[:count], shift=shift, scale=scale)


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
