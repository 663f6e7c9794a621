"""Join generated and degraded audio: AudioSR's replacement, a gain that removes noise, or neither."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from srlib.audio.stft import aligned_stft, band_edges_hz, frames_of, istft_same
from srlib.config import F_MAX, N_FFT, Merge
from srlib.config import MERGES as MERGES
from srlib.machine import stage
from srlib.restore.gaps import fill_gaps
from srlib.settings import Gap

# Gain of the low-pass where the known band ends, where the missing one starts, and down to which its fall is taken
# back: 40 dB below music, 16 bits still hold degraded audio. Best of 20 to 50 dB on the valid split of the demo set.
KNOWN_DB, MISSING_DB, LOST_DB = -3.0, -20.0, -40.0
# Positions between the edges, 0 at the passband's and 1 at the stopband's:
_LOST = (LOST_DB - KNOWN_DB) / (MISSING_DB - KNOWN_DB)  # nothing degraded is used from here on
_FADE_FROM = 0.95 * _LOST  # the degraded audio is faded out from here on
FULL_FROM = 0.25  # all that lacks in power is generated from here on, nothing of it at the passband's edge
DOUBT = 2.0  # factor of magnitude (6 dB) by which the expected level may be wrong


@dataclass(frozen=True)
class Band:
    """What a low-pass left: known up to `passband_hz` (-3 dB), missing from `stopband_hz` on (-20 dB), in Hz.

    Between the edges and down to -40 dB the fall can be equalised where noise does not hide the music.
    """

    passband_hz: float
    stopband_hz: float

    @classmethod
    def at(cls, cutoff_hz: float) -> Band:
        """The band of a steep filter of which only the cutoff is known."""
        return cls(cutoff_hz, 1.07 * cutoff_hz)

    def generated_share(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Share of the generated audio at each frequency: 0 where known, 1 where missing, a cosine between."""
        return 0.5 - 0.5 * torch.cos(torch.pi * self._position(freqs_hz).clamp(0, 1))

    def response(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Gain of the low-pass at each frequency: a straight line in dB, continued from 0 dB to -40 dB, 0 beyond.

        Within 3.5 dB of Butterworth, Chebyshev and elliptic filters down to -20 dB. Beyond, these fall faster: by a few
        decibels at low cutoffs and by tens near half the sampling rate: there less is taken back than was taken.
        """
        if self == FULL_BAND:
            return torch.ones_like(freqs_hz)
        position = self._position(freqs_hz)
        response = 10 ** ((KNOWN_DB + (MISSING_DB - KNOWN_DB) * position).clamp(max=0) / 20)
        return torch.where(position < _LOST, response, torch.zeros_like(response))

    def kept_share(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Weight of the degraded audio: 1 where it can be equalised, and a quarter of a cosine down to 0 at -40 dB."""
        return torch.cos(torch.pi / 2 * ((self._position(freqs_hz) - _FADE_FROM) / (_LOST - _FADE_FROM)).clamp(0, 1))

    def missing_share(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Share of the lacking power that is generated: 0 in the known band, 1 from a quarter of the transition on."""
        return (self._position(freqs_hz) / FULL_FROM).clamp(0, 1)

    def _position(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        return (freqs_hz - self.passband_hz) / max(self.stopband_hz - self.passband_hz, 1.0)


FULL_BAND = Band(F_MAX, F_MAX + 1)


def replace_mel(restored: torch.Tensor, degraded: torch.Tensor, band: Band) -> torch.Tensor:
    """AudioSR's first replacement: the degraded log-mel below the cutoff, the restored one above."""
    below = torch.from_numpy(band_edges_hz()[1:-1] <= band.passband_hz).to(restored.device)
    return torch.where(below, degraded, restored)


@stage("merge")
def merge(
    generated: torch.Tensor,
    degraded: torch.Tensor,
    band: Band,
    mode: Merge,
    gain: torch.Tensor | None = None,
    gaps: Iterable[Gap] = (),
) -> torch.Tensor:
    """Restored waveform `[samples]` from the generated and the degraded one, both `[samples]` at 48 kHz.

    Args:
        mode: `replace` takes the degraded spectrum below the cutoff as it is and fades to the generated one. `gain`
            scales the degraded spectrum by `gain`, takes the fall of the low-pass back down to -40 dB, and uses the
            generated spectrum above that. `none` returns the generated audio.
        gain: `[frames, 1025]`, of `noise_gain`; None changes nothing.
        gaps: seconds, filled with the generated audio.

    Samples that no step changes come back to the bit.
    """
    if mode == "none":
        return generated
    if band == FULL_BAND and (mode == "replace" or gain is None):
        return fill_gaps(degraded, generated, gaps)
    length, frames = degraded.shape[-1], frames_of(degraded)
    generated_stft, degraded_stft = (aligned_stft(wav, frames) for wav in (generated, degraded))
    freqs_hz = torch.linspace(0, F_MAX, N_FFT // 2 + 1, device=degraded.device)
    if mode == "replace":
        share = band.generated_share(freqs_hz)
        joined = share * generated_stft + (1 - share) * degraded_stft
    else:
        joined = _equalised(generated_stft, degraded_stft, band, freqs_hz, 1.0 if gain is None else gain)
    # Only the change goes through the inverse STFT: where there is none, the samples stay as they are.
    change = istft_same((joined - degraded_stft)[None])[0, :length]
    return fill_gaps(degraded + change, generated, gaps)


def _equalised(
    generated: torch.Tensor, degraded: torch.Tensor, band: Band, freqs_hz: torch.Tensor, gain: torch.Tensor | float
) -> torch.Tensor:
    """`degraded` `[frames, 1025]` times `gain` over the low-pass's response, and the lacking power from `generated`.

    The inverse response is limited by the noise and by the level of `generated`, since the true filter is unknown: a
    band whose edge was guessed may have lost nothing between its edges, or everything.
    """
    response, known = band.response(freqs_hz), gain * degraded
    kept = band.kept_share(freqs_hz)
    expected = generated.abs().square().mean(0).sqrt() / degraded.abs().square().mean(0).sqrt().clamp(min=1e-9)
    inverse = torch.minimum(1 / response.clamp(min=10 ** (LOST_DB / 20)), (DOUBT * expected).clamp(min=1))
    trust = (DOUBT * inverse / expected.clamp(min=1e-9)).clamp(max=1) ** 2 * gain
    boost = 1 + trust * (inverse - 1)
    lacking = (1 - (kept * boost * response) ** 2).clamp(min=0).sqrt() * band.missing_share(freqs_hz)
    return kept * boost * known + lacking * generated


def scaled(wav: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """`[samples]` with its STFT times `gain` `[frames, 1025]`; as it is without one."""
    if gain is None:
        return wav
    return wav + istft_same(((gain - 1) * aligned_stft(wav, frames_of(wav)))[None])[0, : len(wav)]
