"""The front end: STFT, log-mel exactly as AudioSR computes it, and values of mel bands back to STFT bins."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio

from srlib.config import F_MAX, F_MIN, FRAME_PAD, HOP_LENGTH, LOG_MEL_FLOOR, N_FFT, N_MELS, SAMPLE_RATE

BINS_HZ = np.linspace(0, F_MAX, N_FFT // 2 + 1)  # centre frequencies of the STFT's bins
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
    """Natural log of the clamped mel magnitude, `[batch, 1, samples // 480, 256]`, in [-11.51, ~3].

    `wav` is `[batch, samples]` or `[samples]`, float32, 48 kHz, at least 785 samples.
    """
    wav = torch.atleast_2d(wav)
    with torch.autocast(wav.device.type, enabled=False):  # half precision would cost 0.05 nat here
        mel = stft_magnitude(wav) @ mel_filters().to(wav.device).T
    return torch.log(torch.clamp(mel, min=LOG_MEL_FLOOR))[:, None]


@cache
def band_edges_hz() -> np.ndarray:
    """Edges of the mel triangles, Hz, `[258]`: band `b` rises from edge `b`, peaks at `b + 1`, ends at `b + 2`."""
    # Slaney's scale (Auditory Toolbox, 1998): 15 mels up to 1 kHz, linear; from there 27 mels to each factor of 6.4.
    low = F_MIN * 15 / 1000
    high = 15 + 27 * np.log(F_MAX / 1000) / np.log(6.4)
    mels = np.linspace(low, high, N_MELS + 2)
    return np.where(mels < 15, mels * 1000 / 15, 1000 * 6.4 ** ((mels - 15) / 27))


def band_of_hz(frequency_hz: float) -> int:
    """Index of the first mel band whose centre lies at or above a frequency in Hz."""
    return int(np.searchsorted(band_edges_hz()[1:-1], frequency_hz))


@cache
def _bin_interpolation() -> torch.Tensor:
    """`[256, 1025]` weights that interpolate band values linearly between band centres to STFT bins."""
    centres = band_edges_hz()[1:-1]
    weights = np.stack([np.interp(BINS_HZ, centres, row) for row in np.eye(N_MELS)])
    return torch.from_numpy(weights.astype(np.float32))


def mel_to_bins(values: torch.Tensor) -> torch.Tensor:
    """Interpolate per-band values (gains or logs) to STFT bins: `[..., 256]` to `[..., 1025]`."""
    with torch.autocast(values.device.type, enabled=False):
        return values @ _bin_interpolation().to(values.device, values.dtype)


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
    left, right, share = (values.to(log_mel.device) for values in _neighbours())
    level = log_mel - torch.log(mel_filters().sum(1)).to(log_mel.device)
    return mel_to_bins(level[..., left] * (1 - share) + level[..., right] * share)


@cache
def _neighbours() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each band the nearest bands below and above that hold a bin (or itself), and the share of the upper."""
    every, holding = torch.arange(N_MELS), (mel_filters() > 0).any(1).nonzero()[:, 0]
    after = torch.searchsorted(holding, every).clamp(max=len(holding) - 1)
    before = (after - (holding[after] > every).long()).clamp(min=0)
    left, right = holding[before], holding[after]
    return left, right, ((every - left) / (right - left).clamp(min=1)).clamp(0, 1)


def frames_of(wav: torch.Tensor) -> int:
    """Number of frames that cover all of `[samples]`."""
    return -(-wav.shape[-1] // HOP_LENGTH) + 1


def aligned_stft(wav: torch.Tensor, frames: int) -> torch.Tensor:
    """STFT `[frames, 1025]` framed as the log-mel; the ends are reflected, since zeros would be an edge."""
    return stft(wav[reflected(len(wav), -FRAME_PAD, frames * HOP_LENGTH + FRAME_PAD).to(wav.device)])


def reflected(samples: int, start: int, stop: int) -> torch.Tensor:
    """Indices from `start` to `stop` into a signal of some samples, reflected at its ends as often as needed."""
    last = max(samples - 1, 1)
    return (last - (torch.arange(start, stop) % (2 * last) - last).abs()).clamp(max=samples - 1)
