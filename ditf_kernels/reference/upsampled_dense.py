"""Twin of ``ditf_kernels.upsampled_dense``: certified pruning, then every pixel of the few cells that are left.

A *cell* is the square between four neighbouring tokens; the pixels inside share these four. For a source pixel and the
four tokens g_j of a target cell, let n_j be the source's dot products with them and m_j = n_j / |g_j|; for a pixel q of
the cell let v_j = (its weight on g_j) * |g_j|. The score, but for the source's length, is <m, v> / |G(q)|. By the
Cauchy-Schwarz inequality, for every invertible L,

    <m, v> / |G(q)|  =  <L^-1 m, L^T v> / |G(q)|  <=  |L^-1 m| * kappa,      kappa = max over q of |L^T v| / |G(q)|.

With L L^T = C + epsilon I, C being the cosines between the four tokens, kappa is barely above 1, and |L^-1 m| is the
length of the source pixel's projection on the span of the four tokens: a bound that is close, and the same for every q.
It is cheap: L^-1 m is linear in the source, so over the pixels of a source cell its square is a quadratic form in their
weights, of ten numbers per pair of cells. One product (pixels, 10) x (10, target cells) bounds them all.

Measured alternatives, for 256 x 256 px of a photograph and its warp on 40 x 40 tokens, one thread. The largest corner
cosine, times the largest ratio of interpolated length to length, leaves 10% of the cells even to one who knows the best
score, this bound 0.2%. Bounds for whole source cells, by their tokens' own, leave a third; the largest singular value
between two cells a fifth. Scoring all pixels of a source cell wherever one of them needs it takes twice as long as
lists of pixels. Seeds from each pixel's own highest bound cost more than they save: an argmax over everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cells import NOWHERE, CellAxis, TargetCells, cell_axis, first_allowed, target_cells, token_lengths
from .rows import NORM_FLOOR, blocks
from .upsampled import CANCELLED, axis_taps, upsampled_inverse_norm, upsampled_planes

__all__ = ["CellAxis", "Pruning", "TargetCells", "cell_axis", "chosen_score", "prune_and_match", "target_cells",
           "upsampled_nearest"]  # fmt: skip

Size = tuple[int, int]

# What rounding can add to a score or take from its bound, in units of lambda(p) = sum_i w_i |f_i| of the source pixel
# p, u = 2^-24. A pixel q that does not cancel has sum_j v_j / |G(q)| <= 32, so a score errs by at most 10 * 32 u, and
# the triangular solves by 4 * 32 u: 2^-15 in all. The square of the bound, ten products, errs by 75 u = 2^-18. Each
# slack is at least twice that, so that no cell with the winner is ever left out.
SCORE_SLACK, SQUARE_SLACK = 2.0**-14, 2.0**-16


@dataclass
class Pruning:
    """How much work the bound left: pairs of a source pixel and a target cell.

    Attributes:
        pairs: of a source pixel and a target cell.
        scored: those whose pixels were scored, the seeds among them.
    """

    pairs: int = 0
    scored: int = 0

    @property
    def share(self) -> float:
        """Of the pairs, those never looked into."""
        return 1 - self.scored / self.pairs if self.pairs else 0.0


def upsampled_nearest(
    query: Tensor,
    key: Tensor,
    query_planes: Tensor | None,
    key_planes: Tensor | None,
    query_mask: Tensor | None,
    mask: Tensor | None,
    query_grid: list[int],
    query_size: list[int],
    key_grid: list[int],
    key_size: list[int],
) -> tuple[Tensor, Tensor]:
    """For each pixel of the source image the pixel of the target image with the highest cosine similarity.

    Args:
        query: (hq*wq, D).
        key: (hk*wk, D).
        query_planes, key_planes: (5, hq*wq), (5, hk*wk) of :func:`upsampled_planes`, or None.
        query_mask: (Hq*Wq,) bool, False where no answer is wanted, or None.
        mask: (Hk*Wk,) bool, True where a pixel may be chosen, or None.
        query_grid, query_size, key_grid, key_size: (h, w), (H, W) of either side.

    Returns:
        xy (Hq, Wq, 2) int64 and score (Hq, Wq) float32 in [-1, 1]; the lowest raster index among equal scores; (-1, -1)
        and NaN where the source pixel is not finite or not wanted, or no pixel may be chosen.
    """
    return prune_and_match(
        query, key, query_planes, key_planes, query_mask, mask, query_grid, query_size, key_grid, key_size, Pruning()
    )


def prune_and_match(
    query, key, query_planes, key_planes, query_mask, mask, query_grid, query_size, key_grid, key_size, pruning: Pruning
) -> tuple[Tensor, Tensor]:
    """:func:`upsampled_nearest`, counting into ``pruning``."""
    grids: tuple[Size, Size] = ((query_grid[0], query_grid[1]), (key_grid[0], key_grid[1]))
    sizes: tuple[Size, Size] = ((query_size[0], query_size[1]), (key_size[0], key_size[1]))
    query_planes = upsampled_planes(query, grids[0]) if query_planes is None else query_planes
    key_planes = upsampled_planes(key, grids[1]) if key_planes is None else key_planes
    with torch.no_grad():
        source = source_pixels(query_planes, query_mask, grids[0], sizes[0])
        cells = target_cells(key_planes, mask, grids[1], sizes[1])
        best, index = _search(query, key, source, cells, pruning)
    index, score = answers(best, index, source, cells)
    xy = torch.stack([index % sizes[1][1], index // sizes[1][1]], -1).masked_fill((index < 0)[..., None], -1)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, query_planes, key_planes)):
        score = _differentiable(query, key, query_planes, key_planes, grids, sizes, index)
    return xy, score


# --- source ----------------------------------------------------------------------------------------------------------


class SourcePixels(NamedTuple):
    """What is needed of a source image beside its tokens; P places instead of pixels, which may sit alike."""

    grid: Size
    y: CellAxis
    x: CellAxis
    scale: Tensor  # a power of two that makes the longest token at most 1
    inverse: (
        Tensor  # (Py, Px): 1 / length of the unscaled features; 0 where they cancel, NaN where not finite or wanted
    )
    lengths: Tensor  # (Py, Px): lambda, of the scaled
    wanted: Tensor | None  # (H, W) bool


def source_pixels(planes: Tensor, mask: Tensor | None, grid: Size, size: Size) -> SourcePixels:
    """From the planes (5, h*w) alone; mask (H*W,) is False where no answer is wanted."""
    y, x = (cell_axis(n, length, planes.device) for n, length in zip(grid, size, strict=True))
    planes = planes.unflatten(1, grid)
    inverse = upsampled_inverse_norm(planes, size)[y.first[:, None], x.first]
    if mask is not None:
        inverse = inverse.masked_fill(first_allowed(mask, y, x, size) == NOWHERE, torch.nan)
    lengths = token_lengths(planes)
    scale = torch.exp2(-torch.ceil(torch.log2(lengths.amax().clamp_min(1e-18))))
    lengths = lengths * scale
    lengths = _mix(lengths[:, x.low], lengths[:, (x.low + 1).clamp_max(grid[1] - 1)], x.weight)
    lengths = _mix(lengths[y.low], lengths[(y.low + 1).clamp_max(grid[0] - 1)], y.weight[:, None])
    return SourcePixels(grid, y, x, scale, inverse, lengths, None if mask is None else mask.view(size))


def _mix(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    return low * (1 - weight) + high * weight


# --- search ----------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A row of source cells: A cells of Y x X = P pixels each, the last ones repeated."""

    coarse: Tensor  # (2, A, C, 4) scaled dot products of the tokens above and below with those of the target's cells
    right: Tensor  # (A,) int64, the cell to the right
    y_weight: Tensor  # (Y,)
    x_weight: Tensor  # (A, X)
    lengths: Tensor  # (A, P) lambda
    asked: Tensor  # (A, P) False where the answer is known, or a pixel repeated
    best: Tensor  # (A * P,) score so far
    found: Tensor  # (A * P,) its raster index


def _search(
    query: Tensor, key: Tensor, source: SourcePixels, cells: TargetCells, pruning: Pruning
) -> tuple[Tensor, Tensor]:
    """Best score of the scaled source, (Py, Px), and the raster index of its pixel."""
    (_, w), y, x = source.grid, source.y, source.x
    best = torch.full_like(source.inverse, -torch.inf)
    index = torch.full_like(source.inverse, NOWHERE, dtype=torch.int64)
    if cells.corner.shape[1] == 0:
        return best, index
    right = (torch.arange(w, device=query.device) + 1).clamp_max(w - 1)
    known = source.inverse.isnan() | (source.inverse == 0)  # (Py, Px)
    inside = (torch.arange(x.width, device=query.device) < x.counts[:, None])[:, None]  # (A, 1, X)
    counts = y.counts.tolist()
    for number, coarse, projected in _coarse_rows(query, key, source, cells):
        if counts[number] == 0:
            continue
        place = y.member[number, : counts[number], None] * len(x.first) + x.member[:, None]  # (A, Y, X)
        asked = (inside & ~known.flatten()[place]).flatten(1)
        row = _Row(
            coarse, right, y.weight[y.member[number, : counts[number]]], x.weight[x.member],
            source.lengths.flatten()[place].flatten(1), asked,
            best.new_full((asked.numel(),), -torch.inf), index.new_full((asked.numel(),), NOWHERE),
        )  # fmt: skip
        _search_row(row, _quadratic_forms(projected, right), cells, pruning)
        place, known_now = place[asked.view_as(place)], asked.flatten()
        best.view(-1)[place], index.view(-1)[place] = row.best[known_now], row.found[known_now]
    return best, index


def _coarse_rows(
    query: Tensor, key: Tensor, source: SourcePixels, cells: TargetCells
) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
    """Per row of source cells: its number, the dot products (2, w, C, 4) and the projections, 4 times (2, w, C)."""
    h, w = source.grid
    key = key.to(torch.float32)
    for first, last in blocks(h, w * len(key) // 4, query.device):  # rows of tokens, and the one below
        tokens = query[first * w : min(last + 1, h) * w].to(torch.float32) * source.scale
        dots = (tokens @ key.T).nan_to_num_(0.0, 0.0, 0.0).unflatten(0, (-1, w))  # (rows + 1, w, M)
        dots = dots.flatten(0, 1).index_select(1, cells.corner.T.flatten()).view(*dots.shape[:2], -1, 4)
        projected = _projections(dots, cells)
        for number in range(first, last):
            both = [number - first, min(number + 1, h - 1) - first]
            yield number, dots[both], [z[both] for z in projected]


def _projections(dots: Tensor, cells: TargetCells) -> list[Tensor]:
    """kappa L^-1 m of each source token and target cell, (rows, w, C) four times."""
    z: list[Tensor] = []
    for own, dot, inverse in zip(cells.factor, dots.unbind(-1), cells.inverse_length, strict=True):
        part = dot * (inverse * cells.kappa)  # L z = kappa m, from the first row of L down
        for known, before in zip(own, z, strict=False):
            part -= known * before
        z.append(part.mul_(own[-1]))
    return z


PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def _quadratic_forms(projected: list[Tensor], right: Tensor) -> Tensor:
    """(A, 10, C): the dot products of the projections of the four tokens around each source cell."""
    corners = [[z[i] if side is None else z[i][side] for z in projected] for i in (0, 1) for side in (None, right)]
    forms = torch.empty(len(right), len(PAIRS), projected[0].shape[-1], device=right.device)
    for pair, (i, j) in enumerate(PAIRS):
        form = forms[:, pair]
        torch.mul(corners[i][0], corners[j][0], out=form)
        for a, b in zip(corners[i][1:], corners[j][1:], strict=True):
            form.addcmul_(a, b)
    return forms


def _form_weights(row: _Row) -> Tensor:
    """(A, P, 10): w_i w_j of each pixel of a cell, twice where i and j differ."""
    d, b = row.y_weight[:, None], row.x_weight[:, None]  # (Y, 1), (A, 1, X)
    w = ((1 - d) * (1 - b), (1 - d) * b, d * (1 - b), d * b)  # (A, Y, X)
    return torch.stack([w[i] * w[j] * (1 if i == j else 2) for i, j in PAIRS], -1).flatten(1, 2)


def _search_row(row: _Row, forms: Tensor, cells: TargetCells, pruning: Pruning) -> None:
    """First a few cells of high bound for all pixels; then those cells whose bound reaches the score this gave."""
    weights = _form_weights(row)
    pixels, count = row.lengths.shape[1], forms.shape[2]
    seeds = _seeds(forms, weights, len(row.y_weight))  # (A, C)
    a, c = seeds.nonzero(as_tuple=True)
    k, p = row.asked[a].nonzero(as_tuple=True)
    scored = _score_pairs(row, cells, a[k], p, c[k])
    for first, last in blocks(len(forms), pixels * count // 4, forms.device):
        least = _least(row, first, last)[..., None]
        excess = torch.baddbmm(least, weights[first:last], forms[first:last], beta=-1)  # (a, P, C)
        a, c = ((excess.amax(1) >= 0) & ~seeds[first:last]).nonzero(as_tuple=True)  # for any of its pixels
        k, p = (excess.transpose(1, 2)[a, c] >= 0).nonzero(as_tuple=True)
        scored += _score_pairs(row, cells, a[k] + first, p, c[k])
    pruning.pairs += int(row.asked.sum()) * count
    pruning.scored += scored


def _seeds(forms: Tensor, weights: Tensor, rows: int) -> Tensor:
    """(A, C) bool: the target cells of highest bound for the corners and the middle of each source cell."""
    columns = weights.shape[1] // rows
    ys, xs = ([0, (n - 1) // 2, n - 1] for n in (rows, columns))
    some = sorted({ys[i] * columns + xs[j] for i, j in ((0, 0), (0, 2), (1, 1), (2, 0), (2, 2))})
    highest = (weights[:, some] @ forms).argmax(-1)  # (A, 5)
    return torch.zeros_like(forms[:, 0], dtype=torch.bool).scatter_(1, highest, True)


def _least(row: _Row, first: int, last: int) -> Tensor:
    """(a, P): the squared bound below which a cell cannot hold a better pixel than the best so far."""
    lengths = row.lengths[first:last]
    least = (row.best.view(row.lengths.shape)[first:last] - SCORE_SLACK * lengths).clamp_min(0.0)
    return (least * least - SQUARE_SLACK * lengths * lengths).masked_fill(~row.asked[first:last], torch.inf)


def _score_pairs(row: _Row, cells: TargetCells, a: Tensor, p: Tensor, c: Tensor) -> int:
    """Pixels p of source cells a with every pixel of target cells c, (K,) each; the row keeps the best.

    No product of matrices here: equal weights give equal bits, so that ties stay ties.
    """
    for first, last in blocks(len(a), cells.raster.shape[1], a.device):
        _score_some(row, cells, a[first:last], p[first:last], c[first:last])
    return len(a)


def _score_some(row: _Row, cells: TargetCells, a: Tensor, p: Tensor, c: Tensor) -> None:
    columns = row.x_weight.shape[1]
    dots = row.coarse[:, torch.stack([a, row.right[a]]), c]  # (2, 2, K, 4): source above / below, left / right
    dots = _mix(dots[0], dots[1], row.y_weight[p // columns, None])  # (2, K, 4)
    dots = _mix(dots[0], dots[1], row.x_weight[a, p % columns, None])[..., None]  # (K, 4, 1)
    weight = cells.weight.index_select(0, c)  # (K, 4, S)
    scores = dots[:, 0] * weight[:, 0]  # (K, S)
    for j in (1, 2, 3):
        scores += dots[:, j] * weight[:, j]
    if cells.blocked:
        scores.masked_fill_(cells.raster[c] == NOWHERE, -torch.inf)
    value = scores.amax(1)  # (K,)
    pixel = a * row.lengths.shape[1] + p
    before = row.best[pixel]
    row.best.scatter_reduce_(0, pixel, value, "amax")
    after = row.best[pixel]
    row.found[pixel[after > before]] = NOWHERE
    k = (value == after).nonzero()[:, 0]
    ties = scores[k] == value[k, None]
    lowest = cells.raster[c[k]].masked_fill(~ties, NOWHERE).amin(1)
    row.found.scatter_reduce_(0, pixel[k], lowest, "amin")


# --- answers ---------------------------------------------------------------------------------------------------------


def answers(best: Tensor, index: Tensor, source: SourcePixels, cells: TargetCells) -> tuple[Tensor, Tensor]:
    """Raster index (-1: none) and score, (H, W), of scores (Py, Px) that lack the source's length."""
    first = cells.raster.amin() if cells.raster.numel() else index.new_tensor(NOWHERE)
    index = torch.where(source.inverse == 0, first, index)  # a zero vector has cosine 0 with everything
    score = torch.where(source.inverse == 0, 0.0, best / source.scale * source.inverse).clamp(-1, 1)
    none = source.inverse.isnan() | (index == NOWHERE)
    index, score = index.masked_fill(none, -1), score.masked_fill(none, torch.nan)
    places = source.y.place_of[:, None], source.x.place_of
    index, score = index[places], score[places]
    if source.wanted is not None:  # pixels of the border share their place with others
        index, score = index.masked_fill(~source.wanted, -1), score.masked_fill(~source.wanted, torch.nan)
    return index, score


def _differentiable(query, key, query_planes, key_planes, grids, sizes, index: Tensor) -> Tensor:
    """The scores of the pixels chosen, (H, W), again from the tokens: the search keeps nothing for a gradient."""
    dots = query.to(torch.float32) @ key.to(torch.float32).T  # (N, M)
    own = torch.arange(index.numel(), device=index.device)
    found = index.flatten()
    missing, found = found < 0, found.clamp_min(0)
    total = torch.zeros(len(own), device=index.device)
    for w, i in _corners(own, grids[0], sizes[0]):
        for v, j in _corners(found, grids[1], sizes[1]):
            weight = w * v
            total = total + torch.where(weight > 0, weight * dots[i, j], 0.0)
    inverses = (
        upsampled_inverse_norm(planes.unflatten(1, grid), size).flatten()
        for planes, grid, size in zip((query_planes, key_planes), grids, sizes, strict=True)
    )
    own_inverse, found_inverse = (t[at] for t, at in zip(inverses, (own, found), strict=True))
    score = (total * own_inverse * found_inverse).clamp(-1, 1)
    return score.masked_fill(missing, torch.nan).view(index.shape)


def chosen_score(
    query: Tensor, key: Tensor, grids: tuple[Size, Size], sizes: tuple[Size, Size], own: Tensor, found: Tensor
) -> Tensor:
    """Cosine similarity of source pixels with target pixels, in float64, from the upsampled features themselves.

    Args:
        query, key: (hq*wq, D), (hk*wk, D).
        grids, sizes: of both sides.
        own, found: (K,) raster indices of the pixels.

    Returns:
        (K,) float64; NaN where a token that is not finite has weight.
    """
    out = []
    for first, last in blocks(len(own), query.shape[1], query.device):
        sides = ((query, own), (key, found))
        (a, a_norm), (b, b_norm) = (
            _feature(tokens, grid, size, pixels[first:last])
            for (tokens, pixels), grid, size in zip(sides, grids, sizes, strict=True)
        )
        out.append((a * b).sum(1) * a_norm * b_norm)
    return torch.cat(out) if out else query.new_zeros(0, dtype=torch.float64)


def _feature(tokens: Tensor, grid: Size, size: Size, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(K, D) float64 and the inverse of its length, 0 where it cancels."""
    feature = torch.zeros(len(pixels), tokens.shape[1], dtype=torch.float64, device=tokens.device)
    lengths = feature.new_zeros(len(pixels))
    for weight, token in _corners(pixels, grid, size):
        row = torch.where(weight[:, None] > 0, tokens[token].to(torch.float64), 0.0)
        feature = feature + weight[:, None] * row
        lengths = lengths + weight * row.norm(dim=1)
    length = feature.norm(dim=1)
    return feature, (1 / length.clamp_min(NORM_FLOOR)).masked_fill(length**2 <= CANCELLED * lengths**2, 0.0)


def _corners(pixels: Tensor, grid: Size, size: Size) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight (K,) and index (K,) of each of the four tokens around pixels (K,), raster indices."""
    ys, xs = (axis_taps(n, length, pixels.device) for n, length in zip(grid, size, strict=True))
    y, x = pixels // size[1], pixels % size[1]
    for row, wy in ((ys.low[y], 1 - ys.weight[y]), (ys.high[y], ys.weight[y])):
        for column, wx in ((xs.low[x], 1 - xs.weight[x]), (xs.high[x], xs.weight[x])):
            yield wy * wx, row * grid[1] + column
