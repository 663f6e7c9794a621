"""Audio super-resolution with noise removal: the thin package behind the notebooks and the report.

The public names below are imported on first use (PEP 562), so that `import srlib` loads no torch.
"""

from importlib import import_module
from typing import Any

from srlib.audio import _torchaudio

__version__ = "0.1.0"

_PUBLIC = {
    "RestorationPipeline": "srlib.restore.pipeline",
    "Degradation": "srlib.degrade",
    "log_mel": "srlib.audio.stft",
    "lsd": "srlib.measure.lsd",
    "evaluate": "srlib.measure.metrics",
    "read": "srlib.audio.files",
    "write": "srlib.audio.files",
    "from_audiosr": "srlib.audiosr.checkpoint",
    "notebook_setup": "srlib.report.run",
}  # name: the module that owns it
__all__ = ["__version__", "degrade", *_PUBLIC]

_torchaudio.prepare()  # before anything imports diffusers, which imports torchaudio


def __getattr__(name: str) -> Any:
    """A public name, from its module; or the module `degrade`."""
    if name == "degrade":
        return import_module("srlib.degrade")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
