"""Perceptual measures: the same is the best, less bandwidth is worse, and what is missing is named."""

import numpy as np
import pytest

from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import perceptual

SAMPLE_RATE = 48_000
# Whether more is better; the 2f model compiles for a minute in each process, which is more than these tests may take.
BETTER = {"zimtohrli": -1, "visqol": 1}


def needs(measure: str) -> None:
    if not perceptual.is_installed(measure):
        pytest.skip(f"{perceptual.PACKAGES[measure]} is not installed: pip install 'srlib[perceptual]'")


@pytest.mark.parametrize("measure", BETTER)
def test_the_same_is_as_good_as_it_gets_and_the_narrower_the_worse(music, measure):
    needs(measure)
    wavs = [Degradation(cutoff_hz, "ellip", 10).apply(music, SAMPLE_RATE) for cutoff_hz in (4000, 8000, 16_000)]
    scores = [BETTER[measure] * perceptual.MEASURES[measure](music, wav) for wav in (*wavs, music)]
    assert scores == sorted(scores) and scores[0] < scores[1] < scores[3]


def test_zimtohrli_of_the_same_is_zero_and_falls_with_noise(music):
    needs("zimtohrli")
    noise = np.random.default_rng(0).standard_normal(len(music)).astype(np.float32)
    distances = [perceptual.zimtohrli(music, music + amplitude * noise) for amplitude in (0, 0.001, 0.02)]
    assert distances[0] == pytest.approx(0, abs=0.01)
    assert distances[0] < distances[1] < distances[2]


def test_visqol_of_the_same_is_nearly_five(music):
    needs("visqol")
    assert 4.5 < perceptual.visqol(music, music) <= 5


def test_double_precision_and_a_view_are_taken(music):
    needs("zimtohrli")
    degraded = Degradation(8000).apply(music, SAMPLE_RATE)
    plain = perceptual.zimtohrli(music, degraded)
    assert perceptual.zimtohrli(music.astype(np.float64), np.stack([degraded, music])[0]) == plain


def test_those_that_are_installed_are_measured(monkeypatch, music):
    calls = []
    fakes = {name: lambda *wavs, name=name: calls.append((name, *wavs)) or 1.0 for name in perceptual.MEASURES}
    monkeypatch.setattr(perceptual, "MEASURES", fakes)
    monkeypatch.setattr(perceptual, "is_installed", lambda name: name != "two_f")
    assert perceptual.measure(music, music) == {"zimtohrli": 1.0, "visqol": 1.0}
    assert perceptual.measure(music, music, ("visqol", "two_f")) == {"visqol": 1.0}
    assert [name for name, *_ in calls] == ["zimtohrli", "visqol", "visqol"]


@pytest.mark.parametrize("measure", perceptual.PACKAGES)
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(monkeypatch, measure):
    for cached in (perceptual._zimtohrli, perceptual._visqol):
        cached.cache_clear()
    monkeypatch.setitem(perceptual.PACKAGES, measure, "no_such_package")
    assert not perceptual.is_installed(measure)
    silence = np.zeros(SAMPLE_RATE, np.float32)
    with pytest.raises(SrlibError, match=rf"The measure {measure} is not installed: pip install 'srlib\[perceptual\]'"):
        perceptual.MEASURES[measure](silence, silence)


def test_the_two_f_model_is_called_with_estimate_and_reference_in_its_order(monkeypatch, music):
    """Its own test would compile for a minute: here a stand-in says what it was given."""

    class Model:
        @staticmethod
        def estimated_mean_mushra_score(estimate, reference, fs):
            assert fs == SAMPLE_RATE and estimate.shape == reference.shape == (1, len(music))
            assert estimate.dtype == reference.dtype == np.float64
            return float(np.abs(estimate).sum() < np.abs(reference).sum())

    monkeypatch.setattr(perceptual, "_package", lambda measure, module: Model)
    assert perceptual.two_f(music, 0.5 * music) == 1.0
    assert perceptual.two_f(0.5 * music, music) == 0.0
