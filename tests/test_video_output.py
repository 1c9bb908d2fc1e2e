"""Masks and tracks on disk and in pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditf import InputError, StoreError, Tracks
from ditf.video import (
    TrackPainter,
    TrackStep,
    draw_labels,
    load_mask,
    load_tracks,
    palette,
    save_mask,
    save_tracks,
    write_tracks_csv,
)


def test_the_palette_is_that_of_davis() -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 7: (128, 128, 128),
             8: (64, 0, 0), 15: (192, 128, 128), 22: (0, 192, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {i: tuple(palette()[i].tolist()) for i in known} == known
    assert len(np.unique(palette(), axis=0)) == 256


def test_a_mask_survives_its_file(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (37, 23)).astype(np.uint8)
    save_mask(tmp_path / "a.png", mask)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == mask).all()
        assert (np.asarray(image.convert("RGB")) == palette()[mask]).all()
    assert (load_mask(tmp_path / "a.png").numpy() == mask).all()
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "I;16"])
def test_grey_pictures_are_masks_by_their_values(tmp_path: Path, mode: str) -> None:
    ids = np.zeros((6, 8), np.uint8)
    ids[2:, 3:] = 255
    image = Image.fromarray(ids)
    image = Image.fromarray(ids.astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "a.png")
    expected = ids.astype(bool) if mode == "1" else ids
    assert (load_mask(tmp_path / "a.png").numpy() == expected).all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", "no such file"),
        ("text.png", "cannot be read"),
        ("photo.jpg", "is a JPEG, which blurs ids"),
        ("colours.png", "a picture in colours"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "text.png").write_text("nothing")
    Image.new("L", (8, 8)).save(tmp_path / "photo.jpg")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "colours.png")
    with pytest.raises(InputError, match=words):
        load_mask(tmp_path / name)


def test_ids_above_what_a_png_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="id 300.*at most 255"):
        save_mask(tmp_path / "a.png", np.full((4, 4), 300))
    with pytest.raises(StoreError, match="does not exist"):
        save_mask(tmp_path / "none" / "a.png", np.zeros((4, 4), np.uint8))


def test_objects_are_tinted_and_outlined_and_the_rest_is_left_as_it_is() -> None:
    image = Image.new("RGB", (20, 10), (100, 100, 100))
    mask = np.zeros((10, 20), np.int64)
    mask[2:8, 5:15] = 2
    drawn = np.asarray(draw_labels(image, mask))
    assert (drawn[mask == 0] == 100).all()
    assert (drawn[4:6, 8:12] == [50, 114, 50]).all()  # half way to (0, 128, 0)
    assert (drawn[2, 5:15] == [0, 128, 0]).all()
    assert (np.asarray(draw_labels(image, mask * 150)) == np.asarray(draw_labels(image, mask // 2 * 45))).all()  # 300
    with pytest.raises(InputError, match=r"\(9, 20\)"):
        draw_labels(image, mask[:9])


def tracks() -> Tracks:
    rng = torch.Generator().manual_seed(0)
    return Tracks(torch.rand(5, 3, 2, generator=rng) * 90, torch.rand(5, 3, generator=rng) > 0.4,
                  torch.rand(5, 3, generator=rng), (90, 120))  # fmt: skip


def test_tracks_survive_their_arrays(tmp_path: Path) -> None:
    saved, loaded = tracks(), load_tracks(save_tracks(tmp_path / "a.npz", tracks()))
    for name in ("points", "visible", "score"):
        assert (getattr(saved, name) == getattr(loaded, name)).all()
    assert loaded.image_size == (90, 120)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["points"].shape == (5, 3, 2)
        assert set(file) == {"points", "visible", "score", "image_size"}


def test_tracks_become_a_table(tmp_path: Path) -> None:
    saved = tracks()
    save_tracks(tmp_path / "a.csv", saved)
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    row = rows[3 * 2 + 1]
    assert (row["frame"], row["point"], row["time"]) == ("2", "1", "")
    assert [float(row["x"]), float(row["y"])] == pytest.approx(saved.points[2, 1].tolist(), abs=1e-3)
    assert [int(r["visible"]) for r in rows] == saved.visible.flatten().int().tolist()


def test_a_table_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    step = TrackStep(torch.zeros(1, 2), torch.ones(1, dtype=torch.bool), torch.ones(1))

    def write() -> None:
        with write_tracks_csv(tmp_path / "a.csv") as add:
            add(0, 0.0, step)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_tracks_that_cannot_be_written_or_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.csv or \.npz"):
        save_tracks(tmp_path / "a.txt", tracks())
    for ending in ("csv", "npz"):
        with pytest.raises(StoreError, match="choose"):
            save_tracks(tmp_path / "none" / f"a.{ending}", tracks())
    with pytest.raises(StoreError, match="no such file"):
        load_tracks(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("nothing")
    np.savez(tmp_path / "other.npz", points=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(StoreError, match="cannot be read"):
            load_tracks(tmp_path / name)


def test_points_are_drawn_where_they_are_filled_while_visible_with_a_trail() -> None:
    image, painter = Image.new("RGB", (80, 60), (0, 0, 0)), TrackPainter()
    for x in (20, 30, 40):
        step = TrackStep(torch.tensor([[float(x), 30.0], [60.0, 10.0]]), torch.tensor([True, False]), torch.ones(2))
        drawn = np.asarray(painter.draw(image, step)).astype(int)
    assert drawn[30, 40].max() > 200  # the disc
    assert drawn[30, 22].max() > 80  # the trail
    assert drawn[10, 60].max() == 0  # hollow
    assert drawn[8:13, 57:64].max() > 60  # its rim
    assert drawn[50:].max() == 0
