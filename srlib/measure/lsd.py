"""The log-spectral distance, its conventions, and the spectra that all measures share.

LSD = mean over frames of sqrt(mean over bins of (log10 of the power ratio)^2), in float64, with no gain aligned:

- `plain`: n_fft 2048, hop 512, periodic Hann, centred with reflect padding, not normalised, power floored at 1e-8.
- `ssr_eval`: the AudioSR paper's tool (haoheliu/ssr_eval, metrics.py): n_fft int(2048 / (44100 / rate)) = 2229 and hop
  rate / 100 = 480 at 48 kHz, periodic Hann, centred with zero padding (librosa >= 0.10), log10(S^2 / (S' + e)^2 + e)
  with e = 1e-12 and S, S' the magnitudes of reference and estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft, signal

from srlib.audio.files import resample
from srlib.audio.stft import log_mel
from srlib.config import N_FFT, SAMPLE_RATE
from srlib.errors import SrlibError

HEADLINE_HZ = 19000.0  # Hz; every demo clip has content up to here, above it the coder of a clip decides
MAX_LENGTH_DIFFERENCE = 100  # samples; up to it the longer recording is cropped, as in ssr_eval


@dataclass(frozen=True)
class Convention:
    """All choices of a log-spectral distance; the default is `plain` up to 19 kHz."""

    sample_rate: int = SAMPLE_RATE  # Hz; recordings at another rate are resampled
    n_fft: int = 2048  # samples
    hop_length: int = 512  # samples
    eps: float = 1e-8
    floored: bool = True  # eps is a floor of the power; else it is added as ssr_eval adds it
    f_high: float | None = HEADLINE_HZ  # last frequency that counts, Hz; None is half the sample rate
    pad_mode: Literal["constant", "reflect"] = "reflect"
    f_low: float = 0.0  # first frequency that counts, Hz

    @property
    def band(self) -> slice:
        """Bins from f_low to f_high, both included."""
        width, bins = self.sample_rate / self.n_fft, self.n_fft // 2 + 1
        stop = bins if self.f_high is None else min(bins, math.floor(self.f_high / width) + 1)
        return slice(math.ceil(self.f_low / width), stop)


PLAIN = Convention()


def plain(sample_rate: int = SAMPLE_RATE, f_low: float = 0.0, f_high: float | None = None) -> Convention:
    """The `plain` convention between two frequencies; all three in Hz."""
    return Convention(sample_rate, f_low=f_low, f_high=f_high)


def ssr_eval(sample_rate: int) -> Convention:
    """The AudioSR paper's tool, whose window and hop follow the sample rate in Hz."""
    return Convention(
        sample_rate, int(2048 / (44100 / sample_rate)), sample_rate // 100, 1e-12, False, None, "constant"
    )


CONVENTIONS = {"ssr_eval": ssr_eval, "plain": plain}


@dataclass(frozen=True, eq=False)
class Spectra:
    """A recording `wav` `[channels, samples]` and its spectra, each computed when it is first asked for."""

    wav: np.ndarray
    sample_rate: int = SAMPLE_RATE
    _found: dict = field(default_factory=dict, repr=False)

    def magnitude(self, convention: Convention) -> np.ndarray:
        """Magnitude STFT `[channels, frames, bins]`."""
        n_fft = convention.n_fft
        key = (convention.sample_rate, n_fft, convention.hop_length, convention.pad_mode)
        if key not in self._found:
            wav = resample(self.wav, self.sample_rate, convention.sample_rate).astype(np.float64)
            padded = np.pad(wav, [(0, 0), (n_fft // 2, n_fft // 2)], mode=convention.pad_mode)
            frames = sliding_window_view(padded, n_fft, axis=1)[:, :: convention.hop_length]
            self._found[key] = np.abs(fft.rfft(frames * signal.get_window("hann", n_fft)))
        return self._found[key]

    def log_power(self, convention: Convention) -> np.ndarray:
        """log10 of the power over the convention's floor, `[channels, frames, bins]`."""
        key = replace(convention, f_low=0.0, f_high=None)
        if key not in self._found:
            self._found[key] = np.log10(np.maximum(self.magnitude(convention) ** 2, convention.eps))
        return self._found[key]

    def power(self, f_low: float = 0.0, f_high: float | None = None) -> float:
        """Power between two frequencies in Hz, summed over the `plain` STFT."""
        convention = plain(self.sample_rate, f_low, f_high)
        return float((self.magnitude(convention) ** 2)[..., convention.band].sum())

    @cached_property
    def log_mel(self) -> np.ndarray:
        """AudioSR's log-mel at 48 kHz, `[channels, 1, frames, 256]`, nat."""
        wav = resample(self.wav, self.sample_rate, SAMPLE_RATE).astype(np.float32)
        wav = np.pad(wav, [(0, 0), (0, max(0, N_FFT - wav.shape[-1]))])  # the front end needs one window
        return log_mel(torch.from_numpy(wav)).numpy()


Sound = np.ndarray | Spectra  # [samples] or [channels, samples], or one whose spectra are kept


def pair(reference: Sound, estimate: Sound, sample_rate: int = SAMPLE_RATE) -> tuple[Spectra, Spectra]:
    """The spectra of two recordings at one rate (Hz), cropped to one length; `Spectra` of that length are kept.

    Raises:
        SrlibError: for other shapes, lengths that differ by more than 100 samples, no samples, and NaN or infinity.
    """
    sounds = [s if isinstance(s, Spectra) else Spectra(np.atleast_2d(s), sample_rate) for s in (reference, estimate)]
    (channels, first), (others, second) = (sound.wav.shape[:2] for sound in sounds)
    if channels != others or any(sound.wav.ndim > 2 for sound in sounds):
        raise SrlibError(f"audio of {channels} and {others} channels cannot be compared: match the channels")
    samples = min(first, second)
    if samples == 0 or abs(first - second) > MAX_LENGTH_DIFFERENCE:
        limits = f"lengths may differ by {MAX_LENGTH_DIFFERENCE} samples, and none may be empty"
        raise SrlibError(f"audio of {first} and {second} samples cannot be compared: {limits}")
    if not all(np.isfinite(sound.wav).all() for sound in sounds):
        raise SrlibError("the audio to compare holds NaN or infinite samples: repair the file first")
    ref, est = (s if s.wav.shape[1] == samples else Spectra(s.wav[:, :samples], s.sample_rate) for s in sounds)
    return ref, est


def lsd(
    reference: Sound, estimate: Sound, sample_rate: int = SAMPLE_RATE, convention: str | Convention = "ssr_eval"
) -> float:
    """Log-spectral distance of two recordings [samples] or [channels, samples] (decades; channels are averaged).

    It is NaN if no bin lies in the band of the convention.

    Args:
        sample_rate: of arrays, Hz; `Spectra` have their own.
        convention: "ssr_eval" or "plain" over the whole band (see the module), or one with every choice spelled out.
    """
    ref, est = pair(reference, estimate, sample_rate)
    if isinstance(convention, str):
        if convention not in CONVENTIONS:
            raise SrlibError(f"unknown LSD convention {convention!r}: choose {' or '.join(CONVENTIONS)}")
        convention = CONVENTIONS[convention](ref.sample_rate)
    kept = convention.band
    if convention.floored:
        log_ratio = ref.log_power(convention)[..., kept] - est.log_power(convention)[..., kept]
    else:
        added = (est.magnitude(convention)[..., kept] + convention.eps) ** 2
        log_ratio = np.log10(ref.magnitude(convention)[..., kept] ** 2 / added + convention.eps)
    return float(np.sqrt(np.mean(log_ratio**2, axis=-1)).mean()) if log_ratio.shape[-1] else math.nan
