"""Conditions: what is done to a clip before systems see it, as recipes that are drawn anew for every track.

A recipe is a mapping of fields of a `Degradation`, in which `tone_hz` may be a range that the tone is drawn from, and
`gap_seconds` lengths of gaps; or an object with the methods of a `Degradation`, such as `Coder` and `SampleRate`.
"""

from __future__ import annotations

import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from scipy import ndimage, signal

from srlib.audio import files
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation, istft, stft
from srlib.measure.lsd import Spectra

CODER_RATE = 44_100  # Hz, at which music is usually coded
_SUFFIXES = {"mp3": "mp3", "vorbis": "ogg", "aac": "m4a"}


@dataclass(frozen=True)
class Coder:
    """A lossy coder: `mp3` and `vorbis` at a compression level of libsndfile (0 to 1), `aac` at a rate in kb/s."""

    name: str
    setting: float

    def apply(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """`[samples]` after coding and decoding at 44.1 kHz."""
        at_rate = files.resample(wav, sample_rate, CODER_RATE)
        with tempfile.TemporaryDirectory() as folder:
            plain, packed = Path(folder) / "plain.wav", Path(folder) / f"packed.{_SUFFIXES[self.name]}"
            if self.name == "aac":
                files.find_ffmpeg()
                files.write(plain, at_rate[None], CODER_RATE)
                rate = ["-c:a", "aac", "-b:a", f"{self.setting}k"]
                subprocess.run(["ffmpeg", "-loglevel", "error", "-i", plain, *rate, packed], check=True)
            else:
                constant = {"bitrate_mode": "CONSTANT"} if self.name == "mp3" else {}
                soundfile.write(packed, at_rate, CODER_RATE, compression_level=self.setting, **constant)
            return files.resample(files.read(packed)[0][0], CODER_RATE, sample_rate)

    @cache  # noqa: B019  a handful of frozen instances
    def passband_hz(self, sample_rate: int) -> float:
        """Where it cuts white noise off: the highest frequency less than 20 dB under the level at 1-3 kHz, Hz."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(3 * sample_rate).astype(np.float32)
        freqs_hz, power = signal.welch(self.apply(noise, sample_rate), sample_rate, nperseg=2048)
        level = np.median(power[(freqs_hz > 1000) & (freqs_hz < 3000)])
        return float(freqs_hz[np.flatnonzero(power > level / 100)[-1]])

    stopband_hz = passband_hz  # the edge is steep


@dataclass(frozen=True)
class SampleRate:
    """A recording that was stored with 16 bits at a lower sample rate (Hz)."""

    rate: int

    def apply(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """`[samples]` at the lower rate and back."""
        stored = np.round(32767 * files.resample(wav, sample_rate, self.rate)) / 32767
        return files.resample(stored.astype(np.float32), self.rate, sample_rate)

    def passband_hz(self, sample_rate: int) -> float:
        """Half of the lower rate, Hz."""
        return self.rate / 2

    stopband_hz = passband_hz  # the edge is steep


Recipe = Mapping[str, Any] | Coder | SampleRate


def grid(noises: Mapping[str, Mapping[str, Any]], cutoffs_hz: Iterable[float]) -> dict[str, Recipe]:
    """{`<noise>_<cutoff>k`: recipe} of every noise, a mapping of fields by its name, after every low-pass (Hz)."""
    cutoffs = list(cutoffs_hz)
    return {f"{name}_{hz / 1000:g}k": {"cutoff_hz": hz, **noise} for name, noise in noises.items() for hz in cutoffs}


def draw(recipe: Recipe, track: str, seed: int = 0, seconds: float = 0.0, turn: int = 0) -> Any:
    """What a recipe does to one track of a length in s: a `Degradation`, or the recipe itself if it is no mapping.

    A tone's frequency, its phase and white noise follow from the track's name, the kind of noise, the cutoff and the
    seed, so that two amplitudes differ in nothing else. `turn` orders gaps.
    """
    if not isinstance(recipe, Mapping):
        return recipe
    fields = dict(recipe)
    gaps, noise = fields.pop("gap_seconds", ()), fields.get("noise_type", "clean")
    cutoff_khz = (fields.get("cutoff_hz") or SAMPLE_RATE / 2) / 1000
    rng = np.random.default_rng([seed, zlib.crc32(f"{track} {noise}_{cutoff_khz:g}k".encode())])
    share = rng.uniform()
    if isinstance(fields.get("tone_hz"), Sequence):
        low, high = fields["tone_hz"]
        fields["tone_hz"] = low + share * (high - low)
    return Degradation(**{"seed": int(rng.integers(2**32)), "gaps": lay_gaps(gaps, seconds, turn), **fields})


def lay_gaps(lengths: Sequence[float], seconds: float, turn: int = 0) -> tuple[tuple[float, float], ...]:
    """(start, end) in s of a gap of each length that fits a clip eight times, evenly spaced; `turn` orders them."""
    fitting = [length for length in lengths if 8 * length <= seconds]
    centres = (np.arange(len(fitting)) + 0.5) * seconds / max(len(fitting), 1)
    ordered = zip(centres, np.roll(fitting, turn), strict=True)
    return tuple((float(centre - length / 2), float(centre + length / 2)) for centre, length in ordered)


@dataclass
class Case:
    """One clip under one condition: what systems see and measures compare with.

    `reference` is float32 [samples] at 48 kHz, `degradation` what `draw` gave.
    """

    track: str
    condition: str
    reference: np.ndarray
    degradation: Any

    @cached_property
    def degraded(self) -> np.ndarray:
        """The reference degraded, float32 [samples]."""
        return self.degradation.apply(self.reference, SAMPLE_RATE)

    @cached_property
    def filtered(self) -> np.ndarray:
        """What the filter left of the reference, without noise, float32 [samples]."""
        return replace(self.degradation, noise_type="none").apply(self.reference, SAMPLE_RATE)

    @cached_property
    def truth(self) -> Spectra:
        """The spectra of the reference."""
        return Spectra(self.reference[None])

    @property
    def passband_hz(self) -> float | None:
        """Where the known band ends, Hz; None without a filter."""
        return self.degradation.passband_hz(SAMPLE_RATE)

    @property
    def stopband_hz(self) -> float | None:
        """Where the missing band starts, Hz; None without a filter."""
        return self.degradation.stopband_hz(SAMPLE_RATE)

    def labels(self) -> dict[str, Any]:
        """Columns of a row: which track, which condition and, of a `Degradation`, what was drawn."""
        row, done = {"track": self.track, "condition": self.condition}, self.degradation
        if not isinstance(done, Degradation):
            return row
        noise = "clean" if done.noise_type == "none" else done.noise_type
        tone_hz = done.tone_hz if noise == "tone" else None
        return row | {
            "cutoff_hz": done.cutoff_hz, "noise": noise, "amplitude": done.noise_amplitude, "tone_hz": tone_hz
        }  # fmt: skip


# ------------------------------------------------------------------- changes that a distance may or may not notice


def delayed(wav: np.ndarray, samples: int) -> np.ndarray:
    """`wav` [samples], later by some samples; its end is lost."""
    return np.pad(wav, (samples, 0))[: len(wav)]


def as_pcm(wav: np.ndarray, bits: int, dither: bool = False) -> np.ndarray:
    """`wav` [samples] as a file of so many bits holds it, with or without triangular dither."""
    steps = 2.0 ** (bits - 1)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, len(wav))).sum(axis=0) if dither else 0.0
    return (np.clip(np.round(wav * steps + noise), -steps, steps - 1) / steps).astype(np.float32)


def muted_half(wav: np.ndarray) -> np.ndarray:
    """`wav` [samples] with digital silence in its second half."""
    return np.where(np.arange(len(wav)) < len(wav) // 2, wav, 0).astype(np.float32)


def with_holes(wav: np.ndarray, depth_db: float = 60.0, n_fft: int = 1024, bins: int = 16) -> np.ndarray:
    """`wav` [samples] as a coder of low bit rate leaves it: bands far below the loudest of their frame are emptied."""
    spectrum = stft(wav.astype(np.float64), n_fft, n_fft // 2)
    whole = spectrum[:, : spectrum.shape[1] // bins * bins].reshape(len(spectrum), -1, bins)
    power = (np.abs(whole) ** 2).sum(axis=2, keepdims=True)
    whole *= power > power.max(axis=1, keepdims=True) * 10 ** (-depth_db / 10)
    spectrum[:, : whole[0].size] = whole.reshape(len(spectrum), -1)
    return istft(spectrum, len(wav), n_fft, n_fft // 2).astype(np.float32)


def blurred(wav: np.ndarray, f_low: float, frames: int = 9, bins: int = 15) -> np.ndarray:
    """`wav` [samples] with the magnitudes above f_low (Hz) averaged over cells of its STFT, as a mean of guesses is."""
    spectrum = stft(wav.astype(np.float64))
    above = spectrum[:, np.ceil(f_low * 2048 / SAMPLE_RATE).astype(int) :]
    magnitude = np.abs(above)
    above *= ndimage.uniform_filter(magnitude, (frames, bins), mode="nearest") / np.maximum(magnitude, 1e-12)
    return istft(spectrum, len(wav)).astype(np.float32)
