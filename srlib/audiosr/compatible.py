"""AudioSR's own processing around its networks, for comparison; `srlib.restore.pipeline` processes differently.

AudioSR filters its input once more before it encodes it, with a family drawn at random, copies the input's low band
over its output twice, and changes the level. Its published results include all of this. Sources:
haoheliu/versatile_audio_super_resolution, audiosr/utils.py, lowpass.py, latent_diffusion/models/ddpm.py.
"""

from __future__ import annotations

import librosa
import numpy as np
import torch
import torchaudio
from scipy import signal

from srlib.audio.recording import as_channels
from srlib.audio.stft import log_mel, stft_magnitude
from srlib.config import LATENT_FACTOR, N_FFT, SAMPLE_RATE
from srlib.errors import SrlibError
from srlib.models import diffusion, vae
from srlib.models.pipeline import LogMelPipeline
from srlib.models.vocoder import vocode

FILTERS = ("butter", "cheby1", "ellip", "bessel")  # the order matters: one is drawn by its index
ROLL_OFF = 0.985  # share of the summed magnitude that lies below the cutoff
_ORDER, _RIPPLE_DB, _STOP_DB = 8, 0.1, 60  # of the low-pass; dB; dB
_UNIT = round(5.12 * SAMPLE_RATE)  # samples; the input is padded to a multiple
_LOWEST_CUTOFF_HZ = 1000  # AudioSR fails below it
_HOP_LENGTH = 512  # samples, of the replacement's STFT: librosa's default
_PEAK = 0.5  # linear, of input and output


def simulate_lowpass(wav: np.ndarray, cutoff_hz: float, filter_type: str) -> np.ndarray:
    """Low-pass `[samples]` at 48 kHz: a zero-phase filter, a resampling to twice the cutoff and back, the filter again.

    `filter_type` is one of `FILTERS`; the cutoff, under 24 kHz, is cut to whole hertz.
    """
    share = int(cutoff_hz) / (SAMPLE_RATE / 2)
    design = {"rp": _RIPPLE_DB, "rs": _STOP_DB, "btype": "lowpass", "ftype": filter_type, "output": "sos"}
    sos = signal.iirfilter(_ORDER, share, **design)
    lower_rate = int(share * SAMPLE_RATE)
    filtered = signal.sosfiltfilt(sos, wav)
    narrow = signal.resample_poly(filtered, lower_rate, SAMPLE_RATE)
    back = signal.resample_poly(narrow, SAMPLE_RATE, lower_rate)[: len(wav)]
    return signal.sosfiltfilt(sos, np.pad(back, (0, len(wav) - len(back)))).astype(np.float32)


def cutoff_index(magnitudes: torch.Tensor | np.ndarray) -> int:
    """AudioSR's cutoff of `[frames, bins]`: the last bin up to which less than 98.5 % of the magnitudes are summed."""
    below = magnitudes.sum(0).cumsum(0)
    return max(int((below < below[-1] * ROLL_OFF).sum()) - 1, 0)


def detect_cutoff_hz(wav: torch.Tensor) -> float:
    """AudioSR's cutoff of `[samples]` at 48 kHz, Hz: about two thirds of the true end of a music spectrum."""
    bins = N_FFT // 2
    return cutoff_index(stft_magnitude(wav[None])[0, :, :bins]) / bins * SAMPLE_RATE / 2


def replace_mel(generated: torch.Tensor, degraded: torch.Tensor) -> torch.Tensor:
    """The generated log-mel with the degraded one below its cutoff, all `[batch, 1, frames, 256]`."""
    replaced = generated.clone()
    for row, known in zip(replaced[:, 0], degraded[:, 0], strict=True):
        cutoff = cutoff_index(known.exp())
        row[:, :cutoff] = known[:, :cutoff]
    return replaced


def replace_waveform(generated: np.ndarray, degraded: np.ndarray) -> np.ndarray:
    """The generated waveform with the degraded one's spectrum below its cutoff, all `[samples]`.

    The copied band is scaled to the generated magnitude in the bin of the cutoff, by a factor of 1/1.2 to 1/0.8.
    """
    known, joined = (librosa.stft(wav, n_fft=N_FFT, hop_length=_HOP_LENGTH) for wav in (degraded, generated))
    cutoff = cutoff_index(np.abs(known).T)
    ratio = np.abs(known[cutoff]).sum() / max(np.abs(joined[cutoff]).sum(), np.finfo(np.float32).tiny)
    joined[:cutoff] = known[:cutoff] / np.clip(ratio, 0.8, 1.2)
    return librosa.istft(joined, hop_length=_HOP_LENGTH, length=len(generated))


@torch.no_grad()
def restore_as_audiosr(
    pipe: LogMelPipeline,
    wav: np.ndarray,
    sample_rate: int,
    num_inference_steps: int = 50,
    guidance_scale: float = 3.5,
    eta: float = 1.0,
    seed: int = 42,
) -> np.ndarray:
    """Restore as AudioSR itself does: `[samples]` float32 at 48 kHz with a peak near 0.5, whatever the input's level.

    On a CPU the random numbers are its own too: filter, posteriors, noise. Memory grows with the square of the length;
    AudioSR was trained on 10.24 s.

    Args:
        pipe: a pipeline of AudioSR's topology, from `srlib.audiosr.checkpoint`.
        wav: `[samples]` or `[channels, samples]`, of which the first channel is taken.

    Raises:
        SrlibError: for a pipeline with a prior, and for audio that AudioSR gives up on (cutoff under 1 kHz).
    """
    if pipe.prior is not None:
        raise SrlibError("This model is not of AudioSR's kind: give one that srlib import-audiosr wrote.")
    first = as_channels(wav, sample_rate)[0]
    audio = torchaudio.functional.resample(torch.from_numpy(first).float(), sample_rate, SAMPLE_RATE).numpy()
    centred = audio - audio.mean()
    padded = np.pad(centred / (np.abs(centred).max() + 1e-8) * _PEAK, (0, -len(audio) % _UNIT))
    cutoff_hz = detect_cutoff_hz(torch.from_numpy(padded))
    if cutoff_hz < _LOWEST_CUTOFF_HZ:
        raise SrlibError(f"AudioSR gives up on this audio: 98.5 % of it lies below {cutoff_hz:.0f} Hz, under 1000 Hz.")
    degraded = simulate_lowpass(padded, cutoff_hz, np.random.RandomState(seed).choice(FILTERS))
    mel = log_mel(torch.from_numpy(degraded).to(pipe.device))
    restored = _generate(pipe, mel, num_inference_steps, guidance_scale, eta, seed)
    generated = vocode(pipe.vocoder, replace_mel(restored, mel))[0].cpu().numpy()
    joined = replace_waveform(generated, degraded)
    joined = joined / np.abs(joined).max() * _PEAK  # the peak includes the padding, as in AudioSR
    return (joined - joined.mean())[: len(audio)]


def _generate(
    pipe: LogMelPipeline, mel: torch.Tensor, steps: int, guidance_scale: float, eta: float, seed: int
) -> torch.Tensor:
    """Log-mel generated from a degraded one, `[1, 1, frames, 256]`, with AudioSR's sequence of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, pipe.vae.config.latent_channels, mel.shape[2] // LATENT_FACTOR, mel.shape[3] // LATENT_FACTOR)
    torch.randn(shape, generator=generator)  # AudioSR first samples the target's posterior, which it does not use
    condition = vae.encode(pipe.vae, mel, generator)
    noise = torch.randn(shape, generator=generator).to(condition)
    added = (torch.randn(shape, generator=generator) for _ in range(steps))
    factor = pipe.vae.config.scaling_factor
    latent = diffusion.denoise(pipe.unet, pipe.scheduler, noise, condition, steps, guidance_scale, factor, eta, added)
    return vae.decode(pipe.vae, latent)
