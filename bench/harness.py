"""What the suites share: shapes, one way to time on CUDA and on the CPU, and the limits of the device.

A suite calls :func:`measure` once per row of its tables and says what must move and what must be computed:

    @pytest.mark.parametrize("provider", ["eager", "ours"])
    def test_exp(benchmark, provider):
        inputs = lambda: (random(4096, 3072),)
        measure(benchmark, CALLS[provider], inputs, provider=provider, group="exp (4096, 3072)", bytes=..., flops=...)

On CUDA the time is that of the kernels: calls over inputs that rotate through more than three L2 caches, captured in
one CUDA graph whose replay is timed and synchronised. What a call costs the CPU, launches included and without waiting
for the GPU, is a number of its own (``call_us``). On the CPU the plain call is timed, on inputs as warm as it left
them: small ones stay in cache, and may beat a copy through memory. "Per cent of the limit" compares with a copy and a
matrix product measured in the same run, never with a data sheet.

``bench/summary.py`` makes the tables: it reads ``extra_info``, in which :func:`measure` leaves what it knows.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import functools
import gc
import itertools
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from summary import whole_us
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = DEVICE == "cuda"
DTYPE = torch.bfloat16 if GPU else torch.float32  # unless a suite has a reason
# Of every row, ours or not. One unless asked otherwise: threads that wait for each other at the end of every op measure
# whatever else runs on the machine.
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))

ROUND_SECONDS = 2e-3  # a replay lasts at least so long: its launch and the synchronisation are then below 1%
ROUNDS = 20  # replays
CALLS = 256  # in one graph, at most
CPU_SECONDS = 0.4  # of one row, its slowest call aside
SLOW_SECONDS = 1.0  # a CPU's call above this is timed once, after one warm-up

# Compiling takes seconds a row; `-m "not slow"` leaves that out where it would be most of the run.
COMPILE = pytest.param("torch.compile", marks=() if GPU else pytest.mark.slow)


class Shape(NamedTuple):
    """Tokens entering one block of a model: x is (batch, tokens, channels)."""

    model: str
    batch: int
    tokens: int
    channels: int

    def __str__(self) -> str:
        return f"{self.model} ({self.batch}, {self.tokens}, {self.channels})"


# Images of 640 px (1600 tokens) or 1024 px (4096), in FLUX behind its 512 text tokens.
SHAPES = (
    Shape("FLUX", 1, 4608, 3072),
    Shape("FLUX", 8, 2112, 3072),
    Shape("FLUX", 8, 4608, 3072),
    Shape("SD3.5-medium", 1, 4096, 1536),
    Shape("SD3.5-medium", 8, 4096, 1536),
    Shape("SD3.5-large", 1, 4096, 2432),
    Shape("SD3.5-large", 8, 4096, 2432),
    Shape("PixArt", 1, 4096, 1152),
    Shape("PixArt", 8, 4096, 1152),
)
CPU_SHAPES = (Shape("FLUX", 1, 1024, 3072), Shape("PixArt", 1, 1024, 1152))


def random(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Normal numbers on the device, new ones at every call."""
    return torch.randn(shape, device=DEVICE).to(dtype or DTYPE)


# --- one row of a table ----------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(
    benchmark: Any,
    function: Callable[..., Any],
    make_inputs: Callable[[], tuple[Any, ...]],
    *,
    provider: str,
    group: str,
    bytes: int = 0,
    flops: int = 0,
    dtype: torch.dtype | None = None,
    graph: bool = True,
    rounds: int | None = None,
    extrapolate: int = 1,
    fixed_seconds: float = 0.0,
    **facts: Any,
) -> Any:
    """Time ``function(*make_inputs())`` and leave a row in ``benchmark.extra_info``; return what a call returns.

    Args:
        benchmark: the fixture of pytest-benchmark.
        make_inputs: a fresh set of inputs in memory of its own, as often as it is called.
        provider: whose code this is; "ours" or a rival.
        group: rows of one group stand in one table: the operation and its size.
        bytes, flops: the least that must move and be computed; with them the row says its per cent of the limit.
        dtype: of the matrix product that ``flops`` are compared with; None: bfloat16 on CUDA, float32 on the CPU.
        graph: False for a function that waits for the GPU or copies from the CPU; it is timed call by call, launches
            and synchronisation included, and the row says so. So is one whose capture fails.
        rounds: of a slow rival; 1 runs it once, without warm-up.
        extrapolate: only 1/n of the work is run, after ``fixed_seconds`` of work that does not grow with n and was
            timed by :func:`seconds`. The row says so and shows fixed + n * measured.
        facts: more of what the row should say, of plain types.
    """
    facts = {"provider": provider, "device": DEVICE, "bytes": bytes, "flops": flops, **facts}
    if extrapolate > 1:
        facts |= {"extrapolate": extrapolate, "fixed_us": fixed_seconds * 1e6}
    facts["group"] = group
    benchmark.group = group if extrapolate == 1 else f"{group} [1/{extrapolate} of the work, see the next table]"
    run = _on_cuda if GPU else _on_cpu
    try:
        result = run(benchmark, function, make_inputs, graph, rounds, facts)
    except KeyboardInterrupt:
        benchmark.has_error = True  # or pytest-benchmark would look for its times, and lose the rows before it
        raise
    benchmark.extra_info.update(facts)
    if benchmark.stats is not None and (bytes or flops):
        _add_limit(benchmark, bytes, flops, dtype or DTYPE)
    return result


def _add_limit(benchmark: Any, bytes: int, flops: int, dtype: torch.dtype) -> None:
    copy, product = bytes / bandwidth(), flops / matrix_rate(dtype) if flops else 0.0  # seconds
    info = benchmark.extra_info
    info["limit"] = "copy" if copy >= product else "matrix product"
    info["limit_us"] = max(copy, product) * 1e6
    info["percent_of_limit"] = 100 * info["limit_us"] / whole_us(benchmark.stats.stats.median * 1e6, info)


# --- CPU -------------------------------------------------------------------------------------------------------------


def _on_cpu(benchmark, function, make_inputs, graph, rounds, facts) -> Any:
    inputs = make_inputs()
    facts |= {"timed": "call", "threads": torch.get_num_threads()}
    if rounds == 1:
        result, facts["peak_mb"] = _with_peak(lambda: benchmark.pedantic(function, inputs, rounds=1))
        return result
    first = seconds(lambda: function(*inputs))[1]  # loads code, fills caches
    if first > SLOW_SECONDS:
        result, facts["peak_mb"] = _with_peak(lambda: benchmark.pedantic(function, inputs, rounds=rounds or 1))
        return result
    facts["peak_mb"] = _with_peak(lambda: function(*inputs))[1]
    once = _best_seconds(lambda: function(*inputs), repeats=2)
    iterations = max(1, int(1e-3 / once))
    rounds = rounds or min(max(int(CPU_SECONDS / (once * iterations)), 3), 100)
    return benchmark.pedantic(function, inputs, rounds=rounds, iterations=iterations)


# --- CUDA ------------------------------------------------------------------------------------------------------------


def _on_cuda(benchmark, function, make_inputs, graph, rounds, facts) -> Any:
    first = make_inputs()
    sets, facts["cold"] = _rotation(first, make_inputs)
    function(*first)  # compiles
    result, facts["peak_mb"] = _with_peak(lambda: function(*first))
    if rounds != 1:
        for inputs in itertools.islice(itertools.cycle(sets), 3):
            function(*inputs)
        facts["call_us"] = _call_us(function, sets)
    facts["timed"] = "call"
    replay = None
    if graph and rounds != 1:
        try:
            replay = _Replay(function, sets)
            facts["timed"] = f"graph of {replay.calls} calls"
        except RuntimeError as failure:  # a rival that waits for the GPU; the row says how it was timed
            facts["not_captured"] = str(failure).splitlines()[0]
            torch.cuda.synchronize()
    if replay is not None:
        benchmark.pedantic(replay, rounds=rounds or ROUNDS, iterations=replay.calls, warmup_rounds=2)
    else:
        call = _Waiting(function, sets)
        benchmark.pedantic(call, rounds=rounds or ROUNDS, warmup_rounds=0 if rounds == 1 else 2)
    return result


def _rotation(first: tuple[Any, ...], make_inputs: Callable[[], tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], bool]:
    """Sets of inputs of more than three L2 caches in all, and whether they are."""
    size = sum(t.nbytes for t in _tensors(first))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    wanted = 3 * cache // max(size, 1) + 1  # inputs alone: results rotate besides
    sets = [first, *(make_inputs() for _ in range(min(wanted, CALLS) - 1))]
    addresses = [max(_tensors(inputs), key=lambda t: t.nbytes).data_ptr() for inputs in sets if size]
    if len(set(addresses)) < len(addresses):
        raise ValueError("make_inputs: got the same memory twice, expected a fresh set of inputs at every call")
    return sets, wanted <= CALLS


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_tensors, tree))
    elif dataclasses.is_dataclass(tree):
        yield from itertools.chain.from_iterable(_tensors(getattr(tree, f.name)) for f in dataclasses.fields(tree))


class _Replay:
    """A CUDA graph of many calls, replayed by the first of as many calls of this object.

    So pytest-benchmark, which divides the time of a round by its ``iterations``, gets the time of one call.
    """

    def __init__(self, function: Callable[..., Any], sets: list[tuple[Any, ...]]) -> None:
        each = _seconds_each(function, sets)
        turns = max(1, min(round(ROUND_SECONDS / (each * len(sets))) + 1, CALLS // len(sets)))
        self.calls = turns * len(sets)
        self.graph = torch.cuda.CUDAGraph()
        self.left = 0
        kept = collections.deque(maxlen=len(sets))  # results rotate too, or the next write would find its lines in L2
        with torch.cuda.graph(self.graph):
            for inputs in itertools.islice(itertools.cycle(sets), self.calls):
                kept.append(function(*inputs))
        self.graph.replay()
        torch.cuda.synchronize()

    def __call__(self) -> None:
        if self.left == 0:
            self.graph.replay()
            torch.cuda.synchronize()
            self.left = self.calls
        self.left -= 1


class _Waiting:
    """One call on the next set of inputs, until the GPU is done."""

    def __init__(self, function: Callable[..., Any], sets: list[tuple[Any, ...]]) -> None:
        self.function, self.sets = function, itertools.cycle(sets)

    def __call__(self) -> None:
        self.function(*next(self.sets))
        torch.cuda.synchronize()


def _seconds_each(function: Callable[..., Any], sets: list[tuple[Any, ...]]) -> float:
    """Time of one call by events around a few: an upper bound, gaps between launches included."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for inputs in sets[:8]:
        function(*inputs)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e-3 / len(sets[:8])


def _call_us(function: Callable[..., Any], sets: list[tuple[Any, ...]], bursts: int = 9, calls: int = 16) -> float:
    """Microseconds of CPU a call takes until it returns: the median of bursts too short to fill the launch queue."""
    times = []
    for _ in range(bursts):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for inputs in itertools.islice(itertools.cycle(sets), calls):
            function(*inputs)
        times.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return sorted(times)[bursts // 2] * 1e6


# --- memory ----------------------------------------------------------------------------------------------------------


def _with_peak(call: Callable[[], Any]) -> tuple[Any, float | None]:
    """What a call returns, and the MB by which memory grew meanwhile at most, results included.

    On CUDA that of the allocator, else of this process (Linux; None where it cannot be known).
    """
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory freed before would be taken unseen
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = _resident_kb("VmRSS")
    except (OSError, AttributeError):
        return call(), None
    result = call()
    return result, max(0, _resident_kb("VmHWM") - before) / 1024


def _resident_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


# --- the device ------------------------------------------------------------------------------------------------------


_matrix_rates: dict[torch.dtype, float] = {}


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """What one call returns, and how long it took."""
    _synchronise()
    start = time.perf_counter()
    result = call()
    _synchronise()
    return result, time.perf_counter() - start


@functools.cache
def bandwidth() -> float:
    """Bytes per second, read plus written, of a large torch copy on this device."""
    count = 1 << (30 if GPU else 26)  # 4 GiB or 256 MiB of float32
    source = torch.ones(count, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source))


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP per second of torch.mm on random square matrices of this dtype."""
    if dtype not in _matrix_rates:
        n = 8192 if GPU else 1536
        a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in "ab")
        _matrix_rates[dtype] = 2 * n**3 / _best_seconds(lambda: torch.mm(a, b))
    return _matrix_rates[dtype]


def _best_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    return min([seconds(call)[1] for _ in range(repeats + 1)][1:])


def _synchronise() -> None:
    if GPU:
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """What a figure is worth nothing without: the device, versions, threads, and the limits that rows were held to."""
    from ditf_kernels import backend

    matrix_rate(DTYPE)
    known: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if GPU else _processor(),
        "driver": _driver() if GPU else None,
        "torch": torch.__version__,
        "triton": backend.describe()["triton"],
        "python": platform.python_version(),
        "backend": backend.describe()["backend"],
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": bandwidth() / 1e9,
        "matrix_tflop_per_s": {str(d).removeprefix("torch."): rate / 1e12 for d, rate in _matrix_rates.items()},
    }
    if GPU:
        properties = torch.cuda.get_device_properties(0)
        known |= {"l2_bytes": properties.L2_cache_size, "multiprocessors": properties.multi_processor_count}
    return known


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
