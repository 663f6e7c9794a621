"""The LSD with its choices spelled out: closed forms, `srlib.measure.metrics`, librosa; what each change does."""

from dataclasses import replace

import librosa
import numpy as np
import pandas as pd
import pytest

from srlib import config
from srlib.degrade import Degradation
from srlib.measure import ablations, evaluation, sensitivity
from srlib.measure.metrics import lsd
from srlib.measure.sensitivity import CONVENTIONS, Convention, distance
from srlib.report import plots_lsd

SSR_EVAL = CONVENTIONS[2]


@pytest.fixture(scope="module")
def pair(music):
    return music, Degradation(8000).apply(music, 48000)


def test_it_is_the_metric_of_the_tables(pair):
    assert distance(*pair) == pytest.approx(lsd(*pair, convention="plain", f_high=19000), rel=1e-6)
    assert distance(*pair, CONVENTIONS[1]) == pytest.approx(lsd(*pair, convention="plain"), rel=1e-6)
    assert distance(*pair, SSR_EVAL) == pytest.approx(lsd(*pair, convention="ssr_eval"), rel=1e-6)


def test_librosa_agrees(pair):
    own = Convention(n_fft=4096, hop_length=1024, eps=1e-6, f_high=None)
    powers = [np.abs(librosa.stft(wav.astype(np.float64), n_fft=4096, hop_length=1024, pad_mode="reflect")) ** 2
              for wav in pair]  # fmt: skip
    ratio = np.subtract(*(np.log10(np.maximum(power, 1e-6)) for power in powers))
    assert distance(*pair, own) == pytest.approx(np.sqrt((ratio**2).mean(axis=0)).mean(), rel=1e-6)


def test_closed_forms():
    noise = 0.1 * np.random.default_rng(0).standard_normal(48000)
    assert distance(noise, noise / 2, SSR_EVAL) == pytest.approx(2 * np.log10(2), abs=1e-4)
    assert distance(noise, noise / 2) == pytest.approx(2 * np.log10(2), abs=1e-4)
    silence = np.zeros(48000)
    assert distance(silence, silence, SSR_EVAL) == pytest.approx(12, abs=1e-6)  # -log10 of its guard
    assert distance(silence, silence) == 0
    half = sensitivity.muted_half(noise)
    assert distance(half, half, SSR_EVAL) == pytest.approx(6, abs=0.4)  # half of the frames at 12
    low, high = (distance(noise, np.zeros(48000), Convention(eps=eps, f_high=None)) for eps in (1e-10, 1e-8))
    assert low - high == pytest.approx(2, abs=0.01)  # an empty band is as far as the floor is low


def test_changes_do_what_they_say(music):
    later = sensitivity.delayed(music, 100)
    assert len(later) == len(music) and not later[:100].any()
    np.testing.assert_array_equal(later[100:], music[:-100])
    error = sensitivity.as_pcm(music, 12) - music
    assert np.abs(error).max() <= 0.5 / 2048 + 1e-7
    dithered = sensitivity.as_pcm(music, 12, dither=True) - music
    assert dithered.std() == pytest.approx(np.sqrt(3) * 2**-11 / np.sqrt(12), rel=0.05)  # dither triples the power
    np.testing.assert_array_equal(sensitivity.as_pcm(np.array([1.5, -1.5]), 16), np.float32([32767 / 32768, -1]))
    holes = sensitivity.with_holes(music, depth_db=30)
    assert 10 * np.log10((music**2).sum() / ((music - holes) ** 2).sum()) > 12
    assert distance(music, holes) > 0.1


def test_table_holds_every_setting_and_its_figure_every_row(pair):
    clip = {"reference": pair[0][:48000], "degraded": pair[1][:48000], "restored": pair[0][:48000]}
    table = sensitivity.measure([clip])
    assert len(table) == len(list(sensitivity.settings())) and not table.duplicated(["varied", "setting"]).any()
    rows = table.set_index(["varied", "setting"])
    np.testing.assert_allclose(rows["restored"], rows["itself"])
    assert rows.loc[("convention", "plain"), "itself"] == 0
    assert rows.loc[("convention", "plain"), "unprocessed"] > 1
    axes = plots_lsd.lsd_choices(table).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(table["setting"])
    for line, column in zip(axes.lines[:3], ("itself", "unprocessed", "restored"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), table[column])


def test_variations_are_compared_on_the_same_degraded_tracks():
    variations = {
        "default": {},
        "again": {"num_inference_steps": None},
        "not merged": {"merge": "none"},
        "noise": {"excitation": "noise"},
        "mean": {"num_inference_steps": 0},
    }
    conditions = ["clean_4k", "white_8k"]
    table = ablations.compare(config.profile("smoke"), variations, conditions, measures=(), workers=1)
    assert list(table["condition"]) == ["clean_4k"] * 5 + ["white_8k"] * 5
    assert list(table["variation"]) == 2 * list(variations)
    measured = table[["lsd_19k", "level_high_db", "texture_high", "log_mel_l1"]]
    assert np.isfinite(measured).all(axis=None)
    assert table[["zimtohrli", "diversity", "c2st"]].isna().all(axis=None)  # not asked for, no samples, one track
    clean = table.set_index(["condition", "variation"])["lsd_19k"]["clean_4k"]
    assert clean["again"] == clean["default"]
    assert len({clean[name] for name in ("default", "not merged", "noise", "mean")}) == 4


def test_samples_have_a_diversity_and_several_tracks_a_two_sample_test():
    profile = replace(config.profile("smoke"), max_tracks={"valid": 2}, seconds=2.56)
    variations = {"mean": {"num_inference_steps": 0}, "sample": {"num_inference_steps": 3}}
    table = ablations.compare(profile, variations, ["clean_8k"], measures=(), workers=1).set_index("variation")
    assert np.isnan(table.loc["mean", "diversity"]) and table.loc["sample", "diversity"] > 0
    assert table.loc["mean", "c2st"] >= 0.5 and 0.6 < table.loc["sample", "c2st"] <= 1  # random weights


def test_quality_is_the_summary_s_headline():
    names = ["condition", "system", "merge", "tracks", "lsd_19k", "ratio", "level_high_db", "texture_high"]
    names += ["log_mel_l1", "zimtohrli", "visqol", "two_f"]
    summary = pd.DataFrame([dict.fromkeys([*names, "ci_low"], 1.0)])
    assert list(evaluation.quality(summary)) == names
