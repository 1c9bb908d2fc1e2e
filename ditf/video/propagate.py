"""A mask of the first frame carried through a video: every token takes the labels of the tokens it resembles most.

The algorithm is that of DINO's evaluation on DAVIS 2017 (arXiv 2104.14294), which DIFT, DiTF and others share:

1. The first mask is resized to the token grid (nearest) and made one-hot.
2. Each later frame looks at the first frame and at the last n. A token takes, inside a window around it, the K most
   similar tokens of all these frames together, and the mean of their label maps with weights softmax(cosine / T).
3. That map, soft and at grid resolution, is what later frames look at.
4. For its pixels it is upsampled (bilinear), every channel stretched to [0, 1], the highest channel taken, and the
   result resized to the image (nearest).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels import propagate_topk

from ..errors import InputError, kernel_errors
from ..types import FeatureMap
from .affinity import propagate_with_ties
from .masks import LARGEST_ID, load_mask, resized_nearest
from .protocols import PropagationProtocol, Ties, find_protocol

__all__ = ["iter_labels", "propagate_labels"]

log = logging.getLogger("ditf")

_PIXELS_AT_ONCE = 1 << 24  # of upsampled label maps, over channels
_FLAT = 1e-5  # of its highest value, by which a channel may vary and be taken for constant


def propagate_labels(
    frame_features: Iterable[FeatureMap], first_mask: Any, *, preset: str | PropagationProtocol = "ditf", **options: Any
) -> Tensor:
    """The objects of a first mask in every frame of a video.

    Args:
        frame_features: FeatureMaps of the frames in order, all of one size: a list, or a generator, which is asked for
            a frame at a time.
        first_mask: (H, W) object ids of the first frame, 0 the background; see :func:`ditf.video.load_mask`. Ids may
            have holes and are kept as they are; 255, which marks void pixels in DAVIS, is an id like any other.
        preset: "ditf", "dino", "dift-sd", "dift-adm", "crw", or a :class:`ditf.video.PropagationProtocol`.
        **options: see :func:`iter_labels`.

    Returns:
        (T, H, W) labels on the CPU, uint8 (int32 where an id is above 255); the first frame is the first mask.

    Raises:
        InputError: no frames, frames that do not fit one another, a mask of another size or without objects.
        VerificationError: with ``backend="verify"``, the kernel and its twin disagree.
    """
    return torch.stack(list(iter_labels(frame_features, first_mask, preset=preset, **options)))


def iter_labels(
    frame_features: Iterable[FeatureMap],
    first_mask: Any,
    *,
    preset: str | PropagationProtocol = "ditf",
    n_last: int | None = None,
    radius: int | None = None,
    topk: int | None = None,
    temperature: float | None = None,
    mask_first: bool | None = None,
    stride: int | None = None,
    ties: Ties | None = None,
    affinity_dtype: str | torch.dtype | None = None,
    size: tuple[int, int] | None = None,
    backend: str | None = None,
) -> Iterator[Tensor]:
    """Labels (H, W) of one frame after another; those of frame t come before frame t + 1 is asked for.

    Memory does not grow with the video: the features and label maps of the first and of the last ``n_last`` frames.

    Args:
        frame_features, first_mask, preset: see :func:`propagate_labels`.
        n_last, radius, topk, temperature, mask_first, stride, ties, affinity_dtype: in place of the preset's; see
            :class:`ditf.video.PropagationProtocol`.
        size: (H, W) of the mask and of the labels; default that of the images.
        backend: "auto", "triton", "torch" or "verify"; default what the features were made with. ``ties="kept"`` runs
            in PyTorch alone.

    Raises:
        InputError, VerificationError: as :func:`propagate_labels`; at the frame that is at fault.
    """
    protocol = find_protocol(preset).replace(
        n_last=n_last, radius=radius, topk=topk, temperature=temperature, mask_first=mask_first, stride=stride,
        ties=ties, affinity_dtype=affinity_dtype,
    )  # fmt: skip
    if protocol.ties == "kept" and backend in ("triton", "verify"):
        raise InputError.of("backend", backend, 'None, "auto" or "torch" with ties="kept"')
    mask = load_mask(first_mask)
    if not mask.any():
        raise InputError("first_mask: got no object, all ids are 0; expected at least one id above 0")
    if size is not None and tuple(mask.shape) != tuple(size):
        raise InputError.of("first_mask", tuple(mask.shape), f"size, {tuple(size)}")
    return _labels(iter(frame_features), mask, size, protocol, backend)


@torch.no_grad()
def _labels(
    frames: Iterator[FeatureMap],
    mask: Tensor,
    size: tuple[int, int] | None,
    protocol: PropagationProtocol,
    backend: str | None,
) -> Iterator[Tensor]:
    first = next(frames, None)
    if first is None:
        raise InputError("frame_features: got no frames, expected FeatureMaps, the first frame's first")
    check_frame(first, first, 0)
    ids, soft = _first_labels(mask, first, size)
    yield mask.to(_dtype(ids))
    context = _Context(first.tokens, soft, protocol.n_last)
    for index, frame in enumerate(frames, 1):
        check_frame(frame, first, index)
        soft = _propagated(frame, context, protocol, backend or first.backend)
        yield _decided(soft, frame, ids, protocol.stride, (mask.shape[0], mask.shape[1]))
        context.append(frame.tokens, soft)


def check_frame(frame: Any, first: FeatureMap, index: int) -> None:
    """Raise InputError for a frame that does not fit the first one."""
    name = f"frame_features, frame {index}"
    if not isinstance(frame, FeatureMap):
        raise InputError.of(name, type(frame).__name__, "a FeatureMap")
    for what in ("grid", "image_size", "canvas", "offset"):
        if getattr(frame, what) != getattr(first, what):
            raise InputError.of(name, f"{what} {getattr(frame, what)}", f"{getattr(first, what)}, as the first frame")
    if frame.tokens.shape != first.tokens.shape or frame.tokens.device != first.tokens.device:
        got, expected = (f"{f.tokens.shape[1]} channels on {f.tokens.device}" for f in (frame, first))
        raise InputError.of(name, got, f"{expected}, as the first frame")
    if not bool(torch.isfinite(frame.tokens).all()):
        raise InputError(f"{name}: got features that are not finite; extract that frame again")


class _Context:
    """Features and label maps of the first frame and of the last few, oldest first."""

    def __init__(self, tokens: Tensor, labels: Tensor, n_last: int) -> None:
        self._keys = tokens.new_empty((n_last + 1, *tokens.shape))
        self._labels = labels.new_empty((n_last + 1, *labels.shape))
        self._keys[0], self._labels[0], self._count = tokens, labels, 1

    @property
    def keys(self) -> Tensor:
        """(frames, N, D)."""
        return self._keys[: self._count]

    @property
    def labels(self) -> Tensor:
        """(frames, C, N) float32."""
        return self._labels[: self._count]

    def append(self, tokens: Tensor, labels: Tensor) -> None:
        last = len(self._keys) - 1
        if last == 0:
            return
        if self._count > last:  # the oldest but the first goes
            for i in range(1, last):
                self._keys[i].copy_(self._keys[i + 1])
                self._labels[i].copy_(self._labels[i + 1])
        else:
            self._count += 1
        self._keys[self._count - 1], self._labels[self._count - 1] = tokens, labels


def _first_labels(mask: Tensor, first: FeatureMap, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Ids (C,) from 0 on, and the one-hot map (C, N) float32 of the first mask on the token grid.

    Ids that the mask does not have get no channel: theirs would be zero everywhere and never the highest.
    """
    shape = mask.shape[0], mask.shape[1]
    if shape != first.image_size and (size is None or first.canvas is not None):
        raise InputError.of("first_mask", shape, f"(H, W) of the image, {first.image_size}")
    on_grid = resized_nearest(_on_canvas(mask, first), first.grid)
    ids = torch.cat([torch.zeros(1, dtype=torch.int64), mask.unique()]).unique()
    for lost in sorted(set(ids.tolist()) - set(on_grid.unique().tolist()) - {0}):
        log.warning(
            "object %d covers %d pixels and the centre of no token (grid %s): it cannot be followed; use a larger size",
            lost, int((mask == lost).sum()), first.grid,
        )  # fmt: skip
    return ids, (on_grid.flatten() == ids[:, None]).to(first.tokens.device, torch.float32)


def _on_canvas(mask: Tensor, first: FeatureMap) -> Tensor:
    """The mask on the area that the grid covers; what was padded is background."""
    if first.canvas is None:
        return mask
    canvas, (x, y) = mask.new_zeros(first.canvas), first.offset
    canvas[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return canvas


def _propagated(frame: FeatureMap, context: _Context, protocol: PropagationProtocol, backend: str | None) -> Tensor:
    """(C, N) float32 label map of a frame."""
    inputs = frame.tokens, context.keys, context.labels, frame.grid
    settings = {"radius": protocol.radius, "topk": protocol.topk, "temperature": protocol.temperature}
    global_frames = 0 if protocol.mask_first else 1
    if protocol.ties == "kept":
        return propagate_with_ties(*inputs, **settings, global_frames=global_frames, dtype=protocol.dtype)
    with kernel_errors():
        return propagate_topk(*inputs, **settings, global_frames=global_frames, backend=backend)


def _decided(soft: Tensor, frame: FeatureMap, ids: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Labels (H, W) on the CPU of a label map (C, N): upsampled, stretched, the highest channel, resized."""
    maps = soft.unflatten(1, frame.grid)[None]  # (1, C, h, w)
    fine = frame.grid[0] * stride, frame.grid[1] * stride
    best = torch.full(fine, -torch.inf, device=soft.device)
    label = torch.zeros(fine, dtype=torch.int64, device=soft.device)
    step = max(1, _PIXELS_AT_ONCE // (fine[0] * fine[1]))
    for start in range(0, len(ids), step):
        large = F.interpolate(maps[:, start : start + step], scale_factor=stride, mode="bilinear", align_corners=False)
        value, channel = _stretched(large[0]).max(0)  # the first among equals
        higher = value > best
        best, label = torch.where(higher, value, best), torch.where(higher, channel + start, label)
    decided = ids[label.cpu()]
    if frame.canvas is None:
        return resized_nearest(decided, size).to(_dtype(ids))
    (x, y), whole = frame.offset, resized_nearest(decided, frame.canvas)
    return whole[y : y + size[0], x : x + size[1]].to(_dtype(ids)).contiguous()


def _stretched(maps: Tensor) -> Tensor:
    """Each channel (C, H, W) from 0 to 1; one that is zero everywhere stays, one that is the same everywhere is 1.

    The same but for rounding, that is: an object that fills the frame would else be scattered by it.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    flat = high - low <= _FLAT * high
    stretched = (maps - low) / torch.where(flat, torch.ones_like(high), high - low)
    return torch.where(high > 0, torch.where(flat, torch.ones_like(maps), stretched), maps)


def _dtype(ids: Tensor) -> torch.dtype:
    return torch.uint8 if int(ids.max()) <= LARGEST_ID else torch.int32
