"""From a model's name and an image's size to a plan."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.families import Pixel, Recorded
from ..backbones.loading import _looks_like_path, load_backbone
from ..backbones.parts import CheckpointParts
from ..backbones.source import BUNDLED, Files
from ..backbones.weights import drop_after, drop_decoder
from ..errors import InputError, ModelError
from ..images import _rounded, _sides
from ..presets import find_preset
from ..types import ExtractConfig
from .gpus import gpu_named
from .recorded import count_recorded
from .shipped import Shipped, shipped_configs
from .stages import Counted, count_encoder, count_forward, count_vae, text_lengths, text_row
from .types import Part, Plan, Stage
from .verdict import judged
from .weights import as_loaded, denoising_part, encoder_part, hollow, hollow_encoder, model_class

__all__ = ["plan_extraction"]


def plan_extraction(
    model: str,
    *,
    image: Sequence[int] = (1024, 1024),
    task: str = "semantic",
    gpu: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    truncate: bool = True,
    **overrides: Any,
) -> Plan:
    """What ``FeatureExtractor.from_pretrained(model)(image)`` reads, holds and computes; no weight is read for it.

    *Weights*: the models are built without memory, truncated by the functions that loading uses, and their tensors
    looked up in the headers of the checkpoint's files; where those are not on this machine, sizes follow from the
    configs.

    *Activations*: each stage runs on tensors that have shapes and no memory. A tensor counts from the operator that
    makes it until the model's code lets go of it; the greatest sum is the stage's. Attention counts as the fused
    kernels run it, without an N x N matrix, except in models that write it out themselves. In a block the widest
    moment is mostly the MLP: its hidden tokens before and after the activation, 2 * 4 * D numbers a token, beside the
    residual stream. Workspaces of kernels and the gaps of an allocator are not in it. On a CPU, forwards of FLUX and
    SD3 models in float32 peaked within 1% of it, and a VAE's encoder within 2%, where freed memory went back to the
    system at once; under glibc's own reuse of freed memory the forwards peaked at 1.5 to 1.7 times it
    (tests/test_plan.py repeats the former). On a GPU it was not measured.

    *FLOPs* are counted in the same run: matrix products, convolutions and attention, text at its greatest length.

    Args:
        model: hub id, local folder, or "ditf-tiny". Configs of some hub checkpoints come with ditf and are used
            where neither the hub nor its cache has them.
        image: (H, W) of the image before it is resized as the preset says.
        task: which preset gives the block, the size and the ensemble.
        gpu: one of :data:`ditf.plan.GPUS`: adds lower bounds on time from its data sheet, and whether it fits.
        dtype: of the transformer and the text encoders; bfloat16 as on a GPU, float32 as on a CPU.
        revision, token, local_files_only: as in ``huggingface_hub``.
        truncate: False plans for loading all blocks and the VAE's decoder.
        **overrides: any field of :class:`ditf.ExtractConfig`; ``block``, ``size``, ``resize``, ``multiple`` and
            ``ensemble`` matter.

    Raises:
        InputError: an unknown card, task or field, a block out of range, a size of no pixels.
        ModelError: a model that is not at hand and whose configs do not come with ditf, or no diffusion transformer.
    """
    card = None if gpu is None else gpu_named(gpu)
    size = _checked_image(image)
    with _opened(model, dtype, revision, token, local_files_only) as opened:
        backbone = opened.backbone
        preset = find_preset(model, task, num_blocks=backbone.num_blocks)
        config = preset.config.replace(**overrides)
        if config.block >= backbone.num_blocks:
            raise InputError.of("block", config.block, f"an index in 0..{backbone.num_blocks - 1} of {model}")
        return _Planning(opened, config, size, truncate).plan(model, card)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A checkpoint whose configs were read."""

    backbone: Backbone
    configs_from: str
    shipped: Shipped | None

    @property
    def parts(self) -> CheckpointParts:
        parts = self.backbone._parts
        if not isinstance(parts, CheckpointParts):
            raise AssertionError("load_backbone gives these")
        return parts

    def config_of(self, part: str) -> Mapping[str, Any] | None:
        """A part's config.json, or None where it is not at hand."""
        try:
            return self.parts.files.json(f"{part}/config.json")
        except ModelError:
            if self.parts.files.folder is not None and self.shipped is None:
                raise
        return None if self.shipped is None else self.shipped.parts.get(part)

    def stored(self, part: str, config: Mapping[str, Any]) -> str | None:
        """The dtype of a part on disk, where its files are not here and something says so."""
        known = None if self.shipped is None else self.shipped.stored.get(part)
        said = known or config.get("dtype") or config.get("torch_dtype")
        return said if said in ("float32", "bfloat16", "float16") else None


@contextlib.contextmanager
def _opened(
    model: str, dtype: torch.dtype, revision: str | None, token: str | bool | None, local_files_only: bool
) -> Iterator[_Opened]:
    shipped = shipped_configs().get(model.lower())
    folder = Files(model).folder
    try:
        backbone = load_backbone(
            model, dtype=dtype, device="cpu", revision=revision, token=token, local_files_only=local_files_only
        )
    except ModelError as error:
        if folder is not None or _looks_like_path(model):
            raise
        if shipped is None:
            known = ", ".join(one.model for one in shipped_configs().values())
            raise ModelError(f"{error}. Without the hub, ditf knows the configs of {known}") from None
        logging.getLogger("ditf").info("%s; using the configs that come with ditf", error)
    else:
        where = (
            "the bundled model" if model in BUNDLED else "the folder" if folder is not None else "the hub or its cache"
        )
        yield _Opened(backbone, where, shipped if folder is None else None)
        return
    with shipped.as_folder() as configs:
        backbone = load_backbone(str(configs), dtype=dtype, device="cpu")
        yield _Opened(backbone, "ditf's own copy (neither the hub nor its cache has them at hand)", shipped)


@dataclass(frozen=True, eq=False)
class _Planning:
    """One plan in the making.

    Attributes:
        image: (H, W).
    """

    opened: _Opened
    config: ExtractConfig
    image: tuple[int, int]
    truncate: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.opened.backbone.dtype

    def plan(self, model: str, card: Any) -> Plan:
        backbone, family = self.opened.backbone, self.opened.backbone._family
        size = _model_size(self.image, self.config, backbone.pixels_per_token)
        latents = tuple(side // family.pixels_per_latent for side in size)
        rows = (self.config.ensemble, family.latent_channels, *latents)
        grid = family.grid(torch.empty(rows, device="meta"))
        notes: list[str] = []
        encoders = self._encoders(notes)
        encoded, length = text_lengths(family, _pipeline_class(self.opened), [model for _, model in encoders])
        text_parts = [part for part, _ in encoders]
        vae = self._denoiser("vae", torch.float32, drop_decoder) if "vae" in self.opened.parts.classes else None
        drop = drop_after(self.config.block)
        transformer = self._denoiser("transformer", self.dtype, drop)
        parts = [*text_parts, *([vae.part] if vae else []), transformer.part]

        stages = []
        if encoders:
            stages.append(_text_stage(text_parts, [count_encoder(m, encoded) for _, m in encoders], self.dtype))
        if vae:
            stages.append(_stage("encode image", [vae.part], vae.part, count_vae(vae.kept, size), torch.float32))
        counted = self._forward(transformer, rows, length)
        resident = [vae.part, transformer.part] if vae else [transformer.part]
        stages.append(_stage("transformer forward", resident, transformer.part, counted, self.dtype))
        channels = counted.channels
        half = self.dtype != torch.float32
        plan = Plan(
            model=model,
            configs_from=self.opened.configs_from,
            family=backbone.family,
            block=self.config.block,
            num_blocks=backbone.num_blocks,
            dtype=_name(self.dtype),
            image_size=self.image,
            model_size=size,
            grid=grid,
            text_tokens=length,
            ensemble=self.config.ensemble,
            parts=tuple(parts),
            stages=tuple(stages),
            feature_channels=channels,
            features_bytes=None if channels is None else grid[0] * grid[1] * channels * (2 if half else 4),
            flops_whole=counted.whole_flops,
            fit=None,
            notes=(),
        )
        return replace(plan, fit=None if card is None else judged(plan, card), notes=(*notes, *_notes(plan)))

    def _denoiser(self, name: str, dtype: torch.dtype, drop: Any) -> _Denoiser:
        parts = self.opened.parts
        cls, config = parts.classes[name], parts.configs[name]
        quantised = "quantization_config" in config
        whole = as_loaded(hollow(cls, config, dtype), dtype)
        kept = as_loaded(hollow(cls, config, dtype), dtype, drop if self.truncate else None)
        part = denoising_part(
            name,
            whole,
            kept,
            parts.files,
            parts.folders[name],
            quantised=quantised,
            assumed=self.opened.stored(name, config),
        )
        return _Denoiser(part, whole, kept)

    def _encoders(self, notes: list[str]) -> list[tuple[Part, nn.Module]]:
        """Every model that is loaded to encode a prompt, and nothing else."""
        parts, backbone = self.opened.parts, self.opened.backbone
        if isinstance(backbone._family, Pixel) or not backbone._family.reads_text:
            return []
        found = []
        for name, entry in backbone._family.index.items():
            if not isinstance(entry, list) or name in (*parts.classes, *parts.absent) or entry[-1] is None:
                continue
            if (cls := model_class(entry)) is None:
                continue
            config = self.opened.config_of(name)
            if config is None:
                notes.append(f"{name}: its config is not at hand, so it is not counted; allow the hub")
                continue
            model = hollow_encoder(cls, config, self.dtype)
            assumed = self.opened.stored(name, config)
            found.append((encoder_part(name, model, parts.files, name, assumed=assumed), model))
        return found

    def _forward(self, transformer: _Denoiser, rows: tuple[int, ...], length: int) -> Counted:
        family = self.opened.backbone._family
        if not isinstance(family, Recorded):
            row = text_row(family, length)
            return count_forward(family, transformer.kept, transformer.whole, self.config.block, rows, self.dtype, row)
        return count_recorded(self.opened.parts, family, transformer.kept, transformer.whole, self.config.block, rows)


@dataclass(frozen=True, eq=False)
class _Denoiser:
    """A part, all of it and what loading leaves of it, both empty."""

    part: Part
    whole: nn.Module
    kept: nn.Module


def _text_stage(parts: Sequence[Part], counted: Sequence[Counted], dtype: torch.dtype) -> Stage:
    """Encoders are loaded together and run one after the other."""
    flops = [one.flops for one in counted]
    peaks = [one.activation_bytes for one in counted]
    known = [one for one in flops if one is not None]
    weights = sum(part.bytes_resident for part in parts)
    return Stage(
        "encode text",
        weights,
        weights,
        max((peak for peak in peaks if peak is not None), default=None),
        sum(known) if len(known) == len(flops) else None,
        _name(dtype),
        "; ".join(dict.fromkeys(one.note for one in counted)),
    )


def _stage(name: str, resident: Sequence[Part], run: Part, counted: Counted, dtype: torch.dtype) -> Stage:
    weights = sum(part.bytes_resident for part in resident)
    return Stage(
        name, weights, run.bytes_resident, counted.activation_bytes, counted.flops, _name(dtype), counted.note
    )  # fmt: skip


def _notes(plan: Plan) -> Iterator[str]:
    if plan.text_tokens:
        yield (
            f"texts count at their greatest length, {plan.text_tokens} tokens; in models that do not pad, short ones "
            "cost less"
        )
    if any(part.stored_from == "assumed" for part in plan.parts):
        yield (
            f"no weight files are on this machine: where nothing says their dtype on disk, {plan.dtype} was assumed "
            "(float32 for the VAE)"
        )


def _pipeline_class(opened: _Opened) -> type[Any]:
    import diffusers

    return getattr(diffusers, opened.backbone._family.index.get("_class_name", ""), object)


def _model_size(image: tuple[int, int], config: ExtractConfig, pixels_per_token: int) -> tuple[int, int]:
    """(H, W) that the model sees, by the rule of :func:`ditf.images.prepare`."""
    multiple = config.multiple or pixels_per_token
    if multiple % pixels_per_token:
        raise InputError.of("multiple", multiple, f"a multiple of {pixels_per_token}, the model's pixels per token")
    height, width = image if config.resize != "pad" else (max(image),) * 2
    blank = Image.new("L", (width, height))
    sides = [_rounded(side, multiple, config.rounding) for side in _sides(blank, config)]
    return sides[0], sides[1]


def _checked_image(image: Sequence[int]) -> tuple[int, int]:
    sides = tuple(image) if isinstance(image, Sequence) and not isinstance(image, str) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= 32768 for side in sides):
        raise InputError.of("image", image, "(height, width) in pixels, each in 1..32768")
    return sides[0], sides[1]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
