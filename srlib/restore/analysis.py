"""The first passes over a recording: what has to be known of the whole before a chunk of it can be restored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from srlib.audio.recording import Recording
from srlib.config import N_FFT, SAMPLE_RATE
from srlib.restore.chunks import Chunk, cut, plan
from srlib.restore.cutoff import BandDetector
from srlib.restore.gaps import GapFinder
from srlib.restore.hiss import HissFinder
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.noise import NoiseFloor, smoothed_power
from srlib.restore.stereo import ChannelSurvey, Layout
from srlib.restore.tones import Tone, ToneFinder, fit_tone, without
from srlib.settings import Gap

_LEVELS = (0.1, 1.0)  # peaks that the model has seen


@dataclass(frozen=True)
class Analysis:
    """`level` is the factor to a peak that the model has seen.

    `tones_hz` are those of each source channel; they are subtracted if `subtract_tones`, else only known about.
    """

    layout: Layout
    level: float
    tones_hz: tuple[tuple[float, ...], ...]
    subtract_tones: bool
    gaps: tuple[Gap, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Measured:
    """The band of the component, and the noise at the model's level.

    `floors` `[1 + sources, 1025]` are powers of STFT bins, of the component and of each source if there are several.
    """

    band: Band
    floors: np.ndarray

    @classmethod
    def noiseless(cls, band: Band, sources: int) -> Measured:
        """As if there were no noise."""
        return cls(band, np.zeros((sources + (sources > 1), N_FFT // 2 + 1)))


@dataclass(frozen=True)
class Prepared:
    """One chunk of the source channels, `wav` `[sources, samples]` at 48 kHz, without its `tones`."""

    chunk: Chunk
    wav: np.ndarray
    tones: list[Tone]


def survey(recording: Recording, gaps: Sequence[Gap] | str, find_tones: bool, subtract_tones: bool = True) -> Analysis:
    """Levels, channels, stationary tones and, for `gaps="auto"`, runs of digital silence, in one pass."""
    channels = ChannelSurvey(recording.channels)
    gap_finder = GapFinder(recording.sample_rate)
    tone_finders = [ToneFinder(recording.sample_rate) for _ in range(recording.channels if find_tones else 0)]
    for block in recording.blocks():
        channels.add(block)
        gap_finder.add(block)
        for finder, wav in zip(tone_finders, block, strict=False):
            finder.add(wav)
    layout = channels.layout()
    peak = channels.peaks[list(layout.sources)].max(initial=0.0)
    level = float(np.clip(peak, *_LEVELS) / peak) if peak else 1.0
    tones_hz = tuple(tuple(tone_finders[source].result()) for source in layout.sources) if find_tones else ()
    found = tuple(gap_finder.result() if gaps == "auto" else gaps)
    chunks = plan(recording.samples_at(SAMPLE_RATE), found)
    return Analysis(layout, level, tones_hz, subtract_tones, found, tuple(chunks))


def prepare(recording: Recording, analysis: Analysis) -> Iterator[Prepared]:
    """A pass over the chunks at 48 kHz, tones subtracted: their phase is fitted to each chunk."""
    blocks = recording.blocks_at(SAMPLE_RATE, analysis.layout.sources)
    for chunk, wav in zip(analysis.chunks, cut(blocks, analysis.chunks), strict=True):
        tones = [
            [fit_tone(channel, hz, SAMPLE_RATE) for hz in known]
            for channel, known in zip(wav, analysis.tones_hz if analysis.subtract_tones else (), strict=False)
        ]
        if any(tones):
            wav = np.stack([without(*pair, SAMPLE_RATE) for pair in zip(wav, tones, strict=True)])
        yield Prepared(chunk, wav, list(itertools.chain(*tones)))


def measure(recording: Recording, analysis: Analysis, band: Band | None, find_noise: bool) -> Measured:
    """The band of the component of a recording, unless it is given, and the noise, if it is to be found."""
    detector = BandDetector()
    rows = len(Measured.noiseless(FULL_BAND, len(analysis.layout.sources)).floors)
    floors, finders = [NoiseFloor() for _ in range(rows)], [HissFinder() for _ in range(rows)]
    for prepared in prepare(recording, analysis):
        wav = torch.from_numpy(prepared.wav * np.float32(analysis.level))
        mixed = analysis.layout.mix(wav)
        if band is None:
            detector.add(mixed)
        if find_noise:
            for row, floor, finder in zip(with_component(mixed, wav), floors, finders, strict=True):
                power = smoothed_power(row)
                floor.add(power)
                finder.add(power)
    band = band or _within_sampled(detector.result(), recording.sample_rate)
    if not find_noise:
        return Measured.noiseless(band, len(analysis.layout.sources))
    sampled = _within_sampled(band, recording.sample_rate)
    pairs = zip(floors, finders, strict=True)
    return Measured(band, np.stack([floor.result(band, finder.result(sampled)) for floor, finder in pairs]))


def with_component(component: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """What is analysed and regressed: the component `[samples]` and, if there are several, sources `[n, samples]`."""
    return component[None] if len(sources) == 1 else torch.cat([component[None], sources])


def _within_sampled(band: Band, sample_rate: int) -> Band:
    """A band that ends where the recording's own rate makes it end."""
    nyquist = sample_rate / 2
    if band.passband_hz < nyquist or nyquist >= FULL_BAND.passband_hz:
        return band
    return Band.at(0.95 * nyquist)  # nothing above was sampled
