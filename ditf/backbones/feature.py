"""Tokens entering a block to features: ensemble mean, discard, norm, modulation, in one pass over the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditf_kernels import adaln_with_inverse_norm
from ditf_kernels.reference import zero_largest

from ..errors import InputError, kernel_errors
from ..types import Fused, Tapped, backend_of
from .activations import Activation
from .architectures import Layout
from .conditions import Condition
from .run import BlockInput, run_to_blocks

__all__ = ["feature", "tap"]

_NORMALIZATIONS = ("adaln", "layernorm", "none")


@torch.no_grad()
def tap(
    transformer: nn.Module,
    block: int,
    inputs: Mapping[str, Any],
    *,
    grid: Sequence[int],
    ensemble: int = 1,
    discard: Sequence[int] = (),
    discard_at: Literal["input", "output"] = "input",
    topk_per_token: int = 0,
    normalization: Literal["adaln", "layernorm", "none"] = "adaln",
    layout: Layout | None = None,
    site: Literal["attention", "mlp"] = "attention",
    activation: Activation = "block",
    condition: Condition = "t&c",
    fused: Fused = True,
) -> Tapped:
    """Features of one block, for those who prepare the transformer's inputs themselves.

    Args:
        transformer: any diffusion transformer of diffusers; classes ditf does not know are probed.
        block: global index over all blocks in execution order.
        inputs: arguments of the transformer's forward, by name; batch B*E, row b*E + e is member e of image b.
        grid: (h, w), or (t, h, w) for video, of the image tokens.
        ensemble: E, how many rows are averaged to one image.
        discard: channels to zero, at "input" (before the norm) or "output" (after the modulation).
        topk_per_token: also zero each token's k largest absolute values, on the ensemble mean.
        normalization: "adaln" is the block's own norm and modulation, "layernorm" its norm alone, "none" raw tokens.
        layout: where the image tokens sit among a block's tokens: "image", "image+text", "text+image" or "last";
            only needed for classes ditf does not know.
        site: the AdaLN before the attention, or the one before the feed-forward network ("mlp").
        activation: "block" is what enters that AdaLN; "q", "k", "v" (before their norms and rotation), "attention"
            and "mlp" are what the block computes behind it: averaged over the ensemble, nothing else done to them.
        condition: "t" and "c" make shift and scale of the timestep or the pooled text alone, "none" of neither (the
            paper's condition ablation); for families whose conditioning ditf knows.
        fused: True runs the Triton kernel where it can run, False its PyTorch twin, "verify" both, compared.

    Returns:
        Features (B, N, D): float16 on a GPU and float32 on a CPU, raw tokens and other activations always float32.

    Raises:
        InputError: an argument outside its domain, inputs that do not fit grid or ensemble, or a site, activation or
            condition that the model does not have.
        ModelError: no blocks found, a block never reached, or a formula the model disagrees with.
        VerificationError: with ``fused="verify"``, kernel and twin disagree.
    """
    if not isinstance(transformer, nn.Module):
        raise InputError.of("transformer", type(transformer).__name__, "a transformer module of diffusers")
    if not isinstance(inputs, Mapping):
        raise InputError.of("inputs", type(inputs).__name__, "a dict of the transformer's forward arguments")
    backend = backend_of(fused)
    taken = run_to_blocks(
        transformer, [block], inputs, grid, layout=layout, site=site, activation=activation, condition=condition
    )[int(block)]
    features, _ = feature(
        taken,
        ensemble=ensemble,
        discard=tuple(int(channel) for channel in discard),
        discard_at=discard_at,
        topk_per_token=topk_per_token,
        normalization=normalization,
        backend=backend,
    )
    return Tapped(
        raw=taken.tokens,
        shift=_one_per_image(taken.shift, ensemble),
        scale=_one_per_image(taken.scale, ensemble),
        norm=taken.norm,
        eps=taken.eps,
        weight=taken.weight,
        bias=taken.bias,
        features=features,
        grid=tuple(int(side) for side in grid),
    )


def feature(
    taken: BlockInput,
    *,
    ensemble: int = 1,
    discard: tuple[int, ...] = (),
    discard_at: Literal["input", "output"] = "input",
    topk_per_token: int = 0,
    normalization: Literal["adaln", "layernorm", "none"] = "adaln",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """DiTF features (arXiv 2505.18584, equations 8 and 9) of tapped tokens; the arguments are those of ``ditf.tap``.

    Returns:
        (B, N, D), float16 on a GPU and float32 on a CPU, raw tokens always float32; and 1 / norm, (B, N) float32.

    Raises:
        InputError: an argument outside its domain.
        VerificationError: with ``backend="verify"``, kernel and twin disagree.
    """
    rows, _, width = taken.tokens.shape
    if taken.norm is None:  # an activation: channels and normalization are said of what enters the norm
        discard, topk_per_token, normalization = (), 0, "none"
    if normalization not in _NORMALIZATIONS:
        raise InputError.of("normalization", normalization, f"one of {', '.join(_NORMALIZATIONS)}")
    if discard_at not in ("input", "output"):
        raise InputError.of("discard_at", discard_at, '"input" or "output"')
    if not isinstance(ensemble, int) or ensemble < 1 or rows % ensemble:
        raise InputError.of("ensemble", ensemble, f"a divisor of the batch of {rows}")
    if outside := [channel for channel in discard if not 0 <= channel < width]:
        raise InputError.of("discard", outside[0], f"channels in 0..{width - 1}")
    if not isinstance(topk_per_token, int) or not 0 <= topk_per_token < width:
        raise InputError.of("topk_per_token", topk_per_token, f"an integer in 0..{width - 1}")
    if normalization == "none" or taken.norm is None:
        return _raw(taken.tokens, ensemble, discard, topk_per_token)
    modulated = normalization == "adaln"
    with kernel_errors():
        return adaln_with_inverse_norm(
            taken.tokens,
            _one_per_image(taken.shift, ensemble) if modulated else None,
            _one_per_image(taken.scale, ensemble) if modulated else None,
            norm=taken.norm,
            weight=taken.weight,
            bias=taken.bias,
            eps=taken.eps,
            discard=discard or None,
            discard_at=discard_at,
            topk_per_token=topk_per_token,
            ensemble=ensemble,
            out_dtype=torch.float16 if taken.tokens.is_cuda else torch.float32,
            backend=backend,
        )


def _one_per_image(vector: Tensor | None, ensemble: int) -> Tensor | None:
    """The modulation of each image's first member: its members share timestep and text."""
    return vector if vector is None or vector.shape[0] == 1 else vector[::ensemble]


def _raw(tokens: Tensor, ensemble: int, discard: tuple[int, ...], topk_per_token: int) -> tuple[Tensor, Tensor]:
    mean = tokens.unflatten(0, (-1, ensemble)).mean(1, dtype=torch.float32)  # (B, N, D)
    mean = mean.index_fill(2, torch.tensor(discard, dtype=torch.int64, device=mean.device), 0.0)
    mean = zero_largest(mean, topk_per_token)
    return mean, mean.norm(dim=-1).clamp_min(1e-12).reciprocal()
