"""The main table: every system on every test track under every condition, and its summary.

All systems see the same degraded excerpt and are told where its band ends: the table compares restoration and not
cutoff detection. Tracks are shared out over the CPU cores, one process each.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from srlib.config import SAMPLE_RATE, Profile
from srlib.data import tracks as data
from srlib.degrade import Degradation, DegradationConfig
from srlib.measure import baselines, perceptual
from srlib.measure.metrics import HEADLINE_HZ, Reference, bootstrap_ci, evaluate, level_high_db, lsd, texture_high
from srlib.report.reproduce import (
    LSD_NUMBER_CONDITIONS,
    LSD_NUMBER_MEASURES,
    LSD_NUMBER_SYSTEMS,
    PAIRED_CONDITIONS,
    PAIRED_SYSTEMS,
)

if TYPE_CHECKING:
    from srlib.restore.pipeline import RestorationOutput, RestorationPipeline

NOISES = {"clean": 0.0, "tone": 0.2, "white": 0.02}  # amplitudes: the loudest of the training ranges
# System -> the weights it uses and how it is called; all others are in `baselines`.
_AUDIOSR = {"merge": "replace", "excitation": "vocoder"}  # AudioSR's own: the known band copied, a trained vocoder
MODELS = {
    "prior": (None, {"num_inference_steps": 0}),  # the simplest thing that could work
    "audiosr_lowpass": ("lowpass", {"denoise": False, **_AUDIOSR}),  # no noise in training
    "ours_replace": (None, _AUDIOSR),  # the source report: noise in training, replacement
    "ours_sample": (None, {"num_inference_steps": 8}),
    "ours": (None, {}),
}
SYSTEMS = ("gt_mel", "oracle", "unprocessed", "band_replication", "ridge", "wiener", "notch", *MODELS)
# ViSQOL and the 2f model take seconds a clip: they judge the conditions that the prose quotes, and these systems.
JUDGED = ("gt_mel", "unprocessed", "band_replication", "ridge", *MODELS)
PERCEPTUAL = tuple(perceptual.MEASURES)
SUMMARY_METRICS = (
    "lsd", "lsd_ssr_eval", "lsd_low", "lsd_high", "snr_db", "si_sdr_db", "snr_low_db", "snr_known_db", "level_high_db",
    "texture_high", "log_mel_l1", "tone_suppression_db", *PERCEPTUAL,
)  # fmt: skip
SETTINGS = {
    "lsd, lsd_19k, lsd_low, lsd_high": "plain: n_fft 2048, hop 512, periodic Hann, power floor 1e-8; no gain alignment",
    "lsd_ssr_eval": "n_fft 2229, hop 480, eps 1e-12, at 48 kHz",
    "lsd_19k": "bins up to 19 kHz",
    "filter": "Chebyshev I, order 8, forwards and backwards, then noise",
    "noise": "tone of amplitude 0.2 at a seeded frequency of 100 Hz to 15 kHz; white noise of standard deviation 0.02",
    "cutoff": "known to every system",
    "zimtohrli": "Zimtohrli's distance times 1000, lower is better",
    "two_f, visqol": "2f model (0 to 100) and ViSQOL (1 to 5), higher is better; at the quoted conditions",
    "interval": "95 % percentile bootstrap over tracks",
}


@dataclass(frozen=True)
class Condition:
    """One column of the table: a low-pass, and which noise comes after it."""

    cutoff_hz: int
    noise: str  # clean, tone or white

    @property
    def name(self) -> str:
        return f"{self.noise}_{self.cutoff_hz / 1000:g}k"

    @classmethod
    def named(cls, name: str) -> Condition:
        """The condition called e.g. "tone_8k"."""
        noise, _, khz = name.removesuffix("k").partition("_")
        return cls(round(float(khz) * 1000), noise)

    def degradation(self, track: str, seed: int = 0) -> Degradation:
        """What is done to a track: the tone's frequency and all noise are drawn from its name and the seed."""
        rng = np.random.default_rng([seed, zlib.crc32(f"{track} {self.name}".encode())])
        tone_hz = float(rng.uniform(*DegradationConfig().tone_hz))
        return Degradation(
            cutoff_hz=self.cutoff_hz,
            noise_type="none" if self.noise == "clean" else self.noise,
            noise_amplitude=NOISES[self.noise],
            tone_hz=tone_hz if self.noise == "tone" else None,
            seed=int(rng.integers(2**32)),
        )


def conditions(profile: Profile) -> list[Condition]:
    """The columns of a profile's table: every noise at each of its cutoffs, and what the prose quotes."""
    columns = [Condition(cutoff_hz, noise) for noise in NOISES for cutoff_hz in profile.cutoffs_hz]
    quoted = [Condition.named(name) for name in LSD_NUMBER_CONDITIONS]
    return columns + [condition for condition in quoted if condition not in columns]


def load_pipeline(profile: Profile, variant: str | None = None, device: str = "cpu") -> RestorationPipeline:
    """The profile's model on a device; `variant="lowpass"` is the one trained without noise."""
    from srlib.restore.pipeline import RestorationPipeline, build

    if profile.model == "tiny":
        return build("tiny").to(device)
    return RestorationPipeline.from_pretrained(profile.model, variant=variant).to(device)


def restore(
    pipe: RestorationPipeline, degraded: np.ndarray, degradation: Degradation, seed: int = 0, **options
) -> RestorationOutput:
    """Restore `degraded` [samples] at 48 kHz, telling the pipeline from the record where the band ends.

    Args:
        options: what else the pipeline's call takes, e.g. `merge` or `num_inference_steps`.
    """
    known = {"cutoff_hz": degradation.passband_hz(SAMPLE_RATE), "stopband_hz": degradation.stopband_hz(SAMPLE_RATE)}
    return pipe(degraded, SAMPLE_RATE, generator=seed, gaps=degradation.gaps, **known, **options)


def restore_each_merge(
    pipe: RestorationPipeline, degraded: np.ndarray, degradation: Degradation, seed: int = 0, **options
) -> dict[str, np.ndarray]:
    """{merge: `degraded` [samples] restored with it}, from the same random numbers; `options` as in `restore`."""
    from srlib.restore.merge import MERGES

    return {merge: restore(pipe, degraded, degradation, seed, merge=merge, **options).audio for merge in MERGES}


def sampling_steps(
    pipe: RestorationPipeline,
    references: list[np.ndarray],
    degradation: Degradation,
    steps: tuple[int, ...],
    seed: int = 0,
    scheduler: str = "ddim",
    **fixed,
) -> pd.DataFrame:
    """One row per number of sampling steps: measures above the cutoff, as means over `references` [samples].

    `fixed` are options of every restoration, as in `restore`.
    """
    degraded = [degradation.apply(reference, SAMPLE_RATE) for reference in references]
    rows = []
    for count in steps:
        for reference, wav in zip(references, degraded, strict=True):
            options = {"num_inference_steps": count, "scheduler": scheduler, **fixed}
            restored = restore(pipe, wav, degradation, seed, **options).audio
            stopband_hz = degradation.stopband_hz(SAMPLE_RATE)
            row = {"steps": count, "lsd_19k": lsd(reference, restored, convention="plain", f_high=HEADLINE_HZ)}
            row["level_high_db"] = level_high_db(reference, restored, stopband_hz)
            rows.append(row | {"texture_high": texture_high(reference, restored, stopband_hz)})
    return pd.DataFrame(rows).groupby("steps", as_index=False).mean()


@dataclass
class Evaluator:
    """What a process needs to fill the rows of a track; models load when they are first used."""

    profile: Profile
    seed: int = 0
    device: str = "cpu"
    ridges: dict[str, baselines.Ridge] = field(default_factory=dict)

    @cached_property
    def pipelines(self) -> dict[str | None, RestorationPipeline]:
        variants = {variant for variant, _ in MODELS.values()}
        return {variant: load_pipeline(self.profile, variant, self.device) for variant in variants}

    def fit_ridge(self, condition: Condition) -> baselines.Ridge:
        """Ridge regression on the training excerpts, degraded as the condition says."""
        pairs = []
        for track in data.for_profile(self.profile, "train"):
            reference = data.excerpt(track, self.profile)
            pairs.append((condition.degradation(track.name, self.seed).apply(reference, SAMPLE_RATE), reference))
        return baselines.Ridge.fit(pairs)

    def rows(self, name: str) -> list[dict]:
        """All rows of the test track called `name`."""
        track = next(track for track in data.for_profile(self.profile, "test") if track.name == name)
        reference = data.excerpt(track, self.profile)
        known = Reference(reference[None])
        gt_mel = self.pipelines[None].vocode_truth(reference, through_autoencoder=False)
        rows = []
        for condition in conditions(self.profile):
            degradation = condition.degradation(name, self.seed)
            degraded = degradation.apply(reference, SAMPLE_RATE)
            restored = {"gt_mel": gt_mel, **dict(self._restorations(condition, degradation, reference, degraded))}
            for system in SYSTEMS:
                merge = MODELS[system][1].get("merge", "gain") if system in MODELS else None
                key = {"track": name, "condition": condition.name, "cutoff_hz": condition.cutoff_hz}
                key |= {"noise": condition.noise, "tone_hz": degradation.tone_hz, "system": system, "merge": merge}
                scores = evaluate(known, restored[system], degradation=degradation)
                quoted = condition.name in LSD_NUMBER_CONDITIONS and system in JUDGED
                measures = PERCEPTUAL if quoted and self.profile.model != "tiny" else PERCEPTUAL[:1]
                rows.append(key | scores | perceptual.measure(reference, restored[system], measures))
        return rows

    def _restorations(
        self, condition: Condition, degradation: Degradation, reference: np.ndarray, degraded: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray]]:
        yield "oracle", baselines.oracle(reference, degraded, degradation)
        yield "ridge", self.ridges[condition.name].restore(degraded, degradation)
        for system in ("unprocessed", "band_replication", "wiener", "notch"):
            yield (
                system,
                baselines.BLIND[system](degraded, SAMPLE_RATE, degradation.passband_hz(SAMPLE_RATE), self.seed),
            )
        steps = {"num_inference_steps": self.profile.num_inference_steps}
        for system, (variant, options) in MODELS.items():
            yield system, restore(self.pipelines[variant], degraded, degradation, self.seed, **steps | options).audio


_evaluator: Evaluator  # of a worker process


def start_single_threaded() -> None:
    """Of a worker process: the processes are the parallelism."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Compute as a worker process does: with other threads the last digits are others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_worker(evaluator: Evaluator) -> None:
    global _evaluator
    _evaluator = evaluator
    start_single_threaded()


def _fit_in_worker(condition: Condition) -> baselines.Ridge:
    return _evaluator.fit_ridge(condition)


def _rows_in_worker(name: str) -> list[dict]:
    return _evaluator.rows(name)


def evaluate_systems(profile: Profile, seed: int = 0, device: str = "cpu", workers: int | None = None) -> pd.DataFrame:
    """Tidy table, one row per test track, condition and system, with every metric of `metrics.evaluate`.

    Args:
        device: of the models; with "cuda" one process does everything.
        workers: processes of one thread each, which change nothing but the time; None is one per CPU core, at most
            one per track.
    """
    names = [track.name for track in data.for_profile(profile, "test")]
    columns = conditions(profile)
    workers = min(workers or os.cpu_count() or 1, len(names)) if device == "cpu" else 1
    evaluator = Evaluator(profile, seed, device)
    if workers == 1:
        with single_threaded():
            evaluator.ridges = {condition.name: evaluator.fit_ridge(condition) for condition in columns}
            return pd.DataFrame([row for name in _report(map(evaluator.rows, names), len(names)) for row in name])
    pool = {"max_workers": workers, "mp_context": get_context("spawn"), "initializer": _start_worker}
    with ProcessPoolExecutor(**pool, initargs=(evaluator,)) as executor:
        fitted = executor.map(_fit_in_worker, columns)
        evaluator.ridges = {condition.name: ridge for condition, ridge in zip(columns, fitted, strict=True)}
    with ProcessPoolExecutor(**pool, initargs=(evaluator,)) as executor:
        return pd.DataFrame([row for name in _report(executor.map(_rows_in_worker, names), len(names)) for row in name])


def _report(results: Iterator[list[dict]], total: int) -> Iterator[list[dict]]:
    start = time.perf_counter()
    for done, result in enumerate(results, 1):
        yield result
        if done in (1, total // 2, total):
            print(f"{done} of {total} tracks, {time.perf_counter() - start:.0f} s", flush=True)


def summarise(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One row per condition and system: means over tracks, the interval of `lsd_19k`, and its ratio to the oracle's.

    A measure that was not taken is NaN.
    """
    keys = ["condition", "noise", "cutoff_hz", "system", "merge"]
    rows = []
    for values, group in table.groupby(keys, sort=False, dropna=False):
        low, high = bootstrap_ci(group["lsd_19k"], seed)
        row = dict(zip(keys, values, strict=True)) | {"tracks": len(group), "lsd_19k": group["lsd_19k"].mean()}
        row |= {"ci_low": low, "ci_high": high, "lsd_19k_median": group["lsd_19k"].median()}
        rows.append(row | {name: group[name].mean() if name in group else np.nan for name in SUMMARY_METRICS})
    summary = pd.DataFrame(rows)
    oracle = summary[summary["system"] == "oracle"].set_index("condition")["lsd_19k"]
    summary.insert(9, "ratio", summary["lsd_19k"] / summary["condition"].map(oracle))
    return summary


def paired_difference(
    table: pd.DataFrame, system: str, other: str, condition: str, seed: int = 0, measure: str = "lsd_19k"
) -> tuple[float, float, float]:
    """Mean difference in a measure of a system from another over the tracks of a condition, and its 95 % interval.

    Tracks differ more from each other than systems do: the interval of a difference says what those of two means hide.
    """
    scores = table[table["condition"] == condition].pivot(index="track", columns="system", values=measure)
    difference = scores[system] - scores[other]
    return float(difference.mean()), *bootstrap_ci(difference, seed)


def quoted(table: pd.DataFrame, summary: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """The numbers that prose quotes of a table and its summary, by name (`srlib.report.reproduce`)."""
    cells = summary.set_index(["system", "condition"])
    numbers = {f"ratio_ours_{name}": cells.loc[("ours", name), "ratio"] for name in LSD_NUMBER_CONDITIONS}
    for condition in LSD_NUMBER_CONDITIONS:
        for short, measure in LSD_NUMBER_MEASURES.items():
            for name, system in LSD_NUMBER_SYSTEMS.items():
                numbers[f"{short}_{name}_{condition}"] = cells.loc[(system, condition), measure]
    for system in PAIRED_SYSTEMS:
        for condition in PAIRED_CONDITIONS:
            difference = paired_difference(table, "ours", system, condition, seed, "zimtohrli")
            for end, value in zip(("", "_low", "_high"), difference, strict=True):
                numbers[f"{system}_difference_{condition}{end}"] = value
    return numbers


def quality(summary: pd.DataFrame) -> pd.DataFrame:
    """Condition by system: the headline, its ratio to the oracle, and what stands beside it against blur."""
    measures = ["lsd_19k", "ratio", "level_high_db", "texture_high", "log_mel_l1", *PERCEPTUAL]
    kept = [name for name in measures if name in summary]
    return summary[["condition", "system", "merge", "tracks", *kept]]


def published() -> pd.DataFrame:
    """LSD of others by cutoff (kHz), on other music and by other tools: not comparable with the table above."""
    music, source = "AudioStock, 100 tracks, not public (ssr_eval)", "AudioSR, arXiv 2309.07314, table 1"
    audiosr_table = {
        "GT-Mel": (0.61, 0.61, 0.61),
        "unprocessed": (4.25, 3.48, 1.99),
        "NVSR-DNN": (1.67, 1.49, 1.13),
        "NVSR-ResUNet": (1.70, 1.34, 0.95),
        "AudioSR": (0.99, 0.74, 0.73),
    }
    cells = [
        (system, cutoff, lsd)
        for system, values in audiosr_table.items()
        for cutoff, lsd in zip(("4", "8", "16"), values, strict=True)
    ]
    rows = [(system, music, cutoff, lsd, source) for system, cutoff, lsd in cells]
    noisy = ("AudioSR + noise", "MUSDB18, noisy input (at 32 kHz)")
    rows += [(*noisy, cutoff, value, "source report, results") for cutoff, value in (("worst", 2.0), ("best", 1.2))]
    return pd.DataFrame(rows, columns=["system", "data", "cutoff_khz", "lsd", "source"])
