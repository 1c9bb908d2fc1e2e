"""The kernels. Nothing outside this folder imports Triton, and this folder is imported only when a kernel runs.

``TRITON_INTERPRET=1`` takes effect when Triton is imported: its own library functions, and ours, are then interpreted.
"""

import triton.language as tl
from triton.runtime.jit import JITFunction

__all__ = ["INTERPRETED"]

INTERPRETED: bool = not isinstance(tl.sum, JITFunction)
