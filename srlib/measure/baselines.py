"""What a model must beat: blind signal processing and a linear regression.

All work on 48 kHz [samples] float32 unless they say otherwise. `BLIND` holds those that see nothing but the degraded
recording and, where they extend the band, its cutoff.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import signal

from srlib.audio.stft import BINS_HZ
from srlib.config import LOG_MEL_FLOOR, SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import limits
from srlib.measure.limits import TINY, spectrum_of, to_wav
from srlib.restore.merge import Band
from srlib.restore.noise import QUIET, level_above, smoothed_power
from srlib.restore.tones import ToneFinder, fit_tones

# dB per octave above the cutoff, by cutoff in Hz: each the best of a grid by plain LSD up to 19 kHz on the train split
# of the demo set, low-passed by cheby1 of order 8.
TILT_DB_PER_OCTAVE = {2000: -8.0, 4000: -9.0, 8000: -12.0, 12000: -20.0, 16000: -32.0}
EULER_GAMMA = float(np.euler_gamma)  # the log of an exponential variate lies so far under the log of its mean
WIENER_ALPHA = 0.92  # of the decision-directed rule; best on the valid split of the demo set
WIENER_MIN_GAIN = 0.1  # amplitude; -20 dB: less holes, better LSD, same SNR
NOTCH_WIDTH_HZ = 20.0
_WHOLE_BAND = Band(0.0, 0.0)  # white noise reaches everywhere


def unprocessed(degraded: np.ndarray, sample_rate: int, cutoff_hz: float | None = None, seed: int = 0) -> np.ndarray:
    """The degraded recording as it is."""
    return degraded.copy()


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
    limits.need_48_khz(sample_rate)
    if tilt_db_per_octave is None:
        tilt_db_per_octave = np.interp(cutoff_hz, list(TILT_DB_PER_OCTAVE), list(TILT_DB_PER_OCTAVE.values()))
    spectrum = spectrum_of(degraded)
    source = (cutoff_hz / np.sqrt(2) <= BINS_HZ) & (0.99 * cutoff_hz > BINS_HZ)
    tilt = tilt_db_per_octave * np.log(10) / 10 * np.log2(np.maximum(BINS_HZ, 1.0) / cutoff_hz)
    level = (np.log(np.abs(spectrum[:, source]) ** 2 + TINY) - tilt[source]).mean(axis=1) + EULER_GAMMA
    generated = limits.shaped_noise(np.exp((level[:, None] + tilt) / 2), seed, len(degraded))
    return to_wav(limits.join(spectrum, generated, cutoff_hz, cutoff_hz), len(degraded))


def wiener(degraded: np.ndarray, sample_rate: int, cutoff_hz: float | None = None, seed: int = 0) -> np.ndarray:
    """Blind reduction of white noise: Wiener gain with the decision-directed SNR (Ephraim and Malah 1984).

    The noise's level is that of minimum statistics, as `srlib.restore.noise` takes them, over the whole band.
    """
    power = smoothed_power(torch.from_numpy(degraded))
    if not len(power):  # digital silence
        return degraded.copy()
    spectrum = spectrum_of(degraded)
    posterior = np.abs(spectrum) ** 2 / (level_above(np.quantile(power, QUIET, axis=0), _WHOLE_BAND) + TINY)
    previous = np.maximum(posterior[0] - 1, 0.0)
    for t, snr in enumerate(posterior):
        prior = WIENER_ALPHA * previous + (1 - WIENER_ALPHA) * np.maximum(snr - 1, 0.0)
        gain = np.maximum(prior / (1 + prior), WIENER_MIN_GAIN)
        spectrum[t] *= gain
        previous = gain**2 * snr
    return to_wav(spectrum, len(degraded))


def notch(degraded: np.ndarray, sample_rate: int, cutoff_hz: float | None = None, seed: int = 0) -> np.ndarray:
    """Blind removal of stationary tones: a notch of 20 Hz, forwards and backwards, where `ToneFinder` finds one."""
    finder = ToneFinder(sample_rate)
    finder.add(degraded)
    restored = degraded.copy()
    for tone_hz in (tone.frequency_hz for tone in fit_tones(degraded, finder.result(), sample_rate)):
        b, a = signal.iirnotch(tone_hz, tone_hz / NOTCH_WIDTH_HZ, fs=sample_rate)
        restored = signal.filtfilt(b, a, restored.astype(np.float64), padlen=sample_rate // 2).astype(np.float32)
    return restored


Baseline = Callable[[np.ndarray, int, float | None, int], np.ndarray]  # (degraded, sample_rate, cutoff_hz, seed)
BLIND: dict[str, Baseline] = {
    "unprocessed": unprocessed,
    "band_replication": band_replication,
    "wiener": wiener,
    "notch": notch,
}


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
            features, target = _features(_log_mel(degraded)), _log_mel(reference)
            moment, cross, frames = moment + features.T @ features, cross + features.T @ target, frames + len(target)
        if frames == 0:
            raise SrlibError("a ridge regression needs at least one pair of degraded and reference audio")
        diagonal = np.full(len(moment), penalty)
        diagonal[-1] = 0.0  # the constant is free
        return cls(np.linalg.solve(moment + np.diag(diagonal) + 1e-9 * np.eye(len(moment)), cross), penalty)

    def restore(
        self, degraded: np.ndarray, degradation: Degradation, sample_rate: int = SAMPLE_RATE, seed: int = 0
    ) -> np.ndarray:
        """degraded [samples] -> restored: predicted envelope times noise in the stop band, the input below passband_hz.

        Where the degradation added noise, the input is scaled by the predicted mel ratio, clipped to 0..1.
        """
        limits.need_48_khz(sample_rate)
        spectrum, before = spectrum_of(degraded), _log_mel(degraded)
        after = np.maximum(_features(before) @ self.weights, np.log(LOG_MEL_FLOOR))
        # Gaussian noise has a mean magnitude of sqrt(pi) / 2 of its rms.
        amplitude = np.exp(limits.bin_levels(after)) / (np.sqrt(np.pi) / 2)
        generated = limits.shaped_noise(amplitude, seed, len(degraded))
        if degradation.noise_type != "none":
            spectrum *= limits.to_bins(np.clip(np.exp(after - before), 0.0, 1.0))
        return to_wav(limits.join(spectrum, generated, *limits.band_of(degradation)), len(degraded))


def _log_mel(wav: np.ndarray) -> np.ndarray:
    """AudioSR's log-mel `[frames, 256]` of `[samples]`, but of frames centred on multiples of the hop."""
    return np.log(np.maximum(np.abs(spectrum_of(wav)) @ limits.filters().T, LOG_MEL_FLOOR))


def _features(log_mel: np.ndarray) -> np.ndarray:
    return np.concatenate([log_mel, np.ones((len(log_mel), 1))], axis=1)
