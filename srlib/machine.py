"""The hardware, and the seconds that each stage of a restoration takes on it."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

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

    On a CPU they are processor seconds of all threads, which other processes hardly change; on a GPU clock seconds.
    """
    seconds: dict[str, float] = {}
    _running.append(seconds)
    try:
        with stage("total"):
            yield seconds
    finally:
        _running.pop()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A block, or as a decorator a function, whose seconds a running stopwatch counts as the stage `name`."""
    if not _running:
        yield
        return
    seconds, start = _running[-1], _now()
    yield
    seconds[name] = seconds.get(name, 0.0) + _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a GPU works on after the call returns
        return time.perf_counter()
    return time.process_time()
