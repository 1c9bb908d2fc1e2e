"""massive_channels: the Triton kernels (interpreted without a GPU) against their twin, and both against float64."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditf_kernels import BackendError, backend, explain, massive_channels, use_backend
from ditf_kernels.channels import row_axes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# The interpreter computes with numpy, which warns of the NaN these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

both_backends = pytest.mark.parametrize("asked", ["torch", pytest.param("triton", marks=pytest.mark.verify)])


def mean_magnitude(x):
    """The formula in float64, one channel at a time: a list of D numbers."""
    rows = x.double().reshape(-1, x.shape[-1])
    return [math.fsum(rows[:, c].abs().tolist()) / len(rows) for c in range(x.shape[-1])]


def assert_found(result, x):
    """Ranking, values and median of finite x, against the formula."""
    index, magnitude, median = result
    expected = mean_magnitude(x)
    assert len(set(index.tolist())) == len(index)
    for channel, value, best in zip(index.tolist(), magnitude.tolist(), sorted(expected, reverse=True), strict=False):
        assert value == pytest.approx(expected[channel], rel=2e-6)
        assert value == pytest.approx(best, rel=2e-6)
    assert median.item() == pytest.approx(sorted(expected)[(len(expected) - 1) // 2], rel=2e-6)
    assert (index.dtype, magnitude.dtype, median.dtype) == (torch.int64, torch.float32, torch.float32)


@st.composite
def calls(draw):
    """Tokens of any leading shape, dtype and strides, some channels massive, and k."""
    shape = draw(st.lists(st.integers(1, 5), max_size=4)) + [draw(st.sampled_from([1, 2, 33, 70]))]
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = draw(st.permutations(range(len(shape))))
    step = draw(st.sampled_from([1, 2, 3]))
    stored = torch.randn([shape[axis] * step for axis in order], generator=noise)
    x = stored.permute([order.index(axis) for axis in range(len(shape))])
    for axis in range(len(shape)):
        x = x[(slice(None),) * axis + (slice(None, None, step),)]
    x = x.to(draw(st.sampled_from(DTYPES)))
    for channel in draw(st.lists(st.integers(0, shape[-1] - 1), max_size=2)):
        x[..., channel] *= draw(st.sampled_from([1e4, -1e4, 0]))
    return x, draw(st.integers(1, shape[-1]))


@pytest.mark.verify
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_kernel_equals_twin_equals_formula(call):
    x, k = call
    result = massive_channels(x, k, backend="torch" if len(row_axes(x)) > 3 else "verify")
    assert result[0].shape == result[1].shape == (k,)
    assert_found(result, x)


@pytest.mark.verify
@pytest.mark.parametrize(
    ("width", "dtype"), [(1152, torch.float32), (1152, torch.float16), (1536, torch.bfloat16), (3072, torch.bfloat16)]
)
def test_widths_of_real_models(width, dtype):
    x = torch.randn(2, 9, width).to(dtype)
    x[..., [154, 1000]] *= 1e4
    index, magnitude, median = massive_channels(x, 3, backend="verify")
    assert_found((index, magnitude, median), x)
    assert set(index[:2].tolist()) == {154, 1000}
    assert magnitude[1] > 1000 * median
    assert magnitude[2] < 10 * median


@both_backends
@pytest.mark.parametrize("value", [1e4, 1.1, 1e-30])
def test_a_long_sum_keeps_the_accuracy_of_float32(asked, value):
    # Equal numbers round the same way at every step: added one after the other they would drift by 1e-4 and more.
    rows = 300_000 if asked == "torch" else 30_000
    x = torch.full((rows, 2), value)
    x[:, 1] = -0.7 * value
    index, magnitude, median = massive_channels(x, 2, backend=asked)
    assert index.tolist() == [0, 1]
    assert magnitude.tolist() == pytest.approx(x[0].abs().tolist(), rel=1e-6)
    assert median == magnitude[1]


def test_massive_values_do_not_drown_ordinary_ones_over_many_tokens():
    x = torch.randn(150_001, 3)
    x[::1000, 1] = 1e4  # a few massive tokens in one channel
    assert_found(massive_channels(x, 3, backend="torch"), x)


@both_backends
def test_ranks_medians_and_signs_in_closed_form(asked):
    x = torch.tensor([[1.0, -9.0, 4.0, 0.0], [-3.0, 9.0, 4.0, 0.0]])  # mean |x| of 2, 9, 4, 0
    index, magnitude, median = massive_channels(x, 4, backend=asked)
    assert index.tolist() == [1, 2, 0, 3]
    assert magnitude.tolist() == [9, 4, 2, 0]
    assert median.item() == 2  # the lower of 2 and 4, as torch.median
    assert median == magnitude.median()
    assert massive_channels(x[:, :3], 1, backend=asked)[2].item() == 4


@both_backends
def test_equal_channels_rank_from_the_lowest_on(asked):
    x = torch.ones(3, 200)
    x[:, [150, 7, 80]] = -2.0
    index, magnitude, median = massive_channels(x, 6, backend=asked)
    assert index.tolist() == [7, 80, 150, 0, 1, 2]
    assert magnitude.tolist() == [2, 2, 2, 1, 1, 1]
    assert median.item() == 1


@both_backends
def test_one_token_and_one_channel(asked):
    index, magnitude, median = massive_channels(torch.tensor([-3.0]), 1, backend=asked)
    assert (index.tolist(), magnitude.tolist(), median.item()) == ([0], [3.0], 3.0)


# --- NaN and infinity ------------------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_with_nan_rank_first_then_infinite_ones_and_the_median_leaves_nan_out(asked, dtype):
    x = torch.arange(8.0).expand(5, 8).clone().to(dtype)  # channel c has magnitude c
    x[4, 6] = x[0, 2] = torch.nan
    x[1, 3] = -torch.inf
    index, magnitude, median = massive_channels(x, 5, backend=asked)
    assert index.tolist() == [2, 6, 3, 7, 5]
    assert magnitude[:2].isnan().all()
    assert magnitude[2:].tolist() == [torch.inf, 7, 5]
    assert median.item() == 4  # of 0, 1, 4, 5, 7, infinity


@both_backends
def test_a_negative_nan_is_a_nan(asked):
    x = torch.ones(2, 4)
    x.view(torch.int32)[0, 3] = -0x3FFFFF  # sign bit set, another payload
    assert x[0, 3].isnan()
    index, _, median = massive_channels(x, 2, backend=asked)
    assert index.tolist() == [3, 0]
    assert median.item() == 1


@both_backends
def test_nothing_but_nan_has_no_median(asked):
    index, magnitude, median = massive_channels(torch.full((2, 3), torch.nan), 2, backend=asked)
    assert index.tolist() == [0, 1]
    assert magnitude.isnan().all()
    assert median.isnan()


# --- strides ---------------------------------------------------------------------------------------------------------


def test_axes_that_lie_one_inside_the_other_are_one():
    x = torch.empty(6, 4, 5, 8)
    assert row_axes(x) == [(120, 8)]
    assert row_axes(x.permute(2, 0, 1, 3)) == [(120, 8)]
    assert row_axes(x[:, 1:]) == [(6, 160), (15, 8)]
    assert row_axes(x[:, :, 1:]) == [(24, 40), (4, 8)]
    assert row_axes(x[:, 1:3, 1:]) == [(6, 160), (2, 40), (4, 8)]
    assert row_axes(x[:1, :1, :1]) == row_axes(x[0, 0, 0]) == []
    assert row_axes(x[:1].expand(9, 4, 5, 8)) == [(20, 8), (9, 0)]


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(asked, dtype):
    stored = torch.randn(3, 20, 50).to(dtype)
    views = {
        "image tokens behind text": stored[:, 5:],
        "sequence first": stored.transpose(0, 1)[4:],
        "channels first": stored[0].T,
        "every other channel": stored[..., ::2],
        "one token for all": stored[:1, :1].expand(3, 20, 50),
        "a cropped map": stored.view(3, 4, 5, 50)[:, 1:3, 1:],
    }
    for name, x in views.items():
        result = massive_channels(x, 4, backend=asked)
        assert_found(result, x.contiguous())
        assert x.is_contiguous() is False, name


def test_more_axes_than_the_kernel_takes_run_on_the_twin_or_are_refused(monkeypatch):
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "auto")
    x = torch.randn(4, 4, 4, 4, 6)[:3, :3, :3, :3]
    assert explain(massive_channels, x, 2).implementation == "torch"
    assert_found(massive_channels(x, 2), x)
    with pytest.raises(BackendError, match="x has 4 leading axes that do not merge, and the kernel takes 3"):
        massive_channels(x, 2, backend="triton")


@pytest.mark.verify
def test_offsets_beyond_32_bits(tmp_path):
    far = 2**31 + 8  # rows so far apart, in a file that is empty in between
    flat = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * far + 64, dtype=torch.float16)
    x = flat.as_strided((3, 16), (far, 1))
    x.copy_(torch.randn(3, 16))
    assert_found(massive_channels(x, 3, backend="verify"), x)


# --- determinism, registration, gradients ----------------------------------------------------------------------------


@both_backends
def test_equal_calls_give_equal_bits(asked):
    x = torch.randn(700, 70)
    first, second = (massive_channels(x, 70, backend=asked) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.verify
def test_the_kernel_runs_and_is_counted():
    before = backend.kernel_counts().get("massive_channels", 0)
    massive_channels(torch.randn(3, 8), 2, backend="triton")
    massive_channels(torch.randn(3, 8), 2, backend="torch")
    assert backend.kernel_counts()["massive_channels"] == before + 1


@both_backends
def test_registration_passes_the_checks_of_torch_library(asked):
    op = torch.ops.ditf_kernels.massive_channels.default
    torch.library.opcheck(op, (torch.randn(3, 4, 16)[1:], 5, asked))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@both_backends
def test_compiled_as_one_graph_with_dynamic_shapes(compiler, asked):
    def ratio(x, k):
        index, magnitude, median = massive_channels(x * 2, k)
        return index + 1, magnitude / median

    torch._dynamo.reset()
    compiled = torch.compile(ratio, fullgraph=True, dynamic=True, backend=compiler)
    for rows, k in ((3, 2), (5, 4), (8, 3)):
        x = torch.randn(2, rows, 16)
        with use_backend(asked):
            for a, b in zip(compiled(x, k), ratio(x, k), strict=True):
                torch.testing.assert_close(a, b)


def test_gradients_are_those_of_the_mean_magnitude():
    x = torch.tensor([[1.0, -9.0, 4.0], [-3.0, 9.0, 4.0]], requires_grad=True)  # magnitudes 2, 9, 4
    index, magnitude, median = massive_channels(x, 1)
    assert index.tolist() == [1]
    (3 * magnitude.sum() + 5 * median).backward()
    assert x.grad.tolist() == [[0, -1.5, 2.5], [0, 1.5, 2.5]]
    with pytest.raises(BackendError, match="massive_channels with an input that requires grad"):
        massive_channels(x, 1, backend="triton")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.tensor(1.0)}, r"x: got shape \(\), expected \(\.\.\., D\) with at least one token"),
        ({"x": torch.zeros(0, 8)}, r"x: got shape \(0, 8\), expected"),
        ({"x": torch.zeros(3, 0)}, r"x: got shape \(3, 0\), expected"),
        ({"x": torch.zeros(3, 8, dtype=torch.float64)}, r"x: got torch.float64, expected float32"),
        ({"x": torch.zeros(3, 8, dtype=torch.int64)}, r"x: got torch.int64"),
        ({"k": 0}, r"k: got 0, expected an integer of at least 1 and at most 8"),
        ({"k": 9}, r"k: got 9, expected"),
        ({"k": True}, r"k: got True"),
        ({"k": 2.0}, r"k: got 2\.0"),
    ],
)
def test_bad_arguments_are_named_with_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        massive_channels(**{"x": torch.zeros(3, 8), "k": 2, **arguments})
