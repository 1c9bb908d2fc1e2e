"""A pool holds what its recipe says, survives being stopped, and varies its pictures in the ways it promises."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from ditf.errors import InputError, StoreError
from ditf.tiny import pool_files
from ditf.tiny.pool import Pool, PoolRecipe, build_pool

RECIPE = PoolRecipe(images=12, size=16)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("pool")
    build_pool(folder, RECIPE, processes=1)
    return Pool.open(folder)


def _variants(picture: np.ndarray) -> set[bytes]:
    """Every flip, order of channels and shift by up to one pixel of a (16, 16, 3) picture, written out."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    return {
        np.ascontiguousarray(moved[:, ::flip, list(order)].transpose(2, 0, 1)).tobytes()
        for y, x in itertools.product(range(3), repeat=2)
        for moved in [padded[y : y + 16, x : x + 16]]
        for flip in (1, -1)
        for order in itertools.permutations(range(3))
    }


def test_a_pool_holds_the_pictures_of_its_recipe_and_its_card_tells_it(pool):
    assert len(pool) == 12
    assert pool.card["recipe"]["size"] == 16
    for index in (0, 11):
        assert np.array_equal(pool.pixels[index], RECIPE.picture(index))


def test_pictures_get_harder_along_a_pool(monkeypatch):
    asked = []

    def sample(seed, size, **options):
        asked.append(options)
        return namedtuple("Scene", "pixels")(np.zeros((size, size, 3), np.uint8))

    monkeypatch.setattr(pool_files, "sample_scene", sample)
    recipe = PoolRecipe(images=2000, size=16, clutter=0.4, occluded=0.2, viewpoint=0.5)
    for index in range(recipe.images):
        recipe.picture(index)
    for option, share in (("clutter", 0.4), ("occluders", 0.2), ("viewpoint", 0.5)):
        used = np.array([bool(options[option]) for options in asked])
        assert used.mean() == pytest.approx(share, abs=0.05)
        assert used[:500].mean() < share / 2 < used[-500:].mean()


def test_a_batch_is_made_of_flipped_shifted_recoloured_pictures_of_the_pool(pool):
    allowed = [_variants(picture) for picture in np.asarray(pool.pixels)]
    drawn = [picture.numpy().tobytes() for step in range(8) for picture in pool.batch(3, step, 16)]
    assert all(any(picture in variants for variants in allowed) for picture in drawn)
    assert len(set(drawn)) > 100
    assert all(any(picture in variants for picture in drawn) for variants in allowed)


def test_a_batch_depends_on_seed_and_step_alone(pool):
    one = pool.batch(3, 5, 8)
    pool.batch(3, 6, 8)
    assert torch.equal(one, pool.batch(3, 5, 8))
    assert torch.equal(one, pool.to("cpu").batch(3, 5, 8))
    assert not torch.equal(one, pool.batch(3, 6, 8))
    assert not torch.equal(one, pool.batch(4, 5, 8))
    assert one.shape == (8, 3, 16, 16)
    assert one.dtype == torch.uint8


def test_a_part_of_the_pool_gives_its_first_pictures_only(pool):
    allowed = set().union(*(_variants(picture) for picture in np.asarray(pool.pixels[:3])))
    assert all(picture.numpy().tobytes() in allowed for picture in pool.batch(0, 0, 64, reach=0.25))


def test_a_smaller_batch_is_scaled_down_and_keeps_what_is_plain(pool):
    colours = np.array([[250, 7, 99], [12, 200, 31]], np.uint8)
    plain = Pool(np.broadcast_to(colours[:, None, None], (2, 16, 16, 3)).copy(), pool.card)
    batch = plain.batch(0, 0, 32, size=10)
    assert batch.shape == (32, 3, 10, 10)
    assert torch.equal(batch, batch[..., :1, :1].expand_as(batch))
    means = pool.batch(0, 1, 256, size=10).float().mean(), pool.batch(0, 1, 256).float().mean()
    assert float(means[0]) == pytest.approx(float(means[1]), rel=0.1)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_pool_that_was_stopped_goes_on_and_ends_the_same(kept, pool, tmp_path, monkeypatch):
    rendered: list[int] = []
    render = pool_files._render_chunk

    def fail_after(path: Path, where: int, recipe: PoolRecipe, start: int) -> int:
        if len(rendered) == kept:
            raise KeyboardInterrupt
        rendered.append(start)
        return render(path, where, recipe, start)

    monkeypatch.setattr(pool_files, "_CHUNK", 4)
    monkeypatch.setattr(pool_files, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(pool_files, "_render_chunk", fail_after)
    with pytest.raises(KeyboardInterrupt):
        build_pool(tmp_path, RECIPE, processes=1)
    with pytest.raises(StoreError, match="no finished pool"):
        Pool.open(tmp_path)
    kept = -1
    build_pool(tmp_path, RECIPE, processes=1)
    assert rendered == [0, 4, 8]
    assert np.array_equal(Pool.open(tmp_path).pixels, pool.pixels)
    build_pool(tmp_path, RECIPE, processes=1)
    assert len(rendered) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pool.json", "pool.npy"]


@pytest.mark.slow
def test_several_processes_make_the_same_pool(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_files, "_CHUNK", 4)
    build_pool(tmp_path, RECIPE, processes=2)
    assert np.array_equal(Pool.open(tmp_path).pixels, pool.pixels)


def test_a_folder_of_another_recipe_is_left_alone_unless_told_otherwise(tmp_path):
    build_pool(tmp_path, PoolRecipe(images=2, size=8), processes=1)
    before = (tmp_path / "pool.npy").read_bytes()
    other = PoolRecipe(images=3, size=8)
    with pytest.raises(StoreError, match="images 2, now 3.*--rebuild"):
        build_pool(tmp_path, other, processes=1)
    assert (tmp_path / "pool.npy").read_bytes() == before
    build_pool(tmp_path, other, processes=1, rebuild=True)
    assert len(Pool.open(tmp_path)) == 3


def test_a_disk_that_is_or_gets_full_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pool_files, "_render_chunk", full)
    with pytest.raises(StoreError, match="No space left on device.*free some space"):
        build_pool(tmp_path, RECIPE, processes=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(StoreError, match="12 pictures needs .* GB and 0.0 GB are free; ask for fewer"):
        build_pool(tmp_path / "other", RECIPE, processes=1)


def test_damaged_pools_are_not_opened(pool, tmp_path):
    np.save(tmp_path / "pool.npy", np.zeros((3, 16, 16, 3), np.uint8))
    (tmp_path / "pool.json").write_text(json.dumps(pool.card))
    with pytest.raises(StoreError, match=r"got uint8 \(3, 16, 16, 3\).*make the pool again"):
        Pool.open(tmp_path)
    (tmp_path / "pool.json").write_text("{")
    with pytest.raises(StoreError, match=r"pool\.json: cannot be read"):
        Pool.open(tmp_path)


@pytest.mark.parametrize(("argument", "call"), [
    ("images", lambda _: PoolRecipe(images=0)),
    ("size", lambda _: PoolRecipe(images=1, size=4)),
    ("styles", lambda _: PoolRecipe(images=1, styles=("line",))),
    ("clutter", lambda _: PoolRecipe(images=1, clutter=1.5)),
    ("seed", lambda _: PoolRecipe(images=1, seed=-1)),
    ("count", lambda pool: pool.batch(0, 0, 0)),
    ("size", lambda pool: pool.batch(0, 0, 1, size=32)),
    ("reach", lambda pool: pool.batch(0, 0, 1, reach=0.0)),
])  # fmt: skip
def test_what_cannot_be_is_named(argument, call, pool):
    with pytest.raises(InputError, match=f"^{argument}"):
        call(pool)


def test_the_command_makes_a_pool_or_says_why_not(tmp_path):
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ditf.tiny.pool", "--out", str(tmp_path / "pool"), "--size", "8", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    refused = run("--images", "0")
    assert refused.returncode == 1
    assert refused.stderr == "error: images: got 0, expected at least 1\n"
    made = run("--images", "3", "--processes", "1")
    assert made.returncode == 0, made.stderr
    assert "3 pictures of 8 pixels" in made.stdout
    assert len(Pool.open(tmp_path / "pool")) == 3
