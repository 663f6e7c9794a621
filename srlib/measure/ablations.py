"""One choice at a time: what solver, steps, samples, merge and excitation are worth, and what the default is chosen by.

On validation tracks, since a default may be chosen by it. Tracks are shared out over processes, as in the main table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd

from srlib.config import SAMPLE_RATE, Profile
from srlib.data import tracks as data
from srlib.measure import perceptual
from srlib.measure.distribution import two_sample_accuracy, upper_band
from srlib.measure.evaluation import Condition, load_pipeline, restore, single_threaded, start_single_threaded
from srlib.measure.metrics import HEADLINE_HZ, level_high_db, log_mel_l1, lsd, texture_high

_SEEDS = 3  # samples that diversity is measured over
_DISTANCES = ("lsd_19k", "level_high_db", "texture_high", "log_mel_l1")
SETTINGS = {
    "c2st": "share of upper-band patches that a classifier, fitted to other tracks, tells from real ones; 0.5: none",
    "diversity": f"standard deviation of the log-mel above the band over {_SEEDS} seeds, nat",
}


def compare(
    profile: Profile,
    variations: Mapping[str, Mapping[str, Any]],
    conditions: Sequence[str],
    seed: int = 0,
    tracks: int | None = None,
    measures: Sequence[str] = ("zimtohrli",),
    whole: bool = False,
    device: str = "cpu",
    workers: int | None = None,
) -> pd.DataFrame:
    """One row per condition and variation: means over the first `tracks` validation tracks (all with None).

    Every measure has its column; one that was not taken is NaN.

    Args:
        variations: {name: options of `evaluation.restore`}.
        conditions: names such as `clean_4k` (`evaluation.Condition`).
        measures: of `srlib.measure.perceptual`, beside the distances.
        whole: restore whole tracks and not the profile's excerpts of them.
        workers: processes; None is one per CPU core.
    """
    names = [track.name for track in data.for_profile(profile, "valid")][:tracks]
    workers = min(workers or os.cpu_count() or 1, len(names)) if device == "cpu" else 1
    measure = partial(_rows, profile, variations, conditions, seed, measures, whole, device)
    if workers == 1:
        with single_threaded():
            found = [row for name in names for row in measure(name)]
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=start_single_threaded) as pool:
            found = [row for rows in pool.map(measure, names) for row in rows]
    table = pd.DataFrame(found)
    keys = ["condition", "variation"]
    means = table.drop(columns=["track", "patches"]).groupby(keys, sort=False, as_index=False).mean()
    if len(names) > 1:
        accuracy = {key: _accuracy(group) for key, group in table.groupby(keys)}
        means["c2st"] = [accuracy[tuple(row)] for row in means[keys].itertuples(index=False)]
    return means.reindex(columns=[*keys, *perceptual.MEASURES, *_DISTANCES, "diversity", "c2st"])


def _accuracy(group: pd.DataFrame) -> float:
    pairs = list(group["patches"])
    return two_sample_accuracy([real for real, _ in pairs], [made for _, made in pairs])


def _rows(
    profile: Profile,
    variations: Mapping[str, Mapping[str, Any]],
    conditions: Sequence[str],
    seed: int,
    measures: Sequence[str],
    whole: bool,
    device: str,
    name: str,
) -> list[dict]:
    track = next(track for track in data.for_profile(profile, "valid") if track.name == name)
    reference = track.mixture() if whole else data.excerpt(track, profile)
    pipe = load_pipeline(profile, device=device)
    rows = []
    for condition in map(Condition.named, conditions):
        degradation = condition.degradation(name, seed)
        degraded = degradation.apply(reference, SAMPLE_RATE)
        stopband_hz = degradation.stopband_hz(SAMPLE_RATE)
        for variation, options in variations.items():
            output = restore(pipe, degraded, degradation, seed, **options)
            restored = output.audio
            row = {"condition": condition.name, "variation": variation, "track": name}
            row |= perceptual.measure(reference, restored, measures)
            row |= {
                "lsd_19k": lsd(reference, restored, convention="plain", f_high=HEADLINE_HZ),
                "level_high_db": level_high_db(reference, restored, stopband_hz),
                "texture_high": texture_high(reference, restored, stopband_hz),
                "log_mel_l1": log_mel_l1(reference, restored),
                "patches": tuple(upper_band(wav, stopband_hz) for wav in (reference, restored)),
            }
            if options.get("num_inference_steps") not in (None, 0, 1):
                others = (restore(pipe, degraded, degradation, seed + i, **options) for i in range(1, _SEEDS))
                samples = [upper_band(one.log_mel, stopband_hz) for one in (output, *others)]
                row["diversity"] = float(np.std(samples, axis=0).mean())
            rows.append(row)
    return rows
