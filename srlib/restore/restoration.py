"""Restore a recording chunk by chunk, step by step from the degraded waveform to the restored one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from srlib.audio.recording import Recording
from srlib.audio.stft import band_of_hz, frames_of, log_mel
from srlib.config import HOP_LENGTH, N_MELS
from srlib.models.emphasis import emphasised
from srlib.models.excitation import copied, noise, synthesise
from srlib.models.pipeline import LogMelPipeline, pad_to_units
from srlib.models.vocoder import vocode
from srlib.restore.analysis import Analysis, Part
from srlib.restore.chunks import Chunk, PositionalNoise
from srlib.restore.gaps import interpolate_gaps
from srlib.restore.merge import above, merge, replace_mel, scaled
from srlib.restore.noise import noise_gain
from srlib.restore.observation import observe
from srlib.restore.options import Options
from srlib.restore.stereo import level_differences, upmix
from srlib.settings import Gap


@dataclass(frozen=True)
class RestoredChunk:
    """The restored audio `[channels, samples]` and the log-mel of its downmix `[1, 1, frames, 256]`.

    If several bands meet in the chunk, the log-mel is that of the part that lasts longest in the recording.
    """

    chunk: Chunk
    audio: np.ndarray
    log_mel: torch.Tensor

    def log_mel_until(self, end: int) -> torch.Tensor:
        """The log-mel `[1, 1, frames, 256]` from where the chunk takes over to a frame of the recording."""
        return self.log_mel[:, :, self.chunk.keep_from - self.chunk.start : end - self.chunk.start]


class Restorer:
    """Restores each part of each chunk separately.

    Args:
        keep_trajectory: collect the predicted log-mel after each step of the first chunk in `trajectory`.
    """

    def __init__(self, pipe: LogMelPipeline, options: Options, keep_trajectory: bool = False) -> None:
        self._pipe, self._options, self._sampling = pipe, options, options.sampling(pipe)
        self.trajectory: list[torch.Tensor] = []
        self._keeps_trajectory = keep_trajectory  # true until the first chunk is restored
        self._noise_power = np.zeros(2)  # before and after its removal

    @property
    def noise_db(self) -> float | None:
        """Reduction of noise so far, dB; None if none was found."""
        before, after = self._noise_power
        return float(10 * np.log10(before / max(after, 1e-12 * before))) if before else None

    def chunks(self, recording: Recording, analysis: Analysis) -> Iterator[RestoredChunk]:
        """The chunks of a recording, in order: a pass over it."""
        shape = self._sampling.samples, self._pipe.vae.config.latent_channels
        generators = [self._sampling.generator, *self._sampling.step_generators()]
        noises = [PositionalNoise(*shape, generator) for generator in generators]
        for chunk, samples, held in analysis.chunked(recording):
            drawn = [one.of(chunk) for one in noises] if held else []
            audio, log_mels = np.zeros((recording.channels, samples), np.float32), []
            for part, wav in held:
                restored, mel = self.restore(part, chunk, wav, chunk.local(analysis.gaps), drawn)
                share = part.share(chunk.start * HOP_LENGTH, samples)
                audio[list(part.channels)] += share * part.layout.expand(restored)
                log_mels.append(mel)
            yield RestoredChunk(chunk, audio, log_mels[0] if held else torch.zeros(1, 1, 0, N_MELS))

    def restore(
        self, part: Part, chunk: Chunk, wav: np.ndarray, gaps: list[Gap], noises: Sequence[torch.Tensor]
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Restored audio `[channels, samples]` of a chunk `wav` of the same shape, and the log-mel of its downmix.

        Args:
            wav: unique channels of the part at 48 kHz and the input's level, tones subtracted.
            gaps: seconds from the chunk's start.
            noises: initial noise of the sampler, then the noise that each step adds.
        """
        pipe, options, band = self._pipe, self._options, part.band
        level, samples, channels = np.float32(part.level), wav.shape[1], slice(-len(wav), None)
        # Degraded waveform -> log-mels of the downmix that the model runs on and, if there are several, of the channels
        degraded = torch.from_numpy(pad_to_units(wav * level)).to(pipe.device)
        degraded_mel = interpolate_gaps(log_mel(part.layout.with_downmix(degraded)), gaps)
        # -> observation -> posterior of the prior
        posterior, known_mel, rows = None, degraded_mel, len(degraded_mel)
        if pipe.prior is not None:
            same = [band] * rows, list(part.floors), [gaps] * rows, [part.kept_tones_hz] * rows
            observed = observe(degraded_mel, *same)
            posterior = pipe.prior(observed.log_mel, observed.variance)
            known_mel = posterior.mean
        # -> restored log-mel of the downmix
        trajectory, self._keeps_trajectory = self.trajectory if self._keeps_trajectory else None, False
        first = None if posterior is None else posterior[:1]
        restored_mel = pipe.generate(degraded_mel[:1], first, noises[0], self._sampling, trajectory, noises[1:])
        restored_mel = interpolate_gaps(restored_mel, gaps)
        if posterior is not None and self._sampling.is_mean:
            restored_mel = emphasised(restored_mel, band_of_hz(band.passband_hz))
        # -> noise gains of each channel; with several channels, the level of their music comes from the prior
        clean_mel = torch.cat([restored_mel, known_mel[1:]])[channels, 0]
        gains = [noise_gain(*row, band) for row in zip(degraded, clean_mel, part.floors[channels], strict=True)]
        for floor, gain in zip(part.floors[channels], gains, strict=True):
            if gain is not None and options.merge == "gain":
                left = float((gain.square().double().cpu().numpy() * floor).sum())
                self._noise_power += float(floor.sum()) * len(gain), left
        # -> generated waveform of each channel
        denoised = torch.stack([scaled(*pair) for pair in zip(degraded, gains, strict=True)])
        voiced = replace_mel(restored_mel, degraded_mel[:1], band) if options.merge == "replace" else restored_mel
        generated = self._generate(part, chunk, denoised, voiced, torch.minimum(degraded_mel, known_mel)[:, 0])
        if options.band_from_hz:
            generated = above(generated, options.band_from_hz)
        # -> restored waveform, without the padding; unchanged samples stay bit-equal
        degraded, generated = degraded[:, :samples], generated[:, :samples]
        gains = [None if gain is None else gain[: frames_of(degraded)] for gain in gains]
        merged = torch.stack(
            [
                merge(generated_row, degraded_row, band, options.merge, gain, gaps, options.blend)
                for generated_row, degraded_row, gain in zip(generated, degraded, gains, strict=True)
            ]
        )
        audio = np.where((merged == degraded).cpu().numpy(), wav, merged.float().cpu().numpy() / level)
        return audio, restored_mel.cpu()

    def _generate(
        self, part: Part, chunk: Chunk, denoised: torch.Tensor, restored: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """Waveforms `[unique, samples]` with the restored log-mel `[1, 1, frames, 256]` of the downmix.

        `denoised` `[unique, samples]` are the channels; with the excitation `copied` each gets its own fine structure.
        `known` `[rows, frames, 256]` are the log-mels of downmix and channels, from which level differences follow.
        """
        layout, edge_hz, first_sample = part.layout, part.band.passband_hz, chunk.start * HOP_LENGTH
        several = len(denoised) > 1
        differences = level_differences(known[1:], known[0], edge_hz) if several else torch.zeros(1, 1, N_MELS)
        excitation = self._options.excitation or ("vocoder" if self._pipe.prior is None else "copied")
        if excitation == "copied":
            signs = torch.from_numpy(np.sign(layout.weights)).to(denoised)[:, None]  # of the noise in the copies
            fine = signs * copied(signs * denoised, edge_hz, first_sample, torch.from_numpy(layout.delays_s))
            return synthesise(restored + differences[:, None].to(restored), fine)
        if excitation == "noise":
            generated = synthesise(restored, noise(denoised.shape[1], first_sample)[None].to(denoised))
        else:
            generated = vocode(self._pipe.vocoder, restored, chunk.start)[:1]
        return upmix(generated[0], differences, layout) if several else generated
