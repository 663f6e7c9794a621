"""The restoration pipeline: any recording in, the restored one out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import BaseOutput

from srlib.audio.files import open_output
from srlib.audio.recording import Recording, open_recording
from srlib.config import SAMPLE_RATE
from srlib.models.pipeline import LogMelPipeline
from srlib.restore.chunks import join
from srlib.restore.findings import Findings
from srlib.restore.options import Options
from srlib.restore.restoration import Restoration
from srlib.restore.tones import Tone


@dataclass
class RestorationOutput(BaseOutput):
    """`audio` `[samples]` or `[channels, samples]` float32 at 48 kHz, and how it came about.

    Args:
        generated: the vocoder's output before the merge, of the shape of `audio`.
        log_mel: restored log-mel of the channels' downmix, `[1, 1, frames, 256]`; frames are a multiple of 64, none for
            silence.
        cutoff_hz: the cutoff that was used; None for full band.
        trajectory: the predicted log-mel after each step of the first chunk, if it was asked for.
        tones: the stationary tones that were subtracted from the first chunk.
        noise_found: whether stationary noise was found in the known band.
    """

    audio: np.ndarray
    generated: np.ndarray
    log_mel: torch.Tensor
    cutoff_hz: float | None
    trajectory: list[torch.Tensor] = field(default_factory=list)
    tones: list[Tone] = field(default_factory=list)
    noise_found: bool = False


class RestorationPipeline(LogMelPipeline):
    """Restores recordings of any length, sample rate and number of channels."""

    @torch.no_grad()
    def __call__(
        self, wav: np.ndarray, sample_rate: int, *, return_trajectory: bool = False, **options
    ) -> RestorationOutput:
        """Restore a recording.

        Args:
            wav: `[samples]` or `[channels, samples]` float32, one to eight channels.
            sample_rate: of `wav`, Hz; the output has 48 kHz.
            return_trajectory: keep the predicted log-mel of every step.
            options: num_inference_steps, num_samples, generator, guidance_scale, eta, scheduler, cutoff_hz,
                stopband_hz, merge, gaps, denoise, excitation: `srlib.restore.options.Options` explains them.

        Raises:
            SrlibError: for audio or options that cannot be used.
        """
        recording = Recording.from_array(wav, sample_rate)
        trajectory: list[torch.Tensor] = []
        job = Restoration(self, recording, Options(**options), trajectory if return_trajectory else None)
        planned, parts = job.analysis.chunks, list(job.chunks())
        ends = [following.keep_from for following in planned[1:]] + [planned[-1].stop]
        log_mels = [
            part.log_mel[:, :, part.chunk.keep_from - part.chunk.start : end - part.chunk.start]
            for part, end in zip(parts, ends, strict=True)
        ]
        shape = (-1,) if np.ndim(wav) == 1 else (recording.channels, -1)
        audio, generated = (
            job.analysis.layout.expand(np.concatenate(list(join(planned, pieces)), axis=1)).reshape(shape)
            for pieces in ([part.audio for part in parts], [part.generated for part in parts])
        )
        log_mel = torch.cat(log_mels, dim=2)
        return RestorationOutput(audio, generated, log_mel, job.cutoff_hz, trajectory, job.tones, job.noise_found)

    @torch.no_grad()
    def restore_file(
        self,
        path: str | Path,
        out: str | Path,
        progress: Callable[[float], None] | None = None,
        sample_rate: int = SAMPLE_RATE,
        subtype: str | None = None,
        **options,
    ) -> Findings:
        """Restore a file of any length in constant memory, and return what was found in it.

        Args:
            path: what soundfile or ffmpeg reads, or `-` for standard input; tags and cover are kept.
            out: a file of `srlib.audio.files.OUTPUT_SUFFIXES`, which appears when it is whole; its folder is made.
            progress: is told the seconds of audio of each piece that was written.
            sample_rate: of the output, Hz.
            subtype: `PCM_16` (with dither), `PCM_24` or `FLOAT`; None takes the format's best.
            options: as `__call__` takes them.

        Raises:
            SrlibError: for a file or options that cannot be used.
        """
        with open_recording(path) as recording:
            job = Restoration(self, recording, Options(**options))
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            with open_output(out, recording, sample_rate, subtype) as put:
                for piece in join(job.analysis.chunks, (part.audio for part in job.chunks())):
                    put(job.analysis.layout.expand(piece))
                    if progress is not None:
                        progress(piece.shape[1] / SAMPLE_RATE)
            return Findings(recording.samples / recording.sample_rate, job.cutoff_hz)


build = RestorationPipeline.build
