"""What a restoration can be asked for: each check raises one sentence, before any model runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from srlib.audio.recording import Recording
from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError

MAX_CHANNELS = 8
_MOST_GUIDANCE = 100.0  # far more than is of use, and far less than what overflows


def check_audio(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """`[channels, samples]` of `[samples]` or `[channels, samples]` floats."""
    wav = np.asarray(wav)
    if not np.issubdtype(wav.dtype, np.floating):
        raise SrlibError(f"The audio is {wav.dtype}: give floating point samples in -1..1.")
    if wav.ndim not in (1, 2):
        raise SrlibError(f"The audio has the shape {wav.shape}: give [samples] or [channels, samples].")
    if wav.size == 0:
        raise SrlibError("The audio has no samples: give a file that holds sound.")
    if not sample_rate > 0:
        raise SrlibError(f"The sample rate is {sample_rate}: give a positive number of Hz.")
    if not np.isfinite(wav).all():
        raise SrlibError("The audio holds NaN or infinite samples: repair the file first.")
    return np.atleast_2d(wav)


def check_recording(recording: Recording) -> None:
    """Channels that can be restored together."""
    if recording.channels > MAX_CHANNELS:
        raise SrlibError(f"The audio has {recording.channels} channels, more than {MAX_CHANNELS}: split it first.")


def check_edges(
    cutoff_hz: float | str | None,
    stopband_hz: float | None,
    gaps: Sequence[tuple[float, float]] | str,
    samples: int,
    sample_rate: int,
) -> None:
    """Band edges in Hz and gaps in seconds that the recording can have."""
    if cutoff_hz is not None and cutoff_hz != "auto":
        if not isinstance(cutoff_hz, Real) or not 0 < cutoff_hz < SAMPLE_RATE / 2:
            raise SrlibError(f"The cutoff is {cutoff_hz!r}: give auto or a frequency below {SAMPLE_RATE // 2} Hz.")
        if cutoff_hz >= sample_rate / 2:
            nyquist = sample_rate / 2
            raise SrlibError(f"The cutoff {cutoff_hz:g} is not below {nyquist:g} Hz, half the sample rate: lower it.")
        if stopband_hz is not None and not cutoff_hz <= stopband_hz < math.inf:
            raise SrlibError(
                f"stopband_hz is {stopband_hz:g} and lies below the cutoff, {cutoff_hz:g} Hz: give both or neither."
            )
    seconds = samples / sample_rate
    if isinstance(gaps, str) and gaps != "auto":
        raise SrlibError(f"The gaps are {gaps!r}: give auto or pairs of seconds.")
    for start, end in () if isinstance(gaps, str) else gaps:
        if not 0 <= start < end <= seconds:
            raise SrlibError(f"The gap {start:g}:{end:g} s is not inside the audio, which lasts {seconds:.3f} s.")


def check_sampling(
    steps: int, num_samples: int, guidance_scale: float, eta: float, most_steps: int, has_prior: bool
) -> None:
    """Sampler settings that the schedule allows; without a prior at least one step is needed."""
    fewest = 0 if has_prior else 1
    if not isinstance(steps, Integral) or not fewest <= steps <= most_steps:
        raise SrlibError(f"{steps} steps cannot be taken: give a whole number from {fewest} to {most_steps}.")
    if not isinstance(num_samples, Integral) or num_samples < 1:
        raise SrlibError(f"{num_samples} samples cannot be averaged: give a whole number from 1 on.")
    if not 0 <= guidance_scale <= _MOST_GUIDANCE:
        raise SrlibError(f"The guidance scale is {guidance_scale}: give a number from 0 to {_MOST_GUIDANCE}.")
    if not 0 <= eta <= 1:
        raise SrlibError(f"eta is {eta}: give a number from 0 (deterministic) to 1.")


def check_seed(seed: int) -> None:
    """A seed that torch takes."""
    if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**64:
        raise SrlibError(f"The seed {seed} is not a whole number of 64 bits: give one from 0 to {2**64 - 1}.")
