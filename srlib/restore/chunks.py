"""Cut a recording into chunks with context, and join the restored chunks without seams.

Frames are those of the log-mel, 100 a second, counted from the start of the recording. Random and periodic signals
depend on that position and not on the chunk, so that two chunks agree where they overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from srlib.config import HOP_LENGTH, LATENT_FACTOR, N_MELS, SAMPLE_RATE, UNIT_FRAMES
from srlib.settings import Gap

CHUNK_FRAMES = 1024  # frames that the model restores at once, 10.24 s: the length that AudioSR was trained on
CONTEXT_FRAMES = 64  # frames at either end of a chunk, whose result is discarded
FADE = 16 * HOP_LENGTH  # samples: a cross-fade of 0.16 s centred on an edge


@dataclass(frozen=True)
class Chunk:
    """Frames `start` to `stop`; the output takes it from frame `keep_from` on."""

    start: int
    stop: int
    keep_from: int

    def local(self, gaps: Iterable[Gap]) -> list[Gap]:
        """The gaps (s) that touch the chunk, counted from its start."""
        origin, length = self.start * HOP_LENGTH, (self.stop - self.start) * HOP_LENGTH
        samples = ((round(start * SAMPLE_RATE) - origin, round(end * SAMPLE_RATE) - origin) for start, end in gaps)
        return [(first / SAMPLE_RATE, last / SAMPLE_RATE) for first, last in samples if first < length and last > 0]


def plan(samples: int) -> list[Chunk]:
    """Chunks that cover `samples` at 48 kHz, in order."""
    frames = -(-samples // (UNIT_FRAMES * HOP_LENGTH)) * UNIT_FRAMES
    chunks: list[Chunk] = []
    start = keep_from = 0
    while (stop := start + CHUNK_FRAMES) < frames:
        chunks.append(Chunk(start, stop, keep_from))
        keep_from = stop - CONTEXT_FRAMES
        start = keep_from - CONTEXT_FRAMES
    return [*chunks, Chunk(max(frames - CHUNK_FRAMES, 0), frames, keep_from)]


def cut(blocks: Iterable[np.ndarray], chunks: Iterable[Chunk]) -> Iterator[np.ndarray]:
    """The `[channels, samples]` of each chunk from a stream of such blocks; the last one ends with the recording."""
    stream = iter(blocks)
    held, origin = next(stream), 0
    for chunk in chunks:
        first, last = chunk.start * HOP_LENGTH, chunk.stop * HOP_LENGTH
        pieces = [held[:, first - origin :]]
        origin = first
        while sum(piece.shape[1] for piece in pieces) < last - first:
            if (block := next(stream, None)) is None:
                break
            pieces.append(block)
        held = np.concatenate(pieces, axis=1)
        yield held[:, : last - first]


def join(chunks: Sequence[Chunk], pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Turn the `[..., samples]` of every chunk into consecutive parts of the recording, cross-faded at the edges."""
    share = (np.arange(FADE, dtype=np.float32) + 0.5) / FADE
    tail = None
    for chunk, following, piece in zip(chunks, (*chunks[1:], None), pieces, strict=True):
        first, last = 0, piece.shape[-1]
        if tail is not None:
            first = (chunk.keep_from - chunk.start) * HOP_LENGTH - FADE // 2
            faded = piece[..., first : first + FADE]
            # Both sides are coherent, so they fade in amplitude; equal samples stay bit-equal.
            piece = np.concatenate([tail + share * (faded - tail), piece[..., first + FADE :]], axis=-1)
            last -= first
        if following is not None:
            last = (following.keep_from - chunk.start) * HOP_LENGTH - FADE // 2 - first
            tail = piece[..., last : last + FADE]
        yield piece[..., :last]


class PositionalNoise:
    """The sampler's Gaussian noise, drawn in units of 64 frames from the start of the recording on."""

    def __init__(self, samples: int, channels: int, generator: torch.Generator) -> None:
        self._shape = (samples, channels, UNIT_FRAMES // LATENT_FACTOR, N_MELS // LATENT_FACTOR)
        self._generator = generator
        self._units: dict[int, torch.Tensor] = {}
        self._drawn = 0

    def of(self, chunk: Chunk) -> torch.Tensor:
        """`[samples, channels, frames / 8, 32]` of a chunk; chunks have to come in order."""
        units = range(chunk.start // UNIT_FRAMES, chunk.stop // UNIT_FRAMES)
        while self._drawn < units.stop:
            device = self._generator.device
            self._units[self._drawn] = torch.randn(self._shape, generator=self._generator, device=device)
            self._drawn += 1
        self._units = {unit: self._units[unit] for unit in units}
        return torch.cat(list(self._units.values()), dim=2)
