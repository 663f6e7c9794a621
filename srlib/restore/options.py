"""The options of a restoration, with their limits, which are checked before a model runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

import torch
from diffusers import DDIMScheduler
from pydantic import AfterValidator, Field

from srlib.audio.recording import Recording
from srlib.config import SAMPLE_RATE, Excitation, Merge, Scheduler
from srlib.errors import SrlibError
from srlib.models.diffusion import use_scheduler
from srlib.models.pipeline import LogMelPipeline, Sampling
from srlib.restore.merge import FULL_BAND, Band
from srlib.settings import Flag, Gap, NotNegative, Number, Positive, Whole, settings

F = TypeVar("F", bound=Callable[..., Any])
MAX_CHANNELS = 8  # 7.1
# Hz; below, nothing of the music is known, and the copies of the top octave of the band grow in number as 1 / cutoff.
_LOWEST_CUTOFF = 100
_MOST_GUIDANCE = 100  # above any useful value, and far below overflow of float32


def _of_64_bits(generator: torch.Generator | int | None) -> torch.Generator | int | None:
    if isinstance(generator, int) and not -(2**63) <= generator < 2**64:  # the range of torch
        raise ValueError("be a seed of 64 bits, or a torch.Generator")
    return generator


@settings
class Options:
    """Options of `RestorationPipeline.__call__` and `restore_file`.

    Args:
        num_inference_steps: steps of the sampler; None takes the model's default, 0 the prior's mean alone.
        num_samples: samples of the latent that are averaged.
        generator: a torch.Generator or a seed; None is seed 0, so that a call can be repeated.
        guidance_scale: weight of the condition; 1 is no guidance, None the model's default.
        eta: 0 deterministic, 1 stochastic; with the `ddim` scheduler.
        scheduler: `ddim`, `dpm` or `unipc`; None takes the model's own.
        cutoff_hz: upper edge of the known band, Hz; `auto` detects it, None means full band.
        stopband_hz: lower edge of the missing band, Hz, if it is known too.
        merge: `gain` (tones are subtracted, noise is removed from the known band), `replace` (the known band is kept,
            as in AudioSR) or `none`.
        gaps: (start, end) in seconds, to be filled; `auto` finds runs of digital silence.
        denoise: `auto` removes the stationary noise and tones that it finds; `on` also takes quiet moments for noise if
            none is found; `off` assumes no noise, as AudioSR does.
        keep_tones: subtract no constant tone.
        blend: factor of the generated audio, 0 (none of it) to 1.
        band_from_hz: lower limit of the generated audio, Hz.
        excitation: `copied` (the music's own fine structure moved up), `noise` or `vocoder` (the trained network); None
            is copied, or the vocoder for models without a prior.
    """

    num_inference_steps: Annotated[Whole, Field(ge=0)] | None = None
    num_samples: Annotated[Whole, Field(ge=1)] = 1
    generator: Annotated[torch.Generator | Whole | None, AfterValidator(_of_64_bits)] = None
    guidance_scale: Annotated[Number, Field(ge=0, le=_MOST_GUIDANCE)] | None = None
    eta: Annotated[Number, Field(ge=0, le=1)] = 0.0
    scheduler: Scheduler | None = None
    cutoff_hz: Annotated[Number, Field(ge=_LOWEST_CUTOFF, lt=SAMPLE_RATE / 2)] | Literal["auto"] | None = "auto"
    stopband_hz: Positive | None = None
    merge: Merge = "gain"
    gaps: tuple[Gap, ...] | Literal["auto"] = ()
    denoise: Literal["auto", "on", "off"] = "auto"
    excitation: Excitation | None = None
    blend: Annotated[Number, Field(ge=0, le=1)] = 1.0
    keep_tones: Flag = False
    band_from_hz: Annotated[NotNegative, Field(lt=SAMPLE_RATE / 2)] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.cutoff_hz, float) and self.stopband_hz is not None and self.stopband_hz < self.cutoff_hz:
            raise SrlibError(
                f"stopband_hz is {self.stopband_hz:g} and lies below the cutoff, {self.cutoff_hz:g} Hz: "
                "give both or neither."
            )

    def check(self, recording: Recording) -> None:
        """Raise SrlibError for too many channels, and for a cutoff or a gap outside of this recording."""
        if recording.channels > MAX_CHANNELS:
            raise SrlibError(f"The audio has {recording.channels} channels, more than {MAX_CHANNELS}: split it first.")
        nyquist, seconds = recording.sample_rate / 2, recording.samples / recording.sample_rate
        if isinstance(self.cutoff_hz, float) and self.cutoff_hz >= nyquist:
            raise SrlibError(
                f"The cutoff {self.cutoff_hz:g} is not below {nyquist:g} Hz, half the sample rate: lower it."
            )
        for start, end in () if self.gaps == "auto" else self.gaps:
            if end > seconds:
                raise SrlibError(f"The gap {start:g}:{end:g} s is not inside the audio, which lasts {seconds:.3f} s.")

    def band(self) -> Band | float | None:
        """The given band, its cutoff (Hz) if only that is given, or None if it has to be detected."""
        if self.cutoff_hz is None:
            return FULL_BAND
        if self.cutoff_hz == "auto":
            return None
        return Band(self.cutoff_hz, self.stopband_hz) if self.stopband_hz else self.cutoff_hz

    def sampling(self, pipe: LogMelPipeline) -> Sampling:
        """How to sample this model, whose defaults replace None; SrlibError for options that it does not support."""
        steps = pipe.config.num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
        fewest, most = int(pipe.prior is None), pipe.scheduler.config.num_train_timesteps
        if not fewest <= steps <= most:
            raise SrlibError(f"{steps} steps cannot be taken: give a whole number from {fewest} to {most}.")
        scheduler = use_scheduler(pipe.scheduler, self.scheduler)
        if self.eta and not isinstance(scheduler, DDIMScheduler):
            raise SrlibError(f"eta is {self.eta:g}, but only the scheduler ddim has one: choose it, or no eta.")
        guidance = pipe.config.guidance_scale if self.guidance_scale is None else self.guidance_scale
        generator = self.generator
        if not isinstance(generator, torch.Generator):
            generator = torch.Generator().manual_seed(generator or 0)
        return Sampling(steps, self.num_samples, guidance, self.eta, scheduler, generator)


def with_options(method: F) -> F:
    """Show the fields of `Options` in the signature of a method that takes them as `**options`: help, completion."""
    signature = inspect.signature(method)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(Options)
    ]
    vars(method)["__signature__"] = signature.replace(parameters=[*own, *shown])
    return method
