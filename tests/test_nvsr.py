"""The regressor's closed forms against numpy: moving and conditional means, interpolation; what its network may do."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from srlib.config import N_MELS
from srlib.corpus import Corpus, draw
from srlib.data import load_dataset
from srlib.degrade import DegradationConfig
from srlib.experts import fit_experts, kinds_of_noise
from srlib.mel import log_mel
from srlib.nvsr import (
    EXPERT_CUTOFFS_HZ,
    NOISES,
    MelRegressor,
    denormalise,
    expert_shares,
    moving_mean,
    normalise,
)

BAND_VARIANCE = 0.015  # of the regressor, added to the known bands


def numpy_moving_mean(frames):
    """Of `[frames, bands]`, over 128 frames to either side."""
    return np.stack([frames[max(0, i - 128) : i + 129].mean(0) for i in range(len(frames))])


def covariance(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((N_MELS, 12)) / 4
    return torch.from_numpy(factors @ factors.T + 0.05 * np.eye(N_MELS)).float()


@pytest.fixture
def regressor() -> MelRegressor:
    """One whose networks say nothing, but that there is no noise."""
    torch.manual_seed(0)
    model = MelRegressor(hidden_size=16, num_layers=1, kernel_size=3, expansion=1).eval()
    model.frame_mean.copy_(torch.linspace(0.3, -0.9, N_MELS))
    model.level_covariance.copy_(covariance(0))
    model.motion_covariance.copy_(covariance(1))
    torch.nn.init.zeros_(model.noise[-1].weight)
    model.noise[-1].bias.data = torch.tensor([100.0, 0.0, 0.0])
    return model


@pytest.mark.parametrize("count", [1, 100, 257, 400])
def test_moving_means_are_those_of_numpy(count):
    frames = np.random.default_rng(0).standard_normal((2, count, 3))
    means = moving_mean(torch.from_numpy(frames).float())
    np.testing.assert_allclose(means, [numpy_moving_mean(clip) for clip in frames], atol=1e-5)


@pytest.mark.parametrize("known", [1, 100, 190, 255])
def test_missing_bands_are_the_conditional_means_of_level_and_motion(regressor, known):
    frames = torch.randn(1, 300, N_MELS, generator=torch.Generator().manual_seed(1)) / 4
    estimate = regressor(denormalise(frames)[:, None], torch.tensor([known])).log_mel[0, 0]
    mean, exact = regressor.frame_mean.double().numpy(), frames[0].double().numpy()
    slow = numpy_moving_mean(exact)
    expected = mean[known:]
    level, motion = (covariance(seed).double().numpy() for seed in (0, 1))
    for full, part in ((level + 0.25 / (1 - known / N_MELS) * motion, slow - mean), (motion, exact - slow)):
        inner = full[:known, :known] + BAND_VARIANCE * np.eye(known)
        expected = expected + part[:, :known] @ np.linalg.solve(inner, full[:known, known:])
    assert torch.allclose(estimate[:, :known], denormalise(frames[0, :, :known]), atol=1e-4)
    np.testing.assert_allclose(normalise(estimate[:, known:]).detach(), expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "shift"), [(0, False), (1, False), (2, True)])
def test_the_network_corrects_the_level_under_white_noise_alone(regressor, kind, shift):
    log_mels = denormalise(torch.randn(1, 1, 300, N_MELS, generator=torch.Generator().manual_seed(2)) / 4)
    known = torch.tensor([100])
    regressor.noise[-1].bias.copy_(100 * torch.eye(3)[kind])
    before = regressor(log_mels, known).log_mel
    torch.nn.init.normal_(regressor.head.weight)
    torch.nn.init.constant_(regressor.head.bias, 5.0)
    change = regressor(log_mels, known).log_mel - before
    assert float(change.std()) > 0.1
    assert (float(change.mean().abs()) > 1.0) == shift


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


def test_without_a_band_the_regressor_takes_its_own_guess(regressor):
    torch.nn.init.zeros_(regressor.passed[-1].weight)
    regressor.passed[-1].bias.data = torch.where(torch.arange(N_MELS) < 120, 50.0, -50.0)
    log_mels = denormalise(torch.randn(1, 1, 8, N_MELS) / 4)
    given = regressor(log_mels, torch.tensor([120])).log_mel
    assert torch.equal(regressor(log_mels).log_mel, given)


def test_shares_interpolate_between_neighbouring_cutoffs():
    shares = expert_shares(torch.arange(0, N_MELS + 1))
    assert shares.shape == (N_MELS + 1, len(EXPERT_CUTOFFS_HZ))
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert int((shares > 0).sum(1).max()) == 2
    assert shares[0, 0] == 1 and shares[-1, -1] == 1


def test_fit_holds_the_covariances_of_level_and_motion_and_a_ridge_towards_the_identity(tmp_path):
    corpus = Corpus.build(load_dataset("demo", "train")[:4], tmp_path)
    config = DegradationConfig(noise_weights={"none": 1.0, "white": 1.0})
    batches = [draw(corpus, config, np.random.default_rng(index), 4, 64) for index in range(6)]
    regressor = MelRegressor(hidden_size=16, num_layers=1)
    fit_experts(regressor, batches, penalty=10.0)
    usable = [(b, row) for b in batches for row in range(4) if b.bandwidth_hz[row] >= 18_900]
    clips = [normalise(log_mel(b.reference[row]))[0, 0].double().numpy() for b, row in usable]
    slow = [numpy_moving_mean(clip) for clip in clips]
    motion = np.concatenate([clip - mean for clip, mean in zip(clips, slow, strict=True)])
    moving, level = motion.T @ motion / len(motion), np.concatenate(slow)
    np.testing.assert_allclose(regressor.frame_mean, level.mean(0), atol=1e-4)
    np.testing.assert_allclose(regressor.motion_covariance, moving, atol=1e-4)
    np.testing.assert_allclose(regressor.level_covariance, np.cov(level.T, bias=True), atol=1e-4)
    tone, white = regressor.experts.unflatten(0, (len(NOISES) - 1, len(EXPERT_CUTOFFS_HZ)))
    identity = torch.cat([torch.eye(N_MELS), torch.zeros(1, N_MELS)])
    assert torch.equal(tone, identity.expand_as(tone))  # none was drawn
    noisy = [(b, row) for b, row in usable if b.degradations[row].noise_type == "white"]
    before, after = [], []
    for batch, row in noisy:
        pair = [normalise(log_mel(wav[row]))[0, 0] for wav in (batch.degraded, batch.reference)]
        weights = torch.einsum("e,eio->io", expert_shares(batch.known_bands)[row], white)
        estimate = pair[0] @ weights[:-1] + weights[-1]
        before.append(float(((pair[0] - pair[1]) ** 2).mean()))
        after.append(float(((estimate - pair[1]) ** 2).mean()))
    assert np.mean(after) < 0.5 * np.mean(before)


def test_hidden_noise_counts_as_none_and_the_gate_is_fitted_to_the_rest(tmp_path):
    corpus = Corpus.build(load_dataset("demo", "train")[:4], tmp_path)
    config = DegradationConfig(noise_weights={"none": 1.0, "white": 1.0}, white_amplitude=(0.01, 0.02))
    batches = [draw(corpus, config, np.random.default_rng(index), 8, 64, augment=False) for index in range(12)]
    torch.manual_seed(0)
    regressor = MelRegressor(hidden_size=64, num_layers=1)
    fit_experts(regressor, batches)
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
