"""Conditions: recipes of degradations, drawn anew for every track.

A recipe is a mapping of fields of a `Degradation`, in which `tone_hz` may be a range to draw from and `gap_seconds`
lists lengths of gaps; or it is a command template, such as a coder.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from srlib.audio import files
from srlib.audio.decoding import find_ffmpeg
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError, one_line
from srlib.measure.lsd import Spectra


@dataclass(frozen=True)
class Command:
    """Any program: a command with `{in}`, a wav file of the clip, and `{out}`, its output in any audio format."""

    template: str

    def apply(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Output of the program, `[samples]` at `sample_rate` Hz: mean of the channels, resampled, of the same length.

        Raises:
            SrlibError: for a program that fails or writes no output, with the last line of its errors.
        """
        find_ffmpeg()
        with tempfile.TemporaryDirectory() as folder:
            paths = {"in": f"{folder}/in.wav", "out": f"{folder}/out.wav"}
            files.write(paths["in"], wav[None], sample_rate, "FLOAT")
            words = [word.format(**paths) for word in shlex.split(self.template)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode or not Path(paths["out"]).is_file():
                said = one_line(done.stderr.strip().rpartition("\n")[2])
                raise SrlibError(f"{self.template}: ended with code {done.returncode} and no output; it said: {said}")
            returned = files.resample(*files.read(paths["out"]), sample_rate).mean(axis=0)
        return np.pad(returned, (0, max(0, len(wav) - len(returned))))[: len(wav)]

    @cache  # noqa: B019  a handful of frozen instances
    def passband_hz(self, sample_rate: int) -> float:
        """Edge on white noise: the highest frequency less than 20 dB under the level at 1-3 kHz, Hz."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(3 * sample_rate).astype(np.float32)
        freqs_hz, power = signal.welch(self.apply(noise, sample_rate), sample_rate, nperseg=2048)
        level = np.median(power[(freqs_hz > 1000) & (freqs_hz < 3000)])
        return float(freqs_hz[np.flatnonzero(power > level / 100)[-1]])

    stopband_hz = passband_hz  # the edge of a coder or a resampler is steep


Recipe = Mapping[str, Any] | str


def grid(noises: Mapping[str, Mapping[str, Any]], cutoffs_hz: Iterable[float]) -> dict[str, Recipe]:
    """{`<noise>_<cutoff>k`: recipe} of every noise, a mapping of fields by its name, after every low-pass (Hz)."""
    cutoffs = list(cutoffs_hz)
    return {f"{name}_{hz / 1000:g}k": {"cutoff_hz": hz, **noise} for name, noise in noises.items() for hz in cutoffs}


def draw(recipe: Recipe, track: str, seed: int = 0, seconds: float = 0.0, turn: int = 0) -> Any:
    """The `Degradation`, or the `Command`, of a recipe for one track of a length in s.

    A tone's frequency, its phase and white noise follow from the track's name, the kind of noise, the cutoff and the
    seed, so that two amplitudes differ in nothing else. `turn` rotates the order of gaps.
    """
    if isinstance(recipe, str):
        return Command(recipe)
    chosen = dict(recipe)
    gaps, noise = chosen.pop("gap_seconds", ()), chosen.get("noise_type", "clean")
    cutoff_khz = (chosen.get("cutoff_hz") or SAMPLE_RATE / 2) / 1000
    rng = np.random.default_rng([seed, zlib.crc32(f"{track} {noise}_{cutoff_khz:g}k".encode())])
    share = rng.uniform()
    if isinstance(chosen.get("tone_hz"), Sequence):
        low, high = chosen["tone_hz"]
        chosen["tone_hz"] = low + share * (high - low)
    return Degradation(**{"seed": int(rng.integers(2**32)), "gaps": lay_gaps(gaps, seconds, turn), **chosen})


def lay_gaps(lengths: Sequence[float], seconds: float, turn: int = 0) -> tuple[tuple[float, float], ...]:
    """(start, end) in s of gaps, evenly spaced, of each length up to an eighth of the clip; `turn` rotates them."""
    fitting = [length for length in lengths if 8 * length <= seconds]
    centres = (np.arange(len(fitting)) + 0.5) * seconds / max(len(fitting), 1)
    ordered = zip(centres, np.roll(fitting, turn), strict=True)
    return tuple((float(centre - length / 2), float(centre + length / 2)) for centre, length in ordered)


@dataclass
class Case:
    """One clip under one condition: input of systems and measures.

    `reference` is float32 [samples] at 48 kHz, `degradation` is from `draw`.
    """

    track: str
    condition: str
    reference: np.ndarray
    degradation: Any

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what is cached goes to no other process, and is no part of a stored row's key."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def degraded(self) -> np.ndarray:
        """The reference degraded, float32 [samples]."""
        return self.degradation.apply(self.reference, SAMPLE_RATE)

    @cached_property
    def filtered(self) -> np.ndarray:
        """The reference degraded without noise, float32 [samples]."""
        return replace(self.degradation, noise_type="none").apply(self.reference, SAMPLE_RATE)

    @cached_property
    def truth(self) -> Spectra:
        """The spectra of the reference."""
        return Spectra(self.reference[None])

    @property
    def passband_hz(self) -> float | None:
        """Upper edge of the known band, Hz; None without a filter."""
        return self.degradation.passband_hz(SAMPLE_RATE)

    @property
    def stopband_hz(self) -> float | None:
        """Lower edge of the missing band, Hz; None without a filter."""
        return self.degradation.stopband_hz(SAMPLE_RATE)

    def labels(self) -> dict[str, Any]:
        """Columns of a row: track, condition and, for a `Degradation`, what was drawn."""
        row, done = {"track": self.track, "condition": self.condition}, self.degradation
        if not isinstance(done, Degradation):
            return row
        noise = "clean" if done.noise_type == "none" else done.noise_type
        tone_hz = done.tone_hz if noise == "tone" else None
        return row | {
            "cutoff_hz": done.cutoff_hz, "noise": noise, "amplitude": done.noise_amplitude, "tone_hz": tone_hz
        }  # fmt: skip
