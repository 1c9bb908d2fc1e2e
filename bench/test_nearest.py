"""cosine_argmax, mutual_nearest and cosine_topk beside a matrix product and what is done with its scores.

4096 rows a side on CUDA, 1024 on a CPU, at the widths of PixArt, SD3.5 and FLUX. Rivals keep their scores in float32
(``torch.mm(..., out_dtype=torch.float32)``): the product alone, which nothing that computes all scores can beat; the
product times the inverse norms of the keys, the maximum, times those of the queries ("product, max"), also compiled;
``F.normalize`` of both sides first, which in half precision rounds every row again ("normalise, product, max"). All
work out their norms; "ours, norms given" does not, as after ``adaln_with_inverse_norm``.

Floor: FLOPs = 2 * N * M * D; bytes = (N + M) * D elements and 12 a row of results. A matrix of scores moves N * M * 4
bytes twice and more on top. The targets on an H200: ``cosine_argmax`` within 1.15 times the product alone, and
``mutual_nearest`` 1.3 times as fast as the product and two maxima.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
import torch.nn.functional as F
from harness import GPU, measure, random
from torch import Tensor

from ditf_kernels import cosine_argmax, cosine_topk, mutual_nearest

ROWS = 4096 if GPU else 1024
WIDTHS = (1152, 1536, 2432, 3072) if GPU else (1152, 3072)
DTYPES = (torch.float16, torch.bfloat16) if GPU else (torch.float32,)
TOPK = 5
PRODUCT = "product alone (no answer)"
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # query (N, D), key (M, D), inverse norms (N,), (M,)


def product(query: Tensor, key: Tensor) -> Tensor:
    """(N, M) float32."""
    if query.dtype == torch.float32:
        return query @ key.T
    return torch.mm(query, key.T, out_dtype=torch.float32)


def inverse_norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).clamp_min(1e-12).reciprocal()


# --- argmax ----------------------------------------------------------------------------------------------------------


def product_max(query: Tensor, key: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    score, index = (product(query, key) * inverse_norm(key)).max(1)
    return index, score * inverse_norm(query)


def normalise_product_max(query: Tensor, key: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    score, index = product(F.normalize(query, dim=1), F.normalize(key, dim=1)).max(1)
    return index, score


def ours(query: Tensor, key: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return cosine_argmax(query, key)


def ours_given(query: Tensor, key: Tensor, query_norm: Tensor, key_norm: Tensor) -> tuple[Tensor, Tensor]:
    return cosine_argmax(query, key, query_inverse_norm=query_norm, key_inverse_norm=key_norm)


ARGMAX = {
    PRODUCT: lambda query, key, *_: product(query, key),
    "product, max": product_max,
    "normalise, product, max": normalise_product_max,
    "ours": ours,
    "ours, norms given": ours_given,
}


@pytest.mark.parametrize("provider", ARGMAX)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_argmax(benchmark, dtype: torch.dtype, width: int, provider: str) -> None:
    run(benchmark, "cosine_argmax", ARGMAX[provider], provider, dtype, width)


@pytest.mark.parametrize("provider", [harness.COMPILE])
@pytest.mark.parametrize("width", [WIDTHS[0], WIDTHS[-1]])
def test_argmax_compiled(benchmark, width: int, provider: str) -> None:
    torch._dynamo.reset()
    run(benchmark, "cosine_argmax", torch.compile(product_max, dynamic=False), provider, DTYPES[0], width)


# --- mutual and top-k ------------------------------------------------------------------------------------------------


def product_two_maxima(a: Tensor, b: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    scores, a_norm, b_norm = product(a, b), inverse_norm(a), inverse_norm(b)
    score_ab, index_ab = (scores * b_norm).max(1)
    score_ba, index_ba = (scores * a_norm[:, None]).max(0)
    mutual = index_ba[index_ab] == torch.arange(len(a), device=a.device)
    return index_ab, score_ab * a_norm, index_ba, score_ba * b_norm, mutual


def ours_mutual(a: Tensor, b: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    both = mutual_nearest(a, b)
    return both.index_ab, both.score_ab, both.index_ba, both.score_ba, both.mutual


def ours_twice(a: Tensor, b: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    (index_ab, score_ab), (index_ba, score_ba) = cosine_argmax(a, b), cosine_argmax(b, a)
    return index_ab, score_ab, index_ba, score_ba, index_ba[index_ab] == torch.arange(len(a), device=a.device)


MUTUAL = {"product, two maxima": product_two_maxima, "cosine_argmax twice": ours_twice, "ours": ours_mutual}


@pytest.mark.parametrize("provider", MUTUAL)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mutual(benchmark, dtype: torch.dtype, width: int, provider: str) -> None:
    run(benchmark, "mutual_nearest", MUTUAL[provider], provider, dtype, width)


def product_topk(query: Tensor, key: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    score, index = (product(query, key) * inverse_norm(key)).topk(TOPK)
    return index, score * inverse_norm(query)[:, None]


def ours_topk(query: Tensor, key: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return cosine_topk(query, key, TOPK)


@pytest.mark.parametrize("provider", ["product, topk", "ours"])
@pytest.mark.parametrize("width", [WIDTHS[0], WIDTHS[-1]])
def test_topk(benchmark, width: int, provider: str) -> None:
    function = ours_topk if provider == "ours" else product_topk
    run(benchmark, f"cosine_topk, k = {TOPK}", function, provider, DTYPES[0], width)


# --- rows ------------------------------------------------------------------------------------------------------------


def make_inputs(dtype: torch.dtype, width: int, rows: int = ROWS) -> Inputs:
    """Rows of unlike lengths."""
    query, key = (random(rows, width) * (0.5 + torch.rand(rows, 1, device=harness.DEVICE)) for _ in "qk")
    query, key = query.to(dtype), key.to(dtype)
    return query, key, inverse_norm(query), inverse_norm(key)


def run(benchmark, name: str, function: Callable[..., Any], provider: str, dtype: torch.dtype, width: int) -> None:
    """One row; what it found is compared with float64 before it counts."""
    if provider != PRODUCT:
        check(function, make_inputs(dtype, width), exact="normalise" not in provider)
    measure(
        benchmark,
        function,
        lambda: make_inputs(dtype, width),
        provider=provider,
        group=f"{name}, {ROWS} x {ROWS}, D = {width}, {str(dtype).removeprefix('torch.')}",
        bytes=2 * ROWS * (width * dtype.itemsize + 12),
        flops=2 * ROWS * ROWS * width,
        dtype=dtype,
    )


@torch.no_grad()
def check(function: Callable[..., tuple[Tensor, ...]], inputs: Inputs, *, exact: bool) -> None:
    """Each key chosen is as near as any and its score the true one; rounding of unit rows costs half precision both."""
    query, key = (F.normalize(t.double(), dim=1) for t in inputs[:2])
    scores, found = query @ key.T, function(*inputs)
    allowed = 1e-5 if exact or inputs[0].dtype == torch.float32 else 2e-3
    for side, (index, score) in zip((scores, scores.T), zip(found[0::2], found[1::2], strict=False), strict=False):
        k = score.shape[1] if score.ndim == 2 else 1
        best, chosen = side.topk(k).values, side.gather(1, index.view(-1, k))
        assert float((best - chosen).abs().max()) < allowed
        assert float((score.view(-1, k) - chosen).abs().max()) < allowed


@pytest.mark.skipif(GPU or not sys.platform.startswith("linux"), reason="reads the process's peak from Linux")
def test_peak_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Peak resident memory above the inputs, each in a process of its own, 8192 rows a side."""
    peak = {name: _peak_mb(name) for name in ("product_two_maxima", "ours_mutual")}
    with capsys.disabled():
        print("\npeak memory above the inputs: " + ", ".join(f"{name} {mb:.0f} MB" for name, mb in peak.items()))
    assert peak["ours_mutual"] * 4 < 8192**2 * 4 / 2**20 < peak["product_two_maxima"]


def _peak_mb(name: str) -> float:
    code = f"import test_nearest as t; t.print_peak({name!r})"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return float(run.stdout)


@torch.no_grad()
def print_peak(name: str) -> None:
    """Run one provider once on fresh inputs and print the growth of the process's peak memory in MB (Linux)."""
    inputs = make_inputs(torch.float32, 64, 8192)
    globals()[name](*make_inputs(torch.float32, 64, 8))  # warm-up
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _peak_kb()
    globals()[name](*inputs)
    print((_peak_kb() - before) / 1024)


def _peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
