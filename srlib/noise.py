"""Stationary noise below the cutoff: how loud it is in every STFT bin, and the gain that takes it out.

The level comes from the whole recording, block by block; the gain is Ephraim and Malah's log-spectral amplitude
estimator (1985), for which the model's log-mel says how loud the music is where noise hides it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from scipy.special import exp1

from srlib.config import F_MAX, HOP_LENGTH, N_FFT
from srlib.mel import band_edges_hz
from srlib.merge import FULL_BAND, Band, aligned_stft, fit_frames, frames_of
from srlib.vocoder import envelope

_BINS_HZ = np.linspace(0, F_MAX, N_FFT // 2 + 1)
_WINDOW_POWER = 3 * N_FFT / 8  # expected power of a bin of white noise of variance one, Hann window
# Minimum statistics: the first decile over time of power smoothed over 9 frames (90 ms), then the first over frequency.
_SMOOTHED_FRAMES, _QUANTILE = 9, 0.1
_TIME_BIAS, _BIAS = 2.05, 2.29  # mean power of white noise over that decile, and over that of both; measured
_LEVEL_STEP_DB, _LOWEST_DB, _LEVELS = 0.5, -140.0, 400  # the histogram of levels
_CLEAR_HZ = 1.05  # above the missing band's edge times this only noise is left
_TOP_HZ = 20_000.0  # resamplers and coders empty what lies above
_FEWEST_BINS = 40
_OUTSTANDING, _NEIGHBOURS = 10.0, 41  # power of a tone over the median of that many bins, of noise over what is above
# Quiet moments of the highest fifth of the band, below 95 % of its edge, are white noise if eight parts of it differ by
# less than the first number, neighbouring bins by no more than chance (0.4 to 0.9 dB over two seconds and more; held
# synthesizers 0.9 to 3.5), and the first decile of a bin's power is as far from its second percentile as chance has it
# (1.6 to 2.0 dB; music 2 to 20, a held wave 0 to 1), or where the recording fades from the third decile (1.6 to 1.9;
# music 2 to 20). Of 279 tracks of the corpus without noise none passes, at full band or low-passed at 16 or 8 kHz.
_EDGE, _HIGHEST_SHARE, _FEWEST_FRAMES = 0.95, 0.2, 200
_PARTS, _FLAT_DB, _EVEN_DB = 8, 1.5, 0.9
_STEADY_DB = {0.02: (1.55, 2.1), 0.3: (1.5, 1.95)}  # by quantile
_SURE = 0.9  # steady music in the highest octave is taken for noise with up to 0.87
_INAUDIBLE = (3e-5) ** 2 * _WINDOW_POWER  # of the order of the dither of 16-bit audio
_MEMORY = 0.7  # of the a-priori SNR: the share of the frame before; best on the valid split of the demo set
_LEAST_SNR = 1e-5
# Expected power over that of an expected log-mel: of errors of 0.5 nat, about the model's. Best on the same split.
_POWER_OF_LOG = 1.7


class NoiseFloor:
    """How loud stationary noise is in every bin of the STFT, from a recording that comes in chunks."""

    def __init__(self) -> None:
        self._counts = np.zeros((len(_BINS_HZ), _LEVELS), np.int64)  # frames by level: an hour takes no more than this

    def add(self, wav: torch.Tensor) -> None:
        """Take the next seconds `[samples]` of the recording, at 48 kHz; digital silence says nothing of the noise."""
        power = aligned_stft(wav, max(len(wav) // HOP_LENGTH, 1)).abs().square().cpu().double().numpy()
        power = power[power.max(1) > 10 ** (_LOWEST_DB / 10)]
        smooth = ndimage.uniform_filter1d(power, _SMOOTHED_FRAMES, axis=0, mode="nearest")
        # After a loud moment the filter's running sums leave rounding errors that may be negative.
        level = (10 * np.log10(np.maximum(smooth, 1e-30)) - _LOWEST_DB) / _LEVEL_STEP_DB
        cell = np.arange(len(_BINS_HZ)) * _LEVELS + level.clip(0, _LEVELS - 1).astype(np.int64)
        self._counts += np.bincount(cell.ravel(), minlength=self._counts.size).reshape(self._counts.shape)

    def result(self, band: Band, noisy: np.ndarray | None = None) -> np.ndarray:
        """Expected noise power of every bin, `[1025]`; zero where there is no noise to be heard.

        White noise is measured above the band, where nothing else is left, or if it was filtered too or nothing was, at
        the band's upper end (`hiss`). `noisy` `[256]`, the model's probability that a band holds noise, speaks for what
        neither shows: noise has the level of the quietest bins in such bands, and a tone is a bin whose quiet moments
        stand out from its neighbours'.
        """
        quiet, hz = self._quiet_moments(), _BINS_HZ
        white = self._above(band)
        floor = np.minimum(max(_BIAS * white, _TIME_BIAS * self.hiss(band)), _TIME_BIAS * quiet)
        if noisy is not None:
            heard = (np.interp(hz, band_edges_hz()[1:-1], noisy) > _SURE) & (hz <= band.known_hz)
            inside = np.quantile(quiet[heard], _QUANTILE) if heard.any() else 0.0
            if inside > _OUTSTANDING * white:
                floor[heard] = np.maximum(floor, np.minimum(_BIAS * inside, _TIME_BIAS * quiet))[heard]
            tone = heard & (quiet > _OUTSTANDING * ndimage.median_filter(quiet, _NEIGHBOURS, mode="nearest"))
            floor[tone] = _TIME_BIAS * quiet[tone]
        return np.where(floor > _INAUDIBLE, floor, 0.0)

    def hiss(self, band: Band) -> float:
        """First decile over time of a bin's power in white noise that ends where the band ends; zero if there is none.

        The quiet moments of hardly any music are as steady and as flat. Two seconds must have been heard.
        """
        hz, top_hz = _BINS_HZ, min(_EDGE * band.known_hz, _TOP_HZ)
        highest = (hz > (1 - _HIGHEST_SHARE) * top_hz) & (hz < top_hz)
        quiet = self._quiet_moments()[highest]
        if self._counts[0].sum() < _FEWEST_FRAMES or highest.sum() < _FEWEST_BINS:
            return 0.0
        level_db = 10 * np.log10(quiet)
        others_db = {q: 10 * np.log10(self._quiet_moments(q)[highest]) for q in _STEADY_DB}
        apart_db = {q: np.abs(level_db - other).mean() for q, other in others_db.items()}
        steady = any(low < apart_db[q] < high for q, (low, high) in _STEADY_DB.items())
        flat = np.ptp([part.mean() for part in np.array_split(level_db, _PARTS)]) < _FLAT_DB
        even = np.diff(level_db).std() < _EVEN_DB
        audible = _TIME_BIAS * quiet.mean() > max(_OUTSTANDING * _BIAS * self._above(band), _INAUDIBLE)
        return float(quiet.mean()) if steady and flat and even and audible else 0.0

    def _above(self, band: Band) -> float:
        """First decile over time and frequency of power where only noise is left; zero if there is no such place."""
        hz = _BINS_HZ
        above = (hz >= _CLEAR_HZ * band.missing_hz) & (hz <= _TOP_HZ)
        return float(np.quantile(self._quiet_moments()[above], _QUANTILE)) if above.sum() >= _FEWEST_BINS else 0.0

    def _quiet_moments(self, quantile: float = _QUANTILE) -> np.ndarray:
        """First decile over time of each bin's power, or another quantile, `[1025]`; zero before anything was heard."""
        heard = self._counts.cumsum(1)
        cell = (heard <= quantile * heard[:, -1:]).sum(1)
        return np.where(heard[:, -1] > 0, 10 ** ((_LOWEST_DB + _LEVEL_STEP_DB * (cell + 0.5)) / 10), 0.0)


def noise_gain(
    degraded: torch.Tensor, restored: torch.Tensor, floor: np.ndarray, band: Band = FULL_BAND
) -> torch.Tensor | None:
    """Gain `[frames, 1025]` from 0 to 1 that takes stationary noise out of `degraded`; None if there is none.

    Args:
        degraded: `[samples]` at 48 kHz.
        restored: the model's log-mel of the same seconds, `[frames, 256]`, nat.
        floor: noise power of every bin, `[1025]`, of `NoiseFloor`.
        band: where the low-pass falls there is as much less music in `degraded`.

    The a-priori SNR of a bin is a mean of what the frame before left of it, which follows single partials, and of what
    the model's log-mel says, which knows how loud the music is under the noise.
    """
    if not floor.any():
        return None
    frames = frames_of(degraded)
    snr = aligned_stft(degraded, frames).abs().square().cpu().double().numpy() / np.maximum(floor, 1e-30)
    expected = torch.exp(2 * envelope(fit_frames(restored, frames))).cpu().double().numpy()
    expected *= _POWER_OF_LOG * 4 / np.pi / np.maximum(floor, 1e-30)  # 4 / pi: of squared mean magnitudes
    expected *= band.response(torch.from_numpy(_BINS_HZ)).square().numpy()
    gain = np.ones_like(snr)
    before = expected[0]
    for t in range(frames):
        prior = np.maximum(_MEMORY * before + (1 - _MEMORY) * expected[t], _LEAST_SNR)
        wiener = prior / (1 + prior)
        gain[t] = np.minimum(wiener * np.exp(0.5 * exp1(np.maximum(wiener * snr[t], 1e-6))), 1.0)
        before = gain[t] ** 2 * snr[t]
    return torch.from_numpy(np.where(floor > 0, gain, 1.0)).to(restored)
