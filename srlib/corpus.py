"""Training input: audio decoded once to 16-bit samples, seeded crops, augmentation and degradation in one FFT.

A zero-phase filter multiplies the spectrum by |H(f)|^2, so filters of every family and order and the random tilt of a
batch cost one real FFT and its inverses, on the device of the model.
Everything random in a batch is a function of (seed, step): training that resumes draws the same data.
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

from srlib.artifacts import write_atomically, write_text
from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.degrade import Degradation, DegradationConfig, sample, zero_phase_response
from srlib.errors import SrlibError
from srlib.gaps import interpolate_gaps
from srlib.mel import band_edges_hz, log_mel

_MARGIN = 4096  # samples dropped at both ends, where the circular convolution wraps
_RESPONSE_POINTS = 4097  # of a filter's response, interpolated to the bins of the FFT
_MIX_PROBABILITY, _TILT_PROBABILITY, _FULL_BAND_PROBABILITY = 0.15, 0.5, 0.06
PASSED = 10 ** (-3 / 20)  # gain of the filter from which a band is known


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

    @property
    def seconds(self) -> float:
        """Length of all tracks, s."""
        return float(self.starts[-1]) / SAMPLE_RATE

    @classmethod
    def build(cls, tracks: Iterable, folder: Path) -> Corpus:
        """Decode `tracks` (see `srlib.data.Track`) to a memory map in `folder`, once for each set of tracks."""
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

    def steps_an_epoch(self, batch_size: int) -> int:
        """Batches in which every track comes once."""
        return -(-len(self.names) // batch_size)

    def tracks_of_step(self, seed: int, step: int, batch_size: int) -> list[int]:
        """The tracks of a batch where every epoch visits each track once, in an order of its own."""
        epoch, part = divmod(step, self.steps_an_epoch(batch_size))
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(self.names))
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


@dataclass
class Batch:
    """`reference`, `filtered` (before noise and gaps) and `degraded` `[batch, samples]` on the device.

    `bandwidth_hz` `[batch]`: above it the reference is no target. `response` `[batch, 256]`: the filter's gain at
    the centres of the mel bands.
    """

    reference: torch.Tensor
    filtered: torch.Tensor
    degraded: torch.Tensor
    bandwidth_hz: torch.Tensor
    response: torch.Tensor
    degradations: list[Degradation]

    @property
    def known_bands(self) -> torch.Tensor:
        """Number of mel bands `[batch]` that the filter passes and the reference has."""
        centres = torch.from_numpy(band_edges_hz()[1:-1]).to(self.bandwidth_hz)
        return ((self.response > PASSED) & (centres[None] <= self.bandwidth_hz[:, None])).sum(1)

    def degraded_log_mel(self) -> torch.Tensor:
        """`[batch, 1, frames, 256]`, with gaps bridged as they are in a restoration."""
        degraded = log_mel(self.degraded)
        for row, degradation in enumerate(self.degradations):
            degraded[row : row + 1] = interpolate_gaps(degraded[row : row + 1], degradation.gaps)
        return degraded


def draw(
    corpus: Corpus,
    config: DegradationConfig,
    rng: np.random.Generator,
    batch_size: int,
    frames: int,
    device: torch.device | str = "cpu",
    augment: bool = True,
    tracks: Sequence[int] | None = None,
) -> Batch:
    """Draw a batch of crops of `frames` mel frames with their degradations, one of each of `tracks` if they are given.

    Noise is added behind the filter: a configuration that asks for noise first is refused.

    A drawn batch is on the device already; nothing in here waits for it.
    """
    if config.noise_first:
        raise SrlibError("Training adds noise behind the filter: leave noise_first out of its degradations.")
    samples = frames * HOP_LENGTH
    length = samples + 2 * _MARGIN
    crops, bandwidths, shapes, degradations = [], [], [], []
    for track in tracks if tracks is not None else [None] * batch_size:
        wav, bandwidth = corpus.crop(rng, length, track)
        shape = np.ones(_RESPONSE_POINTS)
        if augment:
            wav, bandwidth, shape = _augment(corpus, rng, wav, bandwidth)
        crops.append(wav)
        bandwidths.append(bandwidth)
        shapes.append(shape)
        degradation = sample(rng, replace(config, segment_seconds=samples / SAMPLE_RATE))
        full_band = rng.random() < _FULL_BAND_PROBABILITY
        degradations.append(replace(degradation, cutoff_hz=None) if full_band and augment else degradation)
    reference, filtered = _filter(np.stack(crops), np.stack(shapes), degradations, device)
    degraded = filtered.clone()
    for row, degradation in enumerate(degradations):
        _add_noise_and_gaps(degraded[row], degradation, samples)
    centres_hz = band_edges_hz()[1:-1]
    response = np.stack([zero_phase_response(d, centres_hz, SAMPLE_RATE) for d in degradations])
    response = torch.from_numpy(response.astype(np.float32)).to(device)
    return Batch(reference, filtered, degraded, torch.tensor(bandwidths, device=device), response, degradations)


class Prefetcher:
    """Batches by step, drawn ahead by threads; a batch depends on its step alone, so nothing changes but the wait."""

    def __init__(self, draw: Callable[[int], Batch], threads: int) -> None:
        self.draw, self.threads = draw, threads
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._pending: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
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


def _augment(
    corpus: Corpus, rng: np.random.Generator, wav: np.ndarray, bandwidth: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """Mix with a second track, change polarity, level and tilt."""
    if rng.random() < _MIX_PROBABILITY:
        other, other_bandwidth = corpus.crop(rng, len(wav))
        wav = wav + rng.uniform(0.3, 1.0) * other
        bandwidth = min(bandwidth, other_bandwidth)
    gain = rng.choice([-1.0, 1.0]) * 10 ** (rng.uniform(-12, 3) / 20)
    gain *= min(1.0, 1.0 / (np.abs(gain * wav).max() + 1e-9))
    freqs_hz = np.linspace(0, SAMPLE_RATE / 2, _RESPONSE_POINTS)
    tilt_db = rng.uniform(-2, 2) * (rng.random() < _TILT_PROBABILITY)  # dB an octave around 1 kHz
    shape = 10 ** (tilt_db * np.log2(np.maximum(freqs_hz, 50) / 1000) / 20)
    return (gain * wav).astype(np.float32), bandwidth, shape


def _filter(
    wav: np.ndarray, shapes: np.ndarray, degradations: list[Degradation], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    freqs_hz = np.linspace(0, SAMPLE_RATE / 2, _RESPONSE_POINTS)
    responses = np.stack([zero_phase_response(d, freqs_hz, SAMPLE_RATE) for d in degradations])
    length = wav.shape[1]
    spectrum = torch.fft.rfft(torch.from_numpy(wav).to(device)) * _to_bins(shapes, length, device)
    filtered = spectrum * _to_bins(responses, length, device)
    inner = slice(_MARGIN, length - _MARGIN)
    return torch.fft.irfft(spectrum, length)[:, inner], torch.fft.irfft(filtered, length)[:, inner].contiguous()


def _to_bins(responses: np.ndarray, length: int, device: torch.device | str) -> torch.Tensor:
    values = torch.from_numpy(responses.astype(np.float32)).to(device)
    return torch.nn.functional.interpolate(values[:, None], length // 2 + 1, mode="linear", align_corners=True)[:, 0]


def _add_noise_and_gaps(wav: torch.Tensor, degradation: Degradation, samples: int) -> None:
    """Add the noise and cut the gaps of one crop `[samples]`, in place, as `Degradation.apply` defines them."""
    if degradation.noise_type == "white":
        noise = np.random.default_rng(degradation.seed).standard_normal(samples)  # drawn as float32 it is another one
        wav += torch.from_numpy((degradation.noise_amplitude * noise).astype(np.float32)).to(wav.device)
    elif degradation.noise_type == "tone":
        time = torch.arange(samples, device=wav.device, dtype=torch.float64) / SAMPLE_RATE
        phase = 2 * np.pi * degradation.tone_hz * time + degradation.tone_phase
        wav += (degradation.noise_amplitude * torch.sin(phase)).float()
    for start, end in degradation.gaps:
        wav[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = 0
