"""How well the cutoff detector does: filters, coders and sample rates whose edges are known, on given music."""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from scipy import signal

from srlib.audio import files as audio
from srlib.audiosr.compatible import detect_cutoff_hz
from srlib.config import SAMPLE_RATE
from srlib.degrade import FILTER_TYPES, NOISE_TYPES, Degradation, DegradationConfig
from srlib.report.reproduce import DETECTOR_NUMBERS as NUMBERS
from srlib.restore.cutoff import FULL_FROM_HZ, detect_band

TOLERANCE = 0.1  # of the edges: -3 dB less that, to -20 dB and that more
NOISE_AMPLITUDE = {"none": 0.0, "tone": 0.2, "white": 0.02}  # the loudest of the training ranges
CODER_RATE = 44_100  # Hz, at which music is usually coded
CODERS = {"mp3": (0.97, 0.9), "aac": (24, 32, 64), "vorbis": (0.9, 1.0)}  # libsndfile's compression level; kb/s for AAC
SETTINGS = {
    "inside": "from 10 % below the -3 dB point to 10 % above the -20 dB point; full band: 18.5 kHz or more",
    "off": "distance from the transition, % of the -3 dB point, median over clips",
    "noise": "tone of amplitude 0.2, white noise of standard deviation 0.02",
    "roll_off": "AudioSR's detector: below it lie 98.5 % of the summed magnitudes",
}
SAMPLE_RATES = (8000, 16_000, 22_050, 32_000, 44_100)  # Hz


@dataclass(frozen=True)
class Case:
    """Audio `[samples]` at 48 kHz whose band ends between two frequencies (Hz); `group` and `detail` say what it is."""

    group: str
    detail: str
    low_hz: float
    high_hz: float
    wav: np.ndarray

    @classmethod
    def with_edge(cls, group: str, detail: str, edge_hz: float, wav: np.ndarray) -> Case:
        """A sharp edge; one that lies high enough counts as full band."""
        if edge_hz >= FULL_FROM_HZ:
            return cls(group, detail, FULL_FROM_HZ, SAMPLE_RATE / 2, wav)
        return cls(group, detail, edge_hz, edge_hz, wav)


def cases(
    references: Sequence[np.ndarray],
    cutoffs_hz: Sequence[float],
    orders: Sequence[int],
    coded_tracks: int,
    seed: int = 0,
) -> Iterator[Case]:
    """All of the cases below; the first `coded_tracks` of the references are coded and resampled."""
    few = references[:coded_tracks]
    yield from filter_cases(references, cutoffs_hz, orders, seed)
    yield from full_cases(references)
    yield from coder_cases(few)
    yield from resampled_cases(few)


def filter_cases(
    references: Sequence[np.ndarray], cutoffs_hz: Sequence[float], orders: Sequence[int], seed: int = 0
) -> Iterator[Case]:
    """Every family, order, cutoff (Hz) and noise, each on one of the `references` `[samples]` in turn."""
    rng = np.random.default_rng(seed)
    grid = [(noise, kind, order, hz) for noise in NOISE_TYPES for kind in FILTER_TYPES for order in orders
            for hz in cutoffs_hz]  # fmt: skip
    for i, (noise, kind, order, hz) in enumerate(grid):
        tone_hz = float(rng.uniform(*DegradationConfig().tone_hz))
        amplitude, noise_seed = NOISE_AMPLITUDE[noise], int(rng.integers(2**32))
        done = Degradation(hz, kind, order, noise, amplitude, tone_hz, seed=noise_seed)
        wav = done.apply(references[i % len(references)], SAMPLE_RATE)
        group = NUMBERS["filter" if noise == "none" else noise]
        yield Case(group, f"{kind} order {order}", done.passband_hz(SAMPLE_RATE), done.stopband_hz(SAMPLE_RATE), wav)


def full_cases(references: Sequence[np.ndarray]) -> Iterator[Case]:
    """The `references` `[samples]` as they are, quiet, and half a second of them."""
    for reference in references:
        middle = len(reference) // 2
        versions = {"as it is": reference, "30 dB quieter": 10**-1.5 * reference}
        versions["half a second"] = reference[middle : middle + SAMPLE_RATE // 2]
        for detail, wav in versions.items():
            yield Case("full band", detail, FULL_FROM_HZ, SAMPLE_RATE / 2, wav)


def coder_cases(references: Sequence[np.ndarray]) -> Iterator[Case]:
    """The `references` `[samples]` through lossy coders; their edges are measured with noise."""
    for coder, settings in CODERS.items():
        for setting in settings:
            for reference in references:
                wav = coded(reference, coder, setting)
                yield Case.with_edge("coder", coder, coder_edge_hz(coder, setting), wav)


def resampled_cases(references: Sequence[np.ndarray]) -> Iterator[Case]:
    """The `references` `[samples]` stored with 16 bits at lower sample rates, and back at 48 kHz."""
    for rate in SAMPLE_RATES:
        for reference in references:
            stored = np.round(32767 * audio.resample(reference, SAMPLE_RATE, rate)) / 32767
            wav = audio.resample(stored.astype(np.float32), rate, SAMPLE_RATE)
            yield Case.with_edge("sample rate", f"{rate} Hz", rate / 2, wav)


def coded(wav: np.ndarray, coder: str, setting: float) -> np.ndarray:
    """`[samples]` at 48 kHz after coding and decoding: `mp3`, `vorbis` (compression level 0-1) or `aac` (kb/s)."""
    at_rate = audio.resample(wav, SAMPLE_RATE, CODER_RATE)
    if coder == "aac":
        decoded = _through_aac(at_rate, setting)
    else:
        container = {"mp3": ("MP3", "MPEG_LAYER_III"), "vorbis": ("OGG", "VORBIS")}[coder]
        options = {"bitrate_mode": "CONSTANT"} if coder == "mp3" else {}
        stream = io.BytesIO()
        soundfile.write(stream, at_rate, CODER_RATE, container[1], None, container[0],
                        compression_level=setting, **options)  # fmt: skip
        stream.seek(0)
        decoded, _ = soundfile.read(stream, dtype="float32")
    return audio.resample(decoded, CODER_RATE, SAMPLE_RATE)


def _through_aac(wav: np.ndarray, kilobits: float) -> np.ndarray:
    audio.find_ffmpeg()
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "plain.wav", Path(folder) / "packed.m4a"
        audio.write(plain, wav[None], CODER_RATE)
        command = ["ffmpeg", "-loglevel", "error", "-i", plain, "-c:a", "aac", "-b:a", f"{kilobits}k", packed]
        subprocess.run(command, check=True)
        return audio.read(packed)[0][0]


@cache
def coder_edge_hz(coder: str, setting: float) -> float:
    """Where a coder cuts white noise off: the highest frequency (Hz) less than 20 dB under the level at 1-3 kHz."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32)
    freqs_hz, power = signal.welch(coded(noise, coder, setting), SAMPLE_RATE, nperseg=2048)
    level = np.median(power[(freqs_hz > 1000) & (freqs_hz < 3000)])
    return float(freqs_hz[np.flatnonzero(power > level / 100)[-1]])


def detect(cases: Iterable[Case]) -> pd.DataFrame:
    """One row a case: our edge and AudioSR's, whether each lies within the tolerance, and how far off it is."""
    rows = []
    for case in cases:
        wav = torch.from_numpy(np.asarray(case.wav, dtype=np.float32))
        row = {"group": case.group, "detail": case.detail, "low_hz": case.low_hz, "high_hz": case.high_hz}
        for name, edge_hz in (("ours", detect_band(wav).passband_hz), ("roll_off", detect_cutoff_hz(wav))):
            inside = (1 - TOLERANCE) * case.low_hz <= edge_hz <= (1 + TOLERANCE) * case.high_hz
            if case.low_hz == FULL_FROM_HZ:
                inside = edge_hz >= FULL_FROM_HZ
            off = max(case.low_hz - edge_hz, edge_hz - case.high_hz, 0.0) / case.low_hz
            row |= {f"{name}_hz": edge_hz, f"{name}_inside": inside, f"{name}_off": 100 * off}
        rows.append(row)
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Shares inside the tolerance and median distances (%) from the transition, by group and detail, and by group."""
    means = {"clips": ("ours_inside", "size")}
    for name in ("ours", "roll_off"):
        means |= {f"{name}_inside": (f"{name}_inside", "mean"), f"{name}_off": (f"{name}_off", "median")}
    details = table.groupby(["group", "detail"], sort=False, as_index=False).agg(**means)
    groups = table.assign(detail="all").groupby(["group", "detail"], sort=False, as_index=False).agg(**means)
    order = {group: i for i, group in enumerate(groups["group"])}
    return pd.concat([details, groups]).sort_values("group", key=lambda names: names.map(order), kind="stable")


def shares(summary: pd.DataFrame) -> dict[str, float]:
    """Numbers for the text: shares inside the tolerance in %, ours by group, AudioSR's on filtered music."""
    groups = summary[summary["detail"] == "all"].set_index("group")
    ours = {f"detector_{name}": 100 * groups.loc[group, "ours_inside"] for name, group in NUMBERS.items()}
    return ours | {"detector_filter_roll_off": 100 * groups.loc[NUMBERS["filter"], "roll_off_inside"]}
