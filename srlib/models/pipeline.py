"""The chain of models for one stretch of log-mel: encoder, prior, latent diffusion, decoder, and their vocoder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from srlib.audio.stft import log_mel
from srlib.config import HOP_LENGTH, LATENT_FACTOR, SIZES, UNIT_FRAMES
from srlib.errors import SrlibError
from srlib.models import diffusion, vae
from srlib.models.prior import GaussianPrior, Posterior
from srlib.models.vocoder import build_vocoder, vocode

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# What diffusers raises for a folder that it cannot make a pipeline of. The last four are for a model_index.json or a
# config.json that lacks an entry, or holds one of another kind.
_BROKEN = (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True)
class Sampling:
    """How the diffusion model is sampled."""

    steps: int  # 0: not at all, the prior's mean is the result
    samples: int  # are averaged: LSD prefers the mean, ears prefer one sample
    guidance_scale: float  # weight of the condition; 1 is no guidance
    eta: float  # 0 deterministic (DDIM), 1 stochastic (as DDPM)
    scheduler: SchedulerMixin
    generator: torch.Generator

    @property
    def is_mean(self) -> bool:
        """Whether the result is a mean, or near one, and not a sample."""
        return self.steps <= 1 or self.samples > 1

    def step_generators(self) -> list[torch.Generator]:
        """A generator for what each step adds, if the sampler is stochastic; `generator` stays as it is.

        With a shared generator, the numbers that belong to a position would depend on how many were drawn before.
        """
        if not self.eta:
            return []
        device = self.generator.device
        seeds = torch.randint(2**62, (self.steps,), generator=self.generator.clone_state(), device=device)
        return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]


class LogMelPipeline(DiffusionPipeline):
    """AudioSR's chain with a prior. Without `prior` the diffusion model generates the latent itself, as AudioSR's.

    Args:
        vae, unet, vocoder, scheduler, prior: the parts (`srlib.models`).
        num_inference_steps, guidance_scale: what a call uses unless told otherwise.
    """

    _optional_components: ClassVar[list[str]] = ["prior"]
    model_cpu_offload_seq = "prior->vae->unet->vocoder"

    def __init__(
        self,
        vae: nn.Module,
        unet: nn.Module,
        vocoder: nn.Module,
        scheduler: SchedulerMixin,
        prior: nn.Module | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        # Both come from model_index.json, which people edit; their limits are checked in a call.
        if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
            raise TypeError(f"num_inference_steps is {num_inference_steps!r} and no whole number")
        if not isinstance(guidance_scale, (int, float)) or not math.isfinite(guidance_scale):
            raise TypeError(f"guidance_scale is {guidance_scale!r} and no number")
        self.register_modules(vae=vae, unet=unet, vocoder=vocoder, scheduler=scheduler, prior=prior)
        self.register_to_config(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)

    @classmethod
    def build(cls, size: str = "compact", seed: int = 0) -> Self:
        """An untrained pipeline of a model size: `tiny`, `compact` or `audiosr`."""
        if size not in SIZES:
            raise SrlibError(f"There is no model size {size!r}: choose one of {', '.join(SIZES)}.")
        torch.manual_seed(seed)
        model = SIZES[size]
        pipeline = cls(
            vae=vae.build_vae(model),
            unet=diffusion.build_unet(model),
            vocoder=build_vocoder(model),
            scheduler=diffusion.build_scheduler(model),
            prior=GaussianPrior(**model.prior, latent_channels=model.vae["latent_channels"]) if model.prior else None,
            num_inference_steps=model.num_inference_steps,
            guidance_scale=model.guidance_scale,
        )
        for part in pipeline.modules():
            part.eval()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "compact", **kwargs) -> Self:
        """Load a pipeline folder, or one of the Hugging Face Hub; `compact` is the one shipped with the package.

        `variant="lowpass"` takes the weights of the curriculum's first run, trained without noise. Weights stored in
        bfloat16 run in it where the processor can; all others run in float32, unless `dtype` says otherwise.
        """
        path = model_folder(name_or_path)
        if not path.exists() and _HUB_ID.fullmatch(str(name_or_path)):
            path = _downloaded(str(name_or_path))
        if not (path / "model_index.json").is_file():
            known = "a folder that srlib train or import-audiosr wrote, the name of one on the Hub"
            raise SrlibError(f"There is no model in {name_or_path}: give {known}, or compact.")
        options = {"local_files_only": True, "use_safetensors": True, "dtype": _precision(path)}
        options["low_cpu_mem_usage"] = False  # or a missing key ends in an error that does not name it
        try:
            with _without_progress_bars():
                pipeline = super().from_pretrained(str(path), **{**options, **kwargs})
        except _BROKEN as error:
            why = _reason(error)
            raise SrlibError(f"The model in {name_or_path} does not load ({why}): write it again.") from error
        _check_weights(pipeline, path, kwargs.get("variant"))
        pipeline.set_progress_bar_config(disable=True)
        if pipeline.dtype == torch.bfloat16:  # a tenth faster; no gain in float32
            pipeline.vae.to(memory_format=torch.channels_last)
            pipeline.unet.to(memory_format=torch.channels_last)
        return pipeline

    def modules(self) -> list[nn.Module]:
        """The parts that have weights."""
        return [part for part in (self.vae, self.unet, self.vocoder, self.prior) if part is not None]

    def residual_spread(self) -> torch.Tensor:
        """`[1, channels, 1, 1]`: the unit of the residual in each latent channel; one without a prior."""
        if self.prior is None:
            return torch.ones(1, self.vae.config.latent_channels, 1, 1, device=self.device)
        return self.prior.residual_std[None, :, None, None]

    def to_residual(self, latent: torch.Tensor, mean_latent: torch.Tensor) -> torch.Tensor:
        """What the diffusion model generates: the difference of a latent from that of the prior's mean, unit spread."""
        return (latent - mean_latent) / self.residual_spread()

    def decode_residual(
        self, residual: torch.Tensor, mean_latent: torch.Tensor, posterior: Posterior | None
    ) -> torch.Tensor:
        """Log-mel of what the diffusion model generated.

        With a prior the decoded change is added to the posterior mean itself: the autoencoder would lose some of it.
        """
        decoded = vae.decode(self.vae, residual * self.residual_spread() + mean_latent)
        return decoded if posterior is None else posterior.mean + decoded - vae.decode(self.vae, mean_latent)

    def encode_condition(
        self, degraded: torch.Tensor, posterior: Posterior | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is concatenated to the noisy latent, and the latent that the generated residual is added to.

        The condition is the latent of the degraded log-mel `[batch, 1, frames, 256]`. With a prior there follow the
        latent of the posterior mean and two maps: how sure the observation is (0 to 1), and the prior's standard
        deviation (nat).
        """
        degraded_latent = vae.encode(self.vae, degraded)
        if posterior is None:
            return degraded_latent, torch.zeros((), device=degraded.device)
        mean_latent = vae.encode(self.vae, posterior.mean)
        maps = torch.cat([1 / (1 + posterior.observed), posterior.variance.sqrt()], dim=1)
        return torch.cat([degraded_latent, mean_latent, F.avg_pool2d(maps, LATENT_FACTOR)], dim=1), mean_latent

    def generate(
        self,
        degraded: torch.Tensor,
        posterior: Posterior | None,
        noise: torch.Tensor,
        sampling: Sampling,
        trajectory: list[torch.Tensor] | None = None,
        step_noise: Iterable[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Restored log-mel of a degraded one `[1, 1, frames, 256]` and its posterior, frames a multiple of 64.

        `noise` `[samples, channels, frames / 8, 32]` starts the sampler, and `step_noise`, of the same shape, is what
        each step adds, if `eta` asks for any; the samples are averaged. `trajectory` collects the log-mel that is
        predicted after each step.
        """
        if not sampling.steps:
            return posterior.mean
        condition, mean_latent = self.encode_condition(degraded, posterior)

        def keep(residual: torch.Tensor) -> None:
            if trajectory is not None:
                trajectory.append(self.decode_residual(residual[:1], mean_latent, posterior))

        residual = diffusion.denoise(
            self.unet,
            sampling.scheduler,
            noise.to(condition),
            condition.expand(len(noise), -1, -1, -1),
            sampling.steps,
            sampling.guidance_scale,
            self.vae.config.scaling_factor,
            sampling.eta,
            callback=keep,
            step_noise=step_noise,
        )
        return self.decode_residual(residual.mean(0, keepdim=True), mean_latent, posterior)

    @torch.no_grad()
    def vocode_truth(self, reference: np.ndarray, through_autoencoder: bool = True) -> np.ndarray:
        """The vocoder on the true log-mel of a clean recording `[samples]` at 48 kHz: float32 `[samples]`.

        Without the autoencoder it is GT-Mel: above the cutoff a limit of any estimate.
        """
        mel = log_mel(torch.from_numpy(pad_to_units(reference)).to(self.device))
        if through_autoencoder:
            mel = vae.decode(self.vae, vae.encode(self.vae, mel))
        return vocode(self.vocoder, mel)[0, : len(reference)].float().cpu().numpy()


def pad_to_units(wav: np.ndarray) -> np.ndarray:
    """Reflect the end of `[..., samples]` up to whole units of frames; zeros would be an edge to restore."""
    missing = -wav.shape[-1] % (UNIT_FRAMES * HOP_LENGTH)
    mode = "reflect" if wav.shape[-1] > 1 else "edge"
    return np.pad(wav, [(0, 0)] * (wav.ndim - 1) + [(0, missing)], mode=mode)


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a model; `compact` is the one shipped with the package."""
    shipped = Path(str(resources.files("srlib") / "assets" / "compact"))
    return shipped if name_or_path == "compact" else Path(name_or_path)


def _downloaded(hub_id: str) -> Path:
    """The local folder of a model of the Hugging Face Hub, `organisation/name`; fetched once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = _reason(error)
        raise SrlibError(f"There is no folder {hub_id}, and no such model came from the Hub ({why}).") from error


def _reason(error: Exception) -> str:
    """The first line of what an error of the libraries below says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Loading five small parts needs no progress bars; other users of the two libraries keep theirs."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _precision(folder: Path) -> torch.dtype:
    """bfloat16 for a folder whose U-Net is stored in it, where the machine computes in it; else float32."""
    instructions = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or instructions.get("avx512_bf16") or instructions.get("amx_bf16")
    stored = set()
    for file in (folder / "unet").glob("*.safetensors"):
        with suppress(SafetensorError), safe_open(file, "pt") as weights:  # a broken file fails when it is loaded
            stored |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118  no mapping
    return torch.bfloat16 if fast and stored == {"BF16"} else torch.float32


def _check_weights(pipeline: LogMelPipeline, folder: Path, variant: str | None) -> None:
    """Raise SrlibError with the list of keys that a part misses or has too many: diffusers only warns of them."""
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            continue
        files = list((folder / name).glob(f"*.{variant}*.safetensors")) if variant else []
        stored: set[str] = set()
        for file in files or [f for f in (folder / name).glob("*.safetensors") if len(f.name.split(".")) == 2]:
            with safe_open(file, "pt") as weights:
                stored.update(weights.keys())
        wrong = sorted(stored ^ set(part.state_dict()))
        if wrong:
            raise SrlibError(f"The weights in {folder / name} miss or add {', '.join(wrong)}: write the model again.")
