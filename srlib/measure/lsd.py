"""The log-spectral distance, its conventions, and the spectra that all measures share.

LSD = mean over frames of sqrt(mean over bins of (log10 of the power ratio)^2), in two conventions that do not compare:

- `plain`: n_fft 2048, hop 512, periodic Hann, centred with reflect padding, not normalised, power floored at 1e-8.
- `ssr_eval`: the AudioSR paper's tool (haoheliu/ssr_eval, metrics.py): n_fft int(2048 / (44100 / rate)) = 2229 and hop
  rate / 100 = 480 at 48 kHz, periodic Hann, centred with zero padding (librosa >= 0.10), log10(S^2 / (S' + e)^2 + e)
  with e = 1e-12 and S, S' the magnitudes of reference and estimate. It is not symmetric.

Traps. Digital silence: where one side is exactly zero `ssr_eval` counts up to 12 or more decades, so low-passed input,
codec holes and fades dominate a mean; `plain` stops at its floor. Precision: `ssr_eval` of a low-passed file measures
the rounding of its samples, so a 16-bit file scores lower than a float one, and the rounding of the FFT, so all is
computed in float64 (as librosa does). Gain: nothing is aligned, and a factor of 0.5 costs 0.602.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from srlib.audio.files import resample
from srlib.config import N_FFT, SAMPLE_RATE
from srlib.degrade import stft
from srlib.errors import SrlibError

HEADLINE_HZ = 19000.0  # every demo clip has content up to here; above it a clip's coder decides
MAX_LENGTH_DIFFERENCE = 100  # samples, cropped as ssr_eval does


@dataclass(frozen=True)
class Convention:
    """Everything a log-spectral distance leaves open.

    `eps` is a floor of the power (`floored`) or, as ssr_eval has it, is added to the magnitude of the estimate and to
    the power ratio. Bins from `f_low` to `f_high` count, both included; `f_high` None is half the sample rate.
    """

    name: str = "plain"
    sample_rate: int = SAMPLE_RATE  # Hz; recordings at another rate are resampled
    n_fft: int = 2048  # samples
    hop_length: int = 512  # samples
    eps: float = 1e-8
    floored: bool = True
    f_high: float | None = HEADLINE_HZ  # Hz
    pad_mode: str = "reflect"
    f_low: float = 0.0  # Hz

    def band(self, f_low: float, f_high: float | None) -> slice:
        """Bins from f_low to f_high Hz, both included; f_high None is half the sample rate."""
        width, bins = self.sample_rate / self.n_fft, self.n_fft // 2 + 1
        stop = bins if f_high is None else min(bins, math.floor(f_high / width) + 1)
        return slice(math.ceil(f_low / width), stop)


PLAIN = Convention()


def plain(sample_rate: int) -> Convention:
    """The `plain` convention over the whole band at a sample rate in Hz."""
    return replace(PLAIN, sample_rate=sample_rate, f_high=None)


def ssr_eval(sample_rate: int) -> Convention:
    """The AudioSR paper's tool, whose window and hop follow the sample rate in Hz."""
    n_fft, hop_length = int(2048 / (44100 / sample_rate)), sample_rate // 100
    return Convention("ssr_eval", sample_rate, n_fft, hop_length, 1e-12, False, None, "constant")


@dataclass(frozen=True, eq=False)
class Spectra:
    """A recording `wav` `[channels, samples]` and its spectra, each computed when it is first asked for."""

    wav: np.ndarray
    sample_rate: int = SAMPLE_RATE
    _found: dict = field(default_factory=dict, repr=False)

    def magnitude(self, convention: Convention) -> np.ndarray:
        """Magnitude STFT `[channels, frames, bins]`."""
        key = ("magnitude", convention.sample_rate, convention.n_fft, convention.hop_length, convention.pad_mode)
        if key not in self._found:
            wav = resample(self.wav, self.sample_rate, convention.sample_rate).astype(np.float64)
            self._found[key] = np.abs(stft(wav, convention.n_fft, convention.hop_length, convention.pad_mode))
        return self._found[key]

    def log_power(self, convention: Convention) -> np.ndarray:
        """log10 of the power over the convention's floor, `[channels, frames, bins]`."""
        key = (convention.sample_rate, convention.n_fft, convention.hop_length, convention.pad_mode, convention.eps)
        if key not in self._found:
            self._found[key] = np.log10(np.maximum(self.magnitude(convention) ** 2, convention.eps))
        return self._found[key]

    @property
    def power(self) -> np.ndarray:
        """Power spectrogram of the `plain` convention, before its floor, `[channels, frames, 1025]`."""
        return self.magnitude(plain(self.sample_rate)) ** 2

    @property
    def log_mel(self) -> np.ndarray:
        """AudioSR's log-mel at 48 kHz, `[channels, 1, frames, 256]`, nat."""
        if "log_mel" not in self._found:
            import torch  # the distances above do without

            from srlib.audio.stft import log_mel

            wav = resample(self.wav, self.sample_rate, SAMPLE_RATE)
            wav = np.pad(wav, [(0, 0), (0, max(0, N_FFT - wav.shape[-1]))])  # the front end needs one window
            self._found["log_mel"] = log_mel(torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32))).numpy()
        return self._found["log_mel"]


Sound = np.ndarray | Spectra  # [samples] or [channels, samples], or one whose spectra are kept


def pair(reference: Sound, estimate: Sound, sample_rate: int = SAMPLE_RATE) -> tuple[Spectra, Spectra]:
    """The spectra of two recordings at one rate (Hz), cropped to one length; one that keeps its length stays itself.

    Raises:
        SrlibError: for other shapes, lengths that differ by more than 100 samples, no samples, and NaN or infinity.
    """
    sounds = [
        one if isinstance(one, Spectra) else Spectra(np.atleast_2d(one), sample_rate) for one in (reference, estimate)
    ]
    shapes = [sound.wav.shape for sound in sounds]
    lengths = [shape[-1] for shape in shapes]
    if len(shapes[0]) > 2 or len(shapes[1]) > 2 or shapes[0][0] != shapes[1][0]:
        raise SrlibError(f"audio of shapes {shapes[0]} and {shapes[1]} cannot be compared: match the channels")
    if min(lengths) == 0 or abs(lengths[0] - lengths[1]) > MAX_LENGTH_DIFFERENCE:
        raise SrlibError(
            f"audio of {lengths[0]} and {lengths[1]} samples cannot be compared: "
            f"lengths may differ by {MAX_LENGTH_DIFFERENCE} samples, and none may be empty"
        )
    if not all(np.isfinite(sound.wav).all() for sound in sounds):
        raise SrlibError("the audio to compare holds NaN or infinite samples: repair the file first")
    samples = min(lengths)
    first, second = (
        one if one.wav.shape[1] == samples else Spectra(one.wav[:, :samples], one.sample_rate) for one in sounds
    )
    return first, second


def lsd(
    reference: Sound,
    estimate: Sound,
    sample_rate: int = SAMPLE_RATE,
    convention: str = "ssr_eval",
    f_low: float = 0.0,
    f_high: float | None = None,
) -> float:
    """Log-spectral distance of two recordings [samples] or [channels, samples] (decades; channels are averaged).

    Args:
        sample_rate: Hz; that of `Spectra` counts.
        convention: "ssr_eval" or "plain", see the module.
        f_low, f_high: bins from f_low to f_high Hz count, both included; f_high None is half the sample rate.
    """
    if convention not in ("plain", "ssr_eval"):
        raise SrlibError(f"unknown LSD convention {convention!r}: choose ssr_eval or plain")
    sample_rate = reference.sample_rate if isinstance(reference, Spectra) else sample_rate
    chosen = plain(sample_rate) if convention == "plain" else ssr_eval(sample_rate)
    value = distance(reference, estimate, replace(chosen, f_low=f_low, f_high=f_high), sample_rate)
    if math.isnan(value):
        raise SrlibError(f"no STFT bin lies between {f_low} and {f_high} Hz: widen the band")
    return value


def distance(
    reference: Sound, estimate: Sound, convention: Convention = PLAIN, sample_rate: int = SAMPLE_RATE
) -> float:
    """`lsd` with every choice spelled out; NaN where the band holds no bin."""
    ref, est = pair(reference, estimate, sample_rate)
    kept = convention.band(convention.f_low, convention.f_high)
    if convention.floored:
        log_ratio = ref.log_power(convention)[..., kept] - est.log_power(convention)[..., kept]
    else:
        magnitudes = (sound.magnitude(convention)[..., kept] for sound in (ref, est))
        log_ratio = _added_log_ratio(*magnitudes, convention.eps)
    if log_ratio.shape[-1] == 0:
        return math.nan
    return float(np.sqrt(np.mean(log_ratio**2, axis=-1)).mean())


def _added_log_ratio(reference: np.ndarray, estimate: np.ndarray, eps: float) -> np.ndarray:
    """As ssr_eval has it, from magnitudes [..., frames, bins]."""
    return np.log10(reference**2 / (estimate + eps) ** 2 + eps)
