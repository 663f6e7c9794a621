"""torchaudio on any build of torch: `from srlib.audio._torchaudio import torchaudio`.

The only torchaudio wheel is linked to CUDA 13.0. Beside another build of torch it installs without complaint, and
then fails on import, while loading its compiled extension or comparing the two CUDA versions; and diffusers and
transformers import it as soon as it is installed. What is used of it (`functional.resample`,
`functional.melscale_fbanks`, `transforms`) is pure torch. So, where the two builds differ, `prepare` registers a
stand-in under `torchaudio._extension` that says "there is no extension"; torchaudio then takes the path that it has
for builds without one. `import srlib` calls it: it reads two small files and imports neither torch nor torchaudio.
"""

import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _version_file(package: str) -> str:
    """Text of an installed package's version.py, read without importing the package; empty if there is none."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    return path.read_text() if path and path.is_file() else ""


def _same_build() -> bool:
    """Whether torch and torchaudio were built for the same CUDA version, or both without CUDA."""
    cuda = re.search(r"^cuda\b.*?=\s*['\"]([\d.]+)['\"]", _version_file("torch"), re.MULTILINE)
    torch_tag = "cu" + cuda[1].replace(".", "") if cuda else "cpu"  # "13.0" is "cu130"
    return f"+{torch_tag}'" in _version_file("torchaudio")


def _without_alignment(function: Callable) -> Callable:
    """Replace a compiled alignment function, as torchaudio does itself in builds without one."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which this torch cannot load.")

    return refuse


def prepare() -> None:
    """Register the stand-in, unless torch can load the real extension or torchaudio is imported already."""
    if "torchaudio" in sys.modules or _same_build():
        return
    module = types.ModuleType("torchaudio._extension")
    vars(module).update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False)
    vars(module).update(fail_if_no_align=_without_alignment)
    sys.modules["torchaudio._extension"] = module


def __getattr__(name: str) -> Any:
    """Import torchaudio when it is first asked for (PEP 562)."""
    if name == "torchaudio":
        return importlib.import_module("torchaudio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
