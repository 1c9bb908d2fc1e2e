"""Train ``ditf-tiny``: flow matching on procedural scenes.

    python -m ditf.tiny.train --out FOLDER --minutes 40
    python -m ditf.tiny.train --out FOLDER --resume FOLDER
    python -m ditf.tiny.train --out FOLDER --init CHECKPOINT --images 100000

The folder then holds the averaged weights as a checkpoint (``config.json``, ``model.safetensors``, ``ditf.json``,
``card.json``), ``loss.csv``, and ``state.safetensors`` to go on from. Every random choice depends on the seed and the
step alone: with ``--images`` on a CPU with one thread, a run that was killed and resumed ends bitwise equal to one that
was not.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DitfError, InputError, StoreError
from ..types import write_atomically
from .network import build, flow_loss, load_weights, save_checkpoint
from .scenes import TRAINING_SEED, sample_scene

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["Recipe", "Training", "main"]

log = logging.getLogger("ditf")

_STATE, _LOSSES = "state.safetensors", "loss.csv"
_COLUMNS = "step,images,seconds,loss,learning_rate\n"
_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        width, heads, double_blocks, single_blocks, patch: of the network.
        sizes: sides of the pictures, large and small; a batch has one.
        large: share of batches with large pictures before the decay; then it is one minus this.
        clutter: share of batches with busy backgrounds and smaller instances.
        batch: pictures per step.
        images, minutes: the length of the run; exactly one is given. Only ``images`` makes runs repeatable.
        learning_rate: after ``warmup`` steps, until the last ``decay`` of the run takes it down to a fiftieth.
        average: of the exponential moving average of the weights, which is what a checkpoint holds.
        sigma_mean, sigma_spread: noise levels are the sigmoid of a normal variable.
        seed: of the weights, the scenes and the noise.
    """

    width: int = 128
    heads: int = 4
    double_blocks: int = 2
    single_blocks: int = 6
    patch: int = 4
    sizes: tuple[int, int] = (64, 40)
    large: float = 0.3
    clutter: float = 0.0
    batch: int = 8
    images: int | None = None
    minutes: float | None = None
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warmup: int = 100
    decay: float = 0.25
    average: float = 0.999
    sigma_mean: float = 0.1
    sigma_spread: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if (self.images is None) == (self.minutes is None):
            raise InputError(f"images, minutes: got {self.images} and {self.minutes}, expected exactly one of them")
        length = self.images if self.images is not None else self.minutes
        if length is None or not length > 0:
            raise InputError.of("images" if self.minutes is None else "minutes", length, "more than 0")
        if self.batch < 1:
            raise InputError.of("batch", self.batch, "at least 1")
        if any(size % self.patch for size in self.sizes):
            raise InputError.of("sizes", self.sizes, f"multiples of the patch, {self.patch}")


class Training:
    """A run that can be stopped after any step and taken up again.

    Attributes:
        step: steps done.
        seconds: spent on them, over all legs of the run.
        model, average: the weights, and their moving average.
        origin: what the card of the checkpoint it started from says of its training, or None.
    """

    def __init__(self, recipe: Recipe, *, device: str = "cpu", bf16: bool = False) -> None:
        self.recipe, self.device, self.bf16 = recipe, torch.device(device), bf16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model: FluxTransformer2DModel = build(
                recipe.width, recipe.heads, recipe.double_blocks, recipe.single_blocks, recipe.patch
            )
        self.model.to(self.device)  # pyright: ignore[reportArgumentType]
        self.average = copy.deepcopy(self.model).eval()
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=_BETAS)
        self.step, self.seconds, self.learning_rate = 0, 0.0, 0.0
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
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        pictures, noise, sigma = (t.to(self.device, non_blocking=True) for t in self._batch(decaying=falling < 1))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = flow_loss(self.model, pictures, noise, sigma)
        value = loss.item()
        if not math.isfinite(value):
            raise DitfError(
                f"the loss is {value} at step {self.step}; resume from the last state with a smaller learning rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), parameters, strict=True):
                mean.lerp_(parameter, 1 - keep)
        self.recent.append(value)
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
            tensors |= {f"{key}.{name}": value for key, value in self.optimiser.state.get(parameter, {}).items()}
        about = {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
            "origin": self.origin,
        }
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_atomically(folder / _STATE, save(content, {"ditf": json.dumps(about)}))
        save_checkpoint(self.average, folder, self.card())

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", bf16: bool = False, **changes: Any) -> Training:
        """Take up the run that a folder holds.

        Args:
            changes: fields of the recipe to change, such as its length.

        Raises:
            StoreError: no state in the folder, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        path = folder / _STATE
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["ditf"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            run = cls(dataclasses.replace(Recipe(**about["recipe"]), **changes), device=device, bf16=bf16)
            for prefix, network in (("model", run.model), ("average", run.average)):
                network.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in network.state_dict()})
            for name, parameter in run.model.named_parameters():
                if f"step.{name}" in tensors:
                    moments = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                    run.optimiser.state[parameter] = {
                        key: value if key == "step" else value.to(run.device) for key, value in moments.items()
                    }
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"{path}: no training can be resumed from it ({error}); give the --out of a run") from None
        run.step, run.seconds = about["step"], about["seconds"]
        run.recent, run.origin = about["recent"], about["origin"]
        return run

    def card(self) -> dict[str, Any]:
        """What the checkpoint was made of, as plain JSON values."""
        import diffusers

        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        before = self.origin or {}
        return {
            "training": {
                "data": "procedural scenes of ditf.tiny.scenes: quad, bird, fish, car",
                "images": before.get("images", 0) + self.images,
                "seconds": before.get("seconds", 0) + round(self.seconds),
                "device": device,
                "loss": round(float(np.mean(self.recent)), 4) if self.recent else None,
                "recipe": dataclasses.asdict(self.recipe),
                "versions": {"torch": str(torch.__version__), "diffusers": diffusers.__version__},
                "started from": self.origin,
            }
        }

    def _batch(self, *, decaying: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures and noise (B, 3, H, W) and noise levels (B,) of this step, whatever came before it."""
        recipe = self.recipe
        random = np.random.default_rng([recipe.seed, self.step])
        large = random.random() < (1 - recipe.large if decaying else recipe.large)
        clutter = bool(random.random() < recipe.clutter)
        size = recipe.sizes[0] if large else recipe.sizes[1]
        first = TRAINING_SEED * (1 + recipe.seed) + self.images
        scenes = [sample_scene(first + i, size, clutter=clutter).pixels for i in range(recipe.batch)]
        pictures = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        noise = torch.randn(pictures.shape, generator=generator)
        normal = torch.randn(recipe.batch, generator=generator)
        return pictures.contiguous(), noise, torch.sigmoid(normal * recipe.sigma_spread + recipe.sigma_mean)


def run(training: Training, folder: Path, *, log_every: int, save_every: float, stop_after: float | None) -> None:
    """Train to the end of the recipe, or for ``stop_after`` minutes; saves every ``save_every`` minutes."""
    table = _kept_rows(folder / _LOSSES, training.step)
    started = saved = time.monotonic()
    while training.progress < 1:
        training.advance()
        if training.step % log_every == 0:
            loss = float(np.mean(training.recent))
            training.recent = training.recent[-1:] if training.progress >= 1 else []
            row = (training.step, training.images, f"{training.seconds:.1f}", loss, training.learning_rate)
            table += ",".join(map(str, row)) + "\n"
            write_atomically(folder / _LOSSES, table.encode())
            speed = training.images / training.seconds
            log.info(
                "%5.1f%%  step %d  %d images  loss %.4f  %.1f images/s",
                100 * training.progress, training.step, training.images, loss, speed,
            )  # fmt: skip
        now = time.monotonic()
        if stop_after is not None and now - started > 60 * stop_after:
            break
        if now - saved > 60 * save_every:
            training.save(folder)
            saved = now
    training.save(folder)


def _kept_rows(path: Path, step: int) -> str:
    """The loss table up to a step: rows of a leg that was lost are dropped."""
    if not step or not path.is_file():
        return _COLUMNS
    rows = path.read_text().splitlines(keepends=True)[1:]
    return _COLUMNS + "".join(row for row in rows if int(row.split(",")[0]) <= step)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    given = {
        field.name: value for field in dataclasses.fields(Recipe) if (value := getattr(options, field.name)) is not None
    }
    try:
        training = _training(options, given)
        options.out.mkdir(parents=True, exist_ok=True)
        run(
            training,
            options.out,
            log_every=options.log_every,
            save_every=options.save_every,
            stop_after=options.stop_after,
        )
    except (DitfError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; go on with --out {options.out} --resume {options.out}", file=sys.stderr)
        return 130
    return 0


def _training(options: argparse.Namespace, given: dict[str, Any]) -> Training:
    where = {"device": options.device, "bf16": options.bf16}
    if options.resume is not None:
        if "images" in given:
            given["minutes"] = None
        elif "minutes" in given:
            given["images"] = None
        return Training.load(options.resume, **where, **given)
    if (options.out / _STATE).exists():
        raise InputError(f"out: {options.out} holds a training already; add --resume {options.out} or choose another")
    training = Training(Recipe(**given), **where)
    if options.init is not None:
        training.start_from(options.init)
    return training


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ditf.tiny.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the state")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    start.add_argument("--init", type=Path, metavar="CHECKPOINT", help="start from these weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16; weights stay in float32")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default 1, which is repeatable)")
    parser.add_argument("--log-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--save-every", type=float, default=2.0, metavar="MINUTES")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="end this leg; --resume goes on")
    recipe = parser.add_argument_group("recipe", "what decides the weights; a resumed run keeps its own by default")
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "sizes":
            recipe.add_argument(flag, type=int, nargs=2, metavar=("LARGE", "SMALL"))
        else:
            recipe.add_argument(flag, type=_parsers[field.name], metavar="N")
    return parser


_parsers: dict[str, type] = {
    field.name: float if "float" in str(field.type) else int for field in dataclasses.fields(Recipe)
}

if __name__ == "__main__":
    sys.exit(main())
