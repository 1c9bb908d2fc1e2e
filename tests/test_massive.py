"""Massive channels are found as defined, their numbers are those of the formulas, and "auto" is the same for all."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import ditf
from ditf import FeatureExtractor, FeatureMap, InputError, find_massive_channels
from ditf.calibration import calibration_pictures
from ditf.massive import QUANTILES, channel_map, massive_report
from ditf.tiny import evaluate
from ditf.tiny.scenes import sample_scene
from ditf_kernels.backend import verification_counts

from .backbones import tiny_models

GOLDEN = Path(__file__).parent / "golden" / "flux_pre_adaln.safetensors"
PLANTED = (5, 17)


def tokens(images: int = 8, count: int = 40, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, count, width, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, size: int = 48) -> list[np.ndarray]:
    return [sample_scene(seed, size).pixels for seed in range(count)]


def tiny_flux(planted: bool = True, **overrides) -> FeatureExtractor:
    """A random FLUX; channels 5 and 17 are made massive by the bias of its input projection."""
    pipeline = tiny_models.flux_pipeline()
    if planted:
        with torch.no_grad():
            pipeline.transformer.x_embedder.bias[list(PLANTED)] = torch.tensor([60.0, -45.0])
    return FeatureExtractor(pipeline, **{"block": 3, "timestep": 260, "ensemble": 1, "size": 64, **overrides})


@pytest.fixture(scope="module")
def tiny() -> FeatureExtractor:
    """The bundled model, all of it, with ``discard="auto"``."""
    return FeatureExtractor.from_pretrained(
        "ditf-tiny", truncate=False, device="cpu", size=48, ensemble=1, timestep=100, discard="auto"
    )


# ---- the definition ----------------------------------------------------------------------------------------------


def test_channels_planted_in_noise_are_found_and_no_others() -> None:
    x = tokens()
    x[..., 7] += 40
    x[..., 21] -= 15
    report = massive_report(x)
    assert report.channels == (7, 21)
    assert report.channels == report.layers[0].channels
    median = x.double().abs().mean((0, 1)).median()
    expected = x.double().abs().mean((0, 1))[[7, 21]]
    assert report.magnitude == pytest.approx(expected.tolist(), rel=1e-6)
    assert report.ratio == pytest.approx((expected / median).tolist(), rel=1e-6)
    assert massive_report(tokens()).channels == ()


def test_each_condition_of_the_definition_is_needed() -> None:
    both_signs, some_images, small = tokens(20), tokens(20), tokens(20)
    both_signs[..., 3] *= 60
    some_images[:18, :, 3] += 60
    small[..., 3] += 6
    largest = [massive_report(x).layers[0].top[0] for x in (both_signs, some_images, small)]
    assert [one.channel for one in largest] == [3, 3, 3]
    assert not any(one.massive for one in largest)
    assert (largest[0].ratio > 10, largest[0].top_images) == (True, 1.0)
    assert (largest[1].ratio > 10, largest[1].one_sign > 0.9) == (True, True)
    assert largest[1].top_images < 0.95
    assert (largest[2].ratio < 10, largest[2].top_images, largest[2].one_sign > 0.9) == (True, 1.0, True)


def test_the_limits_count_as_massive() -> None:
    """Exactly 10 times the median, exactly 19 of 20 images, exactly 9 of 10 tokens."""
    x = torch.ones(20, 10, 24)
    x[..., 5] = 10
    x[:, 0, 5] = -10
    x[..., 10:20] = 2  # ten others are larger than channel 5 in one image
    x[0, :, 5] *= 0.05
    x[0, :, 5], x[1:, :, 5] = x[0, :, 5].sign(), x[1:, :, 5].sign() * (10 * 200 - 10) / 190
    one = massive_report(x).layers[0].top[0]
    assert (one.channel, one.top_images, one.one_sign) == (5, pytest.approx(0.95), pytest.approx(0.9))
    assert one.ratio == pytest.approx(10)
    assert massive_report(x, ratio=9.999).channels == (5,)
    assert massive_report(x, ratio=10.001).channels == ()
    x[1, :, 5] = 1
    assert massive_report(x, ratio=9).channels == ()  # 18 of 20 images


def test_the_channels_of_the_golden_model_are_those_that_were_planted() -> None:
    golden = load_file(GOLDEN)
    assert sorted(massive_report(golden["expect/pre_adaln_tokens"]).channels) == [5, 17]


def test_channels_planted_in_a_random_flux_are_found_in_every_block_and_none_in_a_clean_one() -> None:
    report = find_massive_channels(tiny_flux(), blocks=range(5))
    assert [layer.block for layer in report.layers] == [0, 1, 2, 3, 4]
    assert {layer.channels for layer in report.layers} == {PLANTED}
    assert report.channels == PLANTED
    clean = find_massive_channels(tiny_flux(planted=False), blocks=range(5))
    assert {layer.channels for layer in clean.layers} == {()}
    assert (clean.channels, clean.magnitude, clean.ratio) == ((), (), ())


def test_the_bundled_model_has_channel_91_and_the_colours_of_block_0_are_not_massive(tiny) -> None:
    report = find_massive_channels(tiny, blocks=[0, 5])
    colours, five = report.layers
    assert colours.channels == ()
    assert colours.top[0].ratio > 10
    assert five.channels == (91,)
    assert report.at(5).channels == (91,)


def test_the_card_of_the_bundled_model_has_these_numbers() -> None:
    card = json.loads((Path(evaluate.__file__).parent / "card.json").read_text())
    assert evaluate.massive_channels_of_blocks("ditf-tiny") == card["evaluation"]["massive channels"]


# ---- the numbers -------------------------------------------------------------------------------------------------


def test_every_number_of_a_channel_is_its_formula_in_float64() -> None:
    x = tokens(width=32) * torch.linspace(0.5, 2, 32)
    x[..., 9] -= 30
    layer = massive_report(x).layers[0]
    d = x.double()
    size = d.abs()
    order = size.mean((0, 1)).argsort(descending=True)
    assert [one.channel for one in layer.top] == order[:10].tolist()
    torch.testing.assert_close(layer.magnitudes.double(), size.mean((0, 1)), rtol=1e-6, atol=0)
    assert layer.median == pytest.approx(float(size.mean((0, 1)).median()), rel=1e-6)
    top10 = size.mean(1).topk(10, 1).indices
    for one in layer.top:
        c = one.channel
        expected = {
            "magnitude": size[..., c].mean(),
            "mean": d[..., c].mean(),
            "std": d[..., c].std(correction=0),
            "peak": size[..., c].max(),
            "one_sign": max((d[..., c] > 0).double().mean(), (d[..., c] < 0).double().mean()),
            "energy": d[..., c].square().sum() / d.square().sum(),
            "leads_images": (size.mean(1).argmax(1) == c).double().mean(),
            "top_images": (top10 == c).any(1).double().mean(),
            "leads_tokens": (size.argmax(2) == c).double().mean(),
        }
        for name, value in expected.items():
            assert getattr(one, name) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_tokens_read_one_image_after_the_other_give_the_same_as_all_at_once() -> None:
    x = tokens()
    x[..., 7] += 40
    whole, streamed = massive_report(x), massive_report(image for image in x)
    assert whole.to_dict() == streamed.to_dict()
    uneven = massive_report([x[:3, :10], x[3:]])  # images of 10 and of 40 tokens weigh as many
    rows = torch.cat([x[:3, :10].flatten(0, 1), x[3:].flatten(0, 1)]).double()
    torch.testing.assert_close(uneven.layers[0].magnitudes.double(), rows.abs().mean(0), rtol=1e-6, atol=0)
    assert (uneven.layers[0].images, uneven.layers[0].tokens) == (8, 230)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_agree_with_float32(dtype) -> None:
    x = tokens().to(dtype)
    x[..., 7] += 40
    half, full = massive_report(x), massive_report(x.float())
    assert half.channels == full.channels == (7,)
    torch.testing.assert_close(half.layers[0].magnitudes, full.layers[0].magnitudes, rtol=1e-5, atol=0)


def test_stability_is_the_jaccard_overlap_of_the_largest_channels() -> None:
    """Channels 3 and 4 are massive; in one image of ten, and in a quarter of each image's tokens, 5 replaces 4.

    Channel 5 is not massive: its sign changes."""
    x = torch.full((10, 8, 16), 0.01)
    x[..., 3], x[..., 4] = 9, 8
    x[:, :2, 4] = 0.011
    x[:, 0, 5], x[:, 1, 5] = 8, -8
    stable = massive_report(x).layers[0].stability
    assert (stable.size, stable.tokens, stable.images) == (2, pytest.approx((6 + 2 / 3) / 8), 1)
    x[0] = x[0][:, [0, 1, 2, 3, 5, 4, *range(6, 16)]]
    assert massive_report(x).layers[0].stability.images == pytest.approx((9 + 1 / 3) / 10)


def test_cosines_are_those_of_all_pairs_before_and_after_the_discard() -> None:
    x = tokens(8, 30)
    x[..., 7] += 40
    cosines = massive_report(x).layers[0].cosines
    assert list(cosines) == ["raw", "raw, discarded"]
    for name, y in (("raw", x.double()), ("raw, discarded", x.double().index_fill(2, torch.tensor(7), 0))):
        y = F.normalize(y, dim=2)
        rows, columns = torch.triu_indices(30, 30, 1)
        values = (y @ y.mT)[:, rows, columns].flatten().numpy()
        found = cosines[name]
        assert found.mean == pytest.approx(values.mean(), abs=1e-9)
        assert found.quantiles == pytest.approx(np.quantile(values, QUANTILES), abs=1e-9)
        counts, _ = np.histogram(values, 80, (-1, 1))
        assert np.abs(np.array(found.histogram) - counts).sum() <= 2
    assert cosines["raw"].mean > 0.9 > 0.1 > abs(cosines["raw, discarded"].mean)


def test_gains_and_cosines_after_adaln_are_those_of_the_blocks_own_modulation() -> None:
    x = tokens(8, 30)
    x[..., 7] += 40
    shift, scale = torch.randn(2, 1, 1, 64, generator=torch.Generator().manual_seed(1))
    scale[..., 7] = -0.9
    modulation = ditf.backbones.BlockInput(x, shift, scale, "layer", 1e-6, None, None)
    layer = massive_report(x, modulation=modulation).layers[0]
    assert layer.top[0].gain == pytest.approx(0.1, abs=1e-6)
    assert layer.mean_gain == pytest.approx(float((1 + scale).abs().mean()), rel=1e-6)
    y = F.normalize(F.layer_norm(x.double(), (64,), eps=1e-6) * (1 + scale.double()) + shift.double(), dim=2)
    rows, columns = torch.triu_indices(30, 30, 1)
    assert layer.cosines["adaln"].mean == pytest.approx(float((y @ y.mT)[:, rows, columns].mean()), abs=1e-6)
    assert layer.cosines["adaln, discarded"].mean != pytest.approx(layer.cosines["adaln"].mean, abs=1e-3)


def test_the_models_own_adaln_is_reported(tiny) -> None:
    layer = find_massive_channels(tiny, pictures(8), blocks=[4]).layers[0]
    picture = torch.zeros(1, 3, 16, 16)
    inputs = tiny.backbone.inputs(picture, 100.0, [""])
    scale = tiny.backbone.run([4], inputs, (4, 4))[4].scale
    assert layer.top[0].gain == pytest.approx(float((1 + scale)[..., 91].abs()), rel=1e-5)
    assert layer.mean_gain == pytest.approx(float((1 + scale).abs().mean()), rel=1e-5)
    assert layer.top[0].gain < 0.5 * layer.mean_gain  # block 4 suppresses it


# ---- from images -------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_raw_tokens_of_every_block_and_timestep(tiny) -> None:
    images = pictures(9)
    report = find_massive_channels(tiny, iter(images), blocks=[2, 5], timesteps=[20, 300])
    assert [(layer.block, layer.timestep) for layer in report.layers] == [(2, 20), (5, 20), (2, 300), (5, 300)]
    raw = tiny.replace(timestep=300, normalization="none", discard="none")(images, blocks=[5, 2])
    for block in (2, 5):
        x = torch.cat([maps[block].tokens for maps in raw]).double()
        found = report.at(block, 300).layers[0]
        torch.testing.assert_close(found.magnitudes.double(), x.abs().mean(0), rtol=1e-5, atol=0)
        assert (found.images, found.tokens) == (9, len(x))
    assert report.at(timestep=20).layers == report.layers[:2]
    assert report.card["model"] == "ditf-tiny"
    assert report.card["config"]["discard"] == "none"


def test_one_forward_per_image_shows_all_blocks(tiny, monkeypatch) -> None:
    seen = []
    run = tiny.backbone.run

    def counted(blocks, inputs, grid, **options):
        seen.append((list(blocks), grid))
        return run(blocks, inputs, grid, **options)

    monkeypatch.setattr(tiny.backbone, "run", counted)
    find_massive_channels(tiny, pictures(8), blocks=[1, 5])
    assert seen == [([1, 5], (12, 12))] * 8 + [([1, 5], (2, 2))]  # and its AdaLN on four tokens


def test_every_image_is_seen_under_every_prompt() -> None:
    report = find_massive_channels(tiny_flux(), pictures(4, 64), prompts=["a cat", "a dog"])
    layer = report.layers[0]
    assert (layer.images, layer.channels, layer.stability.prompts) == (8, PLANTED, 1.0)
    assert report.card["config"]["prompt"] == ["a cat", "a dog"]


def test_without_images_the_bundled_ones_are_taken(tiny) -> None:
    own, given = find_massive_channels(tiny), find_massive_channels(tiny, calibration_pictures())
    assert own.to_dict() == given.to_dict()
    assert own.layers[0].images == 16


def test_few_images_are_warned_of(tiny, caplog) -> None:
    with caplog.at_level(logging.WARNING, "ditf"):
        find_massive_channels(tiny, pictures(2)[0])
    assert "1 images say little about all images; give 8 or more" in caplog.text


def test_the_calibration_pictures_are_procedural_scenes() -> None:
    kinds = ("quad", "bird", "fish", "car")
    stored = calibration_pictures()
    assert len(stored) == 16
    for i, picture in enumerate(stored):
        drawn = sample_scene(3_000_000 + i, 256, kinds[i % 4], clutter=(i // 4) % 2 == 0).pixels
        assert np.abs(picture.astype(int) - drawn).mean() < 0.5  # another Pillow may draw an edge otherwise


# ---- discard="auto" ----------------------------------------------------------------------------------------------


def test_auto_discards_what_is_found_and_says_so(tiny) -> None:
    picture = pictures(1)[0]
    auto, given = tiny(picture), tiny.replace(discard=(91,))(picture)
    assert torch.equal(auto.tokens, given.tokens)
    assert list(auto.card["config"]["discard"]) == [91]
    assert "discard_found_on" in auto.card
    assert "discard_found_on" not in given.card
    layers = tiny(picture, blocks=[0, 5])
    assert list(layers[0].card["config"]["discard"]) == []
    assert torch.equal(layers[5].tokens, given.tokens)


def test_auto_finds_planted_channels_once_and_nothing_in_a_clean_model(monkeypatch) -> None:
    fx, picture = tiny_flux(discard="auto"), pictures(1, 64)[0]
    grids = []
    run = fx.backbone.run
    monkeypatch.setattr(
        fx.backbone, "run", lambda b, i, grid, **options: grids.append(grid) or run(b, i, grid, **options)
    )
    first = fx(picture)
    assert list(first.card["config"]["discard"]) == list(PLANTED)
    assert grids == [(32, 32)] * 16 + [(4, 4)]
    fx([picture, picture])
    assert grids[17:] == [(4, 4)] * 2
    assert torch.equal(first.tokens, fx.replace(discard=PLANTED)(picture).tokens)
    clean = tiny_flux(planted=False, discard="auto")
    assert clean(picture).card["config"]["discard"] == ()
    assert torch.equal(clean(picture).tokens, clean.replace(discard="none")(picture).tokens)


def test_auto_depends_on_model_block_and_timestep_alone(tiny) -> None:
    """Other sizes, seeds, noises and first images: the same channels, at the price of no further search."""
    expected = tiny(pictures(1)[0]).card["config"]["discard"]
    fresh = FeatureExtractor.from_pretrained(
        "ditf-tiny", device="cpu", block=5, timestep=100, size=32, ensemble=2, seed=7, discard="auto"
    )
    black = np.zeros((40, 40, 3), np.uint8)
    assert fresh([black] * 8)[0].card["config"]["discard"] == expected


def test_the_text_encoders_are_asked_once_for_prompts_and_calibration(monkeypatch) -> None:
    fx = tiny_flux(discard="auto")
    encoded = []
    encode = fx.backbone._encode
    monkeypatch.setattr(fx.backbone, "_encode", lambda new, *rest: encoded.append(sorted(new)) or encode(new, *rest))
    fx(pictures(1, 64)[0], prompt="a cat")
    assert encoded == [["", "a cat"]]


# ---- what is made of a report ------------------------------------------------------------------------------------


def test_the_massive_channels_are_a_feature_map_of_their_own(tiny) -> None:
    report = find_massive_channels(tiny, pictures(8), blocks=[2, 5])
    raw = tiny.replace(normalization="none", discard="none")(pictures(1)[0])
    only = report.feature_map(raw)
    assert (only.tokens.shape, only.grid, only.image_size) == ((144, 1), raw.grid, raw.image_size)
    assert torch.equal(only.tokens[:, 0], raw.tokens[:, 91])
    with pytest.raises(InputError, match="channel 91 was discarded"):
        report.feature_map(tiny(pictures(1)[0]))


@pytest.mark.parametrize(("channels", "message"), [([], "at least one"), ([1, 1], "distinct"), ([8], r"0\.\.7")])
def test_channels_that_cannot_be_shown_are_named(channels, message) -> None:
    with pytest.raises(InputError, match=message):
        channel_map(FeatureMap(tokens=torch.ones(6, 8), grid=(2, 3), image_size=(20, 30)), channels)


def test_a_report_is_plain_json_whatever_the_tokens() -> None:
    for x in (torch.zeros(8, 5, 12), torch.ones(1, 1, 1), tokens(1, 2, 8) * (torch.arange(8) == 3)):
        document = json.loads(json.dumps(massive_report(x).to_dict(), allow_nan=False))
        assert document["layers"][0]["width"] == x.shape[-1]
        assert document["definition"] == {"ratio": 10.0, "top": 10, "images": 0.95, "one_sign": 0.9}
    assert massive_report(torch.zeros(8, 5, 12)).channels == ()
    assert math.isinf(massive_report(torch.eye(12)[3].expand(8, 5, 12)).ratio[0])


def test_plots_are_figures_that_need_no_display(tiny, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    report = find_massive_channels(tiny, pictures(8), blocks=[0, 5])
    figures = {"map": report.plot(), "massive": report.at(5).plot(), "none": report.at(0).plot()}
    assert "matplotlib.pyplot" not in sys.modules or "Agg" in figures["map"].canvas.__class__.__name__
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    words = " ".join(text.get_text() for axes in figures["massive"].axes for text in axes.texts)
    assert "91: " in words
    framed = [patch.get_xy() for patch in figures["map"].axes[0].patches]
    labels = [label.get_text() for label in figures["map"].axes[0].get_xticklabels()]
    assert framed == [(labels.index("91") - 0.5, 0.5)]


def test_plots_say_what_is_missing(tiny, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(InputError, match=r"pip install \"ditf\[plots\]\""):
        massive_report(tokens()).plot()


# ---- what cannot be used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(8), r"tokens: got \(8,\)"),
        (torch.zeros(0, 8), r"tokens: got \(0, 8\)"),
        (torch.zeros(3, 8, dtype=torch.int64), "int64"),
        ([], "at least one image"),
        ([torch.ones(3, 8), torch.ones(3, 9)], "9 channels, expected|got '9 channels'"),
        (torch.full((3, 8), torch.nan), "finite"),
        (torch.full((3, 8), torch.inf), "finite"),
        ([np.zeros((3, 8))], "ndarray"),
    ],
)
def test_tokens_that_cannot_be_used_are_named(x, message) -> None:
    with pytest.raises(InputError, match=message):
        massive_report(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": []}, "images: got 'none'"),
        ({"blocks": []}, "blocks: got"),
        ({"blocks": [8]}, "blocks: got 8"),
        ({"timesteps": []}, "timesteps: got"),
        ({"timesteps": [20, 20]}, "distinct"),
        ({"timesteps": [1001]}, "timestep: got 1001"),
        ({"prompts": []}, "prompts: got"),
        ({"ratio": 0.5}, "ratio: got 0.5"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(tiny, options, message) -> None:
    with pytest.raises(InputError, match=message):
        find_massive_channels(tiny, **{"images": pictures(1), **options})


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"block 3, timestep None, expected a layer of the report: tokens"):
        massive_report(tokens()).at(3)


@pytest.mark.verify
def test_kernel_and_twin_agree_on_the_way() -> None:
    x = tokens(2, 12, 32)
    x[..., 5] += 40
    before = verification_counts().get("massive_channels", 0)
    assert massive_report(x, fused="verify").channels == (5,)
    assert verification_counts()["massive_channels"] == before + 2
