"""Many small pieces of work on all cores of a CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import torch

__all__ = ["Workers"]


class Workers:
    """On a CPU one target per thread, each on one core, instead of all cores on one op after the other.

    The ops are too small to share: threads that wait for each other at the end of each cost more than they give, and on
    a busy machine many times more. With one core an op also gives the same bits on every machine.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._on_cpu = device.type == "cpu"

    def __enter__(self) -> Workers:
        if self._on_cpu:
            torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._on_cpu:
            torch.set_num_threads(self.count)

    def each(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of the jobs; no more jobs are made than are worked on and one to come."""
        if self.count == 1:
            yield from map(function, jobs)
            return
        waiting: deque[Future[Any]] = deque()
        for job in jobs:
            waiting.append(self._pool.submit(copy_context().run, function, job))
            if len(waiting) > self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
