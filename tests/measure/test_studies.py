"""The studies of merges and gaps: the reference points are what they claim to be, and every cell is filled."""

import numpy as np
import pytest

from srlib.audio.stft import band_of_hz
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.measure import baselines, studies
from srlib.measure.metrics import lsd, snr_db
from srlib.restore.observation import MISSING


def test_the_ideal_wiener_gain_is_the_limit_of_gains(music):
    noisy = Degradation(noise_type="white", noise_amplitude=0.02).apply(0.3 * music, SAMPLE_RATE)
    ideal, blind = (snr_db(0.3 * music, wav) for wav in (studies.ideal_wiener(0.3 * music, noisy), wiener(noisy)))
    assert ideal > blind > snr_db(0.3 * music, noisy)
    assert snr_db(music, studies.ideal_wiener(music, music)) > 100


def wiener(noisy):
    return baselines.wiener(noisy, SAMPLE_RATE)


def test_the_posterior_of_a_record_is_told_of_its_band_and_noise(tiny_pipeline, music):
    degradation = Degradation(8000, noise_type="white", noise_amplitude=0.01, gaps=((1.0, 1.1),))
    degraded = degradation.apply(music, SAMPLE_RATE)
    observation, posterior = studies.posterior(tiny_pipeline, degraded, degradation)
    assert observation.log_mel.shape == posterior.mean.shape == (1, 1, 300, 256)
    missing = observation.variance[0, 0, 50] == MISSING
    first = band_of_hz(degradation.passband_hz(SAMPLE_RATE))
    assert missing[first:].all() and not missing[:first].any()
    assert (observation.variance[0, 0, 105, :first] >= 1).all()  # in the gap
    quiet = observation.log_mel < -6  # the noise lies at -4.6
    assert observation.variance[quiet & (observation.variance < MISSING)].median() > 0.5  # below the noise
    clean, _ = studies.posterior(tiny_pipeline, degraded, Degradation(8000))
    assert not clean.variance[..., :first].any()


@pytest.mark.parametrize(("seconds", "count"), [(5.12, 4), (1.28, 2), (0.3, 0)])
def test_gaps_fit_the_excerpt_and_lie_apart(seconds, count):
    for turn in range(4):
        gaps = studies.gaps_for(seconds, turn)
        assert len(gaps) == count
        edges = [0.0, *np.ravel(gaps), seconds]
        assert np.diff(edges).min() >= 0.04
    assert {studies.gaps_for(5.12, turn) for turn in range(4)} == {studies.gaps_for(5.12, turn) for turn in range(8)}


def test_interpolation_and_repetition_fill_steady_noise_as_well_as_noise_can(tiny_pipeline):
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    degradation = Degradation(gaps=((1.0, 1.2),))
    degraded = degradation.apply(noise, SAMPLE_RATE)
    filled = studies.fillings(tiny_pipeline, degraded, degradation)
    gap = slice(SAMPLE_RATE, SAMPLE_RATE + SAMPLE_RATE // 5)
    for system in ("repetition", "interpolation"):
        assert np.array_equal(filled[system][: gap.start], noise[: gap.start])
        assert np.array_equal(filled[system][gap.stop :], noise[gap.stop :])
        assert lsd(noise[gap], filled[system][gap], convention="plain") < 0.9  # two independent noises: 0.79
        assert filled[system][gap].std() == pytest.approx(0.1, rel=0.15)
    assert filled["silence"] is degraded


def test_each_table_has_a_row_for_everything_it_compares(tiny_pipeline, music):
    references = {"a": music[: round(1.28 * SAMPLE_RATE)]}
    gaps = studies.compare_fillings(tiny_pipeline, references)
    assert len(gaps) == 2 * 2 * 4  # noises, lengths that fit, systems
    assert np.isfinite(gaps[["lsd_19k", "log_mel_l1"]]).all(axis=None)
    merges = studies.compare_merges(tiny_pipeline, references, (8000,))
    assert len(merges) == 5 * 4 + 2 * 2  # four for every noise, and two Wiener gains for white noise
    assert merges["lsd_near_tone"].notna().equals(merges["noise"] == "tone")
    assert (merges[(merges["merge"] == "unprocessed") & (merges["noise"] != "clean")]["snr_gain_db"] == 0).all()
    hisses = studies.compare_hisses(tiny_pipeline, references, (None, 8000.0))
    assert len(hisses) == 2 * 2 and np.isfinite(hisses.drop(columns="cutoff_hz")).all(axis=None)
    assert hisses["found_share"].isin([0, 1]).all()
