"""What a restoration would be told of each training pair: band, noise floor and tones, with a detector's errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from srlib.audio.stft import BINS_HZ, WINDOW_POWER, log_mel
from srlib.config import SAMPLE_RATE
from srlib.data.batches import Batch
from srlib.degrade import Degradation, zero_phase_response
from srlib.restore.gaps import Gap, interpolate_gaps
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.observation import Observation, observe

_SEED = 1_000_033  # last part of the seed of what is told, so that the pair itself does not depend on it
# Errors of the detectors (notebook 02): edge by 2 %, width of the transition, level of the noise by half a decibel.
_UNSURE_PROBABILITY, _UNTOLD_PROBABILITY = 0.25, 0.2
_EDGE_ERROR, _WIDTH_ERROR, _LEVEL_ERROR_DB = 0.02, (0.7, 1.4), 0.5
Told = tuple[Band, np.ndarray | None, tuple[float, ...]]  # band, noise floor and tones


@dataclass
class ToldBatch(Batch):
    """A batch with one entry a pair in `bands`, `noise_floors` (powers of STFT bins `[1025]` or None), `tones_hz`."""

    bands: list[Band]
    noise_floors: list[np.ndarray | None]
    tones_hz: list[tuple[float, ...]]

    @property
    def gaps(self) -> list[tuple[Gap, ...]]:
        """Gaps of each pair, s."""
        return [degradation.gaps for degradation in self.degradations]

    def degraded_log_mel(self) -> torch.Tensor:
        """`[batch, 1, frames, 256]`, with gaps bridged as they are in a restoration."""
        rows = zip(log_mel(self.degraded).split(1), self.gaps, strict=True)
        return torch.cat([interpolate_gaps(row, gaps) for row, gaps in rows])

    def observation(self, degraded: torch.Tensor) -> Observation:
        """The observation that the degraded log-mel `[batch, 1, frames, 256]` and the told facts make."""
        return observe(degraded, self.bands, self.noise_floors, self.gaps, self.tones_hz)


def tell(batch: Batch, seeds: Sequence[Sequence[int]], unsure: bool) -> ToldBatch:
    """Add what is told of each pair; `seeds` are those that the pairs were drawn from.

    Args:
        unsure: let some entries err as detectors do; else all are true.
    """
    pairs = zip(seeds, batch.degradations, batch.bandwidth_hz.tolist(), strict=True)
    told = [_told(np.random.default_rng([*seed, _SEED]), change, hz, unsure) for seed, change, hz in pairs]
    bands, floors, tones = (list(values) for values in zip(*told, strict=True))
    return ToldBatch(**vars(batch), bands=bands, noise_floors=floors, tones_hz=tones)


def _told(rng: np.random.Generator, degradation: Degradation, bandwidth_hz: float, unsure: bool) -> Told:
    unsure = unsure and rng.random() < _UNSURE_PROBABILITY
    band = FULL_BAND
    if edges_hz := degradation.edges_hz(SAMPLE_RATE):
        passband_hz, stopband_hz = edges_hz
        factor = np.exp(_EDGE_ERROR * rng.standard_normal()) if unsure else 1.0
        width = (stopband_hz - passband_hz) * (rng.uniform(*_WIDTH_ERROR) if unsure else 1.0)
        band = Band(factor * passband_hz, factor * passband_hz + width)
    if bandwidth_hz < min(band.passband_hz, SAMPLE_RATE / 2):
        band = Band.at(bandwidth_hz)
    floor = None
    if degradation.noise_type == "white" and not (unsure and rng.random() < _UNTOLD_PROBABILITY):
        error = 10 ** (_LEVEL_ERROR_DB * rng.standard_normal() / 10) if unsure else 1.0
        floor = np.full(len(BINS_HZ), error * degradation.noise_amplitude**2 * WINDOW_POWER)
        if degradation.noise_first:
            floor *= zero_phase_response(degradation, BINS_HZ, SAMPLE_RATE) ** 2
    tone_hz = degradation.tone_hz if degradation.noise_type == "tone" and not unsure else None
    return band, floor, () if tone_hz is None else (tone_hz,)
