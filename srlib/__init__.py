"""Audio super-resolution with noise removal: the thin package behind the notebooks and the report.

Every module is imported by name (`from srlib.measure.metrics import lsd`); this one loads nothing heavy, so that
`srlib --help` answers at once. The only re-export is what the first cell of each notebook calls.
"""

from typing import Any

from srlib.audio import _torchaudio

__version__ = "0.1.0"
__all__ = ["__version__", "notebook_setup"]

_torchaudio.prepare()  # before anything imports diffusers, which imports torchaudio


def __getattr__(name: str) -> Any:
    """Import `notebook_setup` on first use (PEP 562)."""
    if name == "notebook_setup":
        from srlib.report.run import notebook_setup

        return notebook_setup
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
