"""Frames of files, folders and lists: what comes, in which order, and what is refused."""

from __future__ import annotations

import logging
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ditf import InputError, StoreError
from ditf.video import VideoWriter, frame_features, open_video
from ditf.video.frames import natural_key


def grey(value: int, size=(24, 32)) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]), (value, value, value))


def write_video(path: Path, values, size=(24, 32), rate=Fraction(10)) -> Path:
    with VideoWriter(path, rate) as writer:
        for value in values:
            writer.write(grey(value, size))
    return path


def levels(video) -> list[int]:
    """The middle grey of every frame."""
    return [int(np.asarray(frame.image)[8:16, 8:16].mean().round()) for frame in video]


def test_a_video_file_comes_frame_by_frame_with_its_times(tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "a.mp4", range(20, 220, 20)))
    assert (video.size, video.rate, video.count) == ((24, 32), 10, 10)
    assert np.abs(np.array(levels(video)) - np.arange(20, 220, 20)).max() <= 3  # compressed
    assert [f.index for f in video] == list(range(10))  # a second time, from the start
    assert [f.time for f in video] == pytest.approx([t / 10 for t in range(10)])
    assert all(f.image.mode == "RGB" and f.image.size == (32, 24) for f in video)


def test_a_limit_stops_before_the_next_frame_is_decoded(tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "a.mp4", range(20, 220, 20)), limit=3)
    assert video.count == 3
    assert len(list(video)) == 3


def test_every_frame_of_a_gif_comes_with_its_own_duration(tmp_path: Path) -> None:
    pictures = [grey(v) for v in (10, 90, 200)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[50, 200, 100], loop=0)
    video = open_video(tmp_path / "a.gif")
    assert (video.count, video.rate) == (3, 20)
    assert levels(video) == [10, 90, 200]
    assert [f.time for f in video] == pytest.approx([0, 0.05, 0.25])


def test_a_folder_is_read_in_natural_order_and_nothing_else_is(tmp_path: Path) -> None:
    for number, value in ((1, 10), (2, 20), (10, 100), (11, 110)):
        grey(value).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".frame3.png").write_text("hidden")
    (tmp_path / "frame5.png").mkdir()
    video = open_video(tmp_path)
    assert levels(video) == [10, 20, 100, 110]
    assert video.count == 4
    assert sorted(["b10", "B9", "a2b3", "a2b12", "a"], key=natural_key) == ["a", "a2b3", "a2b12", "B9", "b10"]


def test_a_list_may_hold_anything_that_is_an_image(tmp_path: Path) -> None:
    grey(77).save(tmp_path / "a.png")
    video = open_video([grey(5), np.full((24, 32, 3), 66, np.uint8), tmp_path / "a.png"])
    assert levels(video) == [5, 66, 77]
    assert video.name == "list of 3 images"


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_rotation_that_the_file_asks_for_is_applied(tmp_path: Path, turn: int) -> None:
    """The display matrix of a phone's video, written into the track header of an upright one."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0], pixels[:16, 32:, 1] = 230, 230  # left red, right top green
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 10) as writer:
        for _ in range(3):
            writer.write(Image.fromarray(pixels))
    turned(path, turn)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation % 360 == -turn % 360
    frame = next(iter(open_video(path))).image
    expected = np.rot90(pixels, -turn // 90)  # the matrix turns clockwise
    assert (frame.height, frame.width) == expected.shape[:2]
    assert np.abs(np.asarray(frame).astype(int) - expected).mean() < 12


def turned(path: Path, clockwise: int) -> None:
    """Put a rotation into the track header of an MP4: the matrix (a, b, u, c, d, v, x, y, w), 16.16 fixed point."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    one, minus = (1 << 16).to_bytes(4, "big"), (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero, unit = bytes(4), (1 << 30).to_bytes(4, "big")
    a, b, c, d = {0: (one, zero, zero, one), 90: (zero, one, minus, zero), 180: (minus, zero, zero, minus),
                  270: (zero, minus, one, zero)}[clockwise]  # fmt: skip
    assert data[at : at + 36] == b"".join((one, zero, zero, zero, one, zero, zero, zero, unit))
    data[at : at + 36] = b"".join((a, b, zero, c, d, zero, zero, zero, unit))
    path.write_bytes(bytes(data))


# Refusals


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none.mp4", "no such file"),
        ("text.mp4", "is no video that FFmpeg can open"),
        ("text.gif", "cannot be read"),
        ("one.mp4", "has 1 frame, expected at least 2; for two pictures use ditf.match_points"),
        ("one.gif", "has 1 frame"),
        ("one.jpg", "has 1 frame"),
        ("sound.wav", "holds no video stream"),
        ("empty", "holds no pictures"),
        ([], "list of 0 images has no frames"),
        (7, "expected a path, a folder or a list of images"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video at all")
    Path("text.gif").write_text("no picture at all")
    write_video(Path("one.mp4"), [100])
    grey(3).save("one.gif")
    grey(3).save("one.jpg")
    Path("empty").mkdir()
    with av.open("sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(InputError, match=words):
        open_video(source)


@pytest.mark.parametrize("limit", [1, 0, 2.5, True])
def test_a_limit_below_two_frames_is_refused(limit) -> None:
    with pytest.raises(InputError, match="limit: got .* at least 2 frames"):
        open_video([grey(1), grey(2)], limit=limit)


def test_a_frame_of_another_size_is_named(tmp_path: Path) -> None:
    video = open_video([grey(1), grey(2), grey(3, (24, 30))])
    with pytest.raises(InputError, match="frame 2 is 30 x 24 pixels, expected 32 x 24 as the first"):
        list(video)
    with pytest.raises(InputError, match="frame 1 is 30 x 24"):
        open_video([grey(1), grey(2, (24, 30))])


def test_a_damaged_frame_is_named(tmp_path: Path) -> None:
    for number in range(4):
        grey(50 * number).save(tmp_path / f"{number}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"video, frame 2: .*2\.png cannot be read"):
        list(open_video(tmp_path))


def test_a_video_cut_short_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An MP4 without its index does not open; a damaged Matroska gives what there is, and a warning."""
    path = write_video(tmp_path / "a.mp4", list(range(20, 220, 5)), (64, 96))
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.mp4 is no video that FFmpeg can open .* damaged or cut short"):
        open_video(tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = (tmp_path / "a.mkv").read_bytes()
    broken = bytearray(data)
    broken[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    (tmp_path / "broken.mkv").write_bytes(bytes(broken))
    assert len(list(open_video(tmp_path / "a.mkv"))) == 20
    with caplog.at_level(logging.WARNING, "ditf"):
        found = len(list(open_video(tmp_path / "broken.mkv")))
    assert found < 20
    assert f"broken.mkv: about 20 frames were promised, {found} could be read" in caplog.text


def test_features_are_made_as_frames_are_asked_for() -> None:
    seen, made = [], []

    def extractor(image, prompt=None):
        made.append(prompt)
        return image.size

    features = frame_features(
        extractor, [grey(1), grey(2), grey(3)], prompt="a", on_frame=lambda f: seen.append(f.index)
    )
    assert (seen, made) == ([], [])
    assert next(features) == (32, 24)
    assert (seen, made) == ([0], ["a"])
    assert len(list(features)) == 2
    with pytest.raises(InputError, match="no such file"):
        frame_features(extractor, "none.mp4")


def test_without_pyav_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r'video files need PyAV, which is not installed: pip install "ditf\[video\]"'):
        open_video(__file__)


# Videos out


def test_a_video_is_written_as_any_player_takes_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mp4", [40, 200], size=(23, 31), rate=Fraction(30000, 1001))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width, stream.average_rate) == (24, 32, Fraction(30000, 1001))
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.name in ("h264", "mpeg4")
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_that_fails_half_way_is_not_there(tmp_path: Path) -> None:
    def write(second: Image.Image | None) -> None:
        with VideoWriter(tmp_path / "a.mp4", 10) as writer:
            writer.write(grey(1))
            if second is None:
                raise RuntimeError("stop")
            writer.write(second)

    with pytest.raises(RuntimeError, match="stop"):
        write(None)
    with pytest.raises(InputError, match=r"got \(26, 32\), expected \(24, 32\)"):
        write(grey(1, (26, 32)))
    with pytest.raises(InputError, match="got no frames"), VideoWriter(tmp_path / "a.mp4", 10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_video_needs_an_mp4_name_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a name that ends in \.mp4"):
        VideoWriter(tmp_path / "a.avi", 10)
    with pytest.raises(StoreError, match="does not exist"):
        VideoWriter(tmp_path / "none" / "a.mp4", 10)
