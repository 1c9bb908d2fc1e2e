"""Hooks that others put on a model: what offloading brought to the device goes back, and caches are refused.

Offloading hooks (accelerate's, and diffusers' group offloading) put a module's weights away after its forward. Those of
the modules that a forward was inside of when it was left never get there, so their last step is taken here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from ..errors import ModelError
from .stacks import BlockSite

__all__ = ["refuse_caches", "settled"]


@contextlib.contextmanager
def settled(transformer: nn.Module, sites: Sequence[BlockSite]) -> Iterator[None]:
    """Afterwards, no weights of these blocks, of what holds them and of the transformer itself are left on the device.

    Without effect on a model that is not offloaded.
    """
    try:
        yield
    finally:
        for site in sites:
            for module in reversed(list(site.module.modules())):
                _put_away(module)
        for module in _holders(transformer, sites):
            _put_away(module)


def refuse_caches(transformer: nn.Module) -> None:
    """Refuse a model whose hooks answer from what they saw in earlier forwards: those were of other images.

    Raises:
        ModelError: naming the hook.
    """
    for module in transformer.modules():
        registry: Any = getattr(module, "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            if hook._is_stateful:
                raise ModelError(
                    f"{type(transformer).__name__}: a cache ({type(hook).__name__}) would mix in earlier images; call "
                    "transformer.disable_cache() before taking features"
                )


def _holders(transformer: nn.Module, sites: Sequence[BlockSite]) -> list[nn.Module]:
    """The modules on the way to the blocks, innermost first, the transformer last."""
    names: set[str] = {""}
    for site in sites:
        steps = site.stack.path.split(".")
        names.update(".".join(steps[:count]) for count in range(1, len(steps) + 1))
    return [transformer.get_submodule(name) for name in sorted(names, key=len, reverse=True)]


def _put_away(module: nn.Module) -> None:
    registry: Any = getattr(module, "_diffusers_hook", None)
    if registry is not None and (hook := registry.get_hook("group_offloading")) is not None:
        hook.post_forward(module, None)
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        if getattr(part, "offload", False) and any(not p.is_meta for p in module.parameters(part.place_submodules)):
            part.post_forward(module, None)
