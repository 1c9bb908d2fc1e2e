"""Registration of the ops with torch.library, and the one place where an implementation is chosen."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import backend

NAMESPACE = "ditf_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_log = logging.getLogger(NAMESPACE)
_said: set[str] = set()

registered: list[str] = []  # the names of all ops, in order of registration
_explaining: ContextVar[bool] = ContextVar("ditf_kernels_explaining", default=False)


@dataclass(frozen=True)
class Explanation:
    """What one call would run.

    Attributes:
        op: name of the registered op.
        implementation: "triton", "torch" or "verify" (both).
        reason: in words.
    """

    op: str
    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.implementation} ({self.reason})"


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which implementation a call would run, and why; nothing is computed.

    >>> print(explain(adaln, x, shift, scale))
    adaln: triton (Triton compiles for CUDA tensors)

    Args:
        op: a public op of ``ditf_kernels``; the rest are its arguments.

    Raises:
        ValueError, BackendError: what the call itself would raise.
        TypeError: no op of ``ditf_kernels``.
    """
    token = _explaining.set(True)
    try:
        op(*args, **kwargs)
    except _ExplainedError as answer:
        return answer.explanation
    finally:
        _explaining.reset(token)
    raise TypeError(f"op: got {op!r}, expected a function of ditf_kernels such as adaln")


class _ExplainedError(Exception):
    """Carries the answer of :func:`explain` out of the call it asks about."""

    def __init__(self, op: str, implementation: str, reason: str) -> None:
        super().__init__(op)
        self.explanation = Explanation(op, implementation, reason)


def define(
    schema: str,
    *,
    twin: Callable[..., Any],
    kernel: str,
    fake: Callable[..., Any],
    compare: Callable[[tuple[Any, ...], Any, Any], None],
    limit: Callable[..., str | None] = lambda *inputs: None,
) -> Callable[..., Any]:
    """Register an op whose last argument is ``str? backend``, and return it.

    Args:
        schema: of torch.library; the twin takes the same arguments without the last.
        twin: the PyTorch implementation.
        kernel: "module.function" below ``ditf_kernels._triton``, imported at the first call that needs Triton.
        fake: shapes and dtypes of the results, for tracing.
        compare: raises VerificationError if the results of kernel and twin differ; called with the arguments and both.
        limit: why the kernel cannot take these arguments, or None. "auto" runs the twin then.

    A call raises:
        BackendError: the backend asked for cannot run here, or cannot take the arguments.
    """
    name = schema.partition("(")[0]

    def implementation(*args: Any) -> Any:
        *inputs, asked = args
        chosen, reason = backend.resolve(asked, inputs[0].device.type), None
        if chosen != "torch" and (reason := limit(*inputs)):
            if not backend.asks_for(asked, "auto"):
                raise backend.BackendError(f'backend: got "{chosen}" for {name}, but {reason}; use "torch"')
            chosen = "torch"
        if _explaining.get():
            raise _ExplainedError(name, chosen, reason or backend.why(inputs[0].device.type, asked)[1])
        if chosen == "torch":
            return twin(*inputs)
        module, _, function = kernel.partition(".")
        launch = getattr(importlib.import_module(f"{NAMESPACE}._triton.{module}"), function)
        result = launch(*inputs)
        backend.count_kernel(name)
        if chosen == "verify":
            compare(tuple(inputs), result, twin(*inputs))
            backend.count_comparison(name)
        return result

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")  # every device; without a backward pass
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    registered.append(name)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def takes_gradient(op: str, asked: str | None, *tensors: Tensor | None) -> bool:
    """Whether the differentiable twin has to run, because an input requires grad; says so once per op.

    Raises:
        BackendError: the caller asked for "triton", whose kernels have no backward pass.
    """
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return False
    tracing = torch.compiler.is_compiling()
    if asked == "triton" or (not tracing and backend.asks_for(asked, "triton")):
        raise backend.BackendError(
            f'backend: got "triton" for {op} with an input that requires grad, but the kernels are for inference; '
            "call it under torch.no_grad(), detach the input, or choose another backend"
        )
    if _explaining.get():
        raise _ExplainedError(op, "torch", "an input requires grad, and the kernels have no backward pass")
    if not tracing and op not in _said:
        _said.add(op)
        _log.info("%s: an input requires grad, the differentiable PyTorch twin runs instead of the kernel", op)
    return True
