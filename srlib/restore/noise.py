"""Stationary white noise in the known band: its power in every STFT bin, and the gain that takes it out.

The power is measured on the whole recording, chunk by chunk: above the band, where only noise is left, or at the upper
end of the band if the noise was filtered with the music. The gain is Ephraim and Malah's log-spectral amplitude
estimator (1985), whose a-priori SNR comes from the model's log-mel where noise hides the music.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from scipy.special import exp1

from srlib.audio.stft import BINS_HZ, WINDOW_POWER, aligned_stft, envelope, frames_of
from srlib.config import HOP_LENGTH
from srlib.restore.merge import FULL_BAND, Band

_INAUDIBLE = (3e-5) ** 2 * WINDOW_POWER  # power of a bin: of the order of the dither of 16-bit audio
_TOP_HZ = 20_000.0  # resamplers and coders empty what lies above
_FEWEST_BINS = 40  # from which a level is measured

# Minimum statistics (Martin 2001): the first decile over time of power smoothed over 9 frames (90 ms), and the first
# decile of that over frequency. The biases are the mean power of white noise over each of the two, as measured.
_SMOOTHED_FRAMES, QUIET = 9, 0.1
_QUIET_BIAS, _LOWEST_BIAS = 2.05, 2.29
_QUIET_CHUNKS = 0.25  # quantile over the chunks: the quieter ones count
_SHORTEST = 3 * _SMOOTHED_FRAMES  # frames that sound; of fewer, the quietest moment is the music itself
_SILENT = 1e-14  # power up to which a frame is digital silence
_CLEAR = 1.05  # above this multiple of the stopband edge only noise is left

# In-band noise is looked for in the highest fifth of the band below 95 % of its edge, in 48 bins at least.
_EDGE, HIGHEST_SHARE, _WIDE_BINS = 0.95, 0.2, 48
FEWEST_FRAMES = 200  # of a chunk that can be judged: 2 s
# Limits of white noise in a chunk. None of 279 recordings of the training corpus without noise passes them, neither at
# full band nor through five filters (50 s of each).
# Ratio of the first decile over time to the second percentile: noise 1.6 to 2 dB, music 2 to 20 dB, held waves 0 to 1.
_QUIETEST, _STEADY_DB = 0.02, (1.55, 2.05)
_EVEN_DB = 0.9  # standard deviation of the differences of neighbouring bins: noise 0.3 to 0.9, synthesizers 0.9 to 3.5
_PARTS, _FLAT_DB = 8, 1.2  # range of the means of eight parts of the bins
_OUTSTANDING = 4.0  # ratio of power to that of the noise above the band
# Noise is stationary: at least a quarter of the chunks show it, and fewer chunks are quieter by more than 0.5 dB.
LEAST_SHARE, _QUIETER_DB = 0.25, 0.5
_NEIGHBOURS = 41  # bins of the median that finds the frequencies which the noise reaches

_MEMORY = 0.7  # share of the frame before in the a-priori SNR; best on the valid split of the demo set
_LEAST_SNR = 1e-5  # a-priori SNR
# Ratio of expected power to exp(2 E[log magnitude]) for errors of 0.5 nat, about the model's; same split.
_POWER_OF_LOG = 1.7


def smoothed_power(wav: torch.Tensor) -> np.ndarray:
    """Power `[frames, 1025]` of an STFT of `[samples]` at 48 kHz, smoothed over time, without digital silence."""
    power = aligned_stft(wav, max(len(wav) // HOP_LENGTH, 1)).abs().square().cpu().double().numpy()
    power = power[power.max(1) > _SILENT]
    smooth = ndimage.uniform_filter1d(power, _SMOOTHED_FRAMES, axis=0, mode="nearest")
    return np.maximum(smooth, 1e-30)  # after a loud moment rounding errors of the running sums may be negative


def _white_level(quiet: np.ndarray) -> np.ndarray:
    """Expected power `[...]` of a bin of white noise, from the first decile over time of its bins, `[..., bins]`."""
    return _LOWEST_BIAS * np.quantile(quiet, QUIET, axis=-1)


def level_above(quiet: np.ndarray, band: Band) -> np.ndarray:
    """Expected power `[...]` of noise above a band, from quiet moments `[..., 1025]`; zero for too few bins."""
    above = (_CLEAR * band.stopband_hz <= BINS_HZ) & (BINS_HZ <= _TOP_HZ)
    return _white_level(quiet[..., above]) if above.sum() >= _FEWEST_BINS else np.zeros(quiet.shape[:-1])


class NoiseFloor:
    """Power of white noise in every bin of the STFT, from a recording that comes in chunks."""

    def __init__(self) -> None:
        self._quiet: list[np.ndarray] = []  # two quantiles over time, [2, 1025], of each chunk
        self._judged: list[np.ndarray] = []  # the same of chunks of FEWEST_FRAMES or more

    def add(self, wav: torch.Tensor) -> None:
        """Take the next chunk of the recording, `[samples]` at 48 kHz."""
        power = smoothed_power(wav)
        if len(power) >= _SHORTEST:
            self._quiet.append(np.quantile(power, (QUIET, _QUIETEST), axis=0).astype(np.float32))
            self._judged += self._quiet[-1:] if len(power) >= FEWEST_FRAMES else []

    def result(self, band: Band, sampled: Band | None = None, forced: bool = False) -> np.ndarray:
        """Expected noise power of every bin, `[1025]`; zero where it is inaudible.

        `sampled` is the band below half the recording's own sample rate, if that is narrower. `forced` takes the quiet
        moments at the upper end of the band for noise if no noise is found.
        """
        if not self._quiet:
            return np.zeros(len(BINS_HZ))
        quiet = np.quantile([chunk[0] for chunk in self._quiet], _QUIET_CHUNKS, axis=0)
        noise = np.maximum(level_above(quiet, band), self.in_band(sampled or band))
        if forced and not noise.any():
            noise = noise + _white_level(quiet[_highest(sampled or band)])
        floor = np.minimum(noise, _QUIET_BIAS * quiet)
        return np.where(floor > _INAUDIBLE, floor, 0.0)

    def in_band(self, band: Band) -> np.ndarray:
        """Expected power `[1025]` of noise within the band, filtered with the music or on a full band; zero if none.

        It is found if the music pauses at the upper end of the band often enough.
        """
        response = band.response(torch.from_numpy(BINS_HZ)).square().numpy()
        highest = _highest(band)
        if not self._judged or highest.sum() < _FEWEST_BINS:
            return np.zeros(len(BINS_HZ))
        quiet = np.array(self._judged)  # [chunks, 2, 1025]
        power = quiet[..., highest] / np.maximum(response[highest], 1e-9)
        levels = _white_level(power[:, 0])
        noisy = np.array([_is_noise(*pair) for pair in zip(power, level_above(quiet[:, 0], band), strict=True)])
        level = np.median(levels[noisy]) if noisy.any() else 0.0
        quieter = levels < 10 ** (-_QUIETER_DB / 10) * level
        if noisy.sum() < max(LEAST_SHARE * len(noisy), quieter.sum() + 1):
            return np.zeros(len(BINS_HZ))
        reached = ndimage.median_filter(quiet[noisy, 0].mean(0), _NEIGHBOURS, mode="nearest")
        return np.where(reached > 0.5 / _QUIET_BIAS * level * response, level * response, 0.0)


def _highest(band: Band) -> np.ndarray:
    """The bins `[1025]` at the upper end of a band."""
    last = np.searchsorted(BINS_HZ, min(_EDGE * band.passband_hz, _TOP_HZ))
    width = max(round(HIGHEST_SHARE * last), _WIDE_BINS)
    index = np.arange(len(BINS_HZ))
    return (index >= last - width) & (index < last)


def _is_noise(power: np.ndarray, above: float) -> bool:
    """Whether quiet moments `[2, bins]` at the end of a band are white noise; `above` is the noise power above it."""
    level_db, quietest_db = 10 * np.log10(power)
    steady = _STEADY_DB[0] < (level_db - quietest_db).mean() < _STEADY_DB[1]
    even = np.diff(level_db).std() < _EVEN_DB
    flat = np.ptp([part.mean() for part in np.array_split(level_db, _PARTS)]) < _FLAT_DB
    audible = _QUIET_BIAS * power[0].mean() > max(_OUTSTANDING * above, _INAUDIBLE)
    return bool(steady and even and flat and audible)


def noise_gain(
    degraded: torch.Tensor, restored: torch.Tensor, floor: np.ndarray, band: Band = FULL_BAND
) -> torch.Tensor | None:
    """Gain `[frames, 1025]` from 0 to 1 that takes stationary noise out of `degraded`; None if there is none.

    Args:
        degraded: `[samples]` at 48 kHz.
        restored: the model's log-mel of the same seconds, `[frames, 256]`, nat.
        floor: noise power of every bin, `[1025]`, of `NoiseFloor`.
        band: its low-pass attenuates the music of `restored` in `degraded`.

    The a-priori SNR of a bin is a weighted mean of two: the SNR of the frame before, after its gain, which follows
    single partials, and the SNR from the model's log-mel, which estimates the music under the noise.
    """
    if not floor.any():
        return None
    frames = frames_of(degraded)
    snr = aligned_stft(degraded, frames).abs().square().cpu().double().numpy() / np.maximum(floor, 1e-30)
    fitted = torch.arange(frames, device=restored.device).clamp(max=len(restored) - 1)  # repeats the last frame
    expected = torch.exp(2 * envelope(restored[fitted])).cpu().double().numpy()
    expected *= _POWER_OF_LOG * 4 / np.pi / np.maximum(floor, 1e-30)  # 4 / pi: mean square over squared mean magnitude
    expected *= band.response(torch.from_numpy(BINS_HZ)).square().numpy()
    gain = np.ones_like(snr)
    before = expected[0]
    for t in range(frames):
        prior = np.maximum(_MEMORY * before + (1 - _MEMORY) * expected[t], _LEAST_SNR)
        wiener = prior / (1 + prior)
        gain[t] = np.minimum(wiener * np.exp(0.5 * exp1(np.maximum(wiener * snr[t], 1e-6))), 1.0)
        before = gain[t] ** 2 * snr[t]
    return torch.from_numpy(np.where(floor > 0, gain, 1.0)).to(restored)
