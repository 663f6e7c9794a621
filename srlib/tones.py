"""Find and subtract stationary sinusoids: the single-tone noise of the source report, by least squares.

A tone that keeps its frequency, amplitude and phase through a whole recording is known once three numbers are:
subtracting it removes it without a hole in the music, which a notch or a gain of one mel band would leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize, signal

_BLOCK_SECONDS = 0.5  # s; a tone must stand in every block
_MIN_BLOCKS = 4  # half overlapping, so at least 1.25 s
_PROMINENCE_DB = 12.0  # of the quietest block over what surrounds the tone
_MAX_SWING_DB = 2.0  # of a tone's level between blocks: notes decay, tones do not
_MAX_TONES = 2  # more at once are harmonics of music that is held, and stay
_LOWEST_HZ = 50.0
_EXCLUDED_BINS = 4  # either side of a peak that belong to it (Blackman window)


@dataclass(frozen=True)
class Tone:
    """amplitude * sin(2 pi frequency_hz t + phase), t in seconds from the first sample."""

    frequency_hz: float
    amplitude: float
    phase: float

    def render(self, samples: int, sample_rate: int) -> np.ndarray:
        """The tone, float64 `[samples]`."""
        time = np.arange(samples) / sample_rate
        return self.amplitude * np.sin(2 * np.pi * self.frequency_hz * time + self.phase)


def find_tones(wav: np.ndarray, sample_rate: int) -> list[Tone]:
    """Stationary sinusoids of `[samples]`, strongest first; none if there are more than two (music that is held)."""
    block = round(_BLOCK_SECONDS * sample_rate)
    if len(wav) < block * (1 + _MIN_BLOCKS) // 2:
        return []
    window = signal.windows.blackman(block, sym=False)
    blocks = np.lib.stride_tricks.sliding_window_view(wav, block)[:: block // 2]
    power_db = 10 * np.log10(np.abs(np.fft.rfft(blocks * window)) ** 2 + 1e-12)
    quietest, swing = power_db.min(0), np.ptp(power_db, axis=0)
    width = 2 * round(60 * _BLOCK_SECONDS) + 1  # bins of 120 Hz
    surroundings = ndimage.median_filter(np.median(power_db, axis=0), width, mode="nearest")
    peak = quietest == ndimage.maximum_filter1d(quietest, 2 * _EXCLUDED_BINS + 1)
    found = np.flatnonzero(peak & (quietest - surroundings > _PROMINENCE_DB) & (swing < _MAX_SWING_DB))
    found = found[found >= _LOWEST_HZ * _BLOCK_SECONDS]
    if len(found) > _MAX_TONES:
        return []
    strongest = found[np.argsort(-quietest[found])]
    return [_fit(wav, bin_index / _BLOCK_SECONDS, sample_rate) for bin_index in strongest]


def subtract_tones(wav: np.ndarray, sample_rate: int) -> tuple[np.ndarray, list[Tone]]:
    """`[samples]` float32 without its stationary sinusoids, and what was subtracted."""
    tones = find_tones(wav, sample_rate)
    clean = wav.astype(np.float64)
    for tone in tones:
        clean -= tone.render(len(wav), sample_rate)
    return clean.astype(np.float32), tones


def _fit(wav: np.ndarray, frequency_hz: float, sample_rate: int) -> Tone:
    """Least squares in all three numbers: the frequency within a bin by its correlation, the others in closed form."""
    window = signal.windows.hann(len(wav), sym=False)
    weighted, time = wav * window, np.arange(len(wav)) / sample_rate
    step = sample_rate / len(wav)  # Hz; the correlation's main lobe is four steps wide
    reach = 1 / _BLOCK_SECONDS
    grid = np.arange(frequency_hz - reach, frequency_hz + reach, step / 2)
    spectrum = signal.zoom_fft(weighted, [grid[0], grid[-1]], m=len(grid), fs=sample_rate, endpoint=True)
    start = grid[np.argmax(np.abs(spectrum))]

    def correlation(hz: float) -> complex:
        return np.dot(weighted, np.exp(-2j * np.pi * hz * time))

    best = optimize.minimize_scalar(
        lambda hz: -abs(correlation(hz)), bounds=(start - step, start + step), method="bounded", options={"xatol": 1e-7}
    ).x
    # x = a sin(wt + p) has correlation a / 2i exp(ip) with exp(iwt), in units of the window's sum.
    value = 2j * correlation(best) / window.sum()
    return Tone(float(best), float(abs(value)), float(np.angle(value)))
