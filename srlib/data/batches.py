"""Pairs for training: audio decoded once to 16-bit samples, seeded crops, augmentation and degradation in one FFT.

A zero-phase filter multiplies the spectrum by |H(f)|^2, so filters of every family and order and the random tilt of a
batch cost one real FFT and its inverses, on the device of the model.
Each pair is a function of its own seed: training that resumes draws the same data, and so do several processes that
share a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from srlib.audio.files import write_atomically, write_text
from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.degrade import Degradation, DegradationConfig, sample, zero_phase_response
from srlib.errors import SrlibError

_MARGIN = 4096  # samples dropped at both ends, where the circular convolution wraps
_RESPONSE_POINTS = 4097  # of a filter's response, interpolated to the bins of the FFT
# Gentle augmentation: strong equalisers and other speeds teach that treble is anyone's guess. A prior fitted to music
# at 1 to 1.25 times its speed scores an LSD of 1.36 instead of 1.24 at 4 kHz (validation tracks).
_MIXES = (0.6, 0.3, 0.1)  # probability of no, one and two further tracks in a crop
_EQUALISER_NAT = 0.25
_FULL_BAND_PROBABILITY, _NOISE_FIRST_PROBABILITY = 0.06, 0.15
_FAINT_PROBABILITY, _FAINT_DECADES = 0.3, (-5.5, -4.0)  # amplitude of dither and rounding, powers of ten


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
    def build(cls, tracks: Iterable, folder: Path) -> Corpus:
        """Decode `tracks` (see `srlib.data.tracks.Track`) to a memory map in `folder`, once for each set of tracks."""
        tracks = list(tracks)
        if not tracks:
            raise SrlibError("There are no tracks to train on: check the data folder and its split.")
        files = [(t.split, t.name, t.bandwidth_hz, t.path.stat().st_size, t.path.stat().st_mtime_ns) for t in tracks]
        key = hashlib.sha256(repr(files).encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        path, index = folder / f"corpus-{key}.int16", folder / f"corpus-{key}.json"
        if not index.exists():
            lengths = _decode(tracks, path)
            bandwidths = [float(t.bandwidth_hz or SAMPLE_RATE / 2) for t in tracks]
            names = [t.name for t in tracks]
            text = json.dumps({"lengths": lengths, "bandwidth_hz": bandwidths, "names": names})
            write_text(index, text)
        record = json.loads(index.read_text())
        starts = np.concatenate([[0], np.cumsum(record["lengths"])])
        audio = np.memmap(path, dtype=np.int16, mode="r")
        shares = track_shares(record["lengths"], [t.collection or t.name for t in tracks], [t.weight for t in tracks])
        return cls(audio, starts, np.array(record["bandwidth_hz"]), record["names"], shares)

    def crop(self, rng: np.random.Generator, samples: int, track: int | None = None) -> tuple[np.ndarray, float]:
        """A random crop, float32 `[samples]` (short tracks are repeated), and its track's bandwidth in Hz.

        Without a track one is drawn by the shares.
        """
        lengths = np.diff(self.starts)
        if track is None:
            track = rng.choice(len(lengths), p=self.shares)
        start = int(rng.integers(max(1, lengths[track] - samples)))
        piece = self.audio[self.starts[track] :][start : min(start + samples, lengths[track])]
        return np.resize(piece, samples).astype(np.float32) / 32768, float(self.bandwidth_hz[track])

    def limited_to(self, hours: float, seed: int) -> Corpus:
        """The same corpus of which only some random tracks are drawn, as many as last so long together."""
        lengths, order = np.diff(self.starts), np.random.default_rng([seed, 3]).permutation(len(self.names))
        before = np.concatenate([[0], lengths[order].cumsum()[:-1]])
        kept = np.zeros(len(order), bool)
        kept[order[before < hours * 3600 * SAMPLE_RATE]] = True
        shares = self.shares * kept
        return replace(self, shares=shares / shares.sum())

    def steps_an_epoch(self, batch_size: int) -> int:
        """Batches in which every track that is drawn from comes once."""
        return -(-np.count_nonzero(self.shares) // batch_size)

    def tracks_of_step(self, seed: int, step: int, batch_size: int) -> list[int]:
        """The tracks of a batch where every epoch visits each track once, in an order of its own."""
        epoch, part = divmod(step, self.steps_an_epoch(batch_size))
        order = np.random.default_rng([seed, 1, epoch]).permutation(np.flatnonzero(self.shares))
        return order[part * batch_size : (part + 1) * batch_size].tolist()

    def middle(self, track: int, samples: int) -> np.ndarray:
        """The middle of a track, float32 `[samples]` or the whole of a shorter one."""
        wav = self.audio[self.starts[track] : self.starts[track + 1]]
        start = max(0, (len(wav) - samples) // 2)
        return wav[start : start + samples].astype(np.float32) / 32768


def track_shares(
    lengths: Sequence[float], collections: Sequence[str], weights: Sequence[float] | float = 1.0
) -> np.ndarray:
    """How often to draw each track `[tracks]`, from their lengths and the collections (games, albums) they are of.

    A collection counts by the fourth root of its length and shares that among its tracks by the roots of theirs: more
    of the same music teaches less about other music.
    `weights` multiply the shares.
    """
    lengths, members = np.asarray(lengths, dtype=float), np.unique(np.asarray(collections), return_inverse=True)[1]
    roots = np.sqrt(lengths)
    totals, root_totals = np.bincount(members, lengths), np.bincount(members, roots)
    shares = totals[members] ** 0.25 * roots / root_totals[members] * np.asarray(weights)
    return shares / shares.sum()


def _decode(tracks: list, path: Path) -> list[int]:
    lengths = []

    def decode(partial: Path) -> None:
        with partial.open("wb") as file:
            for track in tracks:
                wav = track.mixture()
                file.write((np.clip(wav, -1, 1) * 32767).round().astype(np.int16).tobytes())
                lengths.append(len(wav))

    write_atomically(path, decode)  # two runs may start side by side
    return lengths


Examples = dict[str, torch.Tensor]  # {name: [batch, ...]}
Draw = Callable[[int], Examples]  # of a step


@dataclass
class Batch:
    """`reference` and `degraded` `[batch, samples]` on the device, and what was done to each.

    `bandwidth_hz` `[batch]`: above it the reference is no target.
    """

    reference: torch.Tensor
    degraded: torch.Tensor
    bandwidth_hz: torch.Tensor
    degradations: list[Degradation]


def draw(
    corpus: Corpus,
    config: DegradationConfig,
    seeds: Sequence[Sequence[int]],
    frames: int,
    device: torch.device | str = "cpu",
    augment: bool = True,
    tracks: Sequence[int] | None = None,
) -> Batch:
    """A pair of `frames` mel frames for each of `seeds`, of random tracks or of the given ones."""
    samples = frames * HOP_LENGTH
    length = samples + 2 * _MARGIN
    config = replace(config, segment_seconds=samples / SAMPLE_RATE)
    rngs = [np.random.default_rng(seed) for seed in seeds]
    crops, bandwidths, shapes, degradations = [], [], [], []
    for rng, track in zip(rngs, tracks or [None] * len(rngs), strict=True):
        wav, bandwidth = corpus.crop(rng, length, track) if not augment else _augmented(corpus, rng, length, track)
        crops.append(wav)
        bandwidths.append(bandwidth)
        shapes.append(_equaliser(rng) if augment else np.ones(_RESPONSE_POINTS))
        degradation = sample(rng, config)
        if augment and rng.random() < _FULL_BAND_PROBABILITY:
            degradation = replace(degradation, cutoff_hz=None)
        if augment and degradation.noise_type == "white" and rng.random() < _NOISE_FIRST_PROBABILITY:
            degradation = replace(degradation, noise_first=True)
        degradations.append(degradation)
    reference, degraded = _filter(np.stack(crops), np.stack(shapes), degradations, device)
    for wav, rng, degradation in zip(degraded, rngs, degradations, strict=True):
        _add_noise_and_gaps(wav, degradation, samples)
        if augment and rng.random() < _FAINT_PROBABILITY:
            faint = 10 ** rng.uniform(*_FAINT_DECADES)
            wav += faint * torch.from_numpy(rng.standard_normal(samples).astype(np.float32)).to(device)
    return Batch(reference, degraded, torch.tensor(bandwidths, device=device), degradations)


class Prefetcher:
    """Examples by step, drawn ahead by threads; they depend on the step alone, so nothing changes but the wait."""

    def __init__(self, draw: Draw, threads: int) -> None:
        self.draw, self.threads = draw, threads
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._pending: dict[int, Future[Examples]] = {}

    def __call__(self, step: int) -> Examples:
        if self._pool is None:
            return self.draw(step)
        for ahead in range(step, step + self.threads + 1):
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(self.draw, ahead)
        return self._pending.pop(step).result()

    def close(self) -> None:
        """Forget what nobody will ask for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class ExamplePool:
    """Batches of a few fresh examples and many of the last steps': to make one costs more than to train on it.

    Which examples a step sees depends on (seed, step) alone: a run that resumes makes those anew that it needs.

    Args:
        draw: the fresh examples of a step, `{name: [fresh, ...]}`; `ahead` gives the same, perhaps drawn already.
        batch_size: examples of a batch.
        steps: how many steps long an example can be drawn again.
    """

    def __init__(self, draw: Draw, ahead: Draw, batch_size: int, steps: int, seed: int) -> None:
        self.draw, self.ahead, self.batch_size, self.steps, self.seed = draw, ahead, batch_size, steps, seed
        self._held: dict[int, Examples] = {}

    def __call__(self, step: int) -> Examples:
        """The batch of a step."""
        fresh = self.ahead(step)
        count = len(next(iter(fresh.values())))
        if count >= self.batch_size or not self.steps:
            return fresh
        self._held[step] = {name: values.half() for name, values in fresh.items()}
        rng = np.random.default_rng([self.seed, 2, step])
        ages = rng.integers(min(step, 1), min(self.steps, step) + 1, size=self.batch_size - count)
        again = [(self._made(step - age), int(rng.integers(count))) for age in ages.tolist()]
        self._held.pop(step - self.steps, None)
        return {
            name: torch.cat([values, *(examples[name][row : row + 1].to(values) for examples, row in again)])
            for name, values in fresh.items()
        }

    def _made(self, step: int) -> Examples:
        if step not in self._held:
            self._held[step] = {name: values.half() for name, values in self.draw(step).items()}
        return self._held[step]


def _augmented(corpus: Corpus, rng: np.random.Generator, length: int, track: int | None) -> tuple[np.ndarray, float]:
    """Music that nobody made: one to three crops together, at another level and polarity."""
    wav, bandwidth = corpus.crop(rng, length, track)
    for _ in range(rng.choice(len(_MIXES), p=_MIXES)):
        other, other_bandwidth = corpus.crop(rng, length)
        wav, bandwidth = wav + rng.uniform(0.3, 1.0) * other, min(bandwidth, other_bandwidth)
    gain = rng.choice([-1.0, 1.0]) * 10 ** (rng.uniform(-12, 3) / 20)
    gain *= min(1.0, 1.0 / (np.abs(gain * wav).max() + 1e-9))
    return (gain * wav).astype(np.float32), bandwidth


def _equaliser(rng: np.random.Generator) -> np.ndarray:
    """A smooth random gain `[4097]` over frequency, of up to 0.25 nat (2 dB) rms."""
    octaves = np.log2(np.maximum(np.linspace(0, SAMPLE_RATE / 2, _RESPONSE_POINTS), 50) / 50) / 9  # 0 to 1
    waves = np.cos(np.pi * (np.arange(1, 5)[:, None] * octaves + rng.uniform(0, 2, (4, 1))))
    curve = rng.standard_normal(4) / np.arange(1, 5) @ waves
    return np.exp(rng.uniform(0, _EQUALISER_NAT) * curve / max(curve.std(), 0.1))


def _filter(
    wav: np.ndarray, shapes: np.ndarray, degradations: list[Degradation], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference and filtered music `[batch, samples]`; noise that comes before the filter is filtered with it."""
    freqs_hz = np.linspace(0, SAMPLE_RATE / 2, _RESPONSE_POINTS)
    responses = np.stack([zero_phase_response(d, freqs_hz, SAMPLE_RATE) for d in degradations])
    length = wav.shape[1]
    spectrum = torch.fft.rfft(torch.from_numpy(wav).to(device)) * _to_bins(shapes, length, device)
    noisy = spectrum
    if any(degradation.noise_first for degradation in degradations):
        noise = np.stack([_noise(d, length) if d.noise_first else np.zeros(length, np.float32) for d in degradations])
        noisy = spectrum + torch.fft.rfft(torch.from_numpy(noise).to(device))
    filtered = noisy * _to_bins(responses, length, device)
    inner = slice(_MARGIN, length - _MARGIN)
    return torch.fft.irfft(spectrum, length)[:, inner], torch.fft.irfft(filtered, length)[:, inner].contiguous()


def _noise(degradation: Degradation, samples: int) -> np.ndarray:
    noise = np.random.default_rng(degradation.seed).standard_normal(samples)  # drawn as float32 it is another one
    return (degradation.noise_amplitude * noise).astype(np.float32)


def _to_bins(responses: np.ndarray, length: int, device: torch.device | str) -> torch.Tensor:
    values = torch.from_numpy(responses.astype(np.float32)).to(device)
    return torch.nn.functional.interpolate(values[:, None], length // 2 + 1, mode="linear", align_corners=True)[:, 0]


def _add_noise_and_gaps(wav: torch.Tensor, degradation: Degradation, samples: int) -> None:
    """Add the noise and cut the gaps of one crop `[samples]`, in place, as `Degradation.apply` defines them."""
    if degradation.noise_type == "white" and not degradation.noise_first:
        wav += torch.from_numpy(_noise(degradation, samples)).to(wav.device)
    elif degradation.noise_type == "tone":
        time = torch.arange(samples, device=wav.device, dtype=torch.float64) / SAMPLE_RATE
        phase = 2 * np.pi * degradation.tone_hz * time + degradation.tone_phase
        wav += (degradation.noise_amplitude * torch.sin(phase)).float()
    for start, end in degradation.gaps:
        wav[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = 0
