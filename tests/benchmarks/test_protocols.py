"""Sizes, frames, comparisons and matching rules, each against the published code's arithmetic written out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ditf import FeatureMap, InputError
from ditf.benchmarks.pairs import Pair
from ditf.benchmarks.protocols import PROTOCOLS, errors_in_frame, find_protocol, frame_pair, model_input
from ditf.benchmarks.rules import _pixels, best_places, queries_at
from ditf.benchmarks.scores import aggregate, pair_weights, within

from .minis import texture

CODE, GEOAWARE = PROTOCOLS["ditf-code"], PROTOCOLS["geoaware"]


def pair(points, truth=None, length: float = 100.0) -> Pair:
    from pathlib import Path

    at = np.array(points, float).reshape(-1, 2)
    truth = at if truth is None else np.array(truth, float).reshape(-1, 2)
    return Pair("one", "cat", Path("a"), Path("b"), None, None, at, truth, {"box": length}, "cat", "cat")


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 375), (640, 480)),
        ((500, 333), (640, 432)),
        ((500, 334), (640, 432)),
        ((500, 281), (640, 352)),
        ((375, 500), (480, 640)),
        ((500, 500), (640, 640)),
        ((480, 342), (640, 448)),  # 28.5 tokens: half to even, as Python rounds
        ((480, 354), (640, 480)),  # 29.5
    ],
)
def test_the_reference_codes_sizes_are_ours(size, expected) -> None:
    """Sizes are (W, H), as Pillow has them."""
    assert model_input(Image.new("RGB", size), CODE, 640, 16).size == expected


def test_stretching_and_the_square_canvas_have_the_published_sizes() -> None:
    image = Image.fromarray(texture(333, 500, 0))
    assert model_input(image, PROTOCOLS["dift"], 768, 16).size == (768, 768)
    square = np.asarray(model_input(image, GEOAWARE, 960, 16))
    assert square.shape == (960, 960, 3)
    high = round(960 * 333 / 500)
    top = (960 - high) // 2
    assert not square[:top].any()
    assert not square[top + high :].any()
    resized = np.asarray(image.resize((960, high), Image.Resampling.LANCZOS))
    assert (square[top : top + high] == resized).all()


@pytest.mark.parametrize(("size", "sides"), [((333, 500), (1.68, 0, 140)), ((500, 333), (1.68, 140, 0))])
def test_points_go_to_the_canvas_with_their_image(size, sides) -> None:
    scale, left, top = sides
    framed = frame_pair(pair([[100, 50]]), GEOAWARE, (size, size))
    assert framed.points[0].tolist() == pytest.approx([100 * scale + left, 50 * scale + top])
    assert framed.length == pytest.approx(100 * scale)


def test_an_unknown_protocol_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="ditf-code, ditf-paper, dift"):
        find_protocol(PROTOCOLS, "ditf", "spair")


# --- comparisons at equality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arithmetic", "operator", "alpha", "length", "error", "expected"),
    [
        ("ratio", "<=", 0.1, 100, 10, True),
        ("ratio", "<=", 0.05, 100, 5, True),
        ("ratio", "<=", 0.01, 100, 1, True),
        ("ratio", "<=", 0.1, 30, 3, True),  # 0.1 * 30 is 3.0000000000000004 and would pass by chance
        ("alpha32", "<", 0.1, 100, 10, True),  # alpha in float32 is a little more than 0.1
        ("alpha32", "<", 0.05, 100, 5, True),
        ("alpha32", "<", 0.01, 100, 1, False),  # and a little less than 0.01
        ("float32", "<", 0.1, 840, 84, False),
        ("float32", "<", 0.05, 840, 42, False),
        ("float32", "<=", 0.1, 840, 84, True),
        ("ratio", "<=", 0.1, 100, float("inf"), False),
    ],
)
def test_an_error_of_exactly_the_threshold_is_right_or_wrong_as_published(
    arithmetic, operator, alpha, length, error, expected
) -> None:
    assert bool(within(np.array([error], float), length, alpha, operator, arithmetic)[0]) is expected


def test_no_prediction_is_wrong_and_never_missing() -> None:
    framed = frame_pair(pair([[5, 5], [6, 6]]), CODE, ((50, 50), (50, 50)))
    errors = errors_in_frame(np.array([[-1.0, -1.0], [np.nan, 3.0]]), framed, CODE)
    assert errors.tolist() == [np.inf, np.inf]


def test_errors_are_scaled_per_axis_where_a_protocol_says_so() -> None:
    scaled = dataclasses.replace(CODE, compare=(224, 224), length="compare")
    framed = frame_pair(pair([[10, 10]]), scaled, ((100, 200), (100, 200)))
    assert errors_in_frame(np.array([[13.0, 14.0]]), framed, scaled).tolist() == [np.hypot(3 * 1.12, 4 * 2.24)]
    assert framed.length == 224


def test_a_box_that_is_stretched_with_its_image_changes_the_length() -> None:
    """hpf: a 200 x 100 image becomes square, so a box of 40 x 30 becomes one of 4 * 38.4 by 3 * 76.8 pixels."""
    protocol = PROTOCOLS["hpf"]
    one = dataclasses.replace(pair([[10, 10]]), lengths={"box": 40, "box width": 40, "box height": 30})
    framed = frame_pair(one, protocol, ((100, 200), (100, 200)))
    assert framed.length == pytest.approx(30 * 7.68)
    assert errors_in_frame(np.array([[14.0, 13.0]]), framed, protocol)[0] == pytest.approx(np.hypot(4 * 3.84, 3 * 7.68))


# --- averages --------------------------------------------------------------------------------------------------------

# A public run of DIFT on SPair-71k: per point, per image, pairs.
DIFT_RUN = [
    (63.56, 61.83, 690), (54.53, 52.87, 650), (80.15, 78.38, 702), (34.29, 30.65, 702), (46.40, 44.92, 870),
    (52.28, 39.46, 644), (48.36, 33.73, 564), (77.54, 78.04, 600), (39.24, 34.49, 646), (76.35, 71.02, 640),
    (54.69, 51.10, 600), (61.18, 57.36, 600), (52.88, 49.86, 702), (45.86, 40.93, 650), (57.48, 52.58, 862),
    (56.55, 45.53, 664), (70.96, 67.49, 756), (63.65, 60.07, 692),
]  # fmt: skip


def test_a_published_runs_categories_give_its_published_averages() -> None:
    """Pairs of one point each stand for a category: of them as many right as the category's share per point says."""
    categories, hits = [], []
    for c, (point, _, pairs) in enumerate(DIFT_RUN):
        categories += [f"{c:02d}"] * pairs * 100
        right = round(point * pairs)
        hits += [1] * right + [0] * (pairs * 100 - right)
    found = aggregate(categories, np.array(hits), np.ones(len(hits)))
    assert found["point_macro"] == pytest.approx(57.55, abs=0.01)
    assert found["point_pairweighted"] == pytest.approx(57.46, abs=0.01)
    per_image = sum(image * pairs for _, image, pairs in DIFT_RUN) / sum(pairs for *_, pairs in DIFT_RUN)
    assert per_image == pytest.approx(52.84, abs=0.01)


def test_averages_are_their_definitions_on_random_pairs() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(1, 17, 60)
    hits = random.integers(0, counts + 1)
    names = random.choice(list("abcd"), 60, p=[0.5, 0.3, 0.15, 0.05])
    by_point, by_pair, weighted = [], [], 0.0
    for name in sorted(set(names)):
        rows = [(h, n) for h, n, own in zip(hits, counts, names, strict=True) if own == name]
        share = sum(h for h, _ in rows) / sum(n for _, n in rows)
        by_point.append(share)
        by_pair.append(sum(h / n for h, n in rows) / len(rows))
        weighted += share * len(rows) / 60
    expected = {
        "point_micro": hits.sum() / counts.sum(),
        "point_macro": np.mean(by_point),
        "image_micro": np.mean(hits / counts),
        "image_macro": np.mean(by_pair),
        "point_pairweighted": weighted,
    }
    found = aggregate(list(names), hits, counts)
    assert found == pytest.approx({k: 100 * v for k, v in expected.items()})
    weights = pair_weights(list(names), counts)
    assert {k: 100 * float(w @ hits) for k, w in weights.items()} == pytest.approx(found)
    order = random.permutation(60)
    assert aggregate(list(names[order]), hits[order], counts[order]) == pytest.approx(found)


def test_nothing_to_average_is_an_error_and_never_not_a_number() -> None:
    for hits, counts in (([], []), ([0], [0])):
        with pytest.raises(InputError, match="at least one"):
            aggregate(["a"] * len(hits), np.array(hits), np.array(counts))


# --- matching on patches ---------------------------------------------------------------------------------------------


def peak_map(row: int, column: int, height: float) -> tuple[torch.Tensor, FeatureMap]:
    """A query, and a map of 60 x 60 unit vectors that are at right angles to it but for one."""
    tokens = torch.zeros(3600, 3)
    tokens[:, 1] = 1.0
    tokens[row * 60 + column] = torch.tensor([height, (1 - height**2) ** 0.5, 0.0])
    return torch.tensor([[1.0, 0.0, 0.0]]), FeatureMap(tokens=tokens, grid=(60, 60), image_size=(840, 840))


@pytest.mark.parametrize(("name", "offset"), [("geoaware", 7.0), ("sd-dino", 6.5)])
def test_a_patch_says_where_in_itself_it_found_the_point(name, offset) -> None:
    query, target = peak_map(10, 50, 1.0)
    [(place, score)] = best_places([query], [target], [(840, 840)], PROTOCOLS[name], "float32")
    assert place.tolist() == [[50 * 14 + offset, 10 * 14 + offset]]
    assert score.tolist() == [1.0]


@pytest.mark.parametrize("height", [1.0, 0.6, 0.3, 0.15, 0.1])
def test_the_windows_zeros_pull_weak_matches_to_the_centre_and_the_strict_one_has_none(height) -> None:
    """GeoAware-SC's mask multiplies: the 3599 other cells have similarity 0 and weigh 1 each, wherever they are."""
    query, target = peak_map(10, 50, height)
    peak = math.exp(height / 0.02)
    everywhere = 3600 * 29.5  # sum of the rows, or columns, of all cells
    expected = [(peak * at + everywhere - at) / (peak + 3599) for at in (50, 10)]
    [(place, _)] = best_places([query], [target], [(840, 840)], PROTOCOLS["geoaware-window"], "float32")
    assert (place[0] / 14 - 0.5).tolist() == pytest.approx(expected, rel=1e-5)
    [(place, _)] = best_places([query], [target], [(840, 840)], PROTOCOLS["geoaware-window-strict"], "float32")
    assert (place[0] / 14 - 0.5).tolist() == pytest.approx([50, 10], abs=1e-5)


@pytest.mark.parametrize("name", ["sd4match", "sd4match-softmax"])
def test_the_soft_argmax_of_all_tokens_is_that_of_its_definition(name) -> None:
    """Corner tokens on the corners of the stretched image, temperature 0.04, a Gaussian of 7 tokens: in float64."""
    random = torch.Generator().manual_seed(0)
    (h, w), (height, width), side = (9, 12), (90, 140), 768
    source, target = (
        FeatureMap(tokens=torch.randn(h * w, 8, generator=random), grid=(h, w), image_size=(height, width))
        for _ in "ab"
    )
    points = np.array([[0.0, 0.0], [139.0, 89.0], [30.25, 61.5]])
    stretched = np.clip(points * side / np.array([width, height]), 1e-4, side - 1 - 1e-4)
    at = torch.from_numpy(stretched / (side - 1) * 2 - 1)
    vectors = torch.nn.functional.grid_sample(source.map[None].double(), at[None, None], align_corners=True)[0, :, 0].T
    unit = [v / v.norm(dim=1, keepdim=True) for v in (vectors, target.tokens.double())]
    cosine = (unit[0] @ unit[1].T).view(-1, h, w)
    expected = []
    for one in cosine:
        best = divmod(int(one.argmax()), w)
        gaussian = torch.tensor([[((y - best[0]) ** 2 + (x - best[1]) ** 2) / 98 for x in range(w)] for y in range(h)])
        weighed = one * torch.exp(-gaussian.double()) if name == "sd4match" else one
        share = (weighed / 0.04).exp() / (weighed / 0.04).exp().sum()
        x, y = ((share.sum(axis) * torch.arange(n)).sum() / (n - 1) for axis, n in ((0, w), (1, h)))
        expected.append([float(x) * (side - 1) * width / side, float(y) * (side - 1) * height / side])
    query = queries_at(source, points, (height, width), PROTOCOLS[name], "float32")
    assert torch.allclose(query.double(), vectors, atol=1e-5)
    [(place, score)] = best_places([query], [target], [(height, width)], PROTOCOLS[name], "float32")
    assert place.tolist() == [pytest.approx(one, abs=1e-3) for one in expected]
    assert score.tolist() == pytest.approx(cosine.flatten(1).max(1).values.tolist(), abs=1e-5)


def test_a_query_that_is_no_number_is_wrong_and_never_missing_under_the_soft_argmax() -> None:
    query, target = peak_map(10, 50, 1.0)
    [(place, _)] = best_places([query * torch.nan], [target], [(840, 840)], PROTOCOLS["sd4match"], "float32")
    framed = frame_pair(pair([[5, 5]]), CODE, ((840, 840), (840, 840)))
    assert errors_in_frame(place.numpy(), framed, CODE).tolist() == [np.inf]


def test_the_source_is_read_at_the_patch_that_a_point_is_in() -> None:
    tokens = torch.arange(3600, dtype=torch.float32)[:, None].repeat(1, 2)
    features = FeatureMap(tokens=tokens, grid=(60, 60), image_size=(840, 840))
    points = np.array([[0.0, 0.0], [13.99, 0.0], [14.0, 0.0], [839.0, 839.9], [840.0, 0.0]])
    found = queries_at(features, points, (840, 840), GEOAWARE, "float32")
    assert found[:, 0].tolist() == [0, 0, 1, 3599, 59]  # never the first patch of the next row


def test_many_targets_in_one_call_are_found_as_one_by_one() -> None:
    """As on a GPU: maps of different grids and images of different sizes, one of them without a query."""
    random = torch.Generator().manual_seed(0)
    grids, sizes, counts = [(5, 7), (6, 4), (3, 3)], [(40, 61), (50, 33), (24, 24)], [4, 0, 6]
    targets = [
        FeatureMap(tokens=torch.randn(h * w, 16, generator=random).half(), grid=(h, w), image_size=size)
        for (h, w), size in zip(grids, sizes, strict=True)
    ]
    queries = [torch.randn(count, 16, generator=random) for count in counts]
    together = _pixels(queries, targets, sizes, None)
    for query, target, size, (place, score) in zip(queries, targets, sizes, together, strict=True):
        [(alone, alone_score)] = best_places([query], [target], [size], CODE, "float32")
        assert place.tolist() == alone.tolist()
        assert torch.allclose(score, alone_score, atol=1e-6)


def test_features_that_overflow_float16_are_refused_by_name() -> None:
    target = FeatureMap(tokens=torch.full((4, 3), 1e6), grid=(2, 2), image_size=(8, 8))
    with pytest.raises(InputError, match="float16, in which these features overflow"):
        best_places([torch.ones(1, 3)], [target], [(8, 8)], CODE, "float16")


def test_whole_pixels_are_read_where_the_published_code_indexes() -> None:
    framed = frame_pair(pair([[10.9, 20.2], [-0.5, 3]]), CODE, ((50, 50), (50, 50)))
    assert framed.lookup.tolist() == [[10, 20], [0, 3]]
    assert framed.clipped == 0
    exact = frame_pair(pair([[10.9, 20.2]]), dataclasses.replace(CODE, lookup="exact"), ((50, 50), (50, 50)))
    assert exact.lookup.tolist() == [[10.9, 20.2]]
