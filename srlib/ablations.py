"""One choice at a time from the default: what solver, steps, samples, guidance, merge, base and vocoder are worth.

On validation tracks, since a default may be chosen by it. Tracks are shared out over processes, as in the main table.
"""

from __future__ import annotations

import copy
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pandas as pd

from srlib import data
from srlib.config import SAMPLE_RATE, Profile
from srlib.evaluation import Condition, load_pipeline, restore, single_threaded, start_single_threaded
from srlib.metrics import HEADLINE_HZ, level_high_db, log_mel_l1, lsd, texture_high
from srlib.vocoder import IstftVocoder, flat_noise

CONDITIONS = ("clean_4k", "white_8k")
NO_NETWORK, FLATTER = "excitation alone", "flatter excitation"  # vocoders: without a network, and smoother
_ITERATIONS = 4  # of Griffin and Lim's, that flatten its excitation


def variations() -> dict[tuple[str, str], dict]:
    """{(axis, value): options of `evaluation.restore`}; `vocoder` is not one of them and picks the vocoder."""
    return {
        ("default", ""): {},
        ("base alone", "no diffusion"): {"num_inference_steps": 0},
        ("level", "of the mean of logarithms"): {"lift": False},
        **{
            ("steps", f"{count}, {solver}"): {"num_inference_steps": count, "scheduler": solver}
            for solver in ("ddim", "dpm")
            for count in (1, 4, 16)
        },
        **{
            ("averaged samples", f"{count}, of 4 steps"): {"num_samples": count, "num_inference_steps": 4}
            for count in (2, 4)
        },
        **{("guidance", f"{scale:g}"): {"guidance_scale": scale} for scale in (2.0, 3.5)},
        **{("merge", merge): {"merge": merge} for merge in ("replace", "none")},
        **{("vocoder", name): {"vocoder": name} for name in (NO_NETWORK, FLATTER)},
    }


def run(
    profile: Profile, seed: int = 0, tracks: int | None = None, device: str = "cpu", workers: int | None = None
) -> pd.DataFrame:
    """One row per condition and variation: means over the first `tracks` validation tracks (all with None)."""
    names = [track.name for track in data.for_profile(profile, "valid")][:tracks]
    workers = min(workers or os.cpu_count() or 1, len(names)) if device == "cpu" else 1
    measure = partial(_rows, profile, seed, device)
    if workers == 1:
        with single_threaded():
            found = [row for name in names for row in measure(name)]
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=start_single_threaded) as pool:
            found = [row for rows in pool.map(measure, names) for row in rows]
    keys = ["condition", "varied", "setting"]
    return pd.DataFrame(found).groupby(keys, sort=False, as_index=False).mean()


def _rows(profile: Profile, seed: int, device: str, name: str) -> list[dict]:
    track = next(track for track in data.for_profile(profile, "valid") if track.name == name)
    reference = data.excerpt(track, profile)
    pipe = load_pipeline(profile, device=device)
    vocoders = {None: pipe.vocoder, NO_NETWORK: _without_network(pipe.vocoder), FLATTER: _flattened(pipe.vocoder)}
    rows = []
    for condition in map(Condition.named, CONDITIONS):
        degradation = condition.degradation(name, seed)
        degraded = degradation.apply(reference, SAMPLE_RATE)
        for (axis, value), options in variations().items():
            pipe.vocoder = vocoders[options.get("vocoder")]
            options = {key: option for key, option in options.items() if key != "vocoder"}
            restored = restore(pipe, degraded, degradation, seed, **options).audio
            f_20db = degradation.f_20db(SAMPLE_RATE)
            rows.append({
                "condition": condition.name,
                "varied": axis,
                "setting": value,
                "lsd_19k": lsd(reference, restored, convention="plain", f_high=HEADLINE_HZ),
                "level_high_db": level_high_db(reference, restored, f_20db),
                "texture_high": texture_high(reference, restored, f_20db),
                "log_mel_l1": log_mel_l1(reference, restored),
            })  # fmt: skip
    return rows


def _without_network(vocoder: IstftVocoder) -> IstftVocoder:
    """A copy whose network adds nothing to gain and phase, as before its training."""
    plain = copy.deepcopy(vocoder)
    for parameter in plain.head.parameters():
        parameter.data.zero_()
    return plain


def _flattened(vocoder: IstftVocoder) -> IstftVocoder:
    """A copy whose excitation scatters less from bin to bin."""
    flatter = copy.deepcopy(vocoder)
    flatter.excitation.copy_(flat_noise(len(flatter.excitation), vocoder.config.excitation_iterations + _ITERATIONS))
    return flatter
