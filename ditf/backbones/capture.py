"""Look into one forward at chosen blocks, and leave it as soon as the last has been seen.

Plain PyTorch hooks, so any model's own forward runs unchanged: the first norm of a block that is given tokens shows
what enters the block, its first attention shows what the block's AdaLN made of them, and so on through the block.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .stacks import BlockSite, unwrap

__all__ = ["Capture", "exclusive", "feed_forward_of", "is_attention", "reenter", "run_until"]

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


_FEED_FORWARDS = ("ff", "ffn", "feed_forward", "img_mlp", "mlp", "ff_i")


@dataclass(eq=False)
class Capture:
    """What one forward showed at one block; filled by hooks.

    Attributes:
        until: what has to be seen: the input of the block's first norm, of its first attention, of its feed-forward
            network, or the output of ``part``.
        part: a module of the block.
        replace: tokens to put in the place of what enters a norm, the first or ``replace_at``.
        tokens: (B, S, D) input of the block's first norm, all tokens.
        norm: that first norm.
        modulated: (B, S', D) input of its first attention; None where the forward left before.
        later: the norms after that attention, each with its input, in order.
        fed: input of the feed-forward network.
        output: of ``part``, the first tensor of it.
        args, kwargs: of the block's call.
    """

    site: BlockSite
    until: Literal["norm", "attention", "feed_forward", "output"] = "attention"
    part: nn.Module | None = None
    replace: Tensor | None = None
    replace_at: nn.Module | None = None
    tokens: Tensor | None = None
    norm: nn.Module | None = None
    modulated: Tensor | None = None
    later: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    fed: Tensor | None = None
    output: Tensor | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> Tensor | None:
        """What had to be seen."""
        return {"norm": self.tokens, "attention": self.modulated, "feed_forward": self.fed, "output": self.output}[
            self.until
        ]

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The block has been called."""
        self.args, self.kwargs = args, kwargs
        self.tokens = self.norm = self.modulated = self.fed = self.output = None
        self.later = []

    @property
    def call(self) -> dict[str, Any]:
        """The block's arguments by name. Bound to the class's forward: an instance's may be a wrapper."""
        block = unwrap(self.site.module)
        bound = inspect.signature(type(block).forward).bind_partial(block, *self.args, **self.kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


class _Leave(Exception):  # noqa: N818 (no error: the way out of the forward)
    """Ends a forward that has shown everything. An Exception, so that hooks and ``finally`` clauses still run."""


@contextlib.contextmanager
def exclusive(transformer: nn.Module) -> Iterator[None]:
    """One pass at a time on a model (hooks live on it), in eval mode, without gradients."""
    with _locks_guard:
        lock = _locks.setdefault(transformer, threading.RLock())
    with lock, torch.no_grad():
        training = [m for m in transformer.modules() if m.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


def run_until(transformer: nn.Module, captures: Sequence[Capture], inputs: Mapping[str, Any]) -> None:
    """Fill the captures with one forward of the transformer, and leave at the deepest.

    Raises:
        ModelError: the forward ended without reaching a block, or a block without norm and attention.
    """
    last = max(captures, key=lambda capture: capture.site.index)
    with contextlib.ExitStack() as stack:
        for capture in captures:
            stack.enter_context(_watching(capture, leave=capture is last))
        stack.enter_context(_eager(transformer, *(capture.site.module for capture in captures)))
        with contextlib.suppress(_Leave):
            transformer(**inputs)
    for capture in captures:
        if capture.found is None:
            raise ModelError(
                f"block {capture.site.index} ({capture.site.name}) of {type(transformer).__name__} was never reached, "
                f"or its {type(capture.site.module).__name__} calls no norm and attention; "
                "disable skip_layers and caching hooks, or tap another block"
            )


def reenter(capture: Capture, tokens: Tensor, norm: nn.Module | None = None) -> Tensor:
    """What the block shows when these tokens enter its first norm, or ``norm``; the rest of its call is kept."""
    again = Capture(capture.site, capture.until, capture.part, replace=tokens, replace_at=norm)
    if again.until == "norm":
        again.until = "attention"
    with _watching(again, leave=True), _eager(capture.site.module), contextlib.suppress(_Leave):
        capture.site.module(*capture.args, **capture.kwargs)
    if again.found is None:
        raise ModelError(f"block {capture.site.index}: no attention follows its norm; it cannot be probed")
    return again.found


def feed_forward_of(block: nn.Module) -> nn.Module | None:
    """The feed-forward network of the block's image tokens, by the names that diffusers gives it."""
    children = dict(getattr(block, "block", block).named_children())  # HiDream wraps its blocks
    return next((children[name] for name in _FEED_FORWARDS if name in children), None)


@contextlib.contextmanager
def _watching(capture: Capture, *, leave: bool) -> Iterator[None]:
    """Hooks on one block."""
    block = capture.site.module
    handles = [block.register_forward_pre_hook(_on_block(capture), with_kwargs=True)]
    parts = list(block.modules())[1:]
    inside_norm = {id(inner) for m in parts if _is_norm(m) for inner in m.modules() if inner is not m}
    inside_attention = {id(inner) for m in parts if is_attention(m) for inner in m.modules()}
    for module in parts:
        if is_attention(module):
            handles.append(module.register_forward_pre_hook(_on_attention(capture, leave), with_kwargs=True))
        elif _is_norm(module) and id(module) not in inside_norm:
            own = id(module) not in inside_attention
            handles.append(module.register_forward_pre_hook(_on_norm(capture, leave, own), with_kwargs=True))
    if capture.until == "feed_forward" and (network := feed_forward_of(unwrap(block))) is not None:
        handles.append(network.register_forward_pre_hook(_on_feed_forward(capture, leave), with_kwargs=True))
    if capture.part is not None:
        handles.append(capture.part.register_forward_hook(_on_output(capture, leave)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_block(capture: Capture) -> Callable[..., None]:
    return lambda module, args, kwargs: capture.start(args, kwargs)


def _on_norm(capture: Capture, leave: bool, own: bool) -> Callable[..., Any]:
    """``own``: the norm is not part of an attention."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where, tokens = _first_tokens(args, kwargs)
        if tokens is None:
            return None
        if capture.tokens is not None:
            if own and capture.modulated is not None:
                capture.later.append((module, tokens))
            return _replaced(args, kwargs, where, capture.replace) if capture.replace_at is module else None
        _, entering = _first_tokens(capture.args, capture.kwargs)
        # a norm of another width is not the block's own: that of a text stream or of a skip connection
        if entering is not None and tokens.shape[-1] != entering.shape[-1]:
            return None
        capture.norm, capture.tokens = module, tokens
        if leave and capture.until == "norm":
            raise _Leave
        if capture.replace is None or capture.replace_at not in (None, module):
            return None
        return _replaced(args, kwargs, where, capture.replace)

    return hook


def _on_attention(capture: Capture, leave: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if capture.tokens is None or capture.modulated is not None or capture.until == "norm":
            return
        _, capture.modulated = _first_tokens(args, kwargs)
        if leave and capture.until == "attention":
            raise _Leave

    return hook


def _on_feed_forward(capture: Capture, leave: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if capture.fed is not None:
            return
        _, capture.fed = _first_tokens(args, kwargs)
        if leave:
            raise _Leave

    return hook


def _on_output(capture: Capture, leave: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if capture.output is not None:
            return
        capture.output = output if isinstance(output, Tensor) else output[0]
        if leave:
            raise _Leave

    return hook


@contextlib.contextmanager
def _eager(*modules: nn.Module) -> Iterator[None]:
    """Run these modules without their compiled call: hooks added after compilation are skipped in it."""
    compiled = [(m, c) for m in modules if (c := getattr(m, "_compiled_call_impl", None)) is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def is_attention(module: nn.Module) -> bool:
    """By the name of its class, as every attention module of diffusers is called."""
    name = type(module).__name__
    return ("Attention" in name or "Attn" in name) and "Norm" not in name and not name.endswith("Block")


def _first_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | str | None, Tensor | None]:
    """The first argument that holds tokens (three dimensions), and where it is."""
    for position, value in enumerate(args):
        if isinstance(value, Tensor) and value.ndim >= 3:
            return position, value
    for name in ("hidden_states", "x", "input", *kwargs):
        if isinstance(value := kwargs.get(name), Tensor) and value.ndim >= 3:
            return name, value
    return None, None


def _replaced(args: tuple[Any, ...], kwargs: dict[str, Any], where: Any, value: Any) -> tuple[Any, Any]:
    if isinstance(where, int):
        return (*args[:where], value, *args[where + 1 :]), kwargs
    return args, {**kwargs, where: value}
