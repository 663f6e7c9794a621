"""Conditions: what is drawn for a track, where its gaps lie, and what programs such as coders leave."""

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import conditions

TONE = {"cutoff_hz": 8000, "noise_type": "tone", "noise_amplitude": 0.2, "tone_hz": (100.0, 15000.0)}


def test_a_recipe_is_drawn_anew_for_every_track_and_seed_and_not_for_an_amplitude():
    one, again, other = (conditions.draw(TONE, track) for track in ("a", "a", "b"))
    assert one == again and one.cutoff_hz == 8000
    assert len({one.tone_hz, other.tone_hz, conditions.draw(TONE, "a", seed=1).tone_hz}) == 3
    drawn = [conditions.draw(TONE, str(i)).tone_hz for i in range(200)]
    assert 100 <= min(drawn) < 400 and 14_700 < max(drawn) <= 15_000
    softer = conditions.draw(TONE | {"noise_amplitude": 0.02}, "a")
    assert (softer.tone_hz, softer.seed) == (one.tone_hz, one.seed)
    assert conditions.draw(TONE | {"tone_hz": 440.0, "seed": 3}, "a").tone_hz == 440


def test_a_grid_has_every_noise_at_every_cutoff():
    grid = conditions.grid({"clean": {}, "tone": TONE}, (4000, 12_000))
    assert list(grid) == ["clean_4k", "clean_12k", "tone_4k", "tone_12k"] and grid["clean_4k"] == {"cutoff_hz": 4000}


@pytest.mark.parametrize(("seconds", "count"), [(5.12, 4), (1.28, 2), (0.3, 0)])
def test_gaps_fit_the_excerpt_and_lie_apart(seconds, count):
    lengths = (0.05, 0.1, 0.25, 0.5)
    for turn in range(4):
        gaps = conditions.draw({"gap_seconds": lengths}, "a", 0, seconds, turn).gaps
        np.testing.assert_allclose(sorted(end - start for start, end in gaps), lengths[:count])
        assert np.diff([0.0, *np.ravel(gaps), seconds]).min() >= 0.04
    assert len({conditions.lay_gaps(lengths, 5.12, turn) for turn in range(8)}) == 4


def test_a_case_says_what_was_drawn(music):
    case = conditions.Case("a", "tone_8k", music, conditions.draw(TONE, "a"))
    labels = case.labels()
    assert labels == {"track": "a", "condition": "tone_8k", "cutoff_hz": 8000, "noise": "tone", "amplitude": 0.2,
                      "tone_hz": case.degradation.tone_hz}  # fmt: skip
    np.testing.assert_array_equal(case.filtered, Degradation(8000).apply(music, SAMPLE_RATE))


RATE, MP3 = "ffmpeg -i {in} -ar 22050 {out}", "ffmpeg -i {in} -ar 44100 -c:a libmp3lame -b:a 64k -f mp3 {out}"


@pytest.mark.parametrize(("template", "edge_hz"), [(RATE, 11_025), (MP3, 16_600)])
def test_programs_keep_the_length_and_what_lies_below_their_edge(music, template, edge_hz):
    case = conditions.Case("a", "stored", music, conditions.draw(template, "a"))
    assert case.labels() == {"track": "a", "condition": "stored"} and case.passband_hz == case.stopband_hz
    assert case.passband_hz == pytest.approx(edge_hz, rel=0.04)
    spectra = [np.abs(np.fft.rfft(wav)) ** 2 for wav in (music, case.degraded)]
    edge = int(case.passband_hz * len(music) / SAMPLE_RATE)
    assert len(spectra[0]) == len(spectra[1])
    assert spectra[1][: edge // 2].sum() == pytest.approx(spectra[0][: edge // 2].sum(), rel=0.1)
    assert spectra[1][int(1.1 * edge) :].sum() < 0.01 * spectra[0][int(1.1 * edge) :].sum()


def test_a_program_may_shorten_a_clip_or_fail(music):
    half = conditions.Command("ffmpeg -i {in} -t 1.5 -c:a pcm_f32le {out}").apply(music, SAMPLE_RATE)
    np.testing.assert_array_equal(half, np.where(np.arange(len(music)) < len(music) // 2, music, 0))
    with pytest.raises(SrlibError, match=r"sh .* {in} {out}: ended with code 1 and .* it said: last$"):
        conditions.Command("sh -c 'echo first >&2; echo last >&2; exit 1' {in} {out}").apply(music, SAMPLE_RATE)
