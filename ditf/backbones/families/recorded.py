"""Any other pipeline: it prepares its transformer's inputs itself, recorded once and replayed with new latents."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, ModelError
from ..latents import LatentSpace, flow_noise
from .base import DiffusionFamily, Text, unfit_channels
from .recording import answers_of, is_flow, mapped, recorded_arguments

__all__ = ["Recorded"]

_CALL: Mapping[str, Any] = {
    "num_inference_steps": 1,
    "guidance_scale": 1.0,  # no classifier-free guidance
    "true_cfg_scale": 1.0,
    "use_resolution_binning": False,
    "enable_prompt_rewrite": False,
    "num_frames": 1,
    "output_type": "latent",
}
"""Arguments of a pipeline, where it has them."""

_EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    "Krea2Pipeline": {"guidance_scale": 0.0},  # counted from 0: 1 is guidance already
    "MochiPipeline": {"num_inference_steps": 4},  # its schedule divides by the number of steps less one
}

_KEPT = 16
"""How many recordings (one per prompt, size and timestep) are kept."""

Place = tuple[Any, ...]
"""Where a value sits among nested arguments: names and positions, outermost first."""


@dataclass(frozen=True)
class Recorded(DiffusionFamily):
    """A pipeline of diffusers that ditf has no file for.

    Its own call is run up to the transformer, once per prompt, size and timestep, in milliseconds. Which arguments
    hold the latents, and in which order, is found by handing it numbered latents; which hold one entry per row, by
    asking for two rows. A pipeline that does more to latents than rearrange them is refused.

    Attributes:
        space: of the VAE's latents.
        kind: class of the pipeline.
        pipeline: gives one to call; its heavy parts may be empty.
    """

    space: LatentSpace = field(default_factory=LatentSpace)
    kind: type[Any] = object
    pipeline: Callable[[], Any] = field(default=lambda: None, repr=False)
    _memory: _Memory = field(default_factory=lambda: _Memory(), repr=False, compare=False)

    name = "recorded"

    @property
    def patch(self) -> int:
        """The pipeline's, where it packs latent cells into channels, else the transformer's."""
        cells = self._channels_taken // self.latent_channels
        return math.isqrt(cells) if cells > 1 else _side(self.config.get("patch_size", 1))

    @property
    def latent_channels(self) -> int:
        return self.space.channels or self._channels_taken

    @property
    def reads_text(self) -> bool:
        return hasattr(self.kind, "encode_prompt")

    @property
    def default_guidance(self) -> float | None:
        asked = inspect.signature(self.kind.__call__).parameters.get("guidance_scale")
        return float(asked.default) if asked is not None and self.config.get("guidance_embeds") else None

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """(h, w) of the tokens; position tables bound both.

        Raises:
            InputError: sides that the patch does not divide, or beyond the table.
        """
        grid, most, side = super().grid(latents), self._largest_grid(), self.pixels_per_token
        if most is not None and (grid[0] > most[0] or grid[1] > most[1]):
            expected = f"at most {most[0] * side} x {most[1] * side} pixels, which its position table covers"
            raise InputError.of("size", (grid[0] * side, grid[1] * side), expected)
        return grid

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """By the rule of the checkpoint's scheduler: rectified flow, or DDPM.

        Raises:
            ModelError: a scheduler of neither kind.
        """
        if is_flow(self.scheduler):
            return flow_noise(latent, noise, timestep)
        if getattr(self.scheduler, "alphas_cumprod", None) is None:
            raise ModelError(
                f"{type(self.scheduler).__name__}: neither rectified flow nor DDPM, so ditf does not know its noise; "
                "give the pipeline with the scheduler it was published with, or call ditf.tap"
            )
        return super().add_noise(latent, noise, timestep)

    def check_latents(self, vae_channels: int | None) -> None:
        taken = self._channels_taken
        cells, rest = divmod(taken, vae_channels or taken)
        if rest or math.isqrt(cells) ** 2 != cells:  # neither as they are nor packed in squares
            raise unfit_channels(taken, vae_channels or taken)

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        """What the pipeline's ``encode_prompt`` answers on the way to its latents."""
        if pipeline is None:  # it has none: tokens are made anew in every call
            return {"prompt": prompt, "answers": None}
        call = {**self._call(None), "prompt": prompt}
        text: Text = {"prompt": prompt, "answers": answers_of(pipeline, call)}
        if self._memory.pair is None:
            twice = answers_of(pipeline, {**call, "prompt": [prompt, prompt]})
            self._memory.pair = (_on_cpu(text), _on_cpu({"prompt": [prompt, prompt], "answers": twice}))
        return text

    @property
    def learned(self) -> Any:
        pair = self._memory.pair
        return pair if pair is not None and "answers" in pair[0] else None

    def relearn(self, learned: Any) -> None:
        if self._memory.pair is None:
            self._memory.pair = learned

    def given_text(self, prompt: str, embeddings: Mapping[str, Any]) -> Text:
        """Embeddings named as the arguments of the pipeline's call, which takes them in place of a prompt."""
        accepted = inspect.signature(self.kind.__call__).parameters
        if unknown := sorted(set(embeddings) - set(accepted)) or ([] if embeddings else ["none"]):
            names = ", ".join(name for name in accepted if "prompt_embeds" in name or "mask" in name)
            raise InputError.of("embeddings", unknown[0], f"arguments of {self.kind.__name__}: {names}")
        for name, value in embeddings.items():
            if not all(isinstance(entry, Tensor) for entry in (value if isinstance(value, list) else [value])):
                raise InputError.of(name, type(value).__name__, "a tensor of one row, or a list of one tensor")
        text = {"prompt": None, "given": _on_cpu(dict(embeddings))}
        if self._memory.pair is None:
            self._memory.pair = (text, {"prompt": None, "given": {n: _twice(v) for n, v in text["given"].items()}})
        return text

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        self.grid(latents)
        with self._memory.lock:
            order = self._order(latents, rows[0])
            arguments = [
                _filled(self._recording(row, latents, timestep, guidance), order, one)
                for row, one in zip(rows, latents, strict=True)
            ]
            axes = self._axes(latents, rows[0]) if len(rows) > 1 else {}
        return mapped(_joined(arguments, axes), lambda value: value.to(latents.device))

    @property
    def _channels_taken(self) -> int:
        return int(self.config.get("in_channels") or self.config["in_visual_dim"])

    def _largest_grid(self) -> tuple[int, int] | None:
        """(h, w) that the transformer's position tables hold."""
        if lengths := self.config.get("axes_lens"):  # text, rows, columns
            return int(lengths[1]), int(lengths[2])
        most = self.config.get("pos_embed_max_size") or self.config.get("rope_max_seq_len")
        if most is None:
            return None
        most = math.isqrt(most) if "num_mmdit_layers" in self.config else int(most)  # AuraFlow counts positions
        return most, most

    def _call(self, guidance: float | None) -> dict[str, Any]:
        call = {**_CALL, **_EXCEPTIONS.get(self.kind.__name__, {})}
        guidance = self.default_guidance if guidance is None else guidance
        return call if self.default_guidance is None else {**call, "guidance_scale": guidance}

    def _record(
        self, text: Text, latents: Tensor, timestep: float, guidance: float | None, draw: Callable[..., Tensor | None]
    ) -> dict[str, Any]:
        """Arguments for a text, at the size of latents (C, h, w)."""
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        call = {**self._call(guidance), "prompt": text["prompt"], "height": height, "width": width}
        pipeline = self.pipeline()
        if "given" in text:
            dtype = pipeline.transformer.dtype
            given = mapped(text["given"], lambda value: value.to(dtype) if value.is_floating_point() else value)
            call |= {"negative_prompt": None, **given}
        return recorded_arguments(pipeline, call, timestep=timestep, draw=draw, answers=text.get("answers"))

    def _recording(self, text: Text, latents: Tensor, timestep: float, guidance: float | None) -> dict[str, Any]:
        """One row's arguments, from memory if they are there."""
        known, key = self._memory.recordings, (id(text), latents.shape[1:], timestep, guidance)
        if key not in known:
            if len(known) >= _KEPT:
                known.pop(next(iter(known)))
            draw = _Drawing(torch.zeros(latents.shape[1:]))
            known[key] = (text, self._record(text, latents[0], timestep, guidance, draw))
        return known[key][1]

    def _order(self, latents: Tensor, text: Text) -> dict[Place, Tensor]:
        """Place of each argument made of latents -> which latent each of its values is, for this size."""
        known, shape = self._memory.orders, latents.shape[1:]
        if shape not in known:
            known[shape] = self._found_order(latents[0], text)
        return known[shape]

    def _found_order(self, latents: Tensor, text: Text) -> dict[Place, Tensor]:
        count, base = latents.numel(), 128  # every dtype holds integers up to 256 exactly
        number, seen = torch.arange(count), []
        for digit in range(max(2, math.ceil(math.log(count, base)))):
            draw = _Drawing((number // base**digit % base).float().view(latents.shape))
            seen.append(self._record(text, latents, 500.0, None, draw))
            if not draw.used:
                height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
                raise InputError(
                    f"size: got {height} x {width} pixels, but {self.index['_class_name']} makes latents of shape "
                    f"{draw.asked} instead of {tuple(latents.shape)}; give a size that it keeps"
                )
        order = {}
        for place, value in _leaves(seen[0]):
            digits = [dict(_leaves(one))[place] for one in seen]
            if isinstance(value, Tensor) and not all(torch.equal(value, other) for other in digits[1:]):
                order[place] = sum(d.cpu().round().long() * base**i for i, d in enumerate(digits))
        found = torch.cat([one.flatten() for one in order.values()]) if order else number[:0]
        if not torch.equal(found.sort().values, number):
            raise ModelError(
                f"{self.index['_class_name']} does more to the latents than rearrange them, so ditf cannot feed it; "
                "prepare the transformer's inputs and call ditf.tap"
            )
        return order

    def _axes(self, latents: Tensor, text: Text) -> dict[Place, int]:
        """Place of each argument that has an entry per row -> its axis of rows."""
        if self._memory.axes is None:
            if (pair := self._memory.pair) is None:  # a pipeline that makes its tokens itself
                pair = (text, {**text, "prompt": [text["prompt"]] * 2})
            one, two = (self._record(rows, latents[0], 500.0, None, lambda shape: None) for rows in pair)
            self._memory.axes = _row_axes(one, two)
        return self._memory.axes


@dataclass(eq=False)
class _Memory:
    """What one pipeline has shown so far.

    Attributes:
        pair: one prompt for one row and for two.
        axes: place of an argument -> its axis of rows; None before it was looked for.
        orders: shape of latents -> place of an argument made of latents -> which latent each value is.
        recordings: the arguments of one row, with the text they were made of.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    pair: tuple[Text, Text] | None = None
    axes: dict[Place, int] | None = None
    orders: dict[Any, dict[Place, Tensor]] = field(default_factory=dict)
    recordings: dict[Any, tuple[Text, dict[str, Any]]] = field(default_factory=dict)


class _Drawing:
    """Gives latents (C, h, w) as the noise a pipeline asks for, once, whether it wants channels first or last."""

    def __init__(self, latents: Tensor) -> None:
        self.latents, self.used = latents, False
        self.asked: tuple[int, ...] = ()

    def __call__(self, shape: tuple[int, ...]) -> Tensor | None:
        if self.used:
            return None
        self.asked = shape
        for arranged in (self.latents, self.latents.permute(1, 2, 0)):
            if [side for side in shape if side != 1] == [side for side in arranged.shape if side != 1]:
                self.used = True
                return arranged.reshape(shape)
        return None


def _leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _leaves(entry, (*place, name))
    elif isinstance(value, list | tuple):
        for position, entry in enumerate(value):
            yield from _leaves(entry, (*place, position))
    else:
        yield place, value


def _filled(value: Any, order: Mapping[Place, Tensor], latents: Tensor, place: Place = ()) -> Any:
    """Recorded arguments of one row with the values of other latents (C, h, w)."""
    if place in order:
        return latents.flatten()[order[place].to(latents.device)]
    if isinstance(value, Mapping):
        return {name: _filled(entry, order, latents, (*place, name)) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_filled(entry, order, latents, (*place, i)) for i, entry in enumerate(value))
    return value


def _row_axes(one: Any, two: Any, place: Place = ()) -> dict[Place, int]:
    """Where arguments for two rows are twice as long as for one: axis of a tensor, 0 for a list."""
    if isinstance(one, Tensor) and isinstance(two, Tensor) and one.ndim == two.ndim:
        longer = [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]
        if not longer:
            return {}
        if len(longer) == 1 and two.shape[longer[0]] == 2 * one.shape[longer[0]]:
            return {place: longer[0]}
    elif isinstance(one, list | tuple) and type(one) is type(two):
        if len(two) == 2 * len(one):
            return {place: 0}
        if len(two) == len(one):
            pairs = enumerate(zip(one, two, strict=True))
            return {k: v for i, (a, b) in pairs for k, v in _row_axes(a, b, (*place, i)).items()}
    elif isinstance(one, Mapping) and isinstance(two, Mapping) and one.keys() == two.keys():
        return {k: v for name in one for k, v in _row_axes(one[name], two[name], (*place, name)).items()}
    elif type(one) is type(two):
        return {}
    raise ModelError(
        f"argument {'.'.join(map(str, place))} of the transformer does not grow with the batch in a way ditf knows; "
        "use ensemble=1 and batch_images=1"
    )


def _joined(rows: Sequence[Any], axes: Mapping[Place, int], place: Place = ()) -> Any:
    """Arguments of many rows from those of each; what has no axis of rows is shared."""
    first = rows[0]
    if place in axes and len(rows) > 1:
        if not isinstance(first, Tensor):
            return type(first)(entry for row in rows for entry in row)
        axis = axes[place]
        if any(
            row.shape[:axis] + row.shape[axis + 1 :] != first.shape[:axis] + first.shape[axis + 1 :] for row in rows
        ):
            raise InputError(
                "batch_images: prompts of different lengths cannot share a forward of this model; use batch_images=1"
            )
        return torch.cat(list(rows), axis)
    if isinstance(first, Mapping):
        return {name: _joined([row[name] for row in rows], axes, (*place, name)) for name in first}
    if type(first) in (list, tuple):
        return type(first)(_joined([row[i] for row in rows], axes, (*place, i)) for i in range(len(first)))
    return first


def _on_cpu(value: Any) -> Any:
    return mapped(value, lambda tensor: tensor.detach().cpu())


def _twice(value: Any) -> Any:
    """Embeddings of one row as two rows; rows are the first axis of length 1 (HiDream has layers before it)."""
    if not isinstance(value, Tensor):
        return [*value, *value]
    return torch.cat([value, value], list(value.shape).index(1)) if 1 in value.shape else value


def _side(patch: Any) -> int:
    """The spatial side of a patch given as p, (p, p) or (t, p, p)."""
    return int(patch[-1] if isinstance(patch, list | tuple) else patch)
