"""Detect the upper edge of a recording's band, for every second and channel, and the response of its low-pass.

A low-pass adds its response (dB) to the long-term spectrum of the music, and noise or a coder hides the result under a
floor. Before the filter, the spectrum is modelled as a random walk in dB over logarithmic frequency that slopes
downwards. The likelihood of several hundred filters, and of none, is computed: after subtraction of the right response
the steps of the walk are smallest. Steps have a Student t distribution, since instruments can end abruptly, too. A
hidden Markov model over the seconds keeps one filter until another is likelier by more than the cost of a change.
All constants without another source were tuned on the training tracks of the demo set.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np
import torch
from scipy import interpolate, ndimage, signal
from scipy.special import logsumexp, softmax

from srlib.audio.recording import Recording
from srlib.audio.stft import BINS_HZ
from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE, FilterType
from srlib.degrade import Degradation, zero_phase_response
from srlib.restore.merge import EDGE_ERROR, FULL_BAND, KNOWN_DB, MISSING_DB, Band
from srlib.settings import Gap

FULL_FROM_HZ = 18_500.0  # Hz; a band that reaches it counts as full
WINDOW_SECONDS = 1  # s; resolution in time
_SHORTEST = 0.5  # windows; shortest rest at the end of a recording that is analysed
_LOUDEST = 0.02  # share of the loudest frames that each bin leaves out of its mean: clicks at the edges of gaps
_MEDIAN_BINS = 25  # bins, 586 Hz: wider than a tone, narrower than the transition of a filter
_OCTAVE = 16  # bands in an octave
_LOWEST_HZ, _HIGHEST_HZ = 1000.0, 18_600.0  # Hz, of the bands; coders remove most music above

# The filters that are tried: those with their -3 dB point between 1.7 and 20 kHz, sixteen cutoffs an octave.
_SHAPES: tuple[tuple[FilterType, int], ...] = (
    *(("butter", n) for n in (2, 3, 4, 6, 10)),
    *(("cheby1", n) for n in (2, 3, 4, 6, 10)),
    ("boxcar", 2),
)
_CUTOFFS_HZ = 1300.0 * 2 ** (np.arange(65) / 16)
_PASSBANDS_HZ = (1700.0, 20_000.0)  # limits of the -3 dB point

# The random walk, in dB a band.
_SLOPES = np.array([-0.1, -0.3, -0.5, -0.75, -1.05])
_SLOPE_MEAN, _SLOPE_SPREAD = -0.45, 0.3  # normal prior of the slopes
_FALL_FROM_HZ, _FALL_WIDTH_HZ = 13_500.0, 4000.0  # Hz; over this width the slope grows steeper by up to 1 dB a band
_FALL_SPREAD = 1.0  # dB, standard deviation of that
_STEP_SPREAD = (0.4, 1.2)  # dB, limits of the spread that is measured on a recording
_FREEDOM = 2.5  # degrees of freedom of Student's t
_USUAL_COST = 0.75  # nat, mean cost of a band under the right hypothesis
_FAR_DB, _FAR_COST = 8.0, 0.5  # dB; nat for each dB that a step exceeds it: music has no brick walls
_RESPONSE_ERROR = 0.1  # relative error of a tried filter's slope

_DYNAMIC_DB = 100.0  # dB under the loudest band, the lowest floor
_HIDDEN_DB, _HIDDEN_UNDER_DB = 0.7, 7.0  # dB; in a band less than 0.7 over the floor music is at least 7 under it
# Past this attenuation of a steep filter a level costs only what exceeds it by the margin: elliptic filters fall no
# further. A soft filter is held to its response there too, or a coder's brick wall would look like its stop band.
_STOP_DB, _STOP_MARGIN_DB, _STEEP = 50.0, 12.0, 1.3  # dB; dB; largest ratio of stopband to passband edge
_FILTER_COST = (8.0, 5.0)  # nat, cost of any filter; the second if a floor hides the highest band
_TEMPER = 0.7  # factor of all costs, since neighbouring bands are not independent

# The decision.
_GRID_HZ = 20.0  # Hz; resolution of the responses
_SURE = 0.9  # probability that the true filter falls at least as far as the response that is equalised
_DOUBT = 0.001  # probability of full band above which the highest probable edge is taken
# Cost of a change, and largest cost of a window, nat. At 20 to 90 nat none of 24 steady recordings of the training
# split is divided; at up to 30 nat, two seconds of full band among ten are found.
_CHANGE, _MOST_COST = 25.0, 45.0
_ALIKE = 1.25  # ratio of passbands up to which two segments or channels have one band: a third of an octave


class BandDetector:
    """The band of one channel in every second, from a stream of samples; keeps one spectrum a second (4 kB)."""

    def __init__(self) -> None:
        self._held = np.empty(0, np.float32)
        self._spectra: list[np.ndarray] = []  # power [1025] of each window; zeros for digital silence

    def add(self, wav: torch.Tensor | np.ndarray) -> None:
        """Take the next `[samples]`, mono, 48 kHz."""
        self._held = np.concatenate([self._held, np.asarray(wav, np.float32)])
        length = WINDOW_SECONDS * SAMPLE_RATE
        while len(self._held) >= length:
            self._spectra.append(_spectrum(self._held[:length]))
            self._held = self._held[length:]

    def segments(self) -> list[tuple[int, Band]]:
        """(first second, band) of each segment, in order; silence belongs to the segment before, and alone has none."""
        spectra = self._windows()
        filters, sounding = _filters(), [second for second, one in enumerate(spectra) if one.any()]
        if not sounding:
            return []
        costs = np.array([_costs(*_band_levels(spectra[second]), filters) for second in sounding])
        states = _path(np.minimum(costs - costs.min(1, keepdims=True), _MOST_COST))
        segments: list[tuple[int, Band]] = []
        for _, run in itertools.groupby(range(len(sounding)), key=lambda index: states[index]):
            chosen = [sounding[index] for index in run]
            band = _band_of(np.mean([spectra[second] for second in chosen], axis=0), None)
            segments.append((chosen[0] if segments else 0, band))
        return segments

    def result(self, near_hz: float | None = None) -> Band:
        """The band of all samples so far, taken together; `FULL_BAND` if nothing is missing, or if all are silent.

        Args:
            near_hz: a known cutoff (Hz); only filters whose transition contains it are tried.
        """
        sounding = [spectrum for spectrum in self._windows() if spectrum.any()]
        return _band_of(np.mean(sounding, axis=0), near_hz) if sounding else FULL_BAND

    def _windows(self) -> list[np.ndarray]:
        long_enough = len(self._held) >= _SHORTEST * WINDOW_SECONDS * SAMPLE_RATE
        rest = [_spectrum(self._held)] if long_enough or not self._spectra else []
        return self._spectra + rest


def find_bands(recording: Recording, known: Band | float | None) -> list[tuple[Band, dict[int, tuple[Gap, ...]]]]:
    """Each band of a recording, with the (start, end) in seconds of each channel that has it; the longest first.

    Args:
        known: the band of the whole recording; or its cutoff (Hz), whose filter is detected; None detects both.
    """
    channels, length = range(recording.channels), recording.samples / recording.sample_rate
    everywhere: dict[int, tuple[Gap, ...]] = dict.fromkeys(channels, ((0.0, inf),))
    if isinstance(known, Band):
        return [(known, everywhere)]
    detectors = [BandDetector() for _ in channels]
    for block in recording.blocks_at(SAMPLE_RATE, channels):
        for detector, wav in zip(detectors, block, strict=True):
            detector.add(wav)
    sounding = [channel for channel, detector in enumerate(detectors) if any(map(np.any, detector._windows()))]
    if known is not None or not sounding:
        return [(detectors[sounding[0]].result(known) if sounding else FULL_BAND, everywhere)]
    segments = {channel: detectors[channel].segments() for channel in sounding}
    stretches = [
        (start - min(end, length), channel, start, end, band.within(recording.sample_rate))
        for channel in sounding
        for (start, band), end in zip(segments[channel], [*(s for s, _ in segments[channel][1:]), inf], strict=True)
    ]
    groups: list[tuple[Band, dict[int, list[Gap]]]] = []
    for _, channel, start, end, band in sorted(stretches, key=lambda one: one[0]):
        group = next((spans for other, spans in groups if _alike(other, band)), None)
        if group is None:
            groups.append((band, group := {}))
        group.setdefault(channel, []).append((float(start), float(end)))
    groups[0][1].update({channel: [(0.0, inf)] for channel in channels if channel not in sounding})
    return [(band, {channel: _joined(spans[channel]) for channel in sorted(spans)}) for band, spans in groups]


def _alike(one: Band, other: Band) -> bool:
    edges = one.passband_hz, other.passband_hz
    return (one == FULL_BAND) == (other == FULL_BAND) and max(edges) < _ALIKE * min(edges)


def _joined(spans: list[Gap]) -> tuple[Gap, ...]:
    """The spans in order; adjacent ones are joined."""
    joined: list[Gap] = []
    for start, end in sorted(spans):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)


def detect_band(wav: torch.Tensor) -> Band:
    """The band of `[samples]`, mono, 48 kHz, as one segment."""
    detector = BandDetector()
    detector.add(wav)
    return detector.result()


def _path(costs: np.ndarray) -> list[int]:
    """States of the cheapest path through `[windows, states]`, where a change costs `_CHANGE` (Viterbi)."""
    total, stay, came = costs[0], np.arange(costs.shape[1]), []
    for cost in costs[1:]:
        best = int(total.argmin())
        changed = total[best] + _CHANGE < total
        came.append(np.where(changed, best, stay))
        total = np.where(changed, total[best] + _CHANGE, total) + cost
    states = [int(total.argmin())]
    for before in reversed(came):
        states.append(int(before[states[-1]]))
    return states[::-1]


def _spectrum(samples: np.ndarray) -> np.ndarray:
    """Mean power `[1025]` over the frames that are not digital silence, without the loudest of each bin.

    Nuttall's window keeps a loud tone within four bins of itself, where Hann's would lift the floor for kilohertz.
    """
    samples = np.pad(samples, (0, max(0, N_FFT - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP_LENGTH]
    frames = frames[frames.any(axis=1)]
    if not len(frames):
        return np.zeros(N_FFT // 2 + 1)
    window = signal.get_window("nuttall", N_FFT)
    power = np.abs(np.fft.rfft(frames * (window / window.sum()).astype(np.float32), axis=1)) ** 2
    return np.sort(power, axis=0)[: max(1, round((1 - _LOUDEST) * len(power)))].mean(0) + 1e-20


@cache
def _bands_hz() -> np.ndarray:
    count = int(np.log2(_HIGHEST_HZ / _LOWEST_HZ) * _OCTAVE) + 1
    return _LOWEST_HZ * 2 ** (np.arange(count) / _OCTAVE)


def _band_levels(power: np.ndarray) -> tuple[np.ndarray, float]:
    """Levels (dB) of the bands `[68]` of a spectrum `[1025]`, without narrow peaks, and of its floor."""
    smooth = ndimage.median_filter(10 * np.log10(power), _MEDIAN_BINS, mode="nearest")
    width = 2 ** (0.5 / _OCTAVE)
    edges_hz = np.array([_bands_hz() / width, _bands_hz() * width])
    first, last = np.round(edges_hz * N_FFT / SAMPLE_RATE).astype(int)
    total = np.concatenate([[0.0], smooth.cumsum()])
    last = np.maximum(last, first + 1)
    levels = (total[last] - total[first]) / (last - first)
    upper = smooth[round(2000 * N_FFT / SAMPLE_RATE) :]
    lowest = np.quantile(upper, 0.05)
    floor = max(float(np.median(upper[np.abs(upper - lowest) < 1.5])), levels.max() - _DYNAMIC_DB)
    return np.maximum(levels, floor), floor


@dataclass(frozen=True)
class _Filters:
    """Responses (dB) in the bands `[68, filters + 1]` and in the bins of the STFT `[1025, filters + 1]`, and edges.

    The last response is that of no filter. The edges (Hz) are where the others cross -3 and -20 dB, `[filters]`.
    """

    bands_db: np.ndarray
    bins_db: np.ndarray
    passband_hz: np.ndarray
    stopband_hz: np.ndarray


@cache
def _filters() -> _Filters:
    tried = [Degradation(hz, family, order) for family, order in _SHAPES for hz in _CUTOFFS_HZ]
    grid_hz = np.arange(1, SAMPLE_RATE / 2, _GRID_HZ)
    fine = 20 * np.log10(np.abs([zero_phase_response(one, grid_hz, SAMPLE_RATE) for one in tried]) + 1e-12)
    passband_hz, stopband_hz = (grid_hz[np.argmax(fine < level, axis=1)] for level in (KNOWN_DB, MISSING_DB))
    used = (passband_hz > _PASSBANDS_HZ[0]) & (passband_hz < _PASSBANDS_HZ[1])
    fine = np.vstack([fine[used], np.zeros(len(grid_hz))]).T
    response = interpolate.interp1d(grid_hz, fine, axis=0, fill_value="extrapolate")
    return _Filters(response(_bands_hz()), response(BINS_HZ), passband_hz[used], stopband_hz[used])


def _costs(levels: np.ndarray, floor: float, filters: _Filters) -> np.ndarray:
    """Negative log-likelihood (nat) of each filter and, last, of none, `[filters + 1]`, for levels `[68]` (dB)."""
    response = filters.bands_db[:, :, None]  # (bands, filters + 1, 1), slopes on the last axis from here on
    hidden = levels - floor < _HIDDEN_DB
    music = 10 * np.log10(np.maximum(10 ** (levels / 10) - 10 ** (floor / 10), 1e-30))
    high = np.clip((_bands_hz() - _FALL_FROM_HZ) / _FALL_WIDTH_HZ, 0, 1)
    fall, unsure = -high, _FALL_SPREAD * high
    spread = _step_spread(levels, hidden)
    steep = np.append(filters.stopband_hz < _STEEP * filters.passband_hz, False)[:, None]
    cost = ((_SLOPES - _SLOPE_MEAN) / _SLOPE_SPREAD) ** 2 / 2 + np.zeros_like(response[0])
    walk = passed = music[0] - response[0] + 0 * cost  # level of the music before the filter, dB
    for k in range(1, len(levels)):
        stopped = steep & (response[k] < -_STOP_DB)
        expected, passed = walk + _SLOPES + fall[k], passed + _SLOPES
        if hidden[k]:  # only an upper limit of the music is known
            step = np.where(stopped, 0, np.minimum(floor - _HIDDEN_UNDER_DB - response[k] - expected, 0))
            free, walk = step == 0, np.where(stopped, walk, expected + step)
        else:
            too_loud = np.maximum(music[k] - (passed - _STOP_DB + _STOP_MARGIN_DB), 0)
            step = np.where(stopped, too_loud, music[k] - response[k] - expected)
            free, walk = stopped & (step == 0), np.where(stopped, walk, music[k] - response[k])
        error = np.hypot(unsure[k], _RESPONSE_ERROR * np.minimum(np.abs(response[k] - response[k - 1]), 200.0))
        cost += np.where(free, 0, _step_cost(step, spread, error))
        passed = np.where(response[k] > -10, walk, passed)
    cost = _TEMPER * cost
    cost[:-1] += _FILTER_COST[int(hidden[-1])]
    return -logsumexp(-cost, axis=1)


def _step_spread(levels: np.ndarray, hidden: np.ndarray) -> float:
    """Robust spread of a recording's own steps, dB."""
    steps = np.diff(levels)[~hidden[1:]]
    if len(steps) < _OCTAVE // 2:
        return _STEP_SPREAD[0]
    return float(np.clip(1.48 * np.median(np.abs(steps - np.median(steps))), *_STEP_SPREAD))


def _step_cost(step: np.ndarray, spread: float, error: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of a step of the walk (Student's t), nat, less `_USUAL_COST`."""
    wide = np.hypot(spread, error)
    usual = (_FREEDOM + 1) / 2 * np.log1p((step / wide) ** 2 / _FREEDOM) + np.log(wide / spread) - _USUAL_COST
    return usual + _FAR_COST * np.maximum(np.abs(step) - _FAR_DB - 3 * (wide - spread), 0)


def _band_of(power: np.ndarray, near_hz: float | None) -> Band:
    """The band of a spectrum `[1025]`: its edges and, from all probable filters, a response that is safe to invert.

    An edge's support is the probability of the filters whose transition, widened by 10 %, contains it. The
    middle one of the best supported edges is taken, or the highest if the band may be full: at 16 kHz music itself
    falls like a soft filter.
    """
    filters = _filters()
    cost = _costs(*_band_levels(power), filters)
    reached = 0.9 * filters.passband_hz, 1.1 * filters.stopband_hz
    if near_hz is not None:
        away = (reached[0] > near_hz) | (reached[1] < near_hz)
        if away.all():
            return Band.at(near_hz)
        cost[:-1][away] = np.inf
    # The response falls no further than probable filters do; with a given cutoff, too, "no filter" is one of them.
    response_db = _quantile(filters.bins_db, _SURE, softmax(-cost))
    if near_hz is not None:
        cost[-1] = np.inf
    weight = softmax(-cost)
    full = (filters.passband_hz >= FULL_FROM_HZ) & (near_hz is None)
    full_weight, weight = weight[-1] + weight[:-1][full].sum(), weight[:-1] * ~full
    edges = np.geomspace(_PASSBANDS_HZ[0], FULL_FROM_HZ, 170) if near_hz is None else np.array([near_hz])
    covers = (reached[0][:, None] <= edges) & (edges <= reached[1][:, None])
    support = weight @ covers
    if full_weight > support.max():
        return FULL_BAND
    best = np.flatnonzero(support > 0.98 * support.max())
    chosen = best[len(best) // 2]
    if full_weight > _DOUBT:  # the music itself may fall: nothing is equalised
        chosen, response_db = best[-1], np.zeros_like(response_db)
    weight = weight * covers[:, chosen]
    passband_hz, stopband_hz = float(edges[chosen]), float(_quantile(filters.stopband_hz, 0.5, weight))
    response_db = np.interp(BINS_HZ / EDGE_ERROR, BINS_HZ, response_db)  # moved up by the error of the edge
    return Band(passband_hz, max(stopband_hz, 1.02 * passband_hz), 10 ** (response_db / 20))


def _quantile(values: np.ndarray, share: float, weight: np.ndarray) -> np.ndarray:
    """Weighted quantile over the last axis."""
    return np.quantile(values, share, axis=-1, weights=weight, method="inverted_cdf")
