"""What a plain `import ditf` costs and drags in, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import ditf

HEAVY = ("gradio", "ray", "matplotlib", "cv2", "triton", "transformers", "diffusers")


def test_import_is_light() -> None:
    code = (
        "import sys, time, torch; before = set(sys.modules); start = time.perf_counter(); import ditf;"
        f"print(time.perf_counter() - start, *[m for m in {HEAVY!r} if m in sys.modules and m not in before])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[1:] == []


def test_every_public_name_exists() -> None:
    assert all(hasattr(ditf, name) for name in ditf.__all__)


def test_errors_share_one_base() -> None:
    for error in (ditf.InputError, ditf.ModelError, ditf.StoreError, ditf.VerificationError):
        assert issubclass(error, ditf.DitfError)
    assert issubclass(ditf.InputError, ValueError)
