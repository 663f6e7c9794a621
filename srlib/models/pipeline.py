"""The chain of models for one stretch of log-mel: encoder, prior, latent diffusion, decoder, and their vocoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import nn

from srlib.audio.stft import log_mel, reflected
from srlib.config import HOP_LENGTH, LATENT_FACTOR, SIZES, UNIT_FRAMES
from srlib.errors import SrlibError
from srlib.models import diffusion, vae
from srlib.models.loading import check_weights, loading, model_folder, precision
from srlib.models.prior import GaussianPrior, Posterior
from srlib.models.vocoder import build_vocoder, vocode


@dataclass(frozen=True)
class Sampling:
    """How the diffusion model is sampled."""

    steps: int  # 0: not at all, the prior's mean is the result
    samples: int  # averaged: LSD prefers the mean, listeners one sample
    guidance_scale: float  # weight of the condition; 1 is no guidance
    eta: float  # 0 deterministic (DDIM), 1 stochastic (as DDPM)
    scheduler: SchedulerMixin
    generator: torch.Generator

    @property
    def is_mean(self) -> bool:
        """Whether the result is a mean, or near one, and not a sample."""
        return self.steps <= 1 or self.samples > 1

    def step_generators(self) -> list[torch.Generator]:
        """A generator for the noise of each step, if the sampler is stochastic; `generator` keeps its state.

        With one generator for all steps, the noise at a position would depend on how many numbers were drawn before.
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
        num_inference_steps, guidance_scale: defaults of a call.
    """

    _optional_components: ClassVar[list[str]] = ["prior"]

    def __init__(
        self,
        vae: ModelMixin,
        unet: ModelMixin,
        vocoder: nn.Module,
        scheduler: SchedulerMixin,
        prior: GaussianPrior | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
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
            prior=GaussianPrior(**model.prior) if model.prior else None,
            num_inference_steps=model.num_inference_steps,
            guidance_scale=model.guidance_scale,
        )
        for part in pipeline.modules():
            part.eval()
        return pipeline

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "compact", **kwargs: Any) -> Self:
        """Load a pipeline folder, or one of the Hugging Face Hub; `compact` is the one shipped with the package.

        `variant="lowpass"` takes the weights of the curriculum's first run, trained without noise. Weights stored in
        bfloat16 run in it where the processor can; all others run in float32, unless `dtype` says otherwise.
        """
        with loading(name_or_path):
            folder = model_folder(name_or_path)
            # In bfloat16 HiFi-GAN would round the log-mel and the waveform to eight bits.
            dtypes = {"default": precision(folder), "vocoder": torch.float32}
            options = {"local_files_only": True, "use_safetensors": True, "dtype": dtypes}
            options["low_cpu_mem_usage"] = False  # or a missing key ends in an error that does not name it
            pipeline = super().from_pretrained(str(folder), **{**options, **kwargs})
        check_weights(pipeline, folder, kwargs.get("variant"))
        if pipeline.dtype == torch.bfloat16:  # a tenth faster; no gain in float32
            pipeline.vae.to(memory_format=torch.channels_last)
            pipeline.unet.to(memory_format=torch.channels_last)
        return pipeline

    def modules(self) -> list[nn.Module]:
        """The parts that have weights."""
        return [part for part in (self.vae, self.unet, self.vocoder, self.prior) if part is not None]

    def residual_spread(self) -> torch.Tensor:
        """`[1, channels, 1, 1]`: standard deviation of the residual in each latent channel; ones without a prior."""
        if self.prior is None:
            return torch.ones(1, self.vae.config.latent_channels, 1, 1, device=self.device)
        return self.prior.residual_std[None, :, None, None]

    def to_residual(self, latent: torch.Tensor, mean_latent: torch.Tensor) -> torch.Tensor:
        """Target of the diffusion model: a latent minus that of the prior's mean, scaled to unit variance."""
        return (latent - mean_latent) / self.residual_spread()

    def decode_residual(
        self, residual: torch.Tensor, mean_latent: torch.Tensor, posterior: Posterior | None
    ) -> torch.Tensor:
        """Log-mel of a generated residual.

        With a prior the decoded change is added to the posterior mean itself, part of which the autoencoder would lose.
        """
        decoded = vae.decode(self.vae, residual * self.residual_spread() + mean_latent)
        return decoded if posterior is None else posterior.mean + decoded - vae.decode(self.vae, mean_latent)

    def encode_condition(
        self, degraded: torch.Tensor, posterior: Posterior | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The condition, concatenated to the noisy latent, and the latent that the generated residual is added to.

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

        `noise` `[samples, channels, frames / 8, 32]` starts the sampler, each step adds one of `step_noise` if `eta`
        asks for it, and the samples are averaged. `trajectory` collects the predicted log-mel of every step.
        """
        if posterior is not None and not sampling.steps:
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
            step_noise,
            keep,
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
    samples = wav.shape[-1]
    return wav[..., reflected(samples, 0, samples + -samples % (UNIT_FRAMES * HOP_LENGTH))]
