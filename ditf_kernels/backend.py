"""Which implementation of an op runs: a Triton kernel, its PyTorch twin, or both, compared.

=========  ============================================================================================
"auto"     Triton for CUDA tensors and when ``TRITON_INTERPRET=1``, else the twin
"triton"   the Triton kernel, or :class:`BackendError`
"torch"    the PyTorch twin
"verify"   both; a difference beyond the table of the dtype raises :class:`VerificationError`
=========  ============================================================================================

Precedence: the ``backend=`` keyword of the op, the innermost ``with use_backend(...)``, the environment variable
``DITF_KERNELS_BACKEND``, "auto". It is resolved when an op runs, never when it is traced.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BACKENDS",
    "BackendError",
    "VerificationError",
    "check_close",
    "count_comparison",
    "count_kernel",
    "describe",
    "kernel_counts",
    "reset_verification_counts",
    "resolve",
    "use_backend",
    "verification_counts",
    "why",
]

BACKENDS = ("auto", "triton", "torch", "verify")
ENVIRONMENT = "DITF_KERNELS_BACKEND"

# (absolute, relative) difference allowed between a kernel and its twin. Both compute in float32 and round once, so a
# half-precision result may land on the neighbouring number and no farther.
TOLERANCE = {
    torch.float32: (2e-5, 2e-5),
    torch.float16: (1e-4, 2.0**-10),
    torch.bfloat16: (1e-3, 2.0**-7),
    torch.float64: (2e-5, 2e-5),
}

_innermost: ContextVar[str | None] = ContextVar("ditf_kernels_backend", default=None)
_counts: Counter[str] = Counter()
_kernels: Counter[str] = Counter()
_counts_lock = threading.Lock()


class BackendError(RuntimeError):
    """The backend asked for does not exist or cannot run here; the message says what to do."""


class VerificationError(RuntimeError):
    """A Triton kernel and its PyTorch twin disagree; names op, shape, dtype and the largest error."""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block, in this thread or task, on the backend of this name.

    Raises:
        BackendError: no backend has this name.
    """
    token = _innermost.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _innermost.reset(token)


def resolve(keyword: str | None, device_type: str) -> str:
    """What runs for tensors on this kind of device: "triton", "torch" or "verify".

    Raises:
        BackendError: an unknown name, or "triton" or "verify" where Triton cannot run.
    """
    name, source = _asked(keyword)
    if name == "torch":
        return name
    runs, reason = _triton_runs(device_type)
    if name == "auto":
        return "triton" if runs else "torch"
    if not runs:
        raise BackendError(f'{source}: got "{name}", but {reason}')
    return name


def asks_for(keyword: str | None, name: str) -> bool:
    """Whether the caller named this backend, by keyword, context or environment."""
    return _asked(keyword)[0] == name


def why(device_type: str, keyword: str | None = None) -> tuple[str, str]:
    """The backend chosen for tensors on this kind of device, and the reason in words."""
    name, source = _asked(keyword)
    if name == "torch":
        return "torch", f'{source} is "torch"'
    runs, reason = _triton_runs(device_type)
    if name == "auto":
        return ("triton" if runs else "torch"), reason
    return (name, f'{source} is "{name}", and {reason}') if runs else ("none", f'{source} is "{name}", but {reason}')


def describe() -> dict[str, Any]:
    """What a person asks when the wrong implementation runs: plain values, for printing."""
    try:
        version, error = importlib.import_module("triton").__version__, None
    except Exception as failure:  # a broken install fails in many ways; all of them belong in the report
        version, error = None, f"{type(failure).__name__}: {failure}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen, reason = why(device)
    return {
        "triton": version,
        "triton_error": error,
        "interpreter": _interpreter_asked(),
        "cuda": torch.cuda.get_device_name() if device == "cuda" else None,
        "device": device,
        "backend": chosen,
        "reason": reason,
    }


def _asked(keyword: str | None) -> tuple[str, str]:
    """The name in force and where it comes from."""
    if keyword is not None:
        return _checked(keyword, "backend"), "backend"
    if (inner := _innermost.get()) is not None:
        return inner, "use_backend"
    if environment := os.environ.get(ENVIRONMENT):
        return _checked(environment, ENVIRONMENT), ENVIRONMENT
    return "auto", "default"


def _checked(name: object, source: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"{source}: got {name!r}, expected one of {', '.join(BACKENDS)}")
    return str(name)


def _interpreter_asked() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _triton_runs(device_type: str) -> tuple[bool, str]:
    """Whether a kernel can run on this kind of device, and the reason. Imports Triton only where it could."""
    interpreter = _interpreter_asked()
    if device_type != "cuda" and not interpreter:
        return False, (
            f"Triton does not run on {device_type} tensors; use a CUDA device, "
            "or set TRITON_INTERPRET=1 before Python starts to run the kernels in its (slow) interpreter"
        )
    early = "triton" in sys.modules
    try:
        interpreted = importlib.import_module("ditf_kernels._triton").INTERPRETED
    except ImportError as error:
        return False, f"Triton cannot be imported ({error}); pip install triton"
    if interpreter and not interpreted:
        when = "Triton was imported before TRITON_INTERPRET=1 was set" if early else "Triton ignores TRITON_INTERPRET"
        return device_type == "cuda", f"{when}; set TRITON_INTERPRET=1 before Python starts"
    if interpreted:
        return True, "TRITON_INTERPRET=1 runs the kernels in Triton's interpreter"
    return True, "Triton compiles for CUDA tensors"


# --- counts ----------------------------------------------------------------------------------------------------------


def kernel_counts() -> dict[str, int]:
    """How many times each op ran its Triton implementation in this process: what a silent fallback would not do."""
    with _counts_lock:
        return dict(_kernels)


def count_kernel(op: str) -> None:
    """One more run of this op in Triton."""
    with _counts_lock:
        _kernels[op] += 1


# --- verification ----------------------------------------------------------------------------------------------------


def verification_counts() -> dict[str, int]:
    """How many times each op has been compared with its twin in this process."""
    with _counts_lock:
        return dict(_counts)


def reset_verification_counts() -> None:
    """Start counting comparisons from zero."""
    with _counts_lock:
        _counts.clear()


def count_comparison(op: str) -> None:
    """One more comparison of this op."""
    with _counts_lock:
        _counts[op] += 1


def check_close(op: str, what: str, kernel: Tensor, twin: Tensor) -> None:
    """Compare one floating-point result; NaN equals NaN.

    Raises:
        VerificationError: shapes, dtypes, or values beyond the table of the dtype.
    """
    if kernel.shape != twin.shape or kernel.dtype != twin.dtype:
        got, expected = (f"{tuple(t.shape)} {t.dtype}" for t in (kernel, twin))
        raise VerificationError(f"{op}: {what} of the kernel is {got}, of its twin {expected}")
    absolute, relative = TOLERANCE[twin.dtype]
    a, b = kernel.to(torch.float64), twin.to(torch.float64)
    same = (a == b) | (a.isnan() & b.isnan())
    error = (a - b).abs().masked_fill(same, 0.0).nan_to_num(torch.inf)
    if bool((error > absolute + relative * b.abs().nan_to_num(0.0, 0.0, 0.0)).any()):
        raise VerificationError(
            f"{op}: {what}, shape {tuple(twin.shape)}, dtype {twin.dtype}, differs from its PyTorch twin by up to "
            f"{float(error.max()):.3g} ({absolute:.0e} + {relative:.0e} |value| allowed)"
        )
