"""What a run put the kernels through, printed after it: a skipped check is no check.

It is read from the tests' reports, which also arrive from other processes of the run.
"""

KINDS = {
    "in Triton's interpreter": lambda report: "verify" in report.keywords,
    "under torch.library.opcheck": lambda report: "checks_of_torch_library" in report.nodeid,
    "under torch.compile": lambda report: "compiled" in report.nodeid,
    "compiled for sm_90": lambda report: "test_offline_sm90" in report.nodeid,
}
RESOURCES = "resources on sm_90"
"""The property under which a test records what the assembler says of every kernel."""


def write_summary(terminalreporter) -> None:
    passed, skipped = (terminalreporter.stats.get(outcome, []) for outcome in ("passed", "skipped"))
    if not any(report.nodeid.startswith("tests/kernels/") for report in passed + skipped):
        return
    terminalreporter.section("kernels")
    recorded = [value for report in passed for name, value in report.user_properties if name == RESOURCES]
    for resources in recorded[:1]:
        terminalreporter.line(f"{'sm_90':<46}registers  spilled  shared bytes  wgmma  global loads")
        for case, found in resources.items():
            numbers = f"{found['registers']:>9}{found['spill_bytes']:>9}{found['shared']:>14}{found['wgmma']:>7}"
            loads = ", ".join(f"{count} {kind.lstrip('.')}" for kind, count in found["loads"].items())
            terminalreporter.line(f"{case:<46}{numbers}  {loads}".rstrip())
    for kind, belongs in KINDS.items():
        ran, left = sum(map(belongs, passed)), sum(map(belongs, skipped))
        terminalreporter.line(f"{ran:>5} tests {kind} passed, {left} skipped")
