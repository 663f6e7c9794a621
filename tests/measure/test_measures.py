"""Measures of a sweep, on systems whose scores have a closed form."""

import math

import numpy as np
import pytest

from srlib.config import profile
from srlib.degrade import Degradation
from srlib.measure import measures, systems
from srlib.measure.conditions import Case
from srlib.measure.lsd import PLAIN
from srlib.restore.cutoff import detect_band

UNPROCESSED = systems.TABLE["unprocessed"]


@pytest.fixture
def trial(music):
    def make(degradation, system=lambda case, seed: 0.5 * case.reference, name="it"):
        case = Case("a", "c", music, degradation)
        return measures.Trial(case, name, system(case, 0))

    return make


def test_distances_after_a_change(trial):
    half = trial(Degradation(8000))
    assert measures.scores(half)["level_high_db"] == pytest.approx(-6.02, abs=0.01)
    undone = measures.distance_after(half, "undone", change_estimate=lambda wav: 2 * wav)
    assert undone["undone"] == pytest.approx(0, abs=1e-9)
    assert measures.distance_after(half, "both", PLAIN, np.zeros_like, np.zeros_like) == {"both": 0.0}
    assert measures.judged(half, systems=("other",)) == measures.judged(half, conditions=("d",)) == {}


@pytest.mark.parametrize("cutoff_hz", [8000, None])
def test_the_noise_left_is_that_of_its_band(trial, cutoff_hz):
    noisy = Degradation(cutoff_hz, noise_type="white", noise_amplitude=0.02)
    half = trial(noisy, lambda case, seed: (case.filtered + case.degraded) / 2)
    rows = measures.noise_left(half, (0.0, 1000.0, 19_000.0))
    assert [(row["low_hz"], row["high_hz"]) for row in rows] == [(0, 1000), (1000, 19_000)]
    (known,) = measures.noise_left(half)
    assert known["high_hz"] == (half.case.passband_hz or 19_000)
    for row in (*rows, known):
        assert row["noise_left_db"] == pytest.approx(-20 * math.log10(2), abs=1e-3)
    assert measures.noise_left(trial(noisy, UNPROCESSED))[0]["noise_left_db"] == 0


def test_gaps_are_measured_one_by_one(trial):
    gaps = Degradation(gaps=((0.5, 0.6), (1.5, 1.75)))
    rows = measures.in_gaps(trial(gaps, UNPROCESSED))
    assert [row["gap_ms"] for row in rows] == [100, 250]
    assert all(row["lsd_19k"] > 1 and row["log_mel_l1"] > 1 for row in rows)
    for row in measures.in_gaps(trial(gaps)):
        assert (row["lsd_19k"], row["log_mel_l1"]) == pytest.approx((0.602, math.log(2)), abs=0.01)


def test_edges_stand_beside_what_detectors_say(trial):
    steep = trial(Degradation(8000, "ellip", 10))
    row = measures.edges(steep, {"ours": detect_band, "fixed": lambda wav: 4000.0})
    assert (row["low_hz"], row["high_hz"]) == (steep.case.passband_hz, steep.case.stopband_hz)
    assert row["ours_hz"] == pytest.approx(8000, rel=0.1) and row["fixed_hz"] == 4000
    assert measures.edges(trial(Degradation()), {})["low_hz"] is None


def test_of_a_restoration_the_upper_band_and_the_noise_found_are_kept(trial):
    mean = trial(Degradation(8000), systems.named(["prior"], profile("smoke"))["prior"])
    bands = measures.upper_bands(mean)
    assert bands["real"].shape == bands["restored"].shape and not np.array_equal(bands["real"], bands["restored"])
    assert measures.noise_found(mean) == {"noise_found": False}
    assert measures.noise_found(trial(Degradation(8000), UNPROCESSED)) == {"noise_found": None}
