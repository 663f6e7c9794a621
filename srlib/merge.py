"""Join what was generated with what was given: AudioSR's replacement, a gain that removes noise, or neither."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from srlib.config import F_MAX, HOP_LENGTH, LOG_MEL_FLOOR, N_FFT
from srlib.gaps import fill_gaps
from srlib.mel import band_edges_hz, mel_to_bins
from srlib.vocoder import istft_same, stft

MERGES = ("gain", "replace", "none")
_PAD = (N_FFT - HOP_LENGTH) // 2
# A band's level must be off by more than the first (nat) to be touched at all; past the second it is followed fully.
_DEAD_ZONE = (0.1, 0.4)
_FLOOR_QUANTILE, _FLOOR_FACTOR = 0.1, 6.0  # of a band's levels over time; how far in power noise may exceed it
_SILENT_NAT = math.log(LOG_MEL_FLOOR) + 0.1


@dataclass(frozen=True)
class Band:
    """What a low-pass left: known up to `known_hz` (-3 dB), missing from `missing_hz` on (-20 dB), in Hz."""

    known_hz: float
    missing_hz: float

    @classmethod
    def at(cls, cutoff_hz: float) -> Band:
        """The band of a steep filter of which only the cutoff is known."""
        return cls(cutoff_hz, 1.07 * cutoff_hz)

    def generated_share(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Share of the generated audio at each frequency: 0 where known, 1 where missing, a cosine between."""
        position = (freqs_hz - self.known_hz) / max(self.missing_hz - self.known_hz, 1.0)
        return 0.5 - 0.5 * torch.cos(torch.pi * position.clamp(0, 1))


FULL_BAND = Band(F_MAX, F_MAX + 1)


def replace_mel(restored: torch.Tensor, degraded: torch.Tensor, band: Band) -> torch.Tensor:
    """AudioSR's first replacement: the degraded log-mel below the cutoff, the restored one above."""
    below = torch.from_numpy(band_edges_hz()[1:-1] <= band.known_hz).to(restored.device)
    return torch.where(below, degraded, restored)


def noise_gain(restored: torch.Tensor, degraded: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Log gain `[frames, 256]` <= 0 that brings degraded log-mels to the restored ones where there is noise.

    Args:
        restored, degraded: log-mels `[frames, 256]`, nat.
        noisy: `[256]` in [0, 1], how sure it is that a band holds noise; 0 leaves it untouched.
    """
    excess = degraded - restored
    low, high = _DEAD_ZONE
    followed = ((excess - low) / (high - low)).clamp(0, 1)
    # Stationary noise is no louder than a band's quiet frames: a frame far above them holds little of it, whatever
    # the model says. This is the Wiener gain for that floor, as a lower bound.
    sounding = degraded.amax(1) > _SILENT_NAT  # digital silence says nothing of the noise elsewhere
    floor = torch.quantile(degraded[sounding], _FLOOR_QUANTILE, dim=0) if sounding.any() else degraded[0]
    least = 0.5 * torch.log((1 - _FLOOR_FACTOR * torch.exp(2 * (floor - degraded))).clamp(min=1e-4))
    return torch.maximum(-followed * noisy * excess.clamp(min=0), least.clamp(max=0))


def merge(
    generated: torch.Tensor,
    degraded: torch.Tensor,
    band: Band,
    mode: str,
    log_gain: torch.Tensor | None = None,
    gaps: tuple[tuple[float, float], ...] = (),
) -> torch.Tensor:
    """Restored waveform `[samples]` from the generated and the degraded one, both `[samples]` at 48 kHz.

    `replace` takes the degraded spectrum below the cutoff as it is, `gain` scales it by `log_gain` `[frames, 256]`
    first; above the cutoff and inside `gaps` (seconds) the generated audio is used; `none` is all generated.
    """
    if mode == "none":
        return generated
    length = degraded.shape[-1]
    frames = -(-length // HOP_LENGTH) + 1
    spectra = [aligned_stft(wav, frames) for wav in (generated, degraded)]
    share = band.generated_share(torch.linspace(0, F_MAX, N_FFT // 2 + 1, device=degraded.device))
    known = spectra[1]
    if mode == "gain" and log_gain is not None:
        known = known * torch.exp(mel_to_bins(_fit_frames(log_gain, frames)))
    spectrum = share * spectra[0] + (1 - share) * known
    restored = istft_same(spectrum[None])[0, :length]
    # What is not touched is not transformed either: keep the difference that the change makes.
    untouched = istft_same(spectra[1][None])[0, :length]
    return fill_gaps(degraded + (restored - untouched), generated, gaps)


def aligned_stft(wav: torch.Tensor, frames: int) -> torch.Tensor:
    """STFT `[frames, 1025]` framed as the log-mel, zero-padded at the ends."""
    return stft(F.pad(wav, (_PAD, frames * HOP_LENGTH + _PAD - wav.shape[-1])))


def _fit_frames(values: torch.Tensor, frames: int) -> torch.Tensor:
    """Cut or repeat the last frame so that `[n, 256]` has `frames` frames."""
    index = torch.arange(frames, device=values.device).clamp(max=len(values) - 1)
    return values[index]
