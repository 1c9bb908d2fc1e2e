"""upsampled_nearest: kernel, twin and brute force on upsampled features agree, whatever the bound leaves out."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditf_kernels import BackendError, reference, upsampled_dense, upsampled_nearest, upsampled_planes
from ditf_kernels.reference.upsampled_dense import Pruning, prune_and_match

from .oracles import GEOMETRIES, brute_force

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# The interpreter computes with numpy, which warns of the NaN these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

both_backends = pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.verify)])


def upsampled(tokens, grid, size):
    """(D, H*W) float64, 0 where the neighbours cancel, NaN where a token that is not finite has weight."""
    broken = ~(tokens.float().square().sum(1).isfinite())
    cells = tokens.double().masked_fill(broken[:, None], 0).T.reshape(1, -1, *grid)
    pixels = F.interpolate(cells, size, mode="bilinear", align_corners=False)[0].flatten(1)
    lengths = F.interpolate(cells.norm(dim=1)[None], size, mode="bilinear", align_corners=False).flatten()
    touched = F.interpolate(broken.double().reshape(1, 1, *grid), size, mode="bilinear").flatten() > 1e-9
    pixels = pixels.masked_fill(pixels.norm(dim=0) ** 2 <= reference.CANCELLED * lengths**2, 0)
    return pixels.masked_fill(touched, torch.nan)


def all_scores(query, query_grid, query_size, key, key_grid, key_size, mask=None):
    """(Hq*Wq, Hk*Wk) float64 cosines; NaN in rows without an answer, -inf in columns that may not be chosen."""
    source, target = upsampled(query, query_grid, query_size), upsampled(key, key_grid, key_size)
    closed = target.isnan().any(0) if mask is None else target.isnan().any(0) | ~mask.flatten()
    scores = F.normalize(source, dim=0).T @ F.normalize(target.nan_to_num(0.0), dim=0)
    return scores.masked_fill(closed, -torch.inf).masked_fill(source.isnan().any(0)[:, None], torch.nan)


def assert_exact(found, call, tolerance=1e-6):
    """Every source pixel has a pixel that scores as high as any, and its score; or none where there is none."""
    (xy, score), scores = found, all_scores(*call)
    assert xy.shape == (*call[2], 2)
    assert score.shape == call[2]
    xy, score = xy.flatten(0, 1), score.flatten()
    best = scores.max(1).values
    none = ~best.isfinite()
    assert (xy[none] == -1).all()
    assert score[none].isnan().all()
    xy, score, scores, best = xy[~none], score[~none], scores[~none], best[~none]
    if len(best):
        chosen = scores.gather(1, (xy[:, 1] * call[5][1] + xy[:, 0])[:, None])[:, 0]
        assert (best - chosen).max() < tolerance
        assert (score.double() - best).abs().max() < 10 * tolerance


@st.composite
def calls(draw, cells=4, pixels=14):
    """Both sides with awkward rows, their geometries and a mask."""
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    channels = draw(st.sampled_from([2, 3, 40]))
    sides = []
    for _ in range(2):
        grid = draw(st.tuples(st.integers(1, cells), st.integers(1, cells)))
        size = draw(st.tuples(st.integers(1, pixels), st.integers(1, pixels)))
        tokens = torch.randn(grid[0] * grid[1], channels, generator=noise)
        for kind in draw(
            st.lists(st.sampled_from(["zero", "nan", "inf", "opposite", "copy", "tiny", "huge"]), max_size=2)
        ):
            row, other = (draw(st.integers(0, len(tokens) - 1)) for _ in range(2))
            tokens[row] = {
                "zero": torch.zeros(channels), "nan": torch.full((channels,), torch.nan), "inf": tokens[row] / 0,
                "opposite": -tokens[other], "copy": tokens[other], "tiny": tokens[row] * 1e-4,
                "huge": tokens[row] * 1e3,
            }[kind]  # fmt: skip
        sides += [tokens.to(draw(st.sampled_from(DTYPES))), grid, size]
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.8]))
    mask = None if share is None else torch.rand(sides[5], generator=noise) < share
    return (*sides, mask)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_the_twin_equals_brute_force_on_upsampled_features(call):
    # Near cancellation, |F(p)|^2 just above 2^-10 of its bound, float32 leaves the fifth digit of a score.
    assert_exact(upsampled_nearest(*call[:6], mask=call[6], backend="torch"), call, tolerance=2e-5)


@pytest.mark.verify
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls(cells=3, pixels=9))
def test_the_kernel_equals_the_twin(call):
    upsampled_nearest(*call[:6], mask=call[6], backend="verify")


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
def test_all_geometries(grid, size):
    query, key = torch.randn(12, 40), torch.randn(grid[0] * grid[1], 40)
    for call in ((query, (4, 3), (17, 20), key, grid, size), (key, grid, size, query, (4, 3), (17, 20))):
        assert_exact(upsampled_nearest(*call, backend="torch"), call)


@pytest.mark.verify
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_on_half_precision(dtype):
    call = (torch.randn(4, 70).to(dtype), (2, 2), (3, 15), torch.randn(2, 70).to(dtype), (1, 2), (9, 20))
    assert_exact(upsampled_nearest(*call, backend="verify"), call)
    upsampled_nearest(call[0].float(), *call[1:], backend="verify")


@pytest.mark.verify
@pytest.mark.parametrize(
    ("query_grid", "query_size", "key_grid", "key_size"),
    [((1, 2), (3, 70), (7, 6), (8, 7)), ((2, 3), (3, 4), (2, 2), (16, 17))],
)
def test_kernel_on_more_than_one_tile_of_pixels_cells_and_slots(query_grid, query_size, key_grid, key_size):
    query, key = related_maps(query_grid)[0], related_maps(key_grid)[1]
    call = (query, query_grid, query_size, key, key_grid, key_size)
    assert_exact(upsampled_nearest(*call, backend="verify"), call)


@pytest.mark.verify
def test_bands_of_source_rows_agree_with_one(monkeypatch):
    from ditf_kernels._triton import upsampled_dense as kernels

    call = (torch.randn(6, 8), (3, 2), (4, 3), torch.randn(4, 8), (2, 2), (5, 4))
    whole = upsampled_nearest(*call, backend="triton")
    monkeypatch.setattr(kernels, "COARSE_SCORES", 2 * 4 * 2)
    parts = upsampled_nearest(*call, backend="triton")
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


# --- the bound -------------------------------------------------------------------------------------------------------


def related_maps(grid, channels=24, seed=0):
    """Smooth tokens and a shifted, noisy copy: neighbours alike, as features of photographs are."""
    noise = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, grid[0] // 3 + 2, grid[1] // 3 + 2, generator=noise)
    source = F.interpolate(coarse, grid, mode="bicubic")[0]
    target = source.roll((1, 2), (1, 2)) + 0.1 * torch.randn(source.shape, generator=noise)
    return source.flatten(1).T.contiguous(), target.flatten(1).T.contiguous()


def test_most_cells_of_related_maps_are_pruned_and_the_answer_is_exact():
    grid, size = (12, 14), (40, 45)
    query, key = related_maps(grid)
    pruning = Pruning()
    found = prune_and_match(query, key, None, None, None, None, grid, size, grid, size, pruning)
    assert pruning.share > 0.8
    assert_exact(found, (query, grid, size, key, grid, size))


def test_bounds_are_never_below_a_score():
    """Every pair of a source pixel and a target cell, not just those that decide."""
    from ditf_kernels.reference import upsampled_dense as dense

    grid, size = (4, 5), (13, 17)
    for seed in range(5):
        query, key = related_maps(grid, 6, seed)
        key[7] = -key[6] * 1.02  # nearly cancels
        key[3] *= 50
        planes = [upsampled_planes(t, grid).flatten(1) for t in (query, key)]
        source = dense.source_pixels(planes[0], None, grid, size)
        cells = dense.target_cells(planes[1], None, grid, size)
        for number, coarse, projected in dense._coarse_rows(query, key, source, cells):
            right = torch.arange(grid[1]).add(1).clamp_max(grid[1] - 1)
            y_weight = source.y.weight[source.y.member[number, : int(source.y.counts[number])]]
            row = dense._Row(coarse, right, y_weight, source.x.weight[source.x.member], *[None] * 4)
            bound = dense._form_weights(row) @ dense._quadratic_forms(projected, right)  # (A, P, C)
            d, b = y_weight[:, None], row.x_weight[:, None]
            weights = torch.stack([(1 - d) * (1 - b), (1 - d) * b, d * (1 - b), d * b], -1).flatten(1, 2)  # (A, P, 4)
            tokens = torch.stack([coarse[0], coarse[0][right], coarse[1], coarse[1][right]], 1).double()  # (A, 4, C, 4)
            dots = torch.einsum("api,aicj->apcj", weights.double(), tokens)
            scores = torch.einsum("apcj,cjs->apcs", dots, cells.weight.double()).amax(-1)
            lengths = source.lengths[source.y.member[number, 0], 0]
            assert (bound.double().sqrt() - scores).min() > -1e-5 * lengths
    assert lengths > 0


# --- ties, zeros, what is not finite ---------------------------------------------------------------------------------


@both_backends
def test_equal_tokens_tie_to_the_lowest_raster_index(backend):
    key = torch.eye(8)[[0, 1, 2, 1, 0, 3]] * 2
    xy, score = upsampled_nearest(torch.eye(8)[:4], (2, 2), (2, 2), key, (2, 3), (2, 3), backend=backend)
    assert xy.flatten(0, 1).tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
    assert (score == 1).all()


@both_backends
def test_border_bands_tie_to_their_first_pixel_that_may_be_chosen(backend):
    tokens = torch.eye(4)
    call = (tokens, (2, 2), (2, 2), tokens, (2, 2), (12, 12))
    xy, score = upsampled_nearest(*call, backend=backend)
    assert xy.flatten(0, 1).tolist() == [[0, 0], [9, 0], [0, 9], [9, 9]]
    assert (score == 1).all()
    mask = torch.ones(12, 12, dtype=torch.bool)
    mask[:2, :3] = mask[0, 9:] = False
    xy, _ = upsampled_nearest(*call, mask=mask, backend=backend)
    assert xy.flatten(0, 1).tolist() == [[0, 2], [9, 1], [0, 9], [9, 9]]


@both_backends
def test_small_integers_on_their_own_grid_choose_the_lowest_of_equals(backend):
    query, key = torch.randint(0, 2, (4, 16)) * 2.0 - 1, torch.randint(0, 2, (20, 16)) * 2.0 - 1
    key[10:] = key[:10]  # lengths are 4, cosines exact
    xy, score = upsampled_nearest(query, (2, 2), (2, 2), key, (4, 5), (4, 5), backend=backend)
    value, index = (query @ key.T / 16).sort(dim=1, descending=True, stable=True)
    assert torch.equal(xy[..., 1].flatten() * 5 + xy[..., 0].flatten(), index[:, 0])
    assert torch.equal(score.flatten(), value[:, 0])


@both_backends
def test_zero_vectors_and_cancelling_neighbours_score_zero_and_take_the_first_pixel(backend):
    f = F.normalize(torch.randn(16), dim=0)
    query = torch.stack([f, -f, torch.zeros(16), torch.zeros(16)])
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[0, :4] = False
    xy, score = upsampled_nearest(query, (2, 2), (3, 3), torch.randn(4, 16), (2, 2), (6, 6), mask=mask, backend=backend)
    assert xy[0, 1].tolist() == xy[2, 0].tolist() == [4, 0]  # between f and -f; zero
    assert score[0, 1] == score[2, 2] == 0


@both_backends
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_tokens_that_are_not_finite_have_no_match_and_are_none(backend, value):
    query, key = torch.randn(9, 16), torch.randn(9, 16)
    query[4, 2] = key[0, 5] = value
    call = (query, (3, 3), (6, 6), key, (3, 3), (9, 9))
    found = upsampled_nearest(*call, backend=backend)
    assert_exact(found, call)
    assert found[1].isnan().sum() == 16  # the border bands have no weight on the middle token


@both_backends
def test_no_pixel_to_choose_gives_none(backend):
    tokens = torch.randn(4, 8)
    for key, mask in ((tokens, torch.zeros(5, 5, dtype=torch.bool)), (tokens * torch.nan, None)):
        xy, score = upsampled_nearest(tokens, (2, 2), (3, 4), key, (2, 2), (5, 5), mask=mask, backend=backend)
        assert (xy == -1).all()
        assert score.isnan().all()


@both_backends
def test_pixels_that_are_not_wanted_get_no_answer_and_the_others_theirs(backend):
    call = (torch.randn(6, 8), (2, 3), (5, 9), torch.randn(4, 8), (2, 2), (6, 5))
    wanted = torch.rand(5, 9) < 0.4
    whole = upsampled_nearest(*call, backend=backend)
    xy, score = upsampled_nearest(*call, query_mask=wanted, backend=backend)
    assert torch.equal(xy[wanted], whole[0][wanted])
    assert torch.equal(score[wanted], whole[1][wanted])
    assert (xy[~wanted] == -1).all()
    assert score[~wanted].isnan().all()


def test_negative_scores_prune_nothing_that_wins():
    query, key = torch.rand(9, 5) + 0.1, -torch.rand(12, 5) - 0.1
    call = (query, (3, 3), (10, 11), key, (3, 4), (9, 13))
    assert_exact(upsampled_nearest(*call, backend="torch"), call)


# --- planes, strides, gradients, arguments ---------------------------------------------------------------------------


@both_backends
def test_planes_and_strides(backend):
    query, key = torch.randn(8, 9).T, torch.randn(4, 16)[:, ::2]
    call = (query, (3, 3), (4, 5), key, (2, 2), (5, 3))
    xy, score = upsampled_nearest(*call, backend=backend)
    planes = upsampled_planes(query, (3, 3)), upsampled_planes(key, (2, 2))
    again = upsampled_nearest(
        query.contiguous(), *call[1:3], key.contiguous(), *call[4:], query_planes=planes[0], key_planes=planes[1],
        mask=torch.ones(3, 5, dtype=torch.bool).T, backend=backend,
    )  # fmt: skip
    assert torch.equal(xy, again[0])
    torch.testing.assert_close(score, again[1], atol=1e-6, rtol=0)


def test_scores_are_differentiable():
    query, key = torch.randn(4, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)
    call = ((2, 2), (3, 5)), ((2, 3), (4, 7))
    with torch.inference_mode():  # what this leaves behind for such sizes is no hindrance
        upsampled_nearest(query, *call[0], key, *call[1])
    xy, score = upsampled_nearest(query, *call[0], key, *call[1])
    own, found = torch.arange(15), (xy[..., 1] * 7 + xy[..., 0]).flatten()
    exact = reference.chosen_score(query, key, (call[0][0], call[1][0]), (call[0][1], call[1][1]), own, found)
    torch.testing.assert_close(score.flatten().double(), exact, atol=1e-6, rtol=0)
    for ours, expected in zip(*(torch.autograd.grad(s.sum(), (query, key)) for s in (score, exact)), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(BackendError, match="requires grad"):
        upsampled_nearest(query, *call[0], key, *call[1], backend="triton")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(4)}, r"query: got shape \(4,\), expected \(rows, D\)"),
        ({"query": torch.zeros(4, 5)}, r"query: got 5 channels, expected 4, as key has"),
        ({"query": torch.zeros(3, 4)}, r"query: got 3 rows, expected 4"),
        ({"key": torch.zeros(6, 4, dtype=torch.float64)}, r"key: got torch.float64"),
        ({"query": torch.zeros(4, 4, device="meta")}, r"query: got a tensor on meta, expected one on cpu"),
        ({"key_grid": (0, 6)}, r"key_grid: got \(0, 6\), expected two integers of at least 1"),
        ({"query_size": 6}, r"query_size: got 6, expected two integers"),
        ({"mask": torch.ones(9, 9, dtype=torch.bool)}, r"mask: got \(9, 9\) torch.bool, expected \(9, 11\) bool"),
        ({"mask": torch.ones(9, 11)}, r"mask: got \(9, 11\) torch.float32, expected \(9, 11\) bool"),
        ({"query_mask": torch.ones(3, 4, dtype=torch.bool)}, r"query_mask: got \(3, 4\) torch.bool, expected \(3, 3\)"),
        ({"key_planes": torch.ones(5, 6)}, r"key_planes: got \(5, 6\) torch.float32, expected \(5, 2, 3\) float32"),
    ],
)
def test_bad_arguments_are_named_with_what_was_expected(arguments, message):
    call = {
        "query": torch.zeros(4, 4), "query_grid": (2, 2), "query_size": (3, 3), "key": torch.zeros(6, 4),
        "key_grid": (2, 3), "key_size": (9, 11), **arguments,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        upsampled_nearest(**call)


def test_an_image_beyond_31_bit_pixels_takes_the_twin_or_says_why_not(monkeypatch):
    call = (torch.randn(4, 4), (2, 2), (3, 3), torch.randn(4, 4), (2, 2), (4, 4))
    monkeypatch.setattr(upsampled_dense, "PIXELS", 15)
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "auto")
    assert torch.equal(upsampled_nearest(*call)[0], upsampled_nearest(*call, backend="torch")[0])
    with pytest.raises(BackendError, match="an image of 4 x 4 pixels has more than 15"):
        upsampled_nearest(*call, backend="triton")


def test_the_oracle_is_that_of_the_other_matchers():
    query, key = torch.randn(6, 16), torch.randn(12, 16)
    scores = all_scores(query, (2, 3), (2, 3), key, (3, 4), (9, 10))
    torch.testing.assert_close(scores, brute_force(query, key, (3, 4), (9, 10)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_pruning_changes_nothing_not_even_the_last_bit(seed, monkeypatch):
    from ditf_kernels.reference import upsampled_dense as dense

    grids, sizes = ((5, 6), (7, 4)), ((23, 19), (30, 21))
    query, key = (related_maps(grid, (3, 8, 24)[seed % 3], seed)[side] for side, grid in enumerate(grids))
    key[9] = -key[8] * 1.03  # nearly cancels
    key[15], query[4] = key[14], -query[5] * 0.99
    key[20] *= 1e3
    call = (query, grids[0], sizes[0], key, grids[1], sizes[1])
    pruned = upsampled_nearest(*call, backend="torch")
    monkeypatch.setattr(dense, "SCORE_SLACK", 1e9)
    whole = upsampled_nearest(*call, backend="torch")
    assert torch.equal(pruned[0], whole[0])
    assert torch.equal(pruned[1], whole[1])
