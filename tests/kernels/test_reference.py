"""The twins against float64 formulas, against upsample-and-normalise, and against the reference method's own output."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from ditf_kernels import adaln, reference, upsampled_argmax, upsampled_planes

from .oracles import GEOMETRIES, assert_found_the_best, brute_force

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (not a dict)


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "length"), [(5, 37), (1, 9), (8, 3), (7, 7), (40, 500), (31, 375), (60, 961)])
def test_taps_follow_the_formula_and_are_exact_at_the_border(cells, length):
    taps = reference.axis_taps(cells, length)
    u = ((torch.arange(length).double() + 0.5) * cells / length - 0.5).clamp(0, cells - 1)
    torch.testing.assert_close(taps.low + taps.weight.double(), u, atol=1e-6, rtol=0)
    assert (taps.low >= 0).all()
    assert (taps.high <= cells - 1).all()
    border = (u == 0) | (u == cells - 1)
    assert (taps.weight[border] == 0).all()


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
def test_sampling_at_whole_pixels_is_interpolation(grid, size):
    tokens = torch.randn(grid[0] * grid[1], 6)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2).float()
    sampled = reference.sample_grid(tokens, grid, size, points)
    expected = F.interpolate(tokens.double().T.reshape(1, 6, *grid), size, mode="bilinear")[0].flatten(1).T
    torch.testing.assert_close(sampled.double(), expected, atol=1e-5, rtol=0)


def test_sampling_between_pixels_is_linear_and_clamped_outside():
    tokens = torch.arange(12.0)[:, None] * torch.ones(1, 2)  # rises along x by 1 a cell, along y by 4
    points = torch.tensor([[10.0, 7.5], [10.5, 7.5], [-100.0, -100.0], [1e6, 1e6], [float("nan"), 3.0]])
    a, b, first, last, missing = reference.sample_grid(tokens, (3, 4), (30, 40), points)[:, 0]
    assert b - a == pytest.approx(0.05, abs=1e-5)
    assert (first, last) == (0, 11)
    assert missing.isnan()


def test_sampling_half_precision_tokens_gives_float32():
    tokens = torch.randn(12, 5).half()
    points = torch.tensor([[3.25, 4.5]])
    sampled = reference.sample_grid(tokens, (3, 4), (30, 40), points)
    assert sampled.dtype == torch.float32
    assert torch.equal(sampled, reference.sample_grid(tokens.float(), (3, 4), (30, 40), points))


def test_a_cell_of_weight_zero_cannot_spoil_a_sample():
    tokens = torch.ones(4, 3)
    tokens[3] = torch.nan
    sampled = reference.sample_grid(tokens, (2, 2), (8, 8), torch.tensor([[0, 0], [7, 0], [7, 7]]))
    assert sampled.isnan().any(1).tolist() == [False, False, True]


# --- matching at image resolution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
def test_closed_form_equals_upsampling_and_normalising(grid, size, dtype):
    torch.manual_seed(sum(grid) + sum(size))
    key, query = torch.randn(grid[0] * grid[1], 48).to(dtype), torch.randn(9, 48)
    xy, score = upsampled_argmax(query, key, grid, size, backend="torch")
    scores = brute_force(query, key, grid, size)
    assert_found_the_best(xy, score, scores, size[1])
    exact = reference.score_at(query, key, grid, size, xy)
    torch.testing.assert_close(exact, scores.max(1).values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
def test_similarity_maps_equal_upsampling_and_normalising(grid, size, dtype):
    key, query = torch.randn(grid[0] * grid[1], 48).to(dtype), torch.randn(3, 48)
    maps = reference.upsampled_similarity(query, key, grid, size)
    torch.testing.assert_close(maps.flatten(1).double(), brute_force(query, key, grid, size), atol=1e-5, rtol=0)


def test_a_similarity_map_is_nan_where_it_has_no_meaning():
    key, query = torch.randn(4, 8), torch.randn(2, 8)
    key[3, 2] = torch.nan
    query[1, 0] = torch.inf
    first, second = reference.upsampled_similarity(query, key, (2, 2), (8, 8)).isnan()
    assert first.nonzero().min() == 2  # the last cell has weight from pixel 2 on, in both directions
    assert first[2:, 2:].all()
    assert second.all()


def test_inverse_norms_equal_those_of_upsampled_features():
    key = torch.randn(35, 24)
    planes = upsampled_planes(key, (5, 7), backend="torch")
    inverse = reference.upsampled_inverse_norm(planes, (37, 50))
    pixels = F.interpolate(key.double().T.reshape(1, 24, 5, 7), (37, 50), mode="bilinear")[0]
    torch.testing.assert_close(inverse.double(), 1 / pixels.norm(dim=0), atol=0, rtol=1e-5)
    assert torch.equal(reference.upsampled_inverse_norm(planes, (37, 50), (11, 20)), inverse[11:20])


def test_planes_are_the_dot_products_of_neighbours():
    f = torch.randn(3, 4, 10, dtype=torch.float64)
    here, down = f, torch.cat([f[1:], f[-1:]])
    right, diagonal = (torch.cat([t[:, 1:], t[:, -1:]], 1) for t in (here, down))
    products = [(here, here), (here, right), (here, down), (here, diagonal), (right, down)]
    expected = torch.stack([(a * b).sum(-1) for a, b in products])
    planes = upsampled_planes(f.float().reshape(12, 10), (3, 4), backend="torch")
    torch.testing.assert_close(planes.double(), expected, atol=1e-5, rtol=1e-5)


def test_pixels_between_opposite_neighbours_count_as_zero():
    f = F.normalize(torch.randn(64), dim=0)
    key = torch.stack([f, -f])  # half-way between them the upsampled vector is nothing but rounding
    planes = upsampled_planes(key, (1, 2), backend="torch")
    inverse = reference.upsampled_inverse_norm(planes, (1, 65))  # pixel 32 sits exactly in the middle
    assert inverse[0, 32] == 0
    noise = torch.randn(3, 64)
    xy, score = upsampled_argmax(noise, key, (1, 2), (1, 65), backend="torch")
    assert_found_the_best(xy, score, brute_force(noise, key, (1, 2), (1, 65)), 65)
    assert (score.abs() < 1).all()


def test_golden_keypoints_are_predicted_exactly():
    data, about = golden("keypoint_matching")
    (source, target), (source_size, target_size) = (
        (data["source_map"][0], data["target_map"][0]),
        (json.loads(about[f"{side}_size"]) for side in ("source", "target")),
    )
    tokens, key = source.flatten(1).T, target.flatten(1).T
    query = reference.sample_grid(tokens, source.shape[1:], source_size, data["keypoints"])
    xy, score = upsampled_argmax(query, key, tuple(target.shape[1:]), tuple(target_size), backend="torch")
    assert torch.equal(xy, data["prediction"])
    torch.testing.assert_close(score.double(), data["score"], atol=1e-5, rtol=0)

    y, x = torch.meshgrid(*(torch.arange(n) for n in target_size), indexing="ij")
    everywhere = torch.stack([x, y], -1).reshape(-1, 2)
    first = query[:1].expand(len(everywhere), -1)
    heat = reference.score_at(first, key, tuple(target.shape[1:]), tuple(target_size), everywhere)
    torch.testing.assert_close(heat.reshape(*target_size), data["heatmap0"].double(), atol=1e-5, rtol=0)
    closed = reference.upsampled_similarity(query[:1], key, tuple(target.shape[1:]), tuple(target_size))[0]
    torch.testing.assert_close(closed, data["heatmap0"], atol=1e-5, rtol=0)


# --- adaln -----------------------------------------------------------------------------------------------------------


def test_golden_features_of_the_reference_method():
    data, about = golden("flux_pre_adaln")
    tokens, shift, scale = (data[f"expect/{name}"] for name in ("pre_adaln_tokens", "shift", "scale"))
    plain = adaln(tokens, shift[:1], scale[:1], ensemble=2, backend="torch")
    torch.testing.assert_close(plain, data["expect/ensemble_adaln"], atol=2e-6, rtol=1e-5)
    discard = json.loads(about["discard"])
    dropped = adaln(tokens, shift[:1], scale[:1], ensemble=2, discard=discard, backend="torch")
    torch.testing.assert_close(dropped, data["expect/ensemble_adaln_discard"], atol=2e-6, rtol=1e-5)
