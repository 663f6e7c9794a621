"""The front end: waveform to log-mel exactly as AudioSR computes it, and mel-band gains back to STFT bins."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from srlib.audio._torchaudio import torchaudio
from srlib.config import F_MAX, F_MIN, FRAME_PAD, HOP_LENGTH, LOG_MEL_FLOOR, N_FFT, N_MELS, SAMPLE_RATE

# Centre and spread of music's log-mels, nat: keeps the networks' activations near unit size.
_CENTRE_NAT, _SPREAD_NAT = -5.0, 3.0
BINS_HZ = np.linspace(0, F_MAX, N_FFT // 2 + 1)
WINDOW_POWER = 3 * N_FFT / 8  # expected power of a bin of white noise of variance one, Hann window


@cache
def mel_filters() -> torch.Tensor:
    """Slaney mel filter bank, area normalised, `[256, 1025]` (librosa's default mel)."""
    bank = torchaudio.functional.melscale_fbanks(
        N_FFT // 2 + 1, F_MIN, F_MAX, N_MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return bank.T.contiguous()


def stft_magnitude(wav: torch.Tensor) -> torch.Tensor:
    """Magnitude STFT of AudioSR's front end: `[batch, samples]` to `[batch, samples // 480, 1025]`."""
    padded = F.pad(wav[:, None], (FRAME_PAD, FRAME_PAD), mode="reflect")[:, 0]
    window = torch.hann_window(N_FFT, device=wav.device)
    spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, N_FFT, window, center=False, return_complex=True)
    return spectrum.abs().transpose(1, 2)


def log_mel(wav: torch.Tensor) -> torch.Tensor:
    """Natural log of the clamped mel magnitude.

    Args:
        wav: `[batch, samples]` or `[samples]`, float32, 48 kHz, at least 785 samples.

    Returns:
        `[batch, 1, frames, 256]` with `frames = samples // 480`, in [-11.51, ~3].
    """
    if wav.ndim == 1:
        wav = wav[None]
    with torch.autocast(wav.device.type, enabled=False):  # half precision would cost 0.05 nat here
        mel = stft_magnitude(wav) @ mel_filters().to(wav.device).T
    return torch.log(torch.clamp(mel, min=LOG_MEL_FLOOR))[:, None]


def normalise(log_mel: torch.Tensor | float) -> torch.Tensor | float:
    """Log-mel in nat to about unit size."""
    return (log_mel - _CENTRE_NAT) / _SPREAD_NAT


@cache
def band_edges_hz() -> np.ndarray:
    """Edges of the mel triangles, Hz, `[258]`: band `b` rises from edge `b`, peaks at `b + 1`, ends at `b + 2`."""
    return _mel_to_hz(np.linspace(_hz_to_mel(F_MIN), _hz_to_mel(F_MAX), N_MELS + 2))


@cache
def band_widths_hz() -> np.ndarray:
    """From edge to edge of the mel triangles, Hz, `[256]`: twice what each stands for, since neighbours overlap."""
    edges = band_edges_hz()
    return edges[2:] - edges[:-2]


@cache
def _bin_interpolation() -> torch.Tensor:
    """`[256, 1025]` weights that interpolate band values linearly between band centres to STFT bins."""
    centres = band_edges_hz()[1:-1]
    bins_hz = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
    identity = np.eye(N_MELS)
    weights = np.stack([np.interp(bins_hz, centres, row) for row in identity])
    return torch.from_numpy(weights.astype(np.float32))


def mel_to_bins(values: torch.Tensor) -> torch.Tensor:
    """Interpolate per-band values (gains or logs) to STFT bins: `[..., 256]` to `[..., 1025]`."""
    with torch.autocast(values.device.type, enabled=False):
        return values @ _bin_interpolation().to(values.device, values.dtype)


def band_of_hz(frequency_hz: float) -> int:
    """Index of the first mel band whose centre lies at or above a frequency in Hz."""
    return int(np.searchsorted(band_edges_hz()[1:-1], frequency_hz))


# Slaney's scale (Auditory Toolbox): linear to 1 kHz, logarithmic above.
_LINEAR_HZ, _BREAK_HZ, _LOG_STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _BREAK_HZ else _BREAK_HZ / _LINEAR_HZ + np.log(hz / _BREAK_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_HZ / _LINEAR_HZ))
    return np.where(mel < _BREAK_HZ / _LINEAR_HZ, mel * _LINEAR_HZ, above)


def stft(wav: torch.Tensor) -> torch.Tensor:
    """Complex STFT `[frames, 1025]` of `[samples]`, no padding."""
    window = torch.hann_window(N_FFT, device=wav.device)
    return torch.stft(wav, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True).transpose(-1, -2)


def istft_same(spectrum: torch.Tensor) -> torch.Tensor:
    """Waveform `[batch, 480 * frames]` of an STFT `[batch, frames, 1025]` framed as the front end frames.

    torch.istft wants centred frames; these start 784 samples before their hop ("same" padding, as in Vocos).
    """
    window = torch.hann_window(N_FFT, device=spectrum.device)
    pieces = torch.fft.irfft(spectrum, n=N_FFT) * window  # (B, T, 2048)
    frames = pieces.shape[1]
    length = (frames - 1) * HOP_LENGTH + N_FFT
    fold = {"output_size": (1, length), "kernel_size": (1, N_FFT), "stride": (1, HOP_LENGTH)}
    wav = F.fold(pieces.transpose(1, 2), **fold)[:, 0, 0]
    weight = F.fold((window**2).expand(1, frames, -1).transpose(1, 2), **fold)[0, 0, 0]
    return wav[:, FRAME_PAD : length - FRAME_PAD] / weight[FRAME_PAD : length - FRAME_PAD].clamp(min=1e-8)


def envelope(log_mel: torch.Tensor) -> torch.Tensor:
    """Log magnitude per STFT bin, `[..., 1025]`, of a flat spectrum that has this log-mel `[..., 256]`.

    The lowest bands are narrower than a bin and some hold none: those take their neighbours' level.
    """
    area = mel_filters().sum(1).to(log_mel.device)
    centres = (mel_filters() > 0).any(1).nonzero()[:, 0].to(log_mel.device)
    level = log_mel[..., centres] - torch.log(area[centres])
    return _interpolate_bands(level, centres)


def _interpolate_bands(level: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    """Spread the levels of the bands that hold a bin to all 256 bands, then to the 1025 bins."""
    every = torch.arange(N_MELS, device=bands.device)
    right = torch.searchsorted(bands, every).clamp(max=len(bands) - 1)
    left = (right - (bands[right] > every).long()).clamp(min=0)
    span = (bands[right] - bands[left]).clamp(min=1)
    share = ((every - bands[left]) / span).clamp(0, 1).to(level.dtype)
    return mel_to_bins(level[..., left] * (1 - share) + level[..., right] * share)


def frames_of(wav: torch.Tensor) -> int:
    """Frames that cover all of `[samples]`."""
    return -(-wav.shape[-1] // HOP_LENGTH) + 1


def aligned_stft(wav: torch.Tensor, frames: int) -> torch.Tensor:
    """STFT `[frames, 1025]` framed as the log-mel, zero-padded at the ends."""
    return stft(F.pad(wav, (FRAME_PAD, frames * HOP_LENGTH + FRAME_PAD - wav.shape[-1])))


def fit_frames(values: torch.Tensor, frames: int) -> torch.Tensor:
    """Cut or repeat the last frame so that `[n, 256]` has `frames` frames."""
    index = torch.arange(frames, device=values.device).clamp(max=len(values) - 1)
    return values[index]
