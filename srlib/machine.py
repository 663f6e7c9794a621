"""The hardware, and the seconds that each stage of a restoration takes on it."""

from __future__ import annotations

import functools
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
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
    """Seconds that each `stage` takes inside the block, by name, and the `total` of the block.

    They are processor seconds of all threads on a CPU, which other work hardly changes, and clock seconds on a GPU.
    """
    seconds: dict[str, float] = {}
    _running.append(seconds)
    try:
        with _timed(seconds, "total"):
            yield seconds
    finally:
        _running.remove(seconds)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: a running stopwatch counts the function's seconds as the stage `name`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            with _timed(_running[-1], name) if _running else nullcontext():
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
