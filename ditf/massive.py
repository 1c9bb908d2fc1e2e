"""Massive channels of a diffusion transformer: which they are, how constant, and what becomes of the rest without them.

A few channels of the tokens entering a block are many times larger than the others, in every token of every image.
They carry next to nothing about where in the image a token lies, and they rule every cosine. Found here as:

    m_c = mean of |x_c| over all tokens of all images       massive, if m_c >= ratio * median(m),
                                                            c is among the 10 largest in 95% of the images,
                                                            and c keeps one sign in 90% of the tokens

The ratio alone does not do: colour channels of early blocks pass it. Images are read one after the other and only sums
are kept, so thousands of them need no more memory than eight.

Source: DiTF (arXiv 2505.18584), section 3; massive activations (arXiv 2402.17762).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels import adaln, massive_channels

from .backbones import Backbone, BlockInput
from .calibration import CALIBRATION_PROMPT, calibration_config, calibration_pictures
from .errors import InputError, kernel_errors
from .types import FeatureMap, Fused, Tapped, backend_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .extractor import FeatureExtractor

__all__ = [
    "Channel",
    "Cosines",
    "LayerReport",
    "MassiveReport",
    "Stability",
    "calibrated_channels",
    "channel_map",
    "find_massive_channels",
    "massive_report",
]

log = logging.getLogger("ditf")

RATIO = 10.0
"""How many times the median a massive channel is at least."""
TOP = 10
"""A massive channel is among this many largest ones of an image."""
IMAGES = 0.95
"""In at least this share of the images."""
ONE_SIGN = 0.9
"""And has one sign in at least this share of the tokens."""
ENOUGH_IMAGES = 8
"""Fewer images say little about all images."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
HISTOGRAM_BINS = 80
_SAMPLED_IMAGES, _SAMPLED_TOKENS = 8, 64  # kept as they are: for cosines, and to be looked at


@dataclass(frozen=True)
class Channel:
    """One of the ten largest channels of a block; shares are 0 to 1.

    Attributes:
        channel: its index.
        massive: whether it is, by the definition above.
        magnitude: mean ``|x|`` over all tokens.
        ratio: of that to the median over channels.
        mean, std: of ``x`` itself.
        peak: largest ``|x|``.
        one_sign: share of tokens that have the more frequent sign.
        energy: share of the tokens' sum of squares.
        leads_images: share of images in which it is the largest channel.
        top_images: share of images in which it is among the ten largest.
        leads_tokens: share of tokens in which it is the largest.
        gain: ``|1 + scale|`` of the block's own AdaLN, or None where that is not known; below
            ``LayerReport.mean_gain``, AdaLN suppresses the channel.
    """

    channel: int
    massive: bool
    magnitude: float
    ratio: float
    mean: float
    std: float
    peak: float
    one_sign: float
    energy: float
    leads_images: float
    top_images: float
    leads_tokens: float
    gain: float | None


@dataclass(frozen=True)
class Stability:
    """Mean Jaccard overlap of the sets of largest channels, 1 where they are always the same.

    Attributes:
        size: channels in a set: as many as are massive, at least one.
        tokens: each token's set and its image's.
        images: each image's set and that of all images.
        prompts: each prompt's set and that of all prompts; None with a single prompt.
    """

    size: int
    tokens: float
    images: float
    prompts: float | None


@dataclass(frozen=True)
class Cosines:
    """Cosine similarities between pairs of tokens of one image (64 tokens of each of the first 8 images).

    Attributes:
        mean: over the pairs.
        quantiles: at 5, 25, 50, 75 and 95%.
        histogram: counts in 80 equal bins over [-1, 1].
    """

    mean: float
    quantiles: tuple[float, ...]
    histogram: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LayerReport:
    """The channels of one block at one timestep.

    Attributes:
        block, timestep: where the tokens come from; None for tokens at hand.
        images, tokens: how many were read (an image under two prompts counts twice).
        channels: massive ones, the largest first; empty where there are none.
        magnitudes: (D,) float32, mean ``|x|`` of every channel.
        median: over channels.
        top: the ten largest channels, and massive ones beyond them.
        stability: how constant the largest are.
        mean_gain: mean ``|1 + scale|`` over all channels, or None.
        cosines: "raw" and, where the block's AdaLN is known, "adaln"; where channels are massive, also
            "raw, discarded" and "adaln, discarded".
        sample: (S, D) float32, up to 64 tokens of the first image, in raster order.
    """

    block: int | None
    timestep: float | None
    images: int
    tokens: int
    channels: tuple[int, ...]
    magnitudes: Tensor
    median: float
    top: tuple[Channel, ...]
    stability: Stability
    mean_gain: float | None
    cosines: dict[str, Cosines]
    sample: Tensor

    @property
    def name(self) -> str:
        """ "block 5, timestep 100"; "tokens" for tokens at hand."""
        if self.block is None:
            return "tokens"
        return f"block {self.block}" + ("" if self.timestep is None else f", timestep {self.timestep:g}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; without the magnitudes of all channels and the sample."""
        return {
            "block": self.block,
            "timestep": self.timestep,
            "images": self.images,
            "tokens": self.tokens,
            "width": len(self.magnitudes),
            "channels": list(self.channels),
            "median": self.median,
            "mean_gain": self.mean_gain,
            "top": [_plain(dataclasses.asdict(one)) for one in self.top],
            "stability": dataclasses.asdict(self.stability),
            "cosines": {name: _plain(dataclasses.asdict(cosines)) for name, cosines in self.cosines.items()},
        }


@dataclass(frozen=True, eq=False)
class MassiveReport:
    """Massive channels of one or more blocks.

    Attributes:
        channels: massive in any of the layers, the one that stands out most first; what to give as ``discard=`` where
            there is one layer. Empty where there are none.
        magnitude: mean ``|x|`` of each of them, in the layer where it stands out most.
        ratio: of that to the layer's median over channels.
        layers: one report per block and timestep, in the order asked for.
        threshold: the smallest ratio that counts as massive.
        card: model, revision, config, prompts, versions; empty for tokens at hand.
    """

    channels: tuple[int, ...]
    magnitude: tuple[float, ...]
    ratio: tuple[float, ...]
    layers: tuple[LayerReport, ...]
    threshold: float = RATIO
    card: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        layers = f"{len(self.layers)} layers" if len(self.layers) != 1 else self.layers[0].name
        return f"MassiveReport(channels={self.channels}, {layers}, {self.layers[0].images} images)"

    def at(self, block: int | None = None, timestep: float | None = None) -> MassiveReport:
        """The report of these layers alone.

        Raises:
            InputError: no such layer.
        """
        kept = [
            layer
            for layer in self.layers
            if (block is None or layer.block == block) and (timestep is None or layer.timestep == timestep)
        ]
        if not kept:
            there = ", ".join(layer.name for layer in self.layers)
            raise InputError(f"at: got block {block}, timestep {timestep}, expected a layer of the report: {there}")
        return _report(kept, self.threshold, self.card)

    def feature_map(self, features: FeatureMap) -> FeatureMap:
        """The massive channels of a feature map, as a feature map of their own; see :func:`channel_map`.

        Where the report has several layers, those of the features' own block and timestep.

        Raises:
            InputError: no massive channels, or features without them.
        """
        report = self if len(self.layers) == 1 else self.at(features.block, features.timestep)
        return channel_map(features, report.channels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "channels": list(self.channels),
            "magnitude": list(self.magnitude),
            "ratio": _plain(self.ratio),
            "definition": {"ratio": self.threshold, "top": TOP, "images": IMAGES, "one_sign": ONE_SIGN},
            "layers": [layer.to_dict() for layer in self.layers],
            "card": self.card,
        }

    def plot(self) -> Figure:
        """A matplotlib figure: magnitudes, tokens and cosines of one layer; a block x channel map of several.

        Save it with ``.savefig(path)``. Needs no display.

        Raises:
            InputError: matplotlib is not installed.
        """
        from .massive_plots import layer_figure, map_figure

        if len(self.layers) == 1:
            return layer_figure(self.layers[0], self.threshold)
        return map_figure(self.layers, self.threshold)


def find_massive_channels(
    fx: FeatureExtractor,
    images: Any = None,
    *,
    blocks: Sequence[int] | None = None,
    timesteps: Sequence[float] | None = None,
    prompts: str | Sequence[str] | None = None,
    ratio: float = RATIO,
) -> MassiveReport:
    """Massive channels of the tokens entering a model's blocks, and how AdaLN and the discard treat them.

    One forward per image, timestep and prompt shows all blocks; one more, of four tokens, shows their AdaLN.

    Args:
        fx: its settings hold, apart from what is asked for here; nothing is discarded or normalised.
        images: eight or more, a list or an iterator of anything the extractor takes; None: ditf's 16 own pictures.
        blocks: default the extractor's block.
        timesteps: noise levels in 0..1000; default the extractor's.
        prompts: every image is seen under each of these texts; default the extractor's.
        ratio: how many times the median over channels a massive one is at least.

    Raises:
        InputError: no or unreadable images, a block out of range, a ratio below 1.
        ModelError: the model cannot be loaded, or its activations are not finite.
        VerificationError: with ``fused="verify"``, a kernel and its twin disagree.

    Example:
        >>> report = ditf.find_massive_channels(fx, photographs)
        >>> fx = ditf.FeatureExtractor.from_pretrained(model, discard=report.channels)
    """
    texts = [fx.config.prompt] if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or len(set(texts)) != len(texts):
        raise InputError.of("prompts", prompts, "one text, or distinct texts")
    noises = [fx.config.timestep] if timesteps is None else list(timesteps)
    if not noises or len(set(noises)) != len(noises):
        raise InputError.of("timesteps", noises, "distinct noise levels in 0..1000, at least one")
    wanted = [fx.config.block] if blocks is None else list(blocks)
    sources = calibration_pictures() if images is None else _many(images)
    extractors = [fx.replace(timestep=t, normalization="none", discard="none", topk_per_token=0) for t in noises]
    tallies = _tallies(extractors, sources, wanted, texts, ratio)
    modulations = {(e.config.timestep, text): _modulations(e, wanted, text) for e in extractors for text in texts}
    layers = [
        tallies[block, t].layer(block, t, ratio, [modulations[t, text][block] for text in texts])
        for t in noises
        for block in wanted
    ]
    _warn_of_few(layers[0].images // len(texts))
    config = dataclasses.asdict(extractors[0].config) | {"block": wanted, "timestep": noises, "prompt": texts}
    return _report(layers, ratio, {**fx.backbone.card(), "config": config, "fused": fx.fused})


def massive_report(
    tokens: Tensor | Iterable[Tensor],
    *,
    modulation: Tapped | BlockInput | None = None,
    ratio: float = RATIO,
    fused: Fused = True,
) -> MassiveReport:
    """The same from tokens at hand.

    Args:
        tokens: (..., N, D) float, N tokens of each image; (N, D) is one image. Or an iterable of these, of any N, read
            one after the other.
        modulation: the block's AdaLN, as ``ditf.tap`` gives it: for the gains and the cosines after AdaLN.
        ratio: how many times the median over channels a massive one is at least.
        fused: True runs the Triton kernels where they can run, False the PyTorch twins, "verify" both, compared.

    Raises:
        InputError: tokens of another shape or dtype, without tokens, or not finite; a ratio below 1.
        VerificationError: with ``fused="verify"``, a kernel and its twin disagree.
    """
    _check_ratio(ratio)
    tally: _Tally | None = None
    for group in [tokens] if isinstance(tokens, Tensor) else tokens:
        if not isinstance(group, Tensor) or group.ndim < 2 or not group.is_floating_point() or not group.numel():
            got = f"{tuple(group.shape)} {group.dtype}" if isinstance(group, Tensor) else type(group).__name__
            raise InputError(f"tokens: got {got}, expected float tensors of shape (..., N, D) with at least one token")
        tally = tally or _Tally(group.shape[-1], backend_of(fused))
        group = group.detach().float() if group.dtype == torch.float64 else group.detach()
        for image in group.reshape(-1, *group.shape[-2:]):
            tally.add(image)
    if tally is None:
        raise InputError.of("tokens", "none", "at least one image")
    _warn_of_few(tally.images)
    return _report([tally.layer(None, None, ratio, [] if modulation is None else [modulation])], ratio, {})


def channel_map(features: FeatureMap, channels: Sequence[int]) -> FeatureMap:
    """Some channels of a feature map as a feature map of their own, in the order given.

    Args:
        features: made with ``discard="none"``; usually raw, ``normalization="none"``.
        channels: C distinct ones.

    Returns:
        tokens (N, C) in the features' dtype.

    Raises:
        InputError: no channels, channels out of range, or channels that were discarded from the features.
    """
    chosen, width = [int(channel) for channel in channels], features.tokens.shape[1]
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError.of("channels", chosen, "distinct channels, at least one")
    if outside := [channel for channel in chosen if not 0 <= channel < width]:
        raise InputError.of("channels", outside[0], f"channels in 0..{width - 1}")
    discarded = features.card.get("config", {}).get("discard", ())
    if gone := [channel for channel in chosen if not isinstance(discarded, str) and channel in discarded]:
        raise InputError(f'features: channel {gone[0]} was discarded from them; extract with discard="none"')
    return dataclasses.replace(features, tokens=features.tokens[:, chosen], inverse_norm=None)


# --- discard="auto" --------------------------------------------------------------------------------------------------

_calibrated: weakref.WeakKeyDictionary[Backbone, dict[tuple[int, float], tuple[int, ...]]] = weakref.WeakKeyDictionary()
_calibrating = threading.Lock()


def calibrated_channels(fx: FeatureExtractor, blocks: Sequence[int], timestep: float) -> dict[int, tuple[int, ...]]:
    """What ``discard="auto"`` discards: block -> massive channels, found once per loaded model, block and timestep.

    They are found on ditf's own pictures, at settings that depend on nothing but the model (see
    :mod:`ditf.calibration`), never on the images that happen to come first: the same model has the same channels in
    every process and for every image.

    Raises:
        ModelError: the model cannot be loaded, or its activations are not finite.
    """
    with _calibrating:
        known = _calibrated.setdefault(fx.backbone, {})
        missing = [block for block in blocks if (block, float(timestep)) not in known]
        if missing:
            config = calibration_config(missing[0], timestep, fx.backbone.pixels_per_token)
            sibling = fx.replace(**dataclasses.asdict(config))
            pictures = calibration_pictures()
            log.info('discard="auto": looking for massive channels on %d pictures, once', len(pictures))
            tallies = _tallies([sibling], pictures, missing, [CALIBRATION_PROMPT], RATIO)
            for block in missing:
                channels = tallies[block, timestep].massive(RATIO)
                known[block, float(timestep)] = channels
                log.info("massive channels of block %d at timestep %g: %s", block, timestep, channels or "none")
        return {block: known[block, float(timestep)] for block in blocks}


# --- running sums ----------------------------------------------------------------------------------------------------


class _Tally:
    """Sums over the tokens of one block; their size does not grow with the images, but for ten numbers of each."""

    def __init__(self, width: int, backend: str | None) -> None:
        self.width, self.top, self.backend = width, min(TOP, width), backend
        self.images = self.tokens = 0
        self.magnitude, self.signed, self.square = torch.zeros(3, width, dtype=torch.float64)
        self.peak = torch.zeros(width)
        self.positive, self.negative, self.leads_tokens = torch.zeros(3, width, dtype=torch.int64)
        self.overlap = torch.zeros(self.top, dtype=torch.float64)  # of tokens with their image, by size of the set
        self.by_prompt: dict[str, Tensor] = {}  # prompt -> (D,) sum of |x|
        self.leading: list[Tensor] = []  # (top,) channels of each image
        self.sample: list[Tensor] = []  # (S, D) tokens of the first images

    def add(self, x: Tensor, prompt: str = "") -> None:
        """Count the tokens (N, D) of one image.

        Raises:
            InputError: another width, or values that are not finite.
        """
        if x.shape[1] != self.width:
            raise InputError.of("tokens", f"{x.shape[1]} channels", f"{self.width} as in the first image")
        with kernel_errors():
            index, magnitude, _ = massive_channels(x, self.width, backend=self.backend)  # all, the largest first
        if not bool(torch.isfinite(magnitude[0])):
            raise InputError.of("tokens", f"{float(magnitude[0])} in channel {int(index[0])}", "finite values")
        count = len(x)
        total = torch.zeros(self.width, dtype=torch.float64).scatter_(0, index.cpu(), magnitude.cpu().double() * count)
        self.images, self.tokens = self.images + 1, self.tokens + count
        self.magnitude += total
        self.by_prompt[prompt] = self.by_prompt.get(prompt, 0) + total
        self.signed += x.sum(0, dtype=torch.float32).cpu()
        self.square += x.float().square().sum(0).cpu()
        self.peak = torch.maximum(self.peak, x.abs().amax(0).float().cpu())
        self.positive += (x > 0).sum(0).cpu()
        self.negative += (x < 0).sum(0).cpu()
        self.leading.append(index[: self.top].cpu())
        self._add_tokens(x, index)
        if len(self.sample) < _SAMPLED_IMAGES:
            picks = torch.linspace(0, count - 1, min(count, _SAMPLED_TOKENS)).round().long()
            self.sample.append(x[picks.to(x.device)].float().cpu())

    def _add_tokens(self, x: Tensor, image_order: Tensor) -> None:
        """Which channel leads each token, and how much each token's set of largest has in common with its image's."""
        places = torch.arange(self.top, device=x.device)
        own = x.abs().topk(self.top, dim=1).indices  # (N, top)
        rank = torch.empty_like(image_order).scatter_(0, image_order, torch.arange(self.width, device=x.device))
        in_both = torch.maximum(rank[own], places)[..., None] <= places  # (N, place, size of the sets - 1)
        shared = in_both.sum(1)
        self.overlap += (shared / (2 * (places + 1) - shared)).sum(0).cpu()
        self.leads_tokens += torch.bincount(own[:, 0], minlength=self.width).cpu()

    @property
    def one_sign(self) -> Tensor:
        return torch.maximum(self.positive, self.negative) / self.tokens

    @property
    def top_images(self) -> Tensor:
        return torch.bincount(torch.cat(self.leading), minlength=self.width) / self.images

    @property
    def ratios(self) -> Tensor:
        """(D,) magnitude in units of the median; infinite where the median is 0, and 0 where the magnitude is."""
        ratios = self.magnitude / self.magnitude.median()
        return torch.where(self.magnitude > 0, ratios, 0.0)

    def massive(self, ratio: float) -> tuple[int, ...]:
        """Channels by the definition, the largest first."""
        passing = (self.ratios >= ratio) & (self.top_images >= IMAGES) & (self.one_sign >= ONE_SIGN)
        return tuple(int(channel) for channel in self.order if passing[channel])

    @property
    def order(self) -> Tensor:
        return self.magnitude.argsort(descending=True, stable=True)

    def layer(
        self,
        block: int | None,
        timestep: float | None,
        ratio: float,
        modulations: Sequence[Tapped | BlockInput],
    ) -> LayerReport:
        channels = self.massive(ratio)
        largest = self.order[: self.top].tolist()
        gain = _gain(modulations)
        magnitudes = self.magnitude / self.tokens
        return LayerReport(
            block=block,
            timestep=timestep,
            images=self.images,
            tokens=self.tokens,
            channels=channels,
            magnitudes=magnitudes.float(),
            median=float(magnitudes.median()),
            top=tuple(self._channel(c, c in channels, gain) for c in dict.fromkeys((*largest, *channels))),
            stability=self._stability(max(1, len(channels))),
            mean_gain=None if gain is None else float(gain.mean()),
            cosines=self._cosines(channels, modulations[0] if modulations else None),
            sample=self.sample[0],
        )

    def _channel(self, c: int, massive: bool, gain: Tensor | None) -> Channel:
        mean = float(self.signed[c]) / self.tokens
        return Channel(
            channel=c,
            massive=massive,
            magnitude=float(self.magnitude[c]) / self.tokens,
            ratio=float(self.ratios[c]),
            mean=mean,
            std=math.sqrt(max(0.0, float(self.square[c]) / self.tokens - mean**2)),
            peak=float(self.peak[c]),
            one_sign=float(self.one_sign[c]),
            energy=float(self.square[c] / self.square.sum().clamp_min(1e-300)),
            leads_images=sum(int(one[0]) == c for one in self.leading) / self.images,
            top_images=float(self.top_images[c]),
            leads_tokens=int(self.leads_tokens[c]) / self.tokens,
            gain=None if gain is None else float(gain[c]),
        )

    def _stability(self, size: int) -> Stability:
        size = min(size, self.top)
        pooled = self.order[:size]
        prompts = [total.argsort(descending=True, stable=True)[:size] for total in self.by_prompt.values()]
        return Stability(
            size=size,
            tokens=float(self.overlap[size - 1]) / self.tokens,
            images=_mean_jaccard([one[:size] for one in self.leading], pooled),
            prompts=_mean_jaccard(prompts, pooled) if len(prompts) > 1 else None,
        )

    def _cosines(self, channels: tuple[int, ...], modulation: Tapped | BlockInput | None) -> dict[str, Cosines]:
        kinds = {"raw": self.sample}
        if modulation is not None:
            kinds["adaln"] = [_modulated(x, modulation, (), self.backend) for x in self.sample]
        if channels:
            kinds["raw, discarded"] = [x.index_fill(1, torch.tensor(channels), 0.0) for x in self.sample]
        if channels and modulation is not None:
            kinds["adaln, discarded"] = [_modulated(x, modulation, channels, self.backend) for x in self.sample]
        return {name: _pair_cosines(samples) for name, samples in kinds.items()}


def _tallies(
    extractors: Sequence[FeatureExtractor],
    images: Iterable[Any],
    blocks: Sequence[int],
    prompts: list[str],
    ratio: float,
) -> dict[tuple[int, float], _Tally]:
    """(block, timestep) -> sums over all images under all prompts; ``extractors`` give raw tokens, one per timestep."""
    _check_ratio(ratio)
    tallies: dict[tuple[int, float], _Tally] = {}
    for image in images:
        for fx in extractors:
            for prompt in prompts:
                for block, raw in fx(image, prompt=prompt, blocks=blocks).items():
                    new = _Tally(raw.tokens.shape[1], raw.backend)
                    tallies.setdefault((block, fx.config.timestep), new).add(raw.tokens, prompt)
    if not tallies:
        raise InputError.of("images", "none", f"at least one image, better {ENOUGH_IMAGES}")
    return tallies


@torch.no_grad()
def _modulations(fx: FeatureExtractor, blocks: Sequence[int], prompt: str) -> dict[int, BlockInput]:
    """Each block's own AdaLN: it depends on timestep and text alone, so a picture of four tokens shows it."""
    backbone, side = fx.backbone, 2 * fx.backbone.pixels_per_token
    latents = backbone.encode_image(torch.zeros(1, 3, side, side))
    inputs = backbone.inputs(latents, fx.config.timestep, [prompt], fx.config.guidance)
    return backbone.run(blocks, inputs, backbone.grid(latents))


def _report(layers: Sequence[LayerReport], threshold: float, card: dict[str, Any]) -> MassiveReport:
    best: dict[int, Channel] = {}
    for layer in layers:
        for one in layer.top:
            if one.massive and (one.channel not in best or one.ratio > best[one.channel].ratio):
                best[one.channel] = one
    ranked = sorted(best.values(), key=lambda one: -one.ratio)
    return MassiveReport(
        channels=tuple(one.channel for one in ranked),
        magnitude=tuple(one.magnitude for one in ranked),
        ratio=tuple(one.ratio for one in ranked),
        layers=tuple(layers),
        threshold=threshold,
        card=card,
    )


def _gain(modulations: Sequence[Tapped | BlockInput]) -> Tensor | None:
    """(D,) ``|1 + scale|``, mean over images, tokens and prompts."""
    scales = [m.scale.detach().float().cpu() for m in modulations if m.scale is not None]
    if not scales:
        return None
    return torch.stack([(1 + scale).abs().flatten(0, -2).mean(0) for scale in scales]).mean(0)


def _modulated(x: Tensor, m: Tapped | BlockInput, discard: tuple[int, ...], backend: str | None) -> Tensor:
    """(S, D) tokens after the block's norm and modulation, which all tokens of an image share."""
    vectors = [v if v is None else v.detach().float().cpu()[0, :1].contiguous() for v in (m.shift, m.scale)]
    affine = [v if v is None else v.detach().float().cpu() for v in (m.weight, m.bias)]
    return adaln(
        x[None],
        *vectors,
        norm=m.norm or "layer",  # None is an activation's, which has no AdaLN to begin with
        weight=affine[0],
        bias=affine[1],
        eps=m.eps,
        discard=discard or None,
        backend=backend,
    )[0]


def _pair_cosines(samples: Sequence[Tensor]) -> Cosines:
    values = torch.cat([_cosines_of(x) for x in samples])
    if not len(values):
        return Cosines(math.nan, (math.nan,) * len(QUANTILES), (0,) * HISTOGRAM_BINS)
    return Cosines(
        mean=float(values.mean()),
        quantiles=tuple(values.quantile(torch.tensor(QUANTILES, dtype=values.dtype)).tolist()),
        histogram=tuple(int(n) for n in torch.histc(values, HISTOGRAM_BINS, -1.0, 1.0)),
    )


def _cosines_of(x: Tensor) -> Tensor:
    """Cosines of all pairs of tokens (S, D), each pair once."""
    unit = F.normalize(x.double(), dim=1, eps=1e-12)
    rows, columns = torch.triu_indices(len(x), len(x), 1)
    return (unit @ unit.T)[rows, columns].clamp(-1.0, 1.0)


def _mean_jaccard(sets: Sequence[Tensor], pooled: Tensor) -> float:
    shared = torch.stack([torch.isin(one, pooled).sum() for one in sets])
    return float((shared / (2 * len(pooled) - shared)).mean())


def _many(images: Any) -> Iterable[Any]:
    if isinstance(images, Sequence | Iterator) and not isinstance(images, str):
        return images
    return [images]


def _check_ratio(ratio: float) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio < math.inf:
        raise InputError.of("ratio", ratio, "a number of at least 1")


def _warn_of_few(images: int) -> None:
    if images < ENOUGH_IMAGES:
        log.warning("massive channels: %d images say little about all images; give %d or more", images, ENOUGH_IMAGES)


def _plain(value: Any) -> Any:
    """As JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
