"""The hardware, and the seconds that each stage of a restoration takes on it."""

from __future__ import annotations

import functools
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")
_CPUINFO = Path("/proc/cpuinfo")
_running: list[dict[str, float]] = []  # the innermost stopwatch is the last


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, the GPU or None, and torch's version."""
    found = _CPUINFO.is_file() and re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
    return {
        "processor": found[1] if found else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds that each `stage` takes inside the block, by name; `total` is that of the whole block.

    On a CPU these are processor seconds of all threads, which other work on the machine hardly changes. On a GPU they
    are seconds of the clock.
    """
    seconds: dict[str, float] = {}
    _running.append(seconds)
    try:
        with _timed(seconds, "total"):
            yield seconds
    finally:
        _running.remove(seconds)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that a running stopwatch counts its seconds as the stage `name`."""

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
