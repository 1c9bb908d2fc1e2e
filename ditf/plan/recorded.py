"""Pipelines that prepare their transformer's inputs themselves: asked for those of one row, with empty models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.families import Recorded
from ..backbones.families.recording import mapped, recorded_arguments
from ..backbones.parts import CheckpointParts
from ..errors import ModelError
from .stages import META, Counted, count_runs
from .weights import as_loaded, hollow, hollow_encoder, model_class

__all__ = ["count_recorded"]

_PROMPT = "a photo"


def count_recorded(
    parts: CheckpointParts,
    family: Recorded,
    transformer: nn.Module,
    whole: nn.Module,
    block: int,
    latents: tuple[int, ...],
) -> Counted:
    """One row through a pipeline's own preparation and its transformer, times the rows of ``latents`` (E, C, h, w).

    The pipeline runs with its own tokenizers; its text encoders answer zeros of the shapes they would. A pipeline or
    transformer that needs more than shapes (lengths of texts, tokens it generates) is not counted, and is said so.
    """
    if parts.files.folder is None:
        return _unknown(
            f"{family.kind.__name__} prepares its own inputs, which takes its tokenizers; download the checkpoint and "
            "give its folder"
        )
    height, width = (side * family.pixels_per_latent for side in latents[-2:])
    call = {**family._call(None), "prompt": _PROMPT, "height": height, "width": width}
    try:
        pipeline = _hollow_pipeline(parts, family)
        arguments = recorded_arguments(pipeline, call, timestep=500.0, draw=lambda _: None)
    except (ModelError, OSError, ValueError, RuntimeError, ImportError) as error:
        return _unknown(f"nothing was counted: {' '.join(str(error).split())[:300]}")
    placed = mapped(arguments, lambda value: value.to(META))
    counted = count_runs(transformer, whole, block, lambda: dict(placed), rows=latents[0])
    if counted.flops is None:  # transformers that ask how long a text is: masks and indices keep their values
        partly = mapped(arguments, lambda value: value.to(META) if value.is_floating_point() else value)
        again = count_runs(transformer, whole, block, lambda: dict(partly), rows=latents[0])
        counted = counted if again.flops is None else again
    return replace(counted, note=f'{counted.note}, with the prompt "{_PROMPT}"')


def _unknown(reason: str) -> Counted:
    return Counted(None, None, reason)


def _hollow_pipeline(parts: CheckpointParts, family: Recorded) -> Any:
    """The pipeline with its own tokenizers and scheduler, and models without weights."""
    from diffusers import DiffusionPipeline

    models: dict[str, Any] = dict.fromkeys(parts.absent)
    for name, cls in parts.classes.items():
        models[name] = as_loaded(hollow(cls, parts.configs[name], parts.dtype), parts.dtype)
    for name, entry in family.index.items():
        cls = model_class(entry) if isinstance(entry, list) and name not in models else None
        if cls is not None:
            models[name] = _answering(hollow_encoder(cls, parts.files.json(f"{name}/config.json"), parts.dtype))
    return DiffusionPipeline.from_pretrained(str(parts.files.folder), dtype=parts.dtype, **models)


def _answering(model: nn.Module) -> nn.Module:
    """The model answers zeros on the CPU, of the shapes it computes."""
    compute = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("attention_mask", None)  # changes no shape, and its values would be asked for
        placed = mapped({"args": list(args), "kwargs": kwargs}, lambda value: value.to(META))
        answer: Any = compute(*placed["args"], **placed["kwargs"])
        if not isinstance(answer, dict):
            return mapped(answer, _zeros)
        for name, value in answer.items():  # a ModelOutput, which is asked for attributes
            answer[name] = mapped(value, _zeros)
        return answer

    model.forward = forward
    return model


def _zeros(value: Tensor) -> Tensor:
    return torch.zeros((), dtype=value.dtype).expand(value.shape)
