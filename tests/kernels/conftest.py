"""Equal numbers in every run, and a summary of what the kernels were put through: a skipped check is no check."""

import pytest
import torch

KINDS = {
    "in Triton's interpreter": lambda report: "verify" in report.keywords,
    "under torch.library.opcheck": lambda report: "checks_of_torch_library" in report.nodeid,
    "under torch.compile": lambda report: "compiled" in report.nodeid,
    "compiled for sm_90": lambda report: "test_offline_sm90" in report.nodeid,
}
RESOURCES = pytest.StashKey[dict]()


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    passed, skipped = (terminalreporter.stats.get(outcome, []) for outcome in ("passed", "skipped"))
    terminalreporter.section("kernels")
    if resources := config.stash.get(RESOURCES, {}):
        terminalreporter.line(f"{'sm_90':<46}registers  spilled  shared bytes  wgmma  global loads")
    for case, found in resources.items():
        numbers = f"{found['registers']:>9}{found['spill_bytes']:>9}{found['shared']:>14}{found['wgmma']:>7}"
        loads = ", ".join(f"{count} {kind.lstrip('.')}" for kind, count in found["loads"].items())
        terminalreporter.line(f"{case:<46}{numbers}  {loads}".rstrip())
    for kind, belongs in KINDS.items():
        ran, left = sum(map(belongs, passed)), sum(map(belongs, skipped))
        terminalreporter.line(f"{ran:>5} tests {kind} passed, {left} skipped")
