"""Features on disk: found by content, whole or not there, and no more of them than allowed."""

from __future__ import annotations

import os
import time

import pytest
import torch

from ditf import FeatureExtractor, FeatureMap, InputError, StoreError
from ditf.benchmarks.synthetic import random_checkpoint
from ditf.store import FeatureStore, digest, model_identity


def features(seed: int = 0, rows: int = 6) -> FeatureMap:
    tokens = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))
    return FeatureMap(tokens=tokens, grid=(1, rows), image_size=(10, 60), block=3, timestep=20.0, card={"seed": seed})


def key(seed: int) -> str:
    return digest({"seed": seed})


def test_what_was_put_comes_back_bit_for_bit(tmp_path) -> None:
    store = FeatureStore(tmp_path / "deep" / "store")
    assert store.get(key(0)) is None
    store.put(key(0), features(0))
    found = FeatureStore(tmp_path / "deep" / "store").get(key(0))
    assert found is not None
    assert torch.equal(found.tokens, features(0).tokens)
    assert (found.grid, found.image_size, found.block, found.card) == ((1, 6), (10, 60), 3, {"seed": 0})
    assert key(0) in store
    assert key(1) not in store


def test_a_key_is_the_same_whatever_the_order_of_its_parts_and_differs_with_each() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(x) for x in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]})}) == 5


def test_a_damaged_file_is_said_removed_and_computed_again(tmp_path, caplog) -> None:
    store = FeatureStore(tmp_path)
    store.put(key(0), features())
    [path] = tmp_path.glob("??/*.safetensors")
    path.write_bytes(path.read_bytes()[:60])
    assert store.get(key(0)) is None
    assert "computing it again" in caplog.text
    assert not path.exists()
    store.put(key(0), features())
    assert store.get(key(0)) is not None


def test_nothing_half_written_is_ever_found(tmp_path, monkeypatch) -> None:
    store = FeatureStore(tmp_path)

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(StoreError, match="No space left"):
        store.put(key(0), features())
    assert list(tmp_path.glob("??/*")) == []
    assert key(0) not in store


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    old, new = folder / ".x.safetensors.1.tmp", folder / ".y.safetensors.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    store = FeatureStore(tmp_path)
    assert (old.exists(), new.exists(), len(store)) == (False, True, 0)


def test_the_least_recently_used_give_way_and_those_kept_never_do(tmp_path) -> None:
    one = FeatureStore(tmp_path / "size")
    one.put(key(0), features())
    store = FeatureStore(tmp_path / "store", limit=3 * one.bytes)
    store.keep([key(0)])
    for seed in range(3):
        store.put(key(seed), features(seed))
    store.get(key(1))
    store.put(key(3), features(3))
    assert [key(seed) in store for seed in range(4)] == [True, True, False, True]
    assert store.bytes <= 3 * one.bytes


def test_what_one_owner_keeps_is_not_released_by_another(tmp_path) -> None:
    """Two rows of one run share a store: the second says what it needs after the first did."""
    one = FeatureStore(tmp_path / "size")
    one.put(key(0), features())
    store = FeatureStore(tmp_path / "store", limit=2 * one.bytes)
    store.keep([key(0)], owner="first row")
    store.put(key(0), features(0))
    store.keep([key(1)], owner="second row")
    for seed in (1, 2):
        store.put(key(seed), features(seed))
    assert [key(seed) in store for seed in range(3)] == [True, True, False]
    store.keep([], owner="first row")
    store.put(key(3), features(3))
    assert [key(seed) in store for seed in range(4)] == [False, True, False, True]


def test_a_later_run_knows_what_was_used_last(tmp_path) -> None:
    first = FeatureStore(tmp_path)
    for seed in range(3):
        first.put(key(seed), features(seed))
        path = first._path(key(seed))
        os.utime(path, (1000 + seed, 1000 + seed))
    first.get(key(0))
    later = FeatureStore(tmp_path, limit=first.bytes)
    later.put(key(3), features(3))
    assert [key(seed) in later for seed in range(4)] == [True, False, True, True]


def test_what_is_needed_together_may_pass_the_limit_and_is_said_once(tmp_path, caplog) -> None:
    store = FeatureStore(tmp_path, limit=1)
    store.keep(key(seed) for seed in range(3))
    for seed in range(3):
        store.put(key(seed), features(seed))
    assert len(store) == 3
    assert caplog.text.count("more than the limit") == 1
    store.keep([])
    assert len(store) == 0


def test_folders_and_limits_that_cannot_be_used_are_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose a writable folder"):
        FeatureStore(tmp_path / "file" / "store")
    with pytest.raises(InputError, match="limit"):
        FeatureStore(tmp_path, limit=0)


def test_a_model_is_known_by_its_weights_where_no_commit_names_it(tmp_path) -> None:
    folders = [tmp_path / str(seed) for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        random_checkpoint("ditf-tiny", folder, seed)
    identities = [model_identity(FeatureExtractor.from_pretrained(str(folder), device="cpu")) for folder in folders]
    assert identities[0]["weights"] != identities[1]["weights"]
    again = model_identity(FeatureExtractor.from_pretrained(str(folders[0]), device="cpu"))
    assert again["weights"] == identities[0]["weights"]
