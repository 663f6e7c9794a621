"""Find where the band of a recording ends, in constant memory: statistics are gathered chunk by chunk.

The long-term spectrum of music is taken for a random walk in dB over logarithmic frequency that slopes downwards; a
low-pass adds its response to it, and noise or a coder hides it under a floor. Each of several hundred low-passes, and
none, is tried: with its response taken off again, the right one leaves the smallest steps. Large steps cost little
more than medium ones (Student's t), since instruments stop too. All constants were tuned on the demo set's training
tracks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage, signal

from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE
from srlib.degrade import Degradation, zero_phase_response
from srlib.restore.merge import FULL_BAND, Band

FULL_FROM_HZ = 18_500.0  # a band that reaches this far counts as full
_LEVELS_DB = np.arange(-200.0, 80.0, 0.5)  # of the histograms; music lies around -20, digital silence below -100
_LOUDEST = 0.02  # share of a bin's frames, the loudest, left out of its mean: clicks at the edges of gaps
_MEDIAN_BINS = 25  # 586 Hz: wider than a tone, narrower than what a filter leaves
_OCTAVE = 16  # bands in an octave
_LOWEST_HZ, _HIGHEST_HZ = 1000.0, 18_600.0  # of the bands; above, most music has been cut by somebody

# The low-passes that are tried: -3 dB between 1.7 and 20 kHz, sixteen an octave.
_SHAPES = (*(("butter", n) for n in (2, 3, 4, 6, 10)), *(("cheby1", n) for n in (2, 3, 4, 6, 10)), ("boxcar", 2))
_CUTOFFS_HZ = 1300.0 * 2 ** (np.arange(65) / 16)
_KNOWN_HZ = (1700.0, 20_000.0)

# The random walk, in dB a band.
_SLOPES = np.array([-0.1, -0.3, -0.5, -0.75, -1.05])
_SLOPE_MEAN, _SLOPE_SPREAD = -0.45, 0.3
_FALL_FROM_HZ, _FALL_WIDTH_HZ = 13_500.0, 4000.0  # from there on music falls faster, by up to 1 dB a band more ...
_FALL_SPREAD = 1.0  # ... give or take
_STEP_SPREAD = (0.4, 1.2)  # limits of a recording's own
_FREEDOM = 2.5  # of Student's t
_USUAL_COST = 0.75  # nat, what a band costs on average under the right hypothesis
_FAR_DB, _FAR_COST = 8.0, 0.5  # steps beyond the first cost the second (nat) for each dB more: music has no brick walls
_RESPONSE_ERROR = 0.1  # how far the real filter's slope may be off the tried one's

_DYNAMIC_DB = 100.0  # under the loudest band: what lies lower is floor
_HIDDEN_DB, _HIDDEN_UNDER_DB = 0.7, 7.0  # a band so little over the floor holds music at least so far under it
_STOP_DB, _STOP_MARGIN_DB = 50.0, 12.0  # past this attenuation anything is explained that is about as low
_FILTER_COST = (8.0, 5.0)  # nat, for assuming a filter at all; the second where a floor hides the highest band
_TEMPER = 0.7  # neighbouring bands are not independent


class BandDetector:
    """Where the known band of a recording ends, from its chunks; `result` can be asked at any time.

    What is kept is a histogram of levels for each frequency, so that an hour takes no more memory than a second.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((N_FFT // 2 + 1, len(_LEVELS_DB)), dtype=np.int64)

    def add(self, wav: torch.Tensor) -> None:
        """Take in a chunk `[samples]`, mono, 48 kHz. Digital silence in it says nothing and is left out."""
        power = _power_frames(wav)
        index = np.clip((10 * np.log10(power + 1e-30) - _LEVELS_DB[0]) * 2, 0, len(_LEVELS_DB) - 1).astype(np.int64)
        index += np.arange(len(self._counts)) * len(_LEVELS_DB)
        self._counts += np.bincount(index.ravel(), minlength=self._counts.size).reshape(self._counts.shape)

    def result(self) -> Band:
        """The band of the chunks so far; `FULL_BAND` if nothing is missing, or if all of them were silent."""
        if not self._counts.any():
            return FULL_BAND
        filters = _filters()
        weight = _posterior(*_band_levels(_trimmed_mean_db(self._counts)), filters)
        return _decide(weight, filters)


def detect_band(wav: torch.Tensor) -> Band:
    """The band of one chunk `[samples]`, mono, 48 kHz."""
    detector = BandDetector()
    detector.add(wav)
    return detector.result()


def _power_frames(wav: torch.Tensor) -> np.ndarray:
    """Power spectra `[frames, 1025]` of the frames that are not digital silence.

    Nuttall's window keeps a loud tone within four bins of itself, where Hann's would lift the floor for kilohertz.
    """
    samples = wav.detach().cpu().numpy()
    samples = np.pad(samples, (0, max(0, N_FFT - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP_LENGTH]
    window = signal.get_window("nuttall", N_FFT)
    spectrum = np.fft.rfft(frames[frames.any(axis=1)] * (window / window.sum()).astype(np.float32), axis=1)
    return np.abs(spectrum) ** 2


def _trimmed_mean_db(counts: np.ndarray) -> np.ndarray:
    """Mean power `[1025]` in dB without the loudest frames, from histograms `[1025, levels]`."""
    most = (1 - _LOUDEST) * counts.sum(1, keepdims=True)
    kept = np.minimum(counts, np.maximum(most - counts.cumsum(1) + counts, 0))
    return 10 * np.log10(kept @ 10 ** (_LEVELS_DB / 10) / kept.sum(1))


@cache
def _bands_hz() -> np.ndarray:
    count = int(np.log2(_HIGHEST_HZ / _LOWEST_HZ) * _OCTAVE) + 1
    return _LOWEST_HZ * 2 ** (np.arange(count) / _OCTAVE)


def _band_levels(spectrum_db: np.ndarray) -> tuple[np.ndarray, float]:
    """Levels of the bands `[68]` without narrow peaks, and of the floor, dB."""
    smooth = ndimage.median_filter(spectrum_db, _MEDIAN_BINS, mode="nearest")
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
    """Responses `[68, filters + 1]` in dB, the last of no filter; where they cross -3 and -20 dB, `[filters]` Hz."""

    response_db: np.ndarray
    passband_hz: np.ndarray
    stopband_hz: np.ndarray


@cache
def _filters() -> _Filters:
    grid = np.geomspace(500.0, 0.499 * SAMPLE_RATE, 800)
    tried = [Degradation(hz, family, order) for family, order in _SHAPES for hz in _CUTOFFS_HZ]
    fine = np.array([20 * np.log10(np.abs(zero_phase_response(one, grid, SAMPLE_RATE)) + 1e-12) for one in tried])
    passband_hz, stopband_hz = (grid[np.argmax(fine < level, axis=1)] for level in (-3.0, -20.0))
    used = (passband_hz > _KNOWN_HZ[0]) & (passband_hz < _KNOWN_HZ[1])
    response = np.array([np.interp(_bands_hz(), grid, one) for one in fine[used]])
    return _Filters(np.vstack([response, np.zeros(len(_bands_hz()))]).T, passband_hz[used], stopband_hz[used])


def _posterior(levels: np.ndarray, floor: float, filters: _Filters) -> np.ndarray:
    """Probability of each filter and, last, of none, `[filters + 1]`, for the levels `[68]` of the bands."""
    response = filters.response_db[:, :, None]  # (bands, filters + 1, 1), slopes on the last axis from here on
    hidden = levels - floor < _HIDDEN_DB
    music = 10 * np.log10(np.maximum(10 ** (levels / 10) - 10 ** (floor / 10), 1e-30))
    high = np.clip((_bands_hz() - _FALL_FROM_HZ) / _FALL_WIDTH_HZ, 0, 1)
    fall, unsure = -high, _FALL_SPREAD * high
    spread = _step_spread(levels, hidden)
    cost = ((_SLOPES - _SLOPE_MEAN) / _SLOPE_SPREAD) ** 2 / 2 + np.zeros_like(response[0])
    walk = passed = music[0] - response[0] + 0 * cost  # the music as it was before the filter, dB
    for k in range(1, len(levels)):
        stopped = response[k] < -_STOP_DB
        expected, passed = walk + _SLOPES + fall[k], passed + _SLOPES
        if hidden[k]:  # all that is known is how loud the music can be at most
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
    weight = np.exp(cost.min() - cost).sum(axis=1)
    return weight / weight.sum()


def _step_spread(levels: np.ndarray, hidden: np.ndarray) -> float:
    """Robust spread of a recording's own steps, dB."""
    steps = np.diff(levels)[~hidden[1:]]
    if len(steps) < _OCTAVE // 2:
        return _STEP_SPREAD[0]
    return float(np.clip(1.48 * np.median(np.abs(steps - np.median(steps))), *_STEP_SPREAD))


def _step_cost(step: np.ndarray, spread: float, error: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of a step of the walk (Student's t), in nat over that of a usual one."""
    wide = np.hypot(spread, error)
    usual = (_FREEDOM + 1) / 2 * np.log1p((step / wide) ** 2 / _FREEDOM) + np.log(wide / spread) - _USUAL_COST
    return usual + _FAR_COST * np.maximum(np.abs(step) - _FAR_DB - 3 * (wide - spread), 0)


def _decide(weight: np.ndarray, filters: _Filters) -> Band:
    """The band whose edge lies in the transition, give or take a tenth, of as many probable filters as possible."""
    full = filters.passband_hz >= FULL_FROM_HZ
    weight, full_weight = weight[:-1] * ~full, weight[-1] + weight[:-1][full].sum()
    edges = np.geomspace(_KNOWN_HZ[0], FULL_FROM_HZ, 170)
    covers = (0.9 * filters.passband_hz[:, None] <= edges) & (edges <= 1.1 * filters.stopband_hz[:, None])
    support = weight @ covers
    if full_weight > support.max():
        return FULL_BAND
    best = np.flatnonzero(support > 0.98 * support.max())
    chosen = best[len(best) // 2]
    inside = np.flatnonzero(covers[:, chosen])
    inside = inside[np.argsort(filters.stopband_hz[inside])]
    share = weight[inside].cumsum()
    missing = filters.stopband_hz[inside][np.searchsorted(share, share[-1] / 2)]
    return Band(float(edges[chosen]), float(max(missing, 1.02 * edges[chosen])))
