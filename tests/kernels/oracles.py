"""The definitions again, in float64 and by other means than the twins."""

import torch.nn.functional as F

from ditf_kernels.reference import CANCELLED

GEOMETRIES = [  # grid, image size: odd sizes, one-cell grids, fewer pixels than cells, whole multiples
    ((5, 7), (37, 50)),
    ((1, 1), (9, 4)),
    ((1, 6), (5, 31)),
    ((6, 1), (31, 1)),
    ((4, 4), (64, 64)),
    ((9, 8), (5, 3)),
    ((3, 5), (3, 5)),
]


def brute_force(query, key, grid, size):
    """Upsample every channel, normalise every pixel, multiply: (K, H*W) float64 scores."""
    cells = key.double().T.reshape(1, key.shape[1], *grid)
    pixels = F.interpolate(cells, size, mode="bilinear", align_corners=False)[0].flatten(1)  # (D, H*W)
    lengths = F.interpolate(cells.norm(dim=1)[None], size, mode="bilinear", align_corners=False).flatten()
    scores = F.normalize(query.double(), dim=1) @ F.normalize(pixels, dim=0)
    return scores.masked_fill(pixels.norm(dim=0) ** 2 <= CANCELLED * lengths**2, 0.0)


def assert_found_the_best(xy, score, scores, width, tolerance=1e-6):
    """The pixels chosen score as high as any, and the scores told are theirs; scores (K, H*W) float64."""
    best = scores.max(1).values
    chosen = scores.gather(1, (xy[:, 1] * width + xy[:, 0])[:, None])[:, 0]
    assert (best - chosen).max() < tolerance
    assert (score.double() - best).abs().max() < 1e-5


def adaln_float64(
    x, shift, scale, *, add_one=True, norm="layer", weight=None, bias=None, eps=1e-6, discard=(), discard_at="input",
    topk_per_token=0, ensemble=1, l2_normalize=False,
):  # fmt: skip
    """The formula of the op, step by step, one token at a time where that is the plain way; (B, N, D) float64."""
    x = x.double().unflatten(0, (-1, ensemble)).mean(1)  # (B, N, D)
    if discard_at == "input":
        x[..., list(discard)] = 0
    for token in x.flatten(0, 1):
        order = sorted(range(len(token)), key=lambda c: (-abs(float(token[c])), c))
        token[order[:topk_per_token]] = 0
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight.double()
    y = y if bias is None else y + bias.double()
    if scale is not None:
        y = y * (_per_image(scale) + (1 if add_one else 0))
    if shift is not None:
        y = y + _per_image(shift)
    if discard_at == "output":
        y[..., list(discard)] = 0
    return F.normalize(y, dim=-1) if l2_normalize else y


def _per_image(t):
    """(D,), (B, D) or (B, N, D) against (B, N, D)."""
    t = t.double()
    return t[:, None] if t.ndim == 2 else t
