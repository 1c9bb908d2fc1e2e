"""AdaLN features: mean over the ensemble, discard massive channels, norm, modulate, L2-normalise.

Per token x of D channels, all in float32, one read of x and one write of y:

    x    = mean_e x_e;  x[discard] = 0;  zero the k largest |x|         discard_at="input"
    n    = (x - mean(x)) / sqrt(var(x) + eps)                           "rms": x / sqrt(mean(x^2) + eps)
    y    = (n * weight + bias) * (1 + scale) + shift                    add_one=False: * scale
    y[discard] = 0                                                      discard_at="output"
    y    = y / max(|y|, 1e-12)                                          l2_normalize=True

Bytes that must move: (E + 1) * B * N * D elements; FLOPs: about (E + 9) * B * N * D. It is bound by memory.
Source: DiTF (arXiv 2505.18584), AdaLN of DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from . import backend as _backend
from . import reference
from ._checks import check_dtype, check_integer
from ._registry import define, takes_gradient

__all__ = ["adaln", "adaln_with_inverse_norm"]

_ARGUMENTS = (
    "(Tensor x, Tensor? shift, Tensor? scale, Tensor? weight, Tensor? bias, Tensor? discard, bool add_one, str norm, "
    "float eps, bool discard_output, int topk_per_token, int ensemble, bool l2_normalize, ScalarType out_dtype, "
    "str? backend)"
)


def adaln(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    *,
    add_one: bool = True,
    norm: Literal["layer", "rms"] = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    discard: Sequence[int] | Tensor | None = None,
    discard_at: Literal["input", "output"] = "input",
    topk_per_token: int = 0,
    ensemble: int = 1,
    l2_normalize: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Norm and modulation of tokens, (B, N, D), in the order of the module's formula.

    Args:
        x: (B*E, N, D), any strides; row b*E + e is member e of image b. (N, D) means B = E = 1.
        shift, scale: (D,), (B, D) or (B|1, 1|N, D), any strides, or None; one per image, not per ensemble member.
        add_one: multiply by 1 + scale; False: by scale itself.
        norm: "layer" subtracts the mean, "rms" does not.
        weight, bias: (D,), the norm's own affine parameters, or None.
        eps: of the norm.
        discard: channels to zero: distinct integers in 0..D-1, or an integer tensor (n,), whose values are not looked
            at (no synchronisation; one outside 0..D-1 names no channel).
        discard_at: before the norm or after the modulation.
        topk_per_token: zero each token's k largest |x|, before the norm; of equal ones those of the lowest channels.
        ensemble: E, how many consecutive rows of x are averaged.
        l2_normalize: divide each row by max(its length, 1e-12).
        out_dtype: float32, bfloat16 or float16; None: the dtype of x. Rounded to once, at the end.
        backend: "auto", "triton", "torch" or "verify"; None: what ``use_backend`` or the environment says.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here, or has no backward pass for an input that requires grad.
    """
    args = _checked(
        x, shift, scale, weight, bias, discard, add_one, norm, eps, discard_at, topk_per_token, ensemble, l2_normalize,
        out_dtype,
    )  # fmt: skip
    if takes_gradient("adaln", backend, *args[:5]):
        return reference.adaln(*args)
    return _adaln(*args, backend)


def adaln_with_inverse_norm(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    *,
    add_one: bool = True,
    norm: Literal["layer", "rms"] = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    discard: Sequence[int] | Tensor | None = None,
    discard_at: Literal["input", "output"] = "input",
    topk_per_token: int = 0,
    ensemble: int = 1,
    l2_normalize: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`adaln` and, from the same pass, the inverse norms of its rows.

    Returns:
        (B, N, D), and 1 / max(|row|, 1e-12) as (B, N) float32, taken before the row is rounded to ``out_dtype``
        (in half precision the rounded row's own norm differs by about 1e-4 of itself).
    """
    args = _checked(
        x, shift, scale, weight, bias, discard, add_one, norm, eps, discard_at, topk_per_token, ensemble, l2_normalize,
        out_dtype,
    )  # fmt: skip
    if takes_gradient("adaln_with_inverse_norm", backend, *args[:5]):
        return reference.adaln_with_inverse_norm(*args)
    return _adaln_with_inverse_norm(*args, backend)


# --- checks ----------------------------------------------------------------------------------------------------------


def _checked(
    x, shift, scale, weight, bias, discard, add_one, norm, eps, discard_at, topk_per_token, ensemble, l2_normalize,
    out_dtype,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of the registered op, without the backend."""
    if x.ndim == 2:
        x = x[None]
    if x.ndim != 3 or x.shape[2] == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B*E, N, D) or (N, D) with D of at least 1")
    check_dtype("x", x.dtype)
    out_dtype = x.dtype if out_dtype is None else out_dtype
    check_dtype("out_dtype", out_dtype)
    check_integer("ensemble", ensemble, 1, None)
    if x.shape[0] % ensemble:
        raise ValueError(f"ensemble: got {ensemble}, expected a divisor of the {x.shape[0]} rows of x")
    images, tokens, channels = x.shape[0] // ensemble, x.shape[1], x.shape[2]
    check_integer("topk_per_token", topk_per_token, 0, channels)
    if norm not in ("layer", "rms"):
        raise ValueError(f'norm: got {norm!r}, expected "layer" or "rms"')
    if discard_at not in ("input", "output"):
        raise ValueError(f'discard_at: got {discard_at!r}, expected "input" or "output"')
    if eps < 0:
        raise ValueError(f"eps: got {eps}, expected a number of at least 0")
    shift, scale = (_modulation(name, t, x, images, tokens) for name, t in (("shift", shift), ("scale", scale)))
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.shape != (channels,):
            raise ValueError(f"{name}: got shape {tuple(t.shape)}, expected ({channels},)")
        _check_place(name, t, x)
    discard = _channels(discard, channels, x.device)
    return (
        x, shift, scale, weight, bias, discard, bool(add_one), norm, float(eps), discard_at == "output",
        topk_per_token, ensemble, bool(l2_normalize), out_dtype,
    )  # fmt: skip


def _modulation(name: str, t: Tensor | None, x: Tensor, images: int, tokens: int) -> Tensor | None:
    """Shift or scale as a view (1|B, 1|N, D)."""
    if t is None:
        return None
    _check_place(name, t, x)
    view = {1: (None, None), 2: (slice(None), None), 3: ()}.get(t.ndim)
    viewed = t[view] if view is not None else t
    if (
        viewed.ndim != 3
        or viewed.shape[2] != x.shape[2]
        or viewed.shape[0] not in (1, images)
        or viewed.shape[1] not in (1, tokens)
    ):
        d = x.shape[2]
        raise ValueError(
            f"{name}: got shape {tuple(t.shape)}, expected ({d},), ({images}, {d}) or "
            f"(1 or {images}, 1 or {tokens}, {d}): one per image, not per ensemble member"
        )
    return viewed


def _channels(discard: Sequence[int] | Tensor | None, channels: int, device: torch.device) -> Tensor | None:
    """Channel indices as an int32 tensor (n,) on the device, or None for none."""
    if discard is None:
        return None
    if isinstance(discard, torch.Tensor):
        if discard.ndim != 1 or discard.is_floating_point() or discard.dtype == torch.bool:
            raise ValueError(
                f"discard: got shape {tuple(discard.shape)} {discard.dtype}, expected (n,) of an integer dtype"
            )
        if discard.device != device:
            raise ValueError(f"discard: got a tensor on {discard.device}, expected one on {device}")
        return discard if discard.numel() else None
    try:
        indices = tuple(operator.index(c) for c in discard)
    except TypeError:
        raise ValueError(f"discard: got {discard!r}, expected integers, an integer tensor or None") from None
    for c in indices:
        if not 0 <= c < channels:
            raise ValueError(f"discard: got channel {c}, expected 0..{channels - 1}")
    if len(set(indices)) != len(indices):
        raise ValueError(f"discard: got {indices}, expected distinct channels")
    if not indices:
        return None
    if torch.compiler.is_compiling():
        return torch.tensor(indices, dtype=torch.int32, device=device)
    return _channels_on(indices, device)


@functools.lru_cache(maxsize=256)
def _channels_on(indices: tuple[int, ...], device: torch.device) -> Tensor:
    """One copy to the device per list, not per call."""
    return torch.tensor(indices, dtype=torch.int32, device=device)


def _check_place(name: str, t: Tensor | None, x: Tensor) -> None:
    if t is None:
        return
    check_dtype(name, t.dtype)
    if t.device != x.device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected one on {x.device}, where x is")


# --- registration ----------------------------------------------------------------------------------------------------


def _fake(x, *rest) -> Tensor:
    ensemble, out_dtype = rest[10], rest[12]
    return x.new_empty((x.shape[0] // ensemble, x.shape[1], x.shape[2]), dtype=out_dtype)


def _fake_with_inverse_norm(x, *rest) -> tuple[Tensor, Tensor]:
    y = _fake(x, *rest)
    return y, x.new_empty(y.shape[:2], dtype=torch.float32)


def _compare(_inputs, kernel: Tensor, twin: Tensor) -> None:
    _backend.check_close("adaln", "features", kernel, twin)


def _compare_with_inverse_norm(_inputs, kernel: tuple[Tensor, Tensor], twin: tuple[Tensor, Tensor]) -> None:
    _backend.check_close("adaln_with_inverse_norm", "features", kernel[0], twin[0])
    _backend.check_close("adaln_with_inverse_norm", "inverse_norm", kernel[1], twin[1])


_adaln = define(
    f"adaln{_ARGUMENTS} -> Tensor",
    twin=reference.adaln,
    kernel="adaln.adaln",
    fake=_fake,
    compare=_compare,
)
_adaln_with_inverse_norm = define(
    f"adaln_with_inverse_norm{_ARGUMENTS} -> (Tensor, Tensor)",
    twin=reference.adaln_with_inverse_norm,
    kernel="adaln.adaln_with_inverse_norm",
    fake=_fake_with_inverse_norm,
    compare=_compare_with_inverse_norm,
)
