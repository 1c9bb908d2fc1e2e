"""adaln: the Triton kernel (in its interpreter without a GPU) against its twin, and both against float64."""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditf_kernels import BackendError, _registry, adaln, adaln_with_inverse_norm
from ditf_kernels.adaln import _channels_on

from .oracles import adaln_float64

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What one rounding to the dtype, after float32 arithmetic, may cost: (absolute, relative).
ROUNDING = {torch.float32: (3e-5, 3e-5), torch.bfloat16: (1e-3, 2.0**-7), torch.float16: (1e-4, 2.0**-10)}

both_backends = pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.verify)])


def assert_rounded(actual, expected):
    absolute, relative = ROUNDING[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, atol=absolute, rtol=relative)


@st.composite
def calls(draw):
    """Arguments of adaln: tensors of every legal shape and dtype, and flags."""
    images, ensemble, tokens = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    channels = draw(st.sampled_from([1, 2, 33, 64, 100]))
    dtype = draw(st.sampled_from(DTYPES))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(*shape):
        return torch.randn(shape, generator=noise).to(dtype)

    def modulation():
        shapes = [None, (channels,), (images, channels), (images, tokens, channels), (1, 1, channels)]
        shape = draw(st.sampled_from(shapes))
        return None if shape is None else random(*shape)

    x = random(images * ensemble, tokens, channels) * 3
    x[..., channels // 2] *= draw(st.sampled_from([1, 100]))  # a massive channel
    flags = {
        "add_one": draw(st.booleans()),
        "norm": draw(st.sampled_from(["layer", "rms"])),
        "weight": random(channels) if draw(st.booleans()) else None,
        "bias": random(channels) if draw(st.booleans()) else None,
        "eps": draw(st.sampled_from([1e-6, 1e-3])),
        "discard": draw(st.lists(st.integers(0, channels - 1), max_size=3, unique=True)),
        "discard_at": draw(st.sampled_from(["input", "output"])),
        "topk_per_token": draw(st.integers(0, min(3, channels))),
        "ensemble": ensemble,
        "l2_normalize": draw(st.booleans()),
    }
    return x, modulation(), modulation(), flags


@pytest.mark.verify
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_kernel_equals_twin_equals_formula(call):
    x, shift, scale, flags = call
    y, inverse_norm = adaln_with_inverse_norm(x, shift, scale, **flags, backend="verify")
    expected = adaln_float64(x, shift, scale, **flags)
    # One or two channels leave next to no variance: the norm then magnifies the rounding of the mean.
    if x.shape[-1] > 2:
        assert_rounded(y, expected)
        assert_rounded(inverse_norm, 1 / expected.norm(dim=-1).clamp_min(1e-12))
    assert torch.equal(y, adaln(x, shift, scale, **flags, backend="triton"))


@pytest.mark.verify
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1152, 1536, 2432, 3072])
def test_widths_of_real_models(width, dtype):
    x = torch.randn(1, 2, width).to(dtype)
    x[..., 154] = 2000.0  # what E[x^2] - E[x]^2 would drown in
    shift, scale = torch.randn(2, width).to(dtype)
    y = adaln(x, shift, scale, backend="verify")
    assert_rounded(y, adaln_float64(x, shift, scale))


@both_backends
def test_discarded_channels_do_not_enter_the_statistics(backend):
    x = torch.randn(1, 2, 64)
    calm = x.clone()
    x[..., [5, 40]] = 1e6
    calm[..., [5, 40]] = 0.0
    assert torch.equal(adaln(x, None, None, discard=[5, 40], backend=backend), adaln(calm, None, None, backend=backend))


@both_backends
def test_discarding_at_the_output_leaves_zeros_and_the_statistics_alone(backend):
    x, shift = torch.randn(1, 2, 64), torch.randn(64)
    plain = adaln(x, shift, None, backend=backend)
    dropped = adaln(x, shift, None, discard=(7, 0), discard_at="output", backend=backend)
    assert (dropped[..., [0, 7]] == 0).all()
    kept = [c for c in range(64) if c not in (0, 7)]
    assert torch.equal(dropped[..., kept], plain[..., kept])


@both_backends
def test_discarded_nan_is_gone(backend):
    x = torch.randn(1, 2, 32)
    x[..., 3] = torch.nan
    assert adaln(x, None, None, discard=[3], backend=backend).isfinite().all()


@both_backends
def test_largest_channels_of_each_token_are_zeroed_on_the_ensemble_mean(backend):
    members = torch.tensor([[[9.0, -1.0, 2.0, 0.5]], [[-9.0, -5.0, 2.0, 0.5]]])  # mean 0, -3, 2, 0.5
    y = adaln(members, None, None, norm="rms", topk_per_token=1, ensemble=2, backend=backend)
    torch.testing.assert_close(y, F.rms_norm(torch.tensor([[[0, 0, 2.0, 0.5]]]), (4,), eps=1e-6))


@both_backends
def test_equally_large_channels_are_zeroed_from_the_lowest_on(backend):
    x = torch.tensor([[[1.0, -4.0, 4.0, 3.0, -4.0]]])
    y = adaln(x, None, None, norm="rms", topk_per_token=2, backend=backend)
    assert (y == 0).flatten().tolist() == [False, True, True, False, False]


@both_backends
def test_a_token_with_nan_stays_nan_and_spoils_no_other(backend):
    x = torch.randn(1, 3, 32)
    x[0, 1, 4] = torch.nan
    y, inverse_norm = adaln_with_inverse_norm(x, None, None, topk_per_token=2, backend=backend)
    assert y.isnan().all(-1).tolist() == [[False, True, False]]
    assert inverse_norm.isnan().tolist() == [[False, True, False]]
    assert not y[:, [0, 2]].isnan().any()


@both_backends
def test_zero_rows_have_the_largest_inverse_norm_and_stay_zero(backend):
    x = torch.zeros(1, 1, 16)
    y, inverse_norm = adaln_with_inverse_norm(x, None, None, l2_normalize=True, backend=backend)
    assert (y == 0).all()
    assert inverse_norm.item() == pytest.approx(1e12)


@both_backends
def test_inverse_norms_belong_to_the_rows_returned(backend):
    x = torch.randn(2, 2, 48)
    for l2_normalize in (False, True):
        y, inverse_norm = adaln_with_inverse_norm(x, None, None, l2_normalize=l2_normalize, backend=backend)
        torch.testing.assert_close(inverse_norm, 1 / y.norm(dim=-1))


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once_to_nearest(backend, dtype):
    x, scale = torch.randn(1, 2, 200), torch.randn(200)
    exact = adaln(x, None, scale, backend=backend)
    assert torch.equal(adaln(x, None, scale, out_dtype=dtype, backend=backend), exact.to(dtype))


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(backend, dtype):
    joined = torch.randn(2, 5, 64).to(dtype)  # text tokens, then image tokens
    image = joined[:, 2:]
    chunks = torch.randn(2, 6 * 64).to(dtype).chunk(6, 1)  # row stride 6 * D
    transposed = torch.randn(2, 64, 3).to(dtype).mT  # channel stride 3
    every_other = torch.randn(64, 2).to(dtype)[:, 0]
    for x in (image, transposed):
        y = adaln(x, chunks[1], chunks[2], weight=every_other, bias=every_other, backend=backend)
        dense = adaln(
            x.contiguous(), chunks[1].contiguous(), chunks[2].contiguous(),
            weight=every_other.contiguous(), bias=every_other.contiguous(), backend=backend,
        )  # fmt: skip
        assert torch.equal(y, dense)


@both_backends
def test_modulation_may_be_shared_per_image_or_per_token(backend):
    x, shared = torch.randn(2, 3, 32), torch.randn(32)
    expected = adaln(x, shared, shared, backend=backend)
    for view in (
        shared.expand(2, 32), shared[None, None], shared.expand(2, 1, 32), shared.expand(1, 3, 32),
        shared.expand(2, 3, 32),
    ):  # fmt: skip
        torch.testing.assert_close(adaln(x, view, view, backend=backend), expected, atol=1e-6, rtol=1e-6)
    per_token = torch.randn(2, 3, 32)
    y = adaln(x, per_token, None, backend=backend)
    torch.testing.assert_close(y, F.layer_norm(x, (32,), eps=1e-6) + per_token)


@both_backends
def test_discard_may_be_a_tensor_whose_strangers_name_no_channel(backend):
    x = torch.randn(1, 2, 32)
    expected = adaln(x, None, None, discard=[3, 9], backend=backend)
    for indices in (torch.tensor([9, 3]), torch.tensor([3, 9, -1, 32, 9]), torch.tensor([3, 0, 9, 0])[::2]):
        assert torch.equal(adaln(x, None, None, discard=indices, backend=backend), expected)


def test_a_list_of_channels_is_copied_to_the_device_once():
    assert _channels_on((1, 2), torch.device("cpu")) is _channels_on((1, 2), torch.device("cpu"))


@both_backends
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8)])
def test_no_tokens_give_empty_results(backend, shape):
    y, inverse_norm = adaln_with_inverse_norm(torch.zeros(shape), None, None, ensemble=2, backend=backend)
    assert y.shape == (shape[0] // 2, shape[1], 8)
    assert inverse_norm.shape == y.shape[:2]


def test_two_dimensions_mean_one_image():
    x = torch.randn(3, 8)
    assert torch.equal(adaln(x, None, None), adaln(x[None], None, None))


def test_long_inputs_are_worked_in_blocks_that_agree():
    x = torch.randn(1, 700, 1024)  # several blocks
    whole = adaln(x, None, None, discard=[3], backend="torch")
    x[..., 3] = 0
    torch.testing.assert_close(whole, F.layer_norm(x, (1024,), eps=1e-6))


# --- gradients -------------------------------------------------------------------------------------------------------


def test_an_input_that_requires_grad_takes_the_differentiable_twin_and_says_so_once(caplog):
    x, shift, scale = torch.randn(2, 3, 16), torch.randn(16), torch.randn(16)
    for t in (x, shift, scale):
        t.requires_grad_()
    _registry._said.clear()
    with caplog.at_level(logging.INFO, "ditf_kernels"):
        for _ in range(2):
            y, inverse_norm = adaln_with_inverse_norm(x, shift, scale, topk_per_token=1, discard=[2], ensemble=2)
    assert len(caplog.records) == 1
    (y.sum() + inverse_norm.sum()).backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (x, shift, scale))
    assert (x.grad[..., 2] == 0).all()


def test_gradients_are_those_of_layer_norm():
    x = torch.randn(1, 4, 16, requires_grad=True)
    weight = torch.randn(16)
    (ours,) = torch.autograd.grad((adaln(x, None, None) * weight).sum(), x)
    (expected,) = torch.autograd.grad((F.layer_norm(x, (16,), eps=1e-6) * weight).sum(), x)
    torch.testing.assert_close(ours, expected)


def test_triton_refuses_an_input_that_requires_grad_unless_gradients_are_off():
    x = torch.randn(1, 1, 8, requires_grad=True)
    with pytest.raises(BackendError, match=r"requires grad.*no_grad"):
        adaln(x, None, None, backend="triton")
    with torch.no_grad():
        assert adaln(x, None, None, backend="triton").shape == (1, 1, 8)


# --- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3)}, r"x: got shape \(3,\), expected \(B\*E, N, D\)"),
        ({"x": torch.zeros(2, 3, 0)}, r"x: got shape"),
        ({"x": torch.zeros(2, 3, 8, dtype=torch.float64)}, r"x: got torch.float64, expected float32"),
        ({"x": torch.zeros(2, 3, 8, dtype=torch.int64)}, r"x: got torch.int64"),
        ({"shift": torch.zeros(7)}, r"shift: got shape \(7,\), expected \(8,\)"),
        ({"scale": torch.zeros(3, 8)}, r"scale: got shape \(3, 8\)"),
        ({"scale": torch.zeros(2, 2, 8)}, r"scale: got shape \(2, 2, 8\)"),
        ({"shift": torch.zeros(8, dtype=torch.int32)}, r"shift: got torch.int32"),
        ({"shift": torch.zeros(8, device="meta")}, r"shift: got a tensor on meta, expected one on cpu"),
        ({"weight": torch.zeros(1, 8)}, r"weight: got shape \(1, 8\), expected \(8,\)"),
        ({"bias": torch.zeros(9)}, r"bias: got shape \(9,\)"),
        ({"norm": "batch"}, r'norm: got \'batch\', expected "layer" or "rms"'),
        ({"discard_at": "middle"}, r"discard_at: got 'middle'"),
        ({"discard": [8]}, r"discard: got channel 8, expected 0\.\.7"),
        ({"discard": [1, 1]}, r"discard: got \(1, 1\), expected distinct channels"),
        ({"discard": [0.5]}, r"discard: got \[0\.5\], expected integers"),
        ({"discard": torch.tensor([0.5])}, r"discard: got shape \(1,\) torch.float32"),
        ({"topk_per_token": 9}, r"topk_per_token: got 9, expected an integer of at least 0 and at most 8"),
        ({"topk_per_token": True}, r"topk_per_token: got True"),
        ({"ensemble": 3}, r"ensemble: got 3, expected a divisor of the 2 rows of x"),
        ({"ensemble": 0}, r"ensemble: got 0"),
        ({"eps": -1.0}, r"eps: got -1\.0"),
        ({"out_dtype": torch.int8}, r"out_dtype: got torch.int8"),
    ],
)
def test_bad_arguments_are_named_with_what_was_expected(arguments, message):
    call = {"x": torch.zeros(2, 3, 8), "shift": None, "scale": None, **arguments}
    with pytest.raises(ValueError, match=message):
        adaln(**call)
