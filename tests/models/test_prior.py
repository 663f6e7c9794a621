"""The Gaussian prior against conditioning written out with full matrices, and on draws whose truth is known."""

import numpy as np
import pytest
import torch

from srlib.config import LOG_MEL_FLOOR
from srlib.models import prior as module
from srlib.models.prior import MISSING, SLOW_FRAMES, GaussianPrior

BANDS, FRAMES = 6, 96  # shorter than half a window: the slow part is one for all frames


def prior_of(slow: bool = True, n_mels: int = BANDS, rank: int = 2) -> GaussianPrior:
    """One with random covariances; without a slow part, if asked for."""
    generator = torch.Generator().manual_seed(0)
    prior = GaussianPrior(rank=rank, latent_channels=1, n_mels=n_mels)
    prior.mean.copy_(-4 + torch.randn(n_mels, generator=generator))
    for part in ("slow", "fast"):
        scale = 1.0 if part == "fast" or slow else 0.0
        getattr(prior, f"{part}_factors").copy_(scale * torch.randn(n_mels, rank, generator=generator))
        getattr(prior, f"{part}_variance").copy_(scale * (0.2 + torch.rand(n_mels, generator=generator)))
    return prior


def covariance_of(prior: GaussianPrior, part: str) -> np.ndarray:
    factors = getattr(prior, f"{part}_factors").double().numpy()
    return factors @ factors.T + np.diag(getattr(prior, f"{part}_variance").double().numpy())


def observed_of(seed: int = 1) -> np.ndarray:
    return -4 + 1.5 * np.random.default_rng(seed).standard_normal((FRAMES, BANDS))


def noise_of(kind: str) -> np.ndarray:
    """Variances of an observation, `[frames, bands]`; but for `everywhere`, the two highest bands are missing."""
    changing = np.random.default_rng(2).uniform(0.01, 3.0, (FRAMES, BANDS)) * (kind != "clean")
    return changing if kind == "everywhere" else np.where(np.arange(BANDS) < 4, changing, MISSING)


def posterior_of(prior: GaussianPrior, observed: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = prior(*(torch.from_numpy(np.array(value)).float()[None, None] for value in (observed, variance)))
    return found.mean[0, 0].numpy(), found.variance[0, 0].numpy()


@pytest.mark.parametrize("kind", ["clean", "noisy", "everywhere"])
def test_without_a_slow_part_it_is_dense_gaussian_conditioning(monkeypatch, kind):
    monkeypatch.setattr(module, "MODEL_VARIANCE", 1e-6)
    prior, observed, variance = prior_of(slow=False), observed_of(), noise_of(kind)
    mean, spread = posterior_of(prior, observed, variance)
    centre, covariance = prior.mean.double().numpy(), covariance_of(prior, "fast")
    for frame in range(FRAMES):
        gain = covariance @ np.linalg.inv(covariance + np.diag(variance[frame]))
        np.testing.assert_allclose(mean[frame], centre + gain @ (observed[frame] - centre), atol=2e-4)
        np.testing.assert_allclose(spread[frame], np.diag(covariance - gain @ covariance), atol=2e-4)


def test_an_exact_observation_is_returned_and_of_what_is_missing_altogether_the_prior_remains():
    prior, observed = prior_of(), observed_of()
    mean, spread = posterior_of(prior, observed, noise_of("clean"))
    np.testing.assert_allclose(mean[:, :4], observed[:, :4], atol=1e-5)
    np.testing.assert_allclose(spread[:, :4], 0, atol=1e-6)
    mean, spread = posterior_of(prior, observed, np.full((FRAMES, BANDS), np.inf))
    np.testing.assert_allclose(mean, np.broadcast_to(prior.mean, mean.shape), atol=1e-3)
    whole = sum(np.diag(covariance_of(prior, part)) for part in ("slow", "fast"))
    np.testing.assert_allclose(spread, np.broadcast_to(whole, spread.shape), rtol=1e-3)
    lowest, _ = posterior_of(prior, np.full((FRAMES, BANDS), -30.0), noise_of("noisy"))
    assert lowest.min() == pytest.approx(np.log(LOG_MEL_FLOOR))


def test_the_slow_part_follows_a_level_that_changes_in_seconds_and_ignores_a_click():
    """Two bands that only the slow part ties together: the second is heard through the first."""
    prior = GaussianPrior(rank=1, latent_channels=1, n_mels=2)
    for value, buffer in zip((-4.0, 2.0, 0.01, 0.0, 0.5), list(prior.buffers())[:5], strict=True):
        buffer.fill_(value)
    frames = 8 * SLOW_FRAMES
    observed, variance = np.full((frames, 2), -4.0), np.tile([0.0, MISSING], (frames, 1))
    observed[frames // 2 :, 0], observed[100, 0] = -2.0, 2.0
    told = posterior_of(prior, observed, variance)[0][:, 1]
    for place, level in ((slice(0, frames // 2 - SLOW_FRAMES), -4), (slice(frames // 2 + SLOW_FRAMES, None), -2)):
        assert told[place] == pytest.approx(level, abs=0.1)
    around = told[frames // 2 - SLOW_FRAMES // 2 : frames // 2 + SLOW_FRAMES // 2]
    assert (np.diff(around) > -1e-4).all() and told[frames // 2] == pytest.approx(-3, abs=0.1)


def draws(prior: GaussianPrior, clips: int, frames: int) -> np.ndarray:
    """Log-mels `[clips, frames, bands]` of the prior's own distribution."""
    rng, parts, zero = np.random.default_rng(3), [], np.zeros(len(prior.mean))
    for part, shape in (("slow", (clips, 1)), ("fast", (clips, frames))):
        parts.append(rng.multivariate_normal(zero, covariance_of(prior, part), shape))
    return prior.mean.double().numpy() + parts[0] + parts[1]


def test_fitting_gives_back_the_two_covariances_of_its_draws():
    truth = prior_of(n_mels=12, rank=3)
    for part in ("slow", "fast"):
        getattr(truth, f"{part}_variance").fill_(0.02)
    clips = torch.from_numpy(draws(truth, 1500, SLOW_FRAMES + SLOW_FRAMES // 2 - 1)).float()[:, None]
    fitted, cut = (GaussianPrior(rank=3, latent_channels=1, n_mels=12) for _ in range(2))
    fitted.fit(clips.split(100))
    fast = covariance_of(truth, "fast")
    # The mean of a window holds the fast part's own, and the deviations lack it.
    expected = {"slow": covariance_of(truth, "slow") + fast / SLOW_FRAMES, "fast": fast * (1 - 1 / SLOW_FRAMES)}
    for part, covariance in expected.items():
        found = covariance_of(fitted, part)
        assert np.linalg.norm(found - covariance) < 0.08 * np.linalg.norm(covariance), part
    assert (np.abs(fitted.mean.numpy() - truth.mean.numpy()) < 4 * np.sqrt(np.diag(expected["slow"]) / 1500)).all()
    cut.fit(clips[:, :, :SLOW_FRAMES].split(100))  # the rest is less than half a window, and is left out
    assert all(torch.equal(value, cut.state_dict()[name]) for name, value in fitted.state_dict().items())
