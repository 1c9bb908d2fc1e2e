"""What conditions a block's AdaLN, taken apart: the timestep and the pooled text (the paper's condition ablation).

In the families listed here the vector that a block makes its shift and scale of is a sum of what a few modules answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError

__all__ = ["CONDITIONS", "Condition", "Parts", "Sources", "observed"]

Condition = Literal["t&c", "t", "c", "none"]


@dataclass(frozen=True)
class Sources:
    """Where the parts of a conditioning vector come from.

    Attributes:
        given: the block's argument that holds the vector.
        timestep, text: modules of the transformer whose outputs add up to it; a distilled guidance counts as
            timestep. Without either, all of the vector is the timestep's.
    """

    given: str = "temb"
    timestep: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


_COMBINED = Sources(
    timestep=("time_text_embed.timestep_embedder", "time_text_embed.guidance_embedder"),
    text=("time_text_embed.text_embedder",),
)

CONDITIONS: dict[str, Sources] = {
    "FluxTransformer2DModel": _COMBINED,
    "SD3Transformer2DModel": _COMBINED,
    "HunyuanVideoTransformer3DModel": _COMBINED,
    "HunyuanVideoFramepackTransformer3DModel": _COMBINED,
    "HiDreamImageTransformer2DModel": Sources(timestep=("t_embedder",), text=("p_embedder",)),
    "Kandinsky5Transformer3DModel": Sources("time_embed", ("time_embeddings",), ("pooled_text_embeddings",)),
    "MochiTransformer3DModel": Sources(timestep=("time_embed.timestep_embedder",), text=("time_embed.pooler",)),
    # the timestep alone
    "AuraFlowTransformer2DModel": Sources(),
    "BriaTransformer2DModel": Sources(),
    "BriaFiboTransformer2DModel": Sources(),
    "LongCatImageTransformer2DModel": Sources(),
    "OvisImageTransformer2DModel": Sources(),
    "QwenImageTransformer2DModel": Sources(),
    "ZImageTransformer2DModel": Sources("adaln_input"),
    "CogVideoXTransformer3DModel": Sources(),
    "EasyAnimateTransformer3DModel": Sources(),
}


@dataclass(eq=False)
class Parts:
    """The parts of the conditioning vector in one forward."""

    sources: Sources
    seen: dict[str, Tensor] = field(default_factory=dict)

    def instead(self, call: Mapping[str, Any], condition: Condition) -> dict[str, Any]:
        """The block's arguments with the conditioning reduced to what ``condition`` names.

        Raises:
            InputError: a forward that conditions some tokens otherwise.
            ModelError: the parts do not add up to the vector.
        """
        given = self.sources.given
        whole: Tensor = call[given]
        if call.get("token_replace_emb") is not None or call.get("modulate_index") is not None:
            raise InputError.of("condition", condition, '"t&c" where some tokens are conditioned by another timestep')
        if condition == "none" or (condition == "t" and not self.sources.text):
            return {**call, given: torch.zeros_like(whole) if condition == "none" else whole}
        timestep, text = self._sum(self.sources.timestep), self._sum(self.sources.text)
        if not torch.allclose(
            (timestep + text).to(whole.dtype), whole, rtol=1e-2, atol=1e-3 * float(whole.abs().max())
        ):
            raise ModelError(
                "the timestep's and the text's parts of the conditioning do not add up to it; please report"
            )
        return {**call, given: (timestep if condition == "t" else text).to(whole.dtype)}

    def _sum(self, names: tuple[str, ...]) -> Tensor:
        return torch.stack([self.seen[name] for name in names if name in self.seen]).sum(0)


def _sources_of(transformer: nn.Module, condition: Condition) -> Sources:
    """What the transformer's conditioning is made of.

    Raises:
        InputError: a condition that the model does not have, or a class whose conditioning is not known.
    """
    name = type(transformer).__name__
    found = next((CONDITIONS[c.__name__] for c in type(transformer).__mro__ if c.__name__ in CONDITIONS), None)
    if found is None:
        raise InputError.of("condition", condition, f'"t&c": ditf does not know the parts of {name}\'s conditioning')
    if condition == "c" and not found.text:
        raise InputError.of("condition", condition, f'"t&c", "t" or "none": {name} has no pooled text')
    return found


@contextlib.contextmanager
def observed(transformer: nn.Module, condition: Condition) -> Iterator[Parts | None]:
    """Keep what the transformer's embedders answer during a forward; None where nothing is to be taken apart.

    Raises:
        InputError: a condition that the model does not have, or a class whose conditioning is not known.
    """
    if condition == "t&c":
        yield None
        return
    parts, modules, handles = Parts(_sources_of(transformer, condition)), dict(transformer.named_modules()), []
    for name in (*parts.sources.timestep, *parts.sources.text):
        if name in modules:
            handles.append(modules[name].register_forward_hook(_keep(parts, name)))
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


def _keep(parts: Parts, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        parts.seen.setdefault(name, output)

    return hook
