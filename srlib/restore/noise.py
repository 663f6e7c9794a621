"""Stationary noise below the cutoff: how loud it is in every STFT bin, and the gain that takes it out.

The level comes from the whole recording, block by block; the gain is Ephraim and Malah's log-spectral amplitude
estimator (1985), for which the model's log-mel says how loud the music is where noise hides it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from scipy.special import exp1

from srlib.audio.stft import BINS_HZ, WINDOW_POWER, aligned_stft, envelope, fit_frames, frames_of
from srlib.config import HOP_LENGTH
from srlib.restore.merge import FULL_BAND, Band

INAUDIBLE = (3e-5) ** 2 * WINDOW_POWER  # of the order of the dither of 16-bit audio
TOP_HZ = 20_000.0  # resamplers and coders empty what lies above
FEWEST_BINS = 40  # that tell a level
# Minimum statistics: the first decile over time of power smoothed over 9 frames (90 ms), then the first over frequency.
_SMOOTHED_FRAMES, QUIET = 9, 0.1
QUIET_BIAS, LOWEST_BIAS = 2.05, 2.29  # mean power of white noise over that decile, and over that of both; measured
_LEVEL_STEP_DB, _LOWEST_DB, _LEVELS = 0.5, -140.0, 400  # the histogram of levels
_CLEAR_HZ = 1.05  # above the missing band's edge times this only noise is left
_MEMORY = 0.7  # of the a-priori SNR: the share of the frame before; best on the valid split of the demo set
_LEAST_SNR = 1e-5
# Expected power over that of an expected log-mel: of errors of 0.5 nat, about the model's. Best on the same split.
_POWER_OF_LOG = 1.7


def smoothed_power(wav: torch.Tensor) -> np.ndarray:
    """Power `[frames, 1025]` of an STFT of `[samples]` at 48 kHz, smoothed over time, without digital silence."""
    power = aligned_stft(wav, max(len(wav) // HOP_LENGTH, 1)).abs().square().cpu().double().numpy()
    power = power[power.max(1) > 10 ** (_LOWEST_DB / 10)]
    smooth = ndimage.uniform_filter1d(power, _SMOOTHED_FRAMES, axis=0, mode="nearest")
    return np.maximum(smooth, 1e-30)  # after a loud moment rounding errors of the running sums may be negative


def level_above(quiet: np.ndarray, band: Band) -> float:
    """Expected power where only noise is left, by the bins' quiet moments `[1025]`; zero if there is no such place."""
    above = (_CLEAR_HZ * band.stopband_hz <= BINS_HZ) & (BINS_HZ <= TOP_HZ)
    return LOWEST_BIAS * float(np.quantile(quiet[above], QUIET)) if above.sum() >= FEWEST_BINS else 0.0


class NoiseFloor:
    """How loud stationary noise is in every bin of the STFT, from a recording that comes in chunks."""

    def __init__(self) -> None:
        self._counts = np.zeros((len(BINS_HZ), _LEVELS), np.int64)  # frames by level: an hour takes no more than this

    def add(self, power: np.ndarray) -> None:
        """Take the next seconds of the recording, `smoothed_power` of them."""
        level = (10 * np.log10(power) - _LOWEST_DB) / _LEVEL_STEP_DB
        cell = np.arange(len(BINS_HZ)) * _LEVELS + level.clip(0, _LEVELS - 1).astype(np.int64)
        self._counts += np.bincount(cell.ravel(), minlength=self._counts.size).reshape(self._counts.shape)

    def result(self, band: Band, hiss: np.ndarray | None = None) -> np.ndarray:
        """Expected noise power of every bin, `[1025]`; zero where there is no noise to be heard.

        White noise is measured above the band, where nothing else is left; `hiss` `[1025]` is the power of what does
        not reach there (`srlib.restore.hiss`).
        """
        quiet = self._quiet_moments()
        white = level_above(quiet, band)
        floor = np.minimum(np.maximum(white, 0.0 if hiss is None else hiss), QUIET_BIAS * quiet)
        return np.where(floor > INAUDIBLE, floor, 0.0)

    def _quiet_moments(self) -> np.ndarray:
        """First decile over time of each bin's power, `[1025]`; zero before anything was heard."""
        heard = self._counts.cumsum(1)
        cell = (heard <= QUIET * heard[:, -1:]).sum(1)
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
    expected *= band.response(torch.from_numpy(BINS_HZ)).square().numpy()
    gain = np.ones_like(snr)
    before = expected[0]
    for t in range(frames):
        prior = np.maximum(_MEMORY * before + (1 - _MEMORY) * expected[t], _LEAST_SNR)
        wiener = prior / (1 + prior)
        gain[t] = np.minimum(wiener * np.exp(0.5 * exp1(np.maximum(wiener * snr[t], 1e-6))), 1.0)
        before = gain[t] ** 2 * snr[t]
    return torch.from_numpy(np.where(floor > 0, gain, 1.0)).to(restored)
