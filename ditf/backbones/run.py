"""What enters a block of any diffusion transformer, and the block's own AdaLN.

Method: DiTF, arXiv 2505.18584, equations 8 and 9. The transformer's own forward runs up to the block and stops there.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError
from .architectures import Layout
from .capture import Capture, exclusive, reenter, run_until
from .layouts import image_tokens, refuse_reordering, rows_first
from .modulation import Modulation, modulate, modulation_of, probe
from .stacks import BlockSite, block_sites, pick, unwrap

__all__ = ["BlockInput", "run_to_blocks"]

_checked: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Blocks whose formula has been compared with what the block itself feeds its attention."""


@dataclass(frozen=True, eq=False)
class BlockInput:
    """Image tokens entering a block's first norm, and the block's own modulation of them.

    The block's attention sees ``norm(tokens) * (1 + scale) + shift``.

    Attributes:
        tokens: (B, N, D) in the model's dtype, raster order over the grid.
        shift, scale: (B, 1|N, D), or None where the block has none.
        norm: "layer" or "rms".
        eps, weight, bias: of that norm.
    """

    tokens: Tensor
    shift: Tensor | None
    scale: Tensor | None
    norm: Literal["layer", "rms"]
    eps: float
    weight: Tensor | None
    bias: Tensor | None


def run_to_blocks(
    transformer: nn.Module,
    blocks: Sequence[int],
    inputs: Mapping[str, Any],
    grid: Sequence[int],
    *,
    layout: Layout | None = None,
) -> dict[int, BlockInput]:
    """One forward that shows several blocks and leaves at the deepest.

    The first time a block is seen, the formula that will be computed from its tokens is compared with what the block
    itself feeds its attention.

    Args:
        transformer: any diffusion transformer of diffusers.
        blocks: global indices in execution order.
        inputs: arguments of the transformer's forward, by name.
        grid: (h, w) or (t, h, w) of the image tokens.
        layout: where the image tokens sit, for a class ditf has no row for.

    Raises:
        InputError: a block out of range, a grid that does not fit, an unknown layout.
        ModelError: no blocks found, a block never reached, or a formula the model disagrees with.
    """
    core, grid = unwrap(transformer), _checked_grid(grid)
    sites = block_sites(core, layout)
    chosen = [pick(sites, block, type(core).__name__) for block in blocks]
    if not chosen:
        raise InputError.of("blocks", list(blocks), "at least one block index")
    refuse_reordering(inputs)
    with exclusive(core):
        captures = [Capture(site, to_attention=site.module not in _checked) for site in chosen]
        run_until(core, captures, inputs)
        return {capture.site.index: _block_input(capture, grid, inputs) for capture in captures}


def _block_input(capture: Capture, grid: tuple[int, ...], inputs: Mapping[str, Any]) -> BlockInput:
    site, call, seen, norm = capture.site, capture.call, capture.tokens, capture.norm
    if seen is None or norm is None:
        raise AssertionError("run_until fills both or raises")
    count, frames = math.prod(grid), grid[0] if len(grid) == 3 else 1

    def of_image(values: Tensor, of_attention: bool) -> Tensor:
        rows = rows_first(values, site.stack, frames, of_attention=of_attention)
        return image_tokens(rows, site, count, call, inputs, of_attention=of_attention)

    def vector(values: Tensor | None, of_attention: bool) -> Tensor | None:
        if values is None or values.shape[1] > 1:
            return values if values is None else of_image(values, of_attention)
        return values[::frames] if site.stack.frames_in_batch and len(values) > 1 else values

    all_tokens = seen.transpose(0, 1) if site.stack.sequence_first else seen
    found = modulation_of(unwrap(site.module), call, norm, all_tokens)
    probed = found is None
    if found is None:
        found = probe(lambda probing: _attention_input(capture, probing), norm, seen)
    modulation = Modulation(found.norm, vector(found.shift, probed), vector(found.scale, probed))
    tokens = of_image(seen, of_attention=False)
    if capture.modulated is not None:
        _check(site, tokens, modulation, of_image(capture.modulated, of_attention=True))
    n = modulation.norm
    return BlockInput(tokens, modulation.shift, modulation.scale, n.kind, n.eps, n.weight, n.bias)


def _attention_input(capture: Capture, tokens: Tensor) -> Tensor:
    seen = reenter(capture, tokens)
    if seen.ndim != 3 or seen.shape[-1] != tokens.shape[-1]:
        raise ModelError(
            f"block {capture.site.index} ({type(capture.site.module).__name__}): its norm gets tokens of shape "
            f"{tuple(tokens.shape)} and its attention {tuple(seen.shape)}; this class needs a row in MODULATION"
        )
    return seen


def _check(site: BlockSite, tokens: Tensor, modulation: Modulation, seen: Tensor) -> None:
    """Compare the formula with what the block feeds its attention, once per block, on the first and last row."""
    step = max(1, len(tokens) - 1)
    rows = Modulation(
        modulation.norm,
        *(v if v is None or len(v) == 1 else v[::step] for v in (modulation.shift, modulation.scale)),
    )
    computed, seen = modulate(tokens[::step], rows), seen[::step]
    size = torch.linalg.vector_norm(seen.float())
    error = float(torch.linalg.vector_norm(computed - seen.float()) / size.clamp_min(1e-12))
    if not math.isfinite(error):
        return  # the model's own numbers overflow: whoever uses the tokens will say so
    limit = max(1e-4, 8 * torch.finfo(seen.dtype).eps)
    if error > limit:
        raise ModelError(
            f"block {site.index} ({site.name}, {type(site.module).__name__}): its AdaLN as ditf computes it differs "
            f"from what the block feeds its attention by {error:.2g} of its size, allowed {limit:.2g}; please report "
            "this with the versions of ditf and diffusers"
        )
    _checked.add(site.module)


def _checked_grid(grid: Sequence[int]) -> tuple[int, ...]:
    sides = tuple(grid) if isinstance(grid, Sequence) else (grid,)
    if len(sides) not in (2, 3) or any(not isinstance(side, int) or side < 1 for side in sides):
        raise InputError.of("grid", grid, "(h, w) or (t, h, w) of at least 1")
    return sides
