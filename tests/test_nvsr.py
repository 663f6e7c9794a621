"""The regressor: what its gate, its store and its network may and may not do."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from srlib.config import N_MELS
from srlib.corpus import Corpus, draw
from srlib.data import load_dataset
from srlib.degrade import DegradationConfig
from srlib.errors import SrlibError
from srlib.exemplars import WhiteNoise
from srlib.fitting import fit_regressor, kinds_of_noise
from srlib.mel import band_of_hz, denormalise, log_mel, normalise
from srlib.nvsr import NOISES, MelRegressor, tone_bands


@pytest.fixture
def regressor() -> MelRegressor:
    """One whose networks say nothing, but that there is no noise."""
    torch.manual_seed(0)
    model = MelRegressor(hidden_size=16, num_layers=1, kernel_size=3, expansion=1, exemplars=64).eval()
    model.store.fill(torch.randn(64, 4, N_MELS) / 4)
    torch.nn.init.zeros_(model.noise[-1].weight)
    model.noise[-1].bias.data = torch.tensor([100.0, 0.0, 0.0])
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", range(len(NOISES)))
def test_the_network_corrects_motion_alone(regressor, kind):
    log_mels = denormalise(torch.randn(1, 1, 300, N_MELS, generator=torch.Generator().manual_seed(2)) / 4)
    known = torch.tensor([100])
    regressor.noise[-1].bias.copy_(100 * torch.eye(len(NOISES))[kind])
    before = regressor(log_mels, known).log_mel
    torch.nn.init.normal_(regressor.head.weight)
    torch.nn.init.constant_(regressor.head.bias, 5.0)
    change = regressor(log_mels, known).log_mel - before
    assert float(change.std()) > 0.1
    assert float(change.mean(2).abs().mean()) < 0.1 * float(change.std())


@torch.no_grad()
def test_without_noise_the_network_sees_no_level(regressor):
    torch.nn.init.normal_(regressor.head.weight)
    log_mels = denormalise(torch.randn(1, 1, 300, N_MELS, generator=torch.Generator().manual_seed(3)) / 4)
    level = torch.linspace(-1, 1, N_MELS)
    quiet, loud = (regressor(log_mels + change, torch.tensor([N_MELS])).log_mel for change in (0 * level, level))
    torch.testing.assert_close(loud - quiet, level.expand_as(quiet), atol=2e-3, rtol=0)


def test_full_band_without_noise_is_left_alone(regressor):
    log_mels = denormalise(torch.randn(2, 1, 8, N_MELS) / 4)
    estimate = regressor(log_mels, torch.tensor([N_MELS, N_MELS])).log_mel
    assert torch.allclose(estimate, log_mels, atol=1e-4)


def test_white_noise_that_was_measured_is_believed(regressor):
    clean = torch.full((2, 1, 64, 256), -6.0) + torch.randn(2, 1, 64, 256, generator=torch.Generator().manual_seed(1))
    noisy = torch.logaddexp(2 * clean, torch.tensor(-4.0)) / 2
    full = torch.tensor([256, 256])
    with torch.no_grad():
        measured = WhiteNoise.find(normalise(noisy[1, 0]), torch.ones(N_MELS).bool())
        louder = WhiteNoise(measured.level + 2, measured.bands)
        doubted, told, misled = (regressor(noisy, full, [None, noise]) for noise in (None, measured, louder))
        assert torch.equal(regressor(noisy, full).log_mel, doubted.log_mel)
    for one in (told, misled):
        assert torch.equal(one.log_mel[0], doubted.log_mel[0])
        assert torch.equal(one.noise, doubted.noise)  # what the gate says is what it says
    assert not torch.allclose(told.log_mel[1], doubted.log_mel[1], atol=0.1)
    assert not torch.allclose(misled.log_mel[1], told.log_mel[1], atol=0.1)


def test_without_a_band_the_regressor_takes_its_own_guess(regressor):
    torch.nn.init.zeros_(regressor.passed[-1].weight)
    regressor.passed[-1].bias.data = torch.where(torch.arange(N_MELS) < 120, 50.0, -50.0)
    log_mels = denormalise(torch.randn(1, 1, 8, N_MELS) / 4)
    given = regressor(log_mels, torch.tensor([120])).log_mel
    assert torch.equal(regressor(log_mels).log_mel, given)


@torch.no_grad()
@pytest.mark.parametrize("kind", range(len(NOISES)))
@pytest.mark.parametrize("level_nat", [-11.5, -4.0])
@pytest.mark.parametrize("known", [0, 1, 255, 256])
def test_any_number_of_known_bands_gives_an_estimate(regressor, kind, level_nat, known):
    regressor.noise[-1].bias.copy_(100 * torch.eye(len(NOISES))[kind])
    log_mels = torch.full((1, 1, 16, N_MELS), level_nat)
    assert torch.isfinite(regressor(log_mels, torch.tensor([known])).log_mel).all()


@torch.no_grad()
@pytest.mark.parametrize("tone_hz", [150.0, 1000.0, 7000.0])
def test_a_tone_is_not_taken_for_music(regressor, music, tone_hz):
    clean = normalise(log_mel(torch.from_numpy(music)))[0, 0]
    tone = 0.2 * np.sin(2 * np.pi * tone_hz * np.arange(len(music)) / 48_000)
    frames = normalise(log_mel(torch.from_numpy(music + tone).float()))[0, 0]
    bands = tone_bands(frames)
    assert bands[band_of_hz(tone_hz)]
    assert bands.sum() < 40
    louder = (frames - clean).median(0).values
    assert louder[~bands].max() < 0.5 * louder[bands].max()
    regressor.noise[-1].bias.data = torch.tensor([0.0, 100.0, 0.0])
    estimate = regressor(denormalise(frames)[None, None], torch.tensor([220])).log_mel[0, 0]
    kept = ~bands & (torch.arange(N_MELS) < 220)
    torch.testing.assert_close(normalise(estimate)[:, kept], frames[:, kept], atol=1e-4, rtol=0)
    assert float(normalise(estimate)[:, band_of_hz(tone_hz)].mean()) < float(frames[:, band_of_hz(tone_hz)].mean())


def test_no_band_of_music_without_a_steady_tone_stands_out():
    assert not tone_bands(torch.zeros(100, N_MELS)).any()


def test_the_store_holds_full_band_music(tmp_path):
    corpus = Corpus.build(load_dataset("demo", "train")[:4], tmp_path)
    batches = [draw(corpus, DegradationConfig(), np.random.default_rng(index), 4, 64) for index in range(6)]
    for batch in batches:
        batch.bandwidth_hz[0] = 16_000.0
    regressor = MelRegressor(hidden_size=16, num_layers=1, exemplars=20)
    fit_regressor(regressor, batches)
    usable = [normalise(log_mel(b.reference[row]))[0, 0] for b in batches for row in range(1, 4)]
    assert len(usable) == 18
    expected = torch.stack([frames[[8, 24, 40, 56]] for frames in (*usable, *usable[:2])])
    torch.testing.assert_close(regressor.store.log_mel, expected)
    for batch in batches:
        batch.bandwidth_hz.fill_(16_000.0)
    with pytest.raises(SrlibError, match=r"18\.9 kHz"):
        fit_regressor(regressor, batches)


def test_hidden_noise_counts_as_none_and_the_gate_is_fitted_to_the_rest(tmp_path):
    corpus = Corpus.build(load_dataset("demo", "train")[:4], tmp_path)
    config = DegradationConfig(noise_weights={"none": 1.0, "white": 1.0}, white_amplitude=(0.01, 0.02))
    batches = [draw(corpus, config, np.random.default_rng(index), 8, 64, augment=False) for index in range(12)]
    torch.manual_seed(0)
    regressor = MelRegressor(hidden_size=64, num_layers=1)
    fit_regressor(regressor, batches)
    right = []
    for batch in batches:
        degraded = log_mel(batch.degraded)
        raised, kinds = kinds_of_noise(batch, degraded)
        assert kinds.tolist() == [NOISES.index(d.noise_type) for d in batch.degradations]  # loud enough to be heard
        assert torch.equal(raised.any(1), kinds > 0)
        right += (regressor(degraded, batch.known_bands).noise.argmax(1) == kinds).tolist()
        silent = replace(batch, degraded=batch.filtered)
        assert not kinds_of_noise(silent, log_mel(silent.degraded))[1].any()
    assert np.mean(right) > 0.9
