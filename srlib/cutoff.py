"""Find where the band of a recording ends, in constant memory: statistics are gathered chunk by chunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE
from srlib.mel import band_edges_hz
from srlib.merge import FULL_BAND, Band
from srlib.vocoder import stft

_PAD = (N_FFT - HOP_LENGTH) // 2
_ROLL_OFF = 0.985  # AudioSR's share of the summed magnitude below the cutoff (audiosr/utils.py:42)


class BandDetector:
    """Where the known band of a recording ends, from its chunks.

    `add` takes each chunk of some seconds and, where a model has one, what its regressor says of it; `result` can be
    asked at any time.
    """

    def __init__(self) -> None:
        self._magnitude = torch.zeros(N_FFT // 2 + 1, dtype=torch.float64)
        self._evidence: list[torch.Tensor] = []

    def add(self, wav: torch.Tensor, evidence: torch.Tensor | None = None) -> None:
        """Take in `[samples]` at 48 kHz, and logits `[3, 256]` (see `RegressorOutput`)."""
        self._magnitude += _summed_magnitude(wav).cpu()
        if evidence is not None:
            self._evidence.append(evidence.detach().cpu())

    def result(self) -> Band:
        """The band of what was added so far; `FULL_BAND` if nothing is missing."""
        if self._evidence:
            return band_from_evidence(torch.stack(self._evidence).mean(0))
        return Band.at(_roll_off(self._magnitude))


def detect_band(wav: torch.Tensor, evidence: torch.Tensor | None = None) -> Band:
    """The band of one chunk `[samples]` at 48 kHz; `evidence` as `BandDetector.add` takes it."""
    detector = BandDetector()
    detector.add(wav, evidence)
    return detector.result()


def band_from_evidence(evidence: torch.Tensor) -> Band:
    """The band that the regressor's evidence `[>= 2, 256]` (logits, see `RegressorOutput`) speaks for.

    The edge is where the expected number of passed bands ends; what reaches 18.5 kHz counts as full band.
    """
    edges = band_edges_hz()
    known, missing = (float(edges[1 + min(round(float(torch.sigmoid(row).sum())), 255)]) for row in evidence[:2])
    if known > 18_500:
        return FULL_BAND
    return Band(known, max(missing, 1.02 * known))


def roll_off_hz(wav: torch.Tensor) -> float:
    """AudioSR's cutoff of `[samples]`: below it lie 98.5 % of the summed STFT magnitudes."""
    return _roll_off(_summed_magnitude(wav))


def _summed_magnitude(wav: torch.Tensor) -> torch.Tensor:
    return stft(F.pad(wav, (_PAD, max(_PAD, N_FFT - _PAD - len(wav))))).abs().sum(0).double()


def _roll_off(magnitude: torch.Tensor) -> float:
    share = magnitude.cumsum(0) / magnitude.sum().clamp(min=1e-12)
    return float((share < _ROLL_OFF).sum()) * SAMPLE_RATE / N_FFT
