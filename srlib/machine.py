"""The machine that a run or a figure depends on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from srlib.errors import SrlibError

_CPUINFO = Path("/proc/cpuinfo")


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, the GPU or None, and torch's version."""
    import torch

    found = _CPUINFO.is_file() and re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
    return {
        "processor": found[1] if found else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def device(name: str | None = None) -> Any:
    """The `torch.device` of a name, `cpu` or `cuda`; None takes CUDA where there is one.

    Raises:
        SrlibError: for another name, or CUDA where torch sees none.
    """
    import torch

    try:
        chosen = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise SrlibError(f"There is no device {name!r}: use cpu or cuda.") from None
    if chosen.type not in ("cpu", "cuda"):
        raise SrlibError(f"The device {name} is not supported: use cpu or cuda.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SrlibError(f"The device {name} was asked for, but torch sees no CUDA here: use cpu.")
    return chosen
