"""The benchmarks' own machinery, on the CPU: rows, extrapolation, tables, the summary, and the script for a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"

SUITE = """
import time

import pytest
import torch
from harness import measure


@pytest.mark.parametrize("provider", ["ours", "sleeper"])
def test_wait(benchmark, provider):
    milliseconds = 2 if provider == "ours" else 20
    measure(
        benchmark, lambda x: time.sleep(milliseconds / 1000), lambda: (torch.ones(8),),
        provider=provider, group="wait", bytes=1000, rounds=3,
    )


def test_part(benchmark):
    measure(
        benchmark, lambda: time.sleep(0.01), tuple,
        provider="slow", group="wait", rounds=1, extrapolate=8, fixed_seconds=0.1,
    )
"""

SLOW_SUITE = """
import time

from harness import measure


def test_quick(benchmark):
    measure(benchmark, lambda: time.sleep(0.001), tuple, provider="ours", group="wait", rounds=3)


def test_endless(benchmark):
    measure(benchmark, lambda: time.sleep(600), tuple, provider="endless", group="wait", rounds=1)
"""

GPU_TESTS = """
import os

import pytest

pytestmark = pytest.mark.gpu


def test_the_interpreter_is_off():
    assert os.environ["TRITON_INTERPRET"] == "0"


def test_that_fails():
    assert False
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the benchmarks' machinery, one tiny suite and two GPU tests, one of which fails."""
    root = tmp_path_factory.mktemp("project")
    (root / "bench").mkdir()
    (root / "tests" / "kernels").mkdir(parents=True)
    for name in ("harness.py", "summary.py", "conftest.py", "gpu.sh"):
        shutil.copy(BENCH / name, root / "bench" / name)
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "bench" / "test_tiny.py").write_text(SUITE)
    (root / "bench" / "test_slow.py").write_text(SLOW_SUITE)
    (root / "tests" / "kernels" / "test_some.py").write_text(GPU_TESTS)
    return root


@pytest.fixture(scope="module")
def script(project: Path) -> tuple[subprocess.CompletedProcess[str], dict]:
    """What bench/gpu.sh prints and writes, on a machine that claims a GPU."""
    (project / "bin").mkdir()
    (project / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA Nothing, 1.0, 0 MiB'\n")
    (project / "bin" / "nvidia-smi").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "OUT": "results",
        "SUITES": "tiny:100 absent:100",
    }
    run = subprocess.run(["bash", "bench/gpu.sh"], cwd=project, env=environment, capture_output=True, text=True)
    (file,) = (project / "results").glob("*.json")
    return run, json.loads(file.read_text())


def rows_of(summary: dict) -> dict[str, dict]:
    return {row["provider"]: row for row in summary["rows"]}


def test_the_script_writes_every_row_into_one_file(script) -> None:
    rows = rows_of(script[1])
    assert set(rows) == {"ours", "sleeper", "slow"}
    assert {row["group"] for row in rows.values()} == {"wait"}
    assert 2000 <= rows["ours"]["min_us"] <= rows["ours"]["median_us"]
    assert 20000 <= rows["sleeper"]["min_us"] <= rows["sleeper"]["median_us"]
    assert rows["sleeper"]["rounds"] == 3


def test_part_of_the_work_is_extrapolated_from_what_grows_with_it(script) -> None:
    row = rows_of(script[1])["slow"]
    assert row["median_us"] >= 10000
    assert row["us"] == pytest.approx(100000 + 8 * row["median_us"])
    assert "extrapolated x8" in next(line for line in script[0].stdout.splitlines() if line.startswith("  slow"))


def test_the_limit_is_the_copy_measured_in_the_same_run(script) -> None:
    summary = script[1]
    info = rows_of(summary)["ours"]["extra_info"]
    assert info["limit"] == "copy"
    assert info["limit_us"] == pytest.approx(1000 / summary["machine"]["copy_gb_per_s"] / 1e9 * 1e6)
    assert info["percent_of_limit"] == pytest.approx(100 * info["limit_us"] / rows_of(summary)["ours"]["us"])


def test_the_summary_says_where_it_comes_from(script) -> None:
    summary = script[1]
    assert summary["versions"]["torch"]
    assert summary["machine"]["threads"] >= 1
    assert summary["date"] in script[0].stdout


def test_failed_tests_are_counted_and_named_and_fail_the_script(script) -> None:
    run, summary = script
    assert {name: summary["tests"][name] for name in ("passed", "failed", "skipped")} == {
        "passed": 1, "failed": 1, "skipped": 0,
    }  # fmt: skip
    assert summary["tests"]["failures"] == ["tests.kernels.test_some::test_that_fails"]
    assert [(s["name"], s["end"]) for s in summary["stages"]] == [("tests", "some failed"), ("tiny", "done")]
    assert run.returncode == 1


def test_the_table_compares_with_ours(script) -> None:
    lines = script[0].stdout.splitlines()
    ours, sleeper = (next(line for line in lines if line.startswith(f"  {name} ")) for name in ("ours", "sleeper"))
    assert " 1.00 " in ours
    ratio = rows_of(script[1])["sleeper"]["us"] / rows_of(script[1])["ours"]["us"]
    assert f" {ratio:.2f} " in sleeper


def test_a_run_without_results_is_a_failure(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "summary.py", "--out", tmp_path, tmp_path / "missing.json"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    (file,) = tmp_path.glob("unknown-*.json")
    assert json.loads(file.read_text())["rows"] == []


def test_the_script_stops_when_its_time_is_over(project: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path), "SUITES": "tiny:100", "LIMIT": "30"}
    run = subprocess.run(["bash", "bench/gpu.sh"], cwd=project, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "tiny: not run: no time left (0 s)" in run.stdout


@pytest.mark.slow
def test_what_was_measured_before_a_suite_ran_out_of_time_is_kept(project: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path), "SUITES": "slow:25"}
    run = subprocess.run(["bash", "bench/gpu.sh"], cwd=project, env=environment, capture_output=True, text=True)
    assert "slow: out of time" in run.stdout
    (file,) = tmp_path.glob("*.json")
    assert list(rows_of(json.loads(file.read_text()))) == ["ours"]
