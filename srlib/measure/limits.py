"""The limits of restoration: the exact envelope with random fine structure, and the ideal Wiener gain.

All audio is [samples] at 48 kHz.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from scipy import ndimage

from srlib.audio.stft import BINS_HZ, WINDOW_POWER, envelope, mel_filters, mel_to_bins
from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE
from srlib.degrade import Degradation, istft, stft
from srlib.measure.lsd import distance

TINY = 1e-20  # power under any floor, to divide by


def oracle(reference: np.ndarray, degraded: np.ndarray, degradation: Degradation) -> np.ndarray:
    """The true envelope with Gaussian fine structure above the cutoff and in gaps, on power mels with hop 480.

    Below the cutoff the better, per clip by plain LSD up to 19 kHz, of the degraded spectrum as it is and the degraded
    spectrum times the square root of the exact mel power ratio, clipped to 0..1.
    """
    length = len(degraded)
    spectra = [spectrum_of(wav) for wav in (reference, degraded)]
    mel_ref, mel_deg = (np.abs(spectrum) ** 2 @ filters().T for spectrum in spectra)
    generated = shaped_noise(np.exp(bin_levels(np.log(mel_ref + TINY)) / 2), length)
    gain = np.sqrt(to_bins(np.clip((mel_ref + TINY) / (mel_deg + TINY), 0.0, 1.0)))
    candidates = []
    for known in (spectra[1], gain * spectra[1]):
        candidate = to_wav(join(known, generated, *band_of(degradation)), length)
        candidates.append(_fill_gaps(candidate, to_wav(generated, length), degradation.gaps))
    return min(candidates, key=lambda wav: distance(reference, wav))


def ideal_wiener(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """The Wiener gain of the exact powers of signal and noise, smoothed over 3 x 3 cells: no blind gain is better."""
    powers = (np.abs(spectrum_of(wav)) ** 2 for wav in (clean, noisy - clean))
    # The filter's running sums leave rounding errors that may be negative.
    signal, noise = (np.maximum(ndimage.uniform_filter(power, 3, mode="nearest"), 1e-12) for power in powers)
    return to_wav(spectrum_of(noisy) * signal / (signal + noise), len(noisy))


def spectrum_of(wav: np.ndarray) -> np.ndarray:
    """Complex STFT `[frames, 1025]`, hop 480, frames centred on multiples of the hop."""
    return stft(wav.astype(np.float64), N_FFT, HOP_LENGTH)


def to_wav(spectrum: np.ndarray, length: int) -> np.ndarray:
    """Its inverse, float32 `[length]`."""
    return istft(spectrum, length, N_FFT, HOP_LENGTH).astype(np.float32)


@cache
def filters() -> np.ndarray:
    """AudioSR's mel filters, float64 `[256, 1025]`."""
    return mel_filters().double().numpy()


def to_bins(values: np.ndarray) -> np.ndarray:
    """Values of bands `[..., 256]` to STFT bins `[..., 1025]`."""
    return mel_to_bins(torch.from_numpy(values)).numpy()


def bin_levels(log_mel: np.ndarray) -> np.ndarray:
    """Log level of each STFT bin `[..., 1025]` of a flat spectrum with this log-mel `[..., 256]`."""
    return envelope(torch.from_numpy(log_mel)).numpy()


def shaped_noise(amplitude: np.ndarray, length: int) -> np.ndarray:
    """STFT of Gaussian noise, always the same, times an amplitude [frames, bins]; rms 1 where the amplitude is 1."""
    noise = np.random.default_rng((0, 1)).standard_normal(length)  # not the noise of a Degradation of any seed
    return stft(noise, N_FFT, HOP_LENGTH) / np.sqrt(WINDOW_POWER) * amplitude


def join(known: np.ndarray, generated: np.ndarray, f_low: float, f_high: float) -> np.ndarray:
    """`known` below f_low Hz, `generated` above f_high Hz, a power-preserving fade in between."""
    weight = np.clip((f_high - BINS_HZ) / max(f_high - f_low, 1e-9), 0.0, 1.0)
    return weight * known + np.sqrt(1 - weight**2) * generated


def band_of(degradation: Degradation) -> tuple[float, float]:
    """(passband_hz, stopband_hz) in Hz; above every bin without a filter."""
    return degradation.edges_hz(SAMPLE_RATE) or (SAMPLE_RATE, SAMPLE_RATE)


def _fill_gaps(wav: np.ndarray, generated: np.ndarray, gaps: Iterable[tuple[float, float]]) -> np.ndarray:
    """`generated` inside the gaps (start, end in seconds), faded over 10 ms outside them."""
    inside = np.zeros(len(wav))
    for start, end in gaps:
        inside[max(0, round((start - 0.005) * SAMPLE_RATE)) : round((end + 0.005) * SAMPLE_RATE)] = 1.0
    inside = ndimage.uniform_filter1d(inside, SAMPLE_RATE // 100) if gaps else inside
    return ((1 - inside) * wav + inside * generated).astype(np.float32)
