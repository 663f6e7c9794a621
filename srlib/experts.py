"""Closed-form fits of the regressor: the distributions of clean frames, and ridge regressions for noisy ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from srlib.config import N_MELS
from srlib.corpus import Batch
from srlib.errors import SrlibError
from srlib.mel import log_mel
from srlib.nvsr import EXPERT_CUTOFFS_HZ, NOISES, MelRegressor, expert_shares, moving_mean, normalise

_FULL_BANDWIDTH_HZ = 18_900.0  # crops that end lower are no targets for the upper bands and are left out


@torch.no_grad()
def fit_experts(regressor: MelRegressor, batches: Iterable[Batch], penalty: float = 3000.0) -> None:
    """Fit mean and covariances of clean frames, and the experts, to batches of crops.

    A crop counts for an expert by how near its cutoff is. Kinds of noise that were not drawn leave their experts as
    they are. `penalty` is on the squared distance of the weights from the identity, against squared errors of
    normalised log-mels summed over frames.
    """
    count, cutoffs = len(regressor.experts), len(EXPERT_CUTOFFS_HZ)
    moment = torch.zeros(count, N_MELS + 1, N_MELS + 1, dtype=torch.float64)
    cross = torch.zeros(count, N_MELS + 1, N_MELS, dtype=torch.float64)
    level = torch.zeros(N_MELS + 1, N_MELS + 1, dtype=torch.float64)
    motion = torch.zeros(N_MELS, N_MELS, dtype=torch.float64)
    for batch in batches:
        degraded, reference = (normalise(log_mel(wav))[:, 0].cpu() for wav in (batch.degraded, batch.reference))
        shares = expert_shares(batch.known_bands)
        for row in (batch.bandwidth_hz >= _FULL_BANDWIDTH_HZ).nonzero()[:, 0].tolist():
            slow = moving_mean(reference[row][None])[0]
            common, fast = _with_constant(slow), (reference[row] - slow).double()
            level += common.T @ common
            motion += fast.T @ fast
            noise = NOISES.index(batch.degradations[row].noise_type) - 1
            if noise < 0:
                continue
            features = _with_constant(degraded[row])
            change = (reference[row] - degraded[row]).double()
            own_moment, own_cross = features.T @ features, features.T @ change
            for cutoff in shares[row].nonzero()[:, 0].tolist():
                moment[noise * cutoffs + cutoff] += shares[row, cutoff] * own_moment
                cross[noise * cutoffs + cutoff] += shares[row, cutoff] * own_cross
    ridge = penalty * torch.eye(N_MELS + 1, dtype=torch.float64)
    ridge[-1, -1] = 1e-6  # the constant is free
    identity = torch.cat([torch.eye(N_MELS), torch.zeros(1, N_MELS)])
    fitted = identity + torch.linalg.solve(moment + ridge, cross).float()
    for kind in range(len(NOISES) - 1):
        own = slice(kind * cutoffs, (kind + 1) * cutoffs)
        if moment[own].any():
            regressor.experts[own] = fitted[own].to(regressor.experts)
    frames = level[-1, -1]
    if not frames:
        limit = f"{_FULL_BANDWIDTH_HZ / 1000:g} kHz"
        raise SrlibError(f"No crop holds sound up to {limit}: the base has to be fitted to full-band music.")
    mean = level[-1, :-1] / frames
    regressor.frame_mean.copy_(mean)
    regressor.level_covariance.copy_(level[:-1, :-1] / frames - torch.outer(mean, mean))
    regressor.motion_covariance.copy_(motion / frames)


def _with_constant(frames: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(frames, (0, 1), value=1.0).double()
