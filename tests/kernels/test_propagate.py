"""propagate_topk: the Triton kernels (interpreted without a GPU) against their twin, and both against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditf_kernels import BackendError, backend, explain, propagate_topk, use_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WITH_CHOICE = torch.ops.ditf_kernels.propagate_topk.default  # returns the keys chosen and their cosines too

# The interpreter computes with numpy, which warns of the NaN these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

both_backends = pytest.mark.parametrize("asked", ["torch", pytest.param("triton", marks=pytest.mark.verify)])


def cosines(query, keys, grid, radius, global_frames):
    """(h*w, F * h*w) float64: -inf outside the window and for rows that are not finite."""
    cell, frame = torch.arange(len(query)), torch.arange(len(keys))
    y, x = cell // grid[1], cell % grid[1]
    far = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) > radius
    blocked = far[:, None] & (frame >= global_frames)[:, None]  # (h*w, F, h*w)
    blocked = blocked | ~query.isfinite().all(1)[:, None, None] | ~keys.isfinite().all(2)
    score = F.normalize(query.double(), dim=1) @ F.normalize(keys.double(), dim=2).flatten(0, 1).T
    return score.masked_fill(blocked.flatten(1), -torch.inf)


def assert_propagated(result, query, keys, labels, grid, radius, topk, temperature, global_frames=0):
    """The keys chosen score as high as any, each once, and the labels are their softmax, all in float64."""
    out, index, score = result
    expected = cosines(query, keys, grid, radius, global_frames)
    flat = labels.double().mT.flatten(0, 1)  # (F * h*w, C)
    scale = 1 + labels.nan_to_num().abs().amax().item() if labels.numel() else 1
    for token in range(len(query)):
        best = sorted((s for s in expected[token].tolist() if s > -math.inf), reverse=True)[:topk]
        chosen = [place for place in index[token].tolist() if place >= 0]
        assert len(chosen) == len(set(chosen)) == len(best)
        assert (index[token, len(best) :] == -1).all()
        assert score[token, len(best) :].isnan().all()
        own = expected[token, chosen]
        assert own.tolist() == pytest.approx(best, abs=1e-6)
        assert score[token, : len(best)].tolist() == pytest.approx(best, abs=1e-6)
        blended = own.div(temperature).softmax(0) @ flat[chosen] if chosen else torch.full(flat.shape[1:], torch.nan)
        torch.testing.assert_close(
            out[:, token].double(), blended.double(), atol=1e-6 / temperature * scale, rtol=1e-5, equal_nan=True
        )
    assert (out.dtype, index.dtype, score.dtype) == (torch.float32, torch.int64, torch.float32)


@st.composite
def calls(draw):
    """Arguments: features with awkward rows and massive channels, every dtype, permuted and sliced."""
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    cells, frames, classes = grid[0] * grid[1], draw(st.integers(0, 3)), draw(st.sampled_from([0, 1, 3, 18]))
    channels = draw(st.sampled_from([1, 3, 70]))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    query = torch.randn(channels, cells, generator=noise).T
    keys = torch.randn(cells, frames, channels * 2, generator=noise).transpose(0, 1)[..., ::2]
    labels = torch.randn(cells, frames, classes, generator=noise).permute(1, 2, 0)
    if draw(st.booleans()):
        query[:, -1] *= 1e4
        keys[..., -1] *= 1e4
    awkward = draw(st.lists(st.sampled_from(["zero", "nan", "inf", "copy", "tiny", "query"]), max_size=4))
    for kind in awkward if frames else []:
        frame, row, other = draw(st.integers(0, frames - 1)), *(draw(st.integers(0, cells - 1)) for _ in range(2))
        keys[frame, row] = {
            "zero": torch.zeros(channels), "nan": torch.full((channels,), torch.nan), "inf": keys[frame, row] / 0,
            "copy": keys[0, other], "tiny": keys[frame, row] * 1e-6, "query": query[other],
        }[kind]  # fmt: skip
    if draw(st.booleans()):
        query[draw(st.integers(0, cells - 1))] = draw(st.sampled_from([0.0, torch.nan, torch.inf]))
    query, keys, labels = (t.to(draw(st.sampled_from(DTYPES))) for t in (query, keys, labels))
    return (
        query, keys, labels, grid, draw(st.integers(0, 5)), draw(st.integers(1, 6)),
        draw(st.sampled_from([0.05, 0.1, 1.0])), draw(st.integers(0, frames)),
    )  # fmt: skip


@pytest.mark.verify
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_kernel_equals_twin_equals_formula(call):
    query, keys, labels, grid, radius, topk, temperature, global_frames = call
    result = WITH_CHOICE(query, keys, labels, list(grid), radius, topk, temperature, global_frames, "verify")
    assert_propagated(result, *call)
    out = propagate_topk(
        query, keys, labels, grid, radius=radius, topk=topk, temperature=temperature, global_frames=global_frames,
        backend="triton",
    )  # fmt: skip
    assert torch.equal(out.nan_to_num(7), result[0].nan_to_num(7))


@pytest.mark.verify
@pytest.mark.parametrize(
    ("radius", "topk", "global_frames", "dtype"),
    [(3, 5, 0, torch.float16), (3, 5, 1, torch.float32), (0, 2, 0, torch.bfloat16), (40, 3, 0, torch.bfloat16)],
)
def test_a_grid_of_several_patches(radius, topk, global_frames, dtype):
    query, keys, labels = torch.randn(10 * 19, 12), torch.randn(2, 10 * 19, 12), torch.rand(2, 3, 10 * 19)
    call = (query.to(dtype), keys.to(dtype), labels, [10, 19], radius, topk, 0.1, global_frames)
    assert_propagated(WITH_CHOICE(*call, "verify"), *call)


@pytest.mark.verify
@pytest.mark.parametrize("topk", [16, 31, 32])
def test_as_many_keys_as_the_kernel_keeps(topk):
    call = (torch.randn(12, 8), torch.randn(3, 12, 8), torch.rand(3, 2, 12), [2, 6], 6, topk, 0.1, 0)
    assert_propagated(WITH_CHOICE(*call, "verify"), *call)


def test_a_grid_of_many_tiles_and_bands(monkeypatch):
    monkeypatch.setattr("ditf_kernels.reference.rows.BLOCK", 1 << 9)  # several bands of keys in every window
    query, keys, labels = torch.randn(20 * 35, 8), torch.randn(2, 20 * 35, 8), torch.rand(2, 3, 20 * 35)
    call = (query, keys, labels, [20, 35], 6, 7, 0.1, 1)
    assert_propagated(WITH_CHOICE(*call, "torch"), *call)


@pytest.mark.verify
def test_the_width_of_flux():
    query, keys, labels = torch.randn(6, 3072).half(), torch.randn(2, 6, 3072).half(), torch.rand(2, 3, 6)
    call = (query, keys, labels, [2, 3], 1, 5, 0.1, 0)
    assert_propagated(WITH_CHOICE(*call, "verify"), *call)


# --- closed forms ----------------------------------------------------------------------------------------------------


def grid_call(grid, frames=1, classes=3):
    cells = grid[0] * grid[1]
    return torch.randn(cells, 16), torch.randn(frames, cells, 16), F.one_hot(
        torch.randint(0, classes, (frames, cells)), classes
    ).mT.float()  # fmt: skip


@both_backends
def test_radius_zero_copies_the_labels_of_one_frame(asked):
    query, keys, labels = grid_call((5, 7))
    out = propagate_topk(query, keys, labels, (5, 7), radius=0, topk=5, temperature=0.1, backend=asked)
    assert torch.equal(out, labels[0])


@both_backends
def test_a_moved_picture_takes_its_labels_along(asked):
    _, keys, labels = grid_call((6, 9))
    query = keys[0].unflatten(0, (6, 9)).roll((1, -2), (0, 1)).flatten(0, 1)
    out = propagate_topk(3 * query, keys, labels, (6, 9), radius=2, topk=1, temperature=0.1, backend=asked)
    moved = labels[0].unflatten(1, (6, 9)).roll((1, -2), (1, 2))
    assert torch.equal(out.unflatten(1, (6, 9))[:, 1:, :-2], moved[:, 1:, :-2])  # elsewhere it came around the border


@both_backends
def test_uniform_features_average_their_window_cut_at_the_border(asked):
    unit = torch.zeros(20, 4)
    unit[:, 2] = 2.0  # every cosine is exactly 1
    values = torch.rand(20)
    out = propagate_topk(unit, unit[None], values[None, None], (4, 5), radius=1, topk=9, temperature=0.1, backend=asked)
    mean = F.avg_pool2d(values.view(1, 1, 4, 5), 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(out, mean.flatten()[None])


@both_backends
def test_equal_cosines_choose_the_lowest_frame_and_then_raster_index(asked):
    query = torch.zeros(12, 4)
    query[:, 1] = 1.0
    keys = torch.randint(-1, 1, (3, 12, 4)).float()
    keys[..., 1] = 0.0
    for frame, cell in ((0, 7), (1, 2), (1, 9), (2, 0), (2, 11)):
        keys[frame, cell] = 2.0 * query[0]
    labels = torch.rand(3, 2, 12)
    for topk, expected in ((1, [7]), (2, [7, 14]), (4, [7, 14, 21, 24])):
        out, index, score = WITH_CHOICE(query, keys, labels, [3, 4], 4, topk, 0.5, 0, asked)
        assert index.tolist() == [expected] * 12
        assert (score == 1).all()
        mean = labels.mT.flatten(0, 1)[expected].mean(0)
        torch.testing.assert_close(out, mean[:, None].expand(2, 12))


@both_backends
def test_ties_are_exactly_topk_where_dino_keeps_them_all(asked):
    query = torch.ones(300, 4)
    index = WITH_CHOICE(query, query[None], torch.rand(1, 1, 300), [10, 30], 1, 3, 0.1, 0, asked)[1]
    for token in range(300):
        y, x = divmod(token, 30)
        window = [
            v * 30 + u for v in range(max(y - 1, 0), min(y + 2, 10)) for u in range(max(x - 1, 0), min(x + 2, 30))
        ]
        assert index[token].tolist() == window[:3]


@both_backends
def test_a_zero_query_takes_the_first_keys_and_a_zero_key_beats_the_opposite(asked):
    keys = torch.tensor([[[-1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]])
    query = torch.tensor([[0.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    _, index, score = WITH_CHOICE(query, keys, torch.rand(1, 1, 3), [1, 3], 3, 2, 0.1, 0, asked)
    assert index.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert score.tolist() == [[0, 0], [0, -1], [0, -1]]


@both_backends
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
def test_the_temperature_weighs_two_keys(asked, temperature):
    angle = torch.tensor([0.3, 0.35])
    keys = torch.stack([angle.cos(), angle.sin()], 1)[None]
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([[[10.0, 20.0]]])
    out = propagate_topk(query, keys, labels, (1, 2), radius=1, topk=2, temperature=temperature, backend=asked)
    second = 1 / (1 + math.exp((math.cos(0.3) - math.cos(0.35)) / temperature))
    assert out.flatten().tolist() == pytest.approx([10 + 10 * second] * 2, rel=2e-4)


@both_backends
def test_global_frames_see_beyond_the_window(asked):
    query, keys, labels = grid_call((4, 6), frames=2)
    keys[0, 23], keys[1, 0] = query[0], query[23]  # each the other's far corner
    near = {"radius": 1, "topk": 1, "temperature": 0.1, "backend": asked}
    first = propagate_topk(query, keys, labels, (4, 6), **near, global_frames=1)
    assert torch.equal(first[:, 0], labels[0, :, 23])  # the first frame is free
    out, index, _ = WITH_CHOICE(query, keys, labels, [4, 6], 1, 1, 0.1, 1, asked)
    assert torch.equal(out, first)
    assert index[23, 0] != 24  # the second is not
    every = propagate_topk(query, keys, labels, (4, 6), **near, global_frames=2)
    assert torch.equal(every[:, 23], labels[1, :, 0])
    wide = propagate_topk(query, keys, labels, (4, 6), **{**near, "radius": 6})
    assert torch.equal(every, wide)


# --- rows that are not finite, nothing to choose ---------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_query_that_is_not_finite_gets_nan_and_spoils_no_other(asked, value):
    query, keys, labels = grid_call((3, 4))
    query[5, 3] = value
    out = propagate_topk(query, keys, labels, (3, 4), radius=2, topk=3, temperature=0.1, backend=asked)
    assert out.isnan().all(0).nonzero().tolist() == [[5]]
    assert not out[:, [t for t in range(12) if t != 5]].isnan().any()


@both_backends
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_key_that_is_not_finite_is_never_chosen_nor_its_label(asked, value):
    query, keys, labels = grid_call((3, 4), frames=2)
    keys[0, 5, 3] = value
    labels[0, :, 5] = math.nan
    out = propagate_topk(query, keys, labels, (3, 4), radius=4, topk=24, temperature=0.1, backend=asked)
    assert out.isfinite().all()
    keys[:] = value
    out, index, score = WITH_CHOICE(query, keys, labels, [3, 4], 4, 3, 0.1, 0, asked)
    assert out.isnan().all()
    assert (index == -1).all()
    assert score.isnan().all()


@both_backends
def test_labels_that_are_not_finite_spread_to_those_who_choose_them_only(asked):
    query, keys, labels = grid_call((1, 9))
    labels[0, 1, 0] = math.nan
    out = propagate_topk(query, keys, labels, (1, 9), radius=1, topk=3, temperature=0.1, backend=asked)
    assert out.isnan().nonzero().tolist() == [[1, 0], [1, 1]]


@both_backends
def test_no_frames_give_nan_and_no_channels_nothing(asked):
    query, keys, labels = grid_call((2, 3))
    settings_ = {"radius": 1, "topk": 2, "temperature": 0.1, "backend": asked}
    out = propagate_topk(query, keys[:0], labels[:0], (2, 3), **settings_)
    assert out.shape == (3, 6)
    assert out.isnan().all()
    assert propagate_topk(query, keys, labels[:, :0], (2, 3), **settings_).shape == (0, 6)


@both_backends
@pytest.mark.parametrize("grid", [(1, 1), (1, 40), (40, 1)])
def test_thin_grids(asked, grid):
    call = (*grid_call(grid, frames=2, classes=2), list(grid), 3, 4, 0.1, 0)
    assert_propagated(WITH_CHOICE(*call, asked), *call)


# --- strides, dtypes, limits -----------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(asked, dtype):
    query = torch.randn(16, 12).to(dtype).T
    keys = torch.randn(12, 5, 32).to(dtype).transpose(0, 1)[1:4, :, ::2]
    labels = torch.rand(12, 3, 4).to(dtype).permute(1, 2, 0)
    near = {"radius": 1, "topk": 4, "temperature": 0.1, "backend": asked}
    out = propagate_topk(query, keys, labels, (3, 4), **near)
    dense = propagate_topk(query.contiguous(), keys.contiguous(), labels.contiguous(), (3, 4), **near)
    torch.testing.assert_close(out, dense, atol=1e-6, rtol=0)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_query_meets_half_precision_keys_unrounded(asked, dtype):
    query, keys, labels = grid_call((3, 4), frames=2)
    near = {"radius": 2, "topk": 3, "temperature": 0.1, "backend": asked}
    out = propagate_topk(query, keys.to(dtype), labels.to(dtype), (3, 4), **near)
    torch.testing.assert_close(
        out, propagate_topk(query, keys.to(dtype).float(), labels, (3, 4), **near), atol=2e-6, rtol=0
    )


def test_more_keys_than_the_kernel_keeps_take_the_twin_or_say_why_not(monkeypatch):
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "auto")
    call = (*grid_call((3, 4), frames=4), [3, 4], 9, 40, 0.1, 0)
    assert_propagated(WITH_CHOICE(*call, None), *call)
    near = {"radius": 9, "topk": 40, "temperature": 0.1}
    assert explain(propagate_topk, *call[:3], (3, 4), **near).implementation == "torch"
    with pytest.raises(BackendError, match="topk of 40 is more than 32"):
        propagate_topk(*call[:3], (3, 4), **near, backend="triton")
    monkeypatch.setattr("ditf_kernels.propagate.KEYS", 47)
    with pytest.raises(BackendError, match="48 keys are more than 47"):
        propagate_topk(*call[:3], (3, 4), **{**near, "topk": 3}, backend="verify")


@pytest.mark.verify
def test_offsets_beyond_32_bits(tmp_path):
    far = 2**31 + 8  # frames so far apart, in a file that is empty in between
    flat = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * far + 128, dtype=torch.float16)
    keys, labels = flat.as_strided((3, 6, 16), (far, 16, 1)), torch.rand(3, 2, 6)
    keys.copy_(torch.randn(3, 6, 16))
    call = (keys[2].clone(), keys, labels, [2, 3], 1, 1, 0.1, 0)
    out, index, _ = result = WITH_CHOICE(*call, "verify")
    assert_propagated(result, *call)
    assert index.flatten().tolist() == list(range(12, 18))
    torch.testing.assert_close(out, labels[2])


# --- determinism, registration, gradients ----------------------------------------------------------------------------


@both_backends
def test_equal_calls_give_equal_bits(asked):
    call = (*grid_call((5, 17), frames=1), (5, 17))
    near = {"radius": 2, "topk": 5, "temperature": 0.1, "backend": asked}
    assert torch.equal(propagate_topk(*call, **near), propagate_topk(*call, **near))


@pytest.mark.verify
def test_the_kernel_runs_and_is_counted():
    before = backend.kernel_counts().get("propagate_topk", 0)
    for asked in ("triton", "torch"):
        propagate_topk(*grid_call((2, 2)), (2, 2), radius=1, topk=1, temperature=0.1, backend=asked)
    assert backend.kernel_counts()["propagate_topk"] == before + 1


@both_backends
def test_registration_passes_the_checks_of_torch_library(asked):
    torch.library.opcheck(WITH_CHOICE, (*grid_call((2, 3), frames=2), [2, 3], 1, 2, 0.1, 1, asked))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@both_backends
def test_compiled_as_one_graph_with_dynamic_shapes(compiler, asked):
    def step(query, keys, labels, grid, radius):
        return propagate_topk(query * 2, keys, labels, grid, radius=radius, topk=2, temperature=0.1) + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=compiler)
    for grid, frames, radius in (((2, 3), 2, 1), ((3, 4), 3, 2)):
        call = grid_call(grid, frames)
        with use_backend(asked):
            torch.testing.assert_close(compiled(*call, grid, radius), step(*call, grid, radius), atol=2e-6, rtol=1e-5)


def test_gradients_are_those_of_the_softmax_over_the_chosen():
    query, keys, labels = grid_call((2, 3), frames=2)
    query[4] = keys[1, 3] = math.nan  # neither a token without an answer nor a key that is not chosen has a gradient
    inputs = [t.requires_grad_() for t in (query, keys, labels)]
    weight, kept = torch.rand(3, 6), [0, 1, 2, 3, 5]
    out = propagate_topk(*inputs, (2, 3), radius=1, topk=3, temperature=0.1)
    ours = torch.autograd.grad((out * weight)[:, kept].sum(), inputs)

    blocked = cosines(query, keys, (2, 3), 1, 0).isinf()[kept]
    inputs = [t.detach().nan_to_num(1.0).requires_grad_() for t in inputs]
    score = (F.normalize(inputs[0], dim=1) @ F.normalize(inputs[1], dim=2).flatten(0, 1).T)[kept]
    top = score.masked_fill(blocked, -torch.inf).topk(3)
    chosen = inputs[2].mT.flatten(0, 1)[top.indices]  # (5, 3, C)
    dense = (top.values.div(0.1).softmax(1)[..., None] * chosen).sum(1).T
    expected = torch.autograd.grad((dense * weight[:, kept]).sum(), inputs)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        assert a.abs().sum() > 0
    with pytest.raises(BackendError, match="propagate_topk with an input that requires grad"):
        propagate_topk(*inputs, (2, 3), radius=1, topk=3, temperature=0.1, backend="triton")


# --- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(6)}, r"query: got shape \(6,\), expected \(h\*w, D\)"),
        ({"query": torch.zeros(6, 0)}, r"query: got shape \(6, 0\)"),
        ({"grid": (2, 4)}, r"grid: got \(2, 4\), expected h \* w = 6, the rows of query"),
        ({"grid": (0, 6)}, r"grid: got \(0, 6\), expected two integers of at least 1"),
        ({"grid": 6}, r"grid: got 6, expected two integers"),
        ({"keys": torch.zeros(6, 4)}, r"keys: got shape \(6, 4\), expected \(F, 6, 4\)"),
        ({"keys": torch.zeros(2, 6, 5)}, r"keys: got shape \(2, 6, 5\)"),
        ({"labels": torch.zeros(1, 3, 6)}, r"labels: got shape \(1, 3, 6\), expected \(2, C, 6\)"),
        ({"labels": torch.zeros(2, 6)}, r"labels: got shape \(2, 6\)"),
        ({"labels": torch.zeros(2, 3, 6, dtype=torch.int64)}, r"labels: got torch.int64, expected float32"),
        ({"keys": torch.zeros(2, 6, 4, dtype=torch.float64)}, r"keys: got torch.float64"),
        ({"keys": torch.zeros(2, 6, 4, device="meta")}, r"keys: got a tensor on meta, expected one on cpu"),
        ({"radius": -1}, r"radius: got -1, expected an integer of at least 0"),
        ({"radius": 1.5}, r"radius: got 1\.5"),
        ({"radius": None}, r"radius: got None"),
        ({"topk": 0}, r"topk: got 0, expected an integer of at least 1"),
        ({"topk": True}, r"topk: got True"),
        ({"temperature": 0.0}, r"temperature: got 0\.0, expected a finite number above 0"),
        ({"temperature": math.inf}, r"temperature: got inf"),
        ({"temperature": math.nan}, r"temperature: got nan"),
        ({"global_frames": 3}, r"global_frames: got 3, expected an integer of at least 0 and at most 2"),
        ({"global_frames": -1}, r"global_frames: got -1"),
    ],
)
def test_bad_arguments_are_named_with_what_was_expected(arguments, message):
    call = {
        "query": torch.zeros(6, 4), "keys": torch.zeros(2, 6, 4), "labels": torch.zeros(2, 3, 6), "grid": (2, 3),
        "radius": 1, "topk": 2, "temperature": 0.1, **arguments,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        propagate_topk(**call)
