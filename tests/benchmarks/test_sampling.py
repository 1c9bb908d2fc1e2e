"""Samples of pairs: those that the published evaluators draw."""

from __future__ import annotations

import numpy as np
import pytest

from ditf import InputError
from ditf.benchmarks import spair
from ditf.benchmarks.protocols import PROTOCOLS
from ditf.benchmarks.results import result_document, to_markdown
from ditf.benchmarks.runner import evaluate
from ditf.benchmarks.sampling import sample_pairs

from .minis import SPAIR, SPAIR_SHIFTS, Oracle, make_spair

CODE = PROTOCOLS["ditf-code"]


def test_twenty_pairs_of_every_category_are_drawn_as_published(tmp_path) -> None:
    pairs = spair.read(make_spair(tmp_path), "test", CODE)
    drawn = sample_pairs(pairs, 20)
    expected = []
    for category in ("bicycle", "cat"):
        own = sorted(pair.name for pair in SPAIR if pair.category == category)
        np.random.seed(42)
        expected += [own[i] for i in np.random.choice(len(own), 20)]
    assert [pair.name.partition(" (draw")[0] for pair in drawn.pairs] == expected
    assert len({pair.name for pair in drawn.pairs}) == 40
    assert sample_pairs(pairs, 20).list_hash == drawn.list_hash != pairs.list_hash


def test_a_pair_that_is_drawn_twice_counts_twice_and_the_result_says_what_was_drawn(tmp_path) -> None:
    """Cat: pairs of 4 of 4 and 0 of 1 right points; bicycle: one pair, 1 of 3."""
    pairs = spair.read(make_spair(tmp_path), "test", CODE)
    drawn, oracle = sample_pairs(pairs, 20), Oracle(SPAIR_SHIFTS)
    evaluation = evaluate([oracle], drawn, CODE, folder=tmp_path / "work")
    found = result_document(evaluation, drawn, {"title": "mini"}, card={})
    first = sum(pair.name.startswith(SPAIR[0].name) for pair in drawn.pairs)
    points = 4 * first + (20 - first) + 3 * 20
    assert found["counts"] == {**found["counts"], "pairs": 40, "points": points, "images": 5}
    assert len(oracle.seen) == 5
    assert found["methods"][0]["pck"]["0.1"]["point_micro"] == pytest.approx(100 * (4 * first + 20) / points, abs=1e-4)
    assert found["methods"][0]["pck"]["0.1"]["image_micro"] == pytest.approx(100 * (first + 20 / 3) / 40, abs=1e-4)
    assert found["data"]["sample"] == {
        "pairs_of_a_category": 20, "seed": 42, "with_replacement": True, "of_pairs": 3,
        "of_list_sha256": pairs.list_hash,
    }  # fmt: skip
    assert found["data"]["list_sha256"] == drawn.list_hash
    assert "A sample: 20 pairs of every category" in to_markdown(found)


def test_no_pairs_cannot_be_drawn(tmp_path) -> None:
    with pytest.raises(InputError, match="--sample: got 0"):
        sample_pairs(spair.read(make_spair(tmp_path), "test", CODE), 0)
