"""Every measure of a restored recording against its reference beside the LSD, and `evaluate`, which takes them all.

LSD forgives blur, hence `texture_high` and `level_high_db`. Recordings are [samples] or [channels, samples], or
`Spectra` of them, which save what is shared between calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy import ndimage

from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure.limits import oracle
from srlib.measure.lsd import HEADLINE_HZ, Sound, Spectra, distance, lsd, pair, plain, ssr_eval

TEXTURE_SMOOTHING = (9, 15)  # frames, bins
RESAMPLES = 10_000  # of a bootstrap interval
LOWER_IS_BETTER = ("lsd", "log_mel")  # how the names of such metrics begin

SETTINGS = {  # of the columns of tables
    "lsd, lsd_19k, lsd_low, lsd_high": "plain: n_fft 2048, hop 512, periodic Hann, power floor 1e-8; no gain alignment",
    "lsd_ssr_eval": "n_fft 2229, hop 480, eps 1e-12, at 48 kHz",
    "lsd_19k": "bins up to 19 kHz",
    "cutoff": "known to every system",
    "zimtohrli": "Zimtohrli's distance times 1000, lower is better",
    "two_f, visqol": "2f model (0 to 100) and ViSQOL (1 to 5), higher is better; at the quoted conditions",
    "interval": "95 % percentile bootstrap over tracks",
}


def _ratio_db(power: float, other: float) -> float:
    """10 log10(power / other) with the limits: inf for a perfect match, -inf for silence, NaN for two silences."""
    if other == 0:
        return math.inf if power > 0 else math.nan
    return 10 * math.log10(power / other) if power > 0 else -math.inf


def _quotient(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan


def _waves(reference: Sound, estimate: Sound) -> tuple[np.ndarray, np.ndarray]:
    ref, est = pair(reference, estimate)
    return ref.wav.astype(np.float64), est.wav.astype(np.float64)


def snr_db(reference: Sound, estimate: Sound) -> float:
    """Signal-to-noise ratio |s|^2 / |s - s'|^2 in dB, over all channels."""
    reference, estimate = _waves(reference, estimate)
    return _ratio_db(float((reference**2).sum()), float(((reference - estimate) ** 2).sum()))


def si_sdr_db(reference: Sound, estimate: Sound) -> float:
    """Scale-invariant SDR in dB (Le Roux et al. 2019): |a s|^2 / |a s - s'|^2 with a = <s', s> / |s|^2."""
    reference, estimate = (wav.ravel() for wav in _waves(reference, estimate))
    energy = float(reference @ reference)
    if energy == 0:
        return math.nan
    target = (estimate @ reference) / energy * reference
    return _ratio_db(float(target @ target), float(((target - estimate) ** 2).sum()))


def snr_low_db(reference: Sound, estimate: Sound, f_high: float, sample_rate: int = 48000) -> float:
    """SNR in dB of the part below f_high Hz, summed over the bins of the plain STFT.

    An STFT and not one long FFT: error just above f_high then leaks no further than two bins.
    """
    ref, est = pair(reference, estimate, sample_rate)
    error = Spectra(ref.wav.astype(np.float64) - est.wav.astype(np.float64), ref.sample_rate)
    band = plain(ref.sample_rate).band(0.0, f_high)
    return _ratio_db(float(ref.power[..., band].sum()), float(error.power[..., band].sum()))


def level_high_db(reference: Sound, estimate: Sound, f_low: float, sample_rate: int = 48000) -> float:
    """Level above f_low Hz of the estimate over the reference: 10 log10 of the ratio of power summed over the file."""
    ref, est = pair(reference, estimate, sample_rate)
    band = plain(ref.sample_rate).band(f_low, None)
    return _ratio_db(float(est.power[..., band].sum()), float(ref.power[..., band].sum()))


def stereo_high(wav: Sound, f_low: float, sample_rate: int = 48000) -> dict[str, float]:
    """Width above f_low Hz of `[channels, samples]`, from summed power: `correlation` and `mono_sum_db`.

    The correlation is Pearson's for two channels, and a mean of all pairs, weighed by level, for more. The mono sum is
    the power of the channels' mean over their mean power: 0 dB for equal channels, -3 dB for two unrelated ones, and
    -inf for a channel and its inverse.
    """
    sound = wav if isinstance(wav, Spectra) else Spectra(np.asarray(wav), sample_rate)
    band = plain(sound.sample_rate).band(f_low, None)
    mono = Spectra(sound.wav.astype(np.float64).mean(axis=0), sound.sample_rate)
    powers, channels = sound.power[..., band].sum(axis=(1, 2), dtype=np.float64), len(sound.wav)
    mean = float(mono.power[..., band].sum(dtype=np.float64))
    crossed = channels**2 * mean - powers.sum()  # twice the covariance of every pair
    correlation = _quotient(float(crossed), float(np.sqrt(powers).sum() ** 2 - powers.sum()))
    return {"correlation": correlation, "mono_sum_db": _ratio_db(mean, float(powers.mean()))}


def texture_high(reference: Sound, estimate: Sound, f_low: float, sample_rate: int = 48000) -> float:
    """How rough the estimate is between f_low and 19 kHz, over how rough the reference is: 1 is right, blur is below.

    Roughness is the standard deviation of the floored log10 power (plain STFT) minus its moving mean over 9 frames x
    15 bins, taken within that band only.
    """
    ref, est = pair(reference, estimate, sample_rate)
    convention = plain(ref.sample_rate)
    band = convention.band(f_low, HEADLINE_HZ)
    rough = [_roughness(sound.log_power(convention)[..., band]) for sound in (est, ref)]
    return _quotient(*rough)


def _roughness(log_power: np.ndarray) -> float:
    """Standard deviation of log10 power [channels, frames, bins] minus its moving mean."""
    if log_power.shape[-1] == 0:
        return math.nan
    return float((log_power - ndimage.uniform_filter(log_power, (1, *TEXTURE_SMOOTHING), mode="nearest")).std())


def tone_suppression_db(
    reference: Sound, restored: Sound, tone_hz: float, noise_amplitude: float, sample_rate: int = 48000
) -> float:
    """How far the tone left in (restored - reference) lies under the one inserted, dB; more is better.

    Its amplitude comes from a least-squares projection on the sine and the cosine of tone_hz, so a tone that comes
    back with another phase counts in full. The loudest channel counts.
    """
    reference, restored = _waves(reference, restored)
    phase = 2 * np.pi * tone_hz / sample_rate * np.arange(reference.shape[-1])
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    coefficients = np.linalg.lstsq(basis, (restored - reference).T, rcond=None)[0]  # [2, channels]
    return 2 * _ratio_db(noise_amplitude, float(np.hypot(*coefficients).max()))


def log_mel_l1(reference: Sound, estimate: Sound, sample_rate: int = 48000) -> float:
    """Mean absolute difference of AudioSR's log-mels (nat), at 48 kHz; other rates are resampled first."""
    ref, est = pair(reference, estimate, sample_rate)
    return float(np.abs(ref.log_mel - est.log_mel).mean(dtype=np.float64))


def bootstrap_ci(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the mean over tracks, (low, high)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise SrlibError("a bootstrap interval needs a list of one or more finite numbers")
    picks = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def evaluate(
    reference: Sound,
    restored: Sound,
    sample_rate: int = 48000,
    degraded: Sound | None = None,
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

    `Spectra`, whose sample rate counts, save their part of the computation from the second call on.
    `oracle_lsd_19k`, if it is known already, saves computing the oracle again for the next system.
    """
    reference, restored = pair(reference, restored, sample_rate)
    sample_rate, edges = reference.sample_rate, None
    filtered = degradation is not None and degradation.cutoff_hz is not None
    if cutoff_hz is not None:
        degradation, edges = _with_cutoff(degradation, cutoff_hz, sample_rate), (cutoff_hz, cutoff_hz)
    elif filtered:
        edges = degradation.passband_hz(sample_rate), degradation.stopband_hz(sample_rate)
    scores = _scores(reference, restored, edges)
    if filtered:
        scores["snr_known_db"] = snr_low_db(_filtered(reference, degradation), restored, edges[0])
    if degraded is not None:
        cropped, degraded = pair(reference, degraded, sample_rate)
        before = _scores(cropped, degraded, edges)
        for name in [n for n in before if n not in ("level_high_db", "texture_high")]:
            sign = -1 if name.startswith(LOWER_IS_BETTER) else 1
            scores[f"{name}_gain"] = sign * (scores[name] - before[name])
        if degradation is not None:
            if oracle_lsd_19k is None:
                oracle_lsd_19k = _oracle_lsd_19k(cropped, degraded.wav, degradation)
            scores["oracle_lsd_19k"] = oracle_lsd_19k
            scores["oracle_ratio"] = _quotient(scores["lsd_19k"], oracle_lsd_19k)
    if degradation is not None and degradation.noise_type == "tone" and degradation.noise_amplitude > 0:
        tone = (degradation.tone_hz, degradation.noise_amplitude, sample_rate)
        scores["tone_suppression_db"] = tone_suppression_db(reference, restored, *tone)
    return scores


def _with_cutoff(degradation: Degradation | None, cutoff_hz: float, sample_rate: int) -> Degradation:
    """A record, if there is one, with the cutoff (Hz) that it lacks, taken for a brick wall."""
    if degradation is not None and degradation.cutoff_hz is not None:
        raise SrlibError(f"the record says that the filter's cutoff is {degradation.cutoff_hz:g} Hz: give no other")
    degradation = replace(degradation or Degradation(), cutoff_hz=cutoff_hz, filter_type="boxcar")
    degradation.check(sample_rate)
    return degradation


def _scores(reference: Spectra, estimate: Spectra, edges: tuple[float, float] | None) -> dict[str, float]:
    """Metrics of an estimate; edges = (passband_hz, stopband_hz) adds those of the two bands."""
    sample_rate = reference.sample_rate
    whole = plain(sample_rate)
    scores = {
        "lsd": distance(reference, estimate, whole),
        "lsd_19k": distance(reference, estimate, replace(whole, f_high=HEADLINE_HZ)),
        "lsd_ssr_eval": distance(reference, estimate, ssr_eval(sample_rate)),
        "snr_db": snr_db(reference, estimate),
        "si_sdr_db": si_sdr_db(reference, estimate),
        "log_mel_l1": log_mel_l1(reference, estimate),
    }
    if edges is None:
        return scores
    passband_hz, stopband_hz = edges
    return scores | {
        "lsd_low": distance(reference, estimate, replace(whole, f_high=passband_hz)),
        "lsd_high": distance(reference, estimate, replace(whole, f_low=stopband_hz)),
        "snr_low_db": snr_low_db(reference, estimate, passband_hz),
        "level_high_db": level_high_db(reference, estimate, stopband_hz),
        "texture_high": texture_high(reference, estimate, stopband_hz),
    }


@lru_cache(maxsize=1)  # of one degradation after the other
def _filtered(reference: Spectra, degradation: Degradation) -> Spectra:
    """What its filter left of it, without noise and gaps."""
    known = replace(degradation, noise_type="none", gaps=())
    return Spectra(known.apply(reference.wav, reference.sample_rate), reference.sample_rate)


def _oracle_lsd_19k(reference: Spectra, degraded: np.ndarray, degradation: Degradation) -> float:
    rate = reference.sample_rate
    limit = [oracle(ref, deg, degradation, rate) for ref, deg in zip(reference.wav, degraded, strict=True)]
    return lsd(reference, np.stack(limit), rate, "plain", f_high=HEADLINE_HZ)
