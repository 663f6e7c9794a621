"""Join what was generated with what was given: AudioSR's replacement, a gain that removes noise, or neither."""

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

# Of the low-pass where the known band ends, where the missing one starts, and how far down its fall is taken back:
# 40 dB below music, 16 bits still hold what was given. Best of 20 to 50 dB on the valid split of the demo set.
_KNOWN_DB, _MISSING_DB, _LOST_DB = -3.0, -20.0, -40.0
_LOST = (_LOST_DB - _KNOWN_DB) / (_MISSING_DB - _KNOWN_DB)  # in ways from the known band to the missing one
_FADE_FROM = 0.95 * _LOST  # from there on what was given is faded out
_MADE_FROM = 0.25  # of the way between: before it what lacks is not generated in full, in the known band not at all
_DOUBT = 2.0  # factor (6 dB) by which the expected level may be wrong


@dataclass(frozen=True)
class Band:
    """What a low-pass left: known up to `passband_hz` (-3 dB), missing from `stopband_hz` on (-20 dB), in Hz.

    What is missing is not lost at once: where nothing else hides it, it can be equalised down to -40 dB.
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
        response = 10 ** ((_KNOWN_DB + (_MISSING_DB - _KNOWN_DB) * position).clamp(max=0) / 20)
        return torch.where(position < _LOST, response, torch.zeros_like(response))

    def kept_share(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Weight of what was given where it can be equalised: 1, and a quarter of a sine down to 0 at -40 dB."""
        return torch.cos(torch.pi / 2 * ((self._position(freqs_hz) - _FADE_FROM) / (_LOST - _FADE_FROM)).clamp(0, 1))

    def missing_share(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """How much of what lacks in power is generated: nothing in the known band, and soon all of it beyond."""
        return (self._position(freqs_hz) / _MADE_FROM).clamp(0, 1)

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

    `replace` takes the degraded spectrum below the cutoff as it is and fades to the generated one. `gain` scales it by
    `gain` `[frames, 1025]` first, and where the low-pass falls it takes the fall back, down to -40 dB. Above that and
    inside `gaps` (seconds) the generated audio is used; `none` is all generated. What is not touched comes back to the
    bit.
    """
    if mode == "none":
        return generated
    if band == FULL_BAND and (mode == "replace" or gain is None):
        return fill_gaps(degraded, generated, gaps)
    length, frames = degraded.shape[-1], frames_of(degraded)
    made, given = (aligned_stft(wav, frames) for wav in (generated, degraded))
    freqs_hz = torch.linspace(0, F_MAX, N_FFT // 2 + 1, device=degraded.device)
    if mode == "replace":
        share = band.generated_share(freqs_hz)
        joined = share * made + (1 - share) * given
    else:
        joined = _equalised(made, given, band, freqs_hz, 1.0 if gain is None else gain)
    # What is not touched is not transformed either: add the difference that the change makes.
    change = istft_same((joined - given)[None])[0, :length]
    return fill_gaps(degraded + change, generated, gaps)


def _equalised(
    made: torch.Tensor, given: torch.Tensor, band: Band, freqs_hz: torch.Tensor, gain: torch.Tensor | float
) -> torch.Tensor:
    """`given` `[frames, 1025]` times `gain` over the low-pass's response, and as much of `made` as lacks in power.

    The inverse goes as far as noise allows and the level of `made` supports: a band whose edge was only guessed may
    have lost nothing there, or all.
    """
    response, known = band.response(freqs_hz), gain * given
    kept = band.kept_share(freqs_hz)
    expected = made.abs().square().mean(0).sqrt() / given.abs().square().mean(0).sqrt().clamp(min=1e-9)
    inverse = torch.minimum(1 / response.clamp(min=10 ** (_LOST_DB / 20)), (_DOUBT * expected).clamp(min=1))
    trust = (_DOUBT * inverse / expected.clamp(min=1e-9)).clamp(max=1) ** 2 * gain
    boost = 1 + trust * (inverse - 1)
    lacking = (1 - (kept * boost * response) ** 2).clamp(min=0).sqrt() * band.missing_share(freqs_hz)
    return kept * boost * known + lacking * made


def scaled(wav: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """`[samples]` with its STFT times `gain` `[frames, 1025]`; as it is without one."""
    if gain is None:
        return wav
    return wav + istft_same(((gain - 1) * aligned_stft(wav, frames_of(wav)))[None])[0, : len(wav)]
