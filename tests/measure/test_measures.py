"""Measures of a sweep, on systems whose scores have a closed form."""

import math

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE, profile
from srlib.degrade import Degradation
from srlib.measure import measures, systems
from srlib.measure.conditions import Case
from srlib.measure.lsd import PLAIN

UNPROCESSED = systems.TABLE["unprocessed"]


@pytest.fixture
def trial(music):
    def make(degradation, system=lambda case, seed: 0.5 * case.reference, name="it"):
        return measures.Trial(Case("a", "c", music, degradation), name, system, 0)

    return make


def test_distances_after_a_change(trial):
    half = trial(Degradation(8000))
    assert measures.scores(half)["level_high_db"] == pytest.approx(-6.02, abs=0.01)
    filtered = trial(Degradation(8000, noise_type="white", noise_amplitude=0.02), lambda case, seed: case.filtered)
    assert measures.known_band(filtered)["snr_known_db"] == math.inf
    undone = measures.Distance("undone", PLAIN, None, lambda wav: 2 * wav)
    assert undone(half)["undone"] == pytest.approx(0, abs=1e-9)
    assert measures.Distance("both", PLAIN, np.zeros_like, np.zeros_like)(half) == {"both": 0.0}
    assert measures.Perceptual(systems=("other",))(half) == measures.Perceptual(conditions=("d",))(half) == {}


def test_gaps_are_measured_one_by_one(trial):
    gaps = Degradation(gaps=((0.5, 0.6), (1.5, 1.75)))
    rows = measures.in_gaps(trial(gaps, UNPROCESSED))
    assert [row["gap_ms"] for row in rows] == [100, 250]
    assert all(row["lsd_19k"] > 1 and row["log_mel_l1"] > 1 for row in rows)
    for row in measures.in_gaps(trial(gaps)):
        assert (row["lsd_19k"], row["log_mel_l1"]) == pytest.approx((0.602, math.log(2)), abs=0.01)


def test_edges_are_right_within_the_tolerance(trial):
    steep = trial(Degradation(8000, "ellip", 10))
    row = measures.Edge("ours", measures.band_edge)(steep)
    assert row["low_hz"] == steep.case.passband_hz and row["ours_inside"] and row["ours_off"] < 10
    off = measures.Edge("half", lambda wav: 0.5 * row["low_hz"])(steep)
    assert not off["half_inside"] and off["half_off"] == pytest.approx(50)
    full = measures.Edge("ours", measures.band_edge)(trial(Degradation()))
    assert (full["low_hz"], full["high_hz"], full["ours_inside"]) == (18_500, SAMPLE_RATE / 2, True)


def test_samples_have_a_diversity_and_means_have_none(trial):
    found = systems.named({"mean": {"num_inference_steps": 0}, "some": {"num_inference_steps": 3}}, profile("smoke"))
    mean, some = (measures.samples(trial(Degradation(8000), system)) for system in found.values())
    assert set(mean) == {"real", "restored"} and some["diversity"] > 0
    assert some["real"].shape == some["restored"].shape
    assert measures.noise_found(trial(Degradation(8000), found["mean"])) == {"noise_found": False}
