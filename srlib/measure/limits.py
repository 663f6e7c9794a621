"""The limits of restoration: the exact spectral envelope with random fine structure, and the ideal Wiener gain.

All audio is [samples] float32 at 48 kHz; spectra are those of the front end, with hop 480.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from srlib.audio import stft
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.measure.lsd import PLAIN, lsd
from srlib.restore.gaps import fill_gaps

TINY = 1e-20  # power that is added before a division or a logarithm


def oracle(reference: np.ndarray, degraded: np.ndarray, degradation: Degradation) -> np.ndarray:
    """The true envelope, on power mels, with Gaussian fine structure above the cutoff and in gaps.

    Below the cutoff there are two candidates: the degraded spectrum, and the degraded spectrum times the square root of
    the exact mel power ratio, clipped to 0..1. The one with the lower plain LSD up to 19 kHz is returned.
    """
    spectra = [spectrum_of(wav) for wav in (reference, degraded)]
    mel_ref, mel_deg = (spectrum.abs() ** 2 @ stft.mel_filters().T + TINY for spectrum in spectra)
    generated = shaped_noise(torch.exp(stft.envelope(mel_ref.log()) / 2), len(degraded))
    gain = stft.mel_to_bins((mel_ref / mel_deg).clamp(0.0, 1.0)).sqrt()
    candidates = []
    for known in (spectra[1], gain * spectra[1]):
        joined = to_wav(join(known, generated, degradation.edges_hz(SAMPLE_RATE)), len(degraded))
        candidates.append(fill_gaps(joined, to_wav(generated, len(degraded)), degradation.gaps).numpy())
    return min(candidates, key=lambda wav: lsd(reference, wav, convention=PLAIN))


def ideal_wiener(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """The Wiener gain of the exact powers of signal and noise, smoothed over 3 x 3 cells: no blind gain is better."""
    powers = (spectrum_of(wav).abs().double().numpy() ** 2 for wav in (clean, noisy - clean))
    # The filter's running sums leave rounding errors that may be negative.
    signal, noise = (np.maximum(ndimage.uniform_filter(power, 3, mode="nearest"), 1e-12) for power in powers)
    return to_wav(spectrum_of(noisy) * torch.from_numpy(signal / (signal + noise)), len(noisy)).numpy()


def spectrum_of(wav: np.ndarray) -> torch.Tensor:
    """Complex STFT `[frames, 1025]` of the front end, over all of the samples."""
    tensor = torch.from_numpy(wav)
    return stft.aligned_stft(tensor, stft.frames_of(tensor))


def to_wav(spectrum: torch.Tensor, length: int) -> torch.Tensor:
    """Inverse of `spectrum_of`, float32 `[length]`."""
    return stft.istft_same(spectrum[None])[0, :length].float()


def shaped_noise(amplitude: torch.Tensor, length: int) -> torch.Tensor:
    """STFT of Gaussian noise, always the same, times an amplitude [frames, bins]; rms 1 where the amplitude is 1."""
    noise = np.random.default_rng((0, 1)).standard_normal(length)  # differs from the noise of every Degradation
    return spectrum_of(noise.astype(np.float32)) / stft.WINDOW_POWER**0.5 * amplitude


def join(known: torch.Tensor, generated: torch.Tensor, edges_hz: tuple[float, float] | None) -> torch.Tensor:
    """`known` below the first edge, `generated` above the second, a power-preserving fade in between; None: known."""
    if edges_hz is None:
        return known
    f_low, f_high = edges_hz
    weight = torch.from_numpy(np.clip((f_high - stft.BINS_HZ) / max(f_high - f_low, 1e-9), 0.0, 1.0))
    return weight * known + (1 - weight**2).sqrt() * generated
