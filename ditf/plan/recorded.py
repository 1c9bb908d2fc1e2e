"""Pipelines that prepare their transformer's inputs themselves: asked for those of one row, with empty models."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbones.families import Recorded
from ..backbones.families.recording import recorded_arguments
from ..backbones.parts import CheckpointParts
from ..backbones.weights import drop_after
from .stages import Counted, count_runs
from .weights import as_loaded, hollow, hollow_encoder, model_class

__all__ = ["count_recorded"]


def count_recorded(
    parts: CheckpointParts, family: Recorded, block: int, latents: tuple[int, ...], *, truncate: bool
) -> Counted:
    """One row through a pipeline's own preparation and its transformer, times the rows of ``latents`` (E, C, h, w).

    Runs in torch's fake mode: tensors claim to be on the CPU and have no values. A pipeline that looks at values on
    its way (lengths of texts) cannot be counted, and is said so.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    folder = parts.files.folder
    if folder is None:
        return _unknown(f"{family.kind.__name__} prepares its own inputs, which takes its tokenizers: download the "
                        "checkpoint and give its folder")  # fmt: skip
    height, width = (side * family.pixels_per_latent for side in latents[-2:])
    call = {**family._call(None), "prompt": "a photo", "height": height, "width": width}
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            pipeline = _hollow_pipeline(parts, family)
            arguments = recorded_arguments(pipeline, call, timestep=500.0, draw=lambda _: None)
        except Exception as error:  # as many ways as there are pipelines
            reason = " ".join(str(error).split())[:300]
            return _unknown(f"{family.kind.__name__} cannot prepare its inputs without weights ({reason}), so nothing "
                            "was counted")  # fmt: skip
        kept = _transformer(parts)
        if truncate:
            drop_after(block)(kept)
        return count_runs(kept, _transformer(parts), block, lambda: dict(arguments), rows=latents[0])


def _unknown(reason: str) -> Counted:
    return Counted(None, None, reason)


def _hollow_pipeline(parts: CheckpointParts, family: Recorded) -> Any:
    """The pipeline with its own tokenizers and scheduler, and models that have no values."""
    from diffusers import DiffusionPipeline

    models: dict[str, Any] = dict.fromkeys(parts.absent)
    for name, entry in family.index.items():
        cls = model_class(entry) if isinstance(entry, list) and name not in parts.absent else None
        if name in parts.classes:
            models[name] = as_loaded(hollow(parts.classes[name], parts.configs[name], parts.dtype, "cpu"), parts.dtype)
        elif cls is not None:
            config = parts.files.json(f"{name}/config.json")
            models[name] = hollow_encoder(cls, config, parts.dtype, "cpu")
    return DiffusionPipeline.from_pretrained(str(parts.files.folder), dtype=parts.dtype, **models)


def _transformer(parts: CheckpointParts) -> nn.Module:
    whole = hollow(parts.classes["transformer"], parts.configs["transformer"], parts.dtype, "cpu")
    return as_loaded(whole, parts.dtype)
