"""A recording of any length, from an array or a file, that can be read block by block as often as needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import soxr

from srlib.audio.decoding import BLOCK, PADDING, Decoder, decoders, ends_within_page, limited, local_file
from srlib.audio.tags import Metadata, read_metadata
from srlib.errors import IncompleteWarning, SrlibError, SrlibWarning, input_name

_LOUDEST = 1e15  # full scale is 1
LOWEST_RATE = 1000  # Hz; a telephone has 8000, and a header with less is wrong


@dataclass(frozen=True)
class Recording:
    """`blocks()` starts a pass over float32 `[channels, n]`, which together have `samples` samples a channel."""

    sample_rate: int  # Hz
    channels: int
    samples: int
    blocks: Callable[[], Iterator[np.ndarray]]
    metadata: Metadata = field(default_factory=Metadata)
    warnings: list[str] = field(default_factory=list)
    incomplete: str | None = None  # a sentence on the missing part of a damaged file

    def __post_init__(self) -> None:
        if self.sample_rate < LOWEST_RATE:
            raise SrlibError(f"The sample rate is {self.sample_rate} Hz, below {LOWEST_RATE}: correct the header.")

    def warn(self, path: str | PathLike, note: str) -> None:
        """Keep a note for the findings, and warn of it by the name of the file."""
        self.warnings.append(note)
        warnings.warn(f"{path}: {note}", SrlibWarning, stacklevel=4)

    @classmethod
    def from_array(cls, wav: np.ndarray, sample_rate: int) -> Recording:
        """From floats `[samples]` or `[channels, samples]`; SrlibError for others and for NaN or Inf."""
        rows = as_channels(wav, sample_rate)

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, rows.shape[1], BLOCK):
                yield rows[:, start : start + BLOCK].astype(np.float32)

        return cls(sample_rate, rows.shape[0], rows.shape[1], blocks)

    def samples_at(self, sample_rate: int) -> int:
        """Length after resampling, at least one sample."""
        return max(1, round(self.samples * sample_rate / self.sample_rate))

    def blocks_at(self, sample_rate: int, channels: Sequence[int]) -> Iterator[np.ndarray]:
        """A pass over some channels, resampled as `srlib.audio.files.resample` does the whole."""
        resampler = Resampler(self.sample_rate, sample_rate, len(channels), self.samples_at(sample_rate))
        for block in self.blocks():
            yield resampler.feed(block[list(channels)])
        yield resampler.end()


class Resampler:
    """soxr VHQ for blocks of a stream; the output has `samples` samples in all."""

    def __init__(self, old_rate: int, new_rate: int, channels: int, samples: int) -> None:
        self._channels, self._missing, self._stream = channels, samples, None
        if old_rate != new_rate:
            self._stream = soxr.ResampleStream(old_rate, new_rate, channels, dtype="float32", quality="VHQ")

    def feed(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """Resampled `[channels, m]` that is complete after `block` `[channels, n]`."""
        if self._stream is not None:
            block = self._stream.resample_chunk(np.ascontiguousarray(block.T, np.float32), last=last).T
        block = block[:, : self._missing]
        self._missing -= block.shape[1]
        return block

    def end(self) -> np.ndarray:
        """The rest, padded by the sample that soxr's rounding can lack."""
        rest = self.feed(np.empty((self._channels, 0), np.float32), last=True)
        return np.pad(rest, ((0, 0), (0, self._missing)))


def as_channels(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """`[channels, samples]` of floats `[samples]` or `[channels, samples]`; SrlibError for other input."""
    wav = np.asarray(wav)
    if not np.issubdtype(wav.dtype, np.floating):
        raise SrlibError(f"The audio is {wav.dtype}: give floating point samples in -1..1.")
    if wav.ndim not in (1, 2):
        raise SrlibError(f"The audio has the shape {wav.shape}: give [samples] or [channels, samples].")
    if wav.size == 0:
        raise SrlibError("The audio has no samples: give a file that holds sound.")
    if not sample_rate > 0:
        raise SrlibError(f"The sample rate is {sample_rate}: give a positive number of Hz.")
    check_finite(wav, "The audio")
    return np.atleast_2d(wav)


def check_finite(wav: np.ndarray, name: str, advice: str = "repair it first") -> None:
    """Raise SrlibError, a sentence on `name`, for NaN, Inf and values whose power overflows float32."""
    if wav.size and not max(-wav.min(), wav.max()) < _LOUDEST:  # NaN shows in both extremes
        raise SrlibError(f"{name} holds NaN, Inf or values beyond {_LOUDEST:g}: {advice}.")


@contextmanager
def open_recording(path: str | PathLike, strict: bool = False) -> Iterator[Recording]:
    """The recording in a file, or in standard input (`-`), by the decoder that finds the most samples.

    The file is decoded once to learn its true length, so that faults show before any work. If that is shorter than the
    header says, `incomplete` tells by how much; a file without audio, and NaN or Inf, raise `SrlibError`.
    """
    name = input_name(path)
    with local_file(path) as readable:
        decoder, samples, note = _longest(readable, name)
        if samples == 0:
            raise SrlibError(f"{name} holds no samples: nothing to process.")
        rate, promised, incomplete = decoder.sample_rate, decoder.samples or samples, None
        if 0 < samples - promised < PADDING and decoder.trims:
            samples = promised
        if samples < promised - decoder.slack:
            lost = f"{(promised - samples) / rate:.3f} s of the {promised / rate:.3f} s that its header promises"
            incomplete = f"{name} is truncated or damaged: {lost} are missing"
        elif ends_within_page(readable):
            incomplete = f"{name} is truncated or damaged: it ends within a page of Ogg"
        if incomplete and strict:
            raise SrlibError(f"{incomplete}; get a complete copy.")
        if incomplete:
            warnings.warn(incomplete, IncompleteWarning, stacklevel=3)
        blocks, metadata = lambda: limited(decoder.blocks(), samples), read_metadata(readable)
        recording = Recording(rate, decoder.channels, samples, blocks, metadata, incomplete=incomplete)
        if note:
            recording.warn(name, note)
        yield recording


def _longest(path: Path, name: str) -> tuple[Decoder, int, str | None]:
    """The decoder that gives the most samples, their number, and a note if it is not the first.

    A second one is tried if the first gives less than the header promises.
    """
    counted: list[tuple[int, Decoder]] = []
    for decoder in decoders(path, name):
        samples = 0
        for block in decoder.blocks():
            samples += block.shape[1]
            check_finite(block, name)
        counted.append((samples, decoder))
        if samples >= max(1, decoder.samples or 0):
            break
    samples, best = max(counted, key=lambda pair: pair[0])
    first, decoder = counted[0]
    disagree = first > 0 and samples - first > decoder.slack  # a reader that finds nothing is no opinion
    note = f"one reader finds {first} samples and another {samples}: the longer is taken" if disagree else None
    return best, samples, note
