"""The objectives of training: for each part of the model its examples and their loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import nn

from srlib.audio.stft import band_edges_hz, log_mel
from srlib.config import LATENT_FACTOR, SAMPLE_RATE
from srlib.errors import SrlibError
from srlib.models import diffusion, vae
from srlib.models.vocoder import vocode
from srlib.restore.pipeline import RestorationPipeline
from srlib.training.config import TrainConfig
from srlib.training.pairs import Batch

_FULL_BANDWIDTH_HZ = 18_900.0  # least bandwidth of the crops that the prior is fitted to, Hz
_FEW = 8  # batches from which principal components and standard deviations are estimated


@cache
def band_weights() -> torch.Tensor:
    """Weight `[256]` of each mel band, mean one: half by its width in Hz, as LSD counts, half uniform."""
    width = torch.from_numpy(band_edges_hz()[2:] - band_edges_hz()[:-2])
    return (0.5 + 0.5 * width / width.mean()).float()


def band_mask(bandwidth_hz: torch.Tensor) -> torch.Tensor:
    """`[batch, 1, 1, 256]`: one for bands wholly inside a track's bandwidth, zero above it."""
    upper = torch.from_numpy(band_edges_hz()[2:]).to(bandwidth_hz)
    return (upper[None] <= bandwidth_hz[:, None]).float()[:, None, None]


class Objective(nn.Module, ABC):
    """One training stage: a part of the pipeline learns, the others are frozen.

    The forward pass is the loss, so that wrappers (precision, several processes) see all trained parameters.
    """

    part: str  # name of the trained part in the pipeline

    def __init__(self, pipeline: RestorationPipeline, config: TrainConfig) -> None:
        super().__init__()
        self.pipeline, self.config = pipeline, config
        self.module: Any = getattr(pipeline, self.part)  # diffusers' classes come without types
        for module in pipeline.modules():
            module.requires_grad_(module is self.module)
            module.train(module is self.module)

    @abstractmethod
    def examples(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Inputs of the loss, `{name: [batch, ...]}`; everything without a gradient is computed here."""

    @abstractmethod
    def forward(self, examples: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of a batch of examples."""

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit the parts with a closed form to batches of crops, before the first step of a run."""


class VaeObjective(Objective):
    """Mean absolute log-mel error and a small Kullback-Leibler term, on references and degraded inputs alike.

    The linear autoencoder is fitted in closed form and takes no steps.
    """

    part = "vae"
    kl_weight = 1e-4

    def prepare(self, batches: Iterator[Batch]) -> None:
        if isinstance(self.module, vae.PatchVAE):
            self.module.fit(torch.cat([self.examples(batch)["log_mel"] for batch in islice(batches, _FEW)]))

    @torch.no_grad()
    def examples(self, batch: Batch) -> dict[str, torch.Tensor]:
        half = len(batch.reference) // 2
        return {"log_mel": log_mel(torch.cat([batch.reference[half:], batch.degraded[:half]]))}

    def forward(self, examples: Mapping[str, torch.Tensor]) -> torch.Tensor:
        target = examples["log_mel"]
        posterior = self.module.encode(target).latent_dist
        restored = self.module.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return (restored.float() - target).abs().mean() + self.kl_weight * kl


class VocoderObjective(Objective):
    """Log-spectral distance at several resolutions, on the true log-mel."""

    part = "vocoder"
    n_ffts = (512, 1024, 2048, 4096)  # samples
    power_floor = 1e-9  # of unnormalised spectra; below 16-bit noise, so that quiet music counts

    def examples(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"reference": batch.reference, "bandwidth_hz": batch.bandwidth_hz}

    def forward(self, examples: Mapping[str, torch.Tensor]) -> torch.Tensor:
        first_frame = int(torch.randint(1024, ()))
        wav = vocode(self.module, log_mel(examples["reference"]), first_frame)
        reference, bandwidth_hz = examples["reference"], examples["bandwidth_hz"]
        return torch.stack([self.distance(wav, reference, bandwidth_hz, n_fft) for n_fft in self.n_ffts]).mean()

    def distance(self, wav: torch.Tensor, reference: torch.Tensor, bandwidth_hz: torch.Tensor, n_fft: int):
        """Log-spectral distance of `[batch, samples]` at one resolution, up to each track's bandwidth."""
        window = torch.hann_window(n_fft, device=wav.device)
        spectra = torch.stft(
            torch.stack([wav, reference]).flatten(0, 1), n_fft, n_fft // 4, window=window, return_complex=True
        )
        levels = torch.log10(spectra.abs() ** 2 + self.power_floor).unflatten(0, (2, -1))
        freqs_hz = torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1, device=wav.device)
        mask = (freqs_hz <= bandwidth_hz[:, None]).float()[:, :, None]
        square = ((levels[0] - levels[1]) ** 2 * mask).sum(1) / mask.sum(1)
        return torch.sqrt(square + 1e-7).mean()  # the root of zero has no gradient


class LdmObjective(Objective):
    """The velocity of the residual to the prior's mean, its condition dropped for some of the samples."""

    part = "unet"

    @torch.no_grad()
    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit an untrained prior, and the standard deviation of the residual to it."""
        prior = self.pipeline.prior
        if prior is None or bool(prior.fast_factors.any()):
            return
        clean: list[torch.Tensor] = []
        held: list[Batch] = []
        for batch in batches:
            clean.append(log_mel(batch.reference)[batch.bandwidth_hz >= _FULL_BANDWIDTH_HZ])
            held = [*held, batch][:_FEW]
        if not any(map(len, clean)):
            limit = f"{_FULL_BANDWIDTH_HZ / 1000:g} kHz"
            raise SrlibError(f"No crop holds sound up to {limit}: the prior has to be fitted to full-band music.")
        prior.fit(clean)
        residual = torch.cat([self._residual_and_condition(batch)[0] for batch in held])
        prior.residual_std.copy_(residual.std(dim=(0, 2, 3)))

    def _residual_and_condition(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised residual; where the reference is no target (`bandwidth_hz`), the prior's mean is."""
        degraded, reference, posterior = batch.degraded_log_mel(), log_mel(batch.reference), None
        if self.pipeline.prior is not None:
            observed = batch.observation(degraded)
            posterior = self.pipeline.prior(observed.log_mel, observed.variance)
            mask = band_mask(batch.bandwidth_hz)
            reference = mask * reference + (1 - mask) * posterior.mean
        condition, mean_latent = self.pipeline.encode_condition(degraded, posterior)
        return self.pipeline.to_residual(vae.encode(self.pipeline.vae, reference), mean_latent), condition

    @torch.no_grad()
    def examples(self, batch: Batch) -> dict[str, torch.Tensor]:
        residual, condition = self._residual_and_condition(batch)
        bands = band_mask(batch.bandwidth_hz) * band_weights().to(residual.device)  # [batch, 1, 1, 256]
        weights = bands.unflatten(-1, (-1, LATENT_FACTOR)).mean(-1)
        return {"residual": residual, "condition": condition, "weights": weights}

    def forward(self, examples: Mapping[str, torch.Tensor]) -> torch.Tensor:
        config, scheduler = self.config, self.pipeline.scheduler
        factor = self.pipeline.vae.config.scaling_factor
        condition = diffusion.drop_condition(examples["condition"], factor, config.condition_dropout)
        weights = examples["weights"] * self._channel_weights()[None, :, None, None]
        shares = (config.last_step_share, config.min_snr_gamma, config.level_weight)
        return diffusion.velocity_loss(self.module, scheduler, examples["residual"], condition, weights, *shares)

    def _channel_weights(self) -> torch.Tensor:
        """Squared change of the log-mel for one unit of each latent channel, mean one: `[channels]`."""
        if not isinstance(self.pipeline.vae, vae.PatchVAE):
            return torch.ones(self.pipeline.vae.config.latent_channels, device=self.pipeline.device)
        gain = self.pipeline.vae.spread * self.pipeline.residual_spread().flatten()
        return gain**2 / (gain**2).mean()


OBJECTIVES: dict[str, type[Objective]] = {"vae": VaeObjective, "vocoder": VocoderObjective, "ldm": LdmObjective}
