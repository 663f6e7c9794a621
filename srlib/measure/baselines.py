"""What a model must beat: blind signal processing, a linear regression, and the limits of knowing the envelope.

All work on 48 kHz [samples] float32 unless they say otherwise. `BLIND` holds those that see nothing but the degraded
recording and, where they extend the band, its cutoff. torch is loaded only for the mel filters (oracle, ridge).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage, signal

from srlib.config import HOP_LENGTH, LOG_MEL_FLOOR, N_FFT, SAMPLE_RATE
from srlib.degrade import Degradation, istft, stft
from srlib.errors import SrlibError
from srlib.measure.metrics import HEADLINE_HZ, lsd

TINY = 1e-20  # power under any floor, to divide by
BINS_HZ = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
NOISE_POWER = float((signal.get_window("hann", N_FFT) ** 2).sum())  # expected |STFT|^2 of unit white noise

# dB per octave above the cutoff, by cutoff in Hz: each the best of a grid by plain LSD up to 19 kHz on the train split
# of the demo set, low-passed by cheby1 of order 8.
TILT_DB_PER_OCTAVE = {2000: -8.0, 4000: -9.0, 8000: -12.0, 12000: -20.0, 16000: -32.0}
EULER_GAMMA = float(np.euler_gamma)  # the log of an exponential variate lies so far under the log of its mean

WHITE_FLOOR_BIAS = 2.19  # mean of white noise over the statistic of `_white_floor`; measured on white noise
WIENER_ALPHA = 0.92  # of the decision-directed rule; best on the valid split of the demo set
WIENER_MIN_GAIN = 0.1  # amplitude; -20 dB: less holes, better LSD, same SNR

TONE_N_FFT = 16384  # samples, bins of 2.9 Hz
TONE_PROMINENCE_DB = 33.0  # over the spectrum around it: no clean train track of the demo set reaches it
NOTCH_WIDTH_HZ = 20.0


def unprocessed(degraded: np.ndarray, sample_rate: int, cutoff_hz: float | None = None, seed: int = 0) -> np.ndarray:
    """The degraded recording as it is."""
    return degraded.copy()


def sinc(degraded: np.ndarray, sample_rate: int, cutoff_hz: float | None = None, seed: int = 0) -> np.ndarray:
    """Band-limited interpolation: what a resampler makes of a recording sampled at twice the cutoff."""
    if cutoff_hz is None:
        return degraded.copy()
    few = signal.resample(degraded.astype(np.float64), max(1, round(len(degraded) * 2 * cutoff_hz / sample_rate)))
    return signal.resample(few, len(degraded)).astype(np.float32)


def band_replication(
    degraded: np.ndarray,
    sample_rate: int,
    cutoff_hz: float | None = None,
    seed: int = 0,
    tilt_db_per_octave: float | None = None,
) -> np.ndarray:
    """The half octave below the cutoff, replicated above it as noise of its level, with a fixed tilt and no model.

    Level is a mean of logs (one loud partial must not raise the whole band), taken anew in every frame and continuous
    at the cutoff. The tilt is interpolated in `TILT_DB_PER_OCTAVE` unless given.
    """
    if cutoff_hz is None:
        return degraded.copy()
    _need_48_khz(sample_rate)
    if tilt_db_per_octave is None:
        tilt_db_per_octave = np.interp(cutoff_hz, list(TILT_DB_PER_OCTAVE), list(TILT_DB_PER_OCTAVE.values()))
    spectrum = stft(degraded.astype(np.float64), N_FFT, HOP_LENGTH)
    source = (cutoff_hz / np.sqrt(2) <= BINS_HZ) & (0.99 * cutoff_hz > BINS_HZ)
    tilt = tilt_db_per_octave * np.log(10) / 10 * np.log2(np.maximum(BINS_HZ, 1.0) / cutoff_hz)
    level = (np.log(np.abs(spectrum[:, source]) ** 2 + TINY) - tilt[source]).mean(axis=1) + EULER_GAMMA
    generated = _shaped_noise(np.exp((level[:, None] + tilt) / 2), seed, len(degraded))
    return _to_wav(_join(spectrum, generated, cutoff_hz, cutoff_hz), len(degraded))


def _white_floor(power: np.ndarray) -> float:
    """Expected power of a bin of white noise from powers [frames, bins]: minimum statistics, one value for the file.

    The low quantile over time of smoothed power, then the low quantile over frequency: music leaves some bins alone
    some of the time. Sustained music would be taken for noise if every bin had its own floor.
    """
    smooth = ndimage.uniform_filter1d(power, 9, axis=0, mode="nearest")
    return WHITE_FLOOR_BIAS * float(np.quantile(np.quantile(smooth, 0.1, axis=0), 0.2))


def wiener(degraded: np.ndarray, sample_rate: int, cutoff_hz: float | None = None, seed: int = 0) -> np.ndarray:
    """Blind noise reduction: Wiener gain with the decision-directed a-priori SNR (Ephraim and Malah 1984)."""
    spectrum = stft(degraded.astype(np.float64), N_FFT, HOP_LENGTH)
    posterior = np.abs(spectrum) ** 2
    posterior /= _white_floor(posterior) + TINY
    previous = np.maximum(posterior[0] - 1, 0.0)
    for t, snr in enumerate(posterior):
        prior = WIENER_ALPHA * previous + (1 - WIENER_ALPHA) * np.maximum(snr - 1, 0.0)
        gain = np.maximum(prior / (1 + prior), WIENER_MIN_GAIN)
        spectrum[t] *= gain
        previous = gain**2 * snr
    return _to_wav(spectrum, len(degraded))


def detect_tone(wav: np.ndarray, sample_rate: int) -> float | None:
    """Frequency in Hz of the most prominent tone that is there all the time, or None. wav [samples]."""
    if len(wav) < TONE_N_FFT:
        return None
    power = np.abs(stft(wav.astype(np.float64), TONE_N_FFT, TONE_N_FFT // 4)[2:-2]) ** 2
    if not len(power):
        return None
    level_db = 10 * np.log10(np.quantile(power, 0.05, axis=0) + 1e-9)
    prominence = level_db - ndimage.median_filter(level_db, 31, mode="nearest")
    peak = int(np.argmax(prominence[2:-2])) + 2
    if prominence[peak] < TONE_PROMINENCE_DB:
        return None
    left, centre, right = level_db[peak - 1 : peak + 2]  # parabola through the peak
    offset = 0.5 * (left - right) / min(left - 2 * centre + right, -1e-9)
    return (peak + float(np.clip(offset, -0.5, 0.5))) * sample_rate / TONE_N_FFT


def notch(degraded: np.ndarray, sample_rate: int, cutoff_hz: float | None = None, seed: int = 0) -> np.ndarray:
    """Blind removal of one stationary tone: a notch of 20 Hz, forwards and backwards, where `detect_tone` finds it."""
    tone_hz = detect_tone(degraded, sample_rate)
    if tone_hz is None:
        return degraded.copy()
    b, a = signal.iirnotch(tone_hz, tone_hz / NOTCH_WIDTH_HZ, fs=sample_rate)
    padlen = min(len(degraded) - 1, sample_rate // 2)
    return signal.filtfilt(b, a, degraded.astype(np.float64), padlen=padlen).astype(np.float32)


Baseline = Callable[[np.ndarray, int, float | None, int], np.ndarray]  # (degraded, sample_rate, cutoff_hz, seed)
BLIND: dict[str, Baseline] = {
    "unprocessed": unprocessed,
    "sinc": sinc,
    "band_replication": band_replication,
    "wiener": wiener,
    "notch": notch,
}


def _need_48_khz(sample_rate: int) -> None:
    if sample_rate != SAMPLE_RATE:
        raise SrlibError(f"this baseline works at {SAMPLE_RATE} Hz, not {sample_rate} Hz: resample the audio first")


def _shaped_noise(envelope: np.ndarray, seed: int, length: int) -> np.ndarray:
    """STFT of seeded Gaussian noise times an amplitude envelope [frames, bins]; rms 1 where the envelope is 1."""
    noise = np.random.default_rng((seed, 1)).standard_normal(length)  # not the noise of a Degradation of that seed
    return stft(noise, N_FFT, HOP_LENGTH) / np.sqrt(NOISE_POWER) * envelope


def _join(known: np.ndarray, generated: np.ndarray, f_low: float, f_high: float) -> np.ndarray:
    """known below f_low Hz, generated above f_high Hz, a power-preserving fade in between."""
    weight = np.clip((f_high - BINS_HZ) / max(f_high - f_low, 1e-9), 0.0, 1.0)
    return weight * known + np.sqrt(1 - weight**2) * generated


def _to_wav(spectrum: np.ndarray, length: int) -> np.ndarray:
    return istft(spectrum, length, N_FFT, HOP_LENGTH).astype(np.float32)


@cache
def _mel_filters() -> np.ndarray:
    """[256, 1025], AudioSR's."""
    from srlib.audio.stft import mel_filters

    return mel_filters().numpy().astype(np.float64)


@cache
def _band_interpolation() -> np.ndarray:
    """[256, 1025]: linear interpolation between the centres of the bands that hold a bin (the lowest hold none)."""
    from srlib.audio.stft import band_edges_hz

    centres, filled = band_edges_hz()[1:-1], _mel_filters().sum(axis=1) > 0
    weights = np.zeros_like(_mel_filters())
    weights[filled] = [np.interp(BINS_HZ, centres[filled], row) for row in np.eye(filled.sum())]
    return weights


def oracle(
    reference: np.ndarray, degraded: np.ndarray, degradation: Degradation, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """The limit: the true envelope with Gaussian fine structure above the cutoff and in gaps.

    On power mels with hop 480. Below the cutoff the better, per clip by plain LSD up to 19 kHz, of the degraded
    spectrum as it is and the degraded spectrum times the square root of the exact mel power ratio, clipped to 0..1.
    """
    _need_48_khz(sample_rate)
    length, filters = len(degraded), _mel_filters()
    spectra = [stft(wav.astype(np.float64), N_FFT, HOP_LENGTH) for wav in (reference, degraded)]
    mel_ref, mel_deg = (np.abs(spectrum) ** 2 @ filters.T for spectrum in spectra)
    level = np.log(mel_ref / np.maximum(filters.sum(axis=1), TINY) + TINY)  # mean power of a bin in the band
    generated = _shaped_noise(np.exp(level @ _band_interpolation() / 2), 0, length)
    gain = np.sqrt(np.clip((mel_ref + TINY) / (mel_deg + TINY), 0.0, 1.0) @ _band_interpolation())
    edges = _edges(degradation)
    candidates = []
    for known in (spectra[1], gain * spectra[1]):
        candidate = _to_wav(_join(known, generated, *edges), length)
        candidates.append(_fill_gaps(candidate, _to_wav(generated, length), degradation.gaps))
    return min(candidates, key=lambda wav: lsd(reference, wav, sample_rate, "plain", f_high=HEADLINE_HZ))


def _edges(degradation: Degradation) -> tuple[float, float]:
    """(passband_hz, stopband_hz) in Hz; above every bin without a filter."""
    if degradation.cutoff_hz is None:
        return SAMPLE_RATE, SAMPLE_RATE
    return degradation.passband_hz(SAMPLE_RATE), degradation.stopband_hz(SAMPLE_RATE)


def _fill_gaps(wav: np.ndarray, generated: np.ndarray, gaps: Iterable[tuple[float, float]]) -> np.ndarray:
    """generated inside the gaps (start, end in seconds), faded over 10 ms outside them."""
    inside = np.zeros(len(wav))
    for start, end in gaps:
        inside[max(0, round((start - 0.005) * SAMPLE_RATE)) : round((end + 0.005) * SAMPLE_RATE)] = 1.0
    inside = ndimage.uniform_filter1d(inside, SAMPLE_RATE // 100) if gaps else inside
    return ((1 - inside) * wav + inside * generated).astype(np.float32)


@dataclass
class Ridge:
    """Linear regression of single log-mel frames, one for each cutoff (and noise), with noise as fine structure.

    weights [257, 256] map a degraded frame and a 1 to the reference frame; frames are those of `_log_mel`.
    """

    weights: np.ndarray
    penalty: float = 1e4  # on the squared weights, against squared errors summed over the frames

    @classmethod
    def fit(cls, pairs: Iterable[tuple[np.ndarray, np.ndarray]], penalty: float = 1e4) -> Ridge:
        """From (degraded, reference) pairs [samples] at one cutoff, read once: only moments are kept."""
        moment, cross, frames = 0.0, 0.0, 0
        for degraded, reference in pairs:
            features = _features(_log_mel(_magnitude(degraded)))
            target = _log_mel(_magnitude(reference))
            moment, cross, frames = moment + features.T @ features, cross + features.T @ target, frames + len(target)
        if frames == 0:
            raise SrlibError("a ridge regression needs at least one pair of degraded and reference audio")
        diagonal = np.full(len(moment), penalty)
        diagonal[-1] = 0.0  # the constant is free
        return cls(np.linalg.solve(moment + np.diag(diagonal) + 1e-9 * np.eye(len(moment)), cross), penalty)

    def predict(self, log_mel: np.ndarray) -> np.ndarray:
        """Degraded log-mel [frames, 256] -> estimate of the reference's."""
        return np.maximum(_features(log_mel) @ self.weights, np.log(LOG_MEL_FLOOR))

    def restore(
        self, degraded: np.ndarray, degradation: Degradation, sample_rate: int = SAMPLE_RATE, seed: int = 0
    ) -> np.ndarray:
        """degraded [samples] -> restored: predicted envelope times noise in the stop band, the input below passband_hz.

        Where the degradation added noise, the input is scaled by the predicted mel ratio, clipped to 0..1.
        """
        _need_48_khz(sample_rate)
        spectrum = stft(degraded.astype(np.float64), N_FFT, HOP_LENGTH)
        before = _log_mel(np.abs(spectrum))
        after = self.predict(before)
        # mean magnitude of a bin in a band; Gaussian noise has a mean magnitude of sqrt(pi) / 2 of its rms
        envelope = np.exp((after - _log_band_weight()) @ _band_interpolation()) / (np.sqrt(np.pi) / 2)
        generated = _shaped_noise(envelope, seed, len(degraded))
        if degradation.noise_type != "none":
            spectrum *= np.clip(np.exp(after - before), 0.0, 1.0) @ _band_interpolation()
        return _to_wav(_join(spectrum, generated, *_edges(degradation)), len(degraded))


def _magnitude(wav: np.ndarray) -> np.ndarray:
    return np.abs(stft(wav.astype(np.float64), N_FFT, HOP_LENGTH))


def _log_mel(magnitude: np.ndarray) -> np.ndarray:
    """AudioSR's log-mel, but of frames centred on multiples of the hop: [frames, 1025] -> [frames, 256]."""
    return np.log(np.maximum(magnitude @ _mel_filters().T, LOG_MEL_FLOOR))


def _log_band_weight() -> np.ndarray:
    return np.log(np.maximum(_mel_filters().sum(axis=1), TINY))


def _features(log_mel: np.ndarray) -> np.ndarray:
    return np.concatenate([log_mel, np.ones((len(log_mel), 1))], axis=1)
