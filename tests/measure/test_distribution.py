"""The two-sample test: chance for music of the same kind, certainty for what is blurred or made of noise."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from srlib.audio.stft import band_edges_hz, log_mel
from srlib.data.tracks import load_dataset
from srlib.measure.distribution import accuracies, two_sample_accuracy, upper_band


@pytest.fixture(scope="module")
def tracks() -> list[tuple[np.ndarray, np.ndarray]]:
    """Two excerpts of each of ten training tracks, above 4 kHz, `[frames, bands]`."""
    pairs = []
    for track in load_dataset("demo", "train")[:10]:
        wav = track.mixture(seconds=8.0)
        pairs.append(tuple(upper_band(half, 4000.0) for half in np.array_split(wav, 2)))
    return pairs


def blurred(mel: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(mel, 2.0)


def rougher(mel: np.ndarray) -> np.ndarray:
    return mel + 0.5 * np.random.default_rng(0).standard_normal(mel.shape)


def test_music_of_the_same_kind_is_told_apart_by_chance(tracks):
    assert two_sample_accuracy(*zip(*tracks, strict=True)) < 0.6


def test_a_copy_is_told_apart_by_chance(tracks):
    first = [pair[0] for pair in tracks]
    assert two_sample_accuracy(first, first) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("change", [blurred, rougher])
def test_what_is_blurred_or_roughened_is_told_for_certain(tracks, change):
    real, other = zip(*tracks, strict=True)
    assert two_sample_accuracy(real, [change(mel) for mel in other]) > 0.95


def test_a_slight_blur_lies_between(tracks):
    real, other = zip(*tracks, strict=True)
    accuracies = [two_sample_accuracy(real, [ndimage.gaussian_filter(mel, s) for mel in other]) for s in (0.3, 0.5, 2)]
    assert accuracies[0] < accuracies[1] <= accuracies[2]


def test_a_level_is_not_what_tells(tracks):
    """Louder is not of another kind: patches are looked at less their level."""
    real, other = zip(*tracks, strict=True)
    plain, louder = (two_sample_accuracy(real, [mel + gain for mel in other]) for gain in (0.0, 1.0))
    assert louder == pytest.approx(plain, abs=0.01)


def test_the_upper_band_is_that_of_the_log_mel(music):
    mel = log_mel(torch.from_numpy(music))
    found = upper_band(music, 4000.0)
    centres_hz = band_edges_hz()[1:-1]
    inside = (centres_hz >= 4000) & (centres_hz < 19_000)
    expected = np.maximum(mel[0, 0].numpy()[:, inside], -9.0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(upper_band(mel, 4000.0), found)
    assert upper_band(np.zeros(48_000, np.float32), 4000.0).max() == -9.0  # inaudible is inaudible


def test_groups_of_several_tracks_are_told_apart_one_by_one(tracks):
    rows = [{"system": "same", "real": real, "restored": other} for real, other in tracks]
    rows += [{"system": "blurred", "real": real, "restored": blurred(other)} for real, other in tracks]
    rows += [{"system": "alone", "real": tracks[0][0], "restored": tracks[0][1]}]
    found = accuracies(pd.DataFrame(rows), ["system"])
    assert list(found.index.get_level_values(0)) == ["same", "blurred"] and found.iloc[0] < 0.6 and found.iloc[1] > 0.95
