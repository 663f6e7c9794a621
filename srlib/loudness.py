"""What an estimate of logarithms lacks in power, and the cells that make up for it at the least distance.

The mean of a logarithm lies under the logarithm of the mean, so that the best estimate of a log-mel is too quiet, and
the more so the less is known. A gain on every cell would cost the log-spectral distance as many decibels as it brings.
But power lies in few cells: of all gains that raise a sum of powers by a given amount, those in proportion to each
cell's power have the smallest mean square (to first order, by Cauchy and Schwarz).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from srlib.config import LEVEL_REACH, N_FFT, SAMPLE_RATE
from srlib.mel import band_widths_hz, mel_filters

_MOST = 30.0  # times the mean power: louder cells are lifted no further, lest a click becomes a crash


def power_density(log_mel: torch.Tensor, first_band: int = 0) -> torch.Tensor:
    """Power per STFT bin, `[..., bands]`, of log-mels in nat from a band on; bands without a bin have none."""
    area = mel_filters().sum(1)[first_band:].to(log_mel)
    return torch.where(area > 0, torch.exp(2 * log_mel) / area.clamp(min=1e-9) ** 2, 0)


@cache
def band_widths() -> torch.Tensor:
    """How many STFT bins each mel band stands for, `[256]`: they add up to the spectrum."""
    return torch.from_numpy(band_widths_hz() / 2 * N_FFT / SAMPLE_RATE).float()


def lift(log_mel: torch.Tensor, base: torch.Tensor, deficit_db: torch.Tensor, first_band: int) -> torch.Tensor:
    """`log_mel` `[batch, 1, frames, 256]` with the power from `first_band` on that it should have.

    That is the power of the base estimate `base`, of the same shape, and `deficit_db` `[batch]` more; it is held in the
    mean over 2.6 s. A sampled log-mel may have it already, and is not made softer.
    """
    if first_band >= log_mel.shape[-1]:
        return log_mel
    widths = band_widths()[first_band:].to(log_mel)
    estimate, power = (power_density(mel[:, 0, :, first_band:], first_band) for mel in (base, log_mel))
    wanted = _held(estimate @ widths) * 10 ** (deficit_db.to(log_mel) / 10)[:, None]
    present = _held(power @ widths)
    relative = power / (present / widths.sum()).clamp(min=1e-30)[..., None]
    shape = relative / (1 + relative / _MOST)
    raised = _held((power * shape) @ widths)
    strength = (wanted - present).clamp(min=0) / raised.clamp(min=1e-30)
    lifted = log_mel.clone()
    lifted[:, 0, :, first_band:] += 0.5 * torch.log1p(strength[..., None] * shape)
    return lifted


def deficit_db(estimate: torch.Tensor, truth: torch.Tensor, first_band: int) -> float:
    """How much more power than the estimate the truth holds, dB, the median over clips.

    Both are log-mels in nat, `[clips, frames, bands]`, whose bands start at `first_band`.
    """
    widths = band_widths()[first_band:].to(estimate)
    powers = ((power_density(mel, first_band) @ widths).sum(1) for mel in (truth, estimate))
    true, estimated = (power.clamp(min=1e-30) for power in powers)
    return float((10 * torch.log10(true / estimated)).median())


def _held(power: torch.Tensor) -> torch.Tensor:
    """Moving mean of `[batch, frames]`: no difference of running sums, which would be noise after a loud moment."""
    window = 2 * LEVEL_REACH + 1
    return F.avg_pool1d(power[:, None], window, 1, LEVEL_REACH, count_include_pad=False)[:, 0]
