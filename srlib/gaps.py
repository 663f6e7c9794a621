"""Gaps: find runs of digital silence in a stream, guess what a spectrogram holds there, and fill the waveform.

A gap is a pair (start, end) in seconds. Nothing here changes a sample outside of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE

Gap = tuple[float, float]

SHORTEST_S, LONGEST_S = 0.02, 0.5  # s; shorter runs are pauses of a waveform near zero, longer ones pauses of the music
_PAD = (N_FFT - HOP_LENGTH) // 2
_SIDE_FRAMES = 3  # averaged on either side of a gap
_FADE = SAMPLE_RATE // 200  # 5 ms


class GapFinder:
    """Runs of digital silence in all channels, of 20 to 500 ms, in a recording that comes block by block.

    Runs at the very start or end do not count: nothing there says that sound was lost.
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
    """Log-mel `[batch, 1, frames, 256]` with straight lines over time across every gap.

    All frames that reach into a gap are replaced, since its edges sound in them; a gap at one end of the recording
    takes the level of its only side. `gaps` count from frame 0.
    """
    frames = log_mel.shape[2]
    known = torch.ones(frames, dtype=torch.bool)
    for start, end in gaps:
        first, last = _frames_reached(start, end)
        known[max(first, 0) : max(last, 0)] = False
    if known.all() or not known.any():
        return log_mel
    filled = log_mel.clone()
    for first, last in _runs(~known):
        left = log_mel[:, :, max(first - _SIDE_FRAMES, 0) : first][:, :, known[max(first - _SIDE_FRAMES, 0) : first]]
        right = log_mel[:, :, last : last + _SIDE_FRAMES][:, :, known[last : last + _SIDE_FRAMES]]
        before, after = (side.mean(2, keepdim=True) if side.shape[2] else None for side in (left, right))
        before, after = (after if before is None else before), (before if after is None else after)
        share = (torch.arange(last - first, device=log_mel.device) + 1) / (last - first + 1)
        filled[:, :, first:last] = torch.lerp(before, after, share[:, None].to(log_mel))
    return filled


def fill_gaps(wav: torch.Tensor, generated: torch.Tensor, gaps: Iterable[Gap]) -> torch.Tensor:
    """`wav` `[samples]` with the generated audio inside the gaps, faded in and out there; the rest is untouched."""
    filled = wav
    for start, end in gaps:
        first, last = max(round(start * SAMPLE_RATE), 0), min(round(end * SAMPLE_RATE), len(wav))
        if last <= first:  # in another chunk
            continue
        position = torch.arange(last - first, device=wav.device)
        to_edge = torch.minimum(position + 1, last - first - position)
        share = (to_edge / min(_FADE, (last - first + 1) // 2)).clamp(max=1)
        filled = filled.clone() if filled is wav else filled
        filled[first:last] = torch.lerp(wav[first:last], generated[first:last], share)
    return filled


def _frames_reached(start: float, end: float) -> tuple[int, int]:
    """Frames [first, last) whose window overlaps a gap; frame t holds samples 480 t - 784 to 480 t + 1264."""
    first = (round(start * SAMPLE_RATE) + _PAD - N_FFT) // HOP_LENGTH + 1
    return first, -(-(round(end * SAMPLE_RATE) + _PAD) // HOP_LENGTH)


def _runs(flags: torch.Tensor) -> Iterator[tuple[int, int]]:
    """(first, last) of every run of true values, last excluded."""
    edges = np.flatnonzero(np.diff(flags.numpy().astype(np.int8), prepend=0, append=0))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
