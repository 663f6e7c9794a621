"""What each part of the model is trained for: its trainable module and the loss of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from itertools import islice

import torch
from torch import nn

from srlib import ldm, vae
from srlib.adversary import Adversary
from srlib.corpus import PASSED, Batch
from srlib.errors import SrlibError
from srlib.fitting import fit_regressor, kinds_of_noise
from srlib.mel import band_edges_hz, band_widths_hz, log_mel
from srlib.nvsr import MelRegressor
from srlib.pipeline import RestorationPipeline
from srlib.recipe import TrainConfig
from srlib.vocoder import vocode

# Fine structure that no mel predicts adds about 0.79 (log10 power) of LSD, 0.91 nat of log magnitude: errors of the
# mel add to it in squares, so that small ones hardly matter and large ones count once.
_FINE_STRUCTURE_NAT = 0.91
_FEW = 8  # batches that principal components and spreads are measured on


@cache
def band_weights() -> torch.Tensor:
    """Weight `[256]` of each mel band, mean one: half its width in hertz, which LSD counts, half uniform."""
    width = torch.from_numpy(band_widths_hz())
    return (0.5 + 0.5 * width / width.mean()).float()


def band_mask(bandwidth_hz: torch.Tensor) -> torch.Tensor:
    """`[batch, 1, 1, 256]`: one for bands wholly inside a track's bandwidth, zero above it."""
    upper = torch.from_numpy(band_edges_hz()[2:]).to(bandwidth_hz)
    return (upper[None] <= bandwidth_hz[:, None]).float()[:, None, None]


def mel_distance(estimate: torch.Tensor, reference: torch.Tensor, bandwidth_hz: torch.Tensor) -> torch.Tensor:
    """Distance of log-mels as LSD will see it: mean over frames of the root of the mean square over hertz."""
    weights = band_mask(bandwidth_hz) * band_weights().to(estimate.device)
    square = ((estimate - reference) ** 2 * weights).sum(-1) / weights.sum(-1)
    return torch.sqrt(square + _FINE_STRUCTURE_NAT**2).mean()


class Objective(ABC):
    """One training stage: `module` learns, the other parts of the pipeline stay as they are."""

    adversary: Adversary | None = None  # where a stage can have one

    def __init__(self, pipeline: RestorationPipeline, config: TrainConfig) -> None:
        self.pipeline, self.config = pipeline, config
        self.module = self.trainable()
        for part in pipeline.modules():
            part.requires_grad_(part is self.module)
            part.train(part is self.module)

    @abstractmethod
    def trainable(self) -> nn.Module:
        """The part of the pipeline that this stage trains."""

    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch."""

    def prepare(self, batches: Iterator[Batch]) -> None:  # noqa: B027  some stages have nothing to fit
        """Fit what has a closed form to batches of crops before the first step of a run."""


class VaeObjective(Objective):
    """Mean absolute log-mel error and a small Kullback-Leibler term, on references and degraded inputs alike."""

    kl_weight = 1e-4

    def trainable(self) -> nn.Module:
        return self.pipeline.vae

    def prepare(self, batches: Iterator[Batch]) -> None:
        if isinstance(self.module, vae.PatchAutoencoderKL):
            pairs = [(batch.reference, batch.degraded) for batch in islice(batches, _FEW)]
            self.module.fit_patches(log_mel(torch.cat([wav for pair in pairs for wav in pair])))

    def loss(self, batch: Batch) -> torch.Tensor:
        half = len(batch.reference) // 2
        target = log_mel(torch.cat([batch.reference[half:], batch.degraded[:half]]))
        posterior = self.module.encode(target).latent_dist
        restored = self.module.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return (restored.float() - target).abs().mean() + self.kl_weight * kl


class VocoderObjective(Objective):
    """Log-spectral distance at several resolutions, on the true log-mel; in training also against an adversary."""

    n_ffts = (512, 1024, 2048, 4096)  # samples
    power_floor = 1e-9  # of unnormalised spectra: below 16-bit noise, so that quiet music counts

    def trainable(self) -> nn.Module:
        return self.pipeline.vocoder

    def loss(self, batch: Batch) -> torch.Tensor:
        first_frame = int(torch.randint(1024, ()))
        wav = vocode(self.module, log_mel(batch.reference), first_frame)
        distances = [self._distance(wav, batch.reference, batch.bandwidth_hz, n_fft) for n_fft in self.n_ffts]
        loss = torch.stack(distances).mean()
        if self.adversary is not None and self.adversary.active and self.module.training:
            loss = loss + self.adversary.generator_loss(wav, batch.reference, batch.bandwidth_hz)
        return loss

    def _distance(self, wav: torch.Tensor, reference: torch.Tensor, bandwidth_hz: torch.Tensor, n_fft: int):
        window = torch.hann_window(n_fft, device=wav.device)
        powers = [
            torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True).abs() ** 2 for x in (wav, reference)
        ]
        difference = torch.log(powers[0] + self.power_floor) - torch.log(powers[1] + self.power_floor)
        freqs_hz = torch.linspace(0, 24_000, n_fft // 2 + 1, device=wav.device)
        mask = (freqs_hz[None] <= bandwidth_hz[:, None]).float()[:, :, None]
        square = (difference**2 * mask).sum(1) / mask.sum(1)
        return torch.sqrt(square + 1e-6).mean() / 2.302585  # nat of power to log10, the unit of LSD


class NvsrObjective(Objective):
    """Distance of the regressed log-mel from the reference's, and the evidence of what was done, by cross entropy."""

    noise_weight = 0.1
    evidence_weight = 0.1

    def trainable(self) -> nn.Module:
        if self.pipeline.base is None:
            raise SrlibError("This model has no base mean to train: start from one of the compact kind.")
        return self.pipeline.base

    def prepare(self, batches: Iterator[Batch]) -> None:
        if isinstance(self.module, MelRegressor):
            fit_regressor(self.module, batches)

    def loss(self, batch: Batch) -> torch.Tensor:
        degraded = batch.degraded_log_mel()
        estimate = self.module(degraded, _uncertain(batch.known_bands))
        distance = mel_distance(estimate.log_mel.float(), log_mel(batch.reference), batch.bandwidth_hz)
        if estimate.evidence is None:
            return distance
        raised, kinds = kinds_of_noise(batch, degraded)
        inside = band_mask(batch.bandwidth_hz)[:, 0, 0] > 0
        passed, present = (batch.response > PASSED) & inside, (batch.response > 10 ** (-20 / 20)) & inside
        truth = torch.stack([passed, present, raised, passed], dim=1).float()
        logits = torch.cat([estimate.evidence, estimate.passed[:, None]], dim=1).float()
        evidence = nn.functional.binary_cross_entropy_with_logits(logits, truth)
        noise = nn.functional.cross_entropy(estimate.noise.float(), kinds)
        return distance + self.evidence_weight * evidence + self.noise_weight * noise


def _uncertain(known_bands: torch.Tensor) -> torch.Tensor:
    """Counts of known bands `[batch]` as a detector would give them: mostly right, sometimes some bands off."""
    error = torch.randint(-2, 3, known_bands.shape, device=known_bands.device)
    far = torch.rand(known_bands.shape, device=known_bands.device) < 0.1
    return (known_bands + torch.where(far, 4 * error, error)).clamp(1, 256)


class LdmObjective(Objective):
    """The velocity of the residual to the base latent, its condition dropped for some of the samples."""

    def trainable(self) -> nn.Module:
        return self.pipeline.unet

    @torch.no_grad()
    def prepare(self, batches: Iterator[Batch]) -> None:
        if self.pipeline.base is not None:
            self.pipeline.base.residual_std.fill_(1.0)
            residual = torch.cat([self._target_and_condition(batch)[0] for batch in islice(batches, _FEW)])
            self.pipeline.base.residual_std.copy_(residual.std(dim=(0, 2, 3)))

    @torch.no_grad()
    def _target_and_condition(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised residual; where the reference is no target (`bandwidth_hz`), the base's own mel is."""
        degraded, reference, base = batch.degraded_log_mel(), log_mel(batch.reference), None
        if self.pipeline.base is not None:
            base = self.pipeline.base(degraded, batch.known_bands).log_mel
            mask = band_mask(batch.bandwidth_hz)
            reference = mask * reference + (1 - mask) * base
        condition, base_latent = self.pipeline.encode_pair(degraded, base)
        latent = vae.encode(self.pipeline.vae, reference)
        return self.pipeline.to_residual(latent, base_latent), condition

    def loss(self, batch: Batch) -> torch.Tensor:
        target, condition = self._target_and_condition(batch)
        factor = self.pipeline.vae.config.scaling_factor
        condition = ldm.drop_condition(condition, factor, self.config.condition_dropout)
        weights = self._channel_weights(target)
        shares = {"last_step_share": self.config.last_step_share, "min_snr_gamma": self.config.min_snr_gamma or None}
        return ldm.velocity_loss(self.module, self.pipeline.scheduler, target, condition, weights, **shares)

    @torch.no_grad()
    def _channel_weights(self, latent: torch.Tensor) -> torch.Tensor:
        """How much one unit of each channel moves the log-mel, squared, mean one."""
        if not hasattr(self, "_weights"):
            decoder = getattr(self.pipeline.vae, "patch_decoder", None)
            if decoder is None:
                self._weights = torch.ones(latent.shape[1])
            else:
                gain = decoder.weight.flatten(1).norm(dim=1).cpu() * self.pipeline.residual_spread().flatten().cpu()
                self._weights = gain**2 / (gain**2).mean()
        return self._weights.to(latent.device)


STAGES = {"vae": VaeObjective, "vocoder": VocoderObjective, "nvsr": NvsrObjective, "ldm": LdmObjective}
