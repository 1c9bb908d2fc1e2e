"""What enters a block of any diffusion transformer, and the block's own AdaLN.

Method: DiTF, arXiv 2505.18584, equations 8 and 9. The transformer's own forward runs up to the block and stops there.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError
from .activations import Activation, part_of
from .architectures import Layout, Place
from .capture import Capture, exclusive, feed_forward_of, reenter, run_until
from .conditions import Condition, Parts, observed
from .hooks import refuse_caches, settled
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
        norm: "layer" or "rms"; None where the tokens are an activation that no norm follows.
        eps, weight, bias: of that norm.
    """

    tokens: Tensor
    shift: Tensor | None
    scale: Tensor | None
    norm: Literal["layer", "rms"] | None
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
    site: Literal["attention", "mlp"] = "attention",
    activation: Activation = "block",
    condition: Condition = "t&c",
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
        site: "mlp" takes the norm before the feed-forward network in the place of the first.
        activation: "block" takes what enters the norm; the others what the block computes behind it: queries, keys,
            values (before their norms and rotation), the output of the attention or of the feed-forward network.
        condition: what the shift and scale are made of: timestep and pooled text, one of them, or nothing.

    Raises:
        InputError: a block out of range, a grid that does not fit, an unknown layout, or a site, activation or
            condition that the model does not have.
        ModelError: no blocks found, a block never reached, a formula the model disagrees with, or a cache of diffusers
            that is switched on.
    """
    core, grid = unwrap(transformer), _checked_grid(grid)
    sites = block_sites(core, layout)
    chosen = [pick(sites, block, type(core).__name__) for block in blocks]
    if not chosen:
        raise InputError.of("blocks", list(blocks), "at least one block index")
    _check_choices(site, activation, condition)
    refuse_reordering(inputs)
    refuse_caches(core)
    with exclusive(core), observed(core, condition) as parts, settled(core, chosen):
        if activation != "block":
            return _activations(core, chosen, inputs, grid, activation)
        if site == "mlp":
            return _second_sites(core, chosen, inputs, grid)
        captures = [Capture(s, "norm" if s.module in _checked else "attention") for s in chosen]
        run_until(core, captures, inputs)
        return {c.site.index: _block_input(_Seen(c, inputs, grid), parts, condition) for c in captures}


@dataclass(frozen=True, eq=False)
class _Seen:
    """A block's capture, and what it takes to find the image's tokens in it."""

    capture: Capture
    inputs: Mapping[str, Any]
    grid: tuple[int, ...]

    @property
    def frames(self) -> int:
        return self.grid[0] if len(self.grid) == 3 else 1

    def of_image(self, values: Tensor, place: Place) -> Tensor:
        """(B, N, D) of all tokens of a place."""
        site = self.capture.site
        rows = rows_first(values, site.stack, self.frames, place)
        return image_tokens(rows, site, math.prod(self.grid), self.capture.call, self.inputs, place)

    def vector(self, values: Tensor | None, place: Place) -> Tensor | None:
        """The same of a shift or scale that may be one for all tokens."""
        if values is None or values.shape[1] > 1:
            return values if values is None else self.of_image(values, place)
        return values[:: self.frames] if self.capture.site.stack.frames_in_batch and len(values) > 1 else values

    def modulation(self, found: Modulation, place: Place) -> Modulation:
        return Modulation(found.norm, self.vector(found.shift, place), self.vector(found.scale, place))


def _block_input(seen: _Seen, parts: Parts | None, condition: Condition) -> BlockInput:
    capture = seen.capture
    entering, norm, block = capture.tokens, capture.norm, unwrap(capture.site.module)
    if entering is None or norm is None:
        raise AssertionError("run_until fills both or raises")
    all_tokens = entering.transpose(0, 1) if capture.site.stack.sequence_first else entering
    tokens = seen.of_image(entering, "norm")
    found = modulation_of(block, capture.call, norm, all_tokens)
    if found is not None:
        modulation = seen.modulation(found, "norm")
    elif parts is not None:
        raise InputError.of("condition", condition, f'"t&c": {type(block).__name__} has no row in MODULATION')
    else:
        probed = probe(lambda probing: _attention_input(capture, probing), norm, entering)
        modulation = seen.modulation(probed, "attention")
    if capture.modulated is not None:
        _check(capture.site, tokens, modulation, seen.of_image(capture.modulated, "attention"))
    if parts is not None:
        found = modulation_of(block, parts.instead(capture.call, condition), norm, all_tokens)
        modulation = modulation if found is None else seen.modulation(found, "norm")
    return _as_input(tokens, modulation)


def _as_input(tokens: Tensor, modulation: Modulation) -> BlockInput:
    n = modulation.norm
    # their own memory: offloading takes the norm's parameters elsewhere
    weight, bias = (None if value is None else value.detach().clone() for value in (n.weight, n.bias))
    return BlockInput(tokens, modulation.shift, modulation.scale, n.kind, n.eps, weight, bias)


def _second_sites(
    core: nn.Module, chosen: Sequence[BlockSite], inputs: Mapping[str, Any], grid: tuple[int, ...]
) -> dict[int, BlockInput]:
    for site in chosen:
        if feed_forward_of(unwrap(site.module)) is None:
            raise _no_second_site(site)
    captures = [Capture(site, "feed_forward") for site in chosen]
    run_until(core, captures, inputs)
    return {capture.site.index: _second_input(_Seen(capture, inputs, grid)) for capture in captures}


def _second_input(seen: _Seen) -> BlockInput:
    """The norm before the feed-forward network: of those after the attention, the last that explains its input."""
    capture = seen.capture
    if capture.fed is None:
        raise AssertionError("run_until fills it or raises")
    fed = seen.of_image(capture.fed, "feed_forward")
    for norm, entering in reversed(capture.later):
        try:
            tokens = seen.of_image(entering, "norm")
        except InputError:  # a norm of the text
            continue
        if tokens.shape != fed.shape:
            continue
        found = probe(lambda t, n=norm: seen.of_image(reenter(capture, t, n), "feed_forward"), norm, entering)
        if _disagreement(tokens, found, fed) is None:
            return _as_input(tokens, found)
    raise _no_second_site(capture.site)


def _no_second_site(site: BlockSite) -> InputError:
    return InputError(
        f'site: got "mlp", but block {site.index} ({type(site.module).__name__}) has no norm of its own before a '
        'feed-forward network; use site="attention"'
    )


def _activations(
    core: nn.Module,
    chosen: Sequence[BlockSite],
    inputs: Mapping[str, Any],
    grid: tuple[int, ...],
    activation: Activation,
) -> dict[int, BlockInput]:
    parts = [part_of(site, activation) for site in chosen]
    captures = [Capture(site, "output", part=part[0]) for site, part in zip(chosen, parts, strict=True)]
    run_until(core, captures, inputs)
    taken = {}
    for capture, (_, place, choose) in zip(captures, parts, strict=True):
        if capture.output is None:
            raise AssertionError("run_until fills it or raises")
        tokens = _Seen(capture, inputs, grid).of_image(choose(capture.output), place)
        taken[capture.site.index] = BlockInput(tokens, None, None, None, 0.0, None, None)
    return taken


def _check_choices(site: str, activation: str, condition: str) -> None:
    for name, value, choices in (
        ("site", site, ("attention", "mlp")),
        ("activation", activation, get_args(Activation)),
        ("condition", condition, get_args(Condition)),
    ):
        if value not in choices:
            raise InputError.of(name, value, f"one of {', '.join(choices)}")
    if activation != "block" and site != "attention":
        raise InputError.of("site", site, '"attention": activations are taken behind the norms')
    if condition != "t&c" and (activation != "block" or site != "attention"):
        raise InputError.of("condition", condition, '"t&c" unless site="attention" and activation="block"')


def _attention_input(capture: Capture, tokens: Tensor) -> Tensor:
    seen = reenter(capture, tokens)
    if seen.ndim != 3 or seen.shape[-1] != tokens.shape[-1]:
        raise ModelError(
            f"block {capture.site.index} ({type(capture.site.module).__name__}): its norm gets tokens of shape "
            f"{tuple(tokens.shape)} and its attention {tuple(seen.shape)}; this class needs a row in MODULATION"
        )
    return seen


def _check(site: BlockSite, tokens: Tensor, modulation: Modulation, seen: Tensor) -> None:
    """Compare the formula with what the block feeds its attention, once per block."""
    wrong = _disagreement(tokens, modulation, seen)
    if wrong is not None:
        raise ModelError(
            f"block {site.index} ({site.name}, {type(site.module).__name__}): its AdaLN as ditf computes it differs "
            f"from what the block feeds its attention by {wrong}; please report this with the versions of ditf and "
            "diffusers"
        )
    if bool(torch.isfinite(seen).all()):
        _checked.add(site.module)


def _disagreement(tokens: Tensor, modulation: Modulation, seen: Tensor) -> str | None:
    """How far the formula is from what was seen, on the first and last row, where that is too far."""
    if seen.shape != tokens.shape:
        return f"its shape: {tuple(tokens.shape)} and {tuple(seen.shape)}"
    step = max(1, len(tokens) - 1)
    rows = Modulation(
        modulation.norm,
        *(v if v is None or len(v) == 1 else v[::step] for v in (modulation.shift, modulation.scale)),
    )
    computed, seen = modulate(tokens[::step], rows), seen[::step]
    size = torch.linalg.vector_norm(seen.float())
    error = float(torch.linalg.vector_norm(computed - seen.float()) / size.clamp_min(1e-12))
    limit = max(1e-4, 8 * torch.finfo(seen.dtype).eps)
    # where the model's own numbers overflow, whoever uses the tokens will say so
    return f"{error:.2g} of its size, allowed {limit:.2g}" if math.isfinite(error) and error > limit else None


def _checked_grid(grid: Sequence[int]) -> tuple[int, ...]:
    sides = tuple(grid) if isinstance(grid, Sequence) else (grid,)
    if len(sides) not in (2, 3) or any(not isinstance(side, int) or side < 1 for side in sides):
        raise InputError.of("grid", grid, "(h, w) or (t, h, w) of at least 1")
    return sides
