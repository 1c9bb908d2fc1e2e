"""Count what a forward computes and holds by running it on tensors without memory."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Meter", "metered"]


class Meter(TorchDispatchMode):
    """Sees every operator below autograd.

    A tensor counts from the operator that makes it until Python drops the last reference to its storage, so in-place
    operators and views are free and a temporary counts as long as the model's own code keeps it. What exists before,
    the weights, does not count. Memory that a kernel takes inside (cuDNN's workspaces, a matrix product's split) is
    not seen.

    Attributes:
        flops: of matrix products, convolutions and attention; one multiplication and one addition are two.
        peak_bytes: the most that was alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.peak_bytes = 0
        self._live_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            self._see(value, made=False)
        out = func(*args, **kwargs)
        for value in tree_leaves(out):
            self._see(value, made=True)
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(count(*args, **kwargs, out_val=out))
        return out

    def _see(self, value: Any, *, made: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made else 0
        self._known.add(key)
        self._live_bytes += size
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live_bytes -= size


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """A meter over the block, without gradients; attention counts as one fused operator without an N x N matrix."""
    meter = Meter()
    with torch.no_grad(), meter, _FusedAttention(meter):
        yield meter


class _FusedAttention(TorchFunctionMode):
    """``scaled_dot_product_attention`` as the flash kernels run it: two products, and nothing kept but the output."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        rows, width = query.shape[:-1].numel(), query.shape[-1]  # (B, H, N, D); key (B, h, M, D), value (B, h, M, E)
        self._meter.flops += 2 * rows * key.shape[-2] * (width + value.shape[-1])
        if query.ndim < 4:
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        outer, heads, length = query.shape[:-3], query.shape[-3], query.shape[-2]
        # (B, N, H, E), the layout that the kernels write
        return query.new_empty((*outer, length, heads, value.shape[-1])).transpose(-2, -3)
