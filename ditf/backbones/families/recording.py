"""Let a diffusers pipeline prepare its transformer's inputs itself, and listen at the transformer's door.

A shadow of the pipeline (the same parts, another scheduler, an ear in place of the transformer) is called as a user
would. Its "random" initial latents are ours, its scheduler has one step, at our timestep, and the call ends when the
transformer would begin. The pipeline given is not changed and nothing heavy runs.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..stacks import unwrap

__all__ = ["answers_of", "is_flow", "mapped", "recorded_arguments"]

Draw = Callable[[tuple[int, ...]], Tensor | None]
"""Shape of the noise a pipeline asks for -> what it gets; None: its own noise."""

_patching = threading.RLock()


def recorded_arguments(
    pipeline: Any, call: Mapping[str, Any], *, timestep: float, draw: Draw, answers: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Arguments, by name, with which a pipeline calls its transformer.

    Args:
        pipeline: of diffusers; its transformer and VAE may be empty (on the meta device).
        call: arguments of the pipeline.
        timestep: noise level in 0..1000.
        draw: gives the initial latents.
        answers: what its ``encode_prompt`` returns, call by call; None lets it encode.

    Raises:
        ModelError: the pipeline fails, or never calls its transformer.
    """
    shadow, device = _shadow(pipeline, timestep), _device(pipeline)
    if answers is not None:
        remaining = iter(mapped(list(answers), lambda tensor: tensor.to(device)))
        shadow.__dict__["encode_prompt"] = lambda *_, **__: next(remaining)
    reached = _run(shadow, mapped(call, lambda tensor: tensor.to(device)), draw)
    if reached is None:
        raise ModelError(
            f"{type(pipeline).__name__} never calls its transformer at timestep {timestep:g}; ditf cannot feed it: "
            "prepare the transformer's inputs and call ditf.tap"
        )
    core = unwrap(pipeline.transformer)
    bound = inspect.signature(type(core).forward).bind_partial(core, *reached.args_given, **reached.kwargs_given)
    arguments = dict(bound.arguments)
    arguments.pop(next(iter(inspect.signature(type(core).forward).parameters)))  # self
    return {**{k: v for k, v in arguments.items() if k != "kwargs"}, **arguments.get("kwargs", {})}


def answers_of(pipeline: Any, call: Mapping[str, Any]) -> list[Any]:
    """What the pipeline's ``encode_prompt`` answers, call by call, on the way to its latents.

    Raises:
        ModelError: the pipeline fails.
    """
    shadow = _shadow(pipeline, 500.0)
    encode, answers = shadow.encode_prompt, []

    def listening(*args: Any, **kwargs: Any) -> Any:
        answers.append(encode(*args, **kwargs))
        return answers[-1]

    def leave(shape: tuple[int, ...]) -> Tensor:
        raise _Reached

    shadow.__dict__["encode_prompt"] = listening
    _run(shadow, call, leave)
    return answers


def is_flow(scheduler: Any) -> bool:
    """Whether a diffusers scheduler adds noise by rectified flow."""
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nest of lists, tuples and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(entry, change) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(entry, change) for entry in value)
    return value


class _Reached(Exception):  # noqa: N818 (no error: the way out of the pipeline)
    """The transformer was called, or what was asked for is known."""

    def __init__(self, args_given: tuple[Any, ...] = (), kwargs_given: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.args_given, self.kwargs_given = args_given, dict(kwargs_given or {})


class _Ear:
    """Stands in the shadow for the transformer: has all it has, and ends the pipeline when it is called."""

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride] (pipelines ask isinstance)
        return type(self._transformer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_transformer"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _Reached(args, kwargs)

    def cache_context(self, *_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def _shadow(pipeline: Any, timestep: float) -> Any:
    """The pipeline with an ear, one step and no progress bar; shares all else with it."""
    shadow = copy.copy(pipeline)
    device = _device(pipeline)
    # the device of what is computed here; the parts themselves may be elsewhere, or nowhere
    shadow.__class__ = type(type(pipeline).__name__, (type(pipeline),), {"_execution_device": device, "device": device})
    shadow.__dict__["transformer"] = _Ear(pipeline.transformer)
    shadow.__dict__["scheduler"] = _one_step(pipeline.scheduler, timestep, device)
    shadow.set_progress_bar_config(disable=True)
    return shadow


def _device(pipeline: Any) -> torch.device:
    device = torch.device(pipeline._execution_device)
    if device.type != "meta":
        return device
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    real = (p.device for module in modules for p in module.parameters() if p.device.type != "meta")
    return next(real, torch.device("cpu"))


def _one_step(scheduler: Any, timestep: float, device: torch.device) -> Any:
    """A copy of the scheduler that always has one step, exactly at ``timestep``, and does not touch latents."""
    kind = type(scheduler)
    step = copy.copy(scheduler)
    step.__class__ = type(kind.__name__, (kind,), {"init_noise_sigma": 1.0})
    step.__dict__.pop("init_noise_sigma", None)
    sigma = timestep / 1000
    if is_flow(scheduler):
        config = scheduler.config
        shown = 1 - sigma if config.get("invert_sigmas") else sigma
        times = torch.tensor([shown * config.num_train_timesteps], dtype=torch.float32)
    else:
        times = torch.tensor([min(round(timestep), int(scheduler.config.num_train_timesteps) - 1)])

    @functools.wraps(kind.set_timesteps)  # pipelines look at its signature
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        step.timesteps = times.to(device)
        step.sigmas = torch.tensor([sigma, 0.0], device=device)
        step.num_inference_steps = 1

    def unscaled(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return sample

    step.set_timesteps, step.scale_model_input = set_timesteps, unscaled
    return step


@torch.no_grad()
def _run(shadow: Any, call: Mapping[str, Any], draw: Draw) -> _Reached | None:
    """Call the shadow until something is reached; None where it ends by itself."""
    accepted = inspect.signature(type(shadow).__call__).parameters
    with _initial_noise(shadow, draw):
        try:
            shadow(**{name: value for name, value in call.items() if name in accepted})
        except _Reached as reached:
            return reached
        except (ModelError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a pipeline fails in as many ways as there are pipelines
            raise ModelError(
                f"{type(shadow).__name__} cannot prepare its transformer's inputs ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); prepare them and call ditf.tap"
            ) from error
    return None


@contextlib.contextmanager
def _initial_noise(pipeline: Any, draw: Draw) -> Iterator[None]:
    """Answer this thread's calls of ``randn_tensor`` in the pipeline's modules."""
    modules = {sys.modules.get(kind.__module__) for kind in type(pipeline).__mro__}
    drawing = [module for module in modules if module is not None and hasattr(module, "randn_tensor")]
    thread = threading.get_ident()

    def patched(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(real)
        def randn_tensor(shape: Any, *args: Any, device: Any = None, dtype: Any = None, **kwargs: Any) -> Tensor:
            ours = draw(tuple(shape)) if threading.get_ident() == thread else None
            if ours is None:
                return real(shape, *args, device=device, dtype=dtype, **kwargs)
            return ours.to(device=device, dtype=dtype)

        return randn_tensor

    with _patching:
        before = [(module, module.randn_tensor) for module in drawing]
        try:
            for module, real in before:
                module.randn_tensor = patched(real)  # pyright: ignore[reportAttributeAccessIssue]
            yield
        finally:
            for module, real in before:
                module.randn_tensor = real  # pyright: ignore[reportAttributeAccessIssue]
