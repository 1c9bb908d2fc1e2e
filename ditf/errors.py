"""What can go wrong, said in one sentence each: the value that was given and the way to mend it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ditf_kernels.backend import BackendError
from ditf_kernels.backend import VerificationError as _KernelVerificationError

__all__ = ["DitfError", "InputError", "ModelError", "StoreError", "VerificationError", "kernel_errors"]


class DitfError(Exception):
    """Base of every error that ditf raises on purpose."""


class ModelError(DitfError):
    """A model that is unknown, gated, offline, incomplete or no diffusion transformer."""


class InputError(DitfError, ValueError):
    """An argument that cannot be used; names the argument, what was given and what is expected."""

    @classmethod
    def of(cls, argument: str, got: object, expected: str) -> InputError:
        """The usual sentence: ``argument: got X, expected Y``."""
        return cls(f"{argument}: got {got!r}, expected {expected}")


class StoreError(DitfError):
    """A feature file or folder that cannot be read or written."""


class VerificationError(DitfError, _KernelVerificationError):
    """A fused kernel and its PyTorch twin disagree."""


@contextlib.contextmanager
def kernel_errors() -> Iterator[None]:
    """Raise the kernels' own errors as children of :class:`DitfError`, so that callers catch one family."""
    try:
        yield
    except _KernelVerificationError as error:
        raise VerificationError(str(error)) from error
    except BackendError as error:
        raise InputError(f"fused: {error}") from error
