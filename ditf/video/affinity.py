"""Label propagation in the published code's own arithmetic: ties kept, the affinity in any precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["propagate_with_ties"]


def propagate_with_ties(
    query: Tensor,
    keys: Tensor,
    labels: Tensor,
    grid: tuple[int, int],
    *,
    radius: int,
    topk: int,
    temperature: float,
    global_frames: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """As :func:`ditf_kernels.propagate_topk`, but every key takes part that is not less similar than the K-th.

    With unit features a_i = q_i / |q_i| and b_j = k_j / |k_j|, all in ``dtype``:

        A_ij = exp(<a_i, b_j> / T) inside the window, 0 outside          (in ``dtype``)
        t_i  = the K-th largest A_ij over all frames together
        out  = sum_j w_ij label_j,    w_ij = A_ij [A_ij >= t_i] / sum_j A_ij [A_ij >= t_i]    (in float32)

    In bfloat16, whose exponentials have 8 bits, more than K keys are often equal. A row of queries is worked at a time,
    so the affinity of all keys with all queries is never held.

    Args:
        query: (h*w, D), finite.
        keys: (F, h*w, D), finite.
        labels: (F, C, h*w) float32.

    Returns:
        (C, h*w) float32.
    """
    h, w = grid
    unit = F.normalize(query.to(dtype), dim=-1)
    maps = F.normalize(keys.to(dtype), dim=-1).unflatten(1, grid)  # (F, h, w, D)
    values = labels.unflatten(2, grid)  # (F, C, h, w)
    column = torch.arange(w, device=query.device)
    rows = []
    for y in range(h):
        band = slice(max(y - radius, 0), y + radius + 1)
        near = ((column[:, None] - column).abs() <= radius).repeat(1, len(range(*band.indices(h))))  # (w, band * w)
        affinity, chosen = [], []
        for frame in range(len(maps)):
            everywhere = frame < global_frames
            seen = slice(0, h) if everywhere else band
            part = torch.exp(unit[y * w : (y + 1) * w] @ maps[frame, seen].flatten(0, 1).T / temperature).float()
            affinity.append(part if everywhere else part * near)
            chosen.append(values[frame, :, seen].flatten(1))
        weight = torch.cat(affinity, 1)  # (w, keys)
        least = weight.topk(min(topk, weight.shape[1])).values[:, -1:]
        weight = weight * (weight >= least)
        rows.append(torch.cat(chosen, 1) @ (weight / weight.sum(1, keepdim=True)).T)  # (C, w)
    return torch.cat(rows, 1)
