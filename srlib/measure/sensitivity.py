"""What a log-spectral distance depends on besides the audio: its convention, and how the files were stored.

`measure` asks three questions under one change at a time: how far is a reference from itself once it was changed, and
how far from it are the input and the output of a restoration?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from srlib.config import SAMPLE_RATE
from srlib.degrade import istft, stft
from srlib.measure.metrics import PLAIN, Convention, distance, ssr_eval

Change = Callable[[np.ndarray], np.ndarray]


# Of the literature, each with its tool: the same pair of files gets another number from each.
CONVENTIONS = (
    PLAIN,
    replace(PLAIN, name="plain, whole band", f_high=None),
    replace(ssr_eval(SAMPLE_RATE), name="ssr_eval, 48 kHz"),
    replace(ssr_eval(44_100), name="ssr_eval, 44.1 kHz"),
    Convention("AudioSR's pitfall demo", 22_050, 2048, 512, 1e-8, False, None),
    Convention("UniverSR", SAMPLE_RATE, 1024, 256, 1e-6, True, None),
)


def delayed(wav: np.ndarray, samples: int) -> np.ndarray:
    """`wav` [samples], later by some samples; its end is lost."""
    return np.concatenate([np.zeros(samples, wav.dtype), wav[: len(wav) - samples]])


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


def same(wav: np.ndarray) -> np.ndarray:
    """Unchanged."""
    return wav


def settings() -> Iterator[tuple[str, str, Convention, Change, Change]]:
    """(what is varied, its value, convention, change of the estimate, change of the reference), one at a time."""
    for convention in CONVENTIONS:
        yield "convention", convention.name, convention, same, same
    for exponent in (-4, -6, -8, -10, -12):
        yield "power floor", f"1e{exponent}", replace(PLAIN, eps=10.0**exponent), same, same
    for n_fft in (512, 1024, 2048, 4096, 8192):
        yield "FFT", f"{n_fft}", replace(PLAIN, n_fft=n_fft, hop_length=n_fft // 4), same, same
    for khz in (8, 12, 16, 19, 24):
        yield "up to", f"{khz} kHz", replace(PLAIN, f_high=1000.0 * khz), same, same
    whole_band = {"plain": replace(PLAIN, f_high=None), "ssr_eval": CONVENTIONS[2]}
    for name, convention in whole_band.items():
        for gain in (0.9, 0.5):
            change = partial(np.multiply, gain, dtype=np.float32)
            yield "gain of the estimate", f"{gain:g}, {name}", convention, change, same
    for samples in (1, 10, 100, 1120):
        yield "delay of the estimate", f"{samples} samples", PLAIN, partial(delayed, samples=samples), same
    for name, convention in whole_band.items():
        yield "estimate of 16 bits", name, convention, partial(as_pcm, bits=16), same
        yield "estimate of 16 bits", f"{name}, dither", convention, partial(as_pcm, bits=16, dither=True), same
    for name, convention in whole_band.items():
        yield "half of it silent", name, convention, muted_half, muted_half
    for name, convention in whole_band.items():
        yield "coder's holes", f"{name}, in the reference", convention, same, with_holes
        yield "coder's holes", f"{name}, in the estimate", convention, with_holes, same


def measure(clips: Iterable[dict[str, np.ndarray]]) -> pd.DataFrame:
    """One row per setting, means over `clips`, each {"reference", "degraded", "restored"} [samples] at 48 kHz.

    `itself` is the distance of the changed reference from the reference: what the change alone costs.
    """
    clips = list(clips)
    rows = []
    for axis, value, convention, change, change_reference in settings():
        row: dict[str, str | float] = {"varied": axis, "setting": value}
        for column, name in (("itself", "reference"), ("unprocessed", "degraded"), ("restored", "restored")):
            pairs = [(change_reference(clip["reference"]), change(clip[name])) for clip in clips]
            row[column] = float(np.mean([distance(*pair, convention) for pair in pairs]))
        rows.append(row)
    return pd.DataFrame(rows)
