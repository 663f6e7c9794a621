"""Music for training: tracks decoded once to 16 bits, random crops of them, and a pool of examples."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import fft
from tqdm import tqdm

from srlib.audio.files import write_atomically
from srlib.config import SAMPLE_RATE
from srlib.data.tracks import Track, noted, refuse

POOL_STEPS = 256  # steps during which an example can be drawn again
# Weak augmentation: strong equalisers and changes of speed make treble unpredictable. A prior fitted to music at 1 to
# 1.25 times its speed has an LSD of 1.36 instead of 1.24 at a cutoff of 4 kHz (validation tracks).
_MIXES = (0.6, 0.3, 0.1)  # probability of no, one and two further tracks in a crop
_EQUALISER_NAT, _LOWEST_HZ = 0.25, 50.0  # largest standard deviation of a gain, nat; it is constant below, Hz
Examples = dict[str, torch.Tensor]  # {name: [batch, ...]}


@dataclass
class Corpus:
    """Decoded tracks end to end: `audio` int16 `[samples]`, `starts` `[tracks + 1]`, `bandwidth_hz` `[tracks]`.

    `shares` `[tracks]`: probability that a crop comes from each track.
    """

    audio: np.ndarray
    starts: np.ndarray
    bandwidth_hz: np.ndarray
    names: list[str]
    shares: np.ndarray

    @classmethod
    def build(cls, tracks: Sequence[Track], folder: Path) -> Corpus:
        """Decode `tracks` to a memory map in `folder`, once for each set of tracks.

        Raises:
            SrlibError: naming every track that cannot be decoded.
        """
        stats = [(track, track.path.stat()) for track in tracks]
        files = [(t.split, t.name, t.bandwidth_hz, stat.st_size, stat.st_mtime_ns) for t, stat in stats]
        path = folder / f"corpus-{hashlib.sha256(repr(files).encode()).hexdigest()[:12]}.int16"
        if not path.exists():
            write_atomically(path, lambda part: _decode(tracks, part))  # two runs may start side by side
        lengths = [round(track.seconds * SAMPLE_RATE) for track in tracks]
        bandwidths = np.array([float(track.bandwidth_hz or SAMPLE_RATE / 2) for track in tracks])
        collections = [track.collection or track.name for track in tracks]
        shares = track_shares(lengths, collections, [track.weight for track in tracks])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return cls(np.memmap(path, np.int16, "r"), starts, bandwidths, [track.name for track in tracks], shares)

    def crop(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, float]:
        """A random crop, float32 `[samples]` (short tracks are repeated), and its track's bandwidth in Hz."""
        track = rng.choice(len(self.names), p=self.shares)
        wav = self.audio[self.starts[track] : self.starts[track + 1]]
        start = int(rng.integers(max(1, len(wav) - samples)))
        return np.resize(wav[start : start + samples], samples) / np.float32(32768), float(self.bandwidth_hz[track])

    def middle(self, track: int, samples: int) -> np.ndarray:
        """The middle of a track, float32 `[samples]` or the whole of a shorter one."""
        wav = self.audio[self.starts[track] : self.starts[track + 1]]
        start = max(0, (len(wav) - samples) // 2)
        return wav[start : start + samples] / np.float32(32768)

    def mixed(self, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, float]:
        """One to three crops together, at another level, polarity and colour; the bandwidth is the narrowest's."""
        wav, bandwidth = self.crop(rng, samples)
        for _ in range(rng.choice(len(_MIXES), p=_MIXES)):
            other, other_bandwidth = self.crop(rng, samples)
            wav, bandwidth = wav + rng.uniform(0.3, 1.0) * other, min(bandwidth, other_bandwidth)
        gain = rng.choice([-1.0, 1.0]) * 10 ** (rng.uniform(-12, 3) / 20)
        gain *= min(1.0, 1.0 / (np.abs(gain * wav).max() + 1e-9))
        octaves = np.log2(np.maximum(fft.rfftfreq(samples, 1 / SAMPLE_RATE), _LOWEST_HZ) / _LOWEST_HZ)  # 0 to 8.9
        nodes = rng.uniform(0, _EQUALISER_NAT) * rng.standard_normal(10)  # nat, an octave apart
        coloured = fft.rfft(gain * wav) * np.exp(np.interp(octaves, np.arange(10), nodes))
        return fft.irfft(coloured, samples).astype(np.float32), bandwidth


def track_shares(lengths: Sequence[float], collections: Sequence[str], weights: Sequence[float]) -> np.ndarray:
    """Probability of each track `[tracks]`, from the lengths and the collections (games, albums) of the tracks.

    A collection weighs the fourth root of its length, which its tracks divide by the square roots of theirs, because
    more of the same music teaches less about other music. `weights` multiply the shares.
    """
    members, roots = np.unique(collections, return_inverse=True)[1], np.sqrt(lengths)
    totals, root_totals = np.bincount(members, lengths), np.bincount(members, roots)
    shares = totals[members] ** 0.25 * roots / root_totals[members] * np.asarray(weights)
    return shares / shares.sum()


def _decode(tracks: Iterable[Track], path: Path) -> None:
    faults: list[str] = []
    with path.open("wb") as file:
        for track in tqdm(tracks, "decoding", disable=None):
            with noted(faults):
                file.write((np.clip(track.mixture(), -1, 1) * 32767).round().astype(np.int16).tobytes())
    refuse(faults, "The music cannot be decoded")


def ahead(make: Callable[[int], Examples], steps: Iterable[int], threads: int) -> Iterator[Examples]:
    """`make(step)` of each step in order; `threads` prepare the next steps in the background."""
    pending: deque[Future[Examples]] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for step in steps:
            pending.append(pool.submit(make, step))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def pooled(fresh: Iterable[Examples], first: int, batch_size: int, seed: int) -> Iterator[Examples]:
    """Batches of a few fresh examples and many of the last steps, since making one costs more than a training step.

    Args:
        fresh: the fresh examples of each step from `first` on. The batches are right from `first + POOL_STEPS` on, or
            from the start if `first` is 0.
        batch_size: examples of a batch.
    """
    held: deque[Examples] = deque(maxlen=POOL_STEPS + 1)  # float16, the newest last
    for step, examples in enumerate(fresh, first):
        held.append({name: values.half() for name, values in examples.items()})
        count, rng = len(next(iter(examples.values()))), np.random.default_rng([seed, 2, step])
        ages = rng.integers(min(step, 1), min(POOL_STEPS, step) + 1, size=batch_size - count)
        again = [(held[-1 - min(age, len(held) - 1)], rng.integers(count)) for age in ages.tolist()]
        yield {
            name: torch.cat([values, *(old[name][row : row + 1].to(values) for old, row in again)])
            for name, values in examples.items()
        }
