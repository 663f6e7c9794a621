"""The folder of a model, and checks that its weights load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

import huggingface_hub
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from srlib.errors import SrlibError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Errors of the Hub, and of diffusers for a folder that is no pipeline. The last four are for a model_index.json or a
# config.json with a missing entry or one of another type.
_BROKEN = (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError, AttributeError, ImportError)


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a model: `compact` is shipped, `organisation/name` is fetched from the Hugging Face Hub once."""
    if str(name_or_path) == "compact":  # also of a Path, as the command line gives it
        return Path(str(resources.files("srlib") / "assets" / "compact"))
    path = Path(name_or_path)
    if not path.exists() and _HUB_ID.fullmatch(str(name_or_path)):
        path = Path(huggingface_hub.snapshot_download(str(name_or_path), allow_patterns=["*.json", "*.safetensors"]))
    if not (path / "model_index.json").is_file():
        known = "a folder that srlib train or import-audiosr wrote, the name of one on the Hub"
        raise SrlibError(f"There is no model in {name_or_path}: give {known}, or compact.")
    return path


@contextmanager
def loading(name_or_path: str | Path) -> Iterator[None]:
    """Find and load inside without progress bars, with any error as SrlibError; bars that were on come back after."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    except SrlibError:
        raise
    except _BROKEN as error:
        why = str(error).strip().partition("\n")[0]
        hint = "write its folder again, or correct its name if it should come from the Hub"
        raise SrlibError(f"The model {name_or_path} does not load ({why}): {hint}.") from error
    finally:
        for library in shown:
            library.enable_progress_bar()


def precision(folder: Path) -> torch.dtype:
    """bfloat16 if the U-Net is stored in it and the hardware computes in it; else float32."""
    instructions = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or instructions.get("avx512_bf16") or instructions.get("amx_bf16")
    return torch.bfloat16 if fast and set(_stored(folder / "unet").values()) == {"BF16"} else torch.float32


def check_weights(pipeline: DiffusionPipeline, folder: Path, variant: str | None) -> None:
    """Raise SrlibError with the keys that a part misses or has in excess; diffusers only warns of them."""
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            continue
        if wrong := sorted(_stored(folder / name, variant).keys() ^ set(part.state_dict())):
            raise SrlibError(f"The weights in {folder / name} miss or add {', '.join(wrong)}: write the model again.")


def _stored(folder: Path, variant: str | None = None) -> dict[str, str]:
    """{key: dtype} of the weights in a part's folder, in one or several files: the variant's, else the plain ones."""
    files = list(folder.glob(f"*.{variant}*.safetensors"))
    files = files or [file for file in folder.glob("*.safetensors") if len(file.suffixes) == 1]
    dtypes: dict[str, str] = {}
    for file in files:
        with suppress(SafetensorError), safe_open(file, "pt") as weights:  # a broken file fails when it is loaded
            dtypes |= {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118  no mapping
    return dtypes
