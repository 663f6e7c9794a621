"""Merge generated and degraded audio: by gains, by AudioSR's replacement, or the generated audio alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from srlib.audio.stft import aligned_stft, band_edges_hz, frames_of, istft_same
from srlib.config import F_MAX, N_FFT, SAMPLE_RATE, Merge
from srlib.config import MERGES as MERGES
from srlib.machine import stage
from srlib.restore.gaps import fill_gaps, without_pre_echo
from srlib.settings import Gap

KNOWN_DB, MISSING_DB = -3.0, -20.0  # gain of a low-pass at the two edges of its transition
LOST = 0.01  # gain (-40 dB) down to which the fall is equalised: 16 bits still hold music there
DOUBT = 2.0  # factor of magnitude (6 dB) by which equalisation may exceed the generated level
# Above the edge of a soft filter (stopband edge over `SOFT` times the passband edge), a level more than `NEAR` (3.5 dB)
# below the generated one counts as attenuated: it is raised by half of the difference beyond `NEAR`, in dB. If it is
# then more than `AUDIBLE` (6 dB) too low, it fades out and generated audio fills in. Tuned on training tracks of the
# demo set.
SOFT, NEAR, AUDIBLE = 1.25, 1.5, 2.0
# Above the edge of a steep filter, and up to `EDGE_ERROR` times that of a soft one, sound may be intact: it is not
# raised, and stays if at most `KEEP` (15.6 dB) too low. Edges are detected in bands of 4.4 %.
EDGE_ERROR, KEEP = 1.05, 6.0
_LEAST_POWER = 1e-18  # of a bin: below it, float32 holds rounding errors
_SMOOTH_BINS = 9, 5  # bins of 23 Hz in a mean level: of generated and of known audio, which may end abruptly


@dataclass(frozen=True)
class Band:
    """Frequency limits (Hz) of a low-pass: `passband_hz` (-3 dB) and `stopband_hz` (-20 dB).

    Args:
        gains: its response in the bins of the STFT, `[1025]`, where known; without them the fall is a straight line in
            dB through the two edges, within 3.5 dB of Butterworth, Chebyshev and elliptic filters.
    """

    passband_hz: float
    stopband_hz: float
    gains: np.ndarray | None = field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, cutoff_hz: float) -> Band:
        """The band of a steep filter of which only the cutoff is known."""
        return cls(cutoff_hz, 1.07 * cutoff_hz)

    def within(self, sample_rate: float) -> Band:
        """The band of a recording at this sample rate, Hz: at most up to its Nyquist frequency."""
        nyquist_hz = sample_rate / 2
        return self if self.passband_hz < nyquist_hz or nyquist_hz >= F_MAX else Band.at(0.95 * nyquist_hz)

    def response(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Gain of the low-pass at each frequency; 0 below `LOST`, where it is not equalised."""
        if self == FULL_BAND:
            return torch.ones_like(freqs_hz)
        if self.gains is not None:
            grid = np.linspace(0, F_MAX, len(self.gains))
            gains = torch.from_numpy(np.interp(freqs_hz.cpu(), grid, self.gains)).to(freqs_hz)
        else:
            gains = 10 ** ((KNOWN_DB + (MISSING_DB - KNOWN_DB) * self._position(freqs_hz)) / 20)
        return torch.where(gains > LOST, gains.clamp(max=1.0), torch.zeros_like(gains))

    def generated_share(self, freqs_hz: torch.Tensor) -> torch.Tensor:
        """Share of the generated audio at each frequency: 0 where known, 1 where missing, a cosine between."""
        return 0.5 - 0.5 * torch.cos(torch.pi * self._position(freqs_hz).clamp(0, 1))

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
    blend: float = 1.0,
) -> torch.Tensor:
    """Restored waveform `[samples]` from the generated and the degraded one, both `[samples]` at 48 kHz.

    Args:
        mode: `replace` takes the degraded spectrum below the cutoff as it is and fades to the generated one. `gain`
            scales the degraded spectrum by `gain`, equalises the fall of the low-pass, and adds generated audio where
            the level is still too low. `none` returns the generated audio.
        gain: `[frames, 1025]`, of `noise_gain`; None changes nothing.
        gaps: seconds, filled with the generated audio.
        blend: factor of the generated audio in the result.

    Samples that no step changes stay bit-equal. Before an onset the silence of the degraded waveform is kept.
    """
    restored = blend * generated
    if mode != "none":
        restored = fill_gaps(_joined(generated, degraded, band, mode, gain, blend), restored, gaps)
    return without_pre_echo(restored, degraded, gaps)


def _joined(
    generated: torch.Tensor, degraded: torch.Tensor, band: Band, mode: Merge, gain: torch.Tensor | None, blend: float
) -> torch.Tensor:
    """The degraded waveform where it is known, and the generated one where it is missing."""
    if band == FULL_BAND and (mode == "replace" or gain is None):
        return degraded
    length, frames = degraded.shape[-1], frames_of(degraded)
    generated_stft, degraded_stft = (aligned_stft(wav, frames) for wav in (generated, degraded))
    freqs_hz = torch.linspace(0, F_MAX, N_FFT // 2 + 1, device=degraded.device)
    if mode == "replace":
        share = band.generated_share(freqs_hz)
        joined = blend * share * generated_stft + (1 - share) * degraded_stft
    else:
        known = degraded_stft if gain is None else gain * degraded_stft
        joined = _equalised(generated_stft, known, band, freqs_hz, blend, clean=gain is None)
    # Only the difference goes through the inverse STFT, so that unchanged samples stay bit-equal.
    return degraded + istft_same((joined - degraded_stft)[None])[0, :length]


def _equalised(
    generated: torch.Tensor, known: torch.Tensor, band: Band, freqs_hz: torch.Tensor, blend: float, clean: bool
) -> torch.Tensor:
    """`known` `[frames, 1025]` divided by the response of the low-pass, plus `generated` for the power still missing.

    Above the edge the response is uncertain, so `clean` audio is also raised towards the generated level. Noisy audio
    is not, because its noise would be raised. The result does not exceed `DOUBT` times that level.
    """
    response = band.response(freqs_hz)
    inverse = torch.where(response > 0, 1 / response.clamp(min=LOST), torch.ones_like(response))
    loudest, usual = (_level(known, order, 1) / _level(generated, order) for order in (2, 0))
    boost = torch.minimum(inverse, (DOUBT / loudest).clamp(min=1))
    above_edge = freqs_hz > band.passband_hz
    audible = torch.ones_like(boost)
    if clean:
        is_soft = band.stopband_hz > SOFT * band.passband_hz
        beyond = (freqs_hz > EDGE_ERROR * band.passband_hz) & is_soft
        boost = torch.where(beyond, torch.maximum(boost, (NEAR * usual) ** -0.5), boost)
        audible = torch.where(beyond, AUDIBLE, KEEP * audible)
    present = torch.where(above_edge, (audible * boost * usual).clamp(max=1), torch.ones_like(boost))
    return present * boost * known + blend * (1 - present**4).sqrt() * generated


def _level(spectrum: torch.Tensor, order: int, width: int = 0) -> torch.Tensor:
    """Level `[1025]` of `[frames, 1025]`, averaged over neighbouring bins: rms for order 2, geometric mean for 0."""
    power = spectrum.abs().square().clamp(min=_LEAST_POWER)
    over_time = power.mean(0) if order else power.log().mean(0).exp()
    half = _SMOOTH_BINS[width] // 2
    padded = F.pad(over_time[None, None], (half, half), mode="replicate")
    return F.avg_pool1d(padded, _SMOOTH_BINS[width], 1)[0, 0].sqrt()


def scaled(wav: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """`[samples]` with its STFT times `gain` `[frames, 1025]`; unchanged if that is None."""
    if gain is None:
        return wav
    return wav + istft_same(((gain - 1) * aligned_stft(wav, frames_of(wav)))[None])[0, : len(wav)]


def above(wav: torch.Tensor, from_hz: float) -> torch.Tensor:
    """`[..., samples]` without frequencies below `from_hz`."""
    spectrum = torch.fft.rfft(wav)
    return torch.fft.irfft(
        spectrum * (torch.fft.rfftfreq(wav.shape[-1], 1 / SAMPLE_RATE) >= from_hz).to(wav), wav.shape[-1]
    )
