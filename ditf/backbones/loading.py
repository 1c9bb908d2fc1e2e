"""Where a backbone comes from: the bundled model, a folder, the hub, or something already loaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, ModelError
from .architectures import ARCHITECTURES
from .backbone import Backbone
from .families import FAMILIES, Family, Pixel, Recorded
from .latents import space_of
from .parts import CheckpointParts, GivenParts, Parts
from .source import BUNDLED, Files
from .stacks import block_count, block_sites, unwrap
from .text_cache import TextCache, cache_folder
from .weights import empty

__all__ = ["backbone_from", "load_backbone"]


def load_backbone(
    source: str,
    *,
    block: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    truncate: bool = True,
    prompt_cache: bool | str | os.PathLike[str] = True,
) -> Backbone:
    """Open a checkpoint; only configs are read now, weights when they are needed.

    Args:
        source: hub id, local folder of a diffusers pipeline, folder of a pixel-space model (``ditf.json`` beside
            ``config.json``), or "ditf-tiny".
        block: the deepest block that will be asked for; with ``truncate``, nothing after it is loaded. May be said
            later, by ``truncate_after``.
        dtype: of the transformer and the text encoders; default bfloat16 on a GPU, float32 on a CPU. The VAE is
            always float32.
        device: default cuda, else mps, else cpu.
        revision, token, local_files_only: as in ``huggingface_hub``.
        prompt_cache: keep encoded prompts on disk, so that another run needs no text encoder for them: in this folder,
            or True for the usual one (see :func:`ditf.backbones.text_cache.cache_folder`); False keeps none.

    Raises:
        ModelError: unknown, gated, offline or incomplete; or no diffusion transformer that ditf can feed.
        InputError: a block out of range, or a device, dtype or cache folder that cannot be used.
    """
    where, kept_in = _device(device), cache_folder(prompt_cache)
    kind = _dtype(dtype, where)
    files = Files(str(source), revision, token, local_files_only)
    folder = files.folder
    if folder is None and _looks_like_path(files.source):
        raise ModelError(f'{source}: no such folder; give a diffusers pipeline folder, a hub id or "ditf-tiny"')
    if folder is not None and (folder / "ditf.json").is_file():
        backbone = _pixel_model(files, where, kind)
    else:
        if folder is not None and not (folder / "model_index.json").is_file():
            raise ModelError(_no_pipeline(folder))
        backbone = _pipeline(files, where, kind, kept_in)
    if block is not None:
        if not 0 <= block < backbone.num_blocks:
            raise InputError.of("block", block, f"an index in 0..{backbone.num_blocks - 1} of {source}")
        if truncate:
            backbone.truncate_after(block)
    return backbone


def backbone_from(
    pipeline: Any, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Backbone:
    """A backbone on a diffusers pipeline, or a transformer alone, that is already loaded.

    Args:
        device, dtype: move it there; None leaves it as it is (offloading hooks included).

    Raises:
        ModelError: no diffusion transformer that ditf can feed.
    """
    bare = isinstance(pipeline, nn.Module)
    transformer = pipeline if bare else getattr(pipeline, "transformer", None)
    if not isinstance(transformer, nn.Module):
        unet = getattr(pipeline, "unet", None)
        found = type(pipeline).__name__ if unet is None else f"{type(pipeline).__name__} ({type(unet).__name__})"
        raise ModelError(_no_transformer(found, is_unet=unet is not None))
    core = unwrap(transformer)
    name = next((c.__name__ for c in type(core).__mro__ if c.__name__ in FAMILIES), None)
    if name is None and bare:
        raise ModelError(
            f"{type(core).__name__}: ditf prepares inputs for {_known()}; for another transformer give its whole "
            "pipeline, or prepare them yourself and call ditf.tap"
        )
    if device is not None or dtype is not None:
        pipeline.to(**{k: v for k, v in {"device": device, "dtype": dtype}.items() if v is not None})
    parts = GivenParts(transformer, None if bare else pipeline)
    index = {} if bare else {**pipeline.config, "_class_name": type(pipeline).__name__}
    if labels := getattr(pipeline, "labels", None):
        index["labels"] = labels
    vae = None if bare else getattr(pipeline, "vae", None)
    config: Any = core.config
    family = _family(
        name or type(core).__name__,
        dict(config),
        {} if vae is None else vae.config,
        None if bare else getattr(pipeline, "scheduler", None),
        index,
        parts,
        type(pipeline),
    )
    called = getattr(pipeline, "name_or_path", "") or getattr(config, "_name_or_path", "") or type(core).__name__
    return Backbone(called, None, family, parts, len(block_sites(core)))


def _pipeline(files: Files, device: torch.device, dtype: torch.dtype, kept_in: Path | None) -> Backbone:
    import diffusers

    index = _index(files)
    named = {part: value[1] for part, value in index.items() if isinstance(value, list) and value[-1] is not None}
    kind = index.get("_class_name", "a pipeline")
    if "transformer" not in named:
        unet = named.get("unet")
        found = f"{files.source}: {kind}" + (f" ({unet})" if unet else "")
        raise ModelError(_no_transformer(found, is_unet=unet is not None))
    revision = _commit(files)
    pinned = Files(files.source, revision or files.revision, files.token, files.local_files_only)
    parts = [part for part in ("transformer", "vae") if part in named]
    configs = {part: pinned.json(f"{part}/config.json") for part in parts}
    named["transformer"] = _present_class(named["transformer"], configs["transformer"])
    for name in (kind, *(named[part] for part in parts)):
        if not hasattr(diffusers, name):
            raise ModelError(
                f"{files.source}: {name} is not in diffusers {diffusers.__version__}; a newer one may have it, or load "
                "the model with its own code and call ditf.tap"
            )
    classes = {part: getattr(diffusers, named[part]) for part in parts}
    scheduler = None
    if "scheduler" in named:
        scheduler_class = getattr(diffusers, named["scheduler"])
        scheduler = scheduler_class.from_config(pinned.json("scheduler/scheduler_config.json"))
    loaded = CheckpointParts(
        pinned,
        classes,
        configs,
        absent=tuple(part for part in _NO_TEXT if part in index),
        text_encoders=tuple(part for part in named if "text_encoder" in part),
        dtype=dtype,
        device=device,
        called=named["transformer"] not in FAMILIES,
    )
    complete = _with_defaults(classes["transformer"], configs["transformer"])
    vae_config = _with_defaults(classes["vae"], configs["vae"]) if "vae" in classes else {}
    family = _family(named["transformer"], complete, vae_config, scheduler, index, loaded, getattr(diffusers, kind))
    if vae_config:
        family.check_latents(space_of(vae_config).channels)
    cache = None if kept_in is None else _text_cache(kept_in, pinned, index, family, loaded)
    return Backbone(files.source, revision, family, loaded, _block_count(classes["transformer"], complete), cache)


def _family(
    transformer: str,
    config: Mapping[str, Any],
    vae_config: Mapping[str, Any],
    scheduler: Any,
    index: Mapping[str, Any],
    parts: Parts,
    kind: type[Any],
) -> Family:
    """How a transformer of this class is fed: by a file of ditf, or by its own pipeline."""
    space = space_of(vae_config)
    if transformer in FAMILIES:
        return FAMILIES[transformer](config, space.pixels, scheduler, index)
    return Recorded(config, space.pixels, scheduler, index, space=space, kind=kind, pipeline=lambda: parts.pipeline)


def _text_cache(
    folder: Path, files: Files, index: Mapping[str, Any], family: Family, parts: CheckpointParts
) -> TextCache | None:
    """Where this model's encoded prompts are kept; None where it reads no text, or its commit is not known."""
    import diffusers
    import transformers

    from .. import __version__

    local = files.folder
    if not family.reads_text or (local is None and not _is_commit(files.revision)):
        return None
    kind = index["_class_name"]
    encode = inspect.signature(getattr(diffusers, kind).encode_prompt).parameters
    limits = {name: p.default for name, p in encode.items() if "length" in name and isinstance(p.default, int)}
    identity = {
        "model": files.source if local is None else str(local.resolve()),
        "revision": files.revision if local is None else None,
        "pipeline": kind,
        "family": family.name,
        "limits": limits,
        "dtype": str(parts.dtype),
        "device": parts.device.type,
        "versions": {
            "ditf": __version__,
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }
    reading = [
        name for name, value in index.items() if isinstance(value, list) and name not in (*_NO_TEXT, "scheduler")
    ]
    return TextCache(folder, identity, local, reading)


def _is_commit(revision: str | None) -> bool:
    """Whether a revision names one state of a repository for ever; a branch moves."""
    return revision is not None and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def _index(files: Files) -> dict[str, Any]:
    """The pipeline's ``model_index.json``.

    Raises:
        ModelError: there is none; an adapter alone is named as such.
    """
    try:
        return files.json("model_index.json")
    except ModelError:
        if files.folder is None and _is_adapter(files):
            raise ModelError(_adapter(files.source)) from None
        raise


def _is_adapter(files: Files) -> bool:
    try:
        return files.find("adapter_config.json", "pytorch_lora_weights.safetensors") is not None
    except ModelError:
        return False


def _present_class(name: str, config: Mapping[str, Any]) -> str:
    """Today's name of a transformer's class: DiT and PixArt were once one class (diffusers maps them so too)."""
    if name != "Transformer2DModel":
        return name
    today = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
    return today.get(config.get("norm_type", ""), name)


def _block_count(cls: type[Any], config: Mapping[str, Any]) -> int:
    """From the config where it says so, else from a model without memory."""
    architecture = ARCHITECTURES.get(cls.__name__)
    if architecture is not None and all(stack.count for stack in architecture.stacks):
        return block_count(cls.__name__, config)
    return len(block_sites(empty(cls, config, torch.float32)))


_NO_TEXT = ("transformer", "vae", "image_encoder", "feature_extractor", "controlnet", "safety_checker")
"""Parts that encoding a prompt does not need: not downloaded for it."""


def _pixel_model(files: Files, device: torch.device, dtype: torch.dtype) -> Backbone:
    import diffusers

    config = files.json("config.json")
    if (class_name := config.get("_class_name")) != "FluxTransformer2DModel":
        raise ModelError(f"{files.source}/config.json: got class {class_name!r}, expected FluxTransformer2DModel")
    cls = diffusers.FluxTransformer2DModel
    complete = _with_defaults(cls, config)
    family = Pixel.described(complete, files.json("ditf.json"))
    parts = CheckpointParts(
        files,
        {"transformer": cls},
        {"transformer": config},
        folders={"transformer": ""},
        dtype=dtype,
        device=device,
    )
    return Backbone(files.source, None, family, parts, block_count("FluxTransformer2DModel", complete))


def _no_pipeline(folder: Path) -> str:
    if _is_adapter(Files(str(folder))):
        return _adapter(str(folder))
    if (folder / "config.json").is_file():
        return (
            f"{folder}: holds one model, not a pipeline (no model_index.json); give the folder above it, or load the "
            "model with diffusers and use it with ditf.tap"
        )
    return f"{folder}: no model_index.json inside; give a diffusers pipeline folder (as save_pretrained writes it)"


def _adapter(source: str) -> str:
    return (
        f"{source}: holds a LoRA adapter, not a model; load its base pipeline with diffusers, then "
        "pipeline.load_lora_weights(...), pipeline.fuse_lora(), and give the pipeline to FeatureExtractor"
    )


def _no_transformer(found: str, *, is_unet: bool) -> str:
    reason = "is a U-Net" if is_unet else "has no transformer"
    return (
        f"{found} {reason}; DiTF needs a diffusion transformer: {_known()}, or another text-to-image one of diffusers"
    )


def _with_defaults(cls: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the class's defaults for entries an older checkpoint does not have."""
    defaults = {
        name: p.default
        for name, p in inspect.signature(cls.__init__).parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    return {**defaults, **config}


def _commit(files: Files) -> str | None:
    """The hub's commit of the files, from where the cache keeps them."""
    if files.folder is not None:
        return None
    parts = files.get("model_index.json").parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else files.revision


def _looks_like_path(source: str) -> bool:
    return source not in BUNDLED and (source.startswith((".", "/", "~")) or "\\" in source or source.count("/") != 1)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError.of("device", device, '"cuda", "cuda:N", "mps" or "cpu"') from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError.of("device", device, 'a device of this machine; CUDA is not available here, use "cpu"')
    return chosen


def _dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError.of("dtype", dtype, "torch.bfloat16, torch.float32 or torch.float16")
    return dtype


def _known() -> str:
    return ", ".join(FAMILIES)
