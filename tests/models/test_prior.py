"""The Gaussian prior against conditioning written out with full matrices, and on draws whose truth is known."""

import numpy as np
import pytest
import torch

from srlib.audio.stft import band_of_hz, log_mel
from srlib.config import LOG_MEL_FLOOR
from srlib.data.tracks import load_dataset
from srlib.measure.metrics import HEADLINE_HZ
from srlib.models import prior as module
from srlib.models.prior import SLOW_FRAMES, GaussianPrior, emphasised

BANDS, RANK, FRAMES = 6, 2, 96  # shorter than half a window: the slow part is one for all frames
MISSING = 1e6
MODEL_VARIANCE = 0.2  # nat^2, added to every observation


def prior_of(slow: bool = True, n_mels: int = BANDS, rank: int = RANK, seed: int = 0) -> GaussianPrior:
    """One with random covariances; without a slow part, if asked for."""
    generator = torch.Generator().manual_seed(seed)
    prior = GaussianPrior(rank=rank, latent_channels=1, n_mels=n_mels)
    prior.mean.copy_(-4 + torch.randn(n_mels, generator=generator))
    for part in ("slow", "fast"):
        scale = 1.0 if part == "fast" or slow else 0.0
        getattr(prior, f"{part}_factors").copy_(scale * torch.randn(n_mels, rank, generator=generator))
        getattr(prior, f"{part}_variance").copy_(scale * (0.2 + torch.rand(n_mels, generator=generator)))
    return prior


def covariances(prior: GaussianPrior, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Of what neighbouring bands share, and of what is each band's own, both `[bands, bands]`."""
    factors = getattr(prior, f"{part}_factors").double().numpy()
    return factors @ factors.T, np.diag(getattr(prior, f"{part}_variance").double().numpy())


def observed_of(seed: int = 1, frames: int = FRAMES, n_mels: int = BANDS) -> np.ndarray:
    return -4 + 1.5 * np.random.default_rng(seed).standard_normal((frames, n_mels))


def noise_of(kind: str) -> np.ndarray:
    """Variances of an observation, `[frames, bands]`."""
    known = np.broadcast_to(np.arange(BANDS) < 4, (FRAMES, BANDS))
    if kind == "clean":
        return np.where(known, 0.0, MISSING)
    changing = np.random.default_rng(2).uniform(0.01, 3.0, (FRAMES, BANDS))
    return {"noisy": np.where(known, changing, MISSING), "everywhere": changing}[kind]


def posterior_of(prior: GaussianPrior, observed: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pair = (torch.from_numpy(np.array(value)).float()[None, None] for value in (observed, variance))
    found = prior(*pair)
    return found.mean[0, 0].numpy(), found.variance[0, 0].numpy()


@pytest.mark.parametrize("kind", ["clean", "noisy", "everywhere"])
def test_without_a_slow_part_it_is_dense_gaussian_conditioning(monkeypatch, kind):
    monkeypatch.setattr(module, "MODEL_VARIANCE", 1e-6)
    prior, observed, variance = prior_of(slow=False), observed_of(), noise_of(kind)
    mean, spread = posterior_of(prior, observed, variance)
    centre, covariance = prior.mean.double().numpy(), sum(covariances(prior, "fast"))
    for frame in range(FRAMES):
        gain = covariance @ np.linalg.inv(covariance + np.diag(variance[frame]))
        np.testing.assert_allclose(mean[frame], centre + gain @ (observed[frame] - centre), atol=2e-4)
        np.testing.assert_allclose(spread[frame], np.diag(covariance - gain @ covariance), atol=2e-4)


def test_an_exact_observation_is_returned_as_it_is_and_bounds_what_is_missing():
    prior, observed = prior_of(), observed_of()
    mean, spread = posterior_of(prior, observed, noise_of("clean"))
    np.testing.assert_allclose(mean[:, :4], observed[:, :4], atol=1e-5)
    np.testing.assert_allclose(spread[:, :4], 0, atol=1e-6)
    own = sum(np.diag(covariances(prior, part)[1]) for part in ("slow", "fast"))
    whole = sum(np.diag(value) for part in ("slow", "fast") for value in covariances(prior, part))
    assert (spread[:, 4:] > own[4:] - 1e-3).all() and (spread[:, 4:] < whole[4:]).all()


def test_of_what_is_missing_altogether_the_prior_remains():
    prior = prior_of()
    mean, spread = posterior_of(prior, observed_of(), np.full((FRAMES, BANDS), np.inf))
    np.testing.assert_allclose(mean, np.broadcast_to(prior.mean, mean.shape), atol=1e-3)
    whole = sum(np.diag(value) for part in ("slow", "fast") for value in covariances(prior, part))
    np.testing.assert_allclose(spread, np.broadcast_to(whole, spread.shape), rtol=1e-3)


def test_a_mean_is_no_lower_than_a_log_mel_can_be():
    observed = np.full((FRAMES, BANDS), -30.0)
    mean, _ = posterior_of(prior_of(), observed, noise_of("noisy"))
    assert mean.min() == pytest.approx(np.log(LOG_MEL_FLOOR))


def test_rows_of_a_batch_are_independent_and_slices_keep_what_was_observed():
    prior = prior_of()
    pairs = [(observed_of(seed), noise_of(kind)) for seed, kind in ((1, "clean"), (5, "noisy"))]
    log_mels, variances = (torch.from_numpy(np.stack(values)).float()[:, None] for values in zip(*pairs, strict=True))
    both = prior(log_mels, variances)
    for row, pair in enumerate(pairs):
        alone = posterior_of(prior, *pair)
        np.testing.assert_allclose(both.mean[row, 0], alone[0], atol=1e-5)
        np.testing.assert_allclose(both.variance[row, 0], alone[1], atol=1e-5)
    last = both[1:]
    assert torch.equal(last.mean, both.mean[1:]) and torch.equal(last.observed, variances[1:])


def test_the_slow_part_follows_a_level_that_changes_in_seconds_and_ignores_a_click():
    """Two bands that only the slow part ties together: the second is heard through the first."""
    prior = GaussianPrior(rank=1, latent_channels=1, n_mels=2)
    prior.mean.fill_(-4.0)
    prior.slow_factors.fill_(2.0)
    prior.slow_variance.fill_(0.01)
    prior.fast_factors.zero_()
    prior.fast_variance.fill_(0.5)
    frames = 8 * SLOW_FRAMES
    observed, variance = np.full((frames, 2), -4.0), np.tile([0.0, MISSING], (frames, 1))
    observed[frames // 2 :, 0] = -2.0
    observed[100, 0] = 2.0
    told = posterior_of(prior, observed, variance)[0][:, 1]
    assert told[: frames // 2 - SLOW_FRAMES] == pytest.approx(-4, abs=0.1)
    assert told[frames // 2 + SLOW_FRAMES :] == pytest.approx(-2, abs=0.1)
    assert (np.diff(told[frames // 2 - SLOW_FRAMES // 2 : frames // 2 + SLOW_FRAMES // 2]) > -1e-4).all()
    assert told[frames // 2] == pytest.approx(-3, abs=0.1)


def draws(prior: GaussianPrior, clips: int, frames: int, seed: int = 3) -> np.ndarray:
    """Log-mels `[clips, frames, bands]` of the prior's own distribution."""
    rng = np.random.default_rng(seed)
    n_mels = len(prior.mean)
    parts = []
    for part, shape in (("slow", (clips, 1)), ("fast", (clips, frames))):
        covariance = sum(covariances(prior, part))
        parts.append(rng.multivariate_normal(np.zeros(n_mels), covariance, shape))
    return prior.mean.double().numpy() + parts[0] + parts[1]


@pytest.mark.parametrize("kind", ["clean", "noisy", "everywhere"])
def test_the_posterior_is_calibrated_on_draws_of_the_prior(monkeypatch, kind):
    """Errors are as large as they are said to be, in each band, and cover what a Gaussian covers."""
    monkeypatch.setattr(module, "MODEL_VARIANCE", 1e-6)
    prior, variance = prior_of(slow=False), noise_of(kind)
    truth = draws(prior, 30, FRAMES)
    noise = np.random.default_rng(4).standard_normal(truth.shape) * np.sqrt(variance)
    found = [posterior_of(prior, observed, variance) for observed in truth + noise]
    mean, spread = (np.stack(values) for values in zip(*found, strict=True))
    uncertain = variance[0] > 0
    score = (truth - mean)[..., uncertain] / np.sqrt(spread[..., uncertain])
    np.testing.assert_allclose(np.square(score).mean((0, 1)), 1, atol=0.12)
    assert (np.abs(score) < 1).mean() == pytest.approx(0.683, abs=0.02)
    assert (np.abs(score) < 2).mean() == pytest.approx(0.954, abs=0.01)


def test_fitting_gives_back_the_two_covariances_of_its_draws():
    truth = prior_of(n_mels=12, rank=3)
    for part in ("slow", "fast"):
        getattr(truth, f"{part}_variance").fill_(0.02)
    clips = torch.from_numpy(draws(truth, 1500, SLOW_FRAMES)).float()[:, None]
    fitted = GaussianPrior(rank=3, latent_channels=1, n_mels=12)
    fitted.fit(clips.split(100))
    fast = sum(covariances(truth, "fast"))
    # The mean of a window holds the fast part's own, and the deviations lack it.
    expected = {"slow": sum(covariances(truth, "slow")) + fast / SLOW_FRAMES, "fast": fast * (1 - 1 / SLOW_FRAMES)}
    for part, covariance in expected.items():
        found = sum(covariances(fitted, part))
        assert np.linalg.norm(found - covariance) < 0.08 * np.linalg.norm(covariance), part
    spread = np.sqrt(np.diag(expected["slow"]) / 1500)
    assert (np.abs(fitted.mean.numpy() - truth.mean.numpy()) < 4 * spread).all()


def test_fitting_keeps_the_variance_of_every_band_whatever_the_rank():
    clips = torch.from_numpy(draws(prior_of(n_mels=12, rank=6), 60, SLOW_FRAMES)).float()[:, None]
    means = clips[:, 0].mean(1).double()
    for rank in (1, 4, 12):
        fitted = GaussianPrior(rank=rank, latent_channels=1, n_mels=12)
        fitted.fit([clips])
        found = np.diag(sum(covariances(fitted, "slow")))
        np.testing.assert_allclose(found, means.var(0, unbiased=False), rtol=1e-3, atol=2e-4)


def test_pieces_of_less_than_half_a_window_are_not_fitted():
    clips = torch.from_numpy(draws(prior_of(), 40, SLOW_FRAMES + SLOW_FRAMES // 2 - 1)).float()[:, None]
    whole, cut = (GaussianPrior(rank=RANK, latent_channels=1, n_mels=BANDS) for _ in range(2))
    whole.fit([clips])
    cut.fit([clips[:, :, :SLOW_FRAMES]])
    assert all(torch.equal(value, cut.state_dict()[name]) for name, value in whole.state_dict().items())


def test_clips_that_are_all_shorter_are_fitted_as_they_are():
    clips = torch.from_numpy(draws(prior_of(), 300, 64)).float()[:, None]
    prior = GaussianPrior(rank=RANK, latent_channels=1, n_mels=BANDS)
    prior.fit([clips])
    torch.testing.assert_close(prior.mean, clips.mean((0, 1, 2)), atol=1e-4, rtol=0)
    found = np.diag(sum(covariances(prior, "fast")))
    np.testing.assert_allclose(found, (clips - clips.mean(2, keepdim=True))[:, 0, ::8].square().mean((0, 1)), rtol=1e-3)


@pytest.fixture(scope="module")
def fitted(train_log_mels) -> GaussianPrior:
    prior = GaussianPrior()
    prior.fit([train_log_mels])
    return prior


@pytest.fixture(scope="module")
def unseen() -> torch.Tensor:
    """Log-mels `[tracks, 1, 500, 256]` of the validation tracks."""
    tracks = load_dataset("demo", "valid")
    return torch.cat([log_mel(torch.from_numpy(np.resize(track.mixture(2.0, 5.0), 240_000))) for track in tracks])


def test_music_above_a_cutoff_is_told_from_what_is_below(fitted, unseen):
    """Nearer than the training tracks' mean and than the level below the cutoff, held; and it knows how sure it is."""
    known = torch.arange(256) < band_of_hz(4000)
    high = slice(band_of_hz(4000), band_of_hz(HEADLINE_HZ))
    found = fitted(unseen, torch.where(known, 0.0, MISSING).expand_as(unseen))
    torch.testing.assert_close(found.mean[..., known], unseen[..., known], atol=1e-4, rtol=0)
    error = (found.mean - unseen)[..., high]
    held = unseen[..., band_of_hz(4000) - 8 : band_of_hz(4000)].mean(-1, keepdim=True) - unseen[..., high]
    unconditional = fitted.mean[high] - unseen[..., high]
    assert error.square().mean() < 0.5 * unconditional.square().mean()
    assert error.square().mean() < 0.5 * held.square().mean()
    assert 0.5 < error.square().mean() / found.variance[..., high].mean() < 2


def test_noise_on_music_is_taken_out_of_every_band(fitted, unseen):
    variance = torch.full_like(unseen, 1.0)
    noisy = unseen + torch.randn(unseen.shape, generator=torch.Generator().manual_seed(0))
    found = fitted(noisy, variance)
    before, after = ((value - unseen).square().mean((0, 1, 2)) for value in (noisy, found.mean))
    assert (after < 0.7 * before).all()
    assert after.mean() < 0.45 * before.mean()


def test_in_half_precision_it_computes_in_float32():
    """A pipeline in bfloat16 rounds what was fitted, and nothing else."""
    observed, variance = observed_of(), noise_of("noisy")
    exact, _ = posterior_of(prior_of(), observed, variance)
    rounded, _ = posterior_of(prior_of().bfloat16(), observed, variance)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05)


# Loud moments of an estimated mean


def test_emphasis_raises_what_is_loud_for_its_time_and_only_above_the_edge(monkeypatch):
    """By half of log(1 + 0.3 r / (1 + r / 30)) nat, r being a cell's power over its mean."""
    monkeypatch.setattr(module, "EMPHASIS", 0.3)
    monkeypatch.setattr(module, "MOST_RELATIVE", 30.0)
    steady = torch.full((2, 1, 600, 256), -6.0)
    raised = emphasised(steady, 100)
    assert torch.equal(raised[..., :100], steady[..., :100])
    expected = 0.5 * np.log1p(0.3 / (1 + 1 / 30))
    torch.testing.assert_close(raised[..., 100:], steady[..., 100:] + expected)
    onset = steady.clone()
    onset[:, :, 300, 150] = 0.0
    gain = emphasised(onset, 100) - onset
    ratio = np.exp(12) * SLOW_FRAMES / (np.exp(12) + SLOW_FRAMES - 1)
    assert gain[0, 0, 300, 150] == pytest.approx(0.5 * np.log1p(0.3 * ratio / (1 + ratio / 30)), abs=1e-3)
    assert (gain[0, 0, 299, 150] < 0.01) and gain[0, 0, 300, 151] == pytest.approx(expected, abs=1e-4)


def test_emphasis_does_not_depend_on_the_level_and_has_a_limit(unseen):
    for shift in (-2.0, 3.0):
        shifted = emphasised(unseen.clamp(min=-9) + shift, 128) - shift
        torch.testing.assert_close(shifted, emphasised(unseen.clamp(min=-9), 128), atol=1e-4, rtol=0)
    gain = emphasised(unseen, 0) - unseen
    assert gain.min() >= 0 and gain.max() < 0.5 * np.log1p(module.EMPHASIS * module.MOST_RELATIVE)
    assert emphasised(unseen, 256) is unseen  # nothing is missing
    assert torch.isfinite(emphasised(torch.full((1, 1, 10, 256), np.log(LOG_MEL_FLOOR)), 0)).all()
