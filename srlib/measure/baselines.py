"""Baselines: blind signal processing, fillings of gaps, and a linear regression.

All audio is [samples] float32 at 48 kHz.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import interpolate, signal

from srlib.audio.stft import BINS_HZ, envelope, mel_filters, mel_to_bins
from srlib.config import LOG_MEL_FLOOR, SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.measure.conditions import Case, Recipe, draw
from srlib.measure.limits import TINY, join, shaped_noise, spectrum_of, to_wav
from srlib.restore.gaps import gap_frames
from srlib.restore.merge import Band
from srlib.restore.noise import QUIET, level_above, smoothed_power
from srlib.restore.tones import ToneFinder

# dB per octave above the cutoff, by cutoff in Hz: best of a grid by plain LSD up to 19 kHz on the train split of the
# demo set, low-passed by cheby1 of order 8.
TILT_DB_PER_OCTAVE = {2000: -8.0, 4000: -9.0, 8000: -12.0, 12000: -20.0, 16000: -32.0}
EULER_GAMMA = float(np.euler_gamma)  # nat: log of the mean less mean of the log, of an exponential variate
WIENER_ALPHA = 0.92  # of the decision-directed rule; best on the valid split of the demo set
WIENER_MIN_GAIN = 0.1  # amplitude, -20 dB: filled holes lower the LSD at the same SNR
NOTCH_WIDTH_HZ = 20.0  # at -3 dB, one way
PENALTY = 1e4  # weight of the squared coefficients against the summed squared errors, nat^2


def band_replication(degraded: np.ndarray, cutoff_hz: float | None) -> np.ndarray:
    """Noise above the cutoff (Hz) with the level of the half octave below it and a fixed tilt.

    The level is a mean of logs in each frame, so that one loud partial does not raise the whole band; it is continuous
    at the cutoff. The tilt is interpolated in `TILT_DB_PER_OCTAVE`.
    """
    if cutoff_hz is None:
        return degraded.copy()
    spectrum = spectrum_of(degraded)
    source = (cutoff_hz / np.sqrt(2) <= BINS_HZ) & (0.99 * cutoff_hz > BINS_HZ)
    tilt_db = np.interp(cutoff_hz, list(TILT_DB_PER_OCTAVE), list(TILT_DB_PER_OCTAVE.values()))
    tilt = torch.from_numpy(tilt_db * np.log(10) / 10 * np.log2(np.maximum(BINS_HZ, 1.0) / cutoff_hz))
    level = ((spectrum.abs() ** 2 + TINY).log() - tilt)[:, source].mean(1, keepdim=True) + EULER_GAMMA
    generated = shaped_noise(torch.exp((level + tilt) / 2), len(degraded))
    return to_wav(join(spectrum, generated, (cutoff_hz, cutoff_hz)), len(degraded)).numpy()


def wiener(degraded: np.ndarray) -> np.ndarray:
    """Blind reduction of white noise: Wiener gain with the decision-directed SNR (Ephraim and Malah 1984).

    The noise level comes from minimum statistics over the whole band, as in `srlib.restore.noise`.
    """
    power = smoothed_power(torch.from_numpy(degraded))
    if not len(power):  # digital silence
        return degraded.copy()
    spectrum, whole_band = spectrum_of(degraded), Band(0.0, 0.0)  # white noise reaches everywhere
    noise = level_above(np.quantile(power, QUIET, axis=0), whole_band) + TINY
    posterior = spectrum.abs().double().numpy() ** 2 / noise
    gains, previous = np.empty_like(posterior), np.maximum(posterior[0] - 1, 0.0)
    for t, snr in enumerate(posterior):
        prior = WIENER_ALPHA * previous + (1 - WIENER_ALPHA) * np.maximum(snr - 1, 0.0)
        gains[t] = np.maximum(prior / (1 + prior), WIENER_MIN_GAIN)
        previous = gains[t] ** 2 * snr
    return to_wav(spectrum * torch.from_numpy(gains), len(degraded)).numpy()


def notch(degraded: np.ndarray) -> np.ndarray:
    """Blind removal of stationary tones: a notch of 20 Hz, forwards and backwards, where `ToneFinder` finds one."""
    finder = ToneFinder(SAMPLE_RATE)
    finder.add(degraded)
    restored = degraded.copy()
    for tone_hz in (hz for comb in finder.result() for hz in comb.frequencies_hz):
        b, a = signal.iirnotch(tone_hz, tone_hz / NOTCH_WIDTH_HZ, fs=SAMPLE_RATE)
        restored = signal.filtfilt(b, a, restored.astype(np.float64), padlen=SAMPLE_RATE // 2).astype(np.float32)
    return restored


def repetition(degraded: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Gaps filled with the audio before them, repeated if it is too short."""
    filled = degraded.copy()
    for first, last in _gap_samples(degradation):
        filled[first:last] = np.resize(degraded[max(2 * first - last, 0) : first], last - first)
    return filled


def interpolation(degraded: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Gaps filled with noise whose STFT magnitudes are interpolated in time between the frames beside the gap."""
    filled, spectrum = degraded.copy(), spectrum_of(degraded).numpy()
    whole = np.flatnonzero(~gap_frames(degradation.gaps, len(spectrum)))
    magnitude = interpolate.make_interp_spline(whole, np.abs(spectrum[whole]), k=1)(np.arange(len(spectrum)))
    noise = shaped_noise(torch.ones(spectrum.shape), len(filled))
    generated = to_wav(torch.from_numpy(magnitude) * noise / noise.abs(), len(filled)).numpy()
    for first, last in _gap_samples(degradation):
        filled[first:last] = generated[first:last]
    return filled


def _gap_samples(degradation: Degradation) -> Iterator[tuple[int, int]]:
    return ((round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in degradation.gaps)


def fit_ridge(recipe: Recipe, clips: Mapping[str, np.ndarray], seed: int = 0) -> Any:
    """Linear regression of single log-mel frames for one condition, from training clips {track: [samples]}."""
    from sklearn.linear_model import Ridge  # of the extra `report`, which training does not need

    features = [_log_mel(draw(recipe, track, seed).apply(wav, SAMPLE_RATE)) for track, wav in clips.items()]
    targets = [_log_mel(wav) for wav in clips.values()]
    return Ridge(PENALTY).fit(np.concatenate(features), np.concatenate(targets))


def ridge(models: Mapping[str, Any], case: Case, seed: int = 0) -> np.ndarray:
    """Noise with the predicted envelope in the stop band, the input below passband_hz.

    If the degradation added noise, the input is scaled by the predicted mel ratio, clipped to 0..1. `models` are those
    of `fit_ridge`, by condition.
    """
    degraded, done = case.degraded, case.degradation
    spectrum, before = spectrum_of(degraded), _log_mel(degraded)
    after = torch.from_numpy(np.maximum(models[case.condition].predict(before), np.log(LOG_MEL_FLOOR)))
    # Gaussian noise has a mean magnitude of sqrt(pi) / 2 of its rms.
    generated = shaped_noise(torch.exp(envelope(after)) / (np.sqrt(np.pi) / 2), len(degraded))
    if done.noise_type != "none":
        spectrum = spectrum * mel_to_bins(torch.exp(after - torch.from_numpy(before)).clamp(0.0, 1.0))
    return to_wav(join(spectrum, generated, done.edges_hz(SAMPLE_RATE)), len(degraded)).numpy()


def _log_mel(wav: np.ndarray) -> np.ndarray:
    """AudioSR's log-mel `[frames, 256]`, over all frames that hold samples."""
    return (spectrum_of(wav).abs() @ mel_filters().T).clamp(min=LOG_MEL_FLOOR).log().double().numpy()
