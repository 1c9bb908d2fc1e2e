"""A norm whose result waits for its modulation, so that ``norm(x) * (1 + scale) + shift`` runs as one kernel.

The norm returns a tensor that holds no numbers yet. Multiplied by a tensor it stays so; with a tensor added, the whole
expression goes to ``ditf_kernels.adaln`` at once: one read of x and one write instead of three of each. Dtype casts and
token slices are remembered too. Any other operation computes the module's own expression first, so a model never
notices. What follows a norm is learnt: one that nothing multiplies is plain from then on, one without a shift finishes
at the product.

The first result of each kind (dtype, device) is computed both ways, on the numbers of the model itself: what the plain
expression gives, evaluated step by step as the block asks for it, against the kernel. A norm that disagrees says so and
stays plain; the block goes on with the plain result.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._pytree import tree_map_only

from ditf_kernels import BackendError, adaln
from ditf_kernels import VerificationError as KernelVerificationError

from .errors import DitfError, kernel_errors

__all__ = ["SWAP", "FusedNorm", "LazyNorm", "Swap", "disagreement", "fused_class", "modulated"]

log = logging.getLogger("ditf")
aten = torch.ops.aten

SWAP = "_ditf_swap"
"""The one attribute a swapped module carries."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
COMPARED_TOKENS = 4096
RAISED = (DitfError, BackendError, KernelVerificationError, torch.OutOfMemoryError)
"""Errors that are the caller's to know; any other failure of a kernel leaves its norm plain."""


@dataclass(eq=False)
class Swap:
    """What a swapped norm computes and what has been learnt about it.

    Attributes:
        name: of the module in its transformer.
        kind, eps: of the norm.
        zero_centred: the multiplier is 1 + weight.
        proven: (dtypes, device) whose first result agreed with the plain expression -> dtype of the plain norm.
        plain: nothing that a kernel could do follows this norm.
        no_shift: only a product follows it.
        failure: why it was given up, or empty.
    """

    name: str
    kind: Literal["layer", "rms"]
    eps: float
    zero_centred: bool = False
    proven: dict[Any, torch.dtype] = field(default_factory=dict)
    plain: bool = False
    no_shift: bool = False
    failure: str = ""

    def give_up(self, failure: str) -> None:
        self.plain, self.failure = True, failure
        log.warning("%s stays as it was: %s", self.name, failure)


class FusedNorm(nn.Module):
    """Comes before a norm's own class; everything but ``forward`` is that class's."""

    plain_class: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, FusedNorm):  # swapped back, but an offloading hook has kept this bound method
            return type(self).forward(self, *args, **kwargs)
        if torch.compiler.is_compiling() or kwargs or len(args) != 1 or not self._may_wait(args[0]):
            return super().forward(*args, **kwargs)
        return _deferred(self, super().forward, args[0])

    def _may_wait(self, x: Any) -> bool:
        swap: Swap = getattr(self, SWAP)
        if swap.plain or type(x) is not Tensor or x.dtype not in FLOATS or x.ndim < 2:
            return False
        affine = [t for t in (getattr(self, "weight", None), getattr(self, "bias", None)) if t is not None]
        return (
            all(t.dtype in FLOATS and t.shape == x.shape[-1:] and t.device == x.device for t in affine)
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *affine)))
            and not (self._forward_hooks or torch_module._global_forward_hooks)  # they expect numbers
            and not (affine and "forward" in self.__dict__)  # offloading takes the weights away after this call
            and not torch.is_autocast_enabled(x.device.type)
            and not _transformed(x)
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _revived, (self.plain_class,), self.__dict__.copy()


@functools.cache
def fused_class(plain: type[nn.Module]) -> type[FusedNorm]:
    """The fused subclass of a norm's class."""
    about = {"plain_class": plain, "__module__": __name__, "__doc__": f"{plain.__name__}, fused with what follows it."}
    return type(f"Fused{plain.__name__}", (FusedNorm, plain), about)


def _revived(plain: type[nn.Module]) -> FusedNorm:
    """An empty fused norm, for copying and pickling: its class has no name to import."""
    cls = fused_class(plain)
    return cls.__new__(cls)


def _transformed(x: Tensor) -> bool:
    """Whether someone watches the operations: tracing, dispatch modes, vmap, forward-mode differentiation."""
    return (
        torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        or forward_ad._current_level >= 0
        or torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]
    )


# --- what waits ------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Pending:
    """``norm(x)`` or ``norm(x) * multiplier``, not computed.

    Attributes:
        x: what the kernel would read; its shape is the result's.
        weight, bias: of the norm.
        dtype: of the plain expression so far.
        grain: relative rounding of the coarsest dtype on the way.
        plain: computes the plain expression so far; at once and once only while ``unproven``.
        unproven: what agreement with the plain expression will prove, or None.
    """

    swap: Swap
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    dtype: torch.dtype
    grain: float
    plain: Callable[[], Tensor]
    unproven: tuple[Any, torch.dtype] | None
    multiplier: Tensor | None = None

    def then(
        self,
        operation: Callable[[Tensor], Tensor],
        *,
        x: Tensor | None = None,
        dtype: torch.dtype | None = None,
        multiplier: Tensor | None = None,
    ) -> _Pending:
        """The expression with one more operation, and what that changes."""
        before, dtype = self.plain, dtype or self.dtype
        if self.unproven is None:
            plain = lambda: operation(before())  # noqa: E731
        else:
            value = operation(before())
            plain = lambda: value  # noqa: E731
        return _Pending(
            self.swap, self.x if x is None else x, self.weight, self.bias, dtype,
            max(self.grain, torch.finfo(dtype).eps), plain, self.unproven,
            self.multiplier if multiplier is None else multiplier,
        )  # fmt: skip

    def compute(self, shift: Tensor | None) -> Tensor:
        """Norm, product and sum in one kernel; the plain expression where it cannot take them."""
        dtype = self.dtype if shift is None else torch.promote_types(self.dtype, shift.dtype)
        try:
            fused = modulated(self.swap, self.x, self.multiplier, shift, self.weight, self.bias, dtype)
        except RAISED:
            raise
        except Exception as error:
            if self.unproven is None:
                raise
            self.swap.give_up(f"the kernel failed with {type(error).__name__}: {error}")
            fused = None
        unproven = self.unproven
        if fused is not None and unproven is None:
            return fused
        plain = self.plain() if shift is None else self.plain() + shift
        if fused is None or unproven is None:
            return plain
        if failure := disagreement(fused, plain, max(self.grain, torch.finfo(dtype).eps)):
            self.swap.give_up(failure)
            return plain
        key, norm_dtype = unproven
        self.swap.proven[key] = norm_dtype
        return fused


def _deferred(norm: FusedNorm, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    swap: Swap = getattr(norm, SWAP)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    key = (x.dtype, None if weight is None else weight.dtype, x.device.type)
    dtype = swap.proven.get(key)
    if dtype is not None:
        grain = torch.finfo(dtype).eps
        return LazyNorm(_Pending(swap, x, weight, bias, dtype, grain, lambda: plain(x), None))
    value = plain(x)
    if value.dtype not in FLOATS or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return value  # a capture allows no look at the numbers
    grain = torch.finfo(value.dtype).eps
    return LazyNorm(_Pending(swap, x, weight, bias, value.dtype, grain, lambda: value, (key, value.dtype)))


class LazyNorm(Tensor):
    """What a fused norm returns: shape, dtype and device of the result, whose numbers are computed when asked for."""

    pending: _Pending
    numbers: Tensor | None

    # operations are caught below, at the dispatcher
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, pending: _Pending) -> LazyNorm:
        x = pending.x
        return Tensor._make_wrapper_subclass(cls, x.shape, dtype=pending.dtype, device=x.device)

    def __init__(self, pending: _Pending) -> None:
        self.pending, self.numbers = pending, None

    def __repr__(self, **kwargs: Any) -> str:
        return f"LazyNorm(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def computed(self) -> Tensor:
        """The numbers; learns from being asked for them."""
        if self.numbers is None:
            if self.pending.multiplier is None:
                self.pending.swap.plain = True
                self.numbers = self.pending.plain().contiguous()
            else:
                self.pending.swap.no_shift = True
                self.numbers = self.pending.compute(None)
        return self.numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (step := _STEPS.get(func)) is not None and (result := step(*args, **(kwargs or {}))) is not None:
            return result
        return func(*_numbers(args), **_numbers(kwargs or {}))


def _numbers(tree: Any) -> Any:
    return tree_map_only(LazyNorm, LazyNorm.computed, tree)


# --- operations that are waited for; None: compute what came before --------------------------------------------------


def _times(a: Any, b: Any) -> Tensor | None:
    lazy, other = (a, b) if isinstance(a, LazyNorm) else (b, a)
    pending = lazy.pending
    if lazy.numbers is not None or pending.multiplier is not None or not _fits(other, pending.x):
        return None
    dtype = torch.promote_types(pending.dtype, other.dtype)
    product = pending.then(lambda n: n * other, dtype=dtype, multiplier=other)
    return product.compute(None) if pending.swap.no_shift else LazyNorm(product)


def _plus(a: Any, b: Any, alpha: Any = 1) -> Tensor | None:
    lazy, other = (a, b) if isinstance(a, LazyNorm) else (b, a)
    if lazy.numbers is not None or alpha != 1 or not _fits(other, lazy.pending.x):
        return None
    return lazy.pending.compute(other)


def _cast(lazy: LazyNorm, *, dtype: Any = None, device: Any = None, **rest: Any) -> Tensor | None:
    if lazy.numbers is not None or dtype not in FLOATS or device not in (None, lazy.device):
        return None
    if any(value not in (None, False, torch.strided) for value in rest.values()):
        return None
    return LazyNorm(lazy.pending.then(lambda n: n.to(dtype), dtype=dtype))


def _slice(lazy: LazyNorm, dim: int = 0, *bounds: Any) -> Tensor | None:
    """Some of the tokens."""
    pending = lazy.pending
    if lazy.numbers is not None or pending.multiplier is not None or dim % lazy.ndim == lazy.ndim - 1:
        return None
    part = aten.slice.Tensor(pending.x, dim, *bounds)
    return LazyNorm(pending.then(lambda n: aten.slice.Tensor(n, dim, *bounds), x=part))


_STEPS: dict[Any, Callable[..., Tensor | None]] = {
    aten.mul.Tensor: _times,
    aten.add.Tensor: _plus,
    aten._to_copy.default: _cast,
    aten.slice.Tensor: _slice,
}


def _fits(other: Any, x: Tensor) -> bool:
    """Whether a kernel can take this multiplier or shift, broadcast to x."""
    return (
        type(other) in (Tensor, nn.Parameter)
        and other.dtype in FLOATS
        and other.device == x.device
        and 0 < other.ndim <= x.ndim
        and other.shape[-1] == x.shape[-1]
        and all(n in (1, m) for n, m in zip(other.shape, x.shape[-other.ndim :], strict=True))
        and not (torch.is_grad_enabled() and other.requires_grad)
    )


# --- the kernel ------------------------------------------------------------------------------------------------------


def modulated(
    swap: Swap,
    x: Tensor,
    multiplier: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """``norm(x) * multiplier + shift`` in one pass, rounded once; None where the shapes would take a copy.

    Args:
        x: (..., D), at least two dimensions.
        multiplier, shift: of at most as many dimensions, broadcast to x.
    """
    views = [_rows(t, x.shape) for t in (x, multiplier, shift) if t is not None]
    if any(view is None for view in views):
        return None
    rows: Any = views[0]
    scale = None if multiplier is None else views[1]
    offset = None if shift is None else views[-1]
    if weight is not None and swap.zero_centred:
        weight = weight + 1.0
    with kernel_errors():
        fused = adaln(
            rows, offset, scale, add_one=False, norm=swap.kind, weight=weight, bias=bias, eps=swap.eps,
            out_dtype=dtype,
        )  # fmt: skip
    return fused.view(x.shape)


def _rows(t: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A tensor that broadcasts to this shape, as a view (B, N, D) or (B|1, 1|N, D); None where that takes a copy.

    Sequence-first tokens (S, B, D) are S images of B tokens, or one image of S tokens where B is 1.
    """
    t = t[(None,) * (len(shape) - t.ndim)]
    if len(shape) == 2:
        return t[None]
    if len(shape) == 3:
        return t.transpose(0, 1) if shape[1] == 1 else t
    if all(n == 1 for n in t.shape[1:-1]):
        return t.flatten(1, -2)
    try:
        return t.expand(t.shape[0], *shape[1:]).view(t.shape[0], -1, shape[-1])
    except RuntimeError:
        return None


def disagreement(fused: Tensor, plain: Tensor, grain: float) -> str:
    """How the kernel's result differs from the plain expression's, in words; empty where it does not.

    Compared on at most 4096 tokens, spread over all; the difference's length over the result's may reach 1e-4, or
    4 roundings of the coarsest dtype on the way: the plain expression rounds at every step.
    """
    if fused.shape != plain.shape or fused.dtype != plain.dtype:
        got, expected = (f"{tuple(t.shape)} {t.dtype}" for t in (fused, plain))
        return f"the kernel gives {got}, the plain expression {expected}"
    step = max(1, fused.shape[:-1].numel() // COMPARED_TOKENS)
    a, b = (t.reshape(-1, t.shape[-1])[::step].float() for t in (fused, plain))
    size = torch.linalg.vector_norm(b)
    error = float(torch.linalg.vector_norm(a - b) / size.clamp_min(1e-12))
    if not bool(size.isfinite()):
        return ""  # the model's own numbers overflow; they will again
    limit = max(1e-4, 4 * grain)
    if error <= limit:
        return ""
    return f"the kernel's result differs from the plain expression's by {error:.2g} of its size, allowed {limit:.2g}"
