"""Import of AudioSR's checkpoint: its names to those of diffusers and transformers, checked key by key.

Tensors are renamed; they are neither copied nor changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from diffusers import SchedulerMixin
from safetensors.torch import load_file
from torch import nn

from srlib.audio.files import write_atomically
from srlib.config import AUDIOSR, AUDIOSR_NARROW, N_MELS, ModelSize
from srlib.errors import SrlibError
from srlib.models import diffusion, vae
from srlib.models.vocoder import build_vocoder
from srlib.restore.pipeline import RestorationPipeline

WIDTHS = {"audiosr": AUDIOSR, "tiny": AUDIOSR_NARROW}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREFIXES = {"vae": "first_stage_model.", "unet": "model.diffusion_model.", "vocoder": "first_stage_model.vocoder."}
_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"  # its shape gives the width
# Keys that sampling never reads: averaged U-Net, autoencoder of the condition, CLAP, tables of the schedule.
_UNUSED = re.compile(
    r"model_ema\.|cond_stage_models\.|clap\.|logvar$|lvlb_weights$|betas$|posterior_"
    r"|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?$"
)
_LISTED = 20  # keys that an error names before it counts the rest


def _numbered(form: Callable[..., str]) -> Callable[[re.Match], str]:
    return lambda match: form(*map(int, match.groups()))


# Ours -> AudioSR's, as regular expressions applied in order (its openaimodel.py, model.py).
_RULES: dict[str, list[tuple[str, str | Callable[[re.Match], str]]]] = {
    "unet": [
        (r"(resnets\.\d+)\.norm1", r"\1.in_layers.0"),
        (r"(resnets\.\d+)\.conv1", r"\1.in_layers.2"),
        (r"(resnets\.\d+)\.time_emb_proj", r"\1.emb_layers.1"),
        (r"(resnets\.\d+)\.norm2", r"\1.out_layers.0"),
        (r"(resnets\.\d+)\.conv2", r"\1.out_layers.3"),
        (r"conv_shortcut", "skip_connection"),
        # An input block for conv_in, then three a level: two of resnet and two transformers, one that halves.
        (r"down_blocks\.(\d)\.resnets\.(\d)", _numbered(lambda b, r: f"input_blocks.{3 * b + r + 1}.0")),
        (
            r"down_blocks\.(\d)\.attentions\.(\d)",
            _numbered(lambda b, a: f"input_blocks.{3 * b + a // 2 + 1}.{a % 2 + 1}"),
        ),
        (r"down_blocks\.(\d)\.downsamplers\.0\.conv", _numbered(lambda b: f"input_blocks.{3 * b + 3}.0.op")),
        (r"mid_block\.resnets\.(\d)", _numbered(lambda r: f"middle_block.{3 * r}")),
        (r"mid_block\.attentions\.(\d)", _numbered(lambda a: f"middle_block.{a + 1}")),
        (r"up_blocks\.(\d)\.resnets\.(\d)", _numbered(lambda b, r: f"output_blocks.{3 * b + r}.0")),
        (r"up_blocks\.(\d)\.attentions\.(\d)", _numbered(lambda b, a: f"output_blocks.{3 * b + a // 2}.{a % 2 + 1}")),
        (r"up_blocks\.(\d)\.upsamplers\.0\.conv", _numbered(lambda b: f"output_blocks.{3 * b + 2}.3.conv")),
        (r"time_embedding\.linear_(\d)", _numbered(lambda n: f"time_embed.{2 * n - 2}")),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
    ],
    "vae": [
        (r"mid_block\.resnets\.(\d)", _numbered(lambda r: f"mid.block_{r + 1}")),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"group_norm", "norm"),
        (r"to_([qkv])", r"\1"),
        (r"to_out\.0", "proj_out"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", _numbered(lambda b: f"up.{3 - b}.block")),  # AudioSR counts from the top
        (r"up_blocks\.(\d)\.upsamplers\.0", _numbered(lambda b: f"up.{3 - b}.upsample")),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ],
    "vocoder": [(r"^upsampler", "ups")],
}
_BUILDERS = {"vae": vae.build_vae, "unet": diffusion.build_unet, "vocoder": build_vocoder}


def audiosr_key(part: str, key: str) -> str:
    """AudioSR's name of the parameter `key` of our `vae`, `unet` or `vocoder`."""
    for pattern, name in _RULES[part]:
        key = re.sub(pattern, name, key)
    return PREFIXES[part] + key


def from_audiosr(
    state_dict: Mapping[str, torch.Tensor], size: str = "audiosr"
) -> dict[str, nn.Module | SchedulerMixin]:
    """The parts of a pipeline, `vae`, `unet`, `vocoder` and `scheduler`, from tensors under AudioSR's names.

    Args:
        state_dict: name to tensor. The parts share its memory and its dtype.
        size: `audiosr`, or `tiny`, the width of the parity fixture (`config.AUDIOSR_NARROW`).

    Raises:
        SrlibError: for keys that are missing, unexpected or of another shape, and for an invalid scale_factor.
    """
    if size not in WIDTHS:
        raise SrlibError(f"AudioSR has no size {size!r}: choose one of {', '.join(WIDTHS)}.")
    model = WIDTHS[size]
    _check_keys(state_dict, model)
    factor = float(state_dict["scale_factor"])
    if not (math.isfinite(factor) and factor > 0):
        raise SrlibError(f"The checkpoint's scale_factor is {factor}: it should be a positive number.")
    model = replace(model, vae=model.vae | {"scaling_factor": factor})
    parts = {part: _converted(part, model, state_dict) for part in PREFIXES}
    return {**parts, "scheduler": diffusion.build_scheduler(model)}


def _converted(part: str, model: ModelSize, state_dict: Mapping[str, torch.Tensor]) -> nn.Module:
    module = _skeleton(part, model)
    weights = {key: state_dict[audiosr_key(part, key)].reshape(p.shape) for key, p in module.named_parameters()}
    if part == "vocoder":  # buffers of transformers' class, for a normalisation that AudioSR does not use
        weights |= {"mean": torch.zeros(N_MELS), "scale": torch.ones(N_MELS)}
    module.load_state_dict(weights, assign=True)
    return module.eval()


def _skeleton(part: str, model: ModelSize) -> nn.Module:
    with torch.device("meta"):  # without weights
        return _BUILDERS[part](model)


def wanted_shapes(model: ModelSize) -> dict[str, tuple[int, ...]]:
    """{key: shape of its tensor} that a checkpoint of a size must have."""
    wanted: dict[str, tuple[int, ...]] = {"scale_factor": ()}
    for part in PREFIXES:
        for key, parameter in _skeleton(part, model).named_parameters():
            linear = part == "vae" and re.search(r"attentions.*\.to_.*weight$", key)  # 1 x 1 convolutions in AudioSR
            wanted[audiosr_key(part, key)] = (*parameter.shape, 1, 1) if linear else tuple(parameter.shape)
    return wanted


def _check_keys(state_dict: Mapping[str, torch.Tensor], model: ModelSize) -> None:
    """Raise SrlibError that lists keys which are missing, unexpected or of another shape."""
    wanted = wanted_shapes(model)
    missing = sorted(wanted.keys() - state_dict)
    unexpected = sorted(key for key in state_dict if key not in wanted and not _UNUSED.match(key))
    if len(missing) > len(wanted) // 2:
        raise SrlibError(f"This is not an AudioSR checkpoint: it lacks {_listed(missing)}.")
    misshaped = sorted(
        f"{key} ({_size(state_dict[key].shape)} instead of {_size(shape)})"
        for key, shape in wanted.items()
        if key in state_dict and tuple(state_dict[key].shape) not in {shape, shape or (1,)}
    )
    faults = {"misses": missing, "has unexpected": unexpected, "has in another shape": misshaped}
    if found := "; ".join(f"{what} {_listed(keys)}" for what, keys in faults.items() if keys):
        raise SrlibError(f"The AudioSR checkpoint does not fit the {model.name} size: it {found}.")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _listed(keys: list[str]) -> str:
    rest = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def import_audiosr(checkpoint: str | Path, out: str | Path, dtype: str = "fp32") -> Path:
    """Write AudioSR's checkpoint (`pytorch_model.bin`, or a .safetensors of it) as the pipeline folder `out`.

    The folder appears when it is complete. Its weights are stored as `fp32`, `bf16` or `fp16`.

    Raises:
        SrlibError: for a file that is no such checkpoint or would run code, or a folder that exists.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists():
        raise SrlibError(f"{out}: exists already; name a new folder.")
    state = _read(checkpoint)
    narrow = AUDIOSR_NARROW.unet["block_out_channels"][0]
    size = "tiny" if _FIRST_CONV in state and len(state[_FIRST_CONV]) == narrow else "audiosr"
    try:
        parts: dict[str, Any] = from_audiosr(state, size)
    except SrlibError as error:
        raise SrlibError(f"{checkpoint}: {error}") from error
    model = WIDTHS[size]
    pipeline = RestorationPipeline(
        **parts, num_inference_steps=model.num_inference_steps, guidance_scale=model.guidance_scale
    )
    for module in pipeline.modules():
        module.to(DTYPES[dtype])
    write_atomically(out, pipeline.save_pretrained)
    return out


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, mapped from the file where its format allows; no code in it is run."""
    if not path.is_file():
        raise SrlibError(f"{path}: there is no such file; give AudioSR's pytorch_model.bin.")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            mapped = is_zipfile(path)  # PyTorch's format since 1.6
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle or archive ends in an error of any kind
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise SrlibError(f"{path}: asks to run code besides loading weights, which is refused.") from None
        raise SrlibError(f"{path}: is damaged, or not a PyTorch checkpoint; get the file again.") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not (state and all(isinstance(tensor, torch.Tensor) for tensor in state.values())):
        raise SrlibError(f"{path}: holds no tensors by name; give AudioSR's pytorch_model.bin.")
    return state
