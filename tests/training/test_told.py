"""What is told of training pairs: the record, or what detectors make of it; and what an observation makes of that."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from srlib.audio.stft import band_of_hz, log_mel
from srlib.config import SAMPLE_RATE
from srlib.data.batches import Corpus, draw
from srlib.data.tracks import load_dataset
from srlib.degrade import DegradationConfig, zero_phase_response
from srlib.models.prior import MISSING
from srlib.restore.gaps import interpolate_gaps
from srlib.restore.merge import Band
from srlib.training.told import tell

FRAMES = 100  # of 480 samples: one second
WINDOW_POWER = float((torch.hann_window(2048) ** 2).sum())


@pytest.fixture(scope="module")
def corpus(music_folder, tmp_path_factory):
    corpus = Corpus.build(load_dataset(str(music_folder), "train"), tmp_path_factory.mktemp("corpus"))
    return replace(corpus, bandwidth_hz=np.array([20_000.0, 20_000.0, 20_000.0, 16_000.0, 16_000.0]))


def told_of(corpus, seed=0, batch_size=4, augment=False, frames=FRAMES, **config):
    seeds = [(seed, row) for row in range(batch_size)]
    return tell(draw(corpus, DegradationConfig(**config), seeds, frames, augment=augment), seeds, unsure=augment)


def test_gaps_are_bridged_in_the_degraded_log_mel(corpus):
    batch = told_of(corpus, batch_size=4, gap_probability=1.0, noise_weights={"white": 1.0})
    batch.degradations[0] = replace(batch.degradations[0], gaps=())
    raw, bridged = log_mel(batch.degraded), batch.degraded_log_mel()
    assert torch.equal(bridged[0], raw[0])
    for row, degradation in enumerate(batch.degradations[1:], 1):
        assert torch.equal(bridged[row], interpolate_gaps(raw[[row]], degradation.gaps)[0])
        assert bridged[row].amin() > raw[row].amin() + 1  # no frame is silent any more


def test_what_is_told_is_the_record_where_nothing_is_augmented(corpus):
    """Band edges, noise floor and tone as they are; a track that ends lower is the band."""
    weights, narrower = {"none": 1.0, "tone": 1.0, "white": 1.0}, 0
    for seed in range(4):
        batch = told_of(corpus, seed, batch_size=12, noise_weights=weights, cutoff_hz=(2000, 20_000))
        rows = (batch.degradations, batch.bandwidth_hz.tolist(), batch.bands, batch.noise_floors, batch.tones_hz)
        for degradation, bandwidth_hz, band, floor, tones in zip(*rows, strict=True):
            edges = degradation.passband_hz(SAMPLE_RATE), degradation.stopband_hz(SAMPLE_RATE)
            if bandwidth_hz < edges[0]:
                narrower += 1
                assert band == Band.at(bandwidth_hz)
            else:
                assert (band.passband_hz, band.stopband_hz) == edges
            assert tones == ((degradation.tone_hz,) if degradation.noise_type == "tone" else ())
            assert (floor is not None) == (degradation.noise_type == "white")
            if floor is not None:
                np.testing.assert_allclose(floor, degradation.noise_amplitude**2 * WINDOW_POWER, rtol=1e-6)
    assert narrower > 0


def test_the_floor_of_noise_before_the_filter_is_filtered(corpus):
    batch = told_of(corpus, noise_first=True, noise_weights={"white": 1.0})
    for floor, degradation in zip(batch.noise_floors, batch.degradations, strict=True):
        response = zero_phase_response(degradation, np.linspace(0, 24_000, 1025), SAMPLE_RATE)
        np.testing.assert_allclose(floor, degradation.noise_amplitude**2 * WINDOW_POWER * response**2, rtol=1e-6)


def test_what_is_told_of_augmented_crops_errs_as_detectors_do(corpus):
    weights = {"none": 1.0, "tone": 1.0, "white": 1.0}
    errors, widths, levels, untold, tones = [], [], [], [], []
    for seed in range(60):
        config = {"noise_weights": weights, "cutoff_hz": (2000, 12_000), "gap_seconds": (0.05, 0.1)}
        batch = told_of(corpus, seed, batch_size=8, augment=True, frames=FRAMES // 4, **config)
        rows = (batch.degradations, batch.bands, batch.noise_floors, batch.tones_hz)
        for degradation, band, floor, told in zip(*rows, strict=True):
            if degradation.cutoff_hz is not None:
                passband_hz, stopband_hz = degradation.passband_hz(SAMPLE_RATE), degradation.stopband_hz(SAMPLE_RATE)
                errors.append(np.log(band.passband_hz / passband_hz))
                widths.append((band.stopband_hz - band.passband_hz) / (stopband_hz - passband_hz))
            if degradation.noise_type == "white":
                untold.append(floor is None)
            if floor is not None and not degradation.noise_first:
                levels.append(10 * np.log10(floor[0] / (degradation.noise_amplitude**2 * WINDOW_POWER)))
            if degradation.noise_type == "tone":
                assert told in ((), (degradation.tone_hz,))
                tones.append(bool(told))
    for values, spread in ((errors, 0.02), (levels, 0.5)):
        values = np.array(values)
        wrong = values[np.abs(values) > 1e-9]
        assert len(wrong) / len(values) == pytest.approx(0.25, abs=0.08)
        assert wrong.std() == pytest.approx(spread, rel=0.2) and abs(wrong.mean()) < spread / 3
    assert 0.69 < min(widths) < 0.8 and 1.3 < max(widths) < 1.41
    assert np.mean(untold) == pytest.approx(0.05, abs=0.04) and np.mean(tones) == pytest.approx(0.75, abs=0.1)
    assert any(untold)


def test_a_batch_s_observation_is_made_of_what_is_told(corpus):
    batch = told_of(corpus, gap_probability=1.0, noise_weights={"tone": 1.0, "white": 1.0})
    found = batch.observation(batch.degraded_log_mel())
    assert found.log_mel.shape == found.variance.shape == (4, 1, FRAMES, 256)
    for row, (band, tones, gaps) in enumerate(zip(batch.bands, batch.tones_hz, batch.gaps, strict=True)):
        variance, ((start, end),) = found.variance[row, 0], gaps
        assert (variance[:, band_of_hz(1.05 * band.passband_hz) :] == MISSING).all()
        assert (variance[round(50 * (start + end))] >= 1).all()  # a frame takes 10 ms
        assert all((variance[:, band_of_hz(hz)] == MISSING).all() for hz in tones)
