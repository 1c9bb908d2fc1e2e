"""The kernels compiled for Hopper without a GPU: what the assembler reports about registers, spills and loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .summary import RESOURCES

pytest.importorskip("triton")

REGISTERS = {  # most that a thread may use, so that this many warps fit on a multiprocessor of 65,536 registers
    "adaln 3072 bf16": 80,
    "adaln 3072 bf16, everything": 128,
    "adaln 2432 bf16": 64,
    "adaln 1152 fp16": 48,
    "adaln 3072 fp32": 80,
    "channels, partial bf16": 128,
    "channels, partial fp32": 128,
    "channels, partial bf16 1152": 128,
    "channels, magnitude": 64,
    "channels, rank": 128,
    "propagate, choose bf16": 255,
    "propagate, choose fp16 1152, k = 15": 255,
    "propagate, choose bf16, consumer's card": 255,
    "propagate, choose fp16, k = 32": 255,
    "propagate, choose fp32": 128,
    "propagate, choose fp32 x fp16": 168,
    "propagate, blend": 168,
    "propagate, blend fp16": 168,
    "nearest, argmax 128 x 256 fp16": 192,
    "nearest, argmax 128 x 128 bf16 1152": 128,
    "nearest, argmax 64 x 128 fp16": 128,
    "nearest, mutual 128 x 256 fp16": 255,
    "nearest, mutual 128 x 256 bf16 2432, masked": 255,
    "nearest, mutual 128 x 128 fp16, masked": 208,
    "nearest, mutual 64 x 128 fp16, masked": 192,
    "nearest, mutual fp32, masked": 128,
    "nearest, argmax fp32 x fp16": 240,
    "nearest, topk 128 x 128 fp16, k = 8": 240,
    "nearest, topk 128 x 128 bf16 1536, k = 16": 240,
    "nearest, topk 64 x 128 fp16, k = 16": 240,
    "nearest, topk fp32, k = 16": 208,
    "nearest, prepare fp16": 40,
    "nearest, prepare fp32": 40,
    "nearest, decode": 32,
    "nearest, merge": 80,
    "planes fp16": 96,
    "planes fp32": 112,
    "coarse fp32 x fp16": 128,
    "coarse fp16 x fp16": 64,
    "argmax": 128,
    "argmax, masked": 128,
    "decode": 32,
    "dense, coarse fp16": 96,
    "dense, coarse fp32 x fp16": 184,
    "dense, nearest": 128,
}


PRODUCTS = [
    case
    for case in REGISTERS
    if case.startswith(("propagate, choose", "nearest, argmax", "nearest, mutual", "nearest, topk", "dense, coarse"))
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Compile in a process of its own, where the kernels are not interpreted, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_sm90"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_fits_in_its_registers_without_spills(report, record_property):
    record_property(RESOURCES, report)  # printed with the summary
    assert report.keys() == REGISTERS.keys()
    for case, resources in report.items():
        assert resources["spill_bytes"] == 0, case
        assert resources["registers"] <= REGISTERS[case], case
        assert resources["shared"] <= 227 * 1024, case


@pytest.mark.parametrize(
    "case", [case for case in REGISTERS if case.startswith(("adaln", "planes", "nearest, prepare"))]
)
def test_rows_are_read_sixteen_bytes_at_a_time(report, case):
    loads = report[case]["loads"]
    assert loads.get(".v4.b32", 0) >= 4
    assert not {kind for kind in loads if kind in (".b16", ".v2.b16")}  # nothing element by element


@pytest.mark.parametrize("case", [case for case in REGISTERS if case.startswith("channels, partial")])
def test_rows_are_copied_sixteen_bytes_at_a_time(report, case):
    copies = report[case]["copies"]
    assert copies.keys() == {"16"}
    assert copies["16"] >= 4
    assert not report[case]["loads"]  # nothing past the copies


@pytest.mark.parametrize("case", PRODUCTS)
def test_half_precision_products_run_on_the_tensor_cores(report, case):
    assert (report[case]["wgmma"] > 0) == ("fp32" not in case)
    if "fp32" not in case:
        assert report[case]["copies"].keys() == {"16"}  # operands reach shared memory sixteen bytes at a time
