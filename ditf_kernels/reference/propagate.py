"""Twins of ``ditf_kernels.propagate``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import NORM_FLOOR, blocks, unit_rows

__all__ = ["blended_labels", "chosen_cosine", "propagate_topk"]

OUTSIDE = -4.0  # below every cosine, and above what has been taken
TILE = (8, 16)  # queries (rows, columns) that share the keys of their windows
GROUP = 32  # neighbouring scores of which only the largest is looked at first


def propagate_topk(
    query: Tensor,
    keys: Tensor,
    labels: Tensor,
    grid: list[int],
    radius: int,
    topk: int,
    temperature: float,
    global_frames: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of each query token from the keys most similar to it, and which keys those are.

    Args:
        query: (h*w, D).
        keys: (F, h*w, D).
        labels: (F, C, h*w).
        grid: h, w.
        radius: of the window around the query, in rows and in columns.
        topk: keys per query, over all frames.
        temperature: of the softmax over their cosines.
        global_frames: first frames without a window.

    Returns:
        (C, h*w) float32; index (h*w, topk) int64, frame * h*w + cell, highest cosine first, equal ones from the lowest
        index on, -1 where there is none; score (h*w, topk) float32, their cosines in [-1, 1], NaN where there is none.
    """
    with torch.no_grad():
        index, score = _choose(query, keys, (grid[0], grid[1]), radius, topk, global_frames)
    if keys.shape[0] and torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad):
        score = chosen_cosine(query, keys, index)
    return blended_labels(labels, index, score, temperature), index, score


def chosen_cosine(query: Tensor, keys: Tensor, index: Tensor) -> Tensor:
    """Cosine of each query (n, D) with its keys, index (n, K) into (F * h*w) or -1: (n, K) float32, NaN for -1."""
    none = index < 0
    frame, cell = index.clamp_min(0) // keys.shape[1], index.clamp_min(0) % keys.shape[1]
    unit = unit_rows(query.masked_fill(none.all(1, keepdim=True), 0.0))
    scores = []
    for first, last in blocks(index.shape[0], index.shape[1] * query.shape[1], query.device):
        rows = keys[frame[first:last], cell[first:last]]  # (n, K, D)
        rows = unit_rows(rows.masked_fill(none[first:last, :, None], 0.0))
        scores.append((unit[first:last, None] * rows).sum(-1))
    return torch.cat(scores).clamp(-1, 1).masked_fill(none, torch.nan)


def blended_labels(labels: Tensor, index: Tensor, score: Tensor, temperature: float) -> Tensor:
    """Softmax over the scores (n, K), of which the first is the highest, times the labels chosen: (C, n) float32."""
    if labels.shape[0] == 0:
        return labels.new_full((labels.shape[1], len(index)), torch.nan, dtype=torch.float32)
    none = index < 0
    frame, cell = index.clamp_min(0) // labels.shape[2], index.clamp_min(0) % labels.shape[2]
    weight = ((score - score[:, :1].detach()) / temperature).masked_fill(none, -torch.inf).exp()
    weight = weight / weight.sum(1, keepdim=True)  # 0 / 0 where there is no key
    parts = [labels.new_zeros((0, labels.shape[1]), dtype=torch.float32)]
    for first, last in blocks(index.shape[0], index.shape[1] * labels.shape[1], labels.device):
        chosen = labels.mT[frame[first:last], cell[first:last]].to(torch.float32)  # (n, K, C)
        chosen = chosen.masked_fill(none[first:last, :, None], 0.0)
        parts.append((weight[first:last, :, None] * chosen).sum(1))
    return torch.cat(parts).T.contiguous()


# --- the most similar keys -------------------------------------------------------------------------------------------


def _choose(
    query: Tensor, keys: Tensor, grid: tuple[int, int], radius: int, topk: int, global_frames: int
) -> tuple[Tensor, Tensor]:
    """Index and score (h*w, topk), a tile of queries at a time against what it sees of each frame."""
    (h, w), (frames, cells, channels) = grid, keys.shape
    inverse = _inverse_norms(keys)
    broken = inverse.isnan().any(1).tolist()  # frames with keys that may not be chosen
    maps, inverse = keys.unflatten(1, grid), inverse.unflatten(1, grid)
    index = torch.full((h, w, topk), -1, dtype=torch.int64, device=query.device)
    score = torch.full((h, w, topk), torch.nan, dtype=torch.float32, device=query.device)
    for ys, xs in _tiles(grid):
        unit = unit_rows(query.unflatten(0, grid)[ys, xs].flatten(0, 1))  # (q, D)
        window = [
            (band, _outside(ys, xs, *band, radius, query.device))
            for band in _bands(_within(ys, radius, h), _within(xs, radius, w), channels, query.device)
        ]
        whole = [(band, None) for band in _bands(slice(0, h), slice(0, w), channels, query.device)]
        found = []
        for frame in range(frames):
            for (rows, columns), outside in whole if frame < global_frames else window:
                part = inverse[frame, rows, columns]
                near = _cosines(unit, maps[frame, rows, columns], part, outside, broken[frame])
                value, where = _largest(near, topk)
                row, column = rows.start + where // part.shape[1], columns.start + where % part.shape[1]
                found.append((value, frame * cells + row * w + column))
        if not found:
            continue
        value, where = _largest(torch.cat([value for value, _ in found], 1), topk)
        chosen = torch.cat([place for _, place in found], 1).gather(1, where)
        none = (value < OUTSIDE / 2) | unit[:, :1].isnan()
        shape, count = (ys.stop - ys.start, xs.stop - xs.start), value.shape[1]
        index[ys, xs, :count] = chosen.masked_fill(none, -1).unflatten(0, shape)
        score[ys, xs, :count] = value.clamp(-1, 1).masked_fill(none, torch.nan).unflatten(0, shape)
    return index.flatten(0, 1), score.flatten(0, 1)


def _inverse_norms(keys: Tensor) -> Tensor:
    """(F, n, D) -> (F, n) float32: 1 / max(|k|, 1e-12), NaN where a key is not finite."""
    length = keys.new_empty(keys.shape[:2], dtype=torch.float32)
    for frame in range(keys.shape[0]):
        for first, last in blocks(keys.shape[1], keys.shape[2], keys.device):
            length[frame, first:last] = keys[frame, first:last].to(torch.float32).norm(dim=-1)
    return length.clamp_min(NORM_FLOOR).reciprocal().masked_fill(~length.isfinite(), torch.nan)


def _tiles(grid: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of queries that are worked together."""
    for y in range(0, grid[0], TILE[0]):
        for x in range(0, grid[1], TILE[1]):
            yield slice(y, min(y + TILE[0], grid[0])), slice(x, min(x + TILE[1], grid[1]))


def _within(cells: slice, radius: int, count: int) -> slice:
    """What a window around these cells reaches of an axis."""
    return slice(max(cells.start - radius, 0), min(cells.stop + radius, count))


def _bands(rows: slice, columns: slice, channels: int, device: torch.device) -> list[tuple[slice, slice]]:
    """Cut into bands of rows, so that their keys fit beside each other: four times a block of the other twins."""
    elements = (columns.stop - columns.start) * channels // 4
    cuts = blocks(rows.stop - rows.start, elements, device)
    return [(slice(rows.start + first, rows.start + last), columns) for first, last in cuts]


def _outside(ys: slice, xs: slice, rows: slice, columns: slice, radius: int, device: torch.device) -> Tensor:
    """(queries, keys) float32: 0 inside the window of a query, OUTSIDE elsewhere."""

    def near(queries: slice, cells: slice) -> Tensor:
        query, cell = (torch.arange(s.start, s.stop, device=device) for s in (queries, cells))
        return (query[:, None] - cell).abs() <= radius

    inside = near(ys, rows)[:, None, :, None] & near(xs, columns)[None, :, None, :]  # (y, x, row, column)
    return torch.zeros(inside.shape, device=device).masked_fill(~inside, OUTSIDE).flatten(2).flatten(0, 1)


def _cosines(unit: Tensor, keys: Tensor, inverse: Tensor, outside: Tensor | None, broken: bool) -> Tensor:
    """Of unit queries (q, D) with keys (rows, columns, D): (q, keys) float32, about OUTSIDE for those not to choose."""
    rows = (keys.to(torch.float32) * inverse[..., None]).flatten(0, 1)
    if not broken:
        return unit @ rows.T if outside is None else torch.addmm(outside, unit, rows.T)
    missing = inverse.flatten().isnan()
    cosine = unit @ rows.masked_fill(missing[:, None], 0.0).T
    return (cosine if outside is None else cosine + outside).masked_fill(missing, OUTSIDE)


def _largest(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest of each row (q, n), as many as there are up to count, and where: the lowest place among equals."""
    groups = -(-score.shape[1] // GROUP)
    if groups <= count:
        return _first_largest(score, count)
    # A group whose maximum is not among the highest, earlier ones before equal ones, holds none of the highest.
    grouped = F.pad(score, (0, groups * GROUP - score.shape[1]), value=-torch.inf).unflatten(1, (groups, GROUP))
    group = _first_largest(grouped.amax(2), count)[1].sort(1).values[..., None]  # in order, as ties go to the first
    members = grouped.gather(1, group.expand(-1, -1, GROUP)).flatten(1)
    value, where = _first_largest(members, count)
    place = (group * GROUP + torch.arange(GROUP, device=score.device)).flatten(1)
    return value, place.gather(1, where)


def _first_largest(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same, by as many rounds."""
    rest, found = score.clone(), []
    for _ in range(min(count, score.shape[1])):
        found.append(rest.max(1, keepdim=True))  # the first maximum, as documented
        rest.scatter_(1, found[-1].indices, -torch.inf)
    return torch.cat([best.values for best in found], 1), torch.cat([best.indices for best in found], 1)
