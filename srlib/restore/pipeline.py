"""The restoration pipeline: any recording in, the restored one out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from srlib.audio.files import open_output
from srlib.audio.recording import Recording, open_recording
from srlib.config import SAMPLE_RATE
from srlib.models.pipeline import LogMelPipeline
from srlib.restore.analysis import analyse
from srlib.restore.chunks import join
from srlib.restore.findings import Findings
from srlib.restore.options import Options, with_options
from srlib.restore.restoration import Restorer


@dataclass
class RestorationOutput(BaseOutput):
    """`audio` `[samples]` or `[channels, samples]` float32 at 48 kHz, with intermediate results and findings.

    Args:
        log_mel: restored log-mel of the channels' downmix, `[1, 1, frames, 256]`; frames are a multiple of 64, or 0 for
            silence.
        cutoff_hz: the lowest edge of the band that was used; None for full band.
        trajectory: the predicted log-mel after each step of the first chunk, if it was asked for.
        findings: what was detected and changed.
    """

    audio: np.ndarray
    log_mel: torch.Tensor
    cutoff_hz: float | None
    trajectory: list[torch.Tensor]
    findings: Findings


class RestorationPipeline(LogMelPipeline):
    """Restores recordings of any length, sample rate and number of channels."""

    @with_options
    @torch.no_grad()
    def __call__(
        self, wav: np.ndarray, sample_rate: int, *, return_trajectory: bool = False, **options: Any
    ) -> RestorationOutput:
        """Restore a recording.

        Args:
            wav: `[samples]` or `[channels, samples]` float32, one to eight channels.
            sample_rate: of `wav`, Hz; the output has 48 kHz.
            return_trajectory: keep the predicted log-mel of every step.
            options: fields of `srlib.restore.options.Options`, such as `num_inference_steps`, `generator`, `cutoff_hz`.

        Raises:
            SrlibError: for audio or options that cannot be used.
        """
        recording = Recording.from_array(wav, sample_rate)
        asked = Options(**options)
        restorer = Restorer(self, asked, return_trajectory)
        analysis = analyse(recording, asked, has_prior=self.prior is not None)
        chunks = list(restorer.chunks(recording, analysis))
        audio = np.concatenate(list(join(analysis.chunks, (one.audio for one in chunks))), axis=1)
        ends = [*(chunk.keep_from for chunk in analysis.chunks[1:]), analysis.chunks[-1].stop]
        log_mel = torch.cat([one.log_mel_until(end) for one, end in zip(chunks, ends, strict=True)], dim=2)
        findings = Findings.of(recording, asked, analysis, restorer.noise_db)
        edges_hz = [one.passband_hz for one in findings.segments if one.passband_hz is not None]
        audio = audio.reshape(*np.shape(wav)[:-1], -1)
        return RestorationOutput(audio, log_mel, min(edges_hz, default=None), restorer.trajectory, findings)

    @with_options
    @torch.no_grad()
    def restore_file(
        self,
        path: str | Path,
        out: str | Path,
        progress: Callable[[float], None] | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
        subtype: str | None = None,
        **options: Any,
    ) -> Findings:
        """Restore a file of any length in constant memory, and return the findings.

        Args:
            path: a file that soundfile or ffmpeg reads, or `-` for standard input; tags and cover are kept.
            out: a file of `srlib.audio.files.OUTPUT_SUFFIXES`, which appears when it is complete; its folder is made.
            progress: called with the seconds of audio of each written piece.
            sample_rate: of the output, Hz.
            subtype: `PCM_16` (with dither), `PCM_24` or `FLOAT`; None takes the format's best.
            options: fields of `srlib.restore.options.Options`.

        Raises:
            SrlibError: for a file or options that cannot be used.
        """
        asked = Options(**options)
        restorer = Restorer(self, asked)
        with open_recording(path) as recording:
            analysis = analyse(recording, asked, has_prior=self.prior is not None)
            with open_output(out, recording, sample_rate, subtype) as put:
                for audio in join(analysis.chunks, (one.audio for one in restorer.chunks(recording, analysis))):
                    put(audio)
                    if progress is not None:
                        progress(audio.shape[1] / SAMPLE_RATE)
            return Findings.of(recording, asked, analysis, restorer.noise_db)


build = RestorationPipeline.build
