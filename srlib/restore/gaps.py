"""Gaps: find runs of digital silence in a stream, interpolate a log-mel over them, and fill the waveform.

A gap is a pair (start, end) in seconds. Nothing here changes a sample outside of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from scipy import linalg, ndimage, signal

from srlib.config import FRAME_PAD, HOP_LENGTH, N_FFT, SAMPLE_RATE
from srlib.settings import Gap

SHORTEST_S, LONGEST_S = 0.02, 0.5  # s; shorter runs are a waveform near zero, longer ones pauses of the music
# The constants below are the best of a grid on the valid split of the demo set, by LSD inside gaps of 50 to 500 ms.
_REACH_FRAMES = 64  # frames on either side from which a gap in the log-mel is interpolated
_HELD, _AHEAD = 72, 1440  # samples before and after a moment: 1.5 ms, 30 ms
_SILENT = 1e-3  # largest amplitude of silence, relative to the peak of the next 30 ms
FADE = 1200  # samples, 25 ms at either edge
_PAST, _ORDER = 7200, 1000  # samples (150 ms) before an edge, and coefficients of the prediction from them


class GapFinder:
    """Runs of digital silence in all channels, of 20 to 500 ms, in a recording that comes block by block.

    Runs at the start and at the end do not count: silence there is usual, and no sign of lost sound.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._samples = 0
        self._silent_since: int | None = 0  # first sample of the run that is still going on
        self._gaps: list[Gap] = []

    def add(self, block: np.ndarray) -> None:
        """Take the next `[channels, samples]` (or `[samples]`)."""
        silent = ~np.atleast_2d(block).any(axis=0)
        changes = np.flatnonzero(np.diff(silent, prepend=self._silent_since is not None))
        for change in changes + self._samples:
            if self._silent_since is None:
                self._silent_since = int(change)
            else:
                self._close(int(change))
        self._samples += silent.size

    def result(self) -> list[Gap]:
        """(start, end) in seconds of every gap found so far, in order."""
        return list(self._gaps)

    def _close(self, end: int) -> None:
        start, self._silent_since = self._silent_since, None
        if start and SHORTEST_S * self._rate <= end - start <= LONGEST_S * self._rate:
            self._gaps.append((start / self._rate, end / self._rate))


def interpolate_gaps(log_mel: torch.Tensor, gaps: Iterable[Gap]) -> torch.Tensor:
    """Log-mel `[batch, 1, frames, 256]` with every gap interpolated: each frame a weighted mean of those around it.

    Frames weigh by the inverse square of their distance: near an edge the level of that edge, in the middle a mean of
    both sides. All frames whose window overlaps a gap are replaced, since its edges are clicks. A gap at one end of
    the recording has frames on one side only. `gaps` count from frame 0.
    """
    frames = log_mel.shape[2]
    known = ~gap_frames(gaps, frames)
    if known.all() or not known.any():
        return log_mel
    filled = log_mel.clone()
    for first, last in _runs(~known):
        near = np.arange(max(first - _REACH_FRAMES, 0), min(last + _REACH_FRAMES, frames))
        near = near[known[near]] if known[near].any() else np.flatnonzero(known)
        weights = 1.0 / (np.arange(first, last)[:, None] - near) ** 2
        shares = torch.from_numpy(weights / weights.sum(1, keepdims=True)).to(log_mel)
        filled[:, :, first:last] = shares @ log_mel[:, :, near]
    return filled


def gap_frames(gaps: Iterable[Gap], frames: int) -> np.ndarray:
    """`[frames]`, True for frames whose window overlaps a gap; frame t holds samples 480 t - 784 to 480 t + 1264."""
    first_sample = HOP_LENGTH * np.arange(frames) - FRAME_PAD
    spans = ((round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in gaps)
    overlaps = [(first_sample < last) & (first_sample + N_FFT > first) for first, last in spans]
    return np.any(overlaps, axis=0) if overlaps else np.zeros(frames, bool)


def fill_gaps(wav: torch.Tensor, generated: torch.Tensor, gaps: Iterable[Gap]) -> torch.Tensor:
    """`wav` `[samples]` with the generated audio inside the gaps; samples outside stay bit-equal.

    At both edges the sound outside is extrapolated by linear prediction and cross-faded with the generated audio,
    whose phase is unrelated.
    """
    lost = _inside(gaps, len(wav))
    if not lost.any():
        return wav
    spans = list(_runs(lost))  # gaps that touch are one
    filled, source = wav.cpu().numpy().astype(np.float64), generated.cpu().numpy().astype(np.float64)
    edges = [0, *itertools.chain(*spans), len(wav)]
    for (first, last), before, after in zip(spans, edges[:-2:2], edges[3::2], strict=True):
        inside, fade = source[first:last].copy(), min(FADE, last - first)
        share = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / fade)
        for into, sound in ((inside, filled[before:first]), (inside[::-1], filled[last:after][::-1])):
            into[:fade] = share * into[:fade] + share[::-1] * _extrapolated(sound, fade)
        filled[first:last] = inside
    return torch.from_numpy(filled).to(wav)


def without_pre_echo(restored: torch.Tensor, degraded: torch.Tensor, gaps: Iterable[Gap]) -> torch.Tensor:
    """`restored` `[samples]`, but `degraded` where that is silent before an onset: a frame of 43 ms would ring there.

    Silent is 60 dB below the next 30 ms. Gaps keep `restored`.
    """
    loudness = np.abs(degraded.cpu().numpy())
    past = ndimage.maximum_filter1d(loudness, _HELD, origin=_HELD // 2 - 1, mode="constant")
    future = ndimage.maximum_filter1d(loudness, _AHEAD, origin=-(_AHEAD // 2), mode="constant")
    silent = (past < _SILENT * future) & ~_inside(gaps, len(degraded))
    return torch.where(torch.from_numpy(silent).to(restored.device), degraded, restored) if silent.any() else restored


def _extrapolated(sound: np.ndarray, samples: int) -> np.ndarray:
    """Linear prediction of the samples after `sound`; silence if that is too short or silent."""
    sound = sound[-_PAST:]
    order = min(_ORDER, len(sound) // 3)
    if order < 2 or not sound.any():
        return np.zeros(samples)
    correlation = signal.correlate(sound, sound, "full", "fft")[len(sound) - 1 :][: order + 1]
    correlation[0] *= 1 + 1e-9
    coefficients = np.r_[1.0, linalg.solve_toeplitz(correlation[:-1], -correlation[1:])]
    state = signal.lfiltic([1.0], coefficients, sound[::-1][:order])
    return signal.lfilter([1.0], coefficients, np.zeros(samples), zi=state)[0]


def _inside(gaps: Iterable[Gap], samples: int) -> np.ndarray:
    """`[samples]`, True inside gaps."""
    inside = np.zeros(samples, bool)
    for start, end in gaps:
        inside[max(round(start * SAMPLE_RATE), 0) : max(round(end * SAMPLE_RATE), 0)] = True
    return inside


def _runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of every run of true values, last excluded."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def sounding(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """`[samples]`, False in runs of 20 ms or more of digital silence, where nothing can be measured."""
    sounds = np.ones(len(wav), bool)
    for first, last in _runs(wav == 0):
        sounds[first:last] = last - first < SHORTEST_S * sample_rate
    return sounds
