"""Degradation of audio: low-pass filter, noise and gaps, with a record that replays every random choice.

The order is low-pass, then noise, then gaps; `noise_first` swaps the first two. Filters run forwards and backwards
(zero phase), so the whole response is |H|^2: `cutoff_hz` is the design frequency handed to scipy, and the measured
`passband_hz` (-3 dB) and `stopband_hz` (-20 dB) are the edges of the band.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from functools import lru_cache
from typing import Annotated, Any, cast

import numpy as np
from pydantic import Field
from scipy import optimize, signal

from srlib.audio.recording import as_channels
from srlib.config import FILTER_TYPES, NOISE_TYPES, FilterType, NoiseType
from srlib.errors import SrlibError
from srlib.settings import Flag, Gap, NotNegative, Number, Positive, Range, Whole, settings

RIPPLE_DB = 0.1  # pass band of cheby1 and ellip, one way
STOP_BAND_DB = 60.0  # ellip, one way
BOXCAR_N_FFT = 2048  # samples
BOXCAR_HOP_LENGTH = 512  # samples
# Share of the sample rate; below 2e-8 the sections in float64 lose the pass band (measured on all families and orders).
LOWEST_CUTOFF = 1e-6
_MEASURED = ("sample_rate", "passband_hz", "stopband_hz")  # of a record, besides the fields of a degradation


@settings
class Degradation:
    """Low-pass, noise and gaps of a recording. Frozen, hashable, and sufficient to repeat them bit for bit."""

    cutoff_hz: Positive | None = None  # design frequency, Hz; None = no filter
    filter_type: FilterType = "cheby1"
    filter_order: Annotated[Whole, Field(ge=2, le=10)] = 8
    noise_type: NoiseType = "none"
    noise_amplitude: NotNegative = 0.0  # linear: peak of the tone, standard deviation of the white noise
    tone_hz: Positive | None = None
    gaps: tuple[Gap, ...] = ()  # (start, end), seconds
    seed: Annotated[Whole, Field(ge=0)] = 0  # of the tone's phase and of the white noise
    noise_first: Flag = False  # noise before the filter, as the figures of the source report show

    def __post_init__(self) -> None:
        if self.noise_type == "tone" and self.tone_hz is None:
            raise SrlibError("a tone needs tone_hz: give its frequency in Hz")

    @property
    def does_nothing(self) -> bool:
        """True if `apply` would return its input."""
        silent = self.noise_type == "none" or self.noise_amplitude == 0
        return self.cutoff_hz is None and silent and not self.gaps

    def check(self, sample_rate: int, samples: int | None = None) -> None:
        """Raise SrlibError if this cannot be done to a file of this rate (Hz) and length (samples)."""
        nyquist, lowest_hz = sample_rate / 2, LOWEST_CUTOFF * sample_rate
        if self.cutoff_hz is not None and self.cutoff_hz < lowest_hz:
            given = f"cutoff_hz {self.cutoff_hz:g}"
            raise SrlibError(f"{given} is below {lowest_hz:g} Hz, the lowest of a filter: raise it")
        tone_hz = self.tone_hz if self.noise_type == "tone" else None
        for name, hz in (("cutoff_hz", self.cutoff_hz), ("tone_hz", tone_hz)):
            if hz is not None and hz >= nyquist:
                raise SrlibError(f"{name} {hz:g} is not below {nyquist:g} Hz, half the sample rate: lower it")
        for start, end in self.gaps if samples is not None else ():
            first, last = round(start * sample_rate), round(end * sample_rate)
            if samples is not None and last > samples:
                seconds = samples / sample_rate
                raise SrlibError(f"the gap {start:g}:{end:g} s lies outside the file, which has {seconds:.3f} s")
            if first == last:
                raise SrlibError(f"the gap {start:g}:{end:g} s is shorter than a sample: make it longer")

    def apply(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Degrade wav [samples] or [channels, samples]; returns float32 of the same shape, the input untouched."""
        as_channels(wav, sample_rate)  # SrlibError for other input
        degraded = np.array(wav, dtype=np.float64)
        self.check(sample_rate, degraded.shape[-1])
        filtered = degraded if self.noise_first else self._filter(degraded, sample_rate)
        degraded = self._add_noise(filtered, sample_rate)
        degraded = self._filter(degraded, sample_rate) if self.noise_first else degraded
        for start, end in self.gaps:
            degraded[..., round(start * sample_rate) : round(end * sample_rate)] = 0.0
        return degraded.astype(np.float32)

    def _filter(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        if self.cutoff_hz is None:
            return wav
        if self.filter_type == "boxcar":
            return _boxcar(wav, _boxcar_kept(self.cutoff_hz, sample_rate))
        sos = _sections(self.filter_type, self.filter_order, self.cutoff_hz, sample_rate)
        long_enough = wav.shape[-1] > 3 * (2 * len(sos) + 1)  # for scipy's own padding
        return signal.sosfiltfilt(sos, wav, axis=-1, padlen=None if long_enough else wav.shape[-1] - 1)

    def _add_noise(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        samples = wav.shape[-1]
        if self.noise_type == "tone" and self.tone_hz is not None:  # one tone, the same in all channels
            time = np.arange(samples) / sample_rate
            phase = np.random.default_rng(self.seed).uniform(0, 2 * np.pi)
            return wav + self.noise_amplitude * np.sin(2 * np.pi * self.tone_hz * time + phase)
        if self.noise_type == "white":  # time first: a longer file gets the same noise and more of it
            noise = np.random.default_rng(self.seed).standard_normal((samples, wav.size // samples))
            return wav + self.noise_amplitude * noise.T.reshape(wav.shape)
        return wav

    def passband_hz(self, sample_rate: int) -> float | None:
        """Frequency (Hz) where the whole response falls to -3 dB; None without a filter."""
        return _crossing(self, -3.0, sample_rate)

    def stopband_hz(self, sample_rate: int) -> float | None:
        """Frequency (Hz) above which the whole response stays under -20 dB; None without a filter."""
        return _crossing(self, -20.0, sample_rate)

    def edges_hz(self, sample_rate: int) -> tuple[float, float] | None:
        """`passband_hz` and `stopband_hz`; None without a filter."""
        passband_hz, stopband_hz = self.passband_hz(sample_rate), self.stopband_hz(sample_rate)
        return None if passband_hz is None or stopband_hz is None else (passband_hz, stopband_hz)

    def record(self, sample_rate: int) -> dict[str, Any]:
        """All fields, the sample rate and the measured edges."""
        self.check(sample_rate)
        measured = int(sample_rate), self.passband_hz(sample_rate), self.stopband_hz(sample_rate)
        return asdict(cast(Any, self)) | dict(zip(_MEASURED, measured, strict=True))

    def to_json(self, sample_rate: int) -> str:
        """The record as text; `from_json` reads both."""
        return json.dumps(self.record(sample_rate), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, record: str | Mapping) -> Degradation:
        """From the text of a record or from its dict; the measured values in it are not needed."""
        try:
            record = dict(json.loads(record) if isinstance(record, str) else record)
        except (ValueError, TypeError, RecursionError) as error:
            raise SrlibError(f"the record is no JSON object ({error}): give the one beside the audio") from error
        return cls(**{name: value for name, value in record.items() if name not in _MEASURED})


def _sections(filter_type: FilterType, order: int, cutoff_hz: float, sample_rate: int) -> np.ndarray:
    """Second-order sections [sections, 6] of one pass; scipy ignores a ripple that the family does not have."""
    design = {"rp": RIPPLE_DB, "rs": STOP_BAND_DB, "btype": "lowpass", "ftype": filter_type, "output": "sos"}
    return signal.iirfilter(order, cutoff_hz, **design, fs=sample_rate)


def _boxcar_kept(cutoff_hz: float, sample_rate: int) -> int:
    """Number of STFT bins at or below the cutoff."""
    return math.floor(cutoff_hz * BOXCAR_N_FFT / sample_rate) + 1


def _boxcar(wav: np.ndarray, kept: int) -> np.ndarray:
    """Zero all but the first `kept` STFT bins, in blocks on one grid of frames: memory does not grow with the file."""
    transform = signal.ShortTimeFFT(signal.get_window("hann", BOXCAR_N_FFT), BOXCAR_HOP_LENGTH, fs=1)
    filtered, block, margin = np.empty_like(wav), 512 * BOXCAR_HOP_LENGTH, 2 * BOXCAR_N_FFT
    for start in range(0, wav.shape[-1], block):
        low, high = max(0, start - margin), start + block + margin
        piece = wav[..., low:high]
        missing = max(0, BOXCAR_N_FFT - piece.shape[-1])  # scipy wants half a window
        spectrum = transform.stft(np.pad(piece, [(0, 0)] * (wav.ndim - 1) + [(0, missing)]))
        spectrum[..., kept:, :] = 0.0
        piece = transform.istft(spectrum)[..., : piece.shape[-1]]
        filtered[..., start : start + block] = piece[..., start - low : start - low + block]
    return filtered


def zero_phase_response(degradation: Degradation, freqs_hz: np.ndarray, sample_rate: int) -> np.ndarray:
    """Real gain of the whole filter (both passes) at freqs_hz [n] -> [n]; ones without a filter.

    For boxcar it is 1 below and 0 above, but for the two bins either side of the cutoff over which the STFT window
    spreads a sinusoid: the share of the window's power that falls in bins that are kept.
    """
    freqs_hz = np.asarray(freqs_hz, dtype=np.float64)
    if degradation.cutoff_hz is None:
        return np.ones_like(freqs_hz)
    degradation.check(sample_rate)
    if degradation.filter_type != "boxcar":
        sos = _sections(degradation.filter_type, degradation.filter_order, degradation.cutoff_hz, sample_rate)
        return np.abs(signal.freqz_sos(sos, worN=freqs_hz.ravel(), fs=sample_rate)[1].reshape(freqs_hz.shape)) ** 2
    position = freqs_hz * BOXCAR_N_FFT / sample_rate
    bins = np.floor(position)[..., None] + np.arange(-7, 9)
    offset = position[..., None] - bins
    # spectrum of a Hann window: a sinc and half of its two neighbours
    power = (np.sinc(offset) + (np.sinc(offset - 1) + np.sinc(offset + 1)) / 2) ** 2
    kept = bins < _boxcar_kept(degradation.cutoff_hz, sample_rate)
    return (power * kept).sum(axis=-1) / power.sum(axis=-1)


@lru_cache(maxsize=4096)
def _crossing(degradation: Degradation, level_db: float, sample_rate: int) -> float | None:
    """The one frequency where the whole response passes level_db: no family ripples near -3 or -20 dB."""
    if degradation.cutoff_hz is None:
        return None

    def above(freq_hz: float) -> float:
        return float(zero_phase_response(degradation, np.array([freq_hz]), sample_rate)[0]) - 10 ** (level_db / 20)

    nyquist = sample_rate / 2  # a boxcar may keep every bin
    return nyquist if above(nyquist) >= 0 else float(optimize.brentq(above, 0.0, nyquist, xtol=1e-3))


@settings
class DegradationConfig:
    """Ranges that `sample` draws from, uniformly (source report, section on preprocessing)."""

    cutoff_hz: Range = (2000.0, 16000.0)  # Hz
    filter_types: tuple[FilterType, ...] = FILTER_TYPES
    filter_order: tuple[Whole, Whole] = (2, 10)  # both ends included
    noise_weights: dict[NoiseType, NotNegative] = field(default_factory=lambda: dict.fromkeys(NOISE_TYPES, 1.0))
    tone_amplitude: Range = (0.001, 0.2)  # linear, peak
    tone_hz: Range = (100.0, 15000.0)  # Hz
    white_amplitude: Range = (0.001, 0.02)  # linear, standard deviation
    gap_probability: Annotated[Number, Field(ge=0, le=1)] = 0.0
    gap_seconds: Range = (0.05, 0.5)  # training; (0.25, 0.25) is the report's gap
    segment_seconds: Positive = 10.24  # length of the audio that the gap must fit into

    def __post_init__(self) -> None:
        if not sum(self.noise_weights.values()):
            raise SrlibError(f"noise_weights is {self.noise_weights}: one weight has to be above zero")

    def for_sample_rate(self, sample_rate: int) -> DegradationConfig:
        """The same ranges with frequencies kept under 0.45 of the sample rate."""
        low, high = 0.04 * sample_rate, 0.45 * sample_rate
        cutoff, tone = ((min(a, low), min(b, high)) for a, b in (self.cutoff_hz, self.tone_hz))
        return replace(self, cutoff_hz=cutoff, tone_hz=tone)


def sample(rng: np.random.Generator, config: DegradationConfig) -> Degradation:
    """Draw one degradation. Each call draws the same number of times: with one seed, two configs share other fields."""
    cutoff_hz = rng.uniform(*config.cutoff_hz)
    filter_type = config.filter_types[rng.integers(len(config.filter_types))]
    filter_order = int(rng.integers(*config.filter_order, endpoint=True))
    weights = np.array([config.noise_weights.get(name, 0.0) for name in NOISE_TYPES])
    noise_type = NOISE_TYPES[np.searchsorted(np.cumsum(weights) / weights.sum(), rng.uniform(), side="right")]
    tone_amplitude, tone_hz = rng.uniform(*config.tone_amplitude), rng.uniform(*config.tone_hz)
    white_amplitude = rng.uniform(*config.white_amplitude)
    gap, length, position = rng.uniform(), rng.uniform(*config.gap_seconds), rng.uniform()
    start = position * (config.segment_seconds - length)
    return Degradation(
        cutoff_hz=cutoff_hz,
        filter_type=filter_type,
        filter_order=filter_order,
        noise_type=noise_type,
        noise_amplitude={"none": 0.0, "tone": tone_amplitude, "white": white_amplitude}[noise_type],
        tone_hz=tone_hz if noise_type == "tone" else None,
        gaps=((start, start + length),) if gap < config.gap_probability else (),
        seed=int(rng.integers(2**32)),
    )
