"""cosine_argmax, cosine_topk, mutual_nearest: the Triton kernels (interpreted without a GPU), twins, and float64."""

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditf_kernels import (
    BackendError,
    MutualNearest,
    backend,
    cosine_argmax,
    cosine_topk,
    explain,
    mutual_nearest,
    nearest,
    reference,
    use_backend,
)
from ditf_kernels.reference import nearest as twins

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# The interpreter computes with numpy, which warns of the NaN and infinities these tests are about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning", "ignore:overflow encountered:RuntimeWarning"
)

both_backends = pytest.mark.parametrize("asked", ["torch", pytest.param("triton", marks=pytest.mark.verify)])


# --- the formula in float64 ------------------------------------------------------------------------------------------


def cosines(query, key, key_mask=None):
    """Every pair, (..., N, M) float64; NaN rows for queries that are not finite, -inf where a key cannot be chosen."""
    whole_query, whole_key = query.isfinite().all(-1), key.isfinite().all(-1)
    unit_query, unit_key = (F.normalize(t.double().nan_to_num(0, 0, 0), dim=-1) for t in (query, key))
    blocked = ~whole_key if key_mask is None else ~(whole_key & key_mask)
    scores = (unit_query @ unit_key.mT).masked_fill(blocked[..., None, :], -torch.inf)
    return scores.masked_fill(~whole_query[..., None], -torch.inf)


def ranked(scores, k):
    """The k best of (..., N, M) by definition: highest first, the lowest index first among equal ones; -1 and NaN."""
    padded = F.pad(scores, (0, k), value=-torch.inf)
    value, index = padded.sort(dim=-1, descending=True, stable=True)
    none = value[..., :k].isinf()
    return index[..., :k].masked_fill(none, -1), value[..., :k].masked_fill(none, torch.nan)


def assert_nearest(index, score, scores, tolerance=1e-6):
    """The keys chosen, (..., N, k), are as near as any by float64, differ, and the scores told are theirs."""
    expected, best = ranked(scores, index.shape[-1])
    none = expected < 0
    assert torch.equal(index < 0, none)
    assert torch.equal(score.isnan(), none)
    chosen = scores.gather(-1, index.clamp_min(0)) if scores.shape[-1] else best
    torch.testing.assert_close(chosen.masked_fill(none, 0), best.masked_fill(none, 0), atol=tolerance, rtol=0)
    torch.testing.assert_close(score.double().nan_to_num(0), best.nan_to_num(0), atol=5e-6, rtol=0)
    for row in index.flatten(0, -2).tolist():
        found = [i for i in row if i >= 0]
        assert len(set(found)) == len(found)
    assert (index.dtype, score.dtype) == (torch.int64, torch.float32)


def assert_all_three(query, key, query_mask, key_mask, asked, k=3, **norms):
    """Every op on the same rows."""
    scores, back = cosines(query, key, key_mask), cosines(key, query, query_mask)
    query_norm, key_norm = norms.get("query_inverse_norm"), norms.get("key_inverse_norm")
    index, score = cosine_argmax(query, key, key_mask=key_mask, backend=asked, **norms)
    assert_nearest(index[..., None], score[..., None], scores)
    assert_nearest(*cosine_topk(query, key, k, key_mask=key_mask, backend=asked, **norms), scores)
    both = mutual_nearest(
        query, key, a_inverse_norm=query_norm, b_inverse_norm=key_norm, a_mask=query_mask, b_mask=key_mask,
        backend=asked,
    )  # fmt: skip
    assert torch.equal(both.index_ab, index)
    assert torch.equal(both.score_ab.nan_to_num(9), score.nan_to_num(9))
    assert_nearest(both.index_ba[..., None], both.score_ba[..., None], back)
    for pair, (there, here) in enumerate(zip(rows_of(both.index_ab), rows_of(both.index_ba), strict=True)):
        mutual = [j >= 0 and here[j] == i for i, j in enumerate(there)]
        assert rows_of(both.mutual)[pair] == mutual


def rows_of(t):
    """Lists, one per batch."""
    return t.tolist() if t.ndim == 2 else [t.tolist()]


@st.composite
def calls(draw):
    """Rows with awkward ones among them, dtypes, a batch or none, masks and norms or none."""
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    channels = draw(st.sampled_from([1, 3, 40, 64]))
    counts = [draw(st.integers(0, 9)) for _ in range(2)]
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sides, masks = [], []
    for count in counts:
        rows = torch.randn(*batch, count, channels, generator=noise) * draw(st.sampled_from([1, 1e-3, 1e3]))
        for kind in draw(st.lists(st.sampled_from(["zero", "nan", "inf", "opposite", "copy", "tiny"]), max_size=3)):
            if count:
                row, other = (draw(st.integers(0, count - 1)) for _ in range(2))
                rows[..., row, :] = {
                    "zero": torch.zeros(channels), "nan": torch.full((channels,), torch.nan),
                    "inf": rows[..., row, :] / 0, "opposite": -rows[..., other, :], "copy": rows[..., other, :],
                    "tiny": rows[..., row, :] * 1e-4,
                }[kind]  # fmt: skip
        sides.append(rows.to(draw(st.sampled_from(DTYPES))))
        share = draw(st.sampled_from([None, 0.0, 0.2, 0.8]))
        masks.append(None if share is None else torch.rand(rows.shape[:-1], generator=noise) < share)
    return *sides, *masks, draw(st.booleans()), draw(st.booleans())


@pytest.mark.verify
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_kernel_equals_twin_equals_formula(call):
    query, key, query_mask, key_mask, query_norm, key_norm = call
    norms = {}
    if query_norm:
        norms["query_inverse_norm"] = query.double().norm(dim=-1).clamp_min(1e-12).reciprocal().float()
    if key_norm:
        norms["key_inverse_norm"] = key.double().norm(dim=-1).clamp_min(1e-12).reciprocal().float()
    assert_all_three(query, key, query_mask, key_mask, "verify", **norms)


@pytest.mark.verify
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (1, 1), (1, 129), (129, 1), (127, 129)])
def test_sizes_around_the_edges_of_a_tile(n, m, dtype):
    assert_all_three(torch.randn(n, 24).to(dtype), torch.randn(m, 24).to(dtype), None, None, "verify", k=2)


@pytest.mark.verify
@pytest.mark.parametrize("width", [1152, 1536, 2432, 3072, 1001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_widths_of_real_models_and_an_odd_one(width, dtype):
    query, key = torch.randn(3, width).to(dtype), torch.randn(5, width).to(dtype)
    key[3] = query[1]
    assert_all_three(query, key, None, None, "verify", k=2)
    index, score = cosine_argmax(query, key, backend="triton")
    assert index[1] == 3
    assert score[1].item() == pytest.approx(1, abs=1e-6)


@both_backends
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.float32, torch.bfloat16), DTYPES[1:]])
def test_unlike_dtypes_meet_unrounded(asked, dtypes):
    query, key = torch.randn(5, 40).to(dtypes[0]), torch.randn(7, 40).to(dtypes[1])
    assert_all_three(query, key, None, None, asked)
    assert_all_three(key, query, None, None, asked)
    index, score = cosine_argmax(query, key, backend=asked)
    widened = cosine_argmax(query.float(), key.float(), backend=asked)
    assert torch.equal(index, widened[0])
    torch.testing.assert_close(score, widened[1], atol=5e-7, rtol=0)


# --- ties ------------------------------------------------------------------------------------------------------------


def exact_rows(kind, count, channels=64):
    """Rows whose scores have no rounding at all, with many equal ones, and their inverse norms where given."""
    if kind == "signs":  # every length is 8, every cosine a multiple of 1/32
        rows = torch.randint(0, 2, (count, channels)) * 2.0 - 1
        rows[1::3, :60] = 1  # crowded together
        return rows, None
    return torch.randint(-1, 2, (count, channels)).float(), torch.full((count,), 2.0**-4)  # shorter than |row| <= 8


TILES = [(16, 32, 32), (64, 64, 64), (16, 128, 16), (128, 32, 64)]


@pytest.mark.parametrize("kind", ["signs", "small integers"])
@pytest.mark.parametrize(
    ("asked", "tile"),
    [("torch", 64), ("torch", 1 << 20), *(pytest.param("triton", t, marks=pytest.mark.verify) for t in TILES)],
)
def test_equal_scores_choose_the_lowest_index_in_any_order_of_tiles(monkeypatch, kind, asked, tile):
    if asked == "triton":
        from ditf_kernels._triton import nearest as kernels

        monkeypatch.setattr(kernels, "INTERPRETER", (kernels.Tile(*tile, warps=4, stages=1),))
    else:
        monkeypatch.setitem(twins.TILE, "cpu", tile)
    (query, query_norm), (key, key_norm) = exact_rows(kind, 43), exact_rows(kind, 140)
    key[139] = key[90] = key[7] = query[5]
    scores = query.double() @ key.double().T / (64 if kind == "signs" else 256)
    assert (scores.topk(2).values[:, 0] == scores.topk(2).values[:, 1]).float().mean() > 0.2  # ties are the rule
    index, score = cosine_topk(query, key, 5, query_inverse_norm=query_norm, key_inverse_norm=key_norm, backend=asked)
    expected = ranked(scores, 5)
    assert torch.equal(index, expected[0])
    assert torch.equal(score.double(), expected[1])
    both = mutual_nearest(query, key, a_inverse_norm=query_norm, b_inverse_norm=key_norm, backend=asked)
    assert torch.equal(both.index_ab, expected[0][:, 0])
    assert torch.equal(both.score_ab.double(), expected[1][:, 0])
    back = ranked(scores.T, 1)
    assert torch.equal(both.index_ba, back[0][:, 0])
    assert torch.equal(both.score_ba.double(), back[1][:, 0])
    assert both.index_ab[5] == 7


@both_backends
def test_negative_zero_ties_with_zero(asked):
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [-0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    index, score = cosine_topk(query, key, 4, backend=asked)
    assert index.tolist() == [[1, 2, 3, 0]]
    assert score.tolist() == [[0, 0, 0, -1]]


@pytest.mark.verify
def test_the_tiles_of_a_gpu_give_the_same(monkeypatch):
    from ditf_kernels._triton import nearest as kernels

    query, key = torch.randn(129, 40), torch.randn(257, 40)
    expected = mutual_nearest(query, key, backend="torch")
    for tile in kernels.HALF + kernels.FLOAT32[:1]:
        monkeypatch.setattr(kernels, "INTERPRETER", (tile,))
        found = mutual_nearest(query, key, backend="triton")
        assert torch.equal(found.index_ab, expected.index_ab)
        assert torch.equal(found.mutual, expected.mutual)
    tile = kernels.Tile(16, 32, 32, 4, 1)  # more rows of tiles than one group
    monkeypatch.setattr(kernels, "INTERPRETER", (tile,))
    assert -(-129 // tile.queries) > kernels.GROUP
    assert torch.equal(mutual_nearest(query, key, backend="triton").index_ba, expected.index_ba)


@pytest.mark.verify
def test_keys_cut_into_parts_give_the_same_top_k(monkeypatch):
    from ditf_kernels._triton import nearest as kernels

    monkeypatch.setattr(kernels, "INTERPRETER", (kernels.Tile(16, 16, 64, 4, 1),))
    query, key = torch.randn(17, 24), torch.randn(100, 24)
    scores = cosines(query, key)
    for parts, multiprocessors in ((64, 132), (3, 132), (64, 1)):  # one tile a part, several, all in one
        monkeypatch.setattr(kernels, "PARTS", parts)
        monkeypatch.setattr(kernels, "MULTIPROCESSORS", multiprocessors)
        assert_nearest(*cosine_topk(query, key, 5, backend="triton"), scores)


# --- rows that are zero, not finite, or masked -----------------------------------------------------------------------


@both_backends
def test_zero_vectors_have_similarity_zero_with_everything(asked):
    query, key = torch.randn(3, 8), -torch.rand(4, 8)
    query[0], query[1] = 0, torch.rand(8)
    key[2] = 0
    index, score = cosine_argmax(query, key, backend=asked)
    assert index[:2].tolist() == [0, 2]  # the first of equals; better than the opposite
    assert score[:2].tolist() == [0, 0]


@both_backends
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_query_that_is_not_finite_finds_nothing_and_is_not_found(asked, value):
    a, b = torch.randn(5, 16), torch.randn(6, 16)
    a[2, 7] = value
    both, (index, score) = mutual_nearest(a, b, backend=asked), cosine_topk(a, b, 2, backend=asked)
    assert (both.index_ab == -1).tolist() == both.score_ab.isnan().tolist() == [False, False, True, False, False]
    assert not both.mutual[2]
    assert (both.index_ba != 2).all()
    assert index[2].tolist() == [-1, -1]
    assert score[2].isnan().all()


@both_backends
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_key_that_is_not_finite_is_never_chosen(asked, value, dtype):
    query, key = torch.randn(4, 16).to(dtype), torch.randn(6, 16).to(dtype)
    key[3] = query[1]
    key[3, 5] = value
    query[0, 5] = 0  # 0 * inf is NaN
    given_norm = torch.ones(6)  # says nothing of what the row holds
    for norm in (None, given_norm):
        index, score = cosine_topk(query, key, 6, key_inverse_norm=norm, backend=asked)
        assert (index != 3).all()
        assert (index[:, :5] >= 0).all()
        assert (index[:, 5] == -1).all()
        assert score[:, :5].isfinite().all()


@both_backends
def test_norms_that_are_not_finite_take_their_rows_out(asked):
    query, key = torch.randn(3, 8), torch.randn(4, 8)
    query_norm, key_norm = (1 / t.norm(dim=1) for t in (query, key))
    best = cosine_argmax(query, key, backend=asked)[0]
    query_norm[1], key_norm[best[0]] = torch.nan, torch.inf
    index, score = cosine_argmax(query, key, query_inverse_norm=query_norm, key_inverse_norm=key_norm, backend=asked)
    assert index[1] == -1
    assert score[1].isnan()
    assert index[0] not in (-1, best[0])


@both_backends
def test_a_row_whose_length_overflows_counts_as_not_finite(asked):
    query, key = torch.randn(2, 8), torch.randn(3, 8)
    key[1] = query[0] * 1e25
    index, _ = cosine_argmax(query, key, backend=asked)
    assert (index != 1).all()


@both_backends
def test_only_allowed_keys_are_chosen(asked):
    query, key = torch.randn(5, 16), torch.randn(7, 16)
    mask = torch.zeros(7, dtype=torch.bool)
    mask[4] = True
    index, score = cosine_topk(query, key, 2, key_mask=mask, backend=asked)
    assert index.tolist() == [[4, -1]] * 5
    torch.testing.assert_close(score[:, 0], F.cosine_similarity(query, key[4:5]), atol=1e-6, rtol=0)
    index, score = cosine_argmax(query, key, key_mask=mask & False, backend=asked)
    assert (index == -1).all()
    assert score.isnan().all()


@both_backends
def test_a_row_that_may_not_be_chosen_still_finds_its_nearest_but_is_never_mutual(asked):
    a = torch.randn(5, 16)
    mask = torch.tensor([True, False, True, True, True])
    both = mutual_nearest(a, a.flip(0) * 3, a_mask=mask, backend=asked)
    assert both.index_ab.tolist() == [4, 3, 2, 1, 0]
    assert both.mutual.tolist() == mask.tolist()
    assert both.index_ba[3] != 1


@both_backends
def test_scores_stay_within_one(asked):
    rows = torch.randn(40, 3).half()
    _, score = cosine_argmax(rows * 100, rows, backend=asked)
    assert score.max() <= 1
    assert score.min() > 0.9999


@both_backends
def test_given_norms_are_used(asked):
    query, key = torch.randn(3, 16), torch.randn(5, 16)
    index, score = cosine_argmax(query, key, backend=asked)
    norm = 1 / key.norm(dim=1)
    _, halved = cosine_argmax(query, key, key_inverse_norm=norm / 2, backend=asked)
    torch.testing.assert_close(halved, score / 2)
    norm[index[0]] *= 1e-3
    assert cosine_argmax(query, key, key_inverse_norm=norm, backend=asked)[0][0] != index[0]
    _, halved = cosine_argmax(query, key, query_inverse_norm=0.5 / query.norm(dim=1), backend=asked)
    torch.testing.assert_close(halved, score / 2)


# --- shapes, strides, sizes ------------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_strides(asked, dtype):
    stored = torch.randn(2, 9, 80).to(dtype)
    views = {
        "tokens behind text": (stored[:, 3:, :40], stored[:, :7, 40:]),
        "channels first": (torch.randn(2, 40, 5).to(dtype).mT, torch.randn(40, 2, 6).to(dtype).permute(1, 2, 0)),
        "every other channel": (stored[:, ::2, ::2], stored[:, 1:, 1::2]),
        "one set of keys for all": (stored[:, :3, :40], stored[:1, :, 40:].expand(2, 9, 40)),
    }
    for query, key in views.values():
        mask = (torch.rand(key.shape[1], 2) < 0.7).T
        norm = torch.randn(key.shape[1], 2).T.copy_(1 / key.float().norm(dim=-1))
        assert not mask.is_contiguous()
        assert_all_three(query, key, None, mask, asked)
        assert_all_three(query, key, None, mask, asked, key_inverse_norm=norm)


@both_backends
def test_a_batch_equals_its_pairs_one_by_one(asked):
    a, b = torch.randn(3, 20, 24), torch.randn(3, 70, 24)
    mask = torch.rand(3, 70) < 0.5
    batch = mutual_nearest(a, b, b_mask=mask, backend=asked)
    top = cosine_topk(a, b, 3, key_mask=mask, backend=asked)
    for i in range(3):
        alone = mutual_nearest(a[i], b[i], b_mask=mask[i], backend=asked)
        assert all(torch.equal(x[i], y) for x, y in zip(batch, alone, strict=True))
        alone = cosine_topk(a[i], b[i], 3, key_mask=mask[i], backend=asked)
        assert all(torch.equal(x[i], y) for x, y in zip(top, alone, strict=True))


@both_backends
def test_one_mask_and_one_set_of_norms_may_serve_a_batch(asked):
    query, key = torch.randn(2, 4, 8), torch.randn(6, 8).expand(2, 6, 8)
    mask, norm = torch.rand(6) < 0.5, 1 / key[0].norm(dim=1)
    shared = cosine_argmax(query, key, key_mask=mask, key_inverse_norm=norm, backend=asked)
    own = cosine_argmax(query, key, key_mask=mask.expand(2, 6), key_inverse_norm=norm.expand(2, 6), backend=asked)
    assert torch.equal(shared[0], own[0])
    assert_nearest(shared[0][..., None], shared[1][..., None], cosines(query, key, mask.expand(2, 6)))


@both_backends
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8)])
def test_nothing_to_ask_gives_empty_results(asked, shape):
    query, key = torch.zeros(shape), torch.zeros(shape[0], 5, 8)
    index, score = cosine_argmax(query, key, backend=asked)
    assert index.shape == score.shape == shape[:2]
    index, score = cosine_topk(query, key, 3, backend=asked)
    assert index.shape == score.shape == (*shape[:2], 3)
    both = mutual_nearest(query, key, backend=asked)
    assert both.mutual.shape == shape[:2]
    assert both.index_ba.tolist() == [[-1] * 5] * shape[0]


@pytest.mark.verify
def test_offsets_beyond_32_bits(tmp_path):
    far = 2**31 + 8  # rows so far apart, in a file that is empty in between
    flat = torch.from_file(str(tmp_path / "sparse"), shared=True, size=5 * far // 4 + 64, dtype=torch.float16)
    rows = flat.as_strided((6, 16), (far // 4, 1))
    rows.copy_(torch.randn(6, 16))
    both = mutual_nearest(rows, rows, backend="verify")
    assert both.index_ab.tolist() == both.index_ba.tolist() == list(range(6))
    assert both.mutual.all()
    assert cosine_topk(rows[5:], rows, 2, backend="verify")[0][0, 0] == 5


def test_more_rows_or_programs_than_a_launch_takes_run_on_the_twin_or_are_refused(monkeypatch):
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "auto")
    query, key = torch.randn(2, 8), torch.randn(5, 8)
    assert nearest._limit(torch.empty(1, 1, 8), torch.empty(1, 5, 8)) is None
    assert "more than 4294967295" in nearest._limit(query.expand(1, 2, 8), key[:1].expand(1, 2**32, 8))
    assert "programs" in nearest._limit(query[:1].expand(9, 2**20, 8), key[:1].expand(9, 2**20, 8))
    monkeypatch.setattr(nearest, "ROWS", 4)
    assert explain(cosine_argmax, query, key).implementation == "torch"
    assert_nearest(*(t[:, None] for t in cosine_argmax(query, key)), cosines(query, key))
    for op in (cosine_argmax, mutual_nearest):
        with pytest.raises(BackendError, match="5 rows are more than 4"):
            op(query, key, backend="triton")


def test_more_than_sixteen_run_on_the_twin_or_are_refused(monkeypatch):
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "auto")
    query, key = torch.randn(3, 8), torch.randn(40, 8)
    assert explain(cosine_topk, query, key, 16).implementation == "triton"
    told = explain(cosine_topk, query, key, 17)
    assert (told.implementation, told.reason) == ("torch", "k = 17 is more than 16")
    assert_nearest(*cosine_topk(query, key, 17), cosines(query, key))
    for asked in ("triton", "verify"):
        with pytest.raises(BackendError, match='cosine_topk, but k = 17 is more than 16; use "torch"'):
            cosine_topk(query, key, 17, backend=asked)


@both_backends
@pytest.mark.parametrize("k", [1, 4, 15, 16])
def test_top_k_in_order_and_padded_where_there_are_fewer(asked, k):
    query, key = torch.randn(5, 16), torch.randn(13, 16)
    index, score = cosine_topk(query, key, k, backend=asked)
    assert_nearest(index, score, cosines(query, key))
    assert (score[:, :13].diff() <= 0).all()
    assert (index[:, 13:] == -1).all()
    assert torch.equal(index[:, 0], cosine_argmax(query, key, backend=asked)[0])


# --- memory, determinism, what runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "rows"), [("mutual_nearest(x, x)", 12_000), ("cosine_topk(x, x, 5)", 10_000)])
def test_the_twin_needs_no_memory_of_the_size_of_the_product(call, rows):
    code = f"""
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from ditf_kernels import cosine_topk, mutual_nearest

        def peak():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

        x = torch.randn({rows}, 4).half()
        {call.replace("x", "x[:1500]")}
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = peak()
        {call}
        print(peak() - before)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak is read from /proc")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    product = rows**2 * 4 / 2**20
    assert float(done.stdout) < min(80, product / 4)  # MiB


@pytest.mark.verify
def test_equal_calls_give_equal_bits():
    a, b = torch.randn(150, 40), torch.randn(170, 40)
    first, second = (mutual_nearest(a, b, backend="triton") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.verify
def test_the_kernels_run_and_are_counted():
    before = backend.kernel_counts()
    x = torch.randn(3, 8)
    for asked in ("triton", "torch"):
        cosine_argmax(x, x, backend=asked)
        cosine_topk(x, x, 2, backend=asked)
        mutual_nearest(x, x, backend=asked)
    after = backend.kernel_counts()
    for op in ("cosine_argmax", "cosine_topk", "mutual_nearest"):
        assert after[op] == before.get(op, 0) + 1


@pytest.mark.verify
def test_the_tile_is_the_largest_that_fills_the_device_and_fits_its_memory(monkeypatch):
    from ditf_kernels._triton import nearest as kernels

    class No:
        value = False

    monkeypatch.setattr(kernels, "INTERPRETED", No)
    memory = {"bytes": 227 * 1024}
    monkeypatch.setattr(kernels, "shared_memory", lambda device: memory["bytes"])

    def tile(batch, n, m, tiles=kernels.HALF):
        return kernels._tile(tiles, torch.empty(batch, n, 8, device="meta"), m)[:2]

    assert tile(1, 4096, 4096) == (128, 256)
    assert tile(1, 1600, 1600) == (128, 128)
    assert tile(2, 1600, 1600) == (128, 256)
    assert tile(1, 500, 500) == (64, 128)
    assert tile(1, 4096, 4096, kernels.FLOAT32) == (64, 64)
    assert tile(1, 100, 100, kernels.FLOAT32) == (32, 32)
    memory["bytes"] = 99 * 1024  # a consumer's card
    assert tile(1, 4096, 4096) == (64, 128)
    assert all(t.shared() <= 227 * 1024 for t in kernels.HALF + kernels.HALF_TOPK)
    assert kernels.HALF[-1].shared() <= memory["bytes"]


# --- registration, compilation ---------------------------------------------------------------------------------------

OPS = torch.ops.ditf_kernels


@both_backends
def test_registration_passes_the_checks_of_torch_library(asked):
    a, b = torch.randn(2, 3, 16), torch.randn(2, 16, 5).mT.half()
    mask, norm = (torch.arange(10).view(5, 2) % 3 > 0).T, 1 / b.float().norm(dim=-1)
    for op, arguments in (
        (OPS.cosine_argmax.default, (a, b, None, norm, mask, asked)),
        (OPS.cosine_topk.default, (a, b, 4, None, None, None, asked)),
        (OPS.mutual_nearest.default, (a, b, None, norm, None, mask, asked)),
    ):
        torch.library.opcheck(op, arguments)


def together(a, b, k, mask):
    both = mutual_nearest(a * 2, b, b_mask=mask)
    index, score = cosine_argmax(b, a, key_inverse_norm=(a.float().square().sum(-1) + 1e-9).rsqrt())
    top, _ = cosine_topk(a, b, k)
    return both.index_ab + 1, both.mutual, both.score_ba * 2, index, score, top


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@both_backends
def test_compiled_as_one_graph_with_dynamic_shapes(compiler, asked):
    torch._dynamo.reset()
    compiled = torch.compile(together, fullgraph=True, dynamic=True, backend=compiler)
    for n, m, k in ((4, 6, 2), (5, 3, 3), (7, 9, 4)):
        a, b, mask = torch.randn(n, 16), torch.randn(m, 16), torch.arange(m) != 1
        with use_backend(asked):
            for x, y in zip(compiled(a, b, k, mask), together(a, b, k, mask), strict=True):
                torch.testing.assert_close(x, y, atol=2e-6, rtol=1e-5, equal_nan=True)


def test_mutual_nearest_names_its_results():
    both = mutual_nearest(torch.randn(3, 8), torch.randn(4, 8))
    assert isinstance(both, MutualNearest)
    assert both._fields == ("index_ab", "index_ba", "mutual", "score_ab", "score_ba")
    assert [len(t) for t in both] == [3, 4, 3, 3, 4]
    assert both.mutual.dtype == torch.bool


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_cosine_of_the_chosen_rows():
    query, key = torch.randn(2, 4, 12, requires_grad=True), torch.randn(2, 6, 12, requires_grad=True)
    both, (index, score) = mutual_nearest(query, key), cosine_topk(query, key, 2)
    pair = torch.arange(2)[:, None]
    for ours, rows, others, chosen in (
        (both.score_ab, query, key, both.index_ab),
        (both.score_ba, key, query, both.index_ba),
        (score[..., 1], query, key, index[..., 1]),
        (cosine_argmax(query, key)[1], query, key, both.index_ab),
    ):
        weight = torch.randn_like(ours)
        expected = F.cosine_similarity(rows, others[pair, chosen], dim=-1)
        for a, b in zip(
            torch.autograd.grad((ours * weight).sum(), (query, key), retain_graph=True),
            torch.autograd.grad((expected * weight).sum(), (query, key)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_gradients_agree_with_differences_and_pass_by_rows_that_found_nothing():
    query, key = (torch.randn(1, n, 5, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    index = torch.tensor([[[2, 0], [-1, -1], [3, -1]]])

    def scores(q, k):
        return reference.cosine_at(q, k, None, None, index).nan_to_num(0.0)

    assert torch.autograd.gradcheck(scores, (query, key))
    gradient = torch.autograd.grad(scores(query, key).sum(), (query, key))
    assert (gradient[0][0, 1] == 0).all()
    assert (gradient[1][0, 1] == 0).all()


def test_gradients_reach_given_norms_and_stay_finite_beside_nan_and_zero_rows():
    query, key = torch.randn(3, 8), torch.randn(4, 8)
    query[0], key[1] = torch.nan, 0
    norm = 1 / key.norm(dim=1).clamp_min(1e-12)
    for t in (query, key, norm):
        t.requires_grad_()
    _, score = cosine_argmax(query, key, key_inverse_norm=norm)
    gradients = torch.autograd.grad(score.nan_to_num(0.0).sum(), (query, key, norm))
    assert all(g.isfinite().all() for g in gradients[1:])
    assert gradients[0][1:].isfinite().all()
    assert gradients[2].abs().sum() > 0


def test_triton_refuses_an_input_that_requires_grad_unless_gradients_are_off():
    x = torch.randn(2, 8, requires_grad=True)
    for call in (cosine_argmax, mutual_nearest, lambda *args, **keywords: cosine_topk(*args, 2, **keywords)):
        with pytest.raises(BackendError, match=r"requires grad.*no_grad"):
            call(x, x, backend="triton")
        with torch.no_grad():
            call(x, x, backend="triton")


# --- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(4)}, r"query: got shape \(4,\), expected \(rows, D\) or \(B, rows, D\)"),
        ({"query": torch.zeros(1, 1, 2, 4)}, r"query: got shape \(1, 1, 2, 4\)"),
        ({"query": torch.zeros(2, 5)}, r"query: got shape \(2, 5\), expected \(rows, 4\), as key has"),
        ({"query": torch.zeros(1, 2, 4)}, r"query: got shape \(1, 2, 4\), expected \(rows, 4\)"),
        ({"key": torch.zeros(3, 6, 4), "query": torch.zeros(2, 2, 4)}, r"query: .*expected \(3, rows, 4\)"),
        ({"key": torch.zeros(6, 0)}, r"key: got shape \(6, 0\)"),
        ({"query": torch.zeros(2, 4, dtype=torch.float64)}, r"query: got torch.float64, expected float32"),
        ({"key": torch.zeros(6, 4, dtype=torch.int32)}, r"key: got torch.int32"),
        (
            {"query": torch.zeros(2, 4, device="meta")},
            r"query: got a tensor on meta, expected one on cpu, where key is",
        ),
        ({"key_mask": torch.ones(5, dtype=torch.bool)}, r"key_mask: got shape \(5,\) torch.bool, expected \(6,\)"),
        ({"key_mask": torch.ones(6)}, r"key_mask: got shape \(6,\) torch.float32, expected \(6,\) torch.bool"),
        ({"key_inverse_norm": torch.ones(6).half()}, r"key_inverse_norm: got shape \(6,\) torch.float16"),
        ({"query_inverse_norm": torch.ones(6)}, r"query_inverse_norm: got shape \(6,\) .*expected \(2,\)"),
        ({"query_inverse_norm": torch.ones(2, device="meta")}, r"query_inverse_norm: got a tensor on meta"),
    ],
)
def test_bad_arguments_are_named_with_what_was_expected(arguments, message):
    call = {"query": torch.zeros(2, 4), "key": torch.zeros(6, 4), **arguments}
    with pytest.raises(ValueError, match=message):
        cosine_argmax(**call)
    with pytest.raises(ValueError, match=message):
        cosine_topk(**call, k=2)


@pytest.mark.parametrize("k", [0, -1, True, 2.0, None])
def test_k_must_be_a_positive_integer(k):
    with pytest.raises(ValueError, match=f"k: got {k!r}, expected an integer of at least 1"):
        cosine_topk(torch.zeros(2, 4), torch.zeros(3, 4), k)


def test_mutual_nearest_names_its_own_arguments():
    a, b = torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"a: got shape \(2, 4\), expected \(rows, 5\), as b has"):
        mutual_nearest(a, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"a_mask: got shape \(3,\)"):
        mutual_nearest(a, b, a_mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"b_inverse_norm: got shape \(2,\)"):
        mutual_nearest(a, b, b_inverse_norm=torch.ones(2))
