"""Every kind of image a person has becomes upright 8-bit RGB, or one clear sentence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditf import ExtractConfig, InputError
from ditf.images import load_image, prepare

CONFIG = ExtractConfig(block=0, timestep=100, size=64)


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(np.uint8)


def test_array_tensor_pil_and_file_give_the_same_pixels(tmp_path: Path) -> None:
    array = gradient()
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    for source in (Image.fromarray(array), tensor, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(np.array(load_image(source)), array)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    array = gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to view
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.array(load_image(tmp_path / "turned.png")), np.rot90(array, -1))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.array(load_image(tmp_path / "deep.png"))[..., 1], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "HSV", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    assert load_image(image).mode == "RGB"
    assert load_image(image).size == image.size


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert np.array(load_image(image)).min() == 255


def test_a_palette_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "p.png", transparency=0)
    assert np.array(load_image(tmp_path / "p.png")).min() == 255


def test_a_truncated_jpeg_names_the_file_and_the_reason(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match=r"half\.jpg cannot be read .*truncated"):
        load_image(tmp_path / "half.jpg")


def test_a_missing_file_a_folder_and_a_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(InputError, match="no such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(InputError, match=r"note\.txt is no image"):
        load_image(tmp_path / "note.txt")


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        torch.zeros(4, 4, 3),
        torch.full((3, 4, 4), 2.0),
        torch.full((3, 4, 4), torch.nan),
        7,
        None,
    ],
)
def test_what_is_no_image_is_refused(source: object) -> None:
    with pytest.raises(InputError, match="image: got"):
        load_image(source)


@pytest.mark.parametrize(
    ("resize", "size", "rounding", "expected"),
    [
        ("longest", 640, "nearest", (480, 640)),  # 375 x 500 -> 480 x 640
        ("shortest", 480, "nearest", (480, 640)),
        ("longest", 650, "nearest", (480, 656)),  # 487.5 and 650 round to 30.47 and 40.6 tokens
        ("longest", 650, "floor", (480, 640)),
        ("stretch", (96, 32), "nearest", (96, 32)),
        ("stretch", 64, "nearest", (64, 64)),
        ("pad", 64, "nearest", (64, 64)),
    ],
)
def test_sides_follow_the_named_rule(resize, size, rounding, expected) -> None:
    config = CONFIG.replace(resize=resize, size=size, rounding=rounding)
    assert prepare(gradient(375, 500), config, 16).pixels.shape == (*expected, 3)


@pytest.mark.parametrize(
    ("height", "nearest", "even"),
    [(342, 464, 448), (354, 480, 480), (375, 496, 496)],  # 28.5, 29.5 and 31.25 tokens of 16
)
def test_half_a_token_goes_up_or_to_the_even_side(height, nearest, even) -> None:
    """The longest side goes from 480 to 640."""
    for rounding, expected in (("nearest", nearest), ("half-even", even)):
        config = CONFIG.replace(resize="longest", size=640, rounding=rounding)
        assert prepare(gradient(height, 480), config, 16).pixels.shape == (expected, 640, 3)


@pytest.mark.parametrize("size", [(1, 1), (2, 20000), (20000, 2)])
def test_extreme_shapes_keep_at_least_one_token(size: tuple[int, int]) -> None:
    prepared = prepare(Image.new("RGB", size[::-1]), CONFIG, 16)
    assert prepared.image_size == size
    assert min(prepared.pixels.shape[:2]) >= 16
    assert max(prepared.pixels.shape[:2]) == 64


def test_padding_centres_the_image_on_a_square() -> None:
    prepared = prepare(np.full((10, 30, 3), 255, np.uint8), CONFIG.replace(resize="pad", resample="nearest"), 4)
    assert (prepared.canvas, prepared.offset) == ((30, 30), (0, 10))
    rows = prepared.pixels[..., 0].max(1) > 0
    assert rows.nonzero()[0].tolist() == list(range(21, 43))  # pixels 10..19 of 30 on 64 rows


def test_a_multiple_that_cuts_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="multiple: got 24, expected a multiple of 16"):
        prepare(gradient(), CONFIG.replace(multiple=24), 16)


def test_pixels_are_scaled_to_minus_one_and_one() -> None:
    black_and_white = np.zeros((16, 16, 3), np.uint8)
    black_and_white[:, 8:] = 255
    tensor = prepare(black_and_white, CONFIG.replace(size=16, resample="nearest"), 16).tensor
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor[..., 0].unique().tolist() == [-1.0]
    assert tensor[..., -1].unique().tolist() == [1.0]
