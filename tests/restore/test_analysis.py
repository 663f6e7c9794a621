"""What the first passes find in recordings whose tones, gaps, levels, noise and band are known."""

import numpy as np
import pytest

from srlib.audio.recording import Recording
from srlib.restore.analysis import Part, find_gaps, find_parts, prepare, survey, with_noise
from srlib.restore.chunks import plan
from srlib.restore.merge import FULL_BAND

SAMPLE_RATE = 48_000


def test_noise_that_cancels_in_the_downmix_is_known_to_be_in_the_channels():
    rng, time_s = np.random.default_rng(0), np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    drums = 0.3 * rng.standard_normal(len(time_s)) * np.exp(-40 * (time_s % 0.5))
    hiss = 0.01 * rng.standard_normal(len(time_s))
    recording = Recording.from_array(np.stack([drums + hiss, drums - hiss]).astype(np.float32), SAMPLE_RATE)
    surveyed, (part,) = survey(recording, find_tones=False), find_parts(recording, FULL_BAND)
    assert surveyed.floors.shape == (3, 1025) and not surveyed.floors.any()
    chunks = plan(recording.samples)
    downmix, *channels = with_noise(recording, surveyed, part, chunks, forced=False).floors
    assert not downmix.any()
    window_power = np.square(np.hanning(2049)).sum()
    levels = [np.sqrt(channel[20:800].mean() / window_power) for channel in channels]
    assert levels == pytest.approx([0.01, 0.01], rel=0.05)


def tone(seconds=3.0, hz=3000.0, amplitude=0.1, sample_rate=SAMPLE_RATE) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * sample_rate)) / sample_rate)


def swelling_noise(seconds=3.0, sample_rate=SAMPLE_RATE) -> np.ndarray:
    samples = round(seconds * sample_rate)
    return 0.03 * np.random.default_rng(0).standard_normal(samples) * (1 + np.sin(np.arange(samples) / 2000))


def test_the_survey_finds_tones_gaps_and_channels_and_the_tones_are_subtracted():
    music = swelling_noise()
    sounding = music + tone()
    sounding[48_000:60_000] = 0
    rows = np.stack([sounding, sounding, np.zeros_like(sounding), 0.5 * music])
    recording = Recording.from_array(rows.astype(np.float32), SAMPLE_RATE)
    found = survey(recording, find_tones=True)
    assert (found.layout.unique, found.layout.copies) == ((0, 3), (0, 0, None, 1))
    assert [[round(one.fundamental_hz) for one in channel] for channel in found.tones] == [[3000], []]
    assert find_gaps(recording, "auto") == ()  # one channel still sounds
    (prepared,) = prepare(recording, found, plan(recording.samples))
    assert [round(one.amplitude, 2) for one in prepared.tones] == [0.1]
    np.testing.assert_allclose(prepared.wav[0, 100:40_000], music[100:40_000], atol=3e-3)
    alone = Recording.from_array(rows[:2].astype(np.float32), SAMPLE_RATE)
    ((start, end),) = find_gaps(alone, "auto")
    assert (start, end) == pytest.approx((1.0, 1.25), abs=1e-4)
    assert find_gaps(alone, [(0.1, 0.2)]) == ((0.1, 0.2),)


@pytest.mark.parametrize(("peak", "level"), [(0.02, 5.0), (0.5, 1.0), (4.0, 0.25), (0.0, 1.0)])
def test_the_level_brings_the_peak_to_what_the_model_was_trained_on(peak, level):
    wav = np.linspace(-peak, peak / 2, 4800, dtype=np.float32)
    assert survey(Recording.from_array(wav, SAMPLE_RATE), find_tones=False).level == pytest.approx(level)


def test_the_band_ends_where_the_sample_rate_ends_it():
    recording = Recording.from_array(swelling_noise(2.0, 16_000).astype(np.float32), 16_000)
    (part,) = find_parts(recording, None)
    assert 0.9 * 8000 < part.band.passband_hz <= 8000
    assert find_parts(recording, FULL_BAND)[0].band == FULL_BAND  # a band that is given stays


def test_shares_of_parts_that_follow_each_other_add_up_to_one():
    end = float("inf")
    first = Part(FULL_BAND, (0,), (((0.0, 1.0), (2.0, end)),))
    second = Part(FULL_BAND, (0,), (((1.0, 2.0),),))
    shares = [one.share(0, 3 * SAMPLE_RATE)[0] for one in (first, second)]
    np.testing.assert_allclose(sum(shares), 1, atol=1e-6)
    assert (shares[0][: SAMPLE_RATE - 4000] == 1).all() and not shares[1][: SAMPLE_RATE - 4000].any()
    assert shares[1][SAMPLE_RATE] == pytest.approx(0.5, abs=0.01)
