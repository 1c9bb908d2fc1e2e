"""Matches in files of other programs: read back without our reader, coordinates by their conventions."""

import csv
import json
import logging
import math
import sys

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditf import Homography, InputError, Matches, StoreError
from ditf.exports import export_colmap, export_hloc, image_names, load_matches, save_matches

IMAGES = ("a.jpg", "b.png")
SOURCE = [[0.0, 0.0], [12.25, 7.1], [30.0, 19.0], [12.25, 7.1], [5.0, 5.0]]
TARGET = [[3.0, 4.0], [40.0, 20.0], [-1.0, -1.0], [3.0, 4.0], [3.0, 4.0]]
SCORE = [0.9, 0.5, math.nan, 0.75, -0.125]


def some(**options):
    rows = (torch.tensor(v) for v in (SOURCE, TARGET, SCORE))
    return Matches(*rows, **{"source_size": (20, 31), "target_size": (24, 41)} | options)


def full():
    random = torch.Generator().manual_seed(0)
    topk = torch.rand(5, 3, 3, generator=random)
    topk[2, 1:, 2] = torch.nan
    return some(topk=topk, cycle_error=torch.tensor([0.0, 1.5, math.nan, 2.0, 30.0]), mirrored=False)


def same(one, other):
    for name in ("source", "target", "score", "topk", "cycle_error"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# One file


@pytest.mark.parametrize("ending", ["json", "csv", "npz", "h5", "HDF5"])
@pytest.mark.parametrize("matches", [some(), full(), some().select(torch.tensor([], dtype=torch.long))])
def test_what_is_written_reads_back_to_the_bit(tmp_path, ending, matches):
    path = save_matches(tmp_path / f"m.{ending}", matches, images=IMAGES)
    back = load_matches(path)
    same(matches, back)
    if ending != "csv":
        assert (back.source_size, back.target_size, back.mirrored) == ((20, 31), (24, 41), matches.mirrored)
    first = path.read_bytes()
    assert save_matches(path, matches, images=IMAGES).read_bytes() == first


@given(values=st.lists(st.floats(0, 1e6, width=32), min_size=5, max_size=5))
@settings(max_examples=30, deadline=None)
def test_csv_keeps_every_float32(tmp_path_factory, values):
    matches = Matches(torch.tensor(values[:4]).reshape(2, 2), torch.tensor(values[1:]).reshape(2, 2), torch.rand(2))
    same(matches, load_matches(save_matches(tmp_path_factory.mktemp("csv") / "m.csv", matches)))


def inliers_of(matches):
    return Homography(torch.eye(3), torch.tensor([True, False, False, True, False])[: len(matches)])


def test_json_has_the_names_of_the_command(tmp_path):
    path = save_matches(tmp_path / "m.json", full(), images=IMAGES, homography=inliers_of(full()), card={"model": "x"})
    document = json.loads(path.read_text())
    assert document["source"][0] == [0.0, 0.0]
    assert document["score"][2] is None
    assert document["source_size"] == [20, 31]
    assert document["images"] == {"source": "a.jpg", "target": "b.png"}
    assert document["homography"]["inliers"] == [0, 3]
    assert document["card"] == {"model": "x"}


def test_csv_is_a_plain_table(tmp_path):
    path = save_matches(tmp_path / "m.csv", full(), homography=inliers_of(full()))
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0])[:6] == ["source_x", "source_y", "target_x", "target_y", "score", "cycle_error"]
    assert [float(rows[1][c]) for c in ("source_x", "source_y", "target_x")] == pytest.approx([12.25, 7.1, 40.0])
    assert (rows[2]["target_x"], rows[2]["score"], rows[2]["cycle_error"]) == ("", "", "")
    assert [row["inlier"] for row in rows] == ["1", "0", "0", "1", "0"]
    assert float(rows[0]["top3_score"]) == pytest.approx(float(full().topk[0, 2, 2]))


def test_npz_and_h5_hold_arrays_of_the_same_names(tmp_path):
    keywords = {"images": IMAGES, "homography": inliers_of(full()), "card": {"block": 3}}
    with np.load(save_matches(tmp_path / "m.npz", full(), **keywords), allow_pickle=False) as arrays:
        npz = dict(arrays)
    with h5py.File(save_matches(tmp_path / "m.h5", full(), **keywords)) as file:
        h5 = {name: file[name][()] for name in file}
    assert set(npz) == set(h5)
    assert npz["homography"].dtype == h5["homography"].dtype == np.float64
    assert npz["images"].tolist() == [name.decode() for name in h5["images"]] == list(IMAGES)
    assert json.loads(str(npz["card"])) == json.loads(h5["card"]) == {"block": 3}
    np.testing.assert_array_equal(npz["source"], np.array(SOURCE, np.float32))
    np.testing.assert_array_equal(h5["topk"], full().topk.numpy())


# COLMAP


def read_colmap_features(path):
    header, *lines = path.read_text().splitlines()
    count, size = map(int, header.split())
    rows = np.array([[float(v) for v in line.split(" ")] for line in lines]).reshape(-1, 4 + size)
    assert (len(rows), size) == (count, 128)
    assert not rows[:, 4:].any()
    return rows[:, :2]


def read_colmap_matches(path):
    blocks = path.read_text().split("\n\n")
    assert blocks[-1] == ""
    names, *lines = blocks[0].splitlines()
    return names.split(" "), [tuple(map(int, line.split(" "))) for line in lines]


def test_colmap_counts_from_the_corner_so_the_first_pixel_lies_at_a_half(tmp_path):
    export_colmap(tmp_path, some(), IMAGES)
    source, target = (read_colmap_features(tmp_path / "features" / f"{name}.txt") for name in IMAGES)
    float32 = np.array(SOURCE, np.float32).astype(np.float64)
    np.testing.assert_array_equal(source, float32[[0, 1, 2, 4]] + 0.5)  # the fourth is the second again
    assert target.tolist() == [[3.5, 4.5], [40.5, 20.5]]
    width, height = 31, 20  # the last pixel's centre is half a pixel from the opposite corner
    assert (source.max(0) == [width - 0.5, height - 0.5]).all()


def test_colmap_matches_are_positions_in_the_lists_best_score_first_served(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ditf"):
        paths = export_colmap(tmp_path, some(), IMAGES)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        "features/a.jpg.txt",
        "features/b.png.txt",
        "matches.txt",
    ]
    names, pairs = read_colmap_matches(tmp_path / "matches.txt")
    assert names == list(IMAGES)
    assert pairs == [(0, 0), (1, 0), (3, 0)]  # of the twice given point (0.5 and 0.75), the second
    assert "1 matches" in caplog.text


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_colmap_files_lead_back_to_the_matches(tmp_path_factory, seed):
    random = np.random.default_rng(seed)
    source = random.permutation(600)[:40].reshape(20, 2) / 8
    target, score = random.integers(0, 6, (20, 2)), random.uniform(size=20)
    folder = tmp_path_factory.mktemp("colmap")
    rows = [torch.tensor(np.asarray(v), dtype=torch.float32) for v in (source, target, score)]
    export_colmap(folder, Matches(*rows), ("x/1.jpg", "x/2.jpg"))
    first, second = (read_colmap_features(folder / "features" / "x" / f"{i}.jpg.txt") for i in (1, 2))
    _, pairs = read_colmap_matches(folder / "matches.txt")
    assert [(*first[a] - 0.5, *second[b] - 0.5) for a, b in pairs] == [
        (*s, *t) for s, t in zip(source, target, strict=True)
    ]
    assert len(np.unique(second, axis=0)) == len(second)


# hloc


def test_hloc_files_have_its_fields_and_pixel_centres_at_whole_numbers(tmp_path):
    export_hloc(tmp_path, some(), ("day/a.jpg", "day/b.png"))
    with h5py.File(tmp_path / "features.h5") as file:
        keypoints = file["day/a.jpg"]["keypoints"][()]
        assert keypoints.dtype == np.float32
        assert keypoints.tolist() == np.array(SOURCE, np.float32)[[0, 1, 2, 4]].tolist()
        assert file["day/a.jpg"]["image_size"][()].tolist() == [31, 20]  # width, height
        assert file["day/b.png"]["keypoints"][()].tolist() == [[3, 4], [40, 20]]
    name0, name1 = (tmp_path / "pairs.txt").read_text().split()
    with h5py.File(tmp_path / "matches.h5") as file:  # as hloc names a pair
        group = file["/".join((name0.replace("/", "-"), name1.replace("/", "-")))]
        assert group["matches0"][()].tolist() == [0, 0, -1, 0]
        assert group["matching_scores0"][()].tolist() == [np.float32(0.9), 0.75, 0.0, -0.125]


def test_without_any_match_both_still_have_their_keypoints(tmp_path):
    lost = some().select(torch.tensor([2]))
    export_colmap(tmp_path, lost, IMAGES)
    assert len(read_colmap_features(tmp_path / "features" / "a.jpg.txt")) == 1
    assert len(read_colmap_features(tmp_path / "features" / "b.png.txt")) == 0
    export_hloc(tmp_path, lost, IMAGES)
    with h5py.File(tmp_path / "matches.h5") as file:
        assert file["a.jpg/b.png"]["matches0"][()].tolist() == [-1]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("x/a.jpg", "y/b.jpg"), ("a.jpg", "b.jpg")),
        (("x/a.jpg", "y/a.jpg"), ("x/a.jpg", "y/a.jpg")),
        (("/data/one/x/a.jpg", "/data/one/y/a.jpg"), ("x/a.jpg", "y/a.jpg")),
        (("a.jpg", "old/a.jpg"), ("a.jpg", "old/a.jpg")),
        (("http://h/p/a.jpg?w=3", "b.jpg"), ("a.jpg", "b.jpg")),
    ],
)
def test_image_names_are_short_and_differ(paths, names):
    assert image_names(*paths) == names


# Refusals


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: save_matches(f / "m.txt", some()), InputError, r"m\.txt.*\.json"),
        (lambda f: save_matches(f / "m", some()), InputError, r"\.npz"),
        (lambda f: load_matches(f / "m.pkl"), InputError, r"\.npz"),
        (lambda f: save_matches(f / "none" / "m.csv", some()), StoreError, "does not exist"),
        (lambda f: save_matches(f / "m.csv", some(), homography=Homography(torch.eye(3))), InputError, "0 inliers"),
        (lambda f: load_matches(f / "none.npz"), StoreError, "no such file"),
        (lambda f: export_colmap(f, some(), ("a.jpg", "a.jpg")), InputError, "different"),
        (lambda f: export_colmap(f, some(), ("a b.jpg", "c.jpg")), InputError, "blanks"),
        (lambda f: export_colmap(f, some(), ("/a.jpg", "c.jpg")), InputError, "relative"),
        (lambda f: export_colmap(f, some(), ("../a.jpg", "c.jpg")), InputError, "relative"),
        (lambda f: export_hloc(f, some(source_size=None), IMAGES), InputError, "source_size"),
        (lambda f: image_names("a.jpg", "a.jpg"), InputError, "two different"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, call, error, words):
    with pytest.raises(error, match=words):
        call(tmp_path)


@pytest.mark.parametrize("name", ["m.json", "m.csv", "m.npz", "m.h5"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"x,y\n1,2\n", b'{"source": [[1, 2]], "target": [], "score": []}'])
def test_files_of_others_are_refused_in_a_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read as matches"):
        load_matches(tmp_path / name)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        export_colmap(tmp_path / "taken", some(), IMAGES)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: save_matches(tmp_path / "m.h5", some()), lambda: export_hloc(tmp_path, some(), IMAGES)):
        with pytest.raises(InputError, match=r'pip install "ditf\[export\]"'):
            call()
    assert list(tmp_path.iterdir()) == []
