"""Where a transformer keeps its blocks, and where the image tokens sit among the tokens a block sees.

One row per transformer class; a subclass inherits its parent's row. A class without a row is guessed: its blocks are
the largest module lists in registration order, its tokens image tokens only, unless the caller says otherwise.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, get_args

from torch import Tensor, nn

from ..errors import InputError, ModelError

__all__ = ["ARCHITECTURES", "Architecture", "BlockSite", "Layout", "Stack", "architecture_of", "block_sites", "unwrap"]

Layout = Literal["image", "image+text", "text+image", "last"]
"""Order of the tokens: "last" has the image after anything else (text, history, references)."""


@dataclass(frozen=True)
class Stack:
    """A list of blocks.

    Attributes:
        path: the transformer's attribute that holds them.
        count: the config entry that says how many there are; None where only the list knows.
        layout: of the tokens entering a block's first norm.
    """

    path: str
    count: str | None = None
    layout: Layout = "image"


@dataclass(frozen=True)
class Architecture:
    """A transformer class: its stacks in execution order, and the parts only the output needs."""

    stacks: tuple[Stack, ...]
    head: tuple[str, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    "FluxTransformer2DModel": Architecture(
        (
            Stack("transformer_blocks", "num_layers"),
            Stack("single_transformer_blocks", "num_single_layers", "text+image"),
        ),
        head=("norm_out", "proj_out"),
    ),
    "SD3Transformer2DModel": Architecture((Stack("transformer_blocks", "num_layers"),), head=("norm_out", "proj_out")),
    "PixArtTransformer2DModel": Architecture(
        (Stack("transformer_blocks", "num_layers"),), head=("norm_out", "scale_shift_table", "proj_out")
    ),
}


class Dropped(nn.Module):
    """Stands where a part was left out when the model was loaded, and keeps lists as long as they were."""

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
        stack = stack if layout is None else Stack(stack.path, stack.count, layout)
        for position, module in enumerate(getattr(transformer, stack.path)):
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


def image_tokens(
    hidden: Tensor, site: BlockSite, count: int, call: Mapping[str, Any], inputs: Mapping[str, Any]
) -> Tensor:
    """The image's tokens (B, N, D) among all the tokens (B, S, D) a block's norm sees; a view.

    Args:
        count: N, how many tokens the image has.
        call: arguments of the block.
        inputs: arguments of the transformer.

    Raises:
        InputError: the grid does not fit the tokens, or the layout of an unknown class is not told.
    """
    total, layout, packed = hidden.shape[1], site.stack.layout, _packed_length(inputs)
    if packed is not None and count not in (packed, _target_length(inputs, packed)):
        start = -1
    elif total == count or layout == "image+text" or (layout == "image" and total == packed):
        start = 0  # reference images follow the target
    elif layout == "last":
        start = total - count
    elif layout == "text+image":
        text = call.get("encoder_hidden_states")  # given where the block itself puts text before image
        start = text.shape[1] if isinstance(text, Tensor) else total - (packed or count)
    else:
        start = -1
    if start < 0 or start + count > total:
        choices = ", ".join(f'"{name}"' for name in get_args(Layout))
        raise InputError(
            f"grid: got {count} image tokens, but block {site.index} sees {total} tokens in layout {layout!r}; "
            f"give the grid of the inputs, or layout= one of {choices}"
        )
    return hidden[:, start : start + count]


def _packed_length(inputs: Mapping[str, Any]) -> int | None:
    """How many image tokens (B, N, C) the transformer was given, where it is given tokens."""
    packed = inputs.get("hidden_states")
    return packed.shape[1] if isinstance(packed, Tensor) and packed.ndim == 3 else None


def _target_length(inputs: Mapping[str, Any], packed: int) -> int:
    """How many of them are the image's own; ids of reference images differ from its on the first axis (Kontext)."""
    ids = inputs.get("img_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != packed:
        return packed
    return int((ids[:, 0] == ids[0, 0]).sum())


def _guessed_stacks(transformer: nn.Module) -> tuple[Stack, ...]:
    lists = [(n, m) for n, m in transformer.named_children() if isinstance(m, nn.ModuleList) and len(m)]
    sizes = {name: sum(p.numel() for p in items[0].parameters()) for name, items in lists}
    largest = max(sizes.values(), default=0)
    if not largest:
        raise ModelError(
            f"{type(transformer).__name__}: no list of transformer blocks found; "
            "ditf needs a diffusion transformer (DiT) of diffusers"
        )
    return tuple(Stack(name) for name, _ in lists if sizes[name] > 0.3 * largest)
