"""Training goes down, can be killed at any step, and leaves a checkpoint that diffusers loads."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ditf.errors import DitfError, InputError, ModelError, StoreError
from ditf.tiny import growth, train
from ditf.tiny.growth import GrowthRow
from ditf.tiny.network import build, flow_loss, load_weights
from ditf.tiny.pool import Pool, PoolRecipe, build_pool
from ditf.tiny.train import Recipe, Training

SMALL = {
    "width": 32, "heads": 2, "double_blocks": 1, "single_blocks": 1, "sizes": (16, 8), "batch": 4,
    "warmup": 2, "average": 0.9,
}  # fmt: skip
_VARIANTS = ("raw", "layernorm", "adaln", "adaln_discard")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_network_starts_as_the_zero_function():
    model = build(width=32, heads=2, double_blocks=1, single_blocks=1)
    pictures, noise = torch.rand(2, 3, 16, 8), torch.randn(2, 3, 16, 8)
    loss = flow_loss(model, pictures, noise, torch.tensor([0.2, 0.7]))
    assert loss.item() == pytest.approx(float((noise - pictures).square().mean()), rel=1e-6)


def test_the_loss_falls():
    run = Training(Recipe(**SMALL, images=4 * 60, learning_rate=5e-3))
    losses = [run.advance() for _ in range(60)]
    assert run.progress == 1
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_the_learning_rate_warms_up_holds_and_falls():
    run = Training(Recipe(**SMALL, images=4 * 20, learning_rate=1e-3, decay=0.25))
    rates = []
    for _ in range(20):
        run.advance()
        rates.append(run.learning_rate)
    assert rates[0] == pytest.approx(5e-4)
    assert rates[1:15] == pytest.approx([1e-3] * 14)
    assert rates[16:] == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4])


@pytest.mark.parametrize(("optimiser", "moments"), [
    ("adamw", {"step", "exp_avg", "exp_avg_sq"}), ("muon", {"step", "exp_avg", "exp_avg_sq", "momentum_buffer"}),
])  # fmt: skip
def test_a_killed_and_resumed_run_ends_bitwise_equal(tmp_path, optimiser, moments):
    recipe = Recipe(
        **SMALL, images=4 * 7, clutter=0.5, occluded=0.5, viewpoint=0.5, curriculum=0.5, optimiser=optimiser
    )
    unbroken = Training(recipe)
    for _ in range(7):
        unbroken.advance()
    unbroken.save(_folder(tmp_path / "unbroken"))

    broken = Training(recipe)
    for _ in range(3):
        broken.advance()
    broken.save(_folder(tmp_path / "broken"))
    broken.advance()  # a step that is lost
    resumed = Training.load(tmp_path / "broken")
    assert resumed.step == 3
    for _ in range(4):
        resumed.advance()
    resumed.save(tmp_path / "broken")

    one, other = (load_file(tmp_path / name / "state.safetensors") for name in ("unbroken", "broken"))
    assert one.keys() == other.keys()
    assert {name.split(".")[0] for name in one} == {"model", "average", *moments}
    assert all(torch.equal(one[name], other[name]) for name in one)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert models[0] == models[1]


def test_the_command_line_trains_stops_and_goes_on(tmp_path):
    flags = [
        "--width",
        "32",
        "--heads",
        "2",
        "--double-blocks",
        "1",
        "--single-blocks",
        "1",
        "--sizes",
        "16",
        "8",
        "--batch",
        "4",
        "--log-every",
        "2",
        "--measure-every",
        "0",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main(["--out", str(whole), "--images", "24", *flags]) == 0
    assert train.main(["--out", str(parts), "--images", "24", "--stop-after", "0", *flags]) == 0
    assert _rows(parts) == []  # one step only
    assert train.main(["--out", str(parts), "--resume", str(parts), "--log-every", "2", "--measure-every", "0"]) == 0
    assert [row[:2] for row in _rows(parts)] == [["2", "8"], ["4", "16"], ["6", "24"]]
    assert [(row[0], row[3]) for row in _rows(parts)] == [(row[0], row[3]) for row in _rows(whole)]
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert json.loads((parts / "card.json").read_text())["training"]["images"] == 24


def test_rows_of_a_lost_leg_are_dropped(tmp_path):
    table = tmp_path / "loss.csv"
    table.write_text("step,images,seconds,loss,learning_rate\n2,8,1.0,0.5,1e-3\n4,16,2.0,0.4,1e-3\n")
    assert train._kept_rows(table, 3).splitlines()[1:] == ["2,8,1.0,0.5,1e-3"]
    rows = [GrowthRow(step, 4 * step, 1.5, 0.25, 7, 3.5, 10.0, 11.0, 12.0, 13.0) for step in (2, 4)]
    growth.write_rows(tmp_path, rows)
    assert growth.read_rows(tmp_path) == rows
    assert growth.read_rows(tmp_path, step=3) == rows[:1]


def test_growth_finds_a_planted_channel_and_scores_what_discarding_it_gives():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(width=32, heads=2, double_blocks=1, single_blocks=1).eval()
    with torch.no_grad():  # the blocks start as the identity: what the embedder makes reaches the measured block
        model.x_embedder.bias[5] = 300.0
    channel, ratio, pck = growth.measure(model, pairs=4)
    assert channel == 5
    assert ratio > 100
    assert pck["layernorm"] == pck["adaln"]  # its AdaLN is zero
    assert pck["adaln_discard"] != pck["adaln"]


def test_a_harder_batch_comes_with_the_curriculum():
    run = Training(Recipe(**SMALL, images=400, clutter=1.0, occluded=1.0, viewpoint=1.0, styled=1.0, curriculum=0.5))
    options = []
    for run.step in (0, 25, 50, 99):
        drawn = [run._scene_options(np.random.default_rng(seed)) for seed in range(40)]
        options.append(
            tuple(
                np.mean([one[name] not in (0, "flat") for one in drawn])
                for name in ("clutter", "occluders", "viewpoint", "style")
            )
        )
    assert options[0] == (0, 0, 0, 0)
    assert all(0.25 < share < 0.75 for share in options[1])
    assert options[2] == options[3] == (1, 1, 1, 1)


def test_the_card_says_how_hard_the_pictures_were():
    said = Training(Recipe(**SMALL, images=4, clutter=0.3, styled=0.25)).card()["training"]["data"]
    assert said.endswith(
        "plain backgrounds, clutter in 30% of the batches, shading or grain in 25% of the batches; 16 and 8 px"
    )


def test_a_pool_takes_the_place_of_drawing_and_must_be_large_enough(tmp_path):
    build_pool(tmp_path, PoolRecipe(images=8, size=16), processes=1)
    run = Training(Recipe(**SMALL, images=400, curriculum=0.5))
    run.pool = train._pool(tmp_path, run)
    pictures, noise, sigma = run._batch(decaying=False)
    size = pictures.shape[-1]
    expected = Pool.open(tmp_path).batch(0, 0, 4, size=size, reach=0.2)
    assert torch.equal(((pictures + 1) * 127.5).round().to(torch.uint8), expected)
    assert noise.shape == pictures.shape
    assert sigma.shape == (4,)
    with pytest.raises(InputError, match="got 16, expected pictures of at least 24 px"):
        train._pool(tmp_path, Training(Recipe(**{**SMALL, "sizes": (24, 8)}, images=4)))


def test_queries_and_keys_are_normalised_unless_a_recipe_says_no():
    import torch.nn as nn

    norms = [
        build(width=32, heads=2, qk_norm=wanted).single_transformer_blocks[0].attn.norm_q for wanted in (True, False)
    ]
    assert isinstance(norms[0], nn.RMSNorm)
    assert isinstance(norms[1], nn.Identity)
    assert Training(Recipe(**SMALL, images=4, qk_norm=False)).advance() > 0


@pytest.mark.parametrize("name", train.RECIPES)
def test_named_recipes_are_whole(name):
    assert Recipe(**train.RECIPES[name]).batch > 1


def test_smoke_fails_where_the_loss_does_not_fall(monkeypatch, capsys):
    monkeypatch.setattr(train, "measure", lambda model: (0, 1.0, dict.fromkeys(_VARIANTS, 0.0)))
    monkeypatch.setitem(train.RECIPES, "smoke", {**SMALL, "single_blocks": 2, "images": 200, "learning_rate": 1e-9})
    assert train.main(["--smoke"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 200
    assert "expected less than half" in err


@pytest.mark.slow
def test_smoke_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "ditf.tiny.train", "--smoke"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["last loss"] < said["first loss"] / 2


def test_a_full_disk_ends_the_run_in_one_sentence_and_keeps_the_last_good_state(tmp_path, monkeypatch, capsys):
    flags = ["--width", "32", "--heads", "2", "--double-blocks", "1", "--single-blocks", "1", "--batch", "4"]
    out = ["--out", str(tmp_path), "--measure-every", "0"]
    assert train.main([*out, "--images", "8", "--sizes", "16", "8", *flags]) == 0
    state = (tmp_path / "state.safetensors").read_bytes()

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert train.main([*out, "--resume", str(tmp_path), "--images", "16"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert (tmp_path / "state.safetensors").read_bytes() == state
    assert Training.load(tmp_path).step == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_run_is_not_resumed_in_another_shape(tmp_path):
    run = Training(Recipe(**SMALL, images=8))
    run.save(tmp_path)
    with pytest.raises(StoreError, match="no training can be resumed"):
        Training.load(tmp_path, width=64)


def test_a_checkpoint_loads_in_diffusers_and_starts_another_run(tmp_path):
    from diffusers import FluxTransformer2DModel

    run = Training(Recipe(**SMALL, images=8))
    run.advance()
    run.save(_folder(tmp_path / "one"))
    for path in tmp_path.glob("one/*"):
        assert not path.name.startswith(".")  # no temporary file is left
    model = FluxTransformer2DModel.from_config(json.loads((tmp_path / "one" / "config.json").read_text()))
    load_weights(model, tmp_path / "one")
    expected = {name: value.half().float() for name, value in run.average.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "one" / "ditf.json").read_text()) == {"kind": "pixel", "patch": 4}

    other = Training(Recipe(**SMALL, images=8))
    other.start_from(tmp_path / "one")
    other.advance()
    training = other.card()["training"]
    assert training["images"] == 8
    assert training["started from"]["images"] == 4


def test_extractor_takes_a_fresh_checkpoint(tmp_path):
    import ditf

    run = Training(Recipe(**SMALL, images=4))
    run.advance()
    run.save(tmp_path)
    fx = ditf.FeatureExtractor.from_pretrained(str(tmp_path), block=1, timestep=50, ensemble=1, size=16)
    assert fx(np.zeros((16, 16, 3), np.uint8)).tokens.shape == (16, 32)


def test_the_last_good_state_survives_a_loss_that_is_not_finite(tmp_path):
    run = Training(Recipe(**SMALL, images=40))
    run.advance()
    run.save(tmp_path)
    with torch.no_grad():
        run.model.proj_out.bias.fill_(torch.nan)
    with pytest.raises(DitfError, match="the loss is nan at step 1"):
        run.advance()
    assert Training.load(tmp_path).step == 1


def test_what_cannot_be_resumed_or_started_is_said_in_one_sentence(tmp_path, capsys):
    with pytest.raises(StoreError, match="no training can be resumed"):
        Training.load(tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"half a file")
    with pytest.raises(StoreError, match="no training can be resumed"):
        Training.load(tmp_path)
    assert train.main(["--out", str(tmp_path), "--images", "8"]) == 1
    assert "holds a training already" in capsys.readouterr().err
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="another shape"):
        Training(Recipe(**SMALL, images=8)).start_from(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        Training(Recipe(**SMALL, images=8)).start_from(tmp_path / "nowhere")


@pytest.mark.parametrize("recipe", [
    {}, {"images": 8, "minutes": 1.0}, {"images": 0}, {"minutes": -1.0}, {"images": 8, "batch": 0},
    {"images": 8, "sizes": (30, 16)}, {"images": 8, "optimiser": "sgd"}, {"images": 8, "clutter": 1.5},
])  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(recipe):
    with pytest.raises(InputError):
        Recipe(**recipe)


def _folder(path):
    path.mkdir()
    return path


def _rows(folder):
    table = folder / "loss.csv"
    return [line.split(",") for line in table.read_text().splitlines()[1:]] if table.is_file() else []
