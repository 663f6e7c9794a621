"""The observation: a value and a variance of the clean log-mel for every frame and band of a degraded one.

Bands above the passband and under tones are missing; the noise floor gives the variance of each frame, and gaps add to
it. The prior (`srlib.models.prior`) turns this into a posterior; the variance is an input of the diffusion model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from srlib.audio.stft import band_edges_hz, mel_filters
from srlib.config import N_FFT, N_MELS, SAMPLE_RATE
from srlib.models.prior import MISSING
from srlib.restore.gaps import gap_frames
from srlib.restore.merge import LOST, Band
from srlib.settings import Gap

GAP_VARIANCE = 1.0  # nat^2, in a gap, whose log-mel is interpolated
# Log of music over noise, nat: equally likely a priori from 35 dB below to 70 dB above the noise.
_SNR_NAT = np.arange(-4.0, 8.01, 0.25)
_EXCESS_STEP, _LEAST_EXCESS, _EXCESSES = 0.25, -1.5, 36  # nat: cells of the excess over the noise floor
_SIMULATED_FRAMES = 400  # for the moments of `_likelihood`


@dataclass(frozen=True)
class Observation:
    """`log_mel` (nat) and `variance` (nat^2), both `[batch, 1, frames, 256]`."""

    log_mel: torch.Tensor
    variance: torch.Tensor


def observe(
    log_mel: torch.Tensor,
    bands: Sequence[Band],
    noise_floors: Sequence[np.ndarray | None],
    gaps: Sequence[Iterable[Gap]],
    tones_hz: Sequence[Sequence[float]] | None = None,
) -> Observation:
    """The observation of degraded log-mels `[batch, 1, frames, 256]`, with the fall of the low-pass equalised.

    Args:
        log_mel: nat, with gaps interpolated (`srlib.restore.gaps.interpolate_gaps`).
        noise_floors: expected powers of STFT bins `[1025]`, or None.
        gaps: (start, end) in seconds.
        tones_hz: tones in the log-mel, whose bands count as missing.
    """
    rows = []
    tones_hz = tones_hz or [()] * len(log_mel)
    for degraded, band, floor, spans, tones in zip(log_mel, bands, noise_floors, gaps, tones_hz, strict=True):
        value, variance = degraded, torch.zeros_like(degraded)
        if floor is not None and floor.any():
            value, variance = _under_noise(value, torch.from_numpy(floor).to(value))
        centres_hz = torch.from_numpy(band_edges_hz()[1:-1]).to(value)
        value = value - torch.log(band.response(centres_hz).clamp(min=LOST))
        variance[:, gap_frames(spans, variance.shape[1])] += GAP_VARIANCE
        variance[..., (centres_hz > band.passband_hz) | _touched(tones).to(value.device)] = MISSING
        rows.append((value, variance))
    return Observation(*(torch.stack(values) for values in zip(*rows, strict=True)))


def _touched(tones_hz: Iterable[float]) -> torch.Tensor:
    """`[256]`, True for bands that the main lobe or first side lobes of a sinusoid reach (Hann window)."""
    lower, upper = band_edges_hz()[:-2], band_edges_hz()[2:]
    reach_hz = 4 * SAMPLE_RATE / N_FFT
    touched = np.zeros(N_MELS, bool)
    for hz in tones_hz:
        touched |= (lower < hz + reach_hz) & (upper > hz - reach_hz)
    return torch.from_numpy(touched)


def _under_noise(log_mel: torch.Tensor, floor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and variance of the music in `[1, frames, 256]` with noise of the power `floor` `[1025]`."""
    magnitude = (torch.pi / 4 * floor).sqrt() @ mel_filters().to(floor).T  # mean magnitudes of Gaussian noise
    noise = torch.log(magnitude.clamp(min=1e-9))
    position = ((log_mel - noise - _LEAST_EXCESS) / _EXCESS_STEP).clamp(0, _EXCESSES - 1.001)
    cell, share = position.long(), position.frac()
    band = torch.arange(N_MELS, device=log_mel.device).expand_as(cell)
    correction, variance = (
        (1 - share) * table[band, cell] + share * table[band, cell + 1] for table in _likelihood(log_mel.device)
    )
    noisy = magnitude > 1e-9
    return torch.where(noisy, log_mel + correction, log_mel), torch.where(noisy, variance, torch.zeros_like(variance))


@cache
def _likelihood(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Music over the observed value (nat) and its variance, `[256, 36]` by band and excess over the noise floor.

    Moments of the likelihood under a flat prior, simulated: flat music of random phase in Gaussian noise.
    """
    rng = np.random.default_rng(0)
    bins, bank = N_FFT // 2 + 1, mel_filters().numpy().T
    noise = rng.standard_normal((2, _SIMULATED_FRAMES, bins + 2))
    noise = noise[..., 1:-1] - (noise[..., 2:] + noise[..., :-2]) / 2  # a Hann window correlates neighbours
    noise /= np.sqrt(1.5 * np.pi / 2)  # mean magnitude one
    phase = np.exp(2j * np.pi * rng.random((_SIMULATED_FRAMES, bins)))
    sums = np.zeros((3, N_MELS, _EXCESSES))
    area = np.maximum(bank.sum(0), 1e-9)
    for snr in _SNR_NAT:
        excess = np.log(np.abs(np.exp(snr) * phase + noise[0] + 1j * noise[1]) @ bank / area + 1e-9)
        cell = np.clip(np.round((excess - _LEAST_EXCESS) / _EXCESS_STEP), 0, _EXCESSES - 1).astype(int)
        for power in range(3):
            np.add.at(sums[power], (np.arange(N_MELS), cell), (snr - excess) ** power)
    count = np.maximum(sums[0], 1e-9)
    mean, variance = sums[1] / count, sums[2] / count - (sums[1] / count) ** 2
    return tuple(torch.from_numpy(values.astype(np.float32)).to(device) for values in (mean, variance))
