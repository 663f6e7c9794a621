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
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.noise import NoiseFloor
from srlib.restore.stereo import ChannelSurvey, Layout
from srlib.restore.tones import Tone, ToneFinder, fit_tone, without
from srlib.settings import Gap

_PEAKS = (0.1, 1.0)  # linear: the range of peaks that the model was trained on


@dataclass(frozen=True)
class Analysis:
    """What the first pass found.

    Args:
        level: factor to a peak that the model was trained on.
        tones_hz: stationary tones of each unique channel; subtracted if `subtract_tones`, else the prior is told.
        gaps: (start, end) in seconds.
    """

    layout: Layout
    level: float
    tones_hz: tuple[tuple[float, ...], ...]
    subtract_tones: bool
    gaps: tuple[Gap, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Measured:
    """The band of the downmix, and the noise at the model's level.

    `floors` `[1 + channels, 1025]` are powers of STFT bins, of the downmix and of each unique channel if there are
    several.
    """

    band: Band
    floors: np.ndarray

    @classmethod
    def noiseless(cls, band: Band, channels: int) -> Measured:
        """No noise in any of the unique channels."""
        return cls(band, np.zeros((channels + (channels > 1), N_FFT // 2 + 1)))


@dataclass(frozen=True)
class Prepared:
    """One chunk of the unique channels, `wav` `[channels, samples]` at 48 kHz, without its `tones`."""

    chunk: Chunk
    wav: np.ndarray
    tones: list[Tone]


def survey(recording: Recording, gaps: Sequence[Gap] | str, find_tones: bool, subtract_tones: bool = True) -> Analysis:
    """Levels, channels, stationary tones and, for `gaps="auto"`, runs of digital silence, in one pass."""
    channels = ChannelSurvey(recording.channels, recording.sample_rate)
    gap_finder = GapFinder(recording.sample_rate)
    tone_finders = [ToneFinder(recording.sample_rate) for _ in range(recording.channels if find_tones else 0)]
    for block in recording.blocks():
        channels.add(block)
        gap_finder.add(block)
        for finder, wav in zip(tone_finders, block, strict=False):
            finder.add(wav)
    layout = channels.layout()
    peak = channels.peaks[list(layout.unique)].max(initial=0.0)
    level = float(np.clip(peak, *_PEAKS) / peak) if peak else 1.0
    tones_hz = tuple(tuple(tone_finders[channel].result()) for channel in layout.unique) if find_tones else ()
    found = tuple(gap_finder.result() if gaps == "auto" else gaps)
    chunks = plan(recording.samples_at(SAMPLE_RATE), found)
    return Analysis(layout, level, tones_hz, subtract_tones, found, tuple(chunks))


def prepare(recording: Recording, analysis: Analysis) -> Iterator[Prepared]:
    """A pass over the chunks at 48 kHz, tones subtracted: their phase is fitted to each chunk."""
    blocks = recording.blocks_at(SAMPLE_RATE, analysis.layout.unique)
    for chunk, wav in zip(analysis.chunks, cut(blocks, analysis.chunks), strict=True):
        tones = [
            [fit_tone(channel, hz, SAMPLE_RATE) for hz in known]
            for channel, known in zip(wav, analysis.tones_hz if analysis.subtract_tones else (), strict=False)
        ]
        if any(tones):
            wav = np.stack([without(*pair, SAMPLE_RATE) for pair in zip(wav, tones, strict=True)])
        yield Prepared(chunk, wav, list(itertools.chain(*tones)))


def measure(recording: Recording, analysis: Analysis, band: Band | None, find_noise: bool) -> Measured:
    """The band of the downmix of a recording, unless it is given, and the noise, if it is to be found."""
    detector, nothing = BandDetector(), Measured.noiseless(FULL_BAND, len(analysis.layout.unique)).floors
    floors = [NoiseFloor() for _ in nothing]
    for prepared in prepare(recording, analysis):
        wav = torch.from_numpy(prepared.wav * np.float32(analysis.level))
        downmix = analysis.layout.downmix(wav)
        if band is None:
            detector.add(downmix)
        if find_noise:
            for row, floor in zip(with_downmix(downmix, wav), floors, strict=True):
                floor.add(row)
    band = band or _within_sampled(detector.result(), recording.sample_rate)
    if not find_noise:
        return Measured(band, nothing)
    sampled = _within_sampled(band, recording.sample_rate)
    return Measured(band, np.stack([floor.result(band, sampled) for floor in floors]))


def with_downmix(downmix: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """What is analysed: the downmix `[samples]` and, if there are several, the unique channels `[n, samples]`."""
    return downmix[None] if len(channels) == 1 else torch.cat([downmix[None], channels])


def _within_sampled(band: Band, sample_rate: int) -> Band:
    """A band that ends where the recording's own sample rate (Hz) makes it end."""
    nyquist = sample_rate / 2
    if band.passband_hz < nyquist or nyquist >= FULL_BAND.passband_hz:
        return band
    return Band.at(0.95 * nyquist)  # nothing above was sampled
