"""White noise that ends where the band ends, or lies on a full band: found where music leaves the band's end to it."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from srlib.audio.stft import BINS_HZ  # fmt: skip
from srlib.restore.merge import Band
from srlib.restore.noise import FEWEST_BINS, INAUDIBLE, LOWEST_BIAS, QUIET, QUIET_BIAS, TOP_HZ, level_above

# The highest fifth of the band below 95 % of its edge is looked at, or a little more where that is narrow.
_EDGE, _HIGHEST_SHARE, _WIDE_BINS = 0.95, 0.2, 48
_FEWEST_FRAMES = 200  # of a piece that can be judged
# In white noise the first decile of a bin's power is as far from its second percentile as chance has it (1.6 to 2 dB;
# music 2 to 20, a held wave 0 to 1), neighbouring bins differ by no more than chance (0.3 to 0.9 dB over two seconds
# and more; held synthesizers 0.9 to 3.5), and so do eight parts of what is looked at.
_QUIETEST, _STEADY_DB = 0.02, (1.55, 2.05)
_EVEN_DB, _PARTS, _FLAT_DB = 0.9, 8, 1.2
_OUTSTANDING = 4.0  # power over that of the noise above the band
# Noise lasts: it is heard in a quarter of the pieces, and those that are quieter, by more than so much, are fewer.
# Of 279 recordings of the training corpus (50 s of each) without noise, at full band or through five filters, none
# passes.
_LEAST_SHARE, _QUIETER_DB = 0.25, 0.5
_NEIGHBOURS = 41  # bins


class HissFinder:
    """White noise that was filtered with the music, or lies on a full band, from a recording that comes in pieces."""

    def __init__(self) -> None:
        self._quiet: list[np.ndarray] = []  # two quantiles over time, [2, 1025], of each piece

    def add(self, power: np.ndarray) -> None:
        """Take the next seconds, `srlib.restore.noise.smoothed_power` of them. Less than two say nothing."""
        if len(power) >= _FEWEST_FRAMES:
            self._quiet.append(np.quantile(power, (QUIET, _QUIETEST), axis=0).astype(np.float32))

    def result(self, band: Band) -> np.ndarray:
        """Its expected power in every bin, `[1025]`; zero where it does not reach, and everywhere if there is none."""
        response = band.response(torch.from_numpy(BINS_HZ)).square().numpy()
        highest = _highest(band)
        if not self._quiet or highest.sum() < FEWEST_BINS:
            return np.zeros(len(BINS_HZ))
        powers = np.array([quiet[0, highest] / np.maximum(response[highest], 1e-9) for quiet in self._quiet])
        levels = LOWEST_BIAS * np.quantile(powers, QUIET, axis=1)
        heard = np.array([_is_noise(quiet, response, highest, band) for quiet in self._quiet])
        level = np.median(levels[heard]) if heard.any() else 0.0
        quieter = levels < 10 ** (-_QUIETER_DB / 10) * level
        if heard.sum() < max(_LEAST_SHARE * len(heard), quieter.sum() + 1):
            return np.zeros(len(BINS_HZ))
        quiet = np.mean([quiet[0] for quiet, good in zip(self._quiet, heard, strict=True) if good], axis=0)
        reached = ndimage.median_filter(quiet, _NEIGHBOURS, mode="nearest") > 0.5 / QUIET_BIAS * level * response
        return np.where(reached, level * response, 0.0)


def _highest(band: Band) -> np.ndarray:
    """The bins `[1025]` at the upper end of a band."""
    last = np.searchsorted(BINS_HZ, min(_EDGE * band.passband_hz, TOP_HZ))
    width = max(round(_HIGHEST_SHARE * last), _WIDE_BINS)
    index = np.arange(len(BINS_HZ))
    return (index >= last - width) & (index < last)


def _is_noise(quiet: np.ndarray, response: np.ndarray, highest: np.ndarray, band: Band) -> bool:
    """Whether the quiet moments `[2, 1025]` of a piece are those of white noise in the bins `highest` `[1025]`."""
    power = quiet[:, highest] / np.maximum(response[highest], 1e-9)
    level_db, quietest_db = 10 * np.log10(power)
    steady = _STEADY_DB[0] < (level_db - quietest_db).mean() < _STEADY_DB[1]
    even = np.diff(level_db).std() < _EVEN_DB
    flat = np.ptp([part.mean() for part in np.array_split(level_db, _PARTS)]) < _FLAT_DB
    audible = QUIET_BIAS * power[0].mean() > max(_OUTSTANDING * level_above(quiet[0], band), INAUDIBLE)
    return bool(steady and even and flat and audible)
