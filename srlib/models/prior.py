"""A Gaussian prior over log-mel frames; its posterior mean restores cutoff, noise, tones and gaps by one formula.

A log-mel frame is x_t = mean + s + f_t: a slow part s ~ N(0, S_slow), the same for seconds (timbre and level), and a
fast part f_t ~ N(0, S_fast), which changes from frame to frame. It is observed as y_t = x_t + noise, whose variance per
frame and band comes from `srlib.restore.observation`: zero where the band is known, infinite where it is missing.
Both covariances are of low rank plus a diagonal, S = U U' + D (a factor analysis model), so that the posterior of a
frame costs one solve of the rank's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from srlib.config import LOG_MEL_FLOOR, N_MELS

SLOW_FRAMES = 257  # window of the slow part: 2.57 s
_SLOW_STRIDE = 16  # frames between two solves for the slow part, which hardly changes between them
MODEL_VARIANCE = 0.2  # nat^2, added to the variance of every observation, since music is not Gaussian
MISSING = 1e6  # nat^2: stands for an infinite variance, where nothing is observed
_FIT_STRIDE = 8  # every eighth frame is fitted, since the windows of neighbours overlap by three quarters
_LOWEST = math.log(LOG_MEL_FLOOR)


@dataclass
class Posterior:
    """Mean and variance of clean log-mels, `[batch, 1, frames, 256]`, and the variance of their observation."""

    mean: torch.Tensor  # nat
    variance: torch.Tensor  # nat^2
    observed: torch.Tensor  # nat^2

    def __getitem__(self, rows: slice) -> Posterior:
        return Posterior(self.mean[rows], self.variance[rows], self.observed[rows])


class GaussianPrior(ModelMixin, ConfigMixin):
    """Two-scale Gaussian over log-mels. Everything is fitted in closed form (`fit`); nothing has a gradient."""

    @register_to_config
    def __init__(self, rank: int = 64, latent_channels: int = 32, n_mels: int = N_MELS) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((n_mels,), -5.0))  # nat: about the mean of music
        for part in ("slow", "fast"):
            self.register_buffer(f"{part}_factors", torch.zeros(n_mels, rank))
            self.register_buffer(f"{part}_variance", torch.ones(n_mels))
        # Standard deviation of the residual to the posterior mean, by latent channel: the unit of the diffusion model.
        self.register_buffer("residual_std", torch.ones(latent_channels))

    @torch.no_grad()
    def forward(self, log_mel: torch.Tensor, variance: torch.Tensor) -> Posterior:
        """Posterior of clean log-mels given observed ones and their variances, both `[batch, 1, frames, 256]`."""
        posteriors = [self._posterior(*pair) for pair in zip(log_mel[:, 0], variance[:, 0], strict=True)]
        mean, spread = (torch.stack(values)[:, None] for values in zip(*posteriors, strict=True))
        return Posterior(mean.clamp(min=_LOWEST), spread, variance)

    def _posterior(self, observed: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        deviation, variance = observed.float() - self.mean, variance.float().clamp(max=MISSING)
        precision = 1 / (variance + MODEL_VARIANCE)
        smooth = _window_means(precision)
        level = _window_means(precision * deviation) / smooth
        cells = _solve(self.slow_factors, self.slow_variance, level, 1 / smooth)
        slow, slow_spread = (_stretched(values, len(observed)) for values in cells)
        fast, fast_spread = _solve(self.fast_factors, self.fast_variance, deviation - slow, variance + MODEL_VARIANCE)
        estimate, rest = slow + fast, self.slow_variance + self.fast_variance
        known = rest / (rest + variance)  # weight of the observation, 1 if it is exact
        spread = (1 - known) ** 2 * (slow_spread + fast_spread) + known * variance
        return self.mean + estimate + known * (deviation - estimate), spread

    @torch.no_grad()
    def fit(self, log_mels: Iterable[torch.Tensor]) -> None:
        """Fit to clean log-mels `[clips, 1, frames, 256]`: means over `SLOW_FRAMES` and the deviations from them."""
        found_means, found_deviations = [], []
        for clips in log_mels:
            for piece in clips[:, 0].split(SLOW_FRAMES, dim=1):
                if 2 * piece.shape[1] > min(SLOW_FRAMES, clips.shape[2]):  # no short rest of a clip
                    found_means.append(piece.mean(1))
                    found_deviations.append((piece - piece.mean(1, keepdim=True))[:, ::_FIT_STRIDE].flatten(0, 1))
        means, deviations = torch.cat(found_means).double(), torch.cat(found_deviations).double()
        self.mean.copy_(means.mean(0))
        for part, values in (("slow", means - means.mean(0)), ("fast", deviations)):
            factors, rest = _factors(values.T @ values / len(values), self.config.rank)
            getattr(self, f"{part}_factors").copy_(factors)
            getattr(self, f"{part}_variance").copy_(rest)


def _factors(covariance: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal factors `[n, rank]` of a covariance, and the variance `[n]` that they do not explain."""
    values, vectors = torch.linalg.eigh(covariance)
    factors = vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()
    return factors, (covariance.diagonal() - factors.square().sum(1)).clamp(min=1e-4)


def _solve(
    factors: torch.Tensor, rest: torch.Tensor, observed: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and variance `[n, 256]` of U w under w ~ N(0, 1), observed as U w + N(0, rest + variance)."""
    factors, rest = factors.float(), rest.float()  # the pipeline may be in half precision
    rows, rank = len(observed), factors.shape[1]
    if (variance == variance[:1]).all():  # one filter and no noise: one solve for all frames
        variance = variance[:1]
    precision = 1 / (rest + variance)  # [1 or n, 256]
    products = (factors[:, :, None] * factors[:, None]).flatten(1)  # [256, rank * rank]
    gram = (precision @ products).unflatten(1, (rank, rank)) + torch.eye(rank, device=factors.device)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(gram))  # of w
    right = (precision * observed) @ factors
    weights = (covariance @ right[..., None])[..., 0] if len(covariance) == rows else right @ covariance[0]
    return weights @ factors.T, (covariance.flatten(1) @ products.T).expand(rows, -1)


def _window_means(frames: torch.Tensor) -> torch.Tensor:
    """Means of `[frames, bands]` over windows of `SLOW_FRAMES`, shorter at the ends, `_SLOW_STRIDE` frames apart."""
    count = len(frames)
    total = F.pad(frames.double().cumsum(0), (0, 0, 1, 0))
    centres = torch.arange(_SLOW_STRIDE // 2, count + _SLOW_STRIDE // 2, _SLOW_STRIDE, device=frames.device)
    first = (centres - SLOW_FRAMES // 2).clamp(min=0, max=count - 1)
    last = (centres + SLOW_FRAMES // 2 + 1).clamp(max=count)
    return ((total[last] - total[first]) / (last - first)[:, None]).to(frames)


def _stretched(cells: torch.Tensor, frames: int) -> torch.Tensor:
    """`[cells, bands]` interpolated linearly to frames."""
    whole = F.interpolate(cells.T[None], scale_factor=_SLOW_STRIDE, mode="linear", align_corners=False)
    return whole[0].T[:frames]
