"""A recording of any length, from an array or a file, that can be read block by block as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import soundfile
import soxr

from srlib.audio.decoding import decoded, truncated, whole
from srlib.audio.files import TAGS, check_finite
from srlib.errors import SrlibError

_BLOCK = 2**17  # samples of each channel


@dataclass(frozen=True)
class Recording:
    """`blocks()` starts a pass over float32 `[channels, n]`, which together have `samples` samples a channel."""

    sample_rate: int  # Hz
    channels: int
    samples: int
    blocks: Callable[[], Iterator[np.ndarray]]
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_array(cls, wav: np.ndarray, sample_rate: int) -> Recording:
        """From floats `[samples]` or `[channels, samples]`; SrlibError for others and for NaN or Inf."""
        rows = as_channels(wav, sample_rate)

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, rows.shape[1], _BLOCK):
                yield rows[:, start : start + _BLOCK].astype(np.float32)

        return cls(sample_rate, *rows.shape, blocks)

    def samples_at(self, sample_rate: int) -> int:
        """Length after resampling, at least one sample."""
        return max(1, round(self.samples * sample_rate / self.sample_rate))

    def blocks_at(self, sample_rate: int, channels: Sequence[int]) -> Iterator[np.ndarray]:
        """A pass over some channels, resampled as `srlib.audio.files.resample` does the whole."""
        chosen = (block[list(channels)] for block in self.blocks())
        if sample_rate == self.sample_rate:
            yield from chosen
            return
        stream = soxr.ResampleStream(self.sample_rate, sample_rate, len(channels), dtype="float32", quality="VHQ")
        missing = self.samples_at(sample_rate)
        for block in chosen:
            resampled = stream.resample_chunk(np.ascontiguousarray(block.T)).T[:, :missing]
            missing -= resampled.shape[1]
            yield resampled
        rest = stream.resample_chunk(np.empty((0, len(channels)), np.float32), last=True).T[:, :missing]
        yield np.pad(rest, ((0, 0), (0, missing - rest.shape[1])))  # soxr's own rounding, a sample at most


def as_channels(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """`[channels, samples]` of floats `[samples]` or `[channels, samples]`; SrlibError for what is no audio."""
    wav = np.asarray(wav)
    if not np.issubdtype(wav.dtype, np.floating):
        raise SrlibError(f"The audio is {wav.dtype}: give floating point samples in -1..1.")
    if wav.ndim not in (1, 2):
        raise SrlibError(f"The audio has the shape {wav.shape}: give [samples] or [channels, samples].")
    if wav.size == 0:
        raise SrlibError("The audio has no samples: give a file that holds sound.")
    if not sample_rate > 0:
        raise SrlibError(f"The sample rate is {sample_rate}: give a positive number of Hz.")
    if not np.isfinite(wav).all():
        raise SrlibError("The audio holds NaN or infinite samples: repair the file first.")
    return np.atleast_2d(wav)


@contextmanager
def open_recording(path: str | PathLike) -> Iterator[Recording]:
    """The recording in a file; errors in it show when it is opened or in the first pass, as `SrlibError`."""
    path = Path(path)
    with decoded(path) as readable:
        with soundfile.SoundFile(readable) as file:
            rate, channels, samples = file.samplerate, file.channels, file.frames
            tags = {name: value for name, value in file.copy_metadata().items() if name in TAGS}
        if samples == 0:
            raise SrlibError(f"{path} holds no samples: nothing to process.")

        def blocks() -> Iterator[np.ndarray]:
            for block in _read_blocks(readable, samples, path):
                check_finite(block, path)
                yield block

        yield Recording(rate, channels, samples, blocks, tags)


def _read_blocks(readable: Path, samples: int, path: Path) -> Iterator[np.ndarray]:
    """Blocks of a file that soundfile reads; `path` is the name it is known by."""
    with soundfile.SoundFile(readable) as file:
        for start in range(0, samples, _BLOCK):
            expected = min(_BLOCK, samples - start)
            try:
                block = file.read(expected, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise truncated(path) from error
            yield whole(block, expected, file, path).T
