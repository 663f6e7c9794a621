"""Discriminators of short-time spectra: they teach a vocoder the fine structure that no distance of spectra rewards.

Small convolutional nets see complex spectra at several resolutions, after EnCodec's multi-scale STFT discriminator
(Defossez et al. 2022), with the hinge loss and feature matching that Vocos (Siuzdak 2023) trains with. Both spectra
are divided by the local level of the reference's, so that quiet bands count and the envelope is left to the spectral
loss; and set to zero above the reference's bandwidth, where it is no example.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.processes import Processes

N_FFTS = (512, 1024, 2048)  # samples, hops of a quarter
_CHANNELS = (2, 16, 16, 32, 32)  # of a discriminator's input and of its layers
_SMOOTHING = (5, 15)  # frames, bins of the local level
_POWER_FLOOR = 1e-9  # of unnormalised spectra, as in the spectral loss
_LIMIT = 8.0  # whitened spectra have unit power; an untrained vocoder's may be far above
_FEATURE_WEIGHT = 2.0


class SpectrumDiscriminator(nn.Module):
    """Scores patches of a whitened spectrum `[batch, 2, frames, bins]`; the features of every layer come with them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (3, 9), stride=(1, 2), padding=(1, 4)))
            for before, after in pairwise(_CHANNELS)
        )
        self.score = weight_norm(nn.Conv2d(_CHANNELS[-1], 1, 3, padding=1))

    def forward(self, spectrum: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = []
        for layer in self.layers:
            spectrum = F.leaky_relu(layer(spectrum), 0.2)
            features.append(spectrum)
        return self.score(spectrum).float(), features  # near one, bfloat16 has two digits


def whitened(
    wav: torch.Tensor, reference: torch.Tensor, bandwidth_hz: torch.Tensor, n_fft: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectra `[batch, 2, frames, bins]` of two `[batch, samples]` over the local level of the reference's."""
    window = torch.hann_window(n_fft, device=wav.device)
    spectra = [torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True) for x in (wav, reference)]
    bins, frames = _SMOOTHING[1], _SMOOTHING[0]
    power = F.avg_pool2d(spectra[1].abs() ** 2, (bins, frames), 1, (bins // 2, frames // 2), count_include_pad=False)
    freqs_hz = torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1, device=wav.device)
    mask = (freqs_hz[None] <= bandwidth_hz[:, None]).float()[:, :, None]
    scale = mask / torch.sqrt(power + _POWER_FLOOR)
    pair = []
    for spectrum in spectra:
        parts = torch.view_as_real(spectrum * scale).permute(0, 3, 2, 1)  # (B, bins, frames, 2) -> (B, 2, frames, bins)
        size = torch.sqrt((parts**2).sum(1, keepdim=True) + 1e-12)
        pair.append(parts / (1 + size / _LIMIT))
    return pair[0], pair[1]


class Adversary:
    """The discriminators of one run with their optimiser; `weight` is that of the generator's loss."""

    def __init__(self, processes: Processes, weight: float, frames: int, learning_rate: float) -> None:
        self.processes, self.weight, self.samples = processes, weight, frames * HOP_LENGTH
        self.active = False
        self.module = nn.ModuleList(SpectrumDiscriminator() for _ in N_FFTS).to(processes.accelerator.device)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=learning_rate, betas=(0.8, 0.99))
        self._pair: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def generator_loss(self, wav: torch.Tensor, reference: torch.Tensor, bandwidth_hz: torch.Tensor) -> torch.Tensor:
        """Weighted loss of `wav` `[batch, samples]` for not passing as real; remembers the pair for `update`."""
        start = int(torch.randint(max(1, wav.shape[1] - self.samples + 1), ()))
        crop = slice(start, start + self.samples)
        wav, reference = wav[:, crop], reference[:, crop]
        self._pair = (wav.detach(), reference, bandwidth_hz)
        self.module.requires_grad_(False)
        losses = []
        for n_fft, discriminator in zip(N_FFTS, self.module, strict=True):
            fake, real = whitened(wav, reference, bandwidth_hz, n_fft)
            score, features = discriminator(fake)
            with torch.no_grad():
                _, targets = discriminator(real)
            matching = [
                (one - other).abs().mean() / (other.abs().mean() + 1e-6)
                for one, other in zip(features, targets, strict=True)
            ]
            losses.append(F.relu(1 - score).mean() + _FEATURE_WEIGHT * torch.stack(matching).mean())
        return self.weight * torch.stack(losses).mean()

    def update(self, learning_rate: float) -> torch.Tensor:
        """One step of the discriminators on the pair that the generator's loss saw; returns their hinge loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.module.requires_grad_(True)
        with self.processes.accelerator.autocast():
            losses = []
            for n_fft, discriminator in zip(N_FFTS, self.module, strict=True):
                fake, real = (discriminator(spectrum)[0] for spectrum in whitened(*self._pair, n_fft))
                losses.append(F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            loss = torch.stack(losses).mean()
        self.optimizer.zero_grad()
        self.processes.accelerator.backward(loss)
        self.processes.average_gradients(self.module)
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser, for a checkpoint."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
