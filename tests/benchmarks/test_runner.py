"""Every image once, every pair from its features; killed at any moment, the same bytes in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ditf import FeatureMap, InputError, ModelError, StoreError
from ditf.benchmarks import spair, work
from ditf.benchmarks.methods import ModelMethod, Picture
from ditf.benchmarks.pairs import Problems, index_images
from ditf.benchmarks.protocols import PROTOCOLS
from ditf.benchmarks.runner import evaluate
from ditf.cli import main
from ditf.store import FeatureStore

from .minis import SPAIR_ERRORS, SPAIR_SHIFTS, Oracle, make_ap10k, make_pfpascal, make_pfwillow, make_spair

CODE = PROTOCOLS["ditf-code"]
RESULTS = ("r.json", "r.categories.csv", "r.pairs.csv", "r.md", "r.tex", "r.png")


@pytest.fixture
def pairs(tmp_path: Path):
    return spair.read(make_spair(tmp_path), "test", CODE)


# --- the command, stopped and resumed --------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
import torch; torch.set_num_threads(1)
from ditf.benchmarks.methods import ModelMethod
from ditf.benchmarks.runner import evaluate
from ditf.benchmarks import spair
from ditf.benchmarks.protocols import PROTOCOLS
from ditf.cli import main
from pathlib import Path
from tests.benchmarks.minis import Oracle, SPAIR_SHIFTS

def killed_at(kind, kill_at, work):
    # run in a child that gets SIGKILL before its kill_at-th extraction
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    extract, count = kind.extract, 0
    def counted(self, picture):
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return extract(self, picture)
    kind.extract = counted
    work()
    os._exit(0)

import ditf
ditf.FeatureExtractor.from_pretrained("ditf-tiny", device="cpu").backbone.transformer  # its imports, once for all
for arguments, kill_at in {runs!r}:
    print(killed_at(ModelMethod, kill_at, lambda: main(arguments)))
pairs = spair.read(Path({spair!r}), "test", PROTOCOLS["ditf-code"])
print(killed_at(Oracle, 4, lambda: evaluate(
    [Oracle(SPAIR_SHIFTS)], pairs, PROTOCOLS["ditf-code"], folder={oracle!r})))
"""

MAKERS = {"spair": make_spair, "ap10k": make_ap10k, "pfpascal": make_pfpascal, "pfwillow": make_pfwillow}
IMAGES = {"spair": 5, "ap10k": 2, "pfpascal": 4, "pfwillow": 2}
KILL_AT = {"spair": 4, "ap10k": 2, "pfpascal": 3, "pfwillow": 2}


def arguments(name: str, root: Path, out: Path) -> list[str]:
    model = ["--model", "ditf-tiny", "--device", "cpu", "--ensemble", "1", "--size", "48"]
    return ["eval", name, "--data", str(root), *model, "--protocol", "ditf-code", "--out", str(out)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data sets, and in ``killed`` what their runs left when they were killed at about a half."""
    folder = tmp_path_factory.mktemp("killed")
    roots = {name: make(folder) for name, make in MAKERS.items()}
    runs = [(arguments(name, root, folder / "killed" / name / "r.json"), KILL_AT[name]) for name, root in roots.items()]
    script = SCRIPT.format(runs=runs, spair=str(roots["spair"]), oracle=str(folder / "killed" / "oracle"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 5, done.stderr
    return folder


def count_extractions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    extract = ModelMethod.extract

    def counted(self, picture):
        seen.append(picture.path.stem)
        return extract(self, picture)

    monkeypatch.setattr(ModelMethod, "extract", counted)
    return seen


@pytest.mark.parametrize("name", MAKERS)
def test_a_killed_run_goes_on_with_what_is_missing_and_ends_with_the_same_bytes(killed, name, monkeypatch) -> None:
    root = MAKERS[name](killed / "again")
    broken, whole = killed / "killed" / name / "r.json", killed / "whole" / name / "r.json"
    assert not broken.exists()
    seen = count_extractions(monkeypatch)
    assert main(arguments(name, root, broken)) == 0
    assert len(seen) == IMAGES[name] - (KILL_AT[name] - 1)
    assert main(arguments(name, root, whole)) == 0
    assert len(seen) == 2 * IMAGES[name] - (KILL_AT[name] - 1)
    for file in RESULTS:
        assert (broken.parent / file).read_bytes() == (whole.parent / file).read_bytes(), file
    assert json.loads(broken.with_suffix(".run.json").read_text())["seconds"]["evaluate"] > 0
    before = len(seen)
    assert main(arguments(name, root, whole)) == 0
    assert len(seen) == before  # nothing is left to do


def test_a_killed_run_of_known_answers_goes_on_to_the_closed_form(killed) -> None:
    """The bicycles come first: the fourth image is in the middle of the cats."""
    pairs = spair.read(make_spair(killed / "again"), "test", CODE)
    oracle = Oracle(SPAIR_SHIFTS)
    evaluation = evaluate([oracle], pairs, CODE, folder=killed / "killed" / "oracle")
    assert [path.stem for path in oracle.seen] == ["2008_000002", "2008_000003"]
    assert [one.errors.tolist() for one in evaluation.found["oracle"]] == SPAIR_ERRORS


# --- each once -------------------------------------------------------------------------------------------------------


def test_every_image_is_extracted_once_for_all_its_pairs(pairs, tmp_path) -> None:
    oracle = Oracle(SPAIR_SHIFTS)
    evaluation = evaluate([oracle], pairs, CODE, folder=tmp_path / "work")
    assert sorted(path.stem for path in oracle.seen) == sorted(SPAIR_SHIFTS)
    assert evaluation.images == 5
    evaluate([oracle], pairs, CODE, folder=tmp_path / "work")
    assert len(oracle.seen) == 5
    evaluate(
        [oracle], pairs, PROTOCOLS["dift"], folder=tmp_path / "other", store=FeatureStore(tmp_path / "work/features")
    )
    assert len(oracle.seen) == 5  # another protocol, the same features


def test_changed_pixels_or_settings_are_found_out(pairs, tmp_path) -> None:
    evaluate([Oracle(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "work")
    other = Oracle({**SPAIR_SHIFTS, "2008_000002": (0, 0)})
    evaluation = evaluate([other], pairs, CODE, folder=tmp_path / "work")
    assert len(other.seen) == 5
    assert evaluation.found["oracle"][0].predicted[0].tolist() == [40, 40]
    from PIL import Image

    path = pairs.folder / "JPEGImages" / "cat" / "2008_000001.jpg"
    Image.new("RGB", (160, 120)).save(path)
    again = Oracle(SPAIR_SHIFTS)
    evaluate([again], pairs, CODE, folder=tmp_path / "work")
    assert [path.stem for path in again.seen] == ["2008_000001"]


def test_small_units_and_little_memory_change_nothing(pairs, tmp_path, monkeypatch) -> None:
    plain = evaluate([Oracle(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "a")
    monkeypatch.setattr(work, "UNIT_PAIRS", 1)
    monkeypatch.setattr(work, "_MEMORY", 1)
    torn = evaluate([Oracle(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "b")
    assert len(list((tmp_path / "b" / "units").glob("*.safetensors"))) == 3
    for one, other in zip(plain.found["oracle"], torn.found["oracle"], strict=True):
        assert one.predicted.tolist() == other.predicted.tolist()
        assert np.allclose(one.score, other.score, atol=1e-6)


def test_the_number_of_threads_changes_no_bit(pairs, tmp_path) -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            folder = tmp_path / str(count)
            found.append(evaluate([Noise(SPAIR_SHIFTS)], pairs, CODE, folder=folder).found["oracle"])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.predicted.tobytes() + a.score.tobytes() == b.predicted.tobytes() + b.score.tobytes()


def test_features_of_finished_categories_give_way_to_the_limit(pairs, tmp_path) -> None:
    one_map = 300 * 192 * 4
    store = FeatureStore(tmp_path / "features", limit=4 * one_map)
    oracle = Oracle(SPAIR_SHIFTS)
    evaluate([oracle], pairs, CODE, folder=tmp_path / "work", store=store)
    assert len(oracle.seen) == 5
    assert store.bytes <= 4 * one_map
    assert len(store) == 3  # the cats, which came last


def test_a_damaged_unit_is_computed_again(pairs, tmp_path, caplog) -> None:
    oracle = Oracle(SPAIR_SHIFTS)
    first = evaluate([oracle], pairs, CODE, folder=tmp_path / "work")
    for path in (tmp_path / "work" / "units").glob("*.safetensors"):
        path.write_bytes(b"half of a unit")
    again = evaluate([oracle], pairs, CODE, folder=tmp_path / "work")
    assert "computing it again" in caplog.text
    for a, b in zip(first.found["oracle"], again.found["oracle"], strict=True):
        assert a.predicted.tolist() == b.predicted.tolist()


def test_progress_says_what_is_done_and_how_much_there_is(pairs, tmp_path) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate([Oracle(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "work", progress=lambda *one: told.append(one))
    for stage, total in (("images", 5), ("features", 5), ("pairs", 3)):
        steps = [(done, of) for name, done, of in told if name == stage]
        assert steps[0][0] == 0
        assert steps[-1] == (total, total)
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


# --- refused before the first forward --------------------------------------------------------------------------------


def test_a_folder_that_takes_no_files_is_refused_before_the_first_forward(pairs, tmp_path) -> None:
    oracle = Oracle(SPAIR_SHIFTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        evaluate([oracle], pairs, CODE, folder=tmp_path / "file")
    assert oracle.seen == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused_before_the_first_forward(pairs, tmp_path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(StoreError):
        evaluate([Oracle(SPAIR_SHIFTS)], pairs, CODE, folder=locked / "work")


def test_two_methods_of_one_name_are_refused(pairs, tmp_path) -> None:
    with pytest.raises(InputError, match="distinct names"):
        evaluate([Oracle(SPAIR_SHIFTS), Oracle({})], pairs, CODE, folder=tmp_path / "work")


def test_features_that_are_not_finite_are_an_error_that_names_the_image(pairs, tmp_path) -> None:
    class Broken(Oracle):
        def extract(self, picture):
            [(_, features)] = super().extract(picture)
            features.tokens[7, 3] = torch.nan
            return [(self, features)]

    with pytest.raises(ModelError, match="2009_000001"):
        evaluate([Broken(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "work")


# --- against the protocol written out --------------------------------------------------------------------------------


class Noise(Oracle):
    """Random features, so that no match is easy."""

    def extract(self, picture):
        [(_, features)] = super().extract(picture)
        seed = torch.Generator().manual_seed(sum(picture.path.stem.encode()))
        tokens = torch.randn(features.tokens.shape[0], 48, generator=seed)
        return [(self, FeatureMap(tokens=tokens, grid=features.grid, image_size=features.image_size))]


def naive(source: FeatureMap, target: FeatureMap, points: np.ndarray, dtype: torch.dtype) -> list[list[int]]:
    """Both maps upsampled to their images, every pixel normalised, the first best one: the published protocol."""
    up = [
        F.interpolate(f.map[None].to(dtype), f.image_size, mode="bilinear", align_corners=False)[0]
        for f in (source, target)
    ]
    pixels = F.normalize(up[1].flatten(1), dim=0)
    found = []
    for x, y in points.astype(int):
        similarity = F.normalize(up[0][:, y, x], dim=0) @ pixels
        best = int(np.argmax(similarity.double().numpy()))
        found.append([best % target.image_size[1], best // target.image_size[1]])
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_matches_are_those_of_the_published_protocol_written_out(pairs, tmp_path, dtype) -> None:
    method = Noise(SPAIR_SHIFTS)
    evaluation = evaluate([method], pairs, CODE, folder=tmp_path / "work", dtype=dtype)
    features = {}
    for one in evaluation.pairs:
        for path in (one.pair.source, one.pair.target):
            picture = Picture(path, index_images([path], Problems())[path], one.pair.category)
            [(_, features[path])] = method.extract(picture)
    for one, found in zip(evaluation.pairs, evaluation.found["oracle"], strict=True):
        expected = naive(
            features[one.pair.source], features[one.pair.target], one.pair.points,
            torch.float64 if dtype == "float32" else torch.float16,
        )  # fmt: skip
        assert found.predicted.tolist() == expected


def test_float16_differs_from_float32_where_features_share_a_direction(pairs, tmp_path) -> None:
    """Real features are alike: their cosines are near 1, where float16 cannot tell neighbours apart. One folder holds
    the work of both."""

    class Alike(Oracle):
        def extract(self, picture):
            [(_, features)] = super().extract(picture)
            features.tokens.add_(torch.full((192,), 0.5))
            return [(self, features)]

    exact, half = (
        evaluate([Alike(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "one", dtype=dtype).found["oracle"]
        for dtype in ("float32", "float16")
    )
    apart = [np.abs(a.predicted - b.predicted).max() for a, b in zip(exact, half, strict=True)]
    assert 0 < max(apart) <= 8  # a cell at most: PCK at 0.1 hardly moves, at 0.01 it does


def test_features_without_any_difference_are_found_at_the_first_pixel(pairs, tmp_path) -> None:
    class Same(Oracle):
        def extract(self, picture):
            [(_, features)] = super().extract(picture)
            features.tokens.zero_()
            return [(self, features)]

    evaluation = evaluate([Same(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "work")
    assert all((one.predicted == 0).all() for one in evaluation.found["oracle"])


def test_in_the_border_band_the_first_pixel_of_equal_ones_is_found(pairs, tmp_path) -> None:
    """Half a cell from the border bilinear features are constant: identity features answer with the band's edge."""
    import dataclasses

    pair = dataclasses.replace(
        pairs.pairs[0], target=pairs.pairs[0].source, points=np.array([[2.0, 60.0], [158.0, 60.0], [4.0, 60.0]]),
        truth=np.array([[2.0, 60.0], [158.0, 60.0], [4.0, 60.0]]),
    )  # fmt: skip
    one = dataclasses.replace(pairs, pairs=(pair,))
    found = evaluate([Oracle({})], one, CODE, folder=tmp_path / "work").found["oracle"][0]
    assert found.predicted[:, 0].tolist() == [0, 156, 4]
