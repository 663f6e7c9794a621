"""Analysis of a whole recording, which the restoration of its chunks needs; it takes up to three passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from srlib.audio.recording import Recording
from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE
from srlib.restore.chunks import FADE, Chunk, cut, plan
from srlib.restore.cutoff import find_bands
from srlib.restore.gaps import GapFinder
from srlib.restore.merge import Band
from srlib.restore.noise import NoiseFloor
from srlib.restore.options import Options
from srlib.restore.stereo import ChannelSurvey, Layout
from srlib.restore.tones import Comb, ToneFinder, subtract_tones
from srlib.settings import Gap


@dataclass(frozen=True, eq=False)
class Part:
    """The channels of a recording that have one band, and the time spans in which they do; they are restored together.

    Args:
        channels: indices in the recording.
        spans: for each of these channels the (start, end) in seconds in which it has the band.
        layout: which of the channels are restored, and their downmix for the model.
        level: factor that brings the peak into the range of the training data.
        tones: tones and hum of each unique channel, which are subtracted.
        kept_tones_hz: tones that are not subtracted; their cells count as unobserved.
        floors: noise of the rows of `layout.with_downmix`, at the model's level: powers of STFT bins `[rows, 1025]`.
    """

    band: Band
    channels: tuple[int, ...]
    spans: tuple[tuple[Gap, ...], ...]
    layout: Layout
    level: float
    tones: tuple[tuple[Comb, ...], ...]
    kept_tones_hz: tuple[float, ...]
    floors: np.ndarray

    def uses(self, chunk: Chunk) -> bool:
        """Whether a sample of the chunk belongs to the part; False for a part of silent channels."""
        first, last = chunk.start * HOP_LENGTH - FADE, chunk.stop * HOP_LENGTH + FADE
        spans = [span for one in self.spans for span in one] if self.layout.unique else []
        return any(start * SAMPLE_RATE < last and end * SAMPLE_RATE > first for start, end in spans)

    def own(self, wav: np.ndarray) -> np.ndarray:
        """The unique channels of `[channels, samples]` of the recording at 48 kHz, without their tones."""
        rows = wav[[self.channels[place] for place in self.layout.unique]]
        return np.stack([subtract_tones(*pair, SAMPLE_RATE) for pair in zip(rows, self.tones, strict=True)])

    def share(self, first: int, samples: int) -> np.ndarray:
        """Weight of the part in the output, `[channels, samples]`, from a sample on; faded over 0.16 s."""
        index = np.arange(first, first + samples)[None]

        def reached(seconds: float) -> np.ndarray:
            return np.clip((index - seconds * SAMPLE_RATE) / FADE + 0.5, 0, 1) if seconds else np.ones(index.shape)

        rows = [sum(reached(start) - reached(end) for start, end in spans) for spans in self.spans]
        return np.concatenate(rows).astype(np.float32)


@dataclass(frozen=True)
class Analysis:
    """`gaps` in seconds, the `chunks`, and the `parts`, the longest first; the shares of the parts add up to one."""

    gaps: tuple[Gap, ...]
    chunks: Sequence[Chunk]
    parts: Sequence[Part]

    def chunked(self, recording: Recording) -> Iterator[tuple[Chunk, int, list[tuple[Part, np.ndarray]]]]:
        """A pass over the chunks: number of samples of each, and its parts with their waveforms `Part.own`."""
        blocks = recording.blocks_at(SAMPLE_RATE, range(recording.channels))
        for chunk, wav in zip(self.chunks, cut(blocks, self.chunks), strict=True):
            yield chunk, wav.shape[1], [(part, part.own(wav)) for part in self.parts if part.uses(chunk)]


def analyse(recording: Recording, options: Options, has_prior: bool) -> Analysis:
    """Analyse a recording. Raise SrlibError for options that do not fit it.

    Args:
        has_prior: whether the model has a prior, which uses noise and tones even if the merge keeps them.
    """
    options.check(recording)
    rate, channels, subtracts = recording.sample_rate, range(recording.channels), options.merge == "gain"
    find_noise = options.denoise != "off" and (subtracts or has_prior)
    find_tones = find_noise and not options.keep_tones
    gap_finder, survey = GapFinder(rate), ChannelSurvey(len(channels), rate)
    tone_finders = [ToneFinder(rate) for _ in channels]
    for block in recording.blocks():
        gap_finder.add(block)
        survey.add(block)
        for finder, wav in zip(tone_finders if find_tones else (), block, strict=False):
            finder.add(wav)
    gaps = tuple(gap_finder.result()) if options.gaps == "auto" else options.gaps
    tones = [tuple(finder.result()) for finder in tone_finders]
    parts = []
    for band, spans in find_bands(recording, options.band()):
        layout = survey.layout(tuple(spans))
        sounding = [tuple(spans)[place] for place in layout.unique]
        subtracted = tuple(tones[channel] for channel in sounding)
        kept_hz: tuple[float, ...] = ()
        if not subtracts:
            kept_hz = tuple(hz for combs in subtracted for comb in combs for hz in comb.frequencies_hz)
            subtracted = ((),) * len(sounding)
        no_noise = np.zeros((len(sounding) + (len(sounding) > 1), N_FFT // 2 + 1))
        level = survey.level(sounding)
        parts.append(Part(band, tuple(spans), tuple(spans.values()), layout, level, subtracted, kept_hz, no_noise))
    analysis = Analysis(gaps, plan(recording.samples_at(SAMPLE_RATE)), parts)
    return _with_noise(recording, analysis, forced=options.denoise == "on") if find_noise else analysis


def _with_noise(recording: Recording, analysis: Analysis, forced: bool) -> Analysis:
    """The analysis with the noise floors of each part; `forced` as in `NoiseFloor.result`."""
    finders = {part: [NoiseFloor() for _ in part.floors] for part in analysis.parts}
    for _, _, held in analysis.chunked(recording):
        for part, wav in held:
            rows = part.layout.with_downmix(torch.from_numpy(wav * np.float32(part.level)))
            for finder, row in zip(finders[part], rows, strict=True):
                finder.add(row)
    parts = []
    for part, own in finders.items():
        sampled = part.band.within(recording.sample_rate)
        floors = [finder.result(part.band, sampled, forced) for finder in own]
        parts.append(replace(part, floors=np.array(floors).reshape(part.floors.shape)))
    return replace(analysis, parts=parts)
