"""The first passes over a recording: what has to be known of the whole before a chunk of it can be restored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from srlib.audio.recording import Recording
from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE
from srlib.restore.chunks import FADE, Chunk, cut
from srlib.restore.cutoff import BandDetector
from srlib.restore.gaps import GapFinder
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.noise import NoiseFloor
from srlib.restore.stereo import ChannelSurvey, Layout
from srlib.restore.tones import Comb, Tone, ToneFinder, fit_tones, without
from srlib.settings import Gap

_PEAKS = (0.1, 1.0)  # linear: the range of peaks that the model was trained on
_ALIKE = 1.25  # ratio of passbands up to which two stretches or channels are taken for one: a third of an octave


@dataclass(frozen=True)
class Part:
    """Channels of a recording that share a band, and when: they are restored together, as if they were alone.

    Args:
        channels: indices in the recording.
        spans: of each of these channels the (start, end) in seconds in which it has the band.
    """

    band: Band
    channels: tuple[int, ...]
    spans: tuple[tuple[Gap, ...], ...]

    def of(self, recording: Recording) -> Recording:
        """The recording of these channels alone."""
        chosen = list(self.channels)
        if len(chosen) == recording.channels:
            return recording
        return replace(recording, channels=len(chosen), blocks=lambda: (block[chosen] for block in recording.blocks()))

    def uses(self, chunk: Chunk) -> bool:
        """Whether any of the chunk's samples belongs to the part."""
        first, last = chunk.start * HOP_LENGTH - FADE, chunk.stop * HOP_LENGTH + FADE
        return any(start * SAMPLE_RATE < last and end * SAMPLE_RATE > first for one in self.spans for start, end in one)

    def share(self, first: int, last: int) -> np.ndarray:
        """Weight of the part in the output, `[channels, last - first]`, between two samples; faded over 0.16 s."""
        index = np.arange(first, last)[None]

        def reached(seconds: float) -> np.ndarray:
            return np.clip((index - seconds * SAMPLE_RATE) / FADE + 0.5, 0, 1) if seconds else np.ones(index.shape)

        rows = [sum(reached(start) - reached(end) for start, end in spans) for spans in self.spans]
        return np.concatenate(rows).astype(np.float32)


@dataclass(frozen=True)
class Analysis:
    """What is known of a part.

    Args:
        level: factor to a peak that the model was trained on.
        tones: tones and hum of each unique channel; subtracted if `subtract_tones`, else the prior is told.
        floors: noise of the downmix and of each unique channel, if there are several, at the model's level: powers of
            STFT bins `[1 + channels, 1025]`.
    """

    layout: Layout
    level: float
    tones: tuple[tuple[Comb, ...], ...]
    subtract_tones: bool
    floors: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """One chunk of the unique channels, `wav` `[channels, samples]` at 48 kHz, without its `tones`."""

    chunk: Chunk
    wav: np.ndarray
    tones: list[Tone]


def find_gaps(recording: Recording, gaps: Sequence[Gap] | Literal["auto"]) -> tuple[Gap, ...]:
    """(start, end) in seconds; `auto` finds runs of digital silence in all channels."""
    if gaps != "auto":
        return tuple(gaps)
    finder = GapFinder(recording.sample_rate)
    for block in recording.blocks():
        finder.add(block)
    return tuple(finder.result())


def find_parts(recording: Recording, band: Band | float | None) -> list[Part]:
    """The parts of a recording, the longest first; their shares add up to one everywhere.

    Args:
        band: of all of it, if that is known; a cutoff (Hz), whose filter is looked for; None detects all.
    """
    channels = range(recording.channels)
    whole = (0.0, float("inf"))
    if isinstance(band, Band):
        return [Part(band, tuple(channels), ((whole,),) * len(channels))]
    detectors = [BandDetector() for _ in channels]
    for block in recording.blocks_at(SAMPLE_RATE, channels):
        for detector, wav in zip(detectors, block, strict=True):
            detector.add(wav)
    segments = [detector.segments() for detector in detectors]
    if band is not None or not any(segments):
        near = next((one for one, found in zip(detectors, segments, strict=True) if found), detectors[0])
        return find_parts(recording, near.result(band) if any(segments) else FULL_BAND)
    stretches = [
        (start, end, channel, _within_sampled(found, recording.sample_rate))
        for channel in channels
        for (start, found), end in zip(segments[channel], _ends(segments[channel]), strict=True)
    ]
    length = recording.samples / recording.sample_rate
    groups: list[tuple[Band, dict[int, list[Gap]]]] = []
    for start, end, channel, found in sorted(stretches, key=lambda one: one[0] - min(one[1], length)):
        group = next((spans for other, spans in groups if _alike(other, found)), None)
        if group is None:
            groups.append((found, group := {}))
        group.setdefault(channel, []).append((float(start), end))
    groups[0][1].update({channel: [whole] for channel in channels if not segments[channel]})  # silent ones
    return [
        Part(found, tuple(sorted(spans)), tuple(_joined(spans[channel]) for channel in sorted(spans)))
        for found, spans in groups
    ]


def _ends(segments: list[tuple[int, Band]]) -> list[float]:
    return [*(float(start) for start, _ in segments[1:]), float("inf")][: len(segments)]


def _alike(one: Band, other: Band) -> bool:
    edges = one.passband_hz, other.passband_hz
    return (one == FULL_BAND) == (other == FULL_BAND) and max(edges) < _ALIKE * min(edges)


def _joined(spans: list[Gap]) -> tuple[Gap, ...]:
    """The spans in order, those that touch as one."""
    joined: list[Gap] = []
    for start, end in sorted(spans):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)


def _within_sampled(band: Band, sample_rate: int) -> Band:
    """A band that ends where the recording's own sample rate (Hz) makes it end."""
    nyquist = sample_rate / 2
    if band.passband_hz < nyquist or nyquist >= FULL_BAND.passband_hz:
        return band
    return Band.at(0.95 * nyquist)  # nothing above was sampled


def survey(recording: Recording, find_tones: bool, subtract_tones: bool = True) -> Analysis:
    """Levels, channels and stationary tones of a part's recording, in one pass; no noise yet."""
    channels = ChannelSurvey(recording.channels, recording.sample_rate)
    tone_finders = [ToneFinder(recording.sample_rate) for _ in range(recording.channels if find_tones else 0)]
    for block in recording.blocks():
        channels.add(block)
        for finder, wav in zip(tone_finders, block, strict=False):
            finder.add(wav)
    layout = channels.layout()
    unique = len(layout.unique)
    peak = channels.peaks[list(layout.unique)].max(initial=0.0)
    level = float(np.clip(peak, *_PEAKS) / peak) if peak else 1.0
    tones = tuple(tuple(tone_finders[channel].result()) for channel in layout.unique) if find_tones else ()
    return Analysis(layout, level, tones, subtract_tones, np.zeros((unique + (unique > 1), N_FFT // 2 + 1)))


def prepare(recording: Recording, analysis: Analysis, chunks: Sequence[Chunk]) -> Iterator[Prepared]:
    """A pass over the chunks at 48 kHz, tones subtracted: their phase is fitted to each chunk."""
    blocks = recording.blocks_at(SAMPLE_RATE, analysis.layout.unique)
    for chunk, wav in zip(chunks, cut(blocks, chunks), strict=True):
        found = analysis.tones if analysis.subtract_tones else ()
        tones = [fit_tones(*known, SAMPLE_RATE) for known in zip(wav, found, strict=False)]
        if any(tones):
            wav = np.stack([without(*pair, SAMPLE_RATE) for pair in zip(wav, tones, strict=True)])
        yield Prepared(chunk, wav, list(itertools.chain(*tones)))


def with_noise(recording: Recording, analysis: Analysis, part: Part, chunks: Sequence[Chunk], forced: bool) -> Analysis:
    """The analysis with the noise floors of the chunks that the part uses; `forced` takes what is unsure for noise."""
    floors = [NoiseFloor() for _ in analysis.floors]
    for prepared in prepare(recording, analysis, chunks):
        if part.uses(prepared.chunk):
            wav = torch.from_numpy(prepared.wav * np.float32(analysis.level))
            for row, floor in zip(with_downmix(analysis.layout.downmix(wav), wav), floors, strict=True):
                floor.add(row)
    sampled = _within_sampled(part.band, recording.sample_rate)
    return replace(analysis, floors=np.stack([floor.result(part.band, sampled, forced) for floor in floors]))


def with_downmix(downmix: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """What is analysed: the downmix `[samples]` and, if there are several, the unique channels `[n, samples]`."""
    return downmix[None] if len(channels) == 1 else torch.cat([downmix[None], channels])
