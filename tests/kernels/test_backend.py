"""Which implementation runs, and what verification catches."""

import contextlib
import importlib
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from ditf_kernels import (
    BackendError,
    VerificationError,
    _registry,
    adaln,
    adaln_with_inverse_norm,
    backend,
    cosine_argmax,
    cosine_topk,
    massive_channels,
    mutual_nearest,
    propagate_topk,
    upsampled_argmax,
    upsampled_argmax_batch,
    upsampled_nearest,
    upsampled_planes,
    use_backend,
)

CALLS = {
    "adaln": lambda **keywords: adaln(torch.randn(1, 2, 16), torch.randn(16), torch.randn(16), **keywords),
    "adaln_with_inverse_norm": lambda **keywords: adaln_with_inverse_norm(
        torch.randn(1, 2, 16), None, None, **keywords
    ),
    "massive_channels": lambda **keywords: massive_channels(torch.randn(5, 16), 3, **keywords),
    "cosine_argmax": lambda **keywords: cosine_argmax(torch.randn(3, 16), torch.randn(6, 16), **keywords),
    "cosine_topk": lambda **keywords: cosine_topk(torch.randn(3, 16), torch.randn(6, 16), 2, **keywords),
    "mutual_nearest": lambda **keywords: mutual_nearest(torch.randn(3, 16), torch.randn(6, 16), **keywords),
    "propagate_topk": lambda **keywords: propagate_topk(
        torch.randn(6, 16),
        torch.randn(2, 6, 16),
        torch.rand(2, 3, 6),
        (2, 3),
        radius=1,
        topk=2,
        temperature=0.1,
        **keywords,
    ),
    "upsampled_planes": lambda **keywords: upsampled_planes(torch.randn(6, 16), (2, 3), **keywords),
    "upsampled_argmax": lambda **keywords: upsampled_argmax(
        torch.randn(2, 16), torch.randn(6, 16), (2, 3), (9, 11), **keywords
    ),
    "upsampled_nearest": lambda **keywords: upsampled_nearest(
        torch.randn(6, 16), (2, 3), (5, 6), torch.randn(6, 16), (2, 3), (9, 11), **keywords
    ),
}


@pytest.fixture
def counts(monkeypatch):
    """Comparisons of this test alone; those of the whole run are kept for the report."""
    monkeypatch.setattr(backend, "_counts", Counter())
    return backend.verification_counts


def run_python(code, **environment):
    """A fresh interpreter, because Triton is imported once per process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "DITF"))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=clean | environment
    )


# --- precedence ------------------------------------------------------------------------------------------------------


def test_keyword_beats_context_beats_environment_beats_auto(monkeypatch):
    monkeypatch.delenv("DITF_KERNELS_BACKEND")
    assert backend.resolve(None, "cpu") == "triton"  # auto, in the interpreter
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "verify")
    assert backend.resolve(None, "cpu") == "verify"
    with use_backend("torch"):
        assert backend.resolve(None, "cpu") == "torch"
        assert backend.resolve("verify", "cpu") == "verify"
        with use_backend("auto"):
            assert backend.resolve(None, "cpu") == "triton"
        assert backend.resolve(None, "cpu") == "torch"
    assert backend.resolve(None, "cpu") == "verify"


def test_context_ends_with_an_exception_and_stays_in_its_thread():
    with contextlib.suppress(KeyError), use_backend("verify"):
        raise KeyError
    assert backend.resolve(None, "cpu") == "torch"
    seen = []
    with use_backend("verify"):
        thread = threading.Thread(target=lambda: seen.append(backend.resolve(None, "cpu")))
        thread.start()
        thread.join()
    assert seen == ["torch"]


def test_unknown_names_are_refused_with_the_known_ones(monkeypatch):
    expected = r"got 'cuda', expected one of auto, triton, torch, verify"
    with pytest.raises(BackendError, match=f"backend: {expected}"):
        CALLS["adaln"](backend="cuda")
    with pytest.raises(BackendError, match=f"use_backend: {expected}"), use_backend("cuda"):
        pass
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "cuda")
    with pytest.raises(BackendError, match=f"DITF_KERNELS_BACKEND: {expected}"):
        CALLS["adaln"]()


def test_the_report_fails_a_run_that_left_an_op_uncompared():
    root = Path(__file__).parents[2]
    one_test = "tests/kernels/test_backend.py::test_every_op_has_a_call_here"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", one_test], cwd=root, env=os.environ | {"DITF_VERIFY_REPORT": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("<- NONE") == len(CALLS)


def test_every_op_has_a_call_here():
    assert list(CALLS) == _registry.registered


# --- verification ----------------------------------------------------------------------------------------------------


@pytest.mark.verify
@pytest.mark.parametrize("op", CALLS)
def test_verify_compares_and_counts(op, counts):
    CALLS[op](backend="verify")
    with use_backend("verify"):
        CALLS[op]()
    CALLS[op](backend="triton")
    CALLS[op](backend="torch")
    assert counts() == {op: 2}
    backend.reset_verification_counts()
    assert counts() == {}


def spoil(monkeypatch, op, change):
    """Make the kernel of an op return something slightly different."""
    module, name = {
        "adaln": ("adaln", "adaln"),
        "adaln_with_inverse_norm": ("adaln", "adaln_with_inverse_norm"),
        "massive_channels": ("channels", "massive_channels"),
        "cosine_argmax": ("nearest", "cosine_argmax"),
        "cosine_topk": ("nearest", "cosine_topk"),
        "mutual_nearest": ("nearest", "mutual_nearest"),
        "propagate_topk": ("propagate", "propagate_topk"),
        "upsampled_planes": ("upsampled", "planes"),
        "upsampled_argmax": ("upsampled", "argmax"),
        "upsampled_nearest": ("upsampled_dense", "nearest"),
    }[op]
    kernels = importlib.import_module(f"ditf_kernels._triton.{module}")
    launch = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *args: change(launch(*args)))


def nudged(t, by):
    t = t.clone()
    t.view(-1)[-1] += by
    return t


@pytest.mark.verify
@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        (
            "adaln",
            lambda y: nudged(y, 1e-3),
            r"adaln: features, shape \(1, 2, 16\), dtype torch.float32, .* up to 0.001",
        ),
        ("adaln", lambda y: nudged(y, torch.nan), r"up to inf"),
        ("adaln", lambda y: y.half(), r"features of the kernel is \(1, 2, 16\) torch.float16"),
        ("adaln_with_inverse_norm", lambda out: (out[0], nudged(out[1], 1e-3)), r"inverse_norm, shape \(1, 2\)"),
        ("massive_channels", lambda out: (out[0], nudged(out[1], 1e-3), out[2]), r"magnitude over the median, shape"),
        ("massive_channels", lambda out: (*out[:2], nudged(out[2], 1e-3)), r"massive_channels: median over that"),
        ("massive_channels", lambda out: (out[0].flip(0), *out[1:]), r"magnitude of the chosen channels"),
        ("massive_channels", lambda out: (out[0] - 16, *out[1:]), r"index, .* not in 0\.\.15"),
        ("massive_channels", lambda out: (out[0] * 0, *out[1:]), r"index, .* not distinct"),
        ("cosine_argmax", lambda out: (out[0], nudged(out[1], -1e-3)), r"cosine_argmax: score, shape \(1, 3\)"),
        ("cosine_argmax", lambda out: ((out[0] + 1) % 6, out[1]), r"cosine_argmax: score at the chosen key"),
        ("cosine_argmax", lambda out: (out[0] - 6, out[1]), r"cosine_argmax: index, .* outside the 6 keys"),
        ("cosine_topk", lambda out: (out[0].flip(-1), out[1]), r"cosine_topk: score at the chosen key"),
        ("cosine_topk", lambda out: (out[0][..., :1].expand(-1, -1, 2), out[1]), r"cosine_topk: score at the chosen"),
        ("mutual_nearest", lambda out: (out[0], (out[1] + 1) % 3, *out[2:]), r"mutual_nearest: score at the chosen"),
        ("mutual_nearest", lambda out: (*out[:2], ~out[2], *out[3:]), r"mutual, .* not what index_ab and index_ba say"),
        ("mutual_nearest", lambda out: (*out[:4], nudged(out[4], 1e-3)), r"mutual_nearest: score, shape \(1, 6\)"),
        ("propagate_topk", lambda out: (nudged(out[0], 1e-3), *out[1:]), r"propagate_topk: labels over the largest"),
        ("propagate_topk", lambda out: (*out[:2], nudged(out[2], 1e-3)), r"propagate_topk: cosine, shape \(6, 2\)"),
        ("propagate_topk", lambda out: (out[0], (out[1] + 6) % 12, out[2]), r"cosine of the chosen keys"),
        ("propagate_topk", lambda out: (out[0], out[1] * 0, out[2]), r"index, .* not distinct keys of its window"),
        ("propagate_topk", lambda out: (out[0], out[1] + 12, out[2]), r"index, .* not distinct keys of its window"),
        ("upsampled_planes", lambda planes: nudged(planes, 0.1), r"upsampled_planes: planes"),
        ("upsampled_argmax", lambda out: (out[0], nudged(out[1], -1e-3)), r"upsampled_argmax: score, shape \(2,\)"),
        ("upsampled_argmax", lambda out: ((out[0] + 4) % 9, out[1]), r"upsampled_argmax: score at the chosen pixel"),
        ("upsampled_argmax", lambda out: (out[0] - 100, out[1]), r"upsampled_argmax: xy, .* outside"),
        ("upsampled_nearest", lambda out: (out[0], nudged(out[1], -1e-3)), r"upsampled_nearest: score, shape \(5, 6\)"),
        ("upsampled_nearest", lambda out: ((out[0] + 4) % 9, out[1]), r"upsampled_nearest: score at the chosen pixel"),
        ("upsampled_nearest", lambda out: (out[0] - 100, out[1]), r"upsampled_nearest: xy, .* outside"),
    ],
)
def test_a_fault_in_a_kernel_is_found(monkeypatch, counts, op, change, message):
    spoil(monkeypatch, op, change)
    with pytest.raises(VerificationError, match=message):
        CALLS[op](backend="verify")
    assert counts() == {}
    CALLS[op](backend="torch")  # the twin is not concerned


@pytest.mark.verify
@pytest.mark.parametrize(
    ("op", "module", "kernel", "wrong"),
    [
        ("adaln", "adaln", "_adaln_kernel", {"BLOCK_D": 8}),  # half of each row
        ("massive_channels", "channels", "_partial_kernel", {"D": 8}),
        ("massive_channels", "channels", "_rank_kernel", {"D": 8}),
        ("cosine_argmax", "rows", "_prepare_kernel", {"D": 8}),
        ("cosine_argmax", "nearest", "_argmax_kernel", {"D": 8}),
        ("mutual_nearest", "nearest", "_argmax_kernel", {"BLOCK_QUERIES": 2}),  # a program for 64 sees two
        ("cosine_topk", "nearest", "_topk_kernel", {"D": 8}),
        ("cosine_topk", "nearest", "_merge_kernel", {"K": 1}),
        ("propagate_topk", "propagate", "_choose_kernel", {"D": 8}),
        ("propagate_topk", "propagate", "_choose_kernel", {"TOPK": 1}),
        ("propagate_topk", "propagate", "_blend_kernel", {"BLOCK_CLASSES": 1}),
        ("upsampled_planes", "upsampled", "_planes_kernel", {"D": 8}),
        ("upsampled_argmax", "upsampled", "_coarse_kernel", {"D": 8}),
        ("upsampled_argmax", "upsampled", "_argmax_kernel", {"BLOCK_Y": 1}),  # a quarter of the rows
        ("upsampled_nearest", "upsampled_dense", "_coarse_kernel", {"D": 8}),
        ("upsampled_nearest", "upsampled_dense", "_nearest_kernel", {"BLOCK_PIXELS": 1}),
    ],
)
def test_a_kernel_that_leaves_out_data_is_found(monkeypatch, op, module, kernel, wrong):
    kernels = importlib.import_module(f"ditf_kernels._triton.{module}")
    honest = getattr(kernels, kernel)

    class Faulty:
        def __getitem__(self, grid):
            return lambda *args, **keywords: honest[grid](*args, **{**keywords, **wrong})

    monkeypatch.setattr(kernels, kernel, Faulty())
    with pytest.raises(VerificationError, match=op):
        CALLS[op](backend="verify")


@pytest.mark.verify
def test_verify_accepts_another_pixel_of_the_same_score_but_none_outside_the_mask(monkeypatch):
    flat = torch.randn(1, 16).expand(6, -1)  # every pixel looks the same
    mask = torch.ones(9, 11, dtype=torch.bool)
    expected, _ = upsampled_argmax(flat[:1], flat, (2, 3), (9, 11), mask=mask, backend="torch")
    spoil(monkeypatch, "upsampled_argmax", lambda out: (expected + 2, out[1]))
    xy, _ = upsampled_argmax(flat[:1], flat, (2, 3), (9, 11), mask=mask, backend="verify")
    assert torch.equal(xy, expected + 2)
    mask[xy[0, 1], xy[0, 0]] = False
    with pytest.raises(VerificationError, match="outside the image"):
        upsampled_argmax(flat[:1], flat, (2, 3), (9, 11), mask=mask, backend="verify")


def test_nan_equals_nan_and_infinity_itself():
    t = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    backend.check_close("op", "value", t, t.clone())
    with pytest.raises(VerificationError):
        backend.check_close("op", "value", t, torch.tensor([1.0, torch.nan, torch.inf, torch.inf]))


def test_verify_never_runs_the_twin_twice(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    calls = []
    twins = importlib.import_module("ditf_kernels.reference.adaln")  # not the function of the same name
    monkeypatch.setattr(twins, "_adaln", lambda *args, **keywords: calls.append(1))
    for name in ("verify", "triton"):
        with pytest.raises(BackendError, match="set TRITON_INTERPRET=1 before Python starts"):
            CALLS["adaln"](backend=name)
    assert not calls


# --- without Triton --------------------------------------------------------------------------------------------------

EVERY_OP = """
    import sys, torch
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "triton":
                raise ImportError("triton is blocked")
    if {blocked}:
        sys.meta_path.insert(0, Blocked())
    import ditf_kernels as k
    x, key = torch.randn(2, 5, 8), torch.randn(6, 8)
    assert k.adaln(x, None, None).shape == (2, 5, 8)
    assert k.adaln_with_inverse_norm(x, None, None, ensemble=2)[1].shape == (1, 5)
    assert k.massive_channels(x, 3)[0].shape == (3,)
    assert k.cosine_argmax(x, x)[0].shape == (2, 5)
    assert k.cosine_topk(key, key, 3)[1].shape == (6, 3)
    assert k.mutual_nearest(key, key).mutual.all()
    near = {{"radius": 1, "topk": 2, "temperature": 0.1}}
    assert k.propagate_topk(key, key[None], torch.ones(1, 3, 6), (2, 3), **near).shape == (3, 6)
    planes = k.upsampled_planes(key, (2, 3))
    assert k.upsampled_argmax(key, key, (2, 3), (9, 9), planes=planes)[0].shape == (6, 2)
    assert k.upsampled_argmax_batch(key, key, [0, 6], [(2, 3)], [(9, 9)])[0].shape == (6, 2)
    assert "triton" not in sys.modules
"""


def test_every_op_runs_where_triton_is_not_installed():
    done = run_python(EVERY_OP.format(blocked=True), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


def test_cpu_tensors_do_not_import_triton():
    done = run_python(EVERY_OP.format(blocked=False))
    assert done.returncode == 0, done.stderr


def test_triton_where_it_cannot_run_says_what_to_do():
    done = run_python(
        """
        import torch, ditf_kernels as k
        for name in ("triton", "verify"):
            try:
                k.adaln(torch.randn(1, 2, 8), None, None, backend=name)
            except k.BackendError as error:
                print(error)
        import os, triton
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            k.adaln(torch.randn(1, 2, 8), None, None, backend="triton")
        except k.BackendError as error:
            print(error)
        print(k.adaln(torch.randn(1, 2, 8), None, None).shape)
        """
    )
    assert done.returncode == 0, done.stderr
    first, second, late, shape = done.stdout.strip().splitlines()
    assert first.startswith('backend: got "triton", but Triton does not run on cpu tensors')
    assert "set TRITON_INTERPRET=1 before Python starts" in second
    assert "Triton was imported before TRITON_INTERPRET=1 was set" in late
    assert shape == "torch.Size([1, 2, 8])"


def test_describe_says_what_runs_and_why(monkeypatch):
    assert backend.describe()["reason"] == 'DITF_KERNELS_BACKEND is "torch"'
    monkeypatch.delenv("DITF_KERNELS_BACKEND")
    about = backend.describe()
    assert about["backend"] == backend.why(about["device"])[0] == "triton"
    assert about["interpreter"] is True
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "verify")
    chosen, reason = backend.why("mps")
    assert (chosen, "verify" in reason) == ("verify", True)


@pytest.mark.verify
def test_a_batch_is_verified_too(counts):
    query, key = torch.randn(3, 8), torch.randn(8, 8)
    upsampled_argmax_batch(query, key, [0, 1, 3], [(2, 3), (2, 1)], [(9, 9), (4, 5)], backend="verify")
    assert counts() == {"upsampled_argmax": 1}
