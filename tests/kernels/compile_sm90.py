"""Compile every kernel for sm_90 as a user's call would, without a GPU, and print what the assembler says as JSON.

Run as a script, without TRITON_INTERPRET: an interpreted kernel cannot be compiled.
"""

import json
import re
import subprocess
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from ditf_kernels._triton import adaln, channels, propagate, upsampled


def compiled(kernel, types, constants, options):
    """The kernel for sm_90; every pointer and every stride that is not constant is divisible by 16."""
    names = kernel.arg_names
    free = [name for name in names if name not in constants]
    divisible = [n for n in free if types.get(n, "i32").startswith("*") or n.startswith("stride")]
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else types.get(n, "i32") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in divisible},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(binary):
    """Registers and spilled bytes of a thread, shared memory of a program, the kinds of its global loads,
    how many bytes its asynchronous copies to shared memory take at a time, and its matrix products."""
    ptx = binary.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
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


def choose_case(query="bf16", keys="bf16", width=3072, topk=5, **flags):
    widen = query != keys or keys == "fp32"
    types = {"query_ptr": f"*{query}", "keys_ptr": f"*{keys}", "inverse_ptr": "*fp32", "best_ptr": "*i64"}
    table, options = split(propagate.choose_options(widen))
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
    "propagate, choose fp16, k = 32": lambda: choose_case("fp16", "fp16", 3072, 32),
    "propagate, choose fp32": lambda: choose_case("fp32", "fp32"),
    "propagate, choose fp32 x fp16": lambda: choose_case("fp32", "fp16"),
    "propagate, blend": lambda: blend_case(),
    "propagate, blend fp16": lambda: blend_case("fp16"),
    "planes fp16": lambda: upsampled_case("planes"),
    "planes fp32": lambda: upsampled_case("planes", key="fp32"),
    "coarse fp32 x fp16": lambda: upsampled_case("coarse", WIDEN=True),
    "coarse fp16 x fp16": lambda: upsampled_case("coarse", query="fp16", WIDEN=False),
    "argmax": lambda: upsampled_case("argmax", mask_ptr=None),
    "argmax, masked": lambda: upsampled_case("argmax"),
    "decode": lambda: upsampled_case("decode"),
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or CASES
    print(json.dumps({name: resources(CASES[name]()) for name in chosen}))
