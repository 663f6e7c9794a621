"""The restoration pipeline: any recording in, the restored one out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput

from srlib.audio.files import open_output
from srlib.audio.recording import Recording, open_recording
from srlib.config import SAMPLE_RATE, Excitation, Merge, Scheduler
from srlib.models.pipeline import LogMelPipeline
from srlib.restore.findings import Findings
from srlib.restore.options import Options
from srlib.restore.restoration import Restoration
from srlib.restore.tones import Tone
from srlib.settings import Gap


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
        findings: what was found and done, for a report.
    """

    audio: np.ndarray
    generated: np.ndarray
    log_mel: torch.Tensor
    cutoff_hz: float | None
    trajectory: list[torch.Tensor] = field(default_factory=list)
    tones: list[Tone] = field(default_factory=list)
    noise_found: bool = False
    findings: Findings | None = None


class RestorationPipeline(LogMelPipeline):
    """Restores recordings of any length, sample rate and number of channels."""

    @torch.no_grad()
    def __call__(
        self,
        wav: np.ndarray,
        sample_rate: int,
        *,
        return_trajectory: bool = False,
        num_inference_steps: int | None = None,
        num_samples: int = 1,
        generator: torch.Generator | int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        scheduler: Scheduler | None = None,
        cutoff_hz: float | Literal["auto"] | None = "auto",
        stopband_hz: float | None = None,
        merge: Merge = "gain",
        gaps: Sequence[Gap] | Literal["auto"] = (),
        denoise: Literal["auto", "on", "off"] | bool = "auto",
        keep_tones: bool = False,
        blend: float = 1.0,
        band_from_hz: float = 0.0,
        excitation: Excitation | None = None,
    ) -> RestorationOutput:
        """Restore a recording. `srlib.restore.options.Options` explains what is not listed here.

        Args:
            wav: `[samples]` or `[channels, samples]` float32, one to eight channels.
            sample_rate: of `wav`, Hz; the output has 48 kHz.
            return_trajectory: keep the predicted log-mel of every step.

        Raises:
            SrlibError: for audio or options that cannot be used.
        """
        options = _options(locals())
        recording = Recording.from_array(wav, sample_rate)
        trajectory: list[torch.Tensor] = []
        log_mels: list[torch.Tensor] = []
        job = Restoration(self, recording, options, trajectory if return_trajectory else None, log_mels)
        shape = (-1,) if np.ndim(wav) == 1 else (recording.channels, -1)
        audio, generated = (one.reshape(shape) for one in np.concatenate(list(job.pieces()), axis=2))
        main, log_mel = job.parts[0], torch.cat(log_mels, dim=2)
        known: dict[str, Any] = {"tones": main.tones, "noise_found": any(one.noise_found for one in job.parts)}
        cutoff_hz = min((one.cutoff_hz for one in job.parts if one.cutoff_hz is not None), default=None)
        return RestorationOutput(audio, generated, log_mel, cutoff_hz, trajectory, **known, findings=job.findings())

    @torch.no_grad()
    def restore_file(
        self,
        path: str | Path,
        out: str | Path,
        progress: Callable[[float], None] | None = None,
        *,
        sample_rate: int = SAMPLE_RATE,
        subtype: str | None = None,
        num_inference_steps: int | None = None,
        num_samples: int = 1,
        generator: torch.Generator | int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        scheduler: Scheduler | None = None,
        cutoff_hz: float | Literal["auto"] | None = "auto",
        stopband_hz: float | None = None,
        merge: Merge = "gain",
        gaps: Sequence[Gap] | Literal["auto"] = (),
        denoise: Literal["auto", "on", "off"] | bool = "auto",
        keep_tones: bool = False,
        blend: float = 1.0,
        band_from_hz: float = 0.0,
        excitation: Excitation | None = None,
    ) -> Findings:
        """Restore a file of any length in constant memory, and say what was found and done.

        Args:
            path: what soundfile or ffmpeg reads, or `-` for standard input; tags and cover are kept.
            out: a file of `srlib.audio.files.OUTPUT_SUFFIXES`, which appears when it is whole; its folder is made.
            progress: is told the seconds of audio of each piece that was written.
            sample_rate: of the output, Hz.
            subtype: `PCM_16` (with dither), `PCM_24` or `FLOAT`; None takes the format's best.

        Raises:
            SrlibError: for a file or options that cannot be used.
        """
        options = _options(locals())
        with open_recording(path) as recording:
            job = Restoration(self, recording, options)
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            with open_output(out, recording, sample_rate, subtype) as put:
                for audio, _ in job.pieces():
                    put(audio)
                    if progress is not None:
                        progress(audio.shape[1] / SAMPLE_RATE)
            return job.findings()


def _options(arguments: dict[str, Any]) -> Options:
    """The options among the arguments of a call."""
    return Options(**{field.name: arguments[field.name] for field in fields(Options)})


build = RestorationPipeline.build
