"""Whether restored music is of the kind of real music: a classifier two-sample test on upper bands.

A sample that is right in kind but not in detail costs every distance twice what the mean costs. A classifier that is
fitted to other tracks and cannot tell restored from real patches (Lopez-Paz and Oquab 2017) does not mind detail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from srlib.audio.stft import band_of_hz, log_mel
from srlib.measure.lsd import HEADLINE_HZ

_PATCH_FRAMES, _POOLED_BANDS = 32, 8  # a patch lasts 0.32 s; bands are means over 8
_FLOOR_NAT = -9.0  # what lies lower is inaudible, and dither


def upper_band(sound: np.ndarray | torch.Tensor, f_low: float) -> np.ndarray:
    """Log-mel `[frames, bands]` from `f_low` Hz to 19 kHz, of `[samples]` or of a log-mel `[1, 1, frames, 256]`."""
    mel = log_mel(torch.from_numpy(sound)) if isinstance(sound, np.ndarray) else sound
    return mel[0, 0, :, band_of_hz(f_low) : band_of_hz(HEADLINE_HZ)].clamp(min=_FLOOR_NAT).cpu().numpy()


def two_sample_accuracy(real: Sequence[np.ndarray], restored: Sequence[np.ndarray]) -> float:
    """Share of patches that are told right, 0.5 to 1, by a classifier that never heard their track.

    Args:
        real, restored: `[frames, bands]` of each track, as `upper_band` gives them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels, groups = [], [], []
    for track, pair in enumerate(zip(real, restored, strict=True)):
        for label, mel in enumerate(pair):
            patches = _features(np.asarray(mel, np.float32))
            features.append(patches)
            labels += [label] * len(patches)
            groups += [track] * len(patches)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_score(classifier, np.concatenate(features), labels, groups=groups, cv=LeaveOneGroupOut())
    return float(max(scores.mean(), 0.5))


def accuracies(rows: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """`two_sample_accuracy` of each group of rows with columns of log-mels, where it has several tracks."""
    several = rows.groupby(list(keys), sort=False).filter(lambda group: len(group) > 1).groupby(list(keys), sort=False)
    return pd.Series(
        {key: two_sample_accuracy(group["real"], group["restored"]) for key, group in several}, dtype=float
    )


def _features(mel: np.ndarray) -> np.ndarray:
    """`[patches, features]`: spread over time, jumps from frame to frame and from band to band, less their level."""
    frames = len(mel) // _PATCH_FRAMES * _PATCH_FRAMES
    patches = mel[:frames].reshape(-1, _PATCH_FRAMES, mel.shape[1])
    statistics = (
        patches.std(1),
        np.abs(np.diff(patches, axis=1)).mean(1),
        np.abs(np.diff(patches, axis=2, append=patches[..., -1:])).mean(1),
        patches.max(1) - patches.mean(1),
    )
    return np.concatenate([_pooled(values) for values in statistics], axis=1)


def _pooled(values: np.ndarray) -> np.ndarray:
    """Means over groups of bands, `[patches, bands / 8]`."""
    parts = np.array_split(values, max(values.shape[1] // _POOLED_BANDS, 1), axis=1)
    return np.stack([part.mean(1) for part in parts], axis=1)
