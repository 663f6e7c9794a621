"""torchaudio on any build of torch: `from srlib._torchaudio import torchaudio`.

The only torchaudio wheel is linked to CUDA 13. Beside a CPU build of torch it installs without complaint, and then
fails on import, while loading its compiled extension. What srlib uses (`functional.resample`,
`functional.melscale_fbanks`, `transforms`) is pure torch and never calls that extension. So, and only when the real
import has failed, a stand-in that says "there is no extension" is registered under `torchaudio._extension` before a
second import; torchaudio then takes the pure-torch path that it has for builds without the extension.
"""

import sys
import types
from collections.abc import Callable

__all__ = ["torchaudio"]


def _without_alignment(function: Callable) -> Callable:
    """Replace a compiled alignment function, as torchaudio does itself in builds without one."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which this torch cannot load.")

    return refuse


def _stand_in() -> types.ModuleType:
    """Build a module with the names that torchaudio's Python code reads from its extension."""
    module = types.ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module.fail_if_no_align = _without_alignment
    return module


try:
    import torchaudio
except (ImportError, OSError, RuntimeError):  # no CUDA libraries, or built for another CUDA than torch
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[_name]  # what the failed attempt left half initialised
    sys.modules["torchaudio._extension"] = _stand_in()
    import torchaudio
