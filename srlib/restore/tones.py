"""Find and subtract stationary sinusoids: the single-tone noise of the source report, by least squares.

A tone that keeps its frequency, amplitude and phase through a whole recording is known once three numbers are:
subtracting it removes it without a hole in the music, which a notch or a gain of one mel band would leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize, signal

from srlib.restore.gaps import sounding

BLOCK_SECONDS = 0.5  # s; a tone must stand in every block
_MIN_BLOCKS = 4  # half overlapping, so at least 1.25 s
_PROMINENCE_DB = 12.0  # of the quietest block over what surrounds the tone
MAX_SWING_DB = 2.0  # of a tone's level between blocks: notes decay, tones do not
_MOST_KEPT = 256  # blocks, over two minutes before they are thinned
MAX_TONES = 2  # more at once are harmonics of music that is held, and stay
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


class ToneFinder:
    """Stationary sinusoids of a recording that comes block by block, in constant memory."""

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._block = sample_rate, round(BLOCK_SECONDS * sample_rate)
        self._window = signal.windows.blackman(self._block, sym=False)
        self._held = np.empty(0, np.float32)
        self._count = 0
        self._stride = 1  # of the blocks that are kept for their median
        self._kept: list[np.ndarray] = []
        bins = self._block // 2 + 1
        self._quietest, self._loudest = np.full(bins, np.inf), np.full(bins, -np.inf)

    def add(self, wav: np.ndarray) -> None:
        """Take the next `[samples]`."""
        self._held = np.concatenate([self._held, wav])
        hop = self._block // 2
        for start in range(0, len(self._held) - self._block + 1, hop):
            block = self._held[start : start + self._block]
            if sounding(block, self._rate).all():  # a gap would look like a tone that wavers
                self._add_spectrum(10 * np.log10(np.abs(np.fft.rfft(block * self._window)) ** 2 + 1e-12))
        self._held = self._held[max(0, (len(self._held) - self._block) // hop + 1) * hop :]

    def _add_spectrum(self, power_db: np.ndarray) -> None:
        self._quietest = np.minimum(self._quietest, power_db)
        self._loudest = np.maximum(self._loudest, power_db)
        if self._count % self._stride == 0:
            self._kept.append(power_db.astype(np.float32))
        self._count += 1
        if len(self._kept) > _MOST_KEPT:  # every second one will do for the median
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def result(self) -> list[float]:
        """Frequencies in Hz to the nearest 2 Hz, strongest first; none if there are more than two (held music)."""
        if self._count < _MIN_BLOCKS:
            return []
        width = 2 * round(60 * BLOCK_SECONDS) + 1  # bins of 120 Hz
        surroundings = ndimage.median_filter(np.median(self._kept, axis=0), width, mode="nearest")
        peak = self._quietest == ndimage.maximum_filter1d(self._quietest, 2 * _EXCLUDED_BINS + 1)
        steady = self._loudest - self._quietest < MAX_SWING_DB
        found = np.flatnonzero(peak & (self._quietest - surroundings > _PROMINENCE_DB) & steady)
        found = found[found >= _LOWEST_HZ * BLOCK_SECONDS]
        if len(found) > MAX_TONES:
            return []
        return [float(bin_index / BLOCK_SECONDS) for bin_index in found[np.argsort(-self._quietest[found])]]


def without(wav: np.ndarray, tones: list[Tone], sample_rate: int) -> np.ndarray:
    """`[samples]` float32 less the tones; digital silence holds none."""
    clean, sounds = wav.astype(np.float64), sounding(wav, sample_rate)
    for tone in tones:
        clean -= sounds * tone.render(len(wav), sample_rate)
    return clean.astype(np.float32)


def fit_tone(wav: np.ndarray, frequency_hz: float, sample_rate: int) -> Tone:
    """The tone of `[samples]` near a frequency, fitted outside of digital silence.

    Least squares in all three numbers: the frequency within a bin by its correlation, the others in closed form.
    """
    window = signal.windows.hann(len(wav), sym=False) * sounding(wav, sample_rate)
    weighted, time = wav * window, np.arange(len(wav)) / sample_rate
    step = sample_rate / len(wav)  # Hz; the correlation's main lobe is four steps wide
    reach = 1 / BLOCK_SECONDS
    grid = np.arange(frequency_hz - reach, frequency_hz + reach, step / 2)
    spectrum = signal.zoom_fft(weighted, [grid[0], grid[-1]], m=len(grid), fs=sample_rate, endpoint=True)
    start = grid[np.argmax(np.abs(spectrum))]

    def correlation(hz: float) -> complex:
        return np.dot(weighted, np.exp(-2j * np.pi * hz * time))

    best = optimize.minimize_scalar(
        lambda hz: -abs(correlation(hz)), bounds=(start - step, start + step), method="bounded", options={"xatol": 1e-7}
    ).x
    # x = a sin(wt + p) has correlation a / 2i exp(ip) with exp(iwt), in units of the window's sum.
    value = 2j * correlation(best) / max(window.sum(), 1e-9)
    return Tone(float(best), float(abs(value)), float(np.angle(value)))
