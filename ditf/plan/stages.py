"""Run each stage of an extraction on models without memory, and count."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..backbones.capture import Capture, exclusive, run_until
from ..backbones.families import SD3, Family, Recorded
from ..backbones.families.base import Text
from ..backbones.stacks import architecture_of, block_sites
from .meter import Meter, metered

__all__ = ["Counted", "count_encoder", "count_forward", "count_runs", "count_vae", "text_lengths", "text_row"]

META = torch.device("meta")
_CLIP_TOKENS = 77


@dataclass(frozen=True)
class Counted:
    """What a stage takes on the device besides weights; None where it could not be run, and ``note`` says why.

    Attributes:
        channels: of the tokens that were tapped.
        whole_flops: of the same forward through all blocks and the output head.
    """

    flops: int | None
    activation_bytes: int | None
    note: str
    channels: int | None = None
    whole_flops: int | None = None


def text_lengths(family: Family, pipeline: type[Any], encoders: Sequence[nn.Module]) -> tuple[int, int]:
    """Tokens of the longest text that the pipeline's ``encode_prompt`` makes by default: in its encoder, and in all
    that the transformer is given of it; 0 where only its pipeline knows."""
    if not family.reads_text:
        return 0, 0
    asked = inspect.signature(pipeline.encode_prompt).parameters.get("max_sequence_length")
    longest = asked.default if asked is not None and isinstance(asked.default, int) else _CLIP_TOKENS
    if isinstance(family, Recorded):  # its own pipeline says
        return longest, 0
    if not isinstance(family, SD3):
        return longest, longest
    clip = next((_clip_tokens(model) for model in encoders if _is_clip(model)), _CLIP_TOKENS)
    # they stand before T5's, or before as many zeros where T5 is left out
    without = (family.index.get("text_encoder_3") or [None])[-1] is None
    return longest, clip + (clip if without else longest)


def count_encoder(model: nn.Module, length: int) -> Counted:
    """One prompt through a text encoder: ``length`` tokens, in CLIP as many as it can."""
    tokens = _clip_tokens(model) if _is_clip(model) else length
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=META)

    def run() -> None:
        model(input_ids=ids)

    return _counted(run, f"{tokens} tokens", type(model).__name__)


def count_vae(vae: Any, size: tuple[int, int]) -> Counted:
    """One image of (H, W) pixels through the encoder, in float32."""
    video = any(isinstance(module, nn.Conv3d) for module in vae.modules())

    def run() -> None:
        pixels = torch.empty((1, 3, *([1] if video else []), *size), device=META)
        vae.encode(pixels)

    return _counted(run, f"{size[0]} x {size[1]} pixels (height x width)", type(vae).__name__)


def count_forward(
    family: Family,
    transformer: nn.Module,
    whole: nn.Module,
    block: int,
    latents: tuple[int, ...],
    dtype: torch.dtype,
    text: Text,
) -> Counted:
    """All rows through the transformer until the tapped block's own AdaLN has been computed.

    Args:
        transformer: what loading leaves of it.
        whole: all of it.
        latents: shape (E, C, h, w).
        text: one row of it.
    """

    def inputs() -> dict[str, Any]:
        empty = torch.empty(latents, dtype=dtype, device=META)
        return family.inputs(empty, 500.0, [text] * latents[0], None)

    return count_runs(transformer, whole, block, inputs)


def count_runs(
    transformer: nn.Module, whole: nn.Module, block: int, inputs: Callable[[], dict[str, Any]], rows: int = 1
) -> Counted:
    """A forward up to ``block`` and one through everything; ``inputs`` are of one row in ``rows``."""
    seen: list[int] = []

    def truncated() -> None:
        capture = Capture(block_sites(transformer)[block], "attention")
        with exclusive(transformer):
            run_until(transformer, [capture], inputs())
        if capture.tokens is not None:
            seen.append(capture.tokens.shape[-1])

    name = type(transformer).__name__
    first = _counted(truncated, "until the tapped block's attention", name)
    if first.flops is None or first.activation_bytes is None:
        return first
    second = _counted(lambda: _run_whole(whole, inputs()), "all blocks and the head", name)
    total = None if second.flops is None else rows * second.flops
    note = first.note if total is not None else f"{first.note}; the whole forward is not known: {second.note}"
    return Counted(rows * first.flops, rows * first.activation_bytes, note, seen[0] if seen else None, total)


def text_row(family: Family, length: int) -> Text:
    """An encoded prompt of ``length`` tokens, without values.

    Raises:
        ValueError: the family does not say how wide its texts are.
    """
    if not family.reads_text:
        return family.encode_prompt(None, "", torch.device("cpu"))
    if family.text_width is None:
        raise ValueError(f"{type(family).__name__} says nothing of its texts")
    width, pooled = int(family.config[family.text_width]), family.config.get("pooled_projection_dim")
    row: Text = {}
    for name, argument in family.embeddings.items():
        if "mask" in name:
            row[argument] = torch.ones(1, length, dtype=torch.int64, device=META)
        elif "pooled" in name:
            row[argument] = torch.zeros(1, int(pooled or width), device=META)
        else:
            row[argument] = torch.zeros(1, length, width, device=META)
    return row


def _run_whole(transformer: nn.Module, inputs: dict[str, Any]) -> None:
    """Through all blocks and the head; what follows it costs nothing, and may want square images (DiT)."""
    architecture = architecture_of(transformer)
    heads = [getattr(transformer, name, None) for name in (architecture.head if architecture else ())]
    last = next((head for head in reversed(heads) if isinstance(head, nn.Module)), None)
    hook = None if last is None else last.register_forward_hook(_end)
    try:
        with exclusive(transformer), contextlib.suppress(_Ended):
            transformer(**inputs)
    finally:
        if hook is not None:
            hook.remove()


def _is_clip(model: nn.Module) -> bool:
    return type(model).__name__.startswith("CLIP")


def _clip_tokens(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.max_position_embeddings)


class _Ended(Exception):  # noqa: N818 (no error: the way out)
    """The output head has been computed."""


def _end(*_: Any) -> None:
    raise _Ended


def _counted(run: Callable[[], None], what: str, name: str) -> Counted:
    meter: Meter
    try:
        with metered() as meter:
            run()
    except Exception as error:  # a class may need real numbers in as many ways as there are classes
        reason = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
        return Counted(None, None, f"{name} cannot be run without weights ({said[:200]}), so nothing was counted")
    return Counted(meter.flops, meter.peak_bytes, f"counted on the empty model, {what}")
