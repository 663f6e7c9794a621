"""Perceptual measures, and a test of distributions; recordings are `[samples]` at 48 kHz.

Zimtohrli (Google; a distance) leads, the 2f model (Kastner and Herre 2019, 0 to 100) and ViSQOL (Google, 1 to 5) stand
beside it; they are packages of the optional extra `perceptual`. A sample of the posterior has twice the squared error
of its mean, even if it sounds real. The two-sample test (Lopez-Paz and Oquab 2017) compares distributions instead: a
classifier, fitted to other tracks, separates restored from real patches of the upper band.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np
import pandas as pd
import torch

from srlib.audio.stft import band_of_hz, log_mel
from srlib.config import SAMPLE_RATE
from srlib.measure.lsd import HEADLINE_HZ

_PATCH_FRAMES, _POOLED_BANDS = 32, 8  # a patch lasts 0.32 s; bands are means over 8
_FLOOR_NAT = -9.0  # lower limit of log-mels: lower levels are inaudible dither
PACKAGES = {"zimtohrli": "zimtohrli", "visqol": "visqol", "two_f": "seabass"}


def zimtohrli(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Zimtohrli's distance times 1000: 0 is the same, lower is better."""
    model = import_module("zimtohrli").Pyohrli()
    return 1000 * float(model.distance(*(np.asarray(wav, np.float32) for wav in (reference, estimate))))


def visqol(reference: np.ndarray, estimate: np.ndarray) -> float:
    """ViSQOL's mean opinion score in audio mode, 1 to 5: higher is better."""
    model = import_module("visqol").VisqolApi()
    model.create(mode="audio")
    wavs = (np.asarray(wav, np.float64) for wav in (reference, estimate))
    return float(model.measure_from_arrays(*wavs, SAMPLE_RATE).moslqo)


def two_f(reference: np.ndarray, estimate: np.ndarray) -> float:
    """The 2f model's MUSHRA score, 0 to 100: higher is better. The first call on a machine compiles for two minutes."""
    pair = (np.array(wav, np.float64)[None] for wav in (estimate, reference))  # copies, since it changes its arguments
    return float(_two_f().estimated_mean_mushra_score(*pair, fs=SAMPLE_RATE))


@cache
def _two_f() -> ModuleType:
    model = import_module("seabass.core.models.mms")
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("seabass")]
    for compiled in (value for module in modules for value in vars(module).values()):
        if hasattr(compiled, "enable_caching"):  # numba's: on disk, for the processes that come after
            compiled.enable_caching()
    return model


MEASURES = {"zimtohrli": zimtohrli, "visqol": visqol, "two_f": two_f}


def measure(reference: np.ndarray, estimate: np.ndarray, names: Iterable[str] = tuple(MEASURES)) -> dict[str, float]:
    """{name: value} of those measures whose packages are installed."""
    return {name: MEASURES[name](reference, estimate) for name in names if importlib.util.find_spec(PACKAGES[name])}


def upper_band(wav: np.ndarray, f_low: float) -> np.ndarray:
    """Log-mel `[frames, bands]` from `f_low` Hz to 19 kHz, of `[samples]`."""
    mel = log_mel(torch.from_numpy(wav))[0, 0, :, band_of_hz(f_low) : band_of_hz(HEADLINE_HZ)]
    return mel.clamp(min=_FLOOR_NAT).numpy()


def two_sample_accuracy(tracks: pd.DataFrame) -> float:
    """Share of patches that a classifier, not fitted to their track, labels correctly, 0.5 to 1; NaN for one track.

    Args:
        tracks: a row each; `real` and `restored` are `[frames, bands]`, as `upper_band` gives them.
    """
    if len(tracks) < 2:
        return math.nan
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = [_features(mel) for pair in zip(tracks["real"], tracks["restored"], strict=True) for mel in pair]
    patches = [len(features) for features in found]  # of track 0 real, track 0 restored, track 1 real, ...
    labels, groups = (np.repeat(values, patches) for values in (np.arange(len(found)) % 2, np.arange(len(found)) // 2))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_score(classifier, np.concatenate(found), labels, groups=groups, cv=LeaveOneGroupOut())
    return float(max(scores.mean(), 0.5))


def _features(mel: np.ndarray) -> np.ndarray:
    """`[patches, features]` that do not depend on level: deviation over time, differences of neighbours, peak."""
    frames = len(mel) // _PATCH_FRAMES * _PATCH_FRAMES
    patches = mel[:frames].reshape(-1, _PATCH_FRAMES, mel.shape[1])
    statistics = (
        patches.std(1),
        np.abs(np.diff(patches, axis=1)).mean(1),
        np.abs(np.diff(patches, axis=2, append=patches[..., -1:])).mean(1),
        patches.max(1) - patches.mean(1),
    )
    pools = max(mel.shape[1] // _POOLED_BANDS, 1)
    return np.stack([part.mean(1) for one in statistics for part in np.array_split(one, pools, axis=1)], axis=1)
