"""Benchmarks run the kernels as users get them, on a stated number of threads, and print one table per group."""

import os

os.environ["TRITON_INTERPRET"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("DITF_KERNELS_BACKEND", None)

import harness
import pytest
import summary
import torch

torch.set_num_threads(harness.THREADS)

_measured = pytest.StashKey[list]()


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_group_stats(config, benchmarks, group_by):
    """Keeps the rows; grouping them for its own table stays with pytest-benchmark."""
    config.stash[_measured] = list(benchmarks)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["bench"] = harness.machine()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    rows = [summary.make_row(benchmark) for benchmark in config.stash.get(_measured, [])]
    if not rows:
        return
    terminalreporter.section("side by side")
    for line in [*summary.describe(harness.machine()), *summary.table(rows)]:
        terminalreporter.line(line)
