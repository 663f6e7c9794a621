"""One restoration: the passes over a recording that measure it and then restore it, chunk by chunk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from srlib.audio.recording import Recording
from srlib.audio.stft import band_of_hz, frames_of, log_mel
from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.models.emphasis import emphasised
from srlib.models.excitation import copied, noise, synthesise
from srlib.models.pipeline import LogMelPipeline, pad_to_units
from srlib.models.prior import Posterior
from srlib.models.vocoder import vocode
from srlib.restore.analysis import Measured, Prepared, measure, prepare, survey, with_downmix
from srlib.restore.chunks import Chunk, PositionalNoise
from srlib.restore.gaps import interpolate_gaps
from srlib.restore.merge import FULL_BAND, Band, merge, replace_mel, scaled
from srlib.restore.noise import noise_gain
from srlib.restore.observation import observe
from srlib.restore.options import Options
from srlib.restore.stereo import level_differences, upmix
from srlib.restore.tones import Tone
from srlib.settings import Gap


@dataclass(frozen=True)
class RestoredChunk:
    """`audio` and `generated` `[unique channels, samples]` at the input's level; `log_mel` `[1, 1, frames, 256]`."""

    chunk: Chunk
    audio: np.ndarray
    generated: np.ndarray
    log_mel: torch.Tensor


class Restoration:
    """Measures a whole recording when it is made; `chunks` then restores one chunk after the other.

    Args:
        trajectory: collects the predicted log-mel after each step of the first chunk, if given.
    """

    def __init__(
        self,
        pipe: LogMelPipeline,
        recording: Recording,
        options: Options,
        trajectory: list[torch.Tensor] | None = None,
    ) -> None:
        options.check(recording)
        self.sampling = options.sampling(pipe)
        self.tones: list[Tone] = []  # of the first chunk
        self._pipe, self._recording, self._merge, self._trajectory = pipe, recording, options.merge, trajectory
        self._excitation = options.excitation or ("vocoder" if pipe.prior is None else "copied")
        gain = options.merge == "gain"
        self._find_noise = options.denoise and (gain or pipe.prior is not None)
        self.analysis = survey(recording, options.gaps, find_tones=self._find_noise, subtract_tones=gain)
        self._measured = self._measure(options)

    @property
    def band(self) -> Band:
        """Where the known band ends and the missing one starts."""
        return self._measured.band

    @property
    def noise_found(self) -> bool:
        """Whether there is stationary noise in the known band, in any channel."""
        return bool(self._measured.floors.any())

    @property
    def cutoff_hz(self) -> float | None:
        """Where the known band ends, Hz; None for full band and for silence."""
        return None if self.band == FULL_BAND else self.band.passband_hz

    def chunks(self) -> Iterator[RestoredChunk]:
        """The chunks of `analysis.chunks`, in order."""
        if not self.analysis.layout.unique:
            yield from map(self._silence, self.analysis.chunks)
            return
        noises = self._noises()
        for prepared in prepare(self._recording, self.analysis):
            if prepared.chunk.start == 0:
                self.tones.extend(prepared.tones)
            yield self._restore(prepared, [noise.of(prepared.chunk) for noise in noises])

    def _noises(self) -> list[PositionalNoise]:
        """What starts the sampler and, if it is stochastic, what each of its steps adds."""
        shape = self.sampling.samples, self._pipe.vae.config.latent_channels
        generators = [self.sampling.generator, *self.sampling.step_generators()]
        return [PositionalNoise(*shape, generator) for generator in generators]

    def _measure(self, options: Options) -> Measured:
        """The band, and the noise that the prior is told of and the gain merge takes out."""
        band, channels = None, len(self.analysis.layout.unique)
        if options.cutoff_hz is None or not channels:
            band = FULL_BAND
        elif options.cutoff_hz != "auto":
            band = Band(options.cutoff_hz, options.stopband_hz) if options.stopband_hz else Band.at(options.cutoff_hz)
        if not channels or (band is not None and not self._find_noise):
            return Measured.noiseless(band, channels)
        return measure(self._recording, self.analysis, band, self._find_noise)

    def _silence(self, chunk: Chunk) -> RestoredChunk:
        last = min(chunk.stop * HOP_LENGTH, self._recording.samples_at(SAMPLE_RATE))
        nothing = np.zeros((0, last - chunk.start * HOP_LENGTH), np.float32)
        return RestoredChunk(chunk, nothing, nothing, torch.zeros(1, 1, 0, 256))

    def _restore(self, prepared: Prepared, noises: Sequence[torch.Tensor]) -> RestoredChunk:
        chunk, samples = prepared.chunk, prepared.wav.shape[1]
        level, band, gaps = np.float32(self.analysis.level), self.band, prepared.chunk.local(self.analysis.gaps)
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
        gains = [noise_gain(*row, band) for row in zip(rows[own], clean[own], self._measured.floors[own], strict=True)]
        denoised = torch.stack([scaled(row, gain) for row, gain in zip(rows[own], gains, strict=True)])
        known = degraded if posterior is None else torch.minimum(degraded, posterior.mean)
        voiced = replace_mel(restored, degraded[:1], band) if self._merge == "replace" else restored
        generated = self._generate(chunk, denoised, voiced, known[:, 0], gaps)[:, :samples]
        # 4. Merge what is generated for each channel with its degraded waveform
        wav = wav[:, :samples]
        gains = [None if gain is None else gain[: frames_of(wav)] for gain in gains]
        merged = torch.stack(
            [merge(*pair, band, self._merge, gain, gaps) for *pair, gain in zip(generated, wav, gains, strict=True)]
        )
        # 5. Back to the level of the input; samples that nothing changed come back to the bit
        audio = np.where((merged == wav).cpu().numpy(), prepared.wav, merged.float().cpu().numpy() / level)
        return RestoredChunk(chunk, audio, generated.float().cpu().numpy() / level, restored.cpu())

    def _posterior(self, degraded: torch.Tensor, gaps: list[Gap]) -> Posterior | None:
        """The prior's posterior of log-mels `[rows, 1, frames, 256]`; None without a prior."""
        if self._pipe.prior is None:
            return None
        tones = () if self.analysis.subtract_tones else tuple(itertools.chain(*self.analysis.tones_hz))
        count = len(degraded)
        observed = observe(degraded, [self.band] * count, self._measured.floors, [gaps] * count, [tones] * count)
        return self._pipe.prior(observed.log_mel, observed.variance)

    def _generate(
        self, chunk: Chunk, denoised: torch.Tensor, restored: torch.Tensor, known: torch.Tensor, gaps: list[Gap]
    ) -> torch.Tensor:
        """Waveforms `[unique, samples]` with the restored log-mel `[1, 1, frames, 256]` of the downmix.

        `denoised` `[unique, samples]` are the channels, of which each copies its own fine structure; `known`
        `[rows, frames, 256]` are the log-mels of downmix and channels, which tell their differences in level.
        """
        weights, first_sample = self.analysis.layout.weights, chunk.start * HOP_LENGTH
        alone = len(denoised) == 1
        differences = None if alone else level_differences(known[1:], known[0], self.band.passband_hz, gaps)
        if self._excitation == "copied":
            signs = torch.from_numpy(np.where(weights < 0, -1, 1)).to(denoised)[:, None]  # of the noise in the copies
            fine = signs * copied(signs * denoised, self.band.passband_hz, first_sample)
            return synthesise(restored if alone else restored + differences[:, None].to(restored), fine)
        if self._excitation == "noise":
            generated = synthesise(restored, noise(denoised.shape[1], first_sample)[None].to(denoised))
        else:
            generated = vocode(self._pipe.vocoder, restored, chunk.start)[:1]
        return generated if alone else upmix(generated[0], differences, weights)
