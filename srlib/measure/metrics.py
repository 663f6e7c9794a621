"""All measures of a restored recording against its reference except the LSD, and `evaluate`, which computes all.

LSD tolerates blur, which `texture_high` and `level_high_db` show. Recordings are [samples] or [channels, samples] at
48 kHz, or `Spectra`, which have their own rate and are computed once for several calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage, stats

from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure.limits import oracle
from srlib.measure.lsd import HEADLINE_HZ, PLAIN, Sound, Spectra, lsd, pair, plain

TEXTURE_SMOOTHING = (9, 15)  # frames and bins of the moving mean
RESAMPLES = 10_000  # draws of a bootstrap interval

SETTINGS = {  # how the columns of tables are computed, for the report's appendix
    "lsd, lsd_19k, lsd_low, lsd_high": "plain: n_fft 2048, hop 512, periodic Hann, power floor 1e-8; no gain alignment",
    "lsd_ssr_eval": "n_fft 2229, hop 480, eps 1e-12, at 48 kHz",
    "lsd_19k": "bins up to 19 kHz",
    "cutoff": "known to every system",
    "zimtohrli": "Zimtohrli's distance times 1000, lower is better",
    "two_f, visqol": "2f model (0 to 100) and ViSQOL (1 to 5), higher is better; at the quoted conditions",
    "interval": "95 % percentile bootstrap over tracks",
}


def ratio_db(power: float, other: float) -> float:
    """10 log10(power / other): inf if `other` is zero, -inf if `power` is, NaN if both are."""
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
    return ratio_db(float((reference**2).sum()), float(((reference - estimate) ** 2).sum()))


def si_sdr_db(reference: Sound, estimate: Sound) -> float:
    """Scale-invariant SDR in dB (Le Roux et al. 2019): |a s|^2 / |a s - s'|^2 with a = <s', s> / |s|^2."""
    reference, estimate = (wav.ravel() for wav in _waves(reference, estimate))
    energy = float(reference @ reference)
    if energy == 0:
        return math.nan
    target = (estimate @ reference) / energy * reference
    return ratio_db(float(target @ target), float(((target - estimate) ** 2).sum()))


def snr_low_db(reference: Sound, estimate: Sound, f_high: float) -> float:
    """SNR in dB below f_high Hz, over the plain STFT: error just above f_high leaks no further than two bins."""
    ref, est = pair(reference, estimate)
    error = Spectra(np.subtract(ref.wav, est.wav, dtype=np.float64), ref.sample_rate)
    return ratio_db(ref.power(f_high=f_high), error.power(f_high=f_high))


def level_high_db(reference: Sound, estimate: Sound, f_low: float) -> float:
    """Level above f_low Hz of the estimate over the reference: 10 log10 of the ratio of power summed over the file."""
    ref, est = pair(reference, estimate)
    return ratio_db(est.power(f_low), ref.power(f_low))


def stereo_high(wav: np.ndarray, f_low: float) -> dict[str, float]:
    """Width above f_low Hz of `[channels, samples]`, from summed power: `correlation` and `mono_sum_db`.

    The correlation is Pearson's for two channels, and a mean of all pairs, weighed by level, for more. The mono sum is
    the power of the channels' mean over their mean power: 0 dB for equal channels, -3 dB for two unrelated ones, and
    -inf for a channel and its inverse.
    """
    wide = wav.astype(np.float64)
    powers = np.array([Spectra(row[None]).power(f_low) for row in wide])
    mean = Spectra(wide.mean(axis=0)[None]).power(f_low)
    crossed = len(wide) ** 2 * mean - powers.sum()  # twice the covariance of every pair
    correlation = float(crossed / (np.sqrt(powers).sum() ** 2 - powers.sum()))
    return {"correlation": correlation, "mono_sum_db": ratio_db(mean, float(powers.mean()))}


def texture_high(reference: Sound, estimate: Sound, f_low: float) -> float:
    """How rough the estimate is between f_low and 19 kHz, over how rough the reference is: 1 is right, blur is below.

    Roughness is the standard deviation of the floored log10 power (plain STFT) minus its moving mean over 9 frames x
    15 bins, taken within that band only.
    """
    ref, est = pair(reference, estimate)
    convention = plain(ref.sample_rate, f_low, HEADLINE_HZ)
    return _quotient(*(_roughness(sound.log_power(convention)[..., convention.band]) for sound in (est, ref)))


def _roughness(log_power: np.ndarray) -> float:
    if log_power.shape[-1] == 0:
        return math.nan
    return float((log_power - ndimage.uniform_filter(log_power, (1, *TEXTURE_SMOOTHING), mode="nearest")).std())


def tone_suppression_db(reference: Sound, restored: Sound, tone_hz: float, noise_amplitude: float) -> float:
    """Level of the inserted tone over that of the tone in (restored - reference), dB; higher is better.

    Its amplitude comes from a least-squares projection on the sine and the cosine of tone_hz, so a tone that comes
    back with another phase counts in full. The loudest channel counts.
    """
    ref, est = pair(reference, restored)
    phase = 2 * np.pi * tone_hz / ref.sample_rate * np.arange(ref.wav.shape[-1])
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    error = np.subtract(est.wav, ref.wav, dtype=np.float64)
    coefficients = np.linalg.lstsq(basis, error.T, rcond=None)[0]  # [2, channels]
    return 2 * ratio_db(noise_amplitude, float(np.hypot(*coefficients).max()))


def log_mel_l1(reference: Sound, estimate: Sound) -> float:
    """Mean absolute difference of AudioSR's log-mels (nat), at 48 kHz; other rates are resampled first."""
    ref, est = pair(reference, estimate)
    return float(np.abs(ref.log_mel - est.log_mel).mean(dtype=np.float64))


def bootstrap_ci(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the mean over tracks, (low, high); of one track its value."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    found = stats.bootstrap([values], np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def evaluate(
    reference: Sound,
    restored: Sound,
    sample_rate: int = SAMPLE_RATE,
    degraded: Sound | None = None,
    cutoff_hz: float | None = None,
    degradation: Degradation | None = None,
) -> dict[str, float]:
    """Every metric of one restored recording [samples] or [channels, samples].

    Always: `lsd` and `lsd_19k` (plain), `lsd_ssr_eval`, `snr_db`, `si_sdr_db`, `log_mel_l1`.
    With a cutoff or the record of one, not both: `lsd_low` (plain) and `snr_low_db` below passband_hz, or the cutoff;
    `lsd_high` (plain), `level_high_db` and `texture_high` above stopband_hz, or the cutoff.
    With the record of a filter: `snr_known_db`, which is snr_low_db against the filtered reference, since the ripple of
    a filter (33 dB for cheby1) is no error of a system.
    With the record of a tone: `tone_suppression_db`.
    With `degraded`: `<name>_gain`, the improvement of each over it (positive is better); with a cutoff or record also
    `oracle_lsd_19k` and `oracle_ratio`, which is lsd_19k divided by it.
    Undefined values (a band without bins, silence) are NaN, perfect ones infinite.
    """
    reference, restored = pair(reference, restored, sample_rate)
    rate, known, done = reference.sample_rate, cutoff_hz or degradation, degradation or Degradation()
    recorded = done.cutoff_hz is not None
    if cutoff_hz is not None:  # of a filter without a record, treated as a brick wall
        if recorded:
            raise SrlibError(f"the record says that the filter's cutoff is {done.cutoff_hz:g} Hz: give no other")
        done = replace(done, cutoff_hz=cutoff_hz, filter_type="boxcar")
        done.check(rate)
    edges = done.edges_hz(rate) if cutoff_hz is None else (cutoff_hz, cutoff_hz)
    scores = _scores(reference, restored, edges)
    if recorded and edges is not None:
        filtered = replace(done, noise_type="none", gaps=()).apply(reference.wav, rate)
        scores["snr_known_db"] = snr_low_db(Spectra(filtered, rate), restored, edges[0])
    if degraded is not None:
        cropped, degraded = pair(reference, degraded, rate)
        before = _scores(cropped, degraded, edges)
        for name in [name for name in before if name not in ("level_high_db", "texture_high")]:
            sign = -1 if name.startswith(("lsd", "log_mel")) else 1  # for these, lower is better
            scores[f"{name}_gain"] = sign * (scores[name] - before[name])
        if known:
            if rate != SAMPLE_RATE:
                raise SrlibError(f"the oracle works at {SAMPLE_RATE} Hz, not {rate} Hz: resample the audio")
            limit = [oracle(*channels, done) for channels in zip(cropped.wav, degraded.wav, strict=True)]
            scores["oracle_lsd_19k"] = lsd(cropped, np.stack(limit), convention=PLAIN)
            scores["oracle_ratio"] = _quotient(scores["lsd_19k"], scores["oracle_lsd_19k"])
    if done.noise_type == "tone" and done.tone_hz and done.noise_amplitude > 0:
        left_db = tone_suppression_db(reference, restored, done.tone_hz, done.noise_amplitude)
        scores["tone_suppression_db"] = left_db
    return scores


def _scores(reference: Spectra, estimate: Spectra, edges: tuple[float, float] | None) -> dict[str, float]:
    """Metrics of an estimate; edges = (passband_hz, stopband_hz) adds those of the two bands."""
    rate = reference.sample_rate
    scores = {
        "lsd": lsd(reference, estimate, convention="plain"),
        "lsd_19k": lsd(reference, estimate, convention=plain(rate, f_high=HEADLINE_HZ)),
        "lsd_ssr_eval": lsd(reference, estimate, convention="ssr_eval"),
        "snr_db": snr_db(reference, estimate),
        "si_sdr_db": si_sdr_db(reference, estimate),
        "log_mel_l1": log_mel_l1(reference, estimate),
    }
    if edges is None:
        return scores
    passband_hz, stopband_hz = edges
    return scores | {
        "lsd_low": lsd(reference, estimate, convention=plain(rate, f_high=passband_hz)),
        "lsd_high": lsd(reference, estimate, convention=plain(rate, stopband_hz)),
        "snr_low_db": snr_low_db(reference, estimate, passband_hz),
        "level_high_db": level_high_db(reference, estimate, stopband_hz),
        "texture_high": texture_high(reference, estimate, stopband_hz),
    }
