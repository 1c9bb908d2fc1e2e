"""Nearest neighbours by cosine similarity, without a similarity matrix.

    score(i, j) = <q_i, k_j> / (max(|q_i|, 1e-12) max(|k_j|, 1e-12))

    argmax    for each query the best key                top-k     for each query the k best keys, the best first
    mutual    the best in both directions, from one pass over the product, and where they agree

Inverse norms are given (features often come with theirs) or worked out in one more read of the rows, and applied to the
dot products, so nothing is normalised in memory.

Bytes that must move: (N + M) * D elements for the product, as many where norms are worked out, and 12 a row for the
result: O(N + M) where a similarity matrix takes N * M. FLOPs: 2 * N * M * D. It is bound by the matrix product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backend as _backend
from . import reference
from ._checks import check_dtype, check_integer
from ._registry import define, takes_gradient

__all__ = ["MutualNearest", "cosine_argmax", "cosine_topk", "mutual_nearest"]

TOPK = 16  # most that the kernel keeps in registers
ROWS = (1 << 32) - 1  # of a tensor in the kernel, where a row's index takes half of a 64-bit key
PROGRAMS = (1 << 31) - 1  # of one launch, each with 64 x 64 scores or more


class MutualNearest(NamedTuple):
    """Nearest neighbours between a (N rows) and b (M rows), in both directions; with a leading B for batches."""

    index_ab: Tensor  # (N,) int64: the row of b nearest to each row of a
    index_ba: Tensor  # (M,) int64: the row of a nearest to each row of b
    mutual: Tensor  # (N,) bool: the row of b chosen chooses this row of a
    score_ab: Tensor  # (N,) float32
    score_ba: Tensor  # (M,) float32


def cosine_argmax(
    query: Tensor,
    key: Tensor,
    *,
    query_inverse_norm: Tensor | None = None,
    key_inverse_norm: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """For each query the key with the highest cosine similarity.

    Args:
        query: (N, D) or (B, N, D), any lengths and strides; float32 may meet a half-precision key.
        key: (M, D) or (B, M, D).
        query_inverse_norm: (N,) or (B, N) float32, 1 / max(|row|, 1e-12); None: worked out here.
        key_inverse_norm: (M,) or (B, M), likewise.
        key_mask: (M,) or (B, M) bool, True where a key may be chosen; None: everywhere.
        backend: "auto", "triton", "torch" or "verify"; None: what ``use_backend`` or the environment says.

    Returns:
        index: (N,) or (B, N) int64. Among equal scores the lowest.
        score: likewise, float32 in [-1, 1]. Zero vectors have similarity 0 with everything.

        A query that is not finite, or without a key to choose, gets -1 and NaN. A key row that is not finite is never
        chosen. A row counts as not finite where its length overflows float32.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here.
    """
    args = _checked("query", query, query_inverse_norm, None, "key", key, key_inverse_norm, key_mask)
    query3, key3, query_norm, key_norm, _, mask = args
    if takes_gradient("cosine_argmax", backend, query, key, query_inverse_norm, key_inverse_norm):
        found = reference.cosine_argmax(query3, key3, query_norm, key_norm, mask)
    else:
        found = _argmax(query3, key3, query_norm, key_norm, mask, backend)
    return _like(query, found)


def cosine_topk(
    query: Tensor,
    key: Tensor,
    k: int,
    *,
    query_inverse_norm: Tensor | None = None,
    key_inverse_norm: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """For each query the k keys with the highest cosine similarity, the highest first.

    Args:
        k: at least 1; may exceed M. The kernel takes up to 16, the PyTorch twin any.
        The rest as for :func:`cosine_argmax`.

    Returns:
        index: (N, k) or (B, N, k) int64. Among equal scores the lowest index first.
        score: likewise, float32.

        Entries for which there is no key are -1 and NaN; otherwise as :func:`cosine_argmax`.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here, or "triton" or "verify" is asked for more than 16.
    """
    args = _checked("query", query, query_inverse_norm, None, "key", key, key_inverse_norm, key_mask)
    query3, key3, query_norm, key_norm, _, mask = args
    check_integer("k", k, 1, None)
    if takes_gradient("cosine_topk", backend, query, key, query_inverse_norm, key_inverse_norm):
        found = reference.cosine_topk(query3, key3, k, query_norm, key_norm, mask)
    else:
        found = _topk(query3, key3, k, query_norm, key_norm, mask, backend)
    return _like(query, found)


def mutual_nearest(
    a: Tensor,
    b: Tensor,
    *,
    a_inverse_norm: Tensor | None = None,
    b_inverse_norm: Tensor | None = None,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    backend: str | None = None,
) -> MutualNearest:
    """:func:`cosine_argmax` from a to b and from b to a, from one pass over the product, and where they agree.

    Args:
        a: (N, D) or (B, N, D), any lengths and strides.
        b: (M, D) or (B, M, D).
        a_inverse_norm: (N,) or (B, N) float32, 1 / max(|row|, 1e-12); None: worked out here.
        b_inverse_norm: (M,) or (B, M), likewise.
        a_mask: (N,) or (B, N) bool, True where a row may be chosen; one that may not still gets its own nearest.
        b_mask: (M,) or (B, M), likewise.
        backend: as for :func:`cosine_argmax`.

    Returns:
        See :class:`MutualNearest`; ties, zero vectors and rows that are not finite as in :func:`cosine_argmax`.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here.
    """
    args = _checked("a", a, a_inverse_norm, a_mask, "b", b, b_inverse_norm, b_mask)
    if takes_gradient("mutual_nearest", backend, a, b, a_inverse_norm, b_inverse_norm):
        found = reference.mutual_nearest(*args)
    else:
        found = _mutual(*args, backend)
    return MutualNearest(*_like(a, found))


# --- checks ----------------------------------------------------------------------------------------------------------


def _checked(name, rows, inverse_norm, mask, other_name, other, other_inverse_norm, other_mask) -> tuple[Any, ...]:
    """Both sides as (B, n, D), their inverse norms, their masks, as (B, n)."""
    _check_rows(name, rows)
    _check_rows(other_name, other)
    if rows.ndim != other.ndim or rows.shape[:-2] != other.shape[:-2] or rows.shape[-1] != other.shape[-1]:
        batch = "".join(f"{size}, " for size in other.shape[:-2])
        raise ValueError(
            f"{name}: got shape {tuple(rows.shape)}, expected ({batch}rows, {other.shape[-1]}), as {other_name} has"
        )
    if rows.device != other.device:
        raise ValueError(
            f"{name}: got a tensor on {rows.device}, expected one on {other.device}, where {other_name} is"
        )
    return (
        rows if rows.ndim == 3 else rows[None],
        other if other.ndim == 3 else other[None],
        _per_row(f"{name}_inverse_norm", inverse_norm, name, rows, torch.float32),
        _per_row(f"{other_name}_inverse_norm", other_inverse_norm, other_name, other, torch.float32),
        _per_row(f"{name}_mask", mask, name, rows, torch.bool),
        _per_row(f"{other_name}_mask", other_mask, other_name, other, torch.bool),
    )


def _check_rows(name: str, t: Tensor) -> None:
    if t.ndim not in (2, 3) or t.shape[-1] == 0:
        raise ValueError(f"{name}: got shape {tuple(t.shape)}, expected (rows, D) or (B, rows, D) with D of at least 1")
    check_dtype(name, t.dtype)


def _per_row(name: str, t: Tensor | None, owner: str, rows: Tensor, dtype: torch.dtype) -> Tensor | None:
    """One value a row, (n,) for all or (B, n), as (B, n)."""
    if t is None:
        return None
    if t.shape not in (rows.shape[:-1], rows.shape[-2:-1]) or t.dtype != dtype:
        raise ValueError(
            f"{name}: got shape {tuple(t.shape)} {t.dtype}, expected {tuple(rows.shape[:-1])} {dtype}, one a row"
        )
    if t.device != rows.device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected one on {rows.device}, where {owner} is")
    return t.expand(rows.shape[:-1] if rows.ndim == 3 else (1, rows.shape[0]))


def _like(rows: Tensor, found: tuple[Tensor, ...]) -> Any:
    """The results without the leading axis that the rows did not have."""
    return found if rows.ndim == 3 else tuple(t[0] for t in found)


# --- registration ----------------------------------------------------------------------------------------------------


def _fake_argmax(query, key, query_inverse_norm, key_inverse_norm, key_mask, backend) -> tuple[Tensor, Tensor]:
    return _fake_found(query, ())


def _fake_topk(query, key, k, query_inverse_norm, key_inverse_norm, key_mask, backend) -> tuple[Tensor, Tensor]:
    return _fake_found(query, (k,))


def _fake_mutual(a, b, a_inverse_norm, b_inverse_norm, a_mask, b_mask, backend) -> tuple[Tensor, ...]:
    (index_ab, score_ab), (index_ba, score_ba) = _fake_found(a, ()), _fake_found(b, ())
    return index_ab, index_ba, index_ab.new_empty(index_ab.shape, dtype=torch.bool), score_ab, score_ba


def _fake_found(rows, each) -> tuple[Tensor, Tensor]:
    shape = (*rows.shape[:2], *each)
    return rows.new_empty(shape, dtype=torch.int64), rows.new_empty(shape, dtype=torch.float32)


def _compare_argmax(inputs, kernel, twin) -> None:
    query, key, query_inverse_norm, key_inverse_norm, key_mask = inputs
    _compare_found("cosine_argmax", (query, key, query_inverse_norm, key_inverse_norm), key_mask, kernel, twin)


def _compare_topk(inputs, kernel, twin) -> None:
    query, key, _, query_inverse_norm, key_inverse_norm, key_mask = inputs
    _compare_found("cosine_topk", (query, key, query_inverse_norm, key_inverse_norm), key_mask, kernel, twin)
    ordered = kernel[0].sort(-1).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise _backend.VerificationError(
            f"cosine_topk: index, shape {tuple(ordered.shape)}, names a key twice for the same query"
        )


def _compare_mutual(inputs, kernel, twin) -> None:
    a, b, a_inverse_norm, b_inverse_norm, a_mask, b_mask = inputs
    index_ab, index_ba, mutual, score_ab, score_ba = kernel
    sides = (a, b, a_inverse_norm, b_inverse_norm), (b, a, b_inverse_norm, a_inverse_norm)
    _compare_found("mutual_nearest", sides[0], b_mask, (index_ab, score_ab), (twin[0], twin[3]))
    _compare_found("mutual_nearest", sides[1], a_mask, (index_ba, score_ba), (twin[1], twin[4]))
    if not torch.equal(mutual, reference.is_mutual(index_ab, index_ba)):
        raise _backend.VerificationError(
            f"mutual_nearest: mutual, shape {tuple(mutual.shape)}, is not what index_ab and index_ba say"
        )


def _compare_found(op: str, sides: tuple[Any, ...], key_mask: Tensor | None, kernel: Any, twin: Any) -> None:
    """Scores directly; indices by what the kernel's choice scores against the twin's, in float64."""
    (query, key, query_norm, key_norm), (index, score), (twin_index, twin_score) = sides, kernel, twin
    _backend.check_close(op, "score", score, twin_score)
    n_keys = key.shape[1]
    good = torch.where(score.isnan(), index == -1, (index >= 0) & (index < n_keys))
    if key_mask is not None and n_keys:
        allowed = key_mask.gather(1, index.flatten(1).clamp(0, n_keys - 1)).reshape(index.shape)
        good = good & (allowed | score.isnan())
    if not bool(good.all()):
        raise _backend.VerificationError(
            f"{op}: index, shape {tuple(index.shape)}, has {int(index[~good][0])}, "
            f"which is outside the {n_keys} keys or their mask, or has a score where there is none"
        )
    differs = index != twin_index
    pair, row = (differs if differs.ndim == 2 else differs.any(-1)).nonzero(as_tuple=True)
    for one in pair.unique().tolist():
        own = row[pair == one]
        alone = slice(one, one + 1)
        ours = reference.cosine_at(
            query[alone, own],
            key[alone],
            None if query_norm is None else query_norm[alone, own],
            None if key_norm is None else key_norm[alone],
            index[alone, own],
        )
        _backend.check_close(op, "score at the chosen key", ours[0].to(torch.float32), twin_score[one, own])


def _limit(query, key, *_rest) -> str | None:
    (batch, n_queries, _), n_keys = query.shape, key.shape[1]
    if max(n_queries, n_keys) > ROWS:
        return f"{max(n_queries, n_keys)} rows are more than {ROWS}"
    if batch * -(-n_queries // 64) * -(-n_keys // 64) > PROGRAMS:
        return f"{batch} x {n_queries} x {n_keys} scores take more than {PROGRAMS} programs"
    return None


def _limit_topk(query, key, k, *rest) -> str | None:
    return f"k = {k} is more than {TOPK}" if k > TOPK else _limit(query, key)


_argmax = define(
    "cosine_argmax(Tensor query, Tensor key, Tensor? query_inverse_norm, Tensor? key_inverse_norm, Tensor? key_mask, "
    "str? backend) -> (Tensor, Tensor)",
    twin=reference.cosine_argmax,
    kernel="nearest.cosine_argmax",
    fake=_fake_argmax,
    compare=_compare_argmax,
    limit=_limit,
)
_topk = define(
    "cosine_topk(Tensor query, Tensor key, SymInt k, Tensor? query_inverse_norm, Tensor? key_inverse_norm, "
    "Tensor? key_mask, str? backend) -> (Tensor, Tensor)",
    twin=reference.cosine_topk,
    kernel="nearest.cosine_topk",
    fake=_fake_topk,
    compare=_compare_topk,
    limit=_limit_topk,
)
_mutual = define(
    "mutual_nearest(Tensor a, Tensor b, Tensor? a_inverse_norm, Tensor? b_inverse_norm, Tensor? a_mask, "
    "Tensor? b_mask, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    twin=reference.mutual_nearest,
    kernel="nearest.mutual_nearest",
    fake=_fake_mutual,
    compare=_compare_mutual,
    limit=_limit,
)
