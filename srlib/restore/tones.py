"""Find and subtract stationary sinusoids by least squares: single tones, and mains hum with its harmonics.

A tone that keeps its frequency, amplitude and phase through a whole recording is known once three numbers are:
subtracting it removes it without a hole in the music, which a notch or a gain of one mel band would leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage, optimize, signal

from srlib.restore.gaps import sounding

BLOCK_SECONDS = 0.5  # s; a tone must stand in every block
_MIN_BLOCKS = 4  # half overlapping, so at least 1.25 s
_PROMINENCE_DB = 12.0  # of a tone's quietest block over what surrounds it
_LINE_DB = 8.0  # of a harmonic's quiet blocks over what surrounds it then
MAX_SWING_DB = 2.0  # of a tone's level between blocks where it hardly stands out: notes decay, tones do not
_STEADY_DB, _SWING_SHARE = 0.5, 90.0  # dB that are allowed to all, and more by what surrounds the tone, in amplitude
_STEADY_PHASE, _LINE_PHASE = 0.97, 0.5  # mean of the unit vectors of phase steps between blocks; one is constant
_MOST_KEPT = 256  # blocks, over two minutes before they are thinned
MAX_TONES = 2  # more at once are harmonics of music that is held, and stay
_LOWEST_HZ = 45.0
_EXCLUDED_BINS = 4  # either side of a peak that belong to it (Blackman window)
_PARTIALS = (1 / 3, 1 / 2, 2 / 3, 3 / 2, 2.0, 3.0, 4.0)  # of a note's frequency, or of the note that it is a partial of
_OFF_HZ = 0.1  # by which a harmonic may miss its place, times its number for the mains
MAINS_HZ, _MAINS_SWING_HZ = (50.0, 60.0), 0.45  # Hz; the note G1 has 49.0 Hz
_HUM_LINES, _HARMONICS = 3, 40  # fewest that are hum, and most that are looked for
_FIT_BLOCK_S, _REACH_HZ, _DRIFT_HZ = 0.01, 2.0, 0.01  # s; Hz; Hz a second by which mains wander


@dataclass(frozen=True)
class Tone:
    """amplitude * sin(2 pi (frequency_hz + drift_hz t / 2) t + phase), t in s from the first sample; drift in Hz/s."""

    frequency_hz: float
    amplitude: float
    phase: float
    kind: Literal["tone", "hum"] = "tone"
    drift_hz: float = 0.0

    def render(self, samples: int, sample_rate: int) -> np.ndarray:
        """The tone, float64 `[samples]`."""
        time = np.arange(samples) / sample_rate
        return self.amplitude * np.sin(2 * np.pi * (self.frequency_hz + self.drift_hz * time / 2) * time + self.phase)


@dataclass(frozen=True)
class Comb:
    """What is found in a recording: sinusoids at `harmonics` times `fundamental_hz`; a tone is a comb of one."""

    fundamental_hz: float
    harmonics: tuple[int, ...] = (1,)
    kind: Literal["tone", "hum"] = "tone"

    @property
    def frequencies_hz(self) -> tuple[float, ...]:
        """Of the sinusoids, Hz."""
        return tuple(self.fundamental_hz * number for number in self.harmonics)


class ToneFinder:
    """Stationary sinusoids of a recording that comes block by block, in constant memory."""

    def __init__(self, sample_rate: int) -> None:
        self._rate, self._block = sample_rate, round(BLOCK_SECONDS * sample_rate)
        self._window = signal.windows.blackman(self._block, sym=False)
        self._held = np.empty(0, np.float32)
        self._count = self._steps = 0
        self._stride = 1  # of the blocks that are kept for their quantiles
        self._kept: list[np.ndarray] = []
        bins = self._block // 2 + 1
        self._before: np.ndarray | None = None  # unit vectors of the block before, if that was whole
        self._turns = np.zeros(bins, np.complex128)  # sum of the phase steps between blocks
        self._quietest, self._loudest = np.full(bins, np.inf), np.full(bins, -np.inf)

    def add(self, wav: np.ndarray) -> None:
        """Take the next `[samples]`."""
        self._held = np.concatenate([self._held, wav])
        hop = self._block // 2
        for start in range(0, len(self._held) - self._block + 1, hop):
            block = self._held[start : start + self._block]
            if sounding(block, self._rate).all():
                self._add_spectrum(np.fft.rfft(block * self._window))
            else:  # a gap would look like a tone that wavers
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
        if self._count % self._stride == 0:
            self._kept.append(power_db.astype(np.float32))
        self._count += 1
        if len(self._kept) > _MOST_KEPT:  # every second one will do for the quantiles
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def result(self) -> list[Comb]:
        """Mains hum first, then tones, strongest first; of those none if there are more than two (held music)."""
        if self._count < _MIN_BLOCKS or not self._steps:
            return []
        quiet = np.quantile(self._kept, 0.1, axis=0)
        lines = _peaks(quiet, quiet, _LINE_DB) & (np.abs(self._turns) > _LINE_PHASE * self._steps)
        hum = [comb for mains_hz in MAINS_HZ if (comb := self._hum(lines, mains_hz))]
        in_hum = np.array([hz for comb in hum for hz in comb.frequencies_hz])
        surroundings = np.median(self._kept, axis=0)
        steady = np.flatnonzero(self._steady(surroundings))
        found = [(index, self._exact_hz(index)) for index in steady[np.argsort(-self._quietest[steady])]]
        found = [(index, hz) for index, hz in found if not (np.abs(in_hum - hz) < 1 / BLOCK_SECONDS).any()]
        if len(found) > MAX_TONES or any(self._has_partials(hz, lines) for _, hz in found):
            return hum
        return [*hum, *(Comb(hz) for _, hz in found)]

    def _steady(self, surroundings: np.ndarray) -> np.ndarray:
        """`[bins]`, True at the peak of a sinusoid that stands in all blocks, as loud as ever and in phase."""
        peaks = _peaks(self._quietest, surroundings, _PROMINENCE_DB)
        prominence = self._quietest - _around(surroundings)
        swing_db = np.minimum(_STEADY_DB + _SWING_SHARE * 10 ** (-np.maximum(prominence, 0) / 20), MAX_SWING_DB)
        in_phase = np.abs(self._turns) > _STEADY_PHASE * self._steps
        return peaks & in_phase & (self._loudest - self._quietest < swing_db)

    def _exact_hz(self, index: int | np.integer) -> float:
        """Frequency (Hz) of a sinusoid near a bin: phase steps of half a block tell it to within 4 Hz."""
        hop_s = (self._block // 2) / self._rate
        bin_hz = index * self._rate / self._block
        turn = np.angle(self._turns[index] * np.exp(-2j * np.pi * bin_hz * hop_s))
        return float(bin_hz + turn / (2 * np.pi * hop_s))

    def _line_near(self, hz: float, lines: np.ndarray, off_hz: float) -> bool:
        """Whether there is a line at a frequency, Hz."""
        near = round(hz * self._block / self._rate) + np.arange(-1, 2)
        near = near[(near >= 0) & (near < len(lines))]
        return any(lines[index] and abs(self._exact_hz(index) - hz) < off_hz for index in near)

    def _has_partials(self, hz: float, lines: np.ndarray) -> bool:
        """Whether another line is a partial of the same note."""
        return any(self._line_near(ratio * hz, lines, _OFF_HZ) for ratio in _PARTIALS)

    def _hum(self, lines: np.ndarray, mains_hz: float) -> Comb | None:
        """The comb of the mains, if some of its harmonics are there."""
        best: tuple[int, ...] = ()
        for fundamental_hz in self._fundamentals(lines, mains_hz):
            numbers = range(1, _HARMONICS + 1)
            found = tuple(n for n in numbers if self._line_near(n * fundamental_hz, lines, _OFF_HZ * max(1, n / 4)))
            if sum(n <= 2 * _HUM_LINES for n in found) >= _HUM_LINES and len(found) > len(best):
                best, best_hz = found, fundamental_hz
        return Comb(best_hz, tuple(range(1, max(best) + 1)), "hum") if best else None

    def _fundamentals(self, lines: np.ndarray, mains_hz: float) -> list[float]:
        """What the fundamental is if a line is one of the lowest harmonics, Hz."""
        top = round((2 * _HUM_LINES + 0.5) * mains_hz * self._block / self._rate)
        exact_hz = [self._exact_hz(index) for index in np.flatnonzero(lines[:top])]
        found = [hz / max(round(hz / mains_hz), 1) for hz in exact_hz]
        return [hz for hz in found if abs(hz - mains_hz) < _MAINS_SWING_HZ]


def _around(power_db: np.ndarray) -> np.ndarray:
    """What surrounds each bin, dB `[bins]`."""
    width = 2 * round(60 * BLOCK_SECONDS) + 1  # bins of 120 Hz
    return ndimage.median_filter(power_db, width, mode="nearest")


def _peaks(power_db: np.ndarray, surroundings_db: np.ndarray, prominence_db: float) -> np.ndarray:
    """`[bins]`, True where a peak stands out."""
    highest = ndimage.maximum_filter1d(power_db, 2 * _EXCLUDED_BINS + 1)
    peaks = (power_db == highest) & (power_db - _around(surroundings_db) > prominence_db)
    peaks[: round(_LOWEST_HZ * BLOCK_SECONDS)] = False
    return peaks


def without(wav: np.ndarray, tones: list[Tone], sample_rate: int) -> np.ndarray:
    """`[samples]` float32 less the tones; digital silence holds none."""
    clean, sounds = wav.astype(np.float64), sounding(wav, sample_rate)
    for tone in tones:
        clean -= sounds * tone.render(len(wav), sample_rate)
    return clean.astype(np.float32)


def subtract_tones(wav: np.ndarray, found: Sequence[Comb], sample_rate: int) -> np.ndarray:
    """`[samples]` float32 without the tones near those that were found; their phase is fitted."""
    return without(wav, fit_tones(wav, found, sample_rate), sample_rate) if found else wav


def fit_tones(wav: np.ndarray, found: Sequence[Comb], sample_rate: int) -> list[Tone]:
    """The tones of `[samples]` near those that were found, fitted outside of digital silence."""
    return [tone for comb in found for tone in _fit(wav, comb, sample_rate)]


def _fit(wav: np.ndarray, comb: Comb, sample_rate: int) -> list[Tone]:
    """Least squares: the frequency and, for hum, its drift by correlation, amplitudes and phases in closed form.

    A harmonic is shifted to 0 Hz and summed over 10 ms, which leaves few samples to search with.
    """
    window = signal.windows.hann(len(wav), sym=False) * sounding(wav, sample_rate)
    weighted, time = wav * window, np.arange(len(wav)) / sample_rate
    numbers, drift_hz, fundamental_hz = np.array(comb.harmonics), 0.0, comb.fundamental_hz
    step = max(round(_FIT_BLOCK_S * sample_rate), 1)
    starts = np.arange(0, len(wav), step)
    middles = starts / sample_rate + (step - 1) / 2 / sample_rate

    def shifted() -> np.ndarray:
        turn = np.exp(-2j * np.pi * (fundamental_hz + drift_hz * time / 2) * time)
        return np.array([np.add.reduceat(weighted * turn**number, starts) for number in numbers])

    def lost(change: Sequence[float], rows: np.ndarray) -> float:
        phase = numbers[:, None] * (change[0] + change[1] * middles / 2) * middles
        return -float(np.square(np.abs((rows * np.exp(-2j * np.pi * phase)).sum(1))).sum())

    rows, reach = shifted(), _REACH_HZ / numbers[-1]
    grid = np.arange(-reach, reach, sample_rate / len(wav) / numbers[-1] / 4)
    first = min(grid, key=lambda hz: lost((hz, 0.0), rows))
    if comb.kind == "hum":
        simplex = [(first, 0.0), (first + grid[1] - grid[0], 0.0), (first, _DRIFT_HZ)]
        change = optimize.minimize(lost, simplex[0], (rows,), "Nelder-Mead", options={"initial_simplex": simplex}).x
    else:
        around = (first - (grid[1] - grid[0]) * 2, first + (grid[1] - grid[0]) * 2)
        search = {"bounds": around, "method": "bounded", "options": {"xatol": 1e-8}}
        change = optimize.minimize_scalar(lambda hz: lost((hz, 0.0), rows), **search).x, 0.0
    fundamental_hz, drift_hz = fundamental_hz + change[0], float(change[1])
    # x = a sin(wt + p) has correlation a / 2i exp(ip) with exp(iwt), in units of the window's sum.
    values = 2j * shifted().sum(1) / max(window.sum(), 1e-9)
    return [
        Tone(float(number * fundamental_hz), float(abs(value)), float(np.angle(value)), comb.kind, number * drift_hz)
        for number, value in zip(numbers, values, strict=True)
    ]
