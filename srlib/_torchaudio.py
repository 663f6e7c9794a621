"""torchaudio on any build of torch: `from srlib._torchaudio import torchaudio`.

The only torchaudio wheel is linked to CUDA 13. Beside another build of torch it installs without complaint, and then
fails on import, while loading its compiled extension; and diffusers and transformers import it as soon as it is
installed. What is used of it (`functional.resample`, `functional.melscale_fbanks`, `transforms`) is pure torch. So,
where torch was not built for CUDA 13, `prepare` registers a stand-in under `torchaudio._extension` that says "there
is no extension"; torchaudio then takes the path that it has for builds without one. `import srlib` calls it: it reads
one file and imports neither torch nor torchaudio.
"""

import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["torchaudio"]
_BUILT_FOR = "13"  # major version of CUDA that torchaudio's wheel is linked to


def _torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for ("13.0"), None for a CPU build or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b.*?=\s*['\"]([\d.]+)['\"]", version, re.MULTILINE)
    return found and found[1]


def _without_alignment(function: Callable) -> Callable:
    """Replace a compiled alignment function, as torchaudio does itself in builds without one."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which this torch cannot load.")

    return refuse


def prepare() -> None:
    """Register the stand-in, unless torch can load the real extension or torchaudio is imported already."""
    if "torchaudio" in sys.modules or (_torch_cuda() or "").split(".")[0] == _BUILT_FOR:
        return
    module = types.ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module.fail_if_no_align = _without_alignment
    sys.modules["torchaudio._extension"] = module


def __getattr__(name: str) -> Any:
    """Import torchaudio when it is first asked for (PEP 562)."""
    if name == "torchaudio":
        return importlib.import_module("torchaudio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
