"""Find the blocks of a transformer.

A class without a row in :data:`ARCHITECTURES` is guessed: its blocks are the largest module lists in registration
order, its tokens image tokens only, unless the caller says otherwise.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex, get_args

from torch import nn

from ..errors import InputError, ModelError
from .architectures import ARCHITECTURES, Architecture, Layout, Stack

__all__ = ["BlockSite", "Dropped", "architecture_of", "block_count", "block_sites", "pick", "unwrap"]


class Dropped(nn.Module):
    """Stands where a part was left out when the model was loaded, and keeps lists as long as they were."""

    processor = None

    @property
    def attn(self) -> Dropped:
        """Qwen-Image 2.1 asks every block for the processor of its attention before it runs the first."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelError("this part of the transformer was not loaded; load with truncate=False")


@dataclass(frozen=True, eq=False)
class BlockSite:
    """One block, found: its global index in execution order, its place and itself."""

    index: int
    stack: Stack
    position: int
    module: nn.Module

    @property
    def name(self) -> str:
        return f"{self.stack.path}.{self.position}"


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def architecture_of(transformer: nn.Module) -> Architecture | None:
    """The row of the transformer's class or of its nearest parent that has one."""
    return next((ARCHITECTURES[c.__name__] for c in type(transformer).__mro__ if c.__name__ in ARCHITECTURES), None)


def block_sites(transformer: nn.Module, layout: Layout | None = None) -> list[BlockSite]:
    """Every block in execution order; ``layout`` overrides where the image tokens sit.

    Raises:
        ModelError: no list of blocks is found.
        InputError: an unknown layout.
    """
    if layout is not None and layout not in get_args(Layout):
        raise InputError.of("layout", layout, f"one of {', '.join(get_args(Layout))}")
    architecture = architecture_of(transformer)
    sites: list[BlockSite] = []
    for stack in architecture.stacks if architecture else _guessed_stacks(transformer):
        stack = stack if layout is None else replace(stack, layout=layout, attention=None, projected=None, fed=None)
        blocks: Any = transformer.get_submodule(stack.path)
        for position, module in enumerate(blocks):
            sites.append(BlockSite(len(sites), stack, position, module))
    return sites


def pick(sites: Sequence[BlockSite], block: SupportsIndex, model: str) -> BlockSite:
    """The block of a global index.

    Raises:
        InputError: no such block, or one that was left out when the model was loaded.
    """
    try:
        index = operator.index(block)
    except TypeError:
        raise InputError.of("block", block, f"an integer in 0..{len(sites) - 1}") from None
    if not 0 <= index < len(sites):
        raise InputError.of("block", index, f"an index in 0..{len(sites) - 1} of {model}")
    if isinstance(sites[index].module, Dropped):
        last = max(s.index for s in sites if not isinstance(s.module, Dropped))
        raise InputError.of(
            "block",
            index,
            f"an index in 0..{last}: {model} was loaded up to there; load it with block={block} or truncate=False",
        )
    return sites[index]


def block_count(class_name: str, config: Mapping[str, Any]) -> int:
    """How many blocks a transformer of a known class has, from its config alone."""
    return sum(int(config[stack.count]) for stack in ARCHITECTURES[class_name].stacks if stack.count)


def _guessed_stacks(transformer: nn.Module) -> tuple[Stack, ...]:
    lists = [(n, m) for n, m in transformer.named_children() if isinstance(m, nn.ModuleList) and len(m)]
    sizes = {name: sum(p.numel() for p in items[0].parameters()) for name, items in lists}
    largest = max(sizes.values(), default=0)
    if hasattr(transformer, "down_blocks") and hasattr(transformer, "up_blocks"):
        raise ModelError(
            f"{type(transformer).__name__} is a U-Net: its blocks work at several resolutions and have no AdaLN to "
            "take a feature from; ditf needs a diffusion transformer (DiT) of diffusers"
        )
    if not largest:
        raise ModelError(
            f"{type(transformer).__name__}: no list of transformer blocks found; "
            "ditf needs a diffusion transformer (DiT) of diffusers"
        )
    return tuple(Stack(name) for name, _ in lists if sizes[name] > 0.3 * largest)
