"""Label propagation against a dense float64 implementation of the published algorithm, and what it must refuse."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image

import ditf
from ditf import FeatureMap, InputError
from ditf.video import PROTOCOLS, find_protocol, iter_labels, propagate_labels
from ditf.video.affinity import propagate_with_ties

GRID, SIZE, STRIDE = (6, 9), (41, 70), 5


def smooth_frames(seed: int, count: int, channels: int = 24, grid=GRID, size=SIZE) -> list[FeatureMap]:
    """Smooth features that drift, with noise: neighbours look alike, and no two cosines are equal."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(1, channels, 4, 5, generator=rng)
    frames = []
    for t in range(count):
        moved = base + 0.15 * t * torch.randn(base.shape, generator=rng)
        maps = torch.nn.functional.interpolate(moved, grid, mode="bicubic")[0]
        maps = maps + 0.05 * torch.randn(maps.shape, generator=rng)
        frames.append(FeatureMap(tokens=maps.flatten(1).T.contiguous(), grid=grid, image_size=size))
    return frames


def blocks_mask(size=SIZE, ids=(1, 2)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[5:28, 8:30] = ids[0]
    mask[18:38, 40:66] = ids[1]
    return mask


def dense_reference(frames, mask, *, n_last, radius, topk, temperature, mask_first, stride):
    """The definition, in float64 numpy: all keys with all queries, every tie kept. Labels, and by how much they won."""
    (h, w), (height, width) = frames[0].grid, mask.shape
    unit = [f.tokens.double().numpy() for f in frames]
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in unit]
    y, x = np.divmod(np.arange(h * w), w)
    window = (abs(y[:, None] - y) <= radius) & (abs(x[:, None] - x) <= radius)  # (keys, queries)
    small = mask[nearest(height, h)[:, None], nearest(width, w)]
    first = (small.ravel() == np.arange(mask.max() + 1)[:, None]).astype(np.float64)  # (C, h*w), id max + 1 channels
    queue, out, margin = [], [mask], [np.ones(mask.shape)]
    for t in range(1, len(frames)):
        context = [(unit[0], first), *queue]
        affinity = [np.exp(keys @ unit[t].T / temperature) for keys, _ in context]
        affinity = [a * window if mask_first or i else a for i, a in enumerate(affinity)]
        stacked = np.concatenate(affinity)  # (F * keys, queries)
        least = np.sort(stacked, axis=0)[-min(topk, len(stacked))]
        stacked = np.where(stacked >= least, stacked, 0)
        soft = np.concatenate([labels for _, labels in context], 1) @ (stacked / stacked.sum(0))
        labels, apart = decided(soft.reshape(-1, h, w), stride, (height, width))
        out.append(labels)
        margin.append(apart)
        queue = [*queue, (unit[t], soft)][-n_last:] if n_last else []
    return np.stack(out), np.stack(margin)


def check(labels: torch.Tensor, reference: tuple[np.ndarray, np.ndarray]) -> None:
    """Equal but for pixels that float64 leaves undecided: two channels meet half-way between tokens."""
    expected, margin = reference
    differs = labels.numpy() != expected
    assert margin[differs].max(initial=0) < 1e-5
    assert differs.mean() < 5e-3
    assert any((e != expected[0]).mean() > 0.02 for e in expected)  # the labels did move


def nearest(pixels: int, cells: int) -> np.ndarray:
    """Of an axis of ``pixels``, the one at the centre of each of ``cells``, as Pillow rounds."""
    row = Image.fromarray(np.arange(pixels, dtype=np.int32)[None])
    return np.asarray(row.resize((cells, 1), Image.Resampling.NEAREST))[0]


def decided(soft: np.ndarray, stride: int, size) -> np.ndarray:
    large = np.stack([along(along(m, stride).T, stride).T for m in soft])
    for channel in large:
        if channel.max() > 0:
            channel -= channel.min()
            channel /= channel.max()
    order = np.sort(large, axis=0)
    places = nearest(large.shape[1], size[0])[:, None], nearest(large.shape[2], size[1])
    return large.argmax(0)[places], (order[-1] - order[-2])[places]


def along(rows: np.ndarray, stride: int) -> np.ndarray:
    """Each row linearly upsampled, half-pixel centres, clamped at its ends."""
    n = rows.shape[1]
    at = ((np.arange(n * stride) + 0.5) / stride - 0.5).clip(0, n - 1)
    return np.stack([np.interp(at, np.arange(n), row) for row in rows])


@pytest.mark.parametrize("ties", ["exact", "kept"])
@pytest.mark.parametrize("preset", PROTOCOLS)
def test_every_protocol_equals_its_definition(preset: str, ties: str) -> None:
    protocol = find_protocol(preset)
    frames, mask = smooth_frames(len(preset), 12, grid=(10, 13)), blocks_mask()
    # The published windows are wider than this grid: a narrower one, so that it cuts.
    radius, n_last = protocol.radius // 4, protocol.n_last // 4
    ours = propagate_labels(frames, mask, preset=preset, ties=ties, radius=radius, n_last=n_last, stride=STRIDE)
    expected = dense_reference(
        frames, mask, n_last=n_last, radius=radius, topk=protocol.topk, temperature=protocol.temperature,
        mask_first=protocol.mask_first, stride=STRIDE,
    )  # fmt: skip
    assert ours.dtype == torch.uint8
    assert len(np.unique(expected[0][-1])) == 3
    check(ours, expected)


def test_published_settings_run_as_they_are() -> None:
    frames, mask = smooth_frames(3, 4), blocks_mask()
    protocol = find_protocol("ditf")
    expected = dense_reference(frames, mask, n_last=7, radius=12, topk=5, temperature=0.1, mask_first=True, stride=16)
    assert (protocol.n_last, protocol.radius, protocol.topk, protocol.temperature) == (7, 12, 5, 0.1)
    check(propagate_labels(frames, mask), expected)


def test_the_window_on_the_first_frame_makes_a_difference() -> None:
    frames, mask = smooth_frames(5, 6), blocks_mask()
    kwargs = {"radius": 1, "n_last": 1, "topk": 3, "temperature": 0.1, "stride": STRIDE}
    inside, outside = (propagate_labels(frames, mask, mask_first=m, **kwargs) for m in (True, False))
    assert (inside != outside).any()
    check(outside, dense_reference(frames, mask, mask_first=False, **kwargs))


def test_without_last_frames_only_the_first_is_looked_at() -> None:
    frames, mask = smooth_frames(6, 5), blocks_mask()
    kwargs = {"radius": 3, "n_last": 0, "topk": 4, "temperature": 0.1, "mask_first": True, "stride": STRIDE}
    ours = propagate_labels(frames, mask, **kwargs)
    check(ours, dense_reference(frames, mask, **kwargs))
    assert (propagate_labels([frames[0], frames[4]], mask, **kwargs)[1] == ours[4]).all()


def test_equal_cosines_all_vote_where_ties_are_kept() -> None:
    """Query (1, 0); keys at cosines 1, 0, 0, 0 with K = 2: three of them tie for the second place."""
    query = torch.tensor([[1.0, 0.0]] * 4)
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, -1.0]]])
    labels = torch.eye(4)[None]
    kwargs = {"radius": 3, "topk": 2, "temperature": 0.5}
    kept = propagate_with_ties(query, keys, labels, (1, 4), **kwargs)[:, 0]
    e = math.exp(2)
    assert kept.tolist() == pytest.approx([e / (e + 3), 1 / (e + 3), 1 / (e + 3), 1 / (e + 3)])
    exact = ditf.video.propagate.propagate_topk(query, keys, labels, (1, 4), **kwargs)[:, 0]
    assert exact.tolist() == pytest.approx([e / (e + 1), 1 / (e + 1), 0, 0])


def test_bfloat16_affinity_ties_more_and_follows_its_own_rounding() -> None:
    frames = smooth_frames(7, 2, channels=4, grid=(10, 13))
    labels = torch.rand(1, 3, 130)
    query, keys = frames[1].tokens, frames[0].tokens[None]
    kwargs = {"radius": 6, "topk": 5, "temperature": 0.1}
    ours = propagate_with_ties(query, keys, labels, (10, 13), dtype=torch.bfloat16, **kwargs)
    a, b = (torch.nn.functional.normalize(t.bfloat16(), dim=-1) for t in (query, keys[0]))
    y, x = torch.arange(130) // 13, torch.arange(130) % 13
    near = ((y[:, None] - y).abs() <= 6) & ((x[:, None] - x).abs() <= 6)
    affinity = torch.exp(a @ b.T / 0.1).double() * near
    kept = affinity * (affinity >= affinity.topk(5).values[:, -1:])
    assert ((kept > 0).sum(1) > 5).float().mean() > 0.1  # in float32 no two of these are equal
    expected = labels[0].double() @ (kept / kept.sum(1, keepdim=True)).T
    assert (ours - expected).abs().max() < 1e-5
    labels = propagate_labels(frames, blocks_mask(), ties="kept", affinity_dtype=torch.bfloat16, stride=STRIDE)
    assert labels.unique().tolist() == [0, 1, 2]


def test_ids_with_holes_and_high_ids_are_kept_as_they_are() -> None:
    frames = smooth_frames(8, 4)
    plain = propagate_labels(frames, blocks_mask(), stride=STRIDE)
    for ids, dtype in (((7, 200), torch.uint8), ((7, 300), torch.int32)):
        labels = propagate_labels(frames, np.array([0, *ids])[blocks_mask()], stride=STRIDE)
        assert labels.dtype == dtype
        assert (labels == torch.tensor([0, *ids])[plain.long()]).all()


def test_many_objects_are_decided_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.arange(1, 55).reshape(GRID).repeat(7, 0).repeat(8, 1)[: SIZE[0], : SIZE[1]]  # every token an object
    frames = smooth_frames(9, 3)
    whole = propagate_labels(frames, mask, stride=STRIDE)
    monkeypatch.setattr("ditf.video.propagate._PIXELS_AT_ONCE", 1)
    assert (propagate_labels(frames, mask, stride=STRIDE) == whole).all()


def test_an_object_that_covers_everything_covers_everything() -> None:
    labels = propagate_labels(smooth_frames(10, 3), np.full(SIZE, 4, np.uint8))
    assert (labels == 4).all()


def test_a_picture_can_be_of_another_size_than_its_mask_when_that_is_said() -> None:
    frames = smooth_frames(11, 4, size=(20, 35))
    mask = blocks_mask()
    labels = propagate_labels(frames, mask, size=SIZE, stride=STRIDE)
    assert labels.shape == (4, *SIZE)
    assert (labels == propagate_labels(smooth_frames(11, 4), mask, stride=STRIDE)).all()
    with pytest.raises(InputError, match=r"first_mask: got \(41, 70\), expected \(H, W\) of the image, \(20, 35\)"):
        propagate_labels(frames, mask)
    with pytest.raises(InputError, match=r"first_mask: got \(41, 70\), expected size, \(40, 70\)"):
        propagate_labels(frames, mask, size=(40, 70))


def test_a_padded_picture_is_as_its_square_with_background_around() -> None:
    size, canvas, offset = (20, 36), (36, 36), (0, 8)
    padded = [
        FeatureMap(tokens=f.tokens, grid=(6, 6), image_size=size, canvas=canvas, offset=offset)
        for f in smooth_frames(12, 4, grid=(6, 6))
    ]
    square = [FeatureMap(tokens=f.tokens, grid=(6, 6), image_size=canvas) for f in padded]
    mask = np.zeros(size, np.uint8)
    mask[4:15, 5:22] = 1
    whole = np.zeros(canvas, np.uint8)
    whole[8:28] = mask
    assert (propagate_labels(padded, mask) == propagate_labels(square, whole)[:, 8:28]).all()


def test_frames_are_asked_for_one_at_a_time_and_let_go() -> None:
    """Label t comes before frame t + 1 is asked for, and no more than the window's frames are alive."""
    import weakref

    alive: list[weakref.ref] = []

    def frames():
        for frame in smooth_frames(13, 12):
            copy = FeatureMap(tokens=frame.tokens.clone(), grid=GRID, image_size=SIZE)
            alive.append(weakref.ref(copy.tokens))
            yield copy

    for asked, _ in enumerate(iter_labels(frames(), blocks_mask(), n_last=2), 1):
        assert len(alive) == asked
        assert sum(ref() is not None for ref in alive) <= 3


def test_lists_generators_and_devices_of_the_backend_agree() -> None:
    frames, mask = smooth_frames(14, 4), blocks_mask()
    assert (propagate_labels(frames, mask) == propagate_labels(iter(frames), torch.from_numpy(mask))).all()
    assert (propagate_labels(frames, Image.fromarray(mask)) == propagate_labels(frames, mask)).all()


@pytest.mark.verify
def test_the_kernel_and_its_twin_agree_on_a_video() -> None:
    frames, mask = smooth_frames(15, 2), blocks_mask()
    assert (propagate_labels(frames, mask, backend="verify") == propagate_labels(frames, mask, backend="torch")).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": np.zeros(SIZE, np.uint8)}, "no object, all ids are 0"),
        ({"mask": np.zeros((3, *SIZE), np.uint8)}, r"expected an array \(H, W\) of integers"),
        ({"mask": np.ones(SIZE, np.float32)}, "float32"),
        ({"mask": -np.ones(SIZE, np.int64)}, "got -1, expected ids of at least 0"),
        ({"frames": []}, "got no frames"),
        ({"frames": ["a.jpg"]}, "frame 0: got 'str', expected a FeatureMap"),
        ({"preset": "davis"}, "one of ditf, dino, dift-sd, dift-adm, crw"),
        ({"topk": 0}, "topk: got 0"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"ties": "some"}, "ties: got 'some'"),
        ({"affinity_dtype": "bfloat16"}, 'float32, or ties="kept" as well'),
        ({"ties": "kept", "affinity_dtype": "float16"}, "one of float32, bfloat16"),
        ({"ties": "kept", "backend": "triton"}, 'with ties="kept"'),
    ],
)
def test_what_cannot_be_propagated_is_refused(change: dict, words: str) -> None:
    arguments = {"frames": smooth_frames(0, 2), "mask": blocks_mask(), **change}
    with pytest.raises(InputError, match=words):
        propagate_labels(arguments.pop("frames"), arguments.pop("mask"), **arguments)


def test_a_frame_that_does_not_fit_is_named() -> None:
    good = smooth_frames(0, 3)
    other = smooth_frames(0, 1, grid=(5, 9))[0]
    with pytest.raises(InputError, match=r"frame 2: got 'grid \(5, 9\)', expected \(6, 9\), as the first frame"):
        propagate_labels([*good[:2], other], blocks_mask())
    with pytest.raises(InputError, match="frame 1: got '8 channels on cpu', expected 24 channels"):
        propagate_labels([good[0], smooth_frames(0, 1, channels=8)[0]], blocks_mask())
    broken = FeatureMap(tokens=torch.full((54, 24), torch.nan), grid=GRID, image_size=SIZE)
    with pytest.raises(InputError, match="frame 1: got features that are not finite"):
        propagate_labels([good[0], broken], blocks_mask())


def test_an_object_too_small_for_the_grid_is_said_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    mask = blocks_mask()
    mask[0, 0] = 9
    with caplog.at_level(logging.WARNING, "ditf"):
        labels = propagate_labels(smooth_frames(0, 2), mask)
    assert "object 9 covers 1 pixels and the centre of no token" in caplog.text
    assert 9 not in labels[1]


# The published sizes of frames, (W, H) of the video -> (W, H) of the model, and grids of 8 or 16 pixels a token
TABLE = {
    "dino": {(854, 480): (832, 480), (910, 480): (896, 480), (1152, 480): (1152, 480), (480, 480): (448, 480)},
    "dift-sd": {(854, 480): (832, 480), (910, 480): (896, 480), (1152, 480): (1152, 480), (480, 480): (480, 480)},
    "ditf": {(854, 480): (1696, 960), (910, 480): (1792, 960), (1152, 480): (2304, 960), (480, 480): (960, 960)},
}


@pytest.mark.parametrize("preset", TABLE)
def test_frames_are_resized_as_published(preset: str) -> None:
    for (width, height), (seen_width, seen_height) in TABLE[preset].items():
        overrides = find_protocol(preset).extract_overrides((height, width))
        config = ditf.ExtractConfig(block=0, timestep=0, **overrides)
        assert config.size == (seen_height, seen_width)
        pixels = ditf.images.prepare(Image.new("RGB", (width, height)), config, 16).pixels
        assert pixels.shape == (seen_height, seen_width, 3)
    assert find_protocol(preset).extract_overrides((854, 480))["size"] == TABLE[preset][854, 480]


def test_every_value_of_a_protocol_has_a_source() -> None:
    for protocol in PROTOCOLS.values():
        assert set(protocol.source) == set(protocol.to_dict()) - {"source"}
    changed = PROTOCOLS["ditf"].replace(radius=3, topk=None)
    assert changed.source["radius"] == "given"
    assert changed.source["topk"] == PROTOCOLS["ditf"].source["topk"]
    with pytest.raises(InputError, match="publishes no size"):
        PROTOCOLS["crw"].extract_overrides((480, 854))
