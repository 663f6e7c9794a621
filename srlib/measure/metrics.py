"""Distances between a restored recording and its reference.

LSD = mean over frames of sqrt(mean over bins of (log10 of the power ratio)^2), in two conventions that do not compare:

- `plain`: n_fft 2048, hop 512, periodic Hann, centred with reflect padding, not normalised, power floored at 1e-8.
- `ssr_eval`: the AudioSR paper's tool (haoheliu/ssr_eval, metrics.py): n_fft int(2048 / (44100 / rate)) = 2229 and hop
  rate / 100 = 480 at 48 kHz, periodic Hann, centred with zero padding (librosa >= 0.10), log10(S^2 / (S' + e)^2 + e)
  with e = 1e-12 and S, S' the magnitudes of reference and estimate. It is not symmetric.

Traps. Digital silence: where one side is exactly zero `ssr_eval` counts up to 12 or more decades, so low-passed input,
codec holes and fades dominate a mean; `plain` stops at its floor. Precision: `ssr_eval` of a low-passed file measures
the rounding of its samples, so a 16-bit file scores lower than a float one, and of the FFT, so all is computed in
float64 (as librosa does inside). Gain: nothing is aligned, and a factor of 0.5 costs 0.602.
Blur: LSD forgives it, hence `texture_high` and `level_high_db`.

No torch; only `log_mel_l1` and the oracle of `evaluate` load it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage

from srlib.audio.files import resample
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation, stft
from srlib.errors import SrlibError

HEADLINE_HZ = 19000.0  # every demo clip has content up to here; above it a clip's coder decides
MAX_LENGTH_DIFFERENCE = 100  # samples, cropped as ssr_eval does
TEXTURE_SMOOTHING = (9, 15)  # frames, bins
RESAMPLES = 10_000  # of a bootstrap interval
LOWER_IS_BETTER = ("lsd", "log_mel")  # how the names of such metrics begin


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


PLAIN = Convention()


def ssr_eval(sample_rate: int) -> Convention:
    """The AudioSR paper's tool, whose window and hop follow the rate."""
    n_fft, hop_length = int(2048 / (44100 / sample_rate)), sample_rate // 100
    return Convention("ssr_eval", sample_rate, n_fft, hop_length, 1e-12, False, None, "constant")


def _pair(reference: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check two recordings and crop them to one length, [channels, samples] each."""
    pair = [np.atleast_2d(np.asarray(wav)) for wav in (reference, estimate)]
    if pair[0].ndim > 2 or pair[1].ndim > 2 or len(pair[0]) != len(pair[1]):
        raise SrlibError(f"audio of shapes {pair[0].shape} and {pair[1].shape} cannot be compared: match the channels")
    lengths = [wav.shape[-1] for wav in pair]
    if min(lengths) == 0 or abs(lengths[0] - lengths[1]) > MAX_LENGTH_DIFFERENCE:
        raise SrlibError(
            f"audio of {lengths[0]} and {lengths[1]} samples cannot be compared: "
            f"lengths may differ by {MAX_LENGTH_DIFFERENCE} samples, and none may be empty"
        )
    if not all(np.isfinite(wav).all() for wav in pair):
        raise SrlibError("the audio to compare holds NaN or infinite samples: repair the file first")
    return pair[0][:, : min(lengths)], pair[1][:, : min(lengths)]


def _band(bins: int, sample_rate: int, f_low: float, f_high: float | None) -> slice:
    """Bins from f_low to f_high Hz, both included; `bins` counts those of an rfft of plain STFT size."""
    width = sample_rate / PLAIN.n_fft
    return slice(math.ceil(f_low / width), bins if f_high is None else min(bins, math.floor(f_high / width) + 1))


def plain_power(wav: np.ndarray) -> np.ndarray:
    """Power spectrogram of the `plain` convention, before its floor: [..., samples] -> [..., frames, 1025]."""
    return _power(_stft(np.asarray(wav), PLAIN))


def _stft(wav: np.ndarray, convention: Convention) -> np.ndarray:
    return stft(wav.astype(np.float64), convention.n_fft, convention.hop_length, convention.pad_mode)


def _power(spectrum: np.ndarray) -> np.ndarray:
    return spectrum.real**2 + spectrum.imag**2


def _log_power(power: np.ndarray, floor: float = PLAIN.eps) -> np.ndarray:
    return np.log10(np.maximum(power, floor))


def _log_ratio(reference: np.ndarray, estimate: np.ndarray, convention: Convention) -> np.ndarray:
    """log10 power ratio [..., frames, bins] of recordings at the convention's rate."""
    pair, eps = (reference, estimate), convention.eps
    if convention.floored:
        return np.subtract(*(_log_power(_power(_stft(wav, convention)), eps) for wav in pair))
    return _added_log_ratio(*(np.abs(_stft(wav, convention)) for wav in pair), eps)


def _added_log_ratio(reference: np.ndarray, estimate: np.ndarray, eps: float) -> np.ndarray:
    """As ssr_eval has it, from magnitudes [..., frames, bins]."""
    return np.log10(reference**2 / (estimate + eps) ** 2 + eps)


def _lsd_of(log_ratio: np.ndarray) -> float:
    """log_ratio [..., frames, bins] -> LSD; NaN where the band holds no bin."""
    if log_ratio.shape[-1] == 0:
        return math.nan
    return float(np.sqrt(np.mean(log_ratio**2, axis=-1)).mean())


def lsd(
    reference: np.ndarray,
    estimate: np.ndarray,
    sample_rate: int = 48000,
    convention: str = "ssr_eval",
    f_low: float = 0.0,
    f_high: float | None = None,
) -> float:
    """Log-spectral distance of two recordings [samples] or [channels, samples] (decades; channels are averaged).

    Args:
        sample_rate: Hz.
        convention: "ssr_eval" or "plain", see the module.
        f_low, f_high: bins from f_low to f_high Hz count, both included; f_high None is half the sample rate.
    """
    if convention not in ("plain", "ssr_eval"):
        raise SrlibError(f"unknown LSD convention {convention!r}: choose ssr_eval or plain")
    chosen = replace(PLAIN, sample_rate=sample_rate) if convention == "plain" else ssr_eval(sample_rate)
    return distance(reference, estimate, replace(chosen, f_low=f_low, f_high=f_high), sample_rate)


def distance(
    reference: np.ndarray, estimate: np.ndarray, convention: Convention = PLAIN, sample_rate: int = SAMPLE_RATE
) -> float:
    """`lsd` of two recordings [samples] or [channels, samples] with every choice spelled out."""
    pair = (resample(wav, sample_rate, convention.sample_rate) for wav in _pair(reference, estimate))
    log_ratio = _log_ratio(*pair, convention)
    freqs_hz, f_high = np.fft.rfftfreq(convention.n_fft, 1 / convention.sample_rate), convention.f_high
    kept = (freqs_hz >= convention.f_low) & (freqs_hz <= (convention.sample_rate / 2 if f_high is None else f_high))
    if not kept.any():
        raise SrlibError(f"no STFT bin lies between {convention.f_low} and {f_high} Hz: widen the band")
    return _lsd_of(log_ratio[..., kept])


def _ratio_db(power: float, other: float) -> float:
    """10 log10(power / other) with the limits: inf for a perfect match, -inf for silence, NaN for two silences."""
    if other == 0:
        return math.inf if power > 0 else math.nan
    return 10 * math.log10(power / other) if power > 0 else -math.inf


def snr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Signal-to-noise ratio |s|^2 / |s - s'|^2 in dB, over all channels."""
    reference, estimate = (wav.astype(np.float64) for wav in _pair(reference, estimate))
    return _ratio_db(float((reference**2).sum()), float(((reference - estimate) ** 2).sum()))


def si_sdr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant SDR in dB (Le Roux et al. 2019): |a s|^2 / |a s - s'|^2 with a = <s', s> / |s|^2."""
    reference, estimate = (wav.astype(np.float64).ravel() for wav in _pair(reference, estimate))
    energy = float(reference @ reference)
    if energy == 0:
        return math.nan
    target = (estimate @ reference) / energy * reference
    return _ratio_db(float(target @ target), float(((target - estimate) ** 2).sum()))


def snr_low_db(reference: np.ndarray, estimate: np.ndarray, f_high: float, sample_rate: int = 48000) -> float:
    """SNR in dB of the part below f_high Hz, summed over the bins of the plain STFT.

    An STFT and not one long FFT: error just above f_high then leaks no further than two bins.
    """
    reference, estimate = (wav.astype(np.float64) for wav in _pair(reference, estimate))
    return _snr_low_db(plain_power(reference), plain_power(reference - estimate), f_high, sample_rate)


def _snr_low_db(signal: np.ndarray, error: np.ndarray, f_high: float, sample_rate: int) -> float:
    """From powers [..., frames, bins]."""
    band = _band(signal.shape[-1], sample_rate, 0.0, f_high)
    return _ratio_db(float(signal[..., band].sum()), float(error[..., band].sum()))


def _level_high_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    """From powers [..., frames, bins] of the band."""
    return _ratio_db(float(estimate.sum()), float(reference.sum()))


def level_high_db(reference: np.ndarray, estimate: np.ndarray, f_low: float, sample_rate: int = 48000) -> float:
    """Level above f_low Hz of the estimate over the reference: 10 log10 of the ratio of power summed over the file."""
    ref, est = (plain_power(wav) for wav in _pair(reference, estimate))
    band = _band(ref.shape[-1], sample_rate, f_low, None)
    return _level_high_db(ref[..., band], est[..., band])


def _texture(log_power: np.ndarray) -> float:
    """Standard deviation of log10 power [channels, frames, bins] minus its moving mean."""
    if log_power.shape[-1] == 0:
        return math.nan
    return float((log_power - ndimage.uniform_filter(log_power, (1, *TEXTURE_SMOOTHING), mode="nearest")).std())


def texture_high(reference: np.ndarray, estimate: np.ndarray, f_low: float, sample_rate: int = 48000) -> float:
    """How rough the estimate is between f_low and 19 kHz, over how rough the reference is: 1 is right, blur is below.

    Roughness is the standard deviation of the floored log10 power (plain STFT) minus its moving mean over 9 frames x
    15 bins, taken within that band only.
    """
    ref, est = (_log_power(plain_power(wav)) for wav in _pair(reference, estimate))
    band = _band(ref.shape[-1], sample_rate, f_low, HEADLINE_HZ)
    return _quotient(_texture(est[..., band]), _texture(ref[..., band]))


def _quotient(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan


def tone_suppression_db(
    reference: np.ndarray, restored: np.ndarray, tone_hz: float, noise_amplitude: float, sample_rate: int = 48000
) -> float:
    """How far the tone left in (restored - reference) lies under the one inserted, dB; more is better.

    Its amplitude comes from a least-squares projection on the sine and the cosine of tone_hz, so a tone that comes
    back with another phase counts in full. The loudest channel counts.
    """
    reference, restored = (wav.astype(np.float64) for wav in _pair(reference, restored))
    phase = 2 * np.pi * tone_hz / sample_rate * np.arange(reference.shape[-1])
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    coefficients = np.linalg.lstsq(basis, (restored - reference).T, rcond=None)[0]  # [2, channels]
    return 2 * _ratio_db(noise_amplitude, float(np.hypot(*coefficients).max()))


def log_mel_l1(reference: np.ndarray, estimate: np.ndarray, sample_rate: int = 48000) -> float:
    """Mean absolute difference of AudioSR's log-mels (nat), at 48 kHz; other rates are resampled first."""
    reference, estimate = (_log_mel(wav, sample_rate) for wav in _pair(reference, estimate))
    return _mean_difference(reference, estimate)


def _log_mel(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    import torch

    from srlib.audio.stft import log_mel
    from srlib.config import N_FFT

    wav = wav if sample_rate == SAMPLE_RATE else resample(wav, sample_rate, SAMPLE_RATE)
    wav = np.pad(wav, [(0, 0), (0, max(0, N_FFT - wav.shape[-1]))])  # the front end needs one window
    return log_mel(torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32))).numpy()


def _mean_difference(reference: np.ndarray, estimate: np.ndarray) -> float:
    return float(np.abs(reference - estimate).mean(dtype=np.float64))


def bootstrap_ci(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the mean over tracks, (low, high)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise SrlibError("a bootstrap interval needs a list of one or more finite numbers")
    picks = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Reference:
    """A recording `wav` [channels, samples] that several are compared with: what is needed of it is computed once."""

    wav: np.ndarray
    sample_rate: int = SAMPLE_RATE

    @cached_property
    def power(self) -> np.ndarray:
        """`plain_power`."""
        return plain_power(self.wav)

    @cached_property
    def log_power(self) -> np.ndarray:
        """Its logarithm to base 10 over the floor."""
        return _log_power(self.power)

    @cached_property
    def magnitude(self) -> np.ndarray:
        """Of ssr_eval's STFT."""
        return np.abs(_stft(self.wav, ssr_eval(self.sample_rate)))

    @cached_property
    def log_mel(self) -> np.ndarray:
        """AudioSR's."""
        return _log_mel(self.wav, self.sample_rate)


@lru_cache(maxsize=1)  # of one degradation after the other
def _filtered(reference: Reference, degradation: Degradation) -> Reference:
    """What its filter left of it, without noise and gaps."""
    known = replace(degradation, noise_type="none", gaps=())
    return Reference(known.apply(reference.wav, reference.sample_rate), reference.sample_rate)


def _scores(reference: Reference, estimate: np.ndarray, edges: tuple[float, float] | None) -> dict[str, float]:
    """Metrics of an estimate [channels, samples]; edges = (passband_hz, stopband_hz) adds those of the two bands."""
    sample_rate, wav = reference.sample_rate, reference.wav
    ref_power, est_power = reference.power, plain_power(estimate)
    ref_log, est_log = reference.log_power, _log_power(est_power)
    convention = ssr_eval(sample_rate)

    def plain(f_low: float, f_high: float | None) -> float:
        band = _band(ref_log.shape[-1], sample_rate, f_low, f_high)
        return _lsd_of(ref_log[..., band] - est_log[..., band])

    magnitude = np.abs(_stft(estimate, convention))
    scores = {
        "lsd": plain(0.0, None),
        "lsd_19k": plain(0.0, HEADLINE_HZ),
        "lsd_ssr_eval": _lsd_of(_added_log_ratio(reference.magnitude, magnitude, convention.eps)),
        "snr_db": snr_db(wav, estimate),
        "si_sdr_db": si_sdr_db(wav, estimate),
        "log_mel_l1": _mean_difference(reference.log_mel, _log_mel(estimate, sample_rate)),
    }
    if edges is None:
        return scores
    error = plain_power(wav.astype(np.float64) - estimate.astype(np.float64))
    high = _band(ref_log.shape[-1], sample_rate, edges[1], None)
    headline = _band(ref_log.shape[-1], sample_rate, edges[1], HEADLINE_HZ)
    return scores | {
        "lsd_low": plain(0.0, edges[0]),
        "lsd_high": plain(edges[1], None),
        "snr_low_db": _snr_low_db(ref_power, error, edges[0], sample_rate),
        "level_high_db": _level_high_db(ref_power[..., high], est_power[..., high]),
        "texture_high": _quotient(_texture(est_log[..., headline]), _texture(ref_log[..., headline])),
    }


def evaluate(
    reference: np.ndarray | Reference,
    restored: np.ndarray,
    sample_rate: int = 48000,
    degraded: np.ndarray | None = None,
    cutoff_hz: float | None = None,
    degradation: Degradation | None = None,
    oracle_lsd_19k: float | None = None,
) -> dict[str, float]:
    """Every metric of one restored recording [samples] or [channels, samples].

    Always: `lsd` and `lsd_19k` (plain), `lsd_ssr_eval`, `snr_db`, `si_sdr_db`, `log_mel_l1`.
    With a cutoff or the record of one, not both: `lsd_low` (plain) and `snr_low_db` below passband_hz, or the cutoff;
    `lsd_high` (plain), `level_high_db` and `texture_high` above stopband_hz, or the cutoff.
    With the record of a filter: `snr_known_db`, which is snr_low_db against the reference as the filter left it, since
    the ripple of a filter (33 dB for cheby1) is no damage that a system did.
    With the record of a tone: `tone_suppression_db`.
    With `degraded`: `<name>_gain`, by how much each got better over it (positive is better); with a cutoff or record
    too `oracle_lsd_19k` and `oracle_ratio`, which is lsd_19k over it.
    Undefined values (a band without bins, silence) are NaN, perfect ones infinite.

    A `Reference`, whose sample rate counts, saves its part of the computation from the second call on.
    `oracle_lsd_19k`, if it is known already, saves computing the oracle again for the next system.
    """
    reference = reference if isinstance(reference, Reference) else Reference(np.atleast_2d(reference), sample_rate)
    sample_rate = reference.sample_rate
    reference, restored = _cropped(reference, restored)
    filtered, edges = degradation is not None and degradation.cutoff_hz is not None, None
    if filtered and cutoff_hz is not None:
        raise SrlibError(f"the record says that the filter's cutoff is {degradation.cutoff_hz:g} Hz: give no other")
    if filtered:
        edges = (degradation.passband_hz(sample_rate), degradation.stopband_hz(sample_rate))
    elif cutoff_hz is not None:
        degradation = replace(degradation or Degradation(), cutoff_hz=cutoff_hz, filter_type="boxcar")
        degradation.check(sample_rate)
        edges = (float(cutoff_hz), float(cutoff_hz))
    scores = _scores(reference, restored, edges)
    if filtered:
        known = _filtered(reference, degradation)
        error = plain_power(known.wav.astype(np.float64) - restored.astype(np.float64))
        scores["snr_known_db"] = _snr_low_db(known.power, error, edges[0], sample_rate)
    if degraded is not None:
        reference, degraded = _cropped(reference, degraded)
        before = _scores(reference, degraded, edges)
        for name in [n for n in before if n not in ("level_high_db", "texture_high")]:
            sign = -1 if name.startswith(LOWER_IS_BETTER) else 1
            scores[f"{name}_gain"] = sign * (scores[name] - before[name])
        if degradation is not None:
            if oracle_lsd_19k is None:
                oracle_lsd_19k = _oracle_lsd_19k(reference.wav, degraded, degradation, sample_rate)
            scores["oracle_lsd_19k"] = oracle_lsd_19k
            scores["oracle_ratio"] = _quotient(scores["lsd_19k"], oracle_lsd_19k)
    if degradation is not None and degradation.noise_type == "tone" and degradation.noise_amplitude > 0:
        tone = (degradation.tone_hz, degradation.noise_amplitude, sample_rate)
        _, restored = _pair(reference.wav, restored)  # the degraded recording may be shorter
        scores["tone_suppression_db"] = tone_suppression_db(reference.wav, restored, *tone)
    return scores


def _cropped(reference: Reference, estimate: np.ndarray) -> tuple[Reference, np.ndarray]:
    """As `_pair`; the same reference if it keeps its length."""
    wav, estimate = _pair(reference.wav, estimate)
    return (reference if wav.shape == reference.wav.shape else Reference(wav, reference.sample_rate)), estimate


def _oracle_lsd_19k(reference: np.ndarray, degraded: np.ndarray, degradation: Degradation, sample_rate: int) -> float:
    from srlib.measure.baselines import oracle

    limit = np.stack([oracle(ref, deg, degradation, sample_rate) for ref, deg in zip(reference, degraded, strict=True)])
    return lsd(reference, limit, sample_rate, "plain", f_high=HEADLINE_HZ)
