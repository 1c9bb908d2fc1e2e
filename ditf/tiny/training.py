"""One training run: its network, optimiser and pictures, step by step, and the file it goes on from."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DitfError, StoreError
from ..types import write_atomically
from .network import build, flow_loss, load_weights, save_checkpoint
from .recipe import Recipe
from .scenes import STYLES, TRAINING_SEED, sample_scene

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

    from .pool import Pool

__all__ = ["STATE", "Training"]

STATE = "state.safetensors"
_BETAS = (0.9, 0.99)


class Training:
    """A run that can be stopped after any step and taken up again.

    Attributes:
        step: steps done.
        seconds: spent on them, over all legs of the run.
        loss: its moving average.
        model, average: the weights, and their moving average.
        origin: what the card of the checkpoint it started from says of its training, or None.
    """

    def __init__(self, recipe: Recipe, *, device: str = "cpu", bf16: bool = False, compiled: bool = False) -> None:
        self.recipe, self.device, self.bf16 = recipe, torch.device(device), bf16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model: FluxTransformer2DModel = build(**recipe.shape)
        self.model.to(self.device)  # pyright: ignore[reportArgumentType]
        self.average = copy.deepcopy(self.model).eval()
        if compiled:
            _compile(self.model)
        self.optimisers = _optimisers(self.model, recipe)
        self.step, self.seconds, self.learning_rate, self.loss = 0, 0.0, 0.0, math.nan
        self.pool: Pool | None = None  # where pictures come from, in place of drawing every one
        self.recent: list[float] = []  # losses since the last row of the table
        self.origin: dict[str, Any] | None = None

    def start_from(self, checkpoint: Path) -> None:
        """Take the weights of a finished checkpoint, with a fresh optimiser."""
        load_weights(self.model, checkpoint)
        self.average.load_state_dict(self.model.state_dict())
        card = checkpoint / "card.json"
        self.origin = json.loads(card.read_text()).get("training", {}) if card.is_file() else {}

    @property
    def images(self) -> int:
        return self.step * self.recipe.batch

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        if self.recipe.images is not None:
            return self.images / self.recipe.images
        assert self.recipe.minutes is not None
        return self.seconds / 60 / self.recipe.minutes

    def advance(self) -> float:
        """One step; returns its loss.

        Raises:
            DitfError: the loss is not finite.
        """
        started = time.perf_counter()
        recipe, progress = self.recipe, self.progress
        falling = (1 - progress) / recipe.decay if recipe.decay and progress > 1 - recipe.decay else 1.0
        self.learning_rate = recipe.learning_rate * min(1, (self.step + 1) / max(1, recipe.warmup)) * max(0.02, falling)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = self.learning_rate
        pictures, noise, sigma = self._batch(decaying=falling < 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = flow_loss(self.model, pictures, noise, sigma)
        value = loss.item()
        if not math.isfinite(value):
            raise DitfError(
                f"the loss is {value} at step {self.step}; resume from the last state with a smaller learning rate"
            )
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        keep = min(recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), parameters, strict=True):
                mean.lerp_(parameter, 1 - keep)
        self.recent.append(value)
        self.loss = value if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * value
        self.seconds += time.perf_counter() - started
        return value

    def save(self, folder: Path) -> None:
        """Write the state, then the checkpoint; each file appears whole or not at all.

        Raises:
            StoreError: the folder cannot be written; what was there before is kept.
        """
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        for prefix, network in (("model", self.model), ("average", self.average)):
            tensors |= {f"{prefix}.{name}": value for name, value in network.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for optimiser in self.optimisers:
                tensors |= {f"{key}.{name}": value for key, value in optimiser.state.get(parameter, {}).items()}
        about = {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
            "loss": self.loss if self.step else None,
            "origin": self.origin,
        }
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_atomically(folder / STATE, save(content, {"ditf": json.dumps(about)}))
        save_checkpoint(self.average, folder, self.card())

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "cpu", bf16: bool = False, compiled: bool = False, **changes: Any
    ) -> Training:
        """Take up the run that a folder holds.

        Args:
            changes: fields of the recipe to change, such as its length.

        Raises:
            StoreError: no state in the folder, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        path = folder / STATE
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["ditf"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            recipe = dataclasses.replace(Recipe(**about["recipe"]), **changes)
            run = cls(recipe, device=device, bf16=bf16, compiled=compiled)
            for prefix, network in (("model", run.model), ("average", run.average)):
                network.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in network.state_dict()})
            for optimiser in run.optimisers:
                run._restore(optimiser, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"{path}: no training can be resumed from it ({error}); give the --out of a run") from None
        run.step, run.seconds = about["step"], about["seconds"]
        run.recent, run.origin = about["recent"], about["origin"]
        run.loss = about.get("loss") or math.nan
        return run

    def card(self) -> dict[str, Any]:
        """What the checkpoint was made of, as plain JSON values."""
        import diffusers

        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        before = self.origin or {}
        return {
            "training": {
                "data": _pictures_in_words(self.recipe),
                "images": before.get("images", 0) + self.images,
                "seconds": before.get("seconds", 0) + round(self.seconds),
                "device": device,
                "loss": round(float(np.mean(self.recent)), 4) if self.recent else None,
                "recipe": dataclasses.asdict(self.recipe),
                "versions": {"torch": str(torch.__version__), "diffusers": diffusers.__version__},
                "started from": self.origin,
            }
        }

    def _restore(self, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
        """Put back what ``save`` wrote of one optimiser."""
        mine = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in mine:
                continue
            kept = {key: tensors[f"{key}.{name}"] for key in _MOMENTS if f"{key}.{name}" in tensors}
            if kept:
                optimiser.state[parameter] = {
                    key: value if key == "step" else value.to(self.device) for key, value in kept.items()
                }

    def _batch(self, *, decaying: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures and noise (B, 3, H, W) and noise levels (B,) of this step, whatever came before it."""
        recipe = self.recipe
        random = np.random.default_rng([recipe.seed, self.step])
        large = random.random() < (1 - recipe.large if decaying else recipe.large)
        size = recipe.sizes[0] if large else recipe.sizes[1]
        pictures = self._pictures(random, size)
        generator = torch.Generator(self.device).manual_seed(int(random.integers(2**62)))
        noise = torch.randn(pictures.shape, generator=generator, device=self.device)
        normal = torch.randn(recipe.batch, generator=generator, device=self.device)
        return pictures, noise, torch.sigmoid(normal * recipe.sigma_spread + recipe.sigma_mean)

    def _pictures(self, random: np.random.Generator, size: int) -> Tensor:
        """(B, 3, size, size) in [-1, 1], from the pool or newly drawn."""
        if self.pool is not None:
            reach = 0.2 + 0.8 * self._ripe
            drawn = self.pool.batch(
                self.recipe.seed, self.step, self.recipe.batch, size=size, reach=reach, device=self.device
            )
        else:
            options = self._scene_options(random)
            first = TRAINING_SEED * (1 + self.recipe.seed) + self.images
            scenes = [sample_scene(first + i, size, **options).pixels for i in range(self.recipe.batch)]
            drawn = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).to(self.device)
        return (drawn.float() / 127.5 - 1).contiguous()

    @property
    def _ripe(self) -> float:
        """How much of the curriculum has come in, 0 to 1."""
        return min(1.0, self.progress / self.recipe.curriculum) if self.recipe.curriculum else 1.0

    def _scene_options(self, random: np.random.Generator) -> dict[str, Any]:
        """How hard the pictures of a batch are, by the curriculum."""
        recipe = self.recipe
        shares = (recipe.clutter, recipe.occluded, recipe.viewpoint, recipe.styled)
        clutter, occluded, tilted, styled = random.random(4) < self._ripe * np.array(shares)
        style = str(random.choice(STYLES[1:])) if styled else STYLES[0]
        return {
            "clutter": bool(clutter),
            "occluders": int(occluded),
            "viewpoint": 0.6 * float(tilted),
            "style": style,
        }


def _pictures_in_words(recipe: Recipe) -> str:
    shares = (
        (recipe.clutter, "clutter"),
        (recipe.occluded, "something in front"),
        (recipe.viewpoint, "a tilt in depth"),
        (recipe.styled, "shading or grain"),
    )
    hard = "".join(f", {what} in {share:.0%} of the batches" for share, what in shares if share)
    sizes = " and ".join(map(str, recipe.sizes))
    return f"procedural scenes of ditf.tiny.scenes: quad, bird, fish, car; plain backgrounds{hard}; {sizes} px"


_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


def _optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices inside the blocks. Their AdaLN is no hidden layer: AdamW's."""
    muon = {
        name
        for name, parameter in model.named_parameters()
        if recipe.optimiser == "muon" and parameter.ndim == 2 and "blocks." in name and ".norm" not in name
    }
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim >= 2 and name not in muon]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=_BETAS)  # pyright: ignore[reportArgumentType]
    ]
    if muon:
        hidden = [p for name, p in named if name in muon]
        optimisers.append(
            torch.optim.Muon(
                hidden, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimisers


def _compile(model: FluxTransformer2DModel) -> None:
    """Compile the blocks. Attention is written out: on a CPU the backward of the fused one is slow in bfloat16."""
    if next(model.parameters()).device.type == "cpu":
        model.set_attention_backend("_native_math")
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.compile(dynamic=False)  # pyright: ignore[reportCallIssue]
