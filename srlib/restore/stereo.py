"""Several channels, one generation: the model runs on a principal component, and every channel gets its share of it.

Generating each channel by itself would let the random fine structure of one wander against the other's. So what is
above the cutoff is common to all channels, as loud in each as the channel is, against the component, below the cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from srlib.audio.stft import aligned_stft, band_of_hz, frames_of, istft_same, mel_to_bins
from srlib.config import HOP_LENGTH, LOG_MEL_FLOOR, SAMPLE_RATE
from srlib.settings import Gap

_QUIETEST = 1e-20  # peak; below it is nothing that float32 arithmetic could restore
_TIE = 0.05  # weight of the mean of all channels against their own covariance: it decides where that does not
_SMOOTH_FRAMES, _SMOOTH_BANDS = 10.0, 4.0  # standard deviations of the Gaussians that smooth energies
_BELOW_CUTOFF_BANDS = 24  # whose energy stands for what is above the cutoff
_MOST_GAIN = 10.0  # of a channel over the component, which may cancel for a moment


@dataclass(frozen=True)
class Layout:
    """Which channels are restored, and how they are mixed for the model.

    `sources` are the channels that sound and repeat no other; `copies` gives, for each channel, its place among them,
    or None if it is silent; `weights` `[len(sources)]` make the component, their magnitudes add up to one.
    """

    sources: tuple[int, ...]
    copies: tuple[int | None, ...]
    weights: np.ndarray

    def mix(self, wav: torch.Tensor) -> torch.Tensor:
        """The component `[samples]` of the sources `[sources, samples]`."""
        return wav[0] if len(wav) == 1 else torch.from_numpy(self.weights).to(wav) @ wav

    def expand(self, wav: np.ndarray) -> np.ndarray:
        """All channels `[channels, samples]` from the sources' `[sources, samples]`."""
        silence = np.zeros(wav.shape[1], wav.dtype)
        return np.stack([silence if place is None else wav[place] for place in self.copies])


class ChannelSurvey:
    """Levels and covariance of the channels of a recording that comes block by block."""

    def __init__(self, channels: int) -> None:
        self.peaks = np.zeros(channels)
        self._covariance = np.zeros((channels, channels))
        self._equal = {(i, j) for j in range(channels) for i in range(j)}
        self._last = np.zeros((channels, 1))

    def add(self, block: np.ndarray) -> None:
        """Take the next `[channels, samples]`."""
        self.peaks = np.maximum(self.peaks, np.abs(block).max(axis=1))
        self._equal = {(i, j) for i, j in self._equal if np.array_equal(block[i], block[j])}
        if len(block) > 1:
            # Differences: what is next to the cutoff counts, and a channel of bass does not.
            steps = np.diff(block, axis=1, prepend=self._last).astype(np.float64)
            self._covariance += steps @ steps.T
            self._last = block[:, -1:]

    def layout(self) -> Layout:
        """How the channels seen so far are restored."""
        channels = range(len(self.peaks))
        original = [next(i for i in channels if i == channel or (i, channel) in self._equal) for channel in channels]
        sounding = [peak > _QUIETEST for peak in self.peaks]
        sources = tuple(c for c, first in enumerate(original) if first == c and sounding[c])
        copies = tuple(sources.index(first) if sounding[first] else None for first in original)
        return Layout(sources, copies, self._weights(sources))

    def _weights(self, sources: tuple[int, ...]) -> np.ndarray:
        if len(sources) < 2:
            return np.ones(len(sources), np.float32)
        covariance = self._covariance[np.ix_(sources, sources)]
        tie = _TIE * np.trace(covariance) / len(sources) ** 2
        principal = np.linalg.eigh(covariance + tie)[1][:, -1]
        principal *= np.sign(principal[np.argmax(np.abs(principal))])
        return (principal / np.abs(principal).sum()).astype(np.float32)


def level_differences(known: torch.Tensor, known_mix: torch.Tensor, cutoff_hz: float, gaps: list[Gap]) -> torch.Tensor:
    """Log of how much louder each source is than the component, nat, `[sources, frames, 256]`, smooth.

    Args:
        known, known_mix: log-mels of the sources `[sources, frames, 256]` and of their component `[frames, 256]`.
        cutoff_hz: above it the levels just below it are held.
        gaps: seconds in which the levels of the two sides are bridged.
    """
    outside = np.ones(known.shape[1], bool)
    for start, end in gaps:
        outside[max(round(start * SAMPLE_RATE / HOP_LENGTH) - 2, 0) : round(end * SAMPLE_RATE / HOP_LENGTH) + 3] = False
    energies = [_smooth_energy(mel, outside, cutoff_hz) for mel in (known_mix, *known)]
    gains = np.stack([np.sqrt(energy / np.maximum(energies[0], LOG_MEL_FLOOR**2)) for energy in energies[1:]])
    return torch.from_numpy(np.log(np.clip(gains, LOG_MEL_FLOOR, _MOST_GAIN))).float()


def spread(generated: torch.Tensor, differences: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """What was generated for the component, `[samples]`, for each source: `[sources, samples]`.

    `differences` are those of `level_differences`; the sign of each source's weight in the component is its sign.
    """
    gains = torch.exp(differences) * torch.from_numpy(np.sign(weights)).to(differences)[:, None, None]
    frames = frames_of(generated)
    index = torch.arange(frames, device=generated.device).clamp(max=gains.shape[1] - 1)
    in_bins = mel_to_bins(gains.to(generated)[:, index])
    return istft_same(aligned_stft(generated, frames) * in_bins)[:, : len(generated)]


def _smooth_energy(log_mel: torch.Tensor, outside: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """Energy `[frames, 256]` smoothed over time and bands, held above the cutoff and bridged where not `outside`."""
    energy = np.maximum(np.exp(2 * log_mel.cpu().double().numpy()) - (1.01 * LOG_MEL_FLOOR) ** 2, 0.0)
    top = max(band_of_hz(cutoff_hz), 1)
    energy[:, top:] = energy[:, max(top - _BELOW_CUTOFF_BANDS, 0) : top].mean(1, keepdims=True)
    if outside.any() and not outside.all():
        frames = np.arange(len(energy))
        energy = np.apply_along_axis(lambda band: np.interp(frames, frames[outside], band[outside]), 0, energy)
    return ndimage.gaussian_filter(energy, (_SMOOTH_FRAMES, _SMOOTH_BANDS), mode="nearest")
