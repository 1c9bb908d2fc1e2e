"""Images become features as the config says, one way, whatever the batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ditf
from ditf import FeatureExtractor, InputError
from ditf.extractor import noise_generator
from ditf.images import prepare

SMALL = {"size": 64, "ensemble": 2, "timestep": 260}


def photo(seed: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    """Smooth random colours: as unrelated as two images can be."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def fx() -> FeatureExtractor:
    return FeatureExtractor.from_pretrained("ditf-tiny", truncate=False, device="cpu", **SMALL)


def with_config(fx: FeatureExtractor, **overrides) -> FeatureExtractor:
    other = copy.copy(fx)
    other.config = fx.config.replace(**overrides)
    return other


def count_forwards(fx: FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the token batches that went through the transformer, one per forward."""
    shapes: list[tuple[int, ...]] = []
    run = fx.backbone.run

    def counted(blocks, inputs, grid, **options):
        shapes.append(tuple(inputs["hidden_states"].shape))
        return run(blocks, inputs, grid, **options)

    monkeypatch.setattr(fx.backbone, "run", counted)
    return shapes


def test_a_feature_map_fits_its_image(fx) -> None:
    f = fx(photo(0))
    assert (f.grid, f.image_size, f.block, f.timestep) == ((12, 16), (48, 64), fx.config.block, 260.0)
    assert f.tokens.shape == (192, 128)
    assert f.tokens.dtype == torch.float32
    torch.testing.assert_close(f.inverse_norm, 1 / f.tokens.norm(dim=1), rtol=1e-5, atol=0)
    assert f.card["model"] == "ditf-tiny"
    assert f.card["config"]["timestep"] == 260


def test_the_feature_is_mean_discard_norm_modulation(fx) -> None:
    """Every step written out in float64 from the tokens entering the block."""
    config = fx.config.replace(discard=(91, 3))
    image = prepare(photo(0), config, 4)
    noised = fx._noised_latents(image, config)
    inputs = fx.backbone.inputs(noised, config.timestep, [""] * 2, None)
    tap = fx.backbone.run([config.block], inputs, (12, 16))[config.block]
    x = tap.tokens.double().mean(0)  # (N, D)
    x[:, [91, 3]] = 0
    expected = F.layer_norm(x, (128,), eps=1e-6) * (1 + tap.scale[0].double()) + tap.shift[0].double()
    found = with_config(fx, discard=(91, 3))(photo(0)).tokens
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_output_discard_and_per_token_topk_follow_their_formulas(fx) -> None:
    raw = with_config(fx, normalization="none", discard="none")(photo(0)).tokens.double()  # ensemble mean
    plain = with_config(fx, discard="none")(photo(0)).tokens.double()
    after = with_config(fx, discard=(7,), discard_at="output")(photo(0)).tokens.double()
    plain[:, 7] = 0
    torch.testing.assert_close(after, plain, rtol=1e-5, atol=1e-5)
    top = with_config(fx, topk_per_token=2, normalization="layernorm", discard="none")(photo(0)).tokens.double()
    zeroed = raw.scatter(1, raw.abs().topk(2, 1).indices, 0.0)
    torch.testing.assert_close(top, F.layer_norm(zeroed, (128,), eps=1e-6), rtol=1e-5, atol=1e-5)


def test_one_image_is_bitwise_the_same_alone_and_among_others(fx) -> None:
    alone = fx(photo(1)).tokens
    among = fx([photo(0), photo(1), photo(2, (64, 64))])
    assert torch.equal(among[1].tokens, alone)
    packed = copy.copy(fx)
    packed.batch_images = 4
    together = packed([photo(0), photo(1), photo(2, (64, 64))])[1].tokens
    assert float((together - alone).abs().max() / alone.abs().max()) < 1e-5


def test_forwards_are_as_few_as_the_packs(fx, monkeypatch) -> None:
    shapes = count_forwards(fx, monkeypatch)
    images = [photo(0), photo(1), photo(2, (64, 64)), photo(3)]
    fx(images)
    assert [s[0] for s in shapes] == [2, 2, 2, 2]
    shapes.clear()
    packed = copy.copy(fx)
    packed.batch_images = 2
    packed(images)
    assert sorted(s[:2] for s in shapes) == [(2, 192), (2, 256), (4, 192)]


def test_running_out_of_memory_halves_the_pack(fx, monkeypatch, caplog) -> None:
    packed = copy.copy(fx)
    packed.batch_images = 4
    whole = [f.tokens for f in packed([photo(i) for i in range(3)])]
    run = fx.backbone.run

    def small_machine(blocks, inputs, grid, **options):
        if len(inputs["hidden_states"]) > 2:
            raise torch.OutOfMemoryError("too much")
        return run(blocks, inputs, grid, **options)

    monkeypatch.setattr(fx.backbone, "run", small_machine)
    found = packed([photo(i) for i in range(3)])
    assert "out of memory" in caplog.text
    for f, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(f.tokens, expected, rtol=1e-4, atol=1e-4)


def test_many_blocks_come_from_one_forward(fx, monkeypatch) -> None:
    shapes = count_forwards(fx, monkeypatch)
    layers = fx([photo(0), photo(1)], blocks=[5, 1])
    assert len(shapes) == 2
    assert [list(one) for one in layers] == [[5, 1], [5, 1]]
    single = with_config(fx, block=5)(photo(1))
    assert torch.equal(layers[1][5].tokens, single.tokens)
    assert layers[1][1].block == 1


def test_noise_depends_on_image_seed_timestep_and_member(fx) -> None:
    def first(seed=0, timestep=260, member=0, image=0, shared=False):
        config = fx.config.replace(seed=seed, timestep=timestep, shared_noise=shared)
        return torch.rand(4, generator=noise_generator(prepare(photo(image), config, 4), config, member)).tolist()

    assert first() == first()
    distinct = [first(), first(seed=1), first(timestep=261), first(member=1), first(image=1)]
    assert len({tuple(d) for d in distinct}) == 5
    assert first(shared=True) == first(shared=True, image=1)
    assert first(seed=1, shared=True) != first(shared=True)


def same_cell_rate(fx: FeatureExtractor) -> tuple[float, int]:
    """Share of tokens of an image whose nearest token in an unrelated image lies in the same cell, and how many."""
    maps = fx([photo(seed) for seed in range(8)])
    same = total = 0
    for a, b in zip(maps[::2], maps[1::2], strict=True):
        nearest = (F.normalize(a.tokens, dim=1) @ F.normalize(b.tokens, dim=1).T).argmax(1)
        same += int((nearest == torch.arange(len(nearest))).sum())
        total += len(nearest)
    return same / total, total


def test_unrelated_images_do_not_match_by_their_noise(fx) -> None:
    """At t = 260 and ensemble 1 the same-cell rate stays at chance: below its 1 in 192 plus five standard deviations,
    doubled for what true image structure (borders) may add; shared noise fails the same check by far."""
    chance = 1 / 192
    rate, total = same_cell_rate(with_config(fx, ensemble=1))
    limit = 2 * (chance + 5 * (chance / total) ** 0.5)
    assert rate < limit
    shared, _ = same_cell_rate(with_config(fx, ensemble=1, shared_noise=True))
    assert shared > limit


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (1, 1)),
        Image.new("L", (30, 20), 128),
        Image.new("RGBA", (30, 20)),
        Image.new("RGB", (2, 20000)),
        np.zeros((20, 30, 3), np.uint8),
    ],
)
def test_odd_images_have_finite_features(fx, image) -> None:
    assert torch.isfinite(fx(image).tokens).all()


def test_fused_verify_without_triton_says_what_to_do(fx, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    verifying = copy.copy(fx)
    verifying.fused = "verify"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="TRITON_INTERPRET=1"):
            verifying(photo(0))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"block": 8}, r"block: got 8, expected an index in 0\.\.7"),
        ({"fused": "yes"}, "fused: got 'yes'"),
        ({"task": "depth"}, "task: got 'depth'"),
        ({"batch_images": 0}, "batch_images: got 0"),
        ({"protocol": "ditf-paper"}, "no published values"),
        ({"blok": 3}, "'blok'"),
    ],
)
def test_bad_settings_are_named_before_anything_runs(overrides, message) -> None:
    with pytest.raises(InputError, match=message):
        FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", **overrides)


def test_a_channel_the_model_does_not_have_is_named(fx) -> None:
    with pytest.raises(InputError, match=r"discard: got 128, expected channels in 0\.\.127"):
        with_config(fx, discard=(3, 128))(photo(0))


@pytest.mark.parametrize("blocks", [[], [3, 3], [8], [-1]])
def test_bad_blocks_are_named(fx, blocks) -> None:
    with pytest.raises(InputError, match="blocks: got"):
        fx(photo(0), blocks=blocks)


def test_prompts_go_one_to_each_image(fx) -> None:
    with pytest.raises(InputError, match=r"prompt: got .*one per image \(2\)"):
        fx([photo(0), photo(1)], prompt=["a cat"])


def test_a_truncated_model_refuses_deeper_blocks() -> None:
    shallow = FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", block=3, **SMALL)
    assert torch.isfinite(shallow(photo(0)).tokens).all()
    with pytest.raises(ditf.DitfError, match="truncate=False"):
        shallow(photo(0), blocks=[5])


def test_truncation_changes_no_bit(fx) -> None:
    shallow = FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", block=3, **SMALL)
    assert torch.equal(shallow(photo(0)).tokens, with_config(fx, block=3)(photo(0)).tokens)


def test_features_can_be_trained_on(fx) -> None:
    probe = torch.nn.Linear(128, 1)
    probe(fx(photo(0)).tokens).sum().backward()
    assert probe.weight.grad is not None
