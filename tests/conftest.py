"""The whole suite runs offline, on one thread, on the PyTorch twins; tests of the kernels ask for Triton by name.

The kernels run in Triton's interpreter, with or without a GPU; it has to be chosen before Triton is imported. Those
marked ``gpu`` need it off: ``TRITON_INTERPRET=0 pytest -m gpu``.
``DITF_VERIFY_REPORT=1`` (``make test-verify``) prints how often each kernel met its twin, and fails if one never did.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DITF_KERNELS_BACKEND", "torch")
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of NumPy too, and of the processes that tests start
os.environ.pop("COLUMNS", None)  # the width of whoever runs the tests
os.environ.pop("PYTEST_XDIST_WORKER", None)  # a pytest that a test starts is not part of this run: it may time things

import atexit
import shutil
import socket
import tempfile

import pytest
import torch

from .kernels.summary import write_summary

torch.set_num_threads(1)

# never the user's own; processes that tests start inherit it
os.environ["DITF_CACHE"] = tempfile.mkdtemp(prefix="ditf-cache-")
atexit.register(shutil.rmtree, os.environ["DITF_CACHE"], ignore_errors=True)

LOOPBACK = ("127.", "localhost", "::1")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Any connection that leaves the machine fails the test."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise OSError(f"tests run offline, but something connects to {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def _reporting() -> bool:
    return os.environ.get("DITF_VERIFY_REPORT") == "1"


def _comparisons() -> dict[str, int]:
    """Comparisons of every registered op in this process, 0 included."""
    from ditf_kernels import _registry, backend

    counts = backend.verification_counts()
    return {op: counts.get(op, 0) for op in _registry.registered}


def pytest_sessionfinish(session):
    if _reporting() and session.exitstatus == 0 and not all(_comparisons().values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    write_summary(terminalreporter)
    if not _reporting():
        return
    terminalreporter.section("kernels compared with their PyTorch twins")
    for op, count in _comparisons().items():
        terminalreporter.line(f"{op:<28} {count:>6} comparisons" + ("" if count else "   <- NONE"))
