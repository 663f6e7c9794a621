"""Join what was generated with what was given: AudioSR's replacement, a gain that removes noise, or neither."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from srlib.config import F_MAX, FRAME_PAD, HOP_LENGTH, N_FFT
from srlib.gaps import Gap, fill_gaps
from srlib.mel import band_edges_hz
from srlib.stopwatch import stage
from srlib.vocoder import istft_same, stft

MERGES = ("gain", "replace", "none")


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


@stage("merge")
def merge(
    generated: torch.Tensor,
    degraded: torch.Tensor,
    band: Band,
    mode: str,
    gain: torch.Tensor | None = None,
    gaps: Iterable[Gap] = (),
) -> torch.Tensor:
    """Restored waveform `[samples]` from the generated and the degraded one, both `[samples]` at 48 kHz.

    `replace` takes the degraded spectrum below the cutoff as it is, `gain` scales it by `gain` `[frames, 1025]` first;
    above the cutoff and inside `gaps` (seconds) the generated audio is used; `none` is all generated. What is not
    touched comes back to the bit.
    """
    if mode == "none":
        return generated
    if band == FULL_BAND and (mode == "replace" or gain is None):
        return fill_gaps(degraded, generated, gaps)
    length, frames = degraded.shape[-1], frames_of(degraded)
    made, given = (aligned_stft(wav, frames) for wav in (generated, degraded))
    share = band.generated_share(torch.linspace(0, F_MAX, N_FFT // 2 + 1, device=degraded.device))
    known = given * gain if mode == "gain" and gain is not None else given
    # What is not touched is not transformed either: add the difference that the change makes.
    change = istft_same((share * made + (1 - share) * known - given)[None])[0, :length]
    return fill_gaps(degraded + change, generated, gaps)


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
