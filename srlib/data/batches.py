"""Pairs for training: audio decoded once to 16-bit samples, seeded crops, augmentation, degradation, and a pool of them.

Each pair is a function of its own seed: training that resumes draws the same data, and so do several processes that
share a batch.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy import fft
from tqdm import tqdm

from srlib.audio.files import write_atomically
from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.data.tracks import Track, refuse
from srlib.degrade import Degradation, DegradationConfig, sample
from srlib.errors import SrlibError

# Gentle augmentation: strong equalisers and other speeds teach that treble is anyone's guess. A prior fitted to music
# at 1 to 1.25 times its speed scores an LSD of 1.36 instead of 1.24 at 4 kHz (validation tracks).
_MIXES = (0.6, 0.3, 0.1)  # probability of no, one and two further tracks in a crop
_EQUALISER_NAT = 0.25  # largest rms gain
_FULL_BAND_PROBABILITY, _NOISE_FIRST_PROBABILITY = 0.06, 0.15
_FAINT_PROBABILITY, _FAINT_DECADES = 0.3, (-5.5, -4.0)  # amplitude of dither and rounding, powers of ten
Examples = dict[str, torch.Tensor]  # {name: [batch, ...]}


@dataclass
class Corpus:
    """Decoded tracks end to end: `audio` int16 `[samples]`, `starts` `[tracks + 1]`, `bandwidth_hz` `[tracks]`.

    `shares` `[tracks]`: how often crops come from each of them.
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

    def limited_to(self, hours: float, seed: int) -> Corpus:
        """The same corpus of which only some random tracks are drawn, as many as last so long together."""
        lengths, order = np.diff(self.starts), np.random.default_rng([seed, 3]).permutation(len(self.names))
        before = lengths[order].cumsum() - lengths[order]
        kept = np.isin(np.arange(len(order)), order[before < hours * 3600 * SAMPLE_RATE])
        return replace(self, shares=self.shares * kept / self.shares[kept].sum())


def track_shares(lengths: Sequence[float], collections: Sequence[str], weights: Sequence[float]) -> np.ndarray:
    """How often to draw each track `[tracks]`, from their lengths and the collections (games, albums) they are of.

    A collection counts by the fourth root of its length, and its tracks share that by the roots of theirs: more of the
    same music teaches less about other music. `weights` multiply the shares.
    """
    members, roots = np.unique(collections, return_inverse=True)[1], np.sqrt(lengths)
    totals, root_totals = np.bincount(members, lengths), np.bincount(members, roots)
    shares = totals[members] ** 0.25 * roots / root_totals[members] * np.asarray(weights)
    return shares / shares.sum()


def _decode(tracks: Iterable[Track], path: Path) -> None:
    faults = []
    with path.open("wb") as file:
        for track in tqdm(tracks, "decoding", disable=None):
            try:
                wav = track.mixture()
            except SrlibError as error:
                faults.append(str(error))
            else:
                file.write((np.clip(wav, -1, 1) * 32767).round().astype(np.int16).tobytes())
    refuse(faults, "The music cannot be decoded")


@dataclass
class Batch:
    """`reference` and `degraded` `[batch, samples]`, and what was done to each.

    `bandwidth_hz` `[batch]`: above it the reference is no target.
    """

    reference: torch.Tensor
    degraded: torch.Tensor
    bandwidth_hz: torch.Tensor
    degradations: list[Degradation]

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


def draw(
    corpus: Corpus,
    config: DegradationConfig,
    seeds: Sequence[Sequence[int]],
    frames: int,
    augment: bool = True,
) -> Batch:
    """A pair of `frames` mel frames for each of `seeds`."""
    config = replace(config, segment_seconds=frames * HOP_LENGTH / SAMPLE_RATE)
    rows = []
    for rng in map(np.random.default_rng, seeds):
        wav, bandwidth = (_augmented if augment else Corpus.crop)(corpus, rng, frames * HOP_LENGTH)
        degradation = sample(rng, config)
        if augment and rng.random() < _FULL_BAND_PROBABILITY:
            degradation = replace(degradation, cutoff_hz=None)
        if augment and degradation.noise_type == "white" and rng.random() < _NOISE_FIRST_PROBABILITY:
            degradation = replace(degradation, noise_first=True)
        degraded = degradation.apply(wav, SAMPLE_RATE)
        if augment and rng.random() < _FAINT_PROBABILITY:
            degraded += 10 ** rng.uniform(*_FAINT_DECADES) * rng.standard_normal(len(wav)).astype(np.float32)
        rows.append((wav, degraded, bandwidth, degradation))
    references, degraded, bandwidths, degradations = zip(*rows, strict=True)
    reference, changed = (torch.from_numpy(np.stack(wavs)) for wavs in (references, degraded))
    return Batch(reference, changed, torch.tensor(bandwidths), list(degradations))


def _augmented(corpus: Corpus, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, float]:
    """One to three crops together, at another level, polarity and colour; the bandwidth is the narrowest's."""
    wav, bandwidth = corpus.crop(rng, samples)
    for _ in range(rng.choice(len(_MIXES), p=_MIXES)):
        other, other_bandwidth = corpus.crop(rng, samples)
        wav, bandwidth = wav + rng.uniform(0.3, 1.0) * other, min(bandwidth, other_bandwidth)
    gain = rng.choice([-1.0, 1.0]) * 10 ** (rng.uniform(-12, 3) / 20)
    gain *= min(1.0, 1.0 / (np.abs(gain * wav).max() + 1e-9))
    spectrum = fft.rfft(gain * wav)
    curve = np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, 4097), _equaliser(rng))
    return fft.irfft(spectrum * curve, samples).astype(np.float32), bandwidth


def _equaliser(rng: np.random.Generator) -> np.ndarray:
    """A smooth random gain `[4097]` over frequency, of up to 0.25 nat (2 dB) rms: four cosines over octaves."""
    octaves = np.log2(np.maximum(np.linspace(0, SAMPLE_RATE / 2, 4097), 50) / 50) / 9  # 0 to 1
    waves = np.cos(np.pi * (np.arange(1, 5)[:, None] * octaves + rng.uniform(0, 2, (4, 1))))
    curve = rng.standard_normal(4) / np.arange(1, 5) @ waves
    return np.exp(rng.uniform(0, _EQUALISER_NAT) * curve / max(curve.std(), 0.1))


def ahead(make: Callable[[int], Examples], steps: Iterable[int], threads: int) -> Iterator[Examples]:
    """`make(step)` of each step in order; `threads` make those of the next steps meanwhile."""
    pending: deque[Future[Examples]] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for step in steps:
            pending.append(pool.submit(make, step))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def pooled(fresh: Iterable[Examples], first: int, batch_size: int, reach: int, seed: int) -> Iterator[Examples]:
    """Batches of a few fresh examples and many of the last steps': to make one costs more than to train on it.

    Args:
        fresh: the fresh examples of each step from `first` on. The batches are right from `first + reach` on, or from
            the start if `first` is 0.
        batch_size: examples of a batch.
        reach: how many steps long an example can be drawn again.
    """
    held: deque[Examples] = deque(maxlen=reach + 1)  # in half precision, the newest last
    for step, examples in enumerate(fresh, first):
        held.append({name: values.half() for name, values in examples.items()})
        count, rng = len(next(iter(examples.values()))), np.random.default_rng([seed, 2, step])
        ages = rng.integers(min(step, 1), min(reach, step) + 1, size=batch_size - count)
        again = [(held[-1 - min(age, len(held) - 1)], rng.integers(count)) for age in ages.tolist()]
        yield {
            name: torch.cat([values, *(old[name][row : row + 1].to(values) for old, row in again)])
            for name, values in examples.items()
        }
