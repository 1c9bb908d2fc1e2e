"""jit helpers on numbers: exact bfloat16, and 64-bit keys whose maximum is the answer of an argmax."""

import triton
import triton.language as tl

from . import INTERPRETED as _INTERPRETED

# Triton's interpreter drops bfloat16 subnormals when widening and truncates when narrowing (triton issue 11584).
INTERPRETED = tl.constexpr(_INTERPRETED)

NORM_FLOOR = tl.constexpr(1e-12)  # reference.NORM_FLOOR: a shorter vector counts as zero
CANCELLED = tl.constexpr(2.0**-10)  # reference.CANCELLED
NO_KEY = tl.constexpr(-(2**63))  # below every key: no pixel was chosen


@triton.jit
def load_float32(pointer, mask):
    """Load and widen, 0 where masked."""
    value = tl.load(pointer, mask=mask, other=0.0)
    if INTERPRETED and value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def store_rounded(pointer, value, mask):
    """Round float32 to the pointer's type, to nearest even, and store."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value == value, rounded, 0x7FC0).to(tl.uint16)
        tl.store(pointer, rounded.to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def is_finite(value):
    return tl.abs(value) < float("inf")  # false for NaN


@triton.jit
def ordered_key(value, index):
    """int64 whose maximum is the highest value, then the lowest index < 2^32. NaN must be removed first."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # + 0.0 makes -0.0 equal to 0.0
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits.to(tl.int64) << 32) | (0xFFFFFFFF - index.to(tl.int64))


@triton.jit
def key_value(key):
    """The value inside :func:`ordered_key`."""
    bits = (key >> 32).to(tl.int32)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def key_index(key):
    """The index inside :func:`ordered_key`."""
    return 0xFFFFFFFF - (key & 0xFFFFFFFF)
