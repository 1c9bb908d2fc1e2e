"""One file and one short table of everything a run of the benchmarks found.

    python bench/summary.py --out bench/results a.json b.json --tests junit.xml --stages stages.txt

It reads the files of ``pytest --benchmark-json``, whose rows :func:`harness.measure` has labelled, and writes
``<device>-<date>.json``: the device, driver, versions and commit, the tests that passed and failed, each stage's end,
and every row, losses too. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

OURS = "ours"
STAGES = {0: "done", 1: "some failed", 2: "interrupted", 5: "nothing to run", 124: "out of time", 137: "killed"}


# --- rows ------------------------------------------------------------------------------------------------------------


def make_row(benchmark: dict[str, Any]) -> dict[str, Any]:
    """One benchmark of pytest-benchmark, from its JSON file (``stats`` apart) or from its hooks (flat)."""
    stats, info = benchmark.get("stats", benchmark), dict(benchmark.get("extra_info", {}))
    median, least = stats["median"] * 1e6, stats["min"] * 1e6
    return {
        "suite": benchmark["fullname"].partition("::")[0],
        "test": benchmark["name"],
        "group": info.pop("group", benchmark["group"]),
        "provider": info.pop("provider", benchmark["name"].removeprefix("test_")),
        "us": whole_us(median, info),
        "median_us": median,
        "min_us": least,
        "rounds": stats["rounds"],
        "extra_info": info,
    }


def whole_us(measured: float, info: dict[str, Any]) -> float:
    """Microseconds of the whole work: what was measured, extrapolated where only 1/n of the work was run."""
    return info.get("fixed_us", 0.0) + info.get("extrapolate", 1) * measured


# --- the table -------------------------------------------------------------------------------------------------------


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Lines: per group its providers, fastest first; "/ ours" is how many times our time each takes."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    lines = []
    for group, members in groups.items():
        ours = next((row["us"] for row in members if row["provider"] == OURS), None)
        cells = [["", "median", "/ ours", "of limit", "CPU per call", "memory", ""]]
        cells += [_cells(row, ours) for row in sorted(members, key=lambda row: row["us"])]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["", group]
        for name, *numbers, note in cells:
            aligned = (text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True))
            lines.append(f"  {name.ljust(widths[0])}  {'  '.join(aligned)}  {note}".rstrip())
    return lines


def _cells(row: dict[str, Any], ours: float | None) -> list[str]:
    info = row["extra_info"]
    ratio = "" if ours is None else f"{row['us'] / ours:.2f}"
    percent = f"{info['percent_of_limit']:.0f}% {info['limit']}" if "percent_of_limit" in info else ""
    call = f"{info['call_us']:.1f} us" if "call_us" in info else ""
    memory = f"{info['peak_mb']:.1f} MB" if info.get("peak_mb") is not None else ""
    return [row["provider"], duration(row["us"]), ratio, percent, call, memory, "; ".join(_notes(info))]


def _notes(info: dict[str, Any]) -> Iterable[str]:
    if info.get("extrapolate", 1) > 1:
        yield f"extrapolated x{info['extrapolate']}"
    if "not_captured" in info:
        yield f"timed with launches, no CUDA graph: {info['not_captured']}"
    elif info.get("device") == "cuda" and info.get("timed") == "call":
        yield "timed with launches"
    if info.get("cold") is False:
        yield "in cache"
    if "note" in info:
        yield str(info["note"])


def duration(us: float) -> str:
    """Three significant figures and a unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}" if us < 1000 * size else f"{us / size:.0f} {unit}"
    return f"{us:.3g} us"


# --- the file --------------------------------------------------------------------------------------------------------


def summarise(
    reports: Sequence[dict[str, Any]], tests: dict[str, Any] | None, stages: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """All of a run, from :func:`read_report`, :func:`read_tests` and :func:`read_stages`."""
    machine = next((r["machine_info"]["bench"] for r in reports if "bench" in r.get("machine_info", {})), {})
    commit = next((r["commit_info"].get("id") for r in reports if r.get("commit_info")), None)
    return {
        "device": machine.get("device"),
        "driver": machine.get("driver"),
        "versions": {name: machine[name] for name in ("python", "torch", "triton") if name in machine},
        "commit": None if commit == "unversioned" else commit,
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "tests": tests,
        "stages": list(stages),
        "rows": [make_row(benchmark) for report in reports for benchmark in report.get("benchmarks", [])],
    }


def read_tests(path: Path) -> dict[str, Any] | None:
    """Counts and names from a JUnit file; None without one (the tests did not come to their end)."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return None
    by_end: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        kinds = {child.tag for child in case}
        end = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        by_end[end].append(f"{case.get('classname')}::{case.get('name')}")
    return {end: len(names) for end, names in by_end.items()} | {"failures": by_end["failed"]}


def read_stages(path: Path) -> list[dict[str, Any]]:
    """Lines "name exit-status seconds note"."""
    stages = []
    for line in path.read_text().splitlines():
        name, status, seconds, note = (line.split(maxsplit=3) + [""])[:4]
        end = note or STAGES.get(int(status), f"exit status {status}")
        stages.append({"name": name, "exit_status": int(status), "seconds": int(seconds), "end": end})
    return stages


def read_report(path: Path) -> dict[str, Any] | None:
    """A file of pytest-benchmark, or None if the run did not come so far as to write it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def headline(summary: dict[str, Any]) -> list[str]:
    """What stands above the table."""
    lines = describe(summary["machine"]) if summary["machine"] else []
    tests = summary["tests"]
    if tests:
        lines.append(f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
        lines += [f"  failed: {name}" for name in tests["failures"][:20]]
    for stage in summary["stages"]:
        if stage["end"] != "done":
            lines.append(f"{stage['name']}: {stage['end']} ({stage['seconds']} s)")
    return lines


def describe(machine: dict[str, Any]) -> list[str]:
    """The device and its limits, two lines."""
    driver = f", driver {machine['driver']}" if machine.get("driver") else ""
    rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in machine["matrix_tflop_per_s"].items())
    return [
        f"{machine['device']}{driver}; torch {machine['torch']}, triton {machine['triton']}, "
        f"backend {machine['backend']}; CPU threads: {machine['threads']}",
        f"limits, measured: copy {machine['copy_gb_per_s']:.4g} GB/s (read + written), matrix product {rates}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and print the table; 1 if tests failed or nothing was measured."""
    parser = argparse.ArgumentParser(description="One file and one table of a run of the benchmarks.")
    parser.add_argument(
        "reports", nargs="+", type=Path, help="files of pytest --benchmark-json; missing ones are left out"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the summary")
    parser.add_argument("--tests", type=Path, help="file of pytest --junitxml")
    parser.add_argument("--stages", type=Path, help='lines "name exit-status seconds note"')
    parser.add_argument("--commit", help="where pytest-benchmark found none")
    options = parser.parse_args(arguments)
    reports = [report for report in map(read_report, options.reports) if report]
    tests = read_tests(options.tests) if options.tests else None
    summary = summarise(reports, tests, read_stages(options.stages) if options.stages else [])
    summary["commit"] = summary["commit"] or options.commit or None
    options.out.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^A-Za-z0-9.]+", "-", summary["device"] or "unknown").strip("-")
    path = options.out / f"{device}-{summary['date']}.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    print("\n".join([*table(summary["rows"]), "", *headline(summary), f"written: {path}"]))
    return 1 if not summary["rows"] or (options.tests and (tests is None or tests["failed"])) else 0


if __name__ == "__main__":
    sys.exit(main())
