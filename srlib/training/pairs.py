"""Pairs for training: seeded crops, their degradation, and the facts that the detectors would find in them.

Each pair is a function of its own seed, so that a resumed training, or several processes, draw the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from srlib.audio.stft import BINS_HZ, WINDOW_POWER, log_mel
from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.data.batches import Corpus
from srlib.degrade import Degradation, DegradationConfig, sample, zero_phase_response
from srlib.restore.gaps import interpolate_gaps
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.observation import Observation, observe

_FULL_BAND_PROBABILITY, _NOISE_FIRST_PROBABILITY = 0.06, 0.15  # no low-pass; white noise before it
_FAINT_PROBABILITY, _FAINT_DECADES = 0.3, (-5.5, -4.0)  # log10 of the amplitude of dither and rounding
# Errors of the detectors (notebook 02), standard deviations: 2 % of the edge, 0.5 dB of the noise. A quarter of the
# pairs have such errors; these have no tone found, and a fifth of them no noise.
_ERROR_PROBABILITY, _MISSED_PROBABILITY = 0.25, 0.2
_EDGE_ERROR, _LEVEL_ERROR_DB = 0.02, 0.5


@dataclass
class Batch:
    """`reference` and `degraded` `[batch, samples]`, the degradation of each, and the facts for its observation.

    Above `bandwidth_hz` `[batch]` the reference is no target. Noise floors are powers of STFT bins `[1025]` or None.
    """

    reference: torch.Tensor
    degraded: torch.Tensor
    bandwidth_hz: torch.Tensor
    degradations: list[Degradation]
    bands: list[Band]
    noise_floors: list[np.ndarray | None]
    tones_hz: list[tuple[float, ...]]

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})

    def degraded_log_mel(self) -> torch.Tensor:
        """`[batch, 1, frames, 256]`, with gaps interpolated as in a restoration."""
        rows = zip(log_mel(self.degraded).split(1), self.degradations, strict=True)
        return torch.cat([interpolate_gaps(row, degradation.gaps) for row, degradation in rows])

    def observation(self, degraded: torch.Tensor) -> Observation:
        """The observation of the degraded log-mel `[batch, 1, frames, 256]`, from the facts of the batch."""
        gaps = [degradation.gaps for degradation in self.degradations]
        return observe(degraded, self.bands, self.noise_floors, gaps, self.tones_hz)


def draw(
    corpus: Corpus, config: DegradationConfig, seeds: Sequence[Sequence[int]], frames: int, augment: bool = True
) -> Batch:
    """A pair of `frames` mel frames for each of `seeds`.

    Args:
        augment: mix crops and change their level, polarity and colour; add full bands, noise before the filter and
            dither; and add the detectors' errors to some facts. Otherwise the crop is unchanged and all facts are true.
    """
    config = replace(config, segment_seconds=frames * HOP_LENGTH / SAMPLE_RATE)
    wavs, facts = [], []
    for rng in map(np.random.default_rng, seeds):
        wav, bandwidth_hz = (corpus.mixed if augment else corpus.crop)(rng, frames * HOP_LENGTH)
        degradation = sample(rng, config)
        if augment and rng.random() < _FULL_BAND_PROBABILITY:
            degradation = replace(degradation, cutoff_hz=None)
        if augment and degradation.noise_type == "white" and rng.random() < _NOISE_FIRST_PROBABILITY:
            degradation = replace(degradation, noise_first=True)
        degraded = degradation.apply(wav, SAMPLE_RATE)
        if augment and rng.random() < _FAINT_PROBABILITY:
            degraded += 10 ** rng.uniform(*_FAINT_DECADES) * rng.standard_normal(len(wav)).astype(np.float32)
        unsure = augment and rng.random() < _ERROR_PROBABILITY
        wavs.append((wav, degraded))
        facts.append((degradation, *_facts(degradation, bandwidth_hz, rng if unsure else None), bandwidth_hz))
    reference, changed = torch.from_numpy(np.stack(wavs, axis=1))
    degradations, bands, floors, tones, bandwidths = (list(values) for values in zip(*facts, strict=True))
    return Batch(reference, changed, torch.tensor(bandwidths), degradations, bands, floors, tones)


def _facts(
    degradation: Degradation, bandwidth_hz: float, errors: np.random.Generator | None
) -> tuple[Band, np.ndarray | None, tuple[float, ...]]:
    """Band, noise floor and tones by the record, with the detectors' errors if `errors` draws them."""
    edge, level, found = 1.0, 1.0, True
    if errors is not None:
        edge = np.exp(_EDGE_ERROR * errors.standard_normal())
        level = 10 ** (_LEVEL_ERROR_DB * errors.standard_normal() / 10)
        found = errors.random() >= _MISSED_PROBABILITY
    band = FULL_BAND
    if edges_hz := degradation.edges_hz(SAMPLE_RATE):
        band = Band(edge * edges_hz[0], edge * edges_hz[1])
    if bandwidth_hz < min(band.passband_hz, SAMPLE_RATE / 2):
        band = Band.at(bandwidth_hz)
    floor = None
    if degradation.noise_type == "white" and found:
        floor = np.full(len(BINS_HZ), level * degradation.noise_amplitude**2 * WINDOW_POWER)
        if degradation.noise_first:
            floor *= zero_phase_response(degradation, BINS_HZ, SAMPLE_RATE) ** 2
    if degradation.noise_type == "tone" and degradation.tone_hz is not None and errors is None:
        return band, floor, (degradation.tone_hz,)
    return band, floor, ()
