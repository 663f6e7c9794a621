"""Find and subtract stationary sinusoids by least squares: single tones, and mains hum with its harmonics.

Three numbers, frequency, amplitude and phase, describe a tone that is constant through a whole recording. Its
subtraction leaves no hole in the music, as a notch or a gain of one mel band would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage, optimize, signal

from srlib.restore.gaps import sounding

BLOCK_SECONDS = 0.5  # s; a tone must be present in every block
_MIN_BLOCKS = 4  # half overlapping, so at least 1.25 s
_PROMINENCE_DB = 12.0  # of a tone's quietest block over the surrounding spectrum
_LINE_DB = 8.0  # of a harmonic over the surrounding spectrum
MAX_SWING_DB = 2.0  # largest change of a tone's level between blocks: notes decay, tones do not
# Allowed change of level: a constant, dB, plus dB in proportion to the amplitude ratio of surroundings to tone.
_STEADY_DB, _SWING_SHARE = 0.5, 90.0
_STEADY_PHASE, _LINE_PHASE = 0.97, 0.5  # length of the mean unit vector of phase steps between blocks; constant: 1
MAX_TONES = 2  # more at once are harmonics of held music, and stay
_LOWEST_HZ = 45.0  # lowest tone, just below mains hum of 50 Hz
_EXCLUDED_BINS = 4  # either side of a peak that belong to it (Blackman window)
_PARTIALS = np.array([1 / 3, 1 / 2, 2 / 3, 3 / 2, 2.0, 3.0, 4.0])  # frequency ratios of partials of one note
_TOLERANCE_HZ = 0.1  # Hz, tolerance of a harmonic; from the fourth on, times a quarter of its number
_MAINS_HZ = 50.0 + np.arange(-0.45, 0.46, 0.01), 60.0 + np.arange(-0.45, 0.46, 0.01)  # the note G1 has 49.0 Hz
_HUM_LINES, _HARMONICS = 3, 40  # fewest lines among the first six harmonics of hum; highest harmonic searched
_FIT_BLOCK_S, _REACH_HZ, _DRIFT_HZ = 0.01, 2.0, 0.01  # s; Hz; Hz/s, drift of mains


@dataclass(frozen=True)
class Tone:
    """amplitude * sin(2 pi (frequency_hz + drift_hz t / 2) t + phase), t in s from the first sample; drift in Hz/s."""

    frequency_hz: float
    amplitude: float
    phase: float
    drift_hz: float = 0.0

    def render(self, samples: int, sample_rate: int) -> np.ndarray:
        """The tone, float64 `[samples]`."""
        time = np.arange(samples) / sample_rate
        return self.amplitude * np.sin(2 * np.pi * (self.frequency_hz + self.drift_hz * time / 2) * time + self.phase)


@dataclass(frozen=True)
class Comb:
    """Sinusoids at `harmonics` times `fundamental_hz`, found in a recording; a tone is a comb of one."""

    fundamental_hz: float
    harmonics: tuple[int, ...] = (1,)
    kind: Literal["tone", "hum"] = "tone"

    @property
    def frequencies_hz(self) -> tuple[float, ...]:
        """Frequencies of the sinusoids, Hz."""
        return tuple(self.fundamental_hz * number for number in self.harmonics)


class ToneFinder:
    """Stationary sinusoids of a recording that comes block by block, in constant memory."""

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._block = sample_rate, round(BLOCK_SECONDS * sample_rate)
        self._window = signal.windows.blackman(self._block, sym=False)
        self._held = np.empty(0, np.float32)
        self._count = self._steps = 0
        bins = self._block // 2 + 1
        self._before: np.ndarray | None = None  # unit vectors of the block before, if that was whole
        self._turns = np.zeros(bins, np.complex128)  # sum of the phase steps between blocks
        self._sum = np.zeros(bins)  # of the blocks' levels, dB
        self._quietest, self._loudest = np.full(bins, np.inf), np.full(bins, -np.inf)

    def add(self, wav: np.ndarray) -> None:
        """Take the next `[samples]`."""
        self._held = np.concatenate([self._held, wav])
        hop = self._block // 2
        for start in range(0, len(self._held) - self._block + 1, hop):
            block = self._held[start : start + self._block]
            if sounding(block, self._rate).all():
                self._add_spectrum(np.fft.rfft(block * self._window))
            else:  # a gap would look like a change of level
                self._before = None
        self._held = self._held[max(0, (len(self._held) - self._block) // hop + 1) * hop :]

    def _add_spectrum(self, spectrum: np.ndarray) -> None:
        power_db = 10 * np.log10(np.abs(spectrum) ** 2 + 1e-12)
        vectors = spectrum / np.maximum(np.abs(spectrum), 1e-12)
        if self._before is not None:
            self._turns += vectors * self._before.conj()
            self._steps += 1
        self._before = vectors
        self._quietest = np.minimum(self._quietest, power_db)
        self._loudest = np.maximum(self._loudest, power_db)
        self._sum += power_db
        self._count += 1

    def result(self) -> list[Comb]:
        """Mains hum first, then tones, strongest first; no tones if held music shows: more than two, or partials."""
        if self._count < _MIN_BLOCKS or not self._steps:
            return []
        mean_db = self._sum / self._count
        lines = _peaks(mean_db, mean_db, _LINE_DB) & (np.abs(self._turns) > _LINE_PHASE * self._steps)
        lines_hz = self._exact_hz(np.flatnonzero(lines))
        hum = [comb for fundamentals_hz in _MAINS_HZ if (comb := _hum(lines_hz, fundamentals_hz))]
        in_hum = np.array([hz for comb in hum for hz in comb.frequencies_hz])
        steady = np.flatnonzero(self._steady(mean_db))
        steady_hz = self._exact_hz(steady[np.argsort(-self._quietest[steady])])
        found = [hz for hz in steady_hz.tolist() if not (np.abs(in_hum - hz) < 1 / BLOCK_SECONDS).any()]
        partials = [(np.abs(lines_hz[:, None] - hz * _PARTIALS) < _TOLERANCE_HZ).any() for hz in found]
        return hum if len(found) > MAX_TONES or any(partials) else [*hum, *map(Comb, found)]

    def _steady(self, mean_db: np.ndarray) -> np.ndarray:
        """`[bins]`, True at the peak of a sinusoid of constant level and phase in all blocks."""
        prominence = self._quietest - _surroundings(mean_db)
        swing_db = np.minimum(_STEADY_DB + _SWING_SHARE * 10 ** (-np.maximum(prominence, 0) / 20), MAX_SWING_DB)
        in_phase = np.abs(self._turns) > _STEADY_PHASE * self._steps
        as_loud = self._loudest - self._quietest < swing_db
        return _peaks(self._quietest, mean_db, _PROMINENCE_DB) & in_phase & as_loud

    def _exact_hz(self, index: np.ndarray) -> np.ndarray:
        """Frequencies (Hz) of sinusoids near bins, from the phase steps of half a block, unique within 4 Hz."""
        hop_s = (self._block // 2) / self._rate
        bin_hz = index * self._rate / self._block
        turn = np.angle(self._turns[index] * np.exp(-2j * np.pi * bin_hz * hop_s))
        return bin_hz + turn / (2 * np.pi * hop_s)


def _hum(lines_hz: np.ndarray, fundamentals_hz: np.ndarray) -> Comb | None:
    """The comb, up to the highest harmonic found, of the fundamental with most lines and least deviation."""
    best: tuple[int, float] = (0, 0.0)
    for fundamental_hz in fundamentals_hz:
        numbers = np.round(lines_hz / fundamental_hz)
        off = np.abs(lines_hz - numbers * fundamental_hz) / (_TOLERANCE_HZ * np.maximum(1, numbers / 4))
        found = (off < 1) & (numbers >= 1) & (numbers <= _HARMONICS)
        rank = int(found.sum()), -float(off[found].sum())
        if rank > best and (numbers[found] <= 2 * _HUM_LINES).sum() >= _HUM_LINES:
            best, comb = rank, Comb(float(fundamental_hz), tuple(range(1, int(numbers[found].max()) + 1)), "hum")
    return comb if best[0] else None


def _surroundings(power_db: np.ndarray) -> np.ndarray:
    """Level of the surroundings of each bin, dB `[bins]`."""
    width = 2 * round(60 * BLOCK_SECONDS) + 1  # bins of 120 Hz
    return ndimage.median_filter(power_db, width, mode="nearest")


def _peaks(power_db: np.ndarray, surroundings_db: np.ndarray, prominence_db: float) -> np.ndarray:
    """`[bins]`, True at peaks of at least this prominence."""
    highest = ndimage.maximum_filter1d(power_db, 2 * _EXCLUDED_BINS + 1)
    peaks = (power_db == highest) & (power_db - _surroundings(surroundings_db) > prominence_db)
    peaks[: round(_LOWEST_HZ * BLOCK_SECONDS)] = False
    return peaks


def subtract_tones(wav: np.ndarray, found: Sequence[Comb], sample_rate: int) -> np.ndarray:
    """`[samples]` float32 less the tones fitted near those that were found; digital silence stays."""
    if not found:
        return wav
    sounds = sounding(wav, sample_rate)
    tones = [tone.render(len(wav), sample_rate) for comb in found for tone in fit(wav, comb, sample_rate)]
    return (wav - sounds * np.sum(tones, axis=0)).astype(np.float32)


def fit(wav: np.ndarray, comb: Comb, sample_rate: int) -> list[Tone]:
    """The tones of `[samples]` near those of a comb, by least squares outside of digital silence.

    Frequency and drift are searched for by correlation; amplitudes and phases have a closed form. A harmonic is shifted
    to 0 Hz and summed over 10 ms, so that the search is fast.
    """
    window = signal.windows.hann(len(wav), sym=False) * sounding(wav, sample_rate)
    weighted, time = wav * window, np.arange(len(wav)) / sample_rate
    numbers = np.array(comb.harmonics)
    step = max(round(_FIT_BLOCK_S * sample_rate), 1)
    starts = np.arange(0, len(wav), step)
    middles = starts / sample_rate + (step - 1) / 2 / sample_rate

    def shifted(hz: float, drift_hz: float) -> np.ndarray:
        turn = np.exp(-2j * np.pi * (hz + drift_hz * time / 2) * time)
        return np.array([np.add.reduceat(weighted * turn**number, starts) for number in numbers])

    rows = shifted(comb.fundamental_hz, 0.0)

    def lost(change: Sequence[float]) -> float:
        hz, drift_hz = (*change, 0.0)[:2]
        phase = numbers[:, None] * (hz + drift_hz * middles / 2) * middles
        return -float(np.square(np.abs((rows * np.exp(-2j * np.pi * phase)).sum(1))).sum())

    reach, width = _REACH_HZ / numbers[-1], sample_rate / len(wav) / numbers[-1] / 4
    first = min(np.arange(-reach, reach, width), key=lambda hz: lost((hz,)))
    free = 2 if comb.kind == "hum" else 1  # music near a tone would bias its drift
    simplex = np.array([(first, 0.0), (first + width, 0.0), (first, _DRIFT_HZ)])[: free + 1, :free]
    options = {"initial_simplex": simplex, "xatol": 1e-8, "fatol": np.inf}
    change_hz, drift_hz = (*optimize.minimize(lost, simplex[0], method="Nelder-Mead", options=options).x, 0.0)[:2]
    fundamental_hz = comb.fundamental_hz + change_hz
    # x = a sin(wt + p) has correlation a / 2i exp(ip) with exp(iwt), in units of the window's sum.
    values = 2j * shifted(fundamental_hz, drift_hz).sum(1) / max(window.sum(), 1e-9)
    return [
        Tone(float(number * fundamental_hz), float(abs(value)), float(np.angle(value)), float(number * drift_hz))
        for number, value in zip(numbers, values, strict=True)
    ]
