"""Measures of a sweep, on systems whose scores have a closed form."""

import math

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE, profile
from srlib.degrade import Degradation
from srlib.measure import measures, systems
from srlib.measure.conditions import Case
from srlib.measure.lsd import PLAIN


def trial(music, degradation, system, name="it"):
    return measures.Trial(Case("a", "c", music, degradation), name, system, 0)


def halved(case, seed):
    return 0.5 * case.reference


def test_half_the_level_scores_its_closed_forms(music):
    half = trial(music, Degradation(8000), halved)
    headline, scores = measures.headline(half), measures.scores(half)
    assert headline["level_high_db"] == pytest.approx(-6.02, abs=0.01)
    assert {name: scores[name] for name in headline} == headline
    assert measures.input_distance(half)["lsd_19k_input"] > 1
    undone = measures.Distance("undone", PLAIN, None, lambda wav: 2 * wav)
    assert undone(half)["undone"] == pytest.approx(0, abs=1e-9)
    assert measures.Distance("both", PLAIN, np.zeros_like, np.zeros_like)(half) == {"both": 0.0}


def test_the_known_band_is_judged_against_what_the_filter_left(music):
    noisy = Degradation(8000, noise_type="white", noise_amplitude=0.02)
    perfect = trial(music, noisy, lambda case, seed: case.filtered)
    row = measures.known_band(perfect)
    assert row["snr_known_db"] == row["snr_gain_db"] == math.inf
    nothing = measures.known_band(trial(music, noisy, systems.TABLE["unprocessed"]))
    assert nothing["snr_gain_db"] == nothing["snr_low_gain_db"] == 0
    assert set(measures.known_band(trial(music, Degradation(8000), halved))) == {"snr_known_db"}


def test_a_tone_is_looked_for_where_it_is(music):
    tone = Degradation(8000, noise_type="tone", noise_amplitude=0.2, tone_hz=3000.0)
    nothing, perfect = (
        measures.near_tone(trial(music, tone, system))
        for system in (systems.TABLE["unprocessed"], lambda case, seed: case.reference)
    )
    assert nothing["tone_suppression_db"] == pytest.approx(0, abs=0.1) and perfect["tone_suppression_db"] > 100
    assert nothing["lsd_near_tone"] > 0.5 and perfect["lsd_near_tone"] == 0
    assert measures.near_tone(trial(music, Degradation(8000), halved)) == {}


def test_gaps_are_measured_one_by_one(music):
    gaps = Degradation(gaps=((0.5, 0.6), (1.5, 1.75)))
    rows = measures.in_gaps(trial(music, gaps, systems.TABLE["unprocessed"]))
    assert [row["gap_ms"] for row in rows] == [100, 250]
    assert all(row["lsd_19k"] > 1 and row["log_mel_l1"] > 1 for row in rows)
    level = measures.in_gaps(trial(music, gaps, halved))
    assert all(row["lsd_19k"] == pytest.approx(0.602, abs=0.01) for row in level)
    assert all(row["log_mel_l1"] == pytest.approx(math.log(2), abs=0.01) for row in level)


def test_only_what_is_wanted_is_measured(music):
    only = measures.Only(measures.headline, ("it",), ("c",))
    assert only(trial(music, Degradation(8000), halved)) and not only(trial(music, Degradation(8000), halved, "other"))
    assert not measures.Only(measures.headline, ("it",), ("d",))(trial(music, Degradation(8000), halved))


def test_edges_are_right_within_the_tolerance(music):
    steep = trial(music, Degradation(8000, "ellip", 10), halved)
    row = measures.Edge("ours", measures.band_edge)(steep)
    assert row["low_hz"] == steep.case.passband_hz and row["ours_inside"] and row["ours_off"] < 10
    off = measures.Edge("half", lambda wav: 0.5 * row["low_hz"])(steep)
    assert not off["half_inside"] and off["half_off"] == pytest.approx(50)
    full = measures.Edge("ours", measures.band_edge)(trial(music, Degradation(), halved))
    assert (full["low_hz"], full["high_hz"], full["ours_inside"]) == (18_500, SAMPLE_RATE / 2, True)


def test_samples_have_a_diversity_and_means_have_none(music):
    found = systems.named({"mean": {"num_inference_steps": 0}, "some": {"num_inference_steps": 3}}, profile("smoke"))
    mean, some = (measures.samples(trial(music, Degradation(8000), system)) for system in found.values())
    assert set(mean) == {"real", "restored"} and some["diversity"] > 0
    assert some["real"].shape == some["restored"].shape
    assert measures.noise_found(trial(music, Degradation(8000), found["mean"])) == {"noise_found": False}
