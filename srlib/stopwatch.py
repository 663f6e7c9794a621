"""Seconds by stage of a restoration. A stage is timed only while a stopwatch runs, and costs nothing otherwise.

On a CPU these are processor seconds of all threads: other work on the machine hardly changes them, and on one thread of
an idle machine they are what a clock shows. On a GPU they are those of the clock.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")
_running: list[dict[str, float]] = []


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds that each stage takes inside the block, by name; `total` is that of the whole block."""
    seconds: dict[str, float] = {}
    _running.append(seconds)
    try:
        with _timed(seconds, "total"):
            yield seconds
    finally:
        _running.remove(seconds)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function counted as the stage `name`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _running:
                return function(*args, **kwargs)
            with _timed(_running[-1], name):
                return function(*args, **kwargs)

        return wrapper

    return decorate


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = _now()
    yield
    seconds[name] = seconds.get(name, 0.0) + _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a GPU works on after the call returns
        return time.perf_counter()
    return time.process_time()
