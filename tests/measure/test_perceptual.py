"""Perceptual measures: the same is best and less bandwidth worse; the two-sample test: chance for the same kind."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from srlib.config import SAMPLE_RATE
from srlib.data.tracks import load_dataset
from srlib.degrade import Degradation
from srlib.measure import perceptual

# Whether more is better; the 2f model compiles for a minute in each process, which is more than these tests may take.
BETTER = {"zimtohrli": -1, "visqol": 1}


@pytest.mark.parametrize("measure", BETTER)
def test_the_same_is_as_good_as_it_gets_and_the_narrower_the_worse(music, measure):
    pytest.importorskip(perceptual.PACKAGES[measure], reason="pip install 'srlib[perceptual]'")
    wavs = [Degradation(cutoff_hz, "ellip", 10).apply(music, SAMPLE_RATE) for cutoff_hz in (4000, 8000, 16_000)]
    scores = [BETTER[measure] * perceptual.MEASURES[measure](music, wav) for wav in (*wavs, music)]
    assert scores == sorted(scores) and scores[0] < scores[1] < scores[3]
    assert scores[3] == pytest.approx({"zimtohrli": 0, "visqol": 4.75}[measure], abs=0.25)
    again = perceptual.measure(music, wavs[0].astype(np.float64), [measure])[measure]
    assert again * BETTER[measure] == pytest.approx(scores[0], rel=1e-9)


@pytest.mark.parametrize("measure", perceptual.PACKAGES)
def test_a_package_that_is_missing_is_left_out(monkeypatch, measure):
    monkeypatch.setitem(perceptual.PACKAGES, measure, "no_such_package")
    assert perceptual.measure(np.zeros(10), np.zeros(10), [measure]) == {}


@pytest.fixture(scope="module")
def kinds() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two excerpts of each of ten training tracks, above 4 kHz, `[frames, bands]`."""
    wavs = [np.array_split(track.mixture(seconds=8.0), 2) for track in load_dataset("demo", "train")[:10]]
    return tuple([perceptual.upper_band(pair[half], 4000.0) for pair in wavs] for half in (0, 1))


def rougher(mel: np.ndarray) -> np.ndarray:
    return mel + 0.5 * np.random.default_rng(0).standard_normal(mel.shape)


@pytest.mark.parametrize(("change", "low", "high"), [
    (lambda mel: mel + 1.0, 0.5, 0.6),  # louder is not of another kind
    (lambda mel: ndimage.gaussian_filter(mel, 0.4), 0.6, 0.99),
    (lambda mel: ndimage.gaussian_filter(mel, 2.0), 0.95, 1.0), (rougher, 0.95, 1.0),
])  # fmt: skip
def test_music_of_the_same_kind_is_told_apart_by_chance_and_blur_and_noise_for_certain(kinds, change, low, high):
    real, other = kinds
    tracks = pd.DataFrame({"real": real, "restored": [change(mel) for mel in other]})
    assert low <= perceptual.two_sample_accuracy(tracks) <= high
    assert np.isnan(perceptual.two_sample_accuracy(tracks[:1]))
