"""Compile every kernel for sm_90 as a user's call would, without a GPU, and print what the assembler says as JSON.

Run as a script, without TRITON_INTERPRET: an interpreted kernel cannot be compiled.
"""

import contextlib
import io
import json
import re
import sys

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ditf_kernels._triton import adaln, channels, nearest, propagate, rows, upsampled, upsampled_dense


def compiled(kernel, types, constants, options):
    """The kernel for sm_90 and the assembler's log of it; every pointer and every stride that is not constant is
    divisible by 16."""
    names = kernel.arg_names
    free = [name for name in names if name not in constants]
    divisible = [n for n in free if types.get(n, "i32").startswith("*") or n.startswith("stride")]
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else types.get(n, "i32") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in divisible},
    )
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(io.StringIO()) as log:
        knobs.nvidia.dump_ptxas_log = True  # to stdout
        knobs.compilation.always_compile = True  # what comes from the cache has no log
        binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return binary, log.getvalue()


def resources(binary, log):
    """Registers and spilled bytes of a thread, shared memory of a program, the kinds of its global loads,
    how many bytes its asynchronous copies to shared memory take at a time, and its matrix products."""
    ptx = binary.asm["ptx"]
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    loads = re.findall(r"ld\.global(?:\.\w+)*?((?:\.v[248])?\.b\d+)", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (0x\w+)", ptx)
    return {
        "registers": int(re.search(r"Used (\d+) registers", log).group(1)),
        "spill_bytes": sum(map(int, spills.groups())),
        "shared": binary.metadata.shared,
        "loads": {kind: loads.count(kind) for kind in sorted(set(loads))},
        "wgmma": ptx.count("wgmma.mma_async"),
        "copies": {str(int(size, 16)): copies.count(size) for size in sorted(set(copies))},
    }


def split(options):
    """A launch table as (constants, compile options)."""
    constants = {name: value for name, value in options.items() if name.isupper()}
    return constants, {name: value for name, value in options.items() if not name.isupper()}


def adaln_case(width, dtype="bf16", *, affine=False, discard=True, **flags):
    block = triton.next_power_of_2(width)
    pointer = f"*{dtype}"
    types = {
        "x_ptr": pointer, "shift_ptr": pointer, "scale_ptr": pointer, "weight_ptr": pointer, "bias_ptr": pointer,
        "discard_ptr": "*i32", "y_ptr": pointer, "inverse_norm_ptr": "*fp32", "eps": "fp32",
    }  # fmt: skip
    constants = {
        "D": width, "BLOCK_D": block, "ENSEMBLE": 1, "TOPK": 0, "ADD_ONE": True, "RMS": False, "DISCARD_OUTPUT": False,
        "L2": False, "stride_x_channel": 1, "stride_shift_channel": 1, "stride_scale_channel": 1, "stride_weight": 1,
        "stride_bias": 1, "stride_discard": 1, **flags,
    }  # fmt: skip
    constants |= {} if affine else {"weight_ptr": None, "bias_ptr": None}
    constants |= {} if discard else {"discard_ptr": None}
    return compiled(adaln._adaln_kernel, types, constants, adaln.launch_options(block))


def channels_case(name, dtype="bf16", width=3072, **flags):
    kernel = getattr(channels, f"_{name}_kernel")
    types = {
        "x_ptr": f"*{dtype}", "partial_ptr": "*fp32", "magnitude_ptr": "*fp32", "index_ptr": "*i64",
        "largest_ptr": "*fp32", "median_ptr": "*fp32", "count": "fp32",
    }  # fmt: skip
    table, options = split(getattr(channels, name.upper()))
    constants = {**table, "D": width, "stride_channel": 1, **flags}
    constants = {n: value for n, value in constants.items() if n in kernel.arg_names}
    return compiled(kernel, types, constants, {**options, **channels.EXACT})


def choose_case(query="bf16", keys="bf16", width=3072, topk=5, shared_memory=227 * 1024, **flags):
    widen = query != keys or keys == "fp32"
    types = {"query_ptr": f"*{query}", "keys_ptr": f"*{keys}", "inverse_ptr": "*fp32", "best_ptr": "*i64"}
    table, options = split(propagate.choose_options(widen, shared_memory))
    constants = {
        **table, "D": width, "TOPK": topk, "KEEP": triton.next_power_of_2(topk), "WIDEN": widen,
        "stride_query_channel": 1, "stride_keys_channel": 1, **flags,
    }  # fmt: skip
    return compiled(propagate._choose_kernel, types, constants, options)


def blend_case(labels="fp32", **flags):
    types = {
        "best_ptr": "*i64", "inverse_ptr": "*fp32", "labels_ptr": f"*{labels}", "out_ptr": "*fp32",
        "index_ptr": "*i64", "score_ptr": "*fp32", "temperature": "fp32",
    }  # fmt: skip
    table, options = split(propagate.BLEND)
    constants = {**table, "stride_labels_cell": 1, **flags}
    return compiled(propagate._blend_kernel, types, constants, options)


def nearest_case(name, query="fp16", key=None, width=3072, tile=None, **flags):
    home, key = rows if name == "prepare" else nearest, key or query
    kernel = getattr(home, f"_{name}_kernel")
    types = {
        "query_ptr": f"*{query}", "key_ptr": f"*{key}", "query_inverse_ptr": "*fp32", "key_inverse_ptr": "*fp32",
        "query_mask_ptr": "*u8", "key_mask_ptr": "*u8", "query_best_ptr": "*i64", "key_best_ptr": "*i64",
        "best_ptr": "*i64", "inverse_ptr": "*fp32", "other_index_ptr": "*i64", "index_ptr": "*i64",
        "score_ptr": "*fp32", "mutual_ptr": "*i1",
    }  # fmt: skip
    table, options = split(tile.options() if tile else getattr(home, name.upper()))
    contiguous = ("query_inverse", "key_inverse", "query_mask", "key_mask", "inverse")
    constants = {
        **table, "D": width, "GROUP": nearest.GROUP, "WIDEN": "fp32" in (query, key), "stride_query_channel": 1,
        "stride_key_channel": 1, **{f"stride_{of}_row": 1 for of in contiguous}, **flags,
    }  # fmt: skip
    constants = {n: value for n, value in constants.items() if n in kernel.arg_names}
    return compiled(kernel, types, constants, options)


LARGE, SQUARE, SMALL = nearest.HALF
ROWS_ONLY = {"key_best_ptr": None, "query_mask_ptr": None, "key_mask_ptr": None}
WITHOUT_MASKS = {"query_mask_ptr": None, "key_mask_ptr": None}


def upsampled_case(name, query="fp32", key="fp16", width=3072, **flags):
    kernel = getattr(upsampled, f"_{name}_kernel")
    types = {
        "query_ptr": f"*{query}", "key_ptr": f"*{key}", "planes_ptr": "*fp32", "coarse_ptr": "*fp32", "mask_ptr": "*u8",
        "best_ptr": "*i64", "xy_ptr": "*i64", "score_ptr": "*fp32", "table_ptr": "*i64",
    }  # fmt: skip
    table, options = split(getattr(upsampled, name.upper()))
    constants = {**table, "D": width, "stride_query_channel": 1, "stride_key_channel": 1, "stride_cell": 1,
                 "stride_mask": 1, **flags}  # fmt: skip
    constants = {n: value for n, value in constants.items() if n in kernel.arg_names}
    return compiled(kernel, types, constants, options)


def dense_case(name, query="fp16", key="fp16", width=3072, **flags):
    kernel = getattr(upsampled_dense, f"_{name}_kernel")
    types = {
        "query_ptr": f"*{query}", "key_ptr": f"*{key}",
        **{f"{of}_ptr": "*i32" for of in ("axis_y", "axis_x", "corner", "raster", "found")},
        **{f"{of}_ptr": "*fp32" for of in ("scale", "coarse", "weight_y", "weight_x", "inverse", "lengths", "cells",
                                           "weight", "best")},
    }  # fmt: skip
    widen = query != key or key == "fp32"
    table, options = split(getattr(upsampled_dense, f"{name}_wide".upper() if widen else name.upper()))
    constants = {**table, "D": width, "WIDEN": widen, "stride_query_channel": 1,
                 "stride_key_channel": 1, **flags}  # fmt: skip
    constants = {n: value for n, value in constants.items() if n in kernel.arg_names}
    return compiled(kernel, types, constants, options)


CASES = {
    "adaln 3072 bf16": lambda: adaln_case(3072),
    "adaln 3072 bf16, everything": lambda: adaln_case(3072, affine=True, ENSEMBLE=8, TOPK=2, L2=True),
    "adaln 2432 bf16": lambda: adaln_case(2432, discard=False),
    "adaln 1152 fp16": lambda: adaln_case(1152, "fp16", discard=False),
    "adaln 3072 fp32": lambda: adaln_case(3072, "fp32"),
    "channels, partial bf16": lambda: channels_case("partial"),
    "channels, partial fp32": lambda: channels_case("partial", "fp32"),
    "channels, partial bf16 1152": lambda: channels_case("partial", width=1152),
    "channels, magnitude": lambda: channels_case("magnitude"),
    "channels, rank": lambda: channels_case("rank"),
    "propagate, choose bf16": lambda: choose_case(),
    "propagate, choose fp16 1152, k = 15": lambda: choose_case("fp16", "fp16", 1152, 15),
    "propagate, choose bf16, consumer's card": lambda: choose_case(shared_memory=99 * 1024),
    "propagate, choose fp16, k = 32": lambda: choose_case("fp16", "fp16", 3072, 32),
    "propagate, choose fp32": lambda: choose_case("fp32", "fp32"),
    "propagate, choose fp32 x fp16": lambda: choose_case("fp32", "fp16"),
    "propagate, blend": lambda: blend_case(),
    "propagate, blend fp16": lambda: blend_case("fp16"),
    "nearest, argmax 128 x 256 fp16": lambda: nearest_case("argmax", tile=LARGE, **ROWS_ONLY),
    "nearest, argmax 128 x 128 bf16 1152": lambda: nearest_case("argmax", "bf16", None, 1152, SQUARE, **ROWS_ONLY),
    "nearest, argmax 64 x 128 fp16": lambda: nearest_case("argmax", tile=SMALL, **ROWS_ONLY),
    "nearest, mutual 128 x 256 fp16": lambda: nearest_case("argmax", tile=LARGE, **WITHOUT_MASKS),
    "nearest, mutual 128 x 256 bf16 2432, masked": lambda: nearest_case("argmax", "bf16", None, 2432, LARGE),
    "nearest, mutual 128 x 128 fp16, masked": lambda: nearest_case("argmax", tile=SQUARE),
    "nearest, mutual 64 x 128 fp16, masked": lambda: nearest_case("argmax", tile=SMALL),
    "nearest, mutual fp32, masked": lambda: nearest_case("argmax", "fp32", tile=nearest.FLOAT32[0]),
    "nearest, argmax fp32 x fp16": lambda: nearest_case("argmax", "fp32", "fp16", tile=nearest.FLOAT32[0], **ROWS_ONLY),
    "nearest, topk 128 x 128 fp16, k = 8": lambda: nearest_case("topk", tile=SQUARE, KEEP=8),
    "nearest, topk 128 x 128 bf16 1536, k = 16": lambda: nearest_case("topk", "bf16", None, 1536, SQUARE, KEEP=16),
    "nearest, topk 64 x 128 fp16, k = 16": lambda: nearest_case("topk", tile=SMALL, KEEP=16),
    "nearest, topk fp32, k = 16": lambda: nearest_case("topk", "fp32", tile=nearest.FLOAT32_TOPK[0], KEEP=16),
    "nearest, prepare fp16": lambda: nearest_case("prepare"),
    "nearest, prepare fp32": lambda: nearest_case("prepare", "fp32"),
    "nearest, decode": lambda: nearest_case("decode"),
    "nearest, merge": lambda: nearest_case("merge", K=16, BLOCK_ROWS=8, BLOCK_WIDTH=128),
    "planes fp16": lambda: upsampled_case("planes"),
    "planes fp32": lambda: upsampled_case("planes", key="fp32"),
    "coarse fp32 x fp16": lambda: upsampled_case("coarse", WIDEN=True),
    "coarse fp16 x fp16": lambda: upsampled_case("coarse", query="fp16", WIDEN=False),
    "argmax": lambda: upsampled_case("argmax", mask_ptr=None),
    "argmax, masked": lambda: upsampled_case("argmax"),
    "decode": lambda: upsampled_case("decode"),
    "dense, coarse fp16": lambda: dense_case("coarse"),
    "dense, coarse fp32 x fp16": lambda: dense_case("coarse", "fp32"),
    "dense, nearest": lambda: dense_case("nearest"),
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or CASES
    print(json.dumps({name: resources(*CASES[name]()) for name in chosen}))
