"""AudioSR's checkpoint to a pipeline: its names to diffusers' and transformers', checked key by key.

The weights are neither copied nor computed with: every part takes the tensors it is given, under other names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

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
_SECOND_VAE = "cond_stage_models.0.vae."
_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"  # its shape tells the width
# What sampling never reads: the averaged U-Net, the condition's own autoencoder, CLAP, and tables of the schedule.
_UNUSED = re.compile(
    r"model_ema\.|cond_stage_models\.|clap\.|logvar$|lvlb_weights$|betas$|posterior_"
    r"|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?$"
)
_LISTED = 20  # keys that an error names before it counts the rest
_ZIP = b"PK\x03\x04"
_SHARD_SIZE = "500MB"  # bounds what saving holds in memory besides the weights

# Ours -> AudioSR's, as regular expressions applied in order (its openaimodel.py, model.py).
_Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


def _numbered(form: Callable[..., str]) -> Callable[[re.Match], str]:
    return lambda match: form(*map(int, match.groups()))


_RULES: dict[str, _Rules] = {
    "unet": (
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
        (
            r"up_blocks\.(\d)\.attentions\.(\d)",
            _numbered(lambda b, a: f"output_blocks.{3 * b + a // 2}.{a % 2 + 1}"),
        ),
        (r"up_blocks\.(\d)\.upsamplers\.0\.conv", _numbered(lambda b: f"output_blocks.{3 * b + 2}.3.conv")),
        (r"time_embedding\.linear_(\d)", _numbered(lambda n: f"time_embed.{2 * n - 2}")),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
    ),
    "vae": (
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
    ),
    "vocoder": ((r"^upsampler", "ups"),),
}


def audiosr_key(part: str, key: str) -> str:
    """AudioSR's name of the parameter `key` of our `vae`, `unet` or `vocoder`."""
    for pattern, name in _RULES[part]:
        key = re.sub(pattern, name, key)
    return PREFIXES[part] + key


def from_audiosr(
    state_dict: Mapping[str, torch.Tensor], size: str = "audiosr", ema: bool = False
) -> dict[str, nn.Module | SchedulerMixin]:
    """The parts of a pipeline from AudioSR's tensors, by AudioSR's names: `vae`, `unet`, `vocoder`, `scheduler`.

    Args:
        state_dict: name to tensor. The parts share its memory and its dtype.
        size: `audiosr`, or `tiny`, the width of the parity fixture (`config.AUDIOSR_NARROW`).
        ema: take the U-Net's averaged weights (`model_ema.*`), which AudioSR stores but does not sample with.

    Raises:
        SrlibError: for keys that miss, are unexpected or have another shape, and for two autoencoders that differ.
    """
    if size not in WIDTHS:
        raise SrlibError(f"AudioSR has no size {size!r}: choose one of {', '.join(WIDTHS)}.")
    model = WIDTHS[size]
    check_keys(state_dict, model, ema)
    check_twin_vaes(state_dict)
    parts = {part: convert_part(part, state_dict, model, ema) for part in PREFIXES}
    return {**parts, "scheduler": diffusion.build_scheduler(model)}


def convert_part(
    part: str,
    state_dict: Mapping[str, torch.Tensor],
    model: ModelSize,
    ema: bool = False,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """One of `vae`, `unet` and `vocoder` with the weights of a checkpoint that `check_keys` accepted.

    A dtype of its own takes memory of its own; None keeps the checkpoint's.
    """
    if part == "vae":
        factor = float(state_dict["scale_factor"])
        if not (math.isfinite(factor) and factor > 0):
            raise SrlibError(f"The checkpoint's scale_factor is {factor}: it should be a positive number.")
        model = replace(model, vae=model.vae | {"scaling_factor": factor})
    module = _skeleton(part, model)
    weights = {}
    for key, shape in _shapes(module).items():
        weights[key] = state_dict[_source(part, key, ema)].reshape(shape).to(dtype)
    if part == "vocoder":  # buffers of transformers' class, for a normalisation that AudioSR does not use
        weights |= {"mean": torch.zeros(N_MELS, dtype=dtype), "scale": torch.ones(N_MELS, dtype=dtype)}
    module.load_state_dict(weights, assign=True)
    return module.eval()


def _skeleton(part: str, model: ModelSize) -> nn.Module:
    """The part without weights."""
    with torch.device("meta"):
        return {"vae": vae.build_vae, "unet": diffusion.build_unet, "vocoder": build_vocoder}[part](model)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: parameter.shape for key, parameter in module.named_parameters()}


def _source(part: str, key: str, ema: bool) -> str:
    """The checkpoint's key for a parameter of ours; the averaged U-Net's are written without dots."""
    name = audiosr_key(part, key)
    return "model_ema." + name.removeprefix("model.").replace(".", "") if ema and part == "unet" else name


def wanted_shapes(model: ModelSize, ema: bool = False) -> dict[str, tuple[int, ...]]:
    """Every key that a checkpoint of a size has to have, and its tensor's shape."""
    wanted: dict[str, tuple[int, ...]] = {"scale_factor": ()}
    for part in PREFIXES:
        for key, shape in _shapes(_skeleton(part, model)).items():
            linear = part == "vae" and re.search(r"attentions.*\.to_.*weight$", key)  # 1 x 1 convolutions in AudioSR
            wanted[_source(part, key, ema)] = (*shape, 1, 1) if linear else tuple(shape)
    return wanted


def check_keys(state_dict: Mapping[str, torch.Tensor], model: ModelSize, ema: bool = False) -> None:
    """Raise SrlibError that lists what a checkpoint misses, has too many, or has in another shape."""
    wanted = wanted_shapes(model, ema)
    present = {key for key in state_dict if key in wanted or not _unused(key, ema)}
    missing, unexpected = sorted(wanted.keys() - present), sorted(present - wanted.keys())
    if len(missing) > len(wanted) // 2:
        raise SrlibError(f"This is not an AudioSR checkpoint: it lacks {_listed(missing)}.")
    misshaped = sorted(
        f"{key} ({_size(state_dict[key].shape)} instead of {_size(shape)})"
        for key, shape in wanted.items()
        if key in present and tuple(state_dict[key].shape) not in {shape, shape or (1,)}
    )
    faults = {"misses": missing, "has unexpected": unexpected, "has in another shape": misshaped}
    found = "; ".join(f"{what} {_listed(keys)}" for what, keys in faults.items() if keys)
    if found:
        raise SrlibError(f"The AudioSR checkpoint does not fit the {model.name} size: it {found}.")


def _unused(key: str, ema: bool) -> bool:
    return bool(_UNUSED.match(key)) or (ema and key.startswith(PREFIXES["unet"]))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _listed(keys: list[str]) -> str:
    rest = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def check_twin_vaes(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raise SrlibError if the condition's autoencoder, where a checkpoint holds it, is not the first stage's."""
    differing = []
    for key in sorted(key for key in state_dict if key.startswith(_SECOND_VAE) and ".vocoder." not in key):
        twin = state_dict.get(PREFIXES["vae"] + key.removeprefix(_SECOND_VAE))
        if twin is None or not torch.equal(twin, state_dict[key]):
            differing.append(key)
    if differing:
        raise SrlibError(f"The checkpoint's two autoencoders differ in {_listed(differing)}: a pipeline has but one.")


def import_audiosr(checkpoint: str | Path, out: str | Path, dtype: str = "fp32", ema: bool = False) -> Path:
    """Write AudioSR's checkpoint (`pytorch_model.bin`, or a .safetensors of it) as the pipeline folder `out`.

    Part by part from a mapped file, so that memory holds about one part; the folder appears when it is complete.

    Args:
        dtype: of the stored weights: `fp32`, `bf16` or `fp16`.
        ema: see `from_audiosr`.

    Raises:
        SrlibError: for a file that is no such checkpoint or would run code, or a folder that exists.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if dtype not in DTYPES:
        raise SrlibError(f"There is no dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    if out.exists():
        raise SrlibError(f"{out}: exists already; name a new folder.")
    state = read_checkpoint(checkpoint)
    model = _model_of(state)
    try:
        check_keys(state, model, ema)
        check_twin_vaes(state)
    except SrlibError as error:
        raise SrlibError(f"{checkpoint}: {error}") from error
    del state  # and with it the pages that were read
    write_atomically(out, lambda folder: _write_folder(folder, checkpoint, model, DTYPES[dtype], ema))
    return out


def _model_of(state_dict: Mapping[str, torch.Tensor]) -> ModelSize:
    """The size whose U-Net starts as wide as the checkpoint's; AudioSR's own if none does."""
    width = state_dict[_FIRST_CONV].shape[:1] if _FIRST_CONV in state_dict else None
    return next((m for m in WIDTHS.values() if width == m.unet["block_out_channels"][:1]), AUDIOSR)


def _write_folder(folder: Path, checkpoint: Path, model: ModelSize, dtype: torch.dtype, ema: bool) -> None:
    parts: dict[str, nn.Module] = {}
    for part in PREFIXES:
        module = convert_part(part, read_checkpoint(checkpoint), model, ema, dtype)
        module.save_pretrained(folder / part, max_shard_size=_SHARD_SIZE)
        parts[part] = module.to("meta")
    scheduler = diffusion.build_scheduler(model)
    scheduler.save_pretrained(folder / "scheduler")
    settings = {"num_inference_steps": model.num_inference_steps, "guidance_scale": model.guidance_scale}
    RestorationPipeline(**parts, scheduler=scheduler, **settings).save_config(folder)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, mapped from the file where its format allows; no code in it is run."""
    path = Path(path)
    if not path.is_file():
        raise SrlibError(f"{path}: there is no such file; give AudioSR's pytorch_model.bin.")
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP  # what PyTorch has written since 1.6, and what can be mapped
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
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
