"""Fused transformers give what they gave before, one kernel per AdaLN, in every architecture, and can be restored."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ditf
import ditf_kernels
from ditf import fused_norm
from ditf.backbones import run_to_blocks
from ditf.backbones.stacks import block_sites
from ditf.fused_norm import SWAP, FusedNorm, LazyNorm
from ditf.fusing import ALREADY, HOOKED
from ditf_kernels import use_backend
from ditf_kernels._triton import adaln as adaln_kernels
from ditf_kernels.backend import kernel_counts, verification_counts

from .backbones import tiny_models as tiny
from .zoo import ZOO

# AdaLNs of one forward. A FLUX double block has 4 (two streams, two sites), a single block 1; an SD3 block 4, with
# dual attention 5, the last one 3; a block of PixArt or DiT 2.
ADALNS = {"flux": 2 * 4 + 3 * 1, "sd3.5-dual": 5 + 5 + 3, "pixart-sigma": 3 * 2, "dit": 2 * 2}

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def quiet_diffusers() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging

    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    yield
    diffusers_logging.set_verbosity(verbosity)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every call of the op, on any backend."""
    counted, real = [], fused_norm.adaln
    monkeypatch.setattr(fused_norm, "adaln", lambda *args, **kwargs: counted.append(1) or real(*args, **kwargs))
    return counted


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


def fused_norms(model: nn.Module) -> list[FusedNorm]:
    return [module for module in model.modules() if isinstance(module, FusedNorm)]


def traces(model: nn.Module) -> list[str]:
    """What fusing could leave behind."""
    return [name for name, m in model.named_modules() if isinstance(m, FusedNorm) or SWAP in m.__dict__]


def kernel_runs() -> int:
    return kernel_counts().get("adaln", 0)


@torch.no_grad()
def output(model: Any, inputs: dict[str, Any] | None = None) -> Tensor:
    return model(**(inputs or tiny.flux_inputs())).sample


class Layers(nn.Module):
    """A transformer no table knows: blocks of one norm, whose use is given."""

    def __init__(
        self, norm: Callable[[], nn.Module], use: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Layer(norm(), use) for _ in range(2)])
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x, scale, shift)
        return x


class Layer(nn.Module):
    def __init__(self, norm: nn.Module, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.norm, self.use = norm, use
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.linear(self.use(self.norm, x, scale, shift))


def plain_layer_norm() -> nn.Module:
    return nn.LayerNorm(16, elementwise_affine=False, eps=1e-6)


def adaln(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x) * (1 + scale) + shift


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * tiny.noise(*shape, seed=5) + 0.5).to(dtype)


def arguments(vector: tuple[int, ...] = (2, 1, 16), x: tuple[int, ...] = (2, 5, 16)) -> tuple[Tensor, Tensor, Tensor]:
    return tokens(*x), tiny.noise(*vector, seed=6), tiny.noise(*vector, seed=7)


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_gives_the_same_and_is_restored(name: str, calls: list[int]) -> None:
    sample = ZOO[name]()
    model = sample.model
    before, keys, classes = sample.forward(), list(model.state_dict()), [type(module) for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    report = ditf.fuse(model)
    assert report.swapped
    assert not report.left
    calls.clear()
    first = sample.forward()
    assert relative(first, before) < 1e-5
    if name == "omnigen":
        assert not calls, "nothing is modulated in it"
    else:
        assert len(calls) >= len(block_sites(model))
    count = len(calls)
    assert torch.equal(sample.forward(), first), "the first forward, which compares, gives what all others give"
    assert len(calls) == 2 * count
    assert not any(getattr(norm, SWAP).failure for norm in fused_norms(model))
    assert list(model.state_dict()) == keys
    ditf.unfuse(model)
    assert not traces(model)
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == keys
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(sample.forward(), before)


@pytest.mark.verify
@pytest.mark.parametrize("name", ADALNS)
def test_the_kernel_runs_once_per_adaln(name: str) -> None:
    sample = ZOO[name]()
    before = sample.forward()
    ditf.fuse(sample.model)
    runs = kernel_runs()
    with use_backend("triton"):
        after = sample.forward()
    assert kernel_runs() - runs == ADALNS[name]
    assert 0 < relative(after, before) < 2e-6
    ditf.unfuse(sample.model)
    with use_backend("triton"):
        assert torch.equal(sample.forward(), before)
    assert kernel_runs() - runs == ADALNS[name]


@pytest.mark.verify
def test_verify_reaches_every_adaln(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ZOO["flux"]()
    ditf.fuse(sample.model)
    compared = verification_counts().get("adaln", 0)
    with use_backend("verify"):
        sample.forward()
    assert verification_counts()["adaln"] - compared == ADALNS["flux"]
    right = adaln_kernels.adaln
    monkeypatch.setattr(adaln_kernels, "adaln", lambda *args: right(*args) + 0.01)
    with use_backend("verify"), pytest.raises(ditf.VerificationError, match="adaln"):
        sample.forward()
    with use_backend("verify"), pytest.raises(ditf.VerificationError, match="adaln"):
        ditf.fuse(tiny.pixart())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    model = Layers(plain_layer_norm, adaln)
    x, scale, shift = (t.to(dtype) for t in arguments((2, 1, 16), (2, 50, 16)))
    norm: Any = model.blocks[0].norm
    plain = adaln(norm, x, scale, shift)
    ditf.fuse(model)
    with torch.no_grad():
        fused = adaln(norm, x, scale, shift)
    # 1 + scale is rounded by the model itself
    exact = F.layer_norm(x.double(), (16,), eps=1e-6) * (1 + scale).double() + shift.double()
    assert fused.dtype == plain.dtype == dtype
    assert type(fused) is Tensor
    assert relative(fused, exact) <= relative(plain, exact)
    assert bool(((fused.double() - exact).abs() <= 0.5 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all())


@pytest.mark.parametrize(
    ("x", "vector", "result"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtypes_are_promoted_as_in_the_plain_expression(
    x: torch.dtype, vector: torch.dtype, result: torch.dtype
) -> None:
    model = Layers(plain_layer_norm, adaln)
    norm: Any = model.blocks[0].norm
    given = tokens(2, 5, 16, dtype=x), *(t.to(vector) for t in arguments()[1:])
    plain = adaln(norm, *given)
    ditf.fuse(model)
    for _ in range(2):
        with torch.no_grad():
            fused = adaln(norm, *given)
        assert fused.dtype == plain.dtype == result
        assert relative(fused, plain) < 0.02


def float32_inside(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (norm(x.float()) * (1 + scale) + shift).type_as(x)


def cast_between(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (norm(x).float() * (1 + scale)).to(torch.float32) + shift


def scale_first(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return shift + (1 + scale) * norm(x)


def first_tokens(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    n = norm(x)
    return torch.cat([n[:, :2] * (1 + scale) + shift, n[:, 2:] * scale + shift], 1)


def used_twice(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    n = norm(x)
    return (n * (1 + scale) + shift) - (n * scale + shift)


def gated_residual(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x + scale.tanh() * norm(x)


def shift_only(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x) + shift


def scale_only(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.tanh(norm(x) * (1 + scale))


def in_place(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    n = norm(x)
    n.mul_(1 + scale)
    n += shift
    return n * scale


def half_in_place(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    n = norm(x)
    n.mul_(1 + scale)
    return n + shift


def not_modulated(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x).unflatten(-1, (2, -1)).flatten(-2)


def by_numbers(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x) * 2.0 + 1


def in_float64(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (norm(x).double() * (1 + scale.double()) + shift).float()


def larger_than_tokens(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (norm(x[:1]) * (1 + scale)) + shift


USES: dict[str, tuple[Callable[..., Tensor], int]] = {  # and kernel runs a block
    "adaln": (adaln, 1),
    "float32 inside": (float32_inside, 1),
    "casts between": (cast_between, 1),
    "scale first": (scale_first, 1),
    "token slices": (first_tokens, 2),
    "used twice": (used_twice, 2),
    "gated residual": (gated_residual, 1),
    "shift only": (shift_only, 1),
    "scale only": (scale_only, 1),
    "in place": (in_place, 0),
    "half in place": (half_in_place, 0),
    "not modulated": (not_modulated, 0),
    "by numbers": (by_numbers, 0),
    "in float64": (in_float64, 0),
    "larger than the tokens": (larger_than_tokens, 0),
}


@pytest.mark.parametrize("name", USES)
def test_whatever_follows_the_norm_gives_the_same(name: str, calls: list[int]) -> None:
    use, runs = USES[name]
    model, given = Layers(plain_layer_norm, use), arguments()
    with torch.no_grad():
        before = model(*given)
        ditf.fuse(model)
        for _ in range(3):
            calls.clear()
            after = model(*given)
            assert after.dtype == before.dtype
            assert relative(after, before) < 1e-6
            assert len(calls) == 2 * runs
            if not runs:
                assert torch.equal(after, before)
    assert not any(getattr(norm, SWAP).failure for norm in fused_norms(model))


SHAPES = [  # of the tokens, of scale and shift, and whether a kernel takes them without a copy
    ((2, 5, 16), (2, 1, 16), True),
    ((2, 5, 16), (1, 1, 16), True),
    ((2, 5, 16), (16,), True),
    ((2, 5, 16), (2, 5, 16), True),
    ((2, 5, 16), (5, 16), True),
    ((5, 2, 16), (1, 2, 16), True),  # tokens before images
    ((5, 1, 16), (1, 1, 16), True),
    ((7, 16), (7, 16), True),
    ((7, 16), (1, 16), True),
    ((2, 3, 4, 16), (2, 1, 1, 16), True),
    ((2, 3, 4, 16), (1, 1, 1, 16), True),
    ((2, 3, 4, 16), (2, 3, 4, 16), True),
    ((2, 3, 4, 16), (2, 3, 1, 16), False),
    ((0, 5, 16), (1, 1, 16), True),
]


@pytest.mark.parametrize(("x", "vector", "taken"), SHAPES)
def test_shapes_are_mapped_without_copies(x: Any, vector: Any, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = Layers(plain_layer_norm, adaln), arguments(vector, x)
    norm: Any = model.blocks[0].norm
    plain = adaln(norm, *given)
    ditf.fuse(model)
    seen, real = [], fused_norm.adaln

    def look(rows: Tensor, shift: Tensor, scale: Tensor, **rest: Any) -> Tensor:
        seen.append((rows, shift))
        return real(rows, shift, scale, **rest)

    monkeypatch.setattr(fused_norm, "adaln", look)
    with torch.no_grad():
        fused = adaln(norm, *given)
    assert fused.shape == plain.shape
    assert fused.is_contiguous()
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=2e-6)
    assert bool(seen) == taken
    for rows, shift in seen:
        assert rows.data_ptr() == given[0].data_ptr()
        assert shift.data_ptr() == given[2].data_ptr()


def test_strided_tokens_stay_where_they_are() -> None:
    model = Layers(plain_layer_norm, adaln)
    norm: Any = model.blocks[0].norm
    x, scale, shift = tokens(5, 2, 32).transpose(0, 1)[..., ::2], *arguments()[1:]
    plain = adaln(norm, x, scale, shift)
    ditf.fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(adaln(norm, x, scale, shift), plain, rtol=1e-5, atol=2e-6)


def every_norm() -> dict[str, Callable[[], nn.Module]]:
    from diffusers.models.normalization import FP32LayerNorm, RMSNorm
    from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm

    return {
        "LayerNorm": lambda: nn.LayerNorm(16),
        "LayerNorm without bias": lambda: nn.LayerNorm(16, eps=1e-3, bias=False),
        "FP32LayerNorm": lambda: FP32LayerNorm(16, eps=1e-6),
        "nn.RMSNorm": lambda: nn.RMSNorm(16, eps=1e-5),
        "RMSNorm": lambda: RMSNorm(16, eps=1e-6, bias=True),
        "RMSNorm without weight": lambda: RMSNorm(16, eps=1e-6, elementwise_affine=False),
        "RMSNorm of any width": lambda: RMSNorm(0, eps=1e-6, elementwise_affine=False),
        "Krea2RMSNorm": lambda: Krea2RMSNorm(16),
        "own LayerNorm": OwnNorm,
    }


class OwnNorm(nn.Module):
    """A norm ditf has no row for; what it computes is found out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.eps = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (16,), self.weight, None, self.eps)


@pytest.mark.parametrize("name", every_norm())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_norm_is_reproduced(name: str, dtype: torch.dtype) -> None:
    model = Layers(every_norm()[name], adaln).to(dtype)
    given = [t.to(dtype) for t in arguments()]
    with torch.no_grad():
        before = model(*given)
        assert len(ditf.fuse(model).swapped) == 2
        for _ in range(2):
            after = model(*given)
            assert after.dtype == before.dtype
            assert relative(after, before) < (1e-6 if dtype == torch.float32 else 0.03)
    assert all(getattr(norm, SWAP).proven for norm in fused_norms(model))


# --- what is not reproduced stays ------------------------------------------------------------------------------------


class ShiftedNorm(nn.Module):
    """Looks like a norm; is none."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.eps = 16, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (16,), eps=self.eps) + 0.1


def test_a_norm_of_another_formula_is_left_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model, given = Layers(ShiftedNorm, adaln), arguments()
    before = model(*given)
    with caplog.at_level(logging.WARNING, "ditf"):
        report = ditf.fuse(model)
    assert not report.swapped
    assert report.left == ("blocks.0.norm", "blocks.1.norm")
    assert "ShiftedNorm is no LayerNorm or RMSNorm that the kernel reproduces" in report.reasons["blocks.0.norm"]
    assert "2 norms stay as they were: ShiftedNorm is no LayerNorm" in caplog.text
    assert not traces(model)
    assert torch.equal(model(*given), before)


def test_a_norm_that_blocks_share_is_swapped_once() -> None:
    shared, given = nn.LayerNorm(16), arguments()
    model = Layers(lambda: shared, adaln)
    before = model(*given)
    assert ditf.fuse(model).swapped == ("blocks.0.norm",)
    with torch.no_grad():
        assert relative(model(*given), before) < 1e-6
    ditf.unfuse(model)
    assert type(shared) is nn.LayerNorm
    assert torch.equal(model(*given), before)


def test_group_norms_are_left() -> None:
    report = ditf.fuse(Layers(lambda: nn.GroupNorm(2, 4), adaln))
    assert not report.swapped
    assert "GroupNorm" in report.reasons["blocks.1.norm"]


@pytest.mark.parametrize("eps", [1e-5, 1e-7])
def test_a_wrong_eps_is_noticed(eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fused_norm.adaln
    monkeypatch.setattr(fused_norm, "adaln", lambda *args, **kwargs: real(*args, **{**kwargs, "eps": eps}))
    assert not ditf.fuse(tiny.flux()).swapped


def test_a_kernel_that_fails_when_swapping_leaves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(fused_norm, "adaln", broken)
    model = tiny.flux()
    report = ditf.fuse(model)
    assert len(report.left) == ADALNS["flux"]
    assert "RuntimeError: out of shared memory" in next(iter(report.reasons.values()))
    assert not traces(model)


def failing(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("no")


def wrong(*args: Any, **kwargs: Any) -> Tensor:
    return 1.01 * ditf_kernels.adaln(*args, **kwargs)


@pytest.mark.parametrize(("kernel", "words"), [(failing, "RuntimeError: no"), (wrong, "differs .* by 0.01")])
def test_a_kernel_that_is_wrong_on_the_real_numbers_is_given_up(
    kernel: Any, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.flux()
    before = output(model)
    ditf.fuse(model)
    monkeypatch.setattr(fused_norm, "adaln", kernel)
    with caplog.at_level(logging.WARNING, "ditf"):
        assert torch.equal(output(model), before)
    assert len(caplog.records) == ADALNS["flux"]
    assert "transformer_blocks.0.norm1.norm stays as it was" in caplog.text
    report = ditf.fuse(model)
    assert len(report.left) == ADALNS["flux"]
    assert re.search(words, report.reasons["transformer_blocks.0.norm1.norm"])
    ditf.unfuse(model)
    assert not traces(model)


def changed_in_between(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x = x.clone()
    n = norm(x)
    x.mul_(torch.linspace(0, 1, 16))  # what the kernel would read later is no longer what the norm was given
    return n * (1 + scale) + shift


def test_tokens_changed_before_the_kernel_reads_them_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, given = Layers(plain_layer_norm, changed_in_between), arguments()
    with torch.no_grad():
        before = model(*given)
        ditf.fuse(model)
        for _ in range(2):
            assert torch.equal(model(*given), before)
    assert "blocks.0.norm stays as it was: the kernel's result differs" in caplog.text


def test_an_overflow_of_the_models_own_is_no_failure() -> None:
    model = Layers(plain_layer_norm, adaln)
    x, scale, shift = arguments()
    ditf.fuse(model)
    with torch.no_grad():
        assert not model(x, torch.full_like(scale, torch.inf), shift).isfinite().all()
    assert not any(getattr(norm, SWAP).failure for norm in fused_norms(model))
    with torch.no_grad():
        assert model(x, scale, shift).isfinite().all()
    assert all(getattr(norm, SWAP).proven for norm in fused_norms(model))


# --- where the plain path runs, bit for bit --------------------------------------------------------------------------


def test_with_gradients_nothing_changes() -> None:
    model, plain = tiny.flux(), tiny.flux()
    ditf.fuse(model)
    for each in (model, plain):
        each(**tiny.flux_inputs()).sample.square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_gradients_of_the_modulation_alone_are_right() -> None:
    model, plain = tiny.flux().requires_grad_(False), tiny.flux().requires_grad_(False)
    ditf.fuse(model)
    for each in (model, plain):
        each.transformer_blocks[0].norm1.linear.requires_grad_(True)
        each(**tiny.flux_inputs()).sample.square().sum().backward()
    assert relative(*(each.transformer_blocks[0].norm1.linear.weight.grad for each in (model, plain))) < 1e-5


@pytest.mark.parametrize("which", ["scale", "shift"])
def test_a_modulation_that_needs_a_gradient_is_plain(which: str) -> None:
    model, (x, *vectors) = Layers(plain_layer_norm, adaln), arguments()
    norm: Any = model.blocks[0].norm
    results, gradients = [], []
    for _ in range(3):  # as it was, while it compares, and after
        scale, shift = (
            t.clone().requires_grad_(name == which) for name, t in zip(("scale", "shift"), vectors, strict=True)
        )
        results.append(adaln(norm, x, scale, shift))
        gradients += torch.autograd.grad(results[-1].square().sum(), scale if which == "scale" else shift)
        ditf.fuse(model)
    assert all(torch.equal(result, results[0]) for result in results)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_frozen_weights_run_fused_in_grad_mode() -> None:
    model = tiny.flux().requires_grad_(False)
    ditf.fuse(model)
    model(**tiny.flux_inputs())
    assert all(getattr(norm, SWAP).proven for norm in fused_norms(model))


def test_inference_mode_runs_fused() -> None:
    model = tiny.flux()
    with torch.inference_mode():
        before = output(model)
        ditf.fuse(model)
        assert 0 < relative(output(model), before) < 1e-6


def test_float64_and_autocast_stay_plain() -> None:
    double = {k: v.double() for k, v in tiny.flux_inputs().items()}
    model, plain = tiny.flux(), tiny.flux()
    ditf.fuse(model)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("ignore")
        assert output(model).dtype == output(plain).dtype
        assert torch.equal(output(model), output(plain))
    assert torch.equal(output(model.double(), double), output(plain.double(), double))
    assert not any(getattr(norm, SWAP).proven for norm in fused_norms(model))


def test_a_compiled_transformer_is_unwrapped_and_stays_plain() -> None:
    torch._dynamo.reset()
    model = tiny.flux(num_layers=1, num_single_layers=1)
    before = output(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert len(ditf.fuse(compiled).swapped) == 4 + 1
    assert len(fused_norms(model)) == 4 + 1
    assert torch.equal(output(compiled), before)
    assert not any(getattr(norm, SWAP).proven for norm in fused_norms(model))
    ditf.unfuse(compiled)
    assert not traces(model)
    assert torch.equal(output(compiled), before)


def test_blocks_compiled_before_or_after_stay_plain() -> None:
    torch._dynamo.reset()
    model = tiny.pixart()
    before = output(model, tiny.pixart_inputs())
    model.transformer_blocks[0].compile(backend="eager")
    output(model, tiny.pixart_inputs())
    ditf.fuse(model, before=2)
    model.transformer_blocks[1].compile(backend="eager")
    assert torch.equal(output(model, tiny.pixart_inputs()), before)
    assert len(fused_norms(model)) == 4
    assert not any(getattr(norm, SWAP).proven for norm in fused_norms(model))


def test_compiled_parts_of_a_block_take_what_a_norm_returns() -> None:
    torch._dynamo.reset()
    model, given = Layers(plain_layer_norm, not_modulated), arguments()
    before = model(*given)
    ditf.fuse(model)
    blocks: Any = model.blocks
    for block in blocks:
        block.linear.compile(backend="eager")
        block.use = lambda norm, x, scale, shift: norm(x)
    with torch.no_grad():
        for _ in range(2):
            assert relative(model(*given), before) < 1e-6


def test_transforms_of_functions_stay_plain() -> None:
    model, (x, scale, shift) = Layers(plain_layer_norm, adaln).requires_grad_(False), arguments()

    def results() -> list[Tensor]:
        return [
            torch.func.jvp(lambda x: model(x, scale, shift), (x,), (torch.ones_like(x),))[1],
            torch.func.jvp(lambda scale: model(x, scale, shift), (scale,), (torch.ones_like(scale),))[1],
            torch.func.grad(lambda x: model(x, scale, shift).sum())(x),
            torch.vmap(model)(x[:, None], scale[:, None], shift[:, None]),
        ]

    before = results()
    ditf.fuse(model)
    for a, b in zip(results(), before, strict=True):
        assert torch.equal(a, b)


def test_traced_models_stay_plain() -> None:
    model, given = Layers(plain_layer_norm, adaln), arguments()
    before = model(*given)
    ditf.fuse(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(model, given)
        exported = torch.export.export(model, given)
    assert torch.equal(traced(*given), before)
    assert torch.equal(exported.module()(*given), before)


# --- living with others ----------------------------------------------------------------------------------------------


def test_forward_hooks_see_numbers() -> None:
    model = tiny.flux()
    seen: list[Tensor] = []
    ditf.fuse(model)
    norm = model.transformer_blocks[0].norm1.norm
    with norm.register_forward_hook(lambda module, args, result: seen.append(result)):
        output(model)
    assert type(seen[0]) is Tensor
    assert not getattr(norm, SWAP).proven
    output(model)
    assert getattr(norm, SWAP).proven, "without the hook it is fused again"


@pytest.mark.parametrize("name", ["flux", "sd3.5-dual", "pixart-sigma"])
def test_the_tap_sees_the_same_through_a_fused_transformer(name: str) -> None:
    plain, fused = ZOO[name](), ZOO[name]()
    ditf.fuse(fused.model)
    for block in range(len(block_sites(plain.model))):
        taken, expected = (ditf.tap(s.model, block, s.inputs, grid=s.grid) for s in (fused, plain))
        assert relative(taken.features, expected.features) < 1e-5
    taken = run_to_blocks(fused.model, [0, 2], fused.inputs, fused.grid)
    assert set(taken) == {0, 2}
    assert relative(taken[2].tokens, run_to_blocks(plain.model, [2], plain.inputs, plain.grid)[2].tokens) < 1e-5


@pytest.mark.parametrize("name", ["flux", "pixart-sigma"])
def test_the_probe_works_on_a_fused_transformer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ZOO[name]()
    known = run_to_blocks(sample.model, [2], sample.inputs, sample.grid)[2]
    ditf.fuse(sample.model)
    monkeypatch.setattr("ditf.backbones.modulation.MODULATION", {})
    probed = run_to_blocks(sample.model, [2], sample.inputs, sample.grid)[2]
    for part in ("shift", "scale"):
        assert relative(getattr(probed, part), getattr(known, part)) < 1e-5


def test_the_extractor_gives_the_same_features() -> None:
    import numpy as np

    picture = np.random.default_rng(0).integers(0, 255, (24, 36, 3), dtype=np.uint8)
    extractor = ditf.FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", size=24)
    before = extractor(picture).tokens
    report = ditf.fuse(extractor.backbone.transformer, before=extractor.config.block)
    assert report.swapped
    assert relative(extractor(picture).tokens, before) < 1e-5


def test_blocks_from_k_on_can_be_left() -> None:
    model = tiny.flux()
    report = ditf.fuse(model, before=3)
    assert len(report.swapped) == 2 * 4 + 1
    assert not report.left
    assert not fused_norms(model.single_transformer_blocks[1])
    more = ditf.fuse(model)
    assert len(more.swapped) == 2
    assert len(more.left) == 2 * 4 + 1


def test_a_low_rank_adapter_on_a_norm_and_on_a_linear_keeps_working() -> None:
    class LowRank(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + 0.1 * tiny.noise(weight.shape[0], 1) @ tiny.noise(1, weight.shape[1], seed=1)

    def adapted(model: Any) -> Any:
        nn.utils.parametrize.register_parametrization(model.transformer_blocks[0].norm1.linear, "weight", LowRank())
        model.transformer_blocks[1].attn.to_q.register_forward_hook(lambda module, args, result: 1.1 * result)
        return model

    late, early, plain = tiny.flux(), adapted(tiny.flux()), adapted(tiny.flux())
    ditf.fuse(late)
    ditf.fuse(early)
    expected = output(plain)
    assert relative(expected, output(tiny.flux())) > 1e-3
    for model in (adapted(late), early):
        assert relative(output(model), expected) < 1e-6
        ditf.unfuse(model)
        assert torch.equal(output(model), expected)


@pytest.mark.parametrize("name", ["flux", "lumina-next"])  # norms without and with weights
def test_fused_models_can_be_offloaded(name: str) -> None:
    from accelerate import cpu_offload

    sample = ZOO[name]()
    before = sample.forward()
    ditf.fuse(sample.model)
    cpu_offload(sample.model, execution_device=torch.device("cpu"))
    for _ in range(2):
        assert relative(sample.forward(), before) < 1e-5
    ditf.unfuse(sample.model)
    assert not traces(sample.model)
    assert torch.equal(sample.forward(), before)


def test_weights_that_are_offloaded_again_are_not_read_later() -> None:
    from accelerate import cpu_offload

    model, given = Layers(lambda: nn.LayerNorm(16), adaln), arguments()
    no_kernel = arguments((2, 3, 1, 16), (2, 3, 4, 16))  # its shapes take the plain expression
    with torch.no_grad():
        before = model(*no_kernel)
        ditf.fuse(model)
        model(*given)
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert torch.equal(model(*no_kernel), before)


def test_offloaded_models_are_left_with_a_reason() -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    sample = ZOO["lumina-next"]()
    before = sample.forward()
    cpu_offload(sample.model, execution_device=torch.device("cpu"))
    report = ditf.fuse(sample.model)
    assert report.left
    assert set(report.reasons.values()) <= {HOOKED}
    assert relative(sample.forward(), before) == 0
    remove_hook_from_submodules(sample.model)
    ditf.unfuse(sample.model)
    assert torch.equal(sample.forward(), before)


def test_hooks_of_diffusers_around_blocks_keep_working(tmp_path: Path) -> None:
    from diffusers.hooks import apply_group_offloading

    model = tiny.flux()
    before = output(model)
    ditf.fuse(model)
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    assert relative(output(model), before) < 1e-6
    assert all(getattr(norm, SWAP).proven for norm in fused_norms(model))


def test_checkpoints_do_not_know(tmp_path: Path) -> None:
    model = tiny.flux()
    before = output(model)
    ditf.fuse(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not traces(again)
    assert torch.equal(output(again), before)
    model.load_state_dict(again.state_dict())
    assert len(fused_norms(model)) == ADALNS["flux"]


def test_copies_and_pickles_are_fused_too() -> None:
    model = tiny.flux()
    before = output(model)
    ditf.fuse(model)
    after = output(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(fused_norms(other)) == ADALNS["flux"]
        assert torch.equal(output(other), after)
        ditf.unfuse(other)
        assert torch.equal(output(other), before)
    assert torch.equal(output(model), after)


def test_fused_norms_are_still_norms_of_their_class() -> None:
    model = tiny.flux()
    ditf.fuse(model)
    norm = model.transformer_blocks[0].norm1.norm
    assert isinstance(norm, nn.LayerNorm)
    assert "FusedLayerNorm((32,), eps=1e-06" in repr(model)
    model.to(torch.bfloat16).eval().train().requires_grad_(False)
    assert isinstance(model.transformer_blocks[0].norm1.norm, FusedNorm)


def test_threads_share_a_fused_model() -> None:
    model = tiny.flux()
    inputs = [tiny.flux_inputs(text=text) for text in (3, 5, 7, 9)]
    expected = [output(model, each) for each in inputs]
    ditf.fuse(model)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for a, b in zip(pool.map(lambda each: output(model, each), inputs), expected, strict=True):
                assert relative(a, b) < 1e-6


def test_a_norm_without_shift_finishes_at_the_product() -> None:
    model, given = Layers(plain_layer_norm, scale_only), arguments()
    norm: Any = model.blocks[0].norm
    ditf.fuse(model)
    with torch.no_grad():
        assert isinstance(norm(given[0]) * given[1], LazyNorm)
        model(*given)
        assert type(norm(given[0]) * given[1]) is Tensor


def test_what_a_norm_returns_is_a_tensor() -> None:
    model = Layers(plain_layer_norm, adaln)
    norm: Any = model.blocks[0].norm
    x = tokens(2, 5, 16)
    plain = norm(x)
    ditf.fuse(model)
    lazy = norm(x)
    assert isinstance(lazy, LazyNorm)
    assert isinstance(lazy, Tensor)
    assert (lazy.shape, lazy.dtype, lazy.device, lazy.stride()) == (
        plain.shape,
        plain.dtype,
        plain.device,
        plain.stride(),
    )
    assert repr(lazy) == "LazyNorm(shape=(2, 5, 16), dtype=torch.float32, device=cpu)"
    assert not getattr(norm, SWAP).plain
    assert torch.equal(lazy.sum(1), plain.sum(1))
    assert getattr(norm, SWAP).plain
    assert type(norm(x)) is Tensor


# --- the call itself -------------------------------------------------------------------------------------------------


def test_a_pipeline_is_fused_in_its_transformer() -> None:
    pipeline = tiny.pixart_pipeline()
    report = ditf.fuse(pipeline)
    assert report.swapped[:2] == ("transformer_blocks.0.norm1", "transformer_blocks.0.norm2")
    ditf.unfuse(pipeline)
    assert not traces(pipeline.transformer)


def test_the_report_reads_as_sentences() -> None:
    model = tiny.flux()
    assert str(ditf.fuse(model)) == "11 norms fused, 0 left as before"
    again = ditf.fuse(model)
    assert again.swapped == ()
    assert set(again.reasons) == set(again.left)
    assert set(again.reasons.values()) == {ALREADY}
    assert str(again) == (
        "0 norms fused, 11 left as before\n  11 x already fused: transformer_blocks.0.norm1.norm, "
        "transformer_blocks.0.norm1_context.norm, transformer_blocks.0.norm2, ..."
    )


def test_fusing_twice_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.flux()
    ditf.fuse(model)
    ditf.fuse(model)
    assert not caplog.records


def test_unfusing_what_is_not_fused_does_nothing() -> None:
    model = tiny.flux()
    before = output(model)
    ditf.unfuse(model)
    ditf.unfuse(nn.Linear(2, 2))
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("call", [ditf.fuse, ditf.unfuse])
@pytest.mark.parametrize("given", ["flux", None, object(), {"transformer": 1}])
def test_anything_else_is_named(call: Any, given: Any) -> None:
    with pytest.raises(
        ditf.InputError, match=rf"transformer_or_pipeline: got '{type(given).__name__}', expected a diff"
    ):
        call(given)


def test_a_module_without_blocks_is_no_transformer() -> None:
    with pytest.raises(ditf.ModelError, match="no list of transformer blocks"):
        ditf.fuse(nn.Linear(2, 2))


def test_a_backend_that_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    model = tiny.flux()
    with use_backend("triton"), pytest.raises(ditf.InputError, match="fused: .*triton"):
        ditf.fuse(model)
    assert not traces(model)


def test_weights_that_are_not_loaded_are_left() -> None:
    with torch.device("meta"):
        model = Layers(lambda: nn.LayerNorm(16), adaln)
    report = ditf.fuse(model)
    assert set(report.reasons.values()) == {"its weights are not loaded"}


def test_the_fused_expression_agrees_with_float64() -> None:
    model = Layers(lambda: nn.RMSNorm(16, eps=1e-5), adaln)
    norm: Any = model.blocks[0].norm
    ditf.fuse(model)
    x, scale, shift = arguments()
    with torch.no_grad():
        fused = adaln(norm, x, scale, shift)
    x, scale, shift, weight = (t.detach().double() for t in (x, scale, shift, norm.weight))
    exact = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight * (1 + scale) + shift
    assert relative(fused, exact) < 1e-6
