"""One restoration: the passes over a recording that measure it and then restore it, chunk by chunk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from srlib.audio.recording import Recording
from srlib.audio.stft import band_of_hz, frames_of, log_mel
from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.models.emphasis import emphasised
from srlib.models.excitation import copied, noise, synthesise
from srlib.models.pipeline import LogMelPipeline, Sampling, pad_to_units
from srlib.models.prior import Posterior
from srlib.models.vocoder import vocode
from srlib.restore.analysis import Part, Prepared, find_gaps, find_parts, prepare, survey, with_downmix, with_noise
from srlib.restore.chunks import Chunk, PositionalNoise, join, plan
from srlib.restore.findings import Findings, Segment
from srlib.restore.gaps import LONGEST_S, SHORTEST_S, interpolate_gaps, without_pre_echo
from srlib.restore.merge import FULL_BAND, above, merge, replace_mel, scaled
from srlib.restore.noise import noise_gain
from srlib.restore.observation import observe
from srlib.restore.options import Options
from srlib.restore.stereo import level_differences, upmix
from srlib.restore.tones import Tone
from srlib.settings import Gap

_KINDS = ("tone", "hum")
_NO_GAP = f"no gap of {1000 * SHORTEST_S:.0f} to {1000 * LONGEST_S:.0f} ms found; --gap START:END fills others"


@dataclass(frozen=True)
class RestoredChunk:
    """`audio` and `generated` `[unique channels, samples]` at the input's level; `log_mel` `[1, 1, frames, 256]`."""

    chunk: Chunk
    audio: np.ndarray
    generated: np.ndarray
    log_mel: torch.Tensor


class Restoration:
    """Measures a whole recording when it is made; `pieces` then restores it from its beginning to its end.

    Args:
        trajectory: collects the predicted log-mel after each step of the first chunk, if given.
        log_mels: collects the restored log-mel of the longest part, if given.
    """

    def __init__(
        self,
        pipe: LogMelPipeline,
        recording: Recording,
        options: Options,
        trajectory: list[torch.Tensor] | None = None,
        log_mels: list[torch.Tensor] | None = None,
    ) -> None:
        options.check(recording)
        sampling = options.sampling(pipe)
        self._recording, self._options = recording, options
        self.gaps = find_gaps(recording, options.gaps)
        chunks = plan(recording.samples_at(SAMPLE_RATE), self.gaps)
        self.parts: list[PartRestoration] = []
        for part in find_parts(recording, options.band()):
            start = replace(sampling, generator=sampling.generator.clone_state()) if self.parts else sampling
            kept = (None, None) if self.parts else (trajectory, log_mels)
            self.parts.append(PartRestoration(pipe, recording, part, chunks, self.gaps, options, start, *kept))

    def pieces(self) -> Iterator[np.ndarray]:
        """Consecutive stretches of the restored audio and of what was generated for it, `[2, channels, samples]`."""
        first = 0
        for pieces in zip(*(one.pieces() for one in self.parts), strict=True):
            last = first + pieces[0].shape[-1]
            if len(pieces) == 1:
                yield pieces[0]
            else:
                mixed = np.zeros((2, self._recording.channels, last - first), np.float32)
                for one, piece in zip(self.parts, pieces, strict=True):
                    mixed[:, list(one.part.channels)] += one.part.share(first, last) * piece
                yield mixed
            first = last

    def findings(self) -> Findings:
        """What was found and done so far."""
        seconds = self._recording.samples / self._recording.sample_rate
        segments: dict[tuple[float, float, float | None], list[int]] = {}
        for one in (part for part in self.parts if part.analysis.layout.unique):  # not silent
            for channel, spans in zip(one.part.channels, one.part.spans, strict=True):
                for start, end in spans:
                    segments.setdefault((start, min(end, seconds), one.cutoff_hz), []).append(channel)
        rows = sorted(segments.items(), key=lambda row: (row[0][0], row[1]))
        found = tuple(Segment(*where[:2], tuple(sorted(channels)), where[2]) for where, channels in rows)
        noise_db = [one.noise_db for one in self.parts if one.noise_found and one.noise_db is not None]
        tones, hum = (tuple(sorted({hz for one in self.parts for hz in one.subtracted_hz(kind)})) for kind in _KINDS)
        return Findings(seconds, found, max(noise_db, default=None), tones, hum, self.gaps, self._warnings())

    def _warnings(self) -> tuple[str, ...]:
        """What was noted about the file, and gaps that were asked for and not found."""
        incomplete = [self._recording.incomplete] if self._recording.incomplete else []
        lacking = self._options.gaps == "auto" and not self.gaps
        return (*incomplete, *self._recording.warnings, *([_NO_GAP] if lacking else []))


class PartRestoration:
    """Restores the channels of one part, in those chunks in which any of them has its band."""

    def __init__(
        self,
        pipe: LogMelPipeline,
        recording: Recording,
        part: Part,
        chunks: Sequence[Chunk],
        gaps: tuple[Gap, ...],
        options: Options,
        sampling: Sampling,
        trajectory: list[torch.Tensor] | None = None,
        log_mels: list[torch.Tensor] | None = None,
    ) -> None:
        self.part, self.band = part, part.band
        self.tones: list[Tone] = []  # those of the first chunk
        self._recording, self._chunks, self._gaps = part.of(recording), chunks, gaps
        self._pipe, self._options, self.sampling = pipe, options, sampling
        self._trajectory, self._log_mels = trajectory, log_mels
        self._excitation = options.excitation or ("vocoder" if pipe.prior is None else "copied")
        gain = options.merge == "gain"
        find_noise = options.denoise != "off" and (gain or pipe.prior is not None)
        self.analysis = survey(self._recording, find_noise and not options.keep_tones, subtract_tones=gain)
        if find_noise and self.analysis.layout.unique:
            forced = options.denoise == "on"
            self.analysis = with_noise(self._recording, self.analysis, part, chunks, forced)
        self._noise_power = [0.0, 0.0]  # before and after its removal

    @property
    def noise_found(self) -> bool:
        """Whether there is stationary noise in the known band, in any channel."""
        return bool(self.analysis.floors.any())

    @property
    def noise_db(self) -> float | None:
        """By how much the noise was reduced so far, dB."""
        before, after = self._noise_power
        return float(10 * np.log10(before / max(after, 1e-12 * before))) if before else None

    def subtracted_hz(self, kind: str) -> list[float]:
        """Frequencies of the tones that are subtracted, or of the mains whose hum and harmonics are."""
        found = itertools.chain(*self.analysis.tones) if self.analysis.subtract_tones else ()
        return [comb.fundamental_hz for comb in found if comb.kind == kind]

    @property
    def cutoff_hz(self) -> float | None:
        """Where the known band ends, Hz; None for full band and for silence."""
        silent = not self.analysis.layout.unique
        return None if silent or self.band == FULL_BAND else self.band.passband_hz

    def pieces(self) -> Iterator[np.ndarray]:
        """Consecutive stretches of the audio and of what was generated, `[2, channels of the part, samples]`."""
        parts = (np.stack([one.audio, one.generated]) for one in self._kept(self.chunks()))
        for piece in join(self._chunks, parts):
            yield np.stack([self.analysis.layout.expand(wav) for wav in piece])

    def _kept(self, restored: Iterator[RestoredChunk]) -> Iterator[RestoredChunk]:
        """The same, while the log-mels are collected."""
        ends = [*(following.keep_from for following in self._chunks[1:]), self._chunks[-1].stop]
        for one, end in zip(restored, ends, strict=True):
            if self._log_mels is not None:
                start = one.chunk.start
                self._log_mels.append(one.log_mel[:, :, one.chunk.keep_from - start : end - start])
            yield one

    def chunks(self) -> Iterator[RestoredChunk]:
        """The restored chunks, in order; those that the part does not use as they are."""
        if not self.analysis.layout.unique:
            yield from map(self._silence, self._chunks)
            return
        noises = self._noises()
        for prepared in prepare(self._recording, self.analysis, self._chunks):
            if prepared.chunk.start == 0:
                self.tones.extend(prepared.tones)
            if self.part.uses(prepared.chunk):
                yield self._restore(prepared, [noise.of(prepared.chunk) for noise in noises])
            else:
                downmix = torch.from_numpy(pad_to_units(prepared.wav))[:1]
                yield RestoredChunk(prepared.chunk, prepared.wav, 0 * prepared.wav, log_mel(downmix))

    def _noises(self) -> list[PositionalNoise]:
        """What starts the sampler and, if it is stochastic, what each of its steps adds."""
        shape = self.sampling.samples, self._pipe.vae.config.latent_channels
        generators = [self.sampling.generator, *self.sampling.step_generators()]
        return [PositionalNoise(*shape, generator) for generator in generators]

    def _silence(self, chunk: Chunk) -> RestoredChunk:
        last = min(chunk.stop * HOP_LENGTH, self._recording.samples_at(SAMPLE_RATE))
        nothing = np.zeros((0, last - chunk.start * HOP_LENGTH), np.float32)
        return RestoredChunk(chunk, nothing, nothing, torch.zeros(1, 1, 0, 256))

    def _restore(self, prepared: Prepared, noises: Sequence[torch.Tensor]) -> RestoredChunk:
        chunk, samples = prepared.chunk, prepared.wav.shape[1]
        level, band, gaps = np.float32(self.analysis.level), self.band, prepared.chunk.local(self._gaps)
        wav = torch.from_numpy(pad_to_units(prepared.wav * level)).to(self._pipe.device)
        # 1. Log-mels of the downmix that the model runs on and, if there are several, of every unique channel
        rows = with_downmix(self.analysis.layout.downmix(wav), wav)
        degraded = interpolate_gaps(log_mel(rows), gaps)
        posterior = self._posterior(degraded, gaps)
        # 2. The model restores the log-mel of the downmix; the other rows take the prior's mean
        trajectory = self._trajectory if chunk.start == 0 else None
        first = None if posterior is None else posterior[:1]
        restored = self._pipe.generate(degraded[:1], first, noises[0], self.sampling, trajectory, noises[1:])
        restored = interpolate_gaps(restored, gaps)
        if posterior is not None and self.sampling.is_mean:
            restored = emphasised(restored, band_of_hz(band.passband_hz))
        clean = torch.cat([restored, (degraded if posterior is None else posterior.mean)[1:]])[:, 0]
        # 3. The gain that takes noise out of each channel, and the waveforms that are generated for it
        own = slice(-len(wav), None)  # the rows of the channels; a downmix of several is not merged
        gains = [noise_gain(*row, band) for row in zip(rows[own], clean[own], self.analysis.floors[own], strict=True)]
        self._count_noise(gains)
        denoised = torch.stack([scaled(row, gain) for row, gain in zip(rows[own], gains, strict=True)])
        known = degraded if posterior is None else torch.minimum(degraded, posterior.mean)
        voiced = replace_mel(restored, degraded[:1], band) if self._options.merge == "replace" else restored
        generated = self._generate(chunk, denoised, voiced, known[:, 0], gaps)[:, :samples]
        # 4. Merge what is generated for each channel with its degraded waveform
        wav = wav[:, :samples]
        generated = torch.stack([without_pre_echo(*pair, gaps) for pair in zip(generated, wav, strict=True)])
        gains = [None if gain is None else gain[: frames_of(wav)] for gain in gains]
        if self._options.band_from_hz:
            generated = above(generated, self._options.band_from_hz)
        how: dict[str, Any] = {"mode": self._options.merge, "gaps": gaps, "blend": self._options.blend}
        merged = torch.stack(
            [merge(made, own, band, gain=gain, **how) for made, own, gain in zip(generated, wav, gains, strict=True)]
        )
        merged = torch.stack([without_pre_echo(*pair, gaps) for pair in zip(merged, wav, strict=True)])
        # 5. Back to the level of the input; samples that nothing changed come back to the bit
        audio = np.where((merged == wav).cpu().numpy(), prepared.wav, merged.float().cpu().numpy() / level)
        return RestoredChunk(chunk, audio, generated.float().cpu().numpy() / level, restored.cpu())

    def _count_noise(self, gains: Sequence[torch.Tensor | None]) -> None:
        """Add up the noise before and after its removal, for the findings."""
        for floor, gain in zip(self.analysis.floors[-len(gains) :], gains, strict=True):
            if gain is not None and self._options.merge == "gain":
                self._noise_power[0] += float(floor.sum()) * len(gain)
                self._noise_power[1] += float((gain.square().double().cpu().numpy() * floor).sum())

    def _posterior(self, degraded: torch.Tensor, gaps: list[Gap]) -> Posterior | None:
        """The prior's posterior of log-mels `[rows, 1, frames, 256]`; None without a prior."""
        if self._pipe.prior is None:
            return None
        found = () if self.analysis.subtract_tones else itertools.chain(*self.analysis.tones)
        tones = [hz for comb in found for hz in comb.frequencies_hz]
        count = len(degraded)
        floors = list(self.analysis.floors)
        observed = observe(degraded, [self.band] * count, floors, [gaps] * count, [tones] * count)
        return self._pipe.prior(observed.log_mel, observed.variance)

    def _generate(
        self, chunk: Chunk, denoised: torch.Tensor, restored: torch.Tensor, known: torch.Tensor, gaps: list[Gap]
    ) -> torch.Tensor:
        """Waveforms `[unique, samples]` with the restored log-mel `[1, 1, frames, 256]` of the downmix.

        `denoised` `[unique, samples]` are the channels, of which each copies its own fine structure; `known`
        `[rows, frames, 256]` are the log-mels of downmix and channels, which tell their differences in level.
        """
        layout, first_sample = self.analysis.layout, chunk.start * HOP_LENGTH
        differences = None  # of a single channel
        if len(denoised) > 1:
            differences = level_differences(known[1:], known[0], self.band.passband_hz, gaps)
        if self._excitation == "copied":
            signs = torch.from_numpy(np.sign(layout.weights)).to(denoised)[:, None]  # of the noise in the copies
            delays_s = torch.from_numpy(layout.delays_s)
            fine = signs * copied(signs * denoised, self.band.passband_hz, first_sample, delays_s)
            return synthesise(restored if differences is None else restored + differences[:, None].to(restored), fine)
        if self._excitation == "noise":
            generated = synthesise(restored, noise(denoised.shape[1], first_sample)[None].to(denoised))
        else:
            generated = vocode(self._pipe.vocoder, restored, chunk.start)[:1]
        return generated if differences is None else upmix(generated[0], differences, layout)
