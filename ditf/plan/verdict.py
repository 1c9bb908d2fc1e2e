"""A plan held against a card's data sheet."""

from __future__ import annotations

from collections.abc import Iterator

from .gpus import Gpu
from .types import Fit, Plan, Stage, StageTime

__all__ = ["judged"]


def judged(plan: Plan, gpu: Gpu) -> Fit:
    """Lower bounds on the time of each stage, whether the card holds it, and what to do where it does not."""
    times = tuple(_time(stage, gpu) for stage in plan.stages)
    over = [stage for stage in plan.stages if stage.peak_bytes > gpu.memory_bytes]
    advice = [sentence for stage in over for sentence in _advice(stage, plan, gpu)]
    return Fit(gpu, times, not over, tuple(dict.fromkeys(advice)))


def _time(stage: Stage, gpu: Gpu) -> StageTime:
    rate = gpu.single_flops if stage.dtype == "float32" else gpu.half_flops
    compute = None if stage.flops is None else stage.flops / rate
    return StageTime(stage.name, compute, stage.traffic_bytes / gpu.bandwidth)


def _advice(stage: Stage, plan: Plan, gpu: Gpu) -> Iterator[str]:
    room = gpu.memory_bytes - stage.weights_bytes
    if stage.name == "encode text":
        yield (
            "the text encoders do not fit: ditf then runs them on the CPU by itself; or encode the prompts once "
            "elsewhere and give the embeddings (backbone.remember)"
        )
        return
    if room > 0:
        fitting = int(plan.ensemble * room / max(stage.activation_bytes or 1, 1))
        smaller = f"--ensemble {fitting}" if 1 <= fitting < plan.ensemble else "a smaller --size"
        yield f"the weights fit and the activations do not: try {smaller}"
    if stage.name == "encode image":
        yield "encode smaller images: the VAE's activations grow with their pixels"
        return
    if plan.dtype == "float32":
        yield "--dtype bfloat16 halves the transformer"
    if room <= 0:
        if plan.part("transformer").bytes_read == plan.part("transformer").bytes_stored and plan.block > 0:
            yield "truncation saves nothing here: tap an earlier block"
        elif plan.block > 0:
            yield f"an earlier --block than {plan.block} reads fewer weights"
        yield (
            "or load the pipeline with diffusers, quantised or with enable_sequential_cpu_offload(), and give it to "
            "FeatureExtractor"
        )
