"""Closed-form fit of the regressor's linear experts: a ridge regression for each cutoff and kind of noise."""

from __future__ import annotations

from collections.abc import Callable

import torch

from srlib.config import N_MELS
from srlib.corpus import Batch
from srlib.mel import log_mel
from srlib.nvsr import EXPERT_CUTOFFS_HZ, EXPERT_NOISES, MelRegressor, expert_shares, normalise

PASSED = 10 ** (-10 / 20)  # gain from which a band counts as passed when experts are told apart
_FULL_BANDWIDTH_HZ = 18_900.0  # crops that end lower are no targets for the upper bands and are left out


@torch.no_grad()
def fit_experts(regressor: MelRegressor, draw: Callable[[int], Batch], batches: int, penalty: float = 3000.0) -> None:
    """Set the experts from `batches` drawn batches (`draw(index)`), each weighted by how near its cutoff is.

    Kinds of noise that were not drawn take the experts of clean input; full band without noise stays the identity.
    `penalty` is on the squared distance of the weights from the identity, against squared errors of normalised
    log-mels summed over frames.
    """
    count = len(regressor.experts)
    moment = torch.zeros(count, N_MELS + 1, N_MELS + 1, dtype=torch.float64)
    cross = torch.zeros(count, N_MELS + 1, N_MELS, dtype=torch.float64)
    for index in range(batches):
        batch = draw(index)
        usable = batch.bandwidth_hz >= _FULL_BANDWIDTH_HZ
        degraded, reference = (normalise(log_mel(wav))[:, 0] for wav in (batch.degraded, batch.reference))
        shares = expert_shares((batch.response > PASSED).sum(1), [d.noise_type for d in batch.degradations])
        for row in usable.nonzero()[:, 0].tolist():
            features = torch.nn.functional.pad(degraded[row], (0, 1), value=1.0).double().cpu()
            change = (reference[row] - degraded[row]).double().cpu()
            own_moment, own_cross = features.T @ features, features.T @ change
            for expert in shares[row].nonzero()[:, 0].tolist():
                moment[expert] += shares[row, expert] * own_moment
                cross[expert] += shares[row, expert] * own_cross
    ridge = penalty * torch.eye(N_MELS + 1, dtype=torch.float64)
    ridge[-1, -1] = 1e-6  # the constant is free
    change = torch.linalg.solve(moment + ridge, cross).float()
    clean = len(EXPERT_CUTOFFS_HZ)
    for noise in range(1, len(EXPERT_NOISES)):
        own = slice(noise * clean, (noise + 1) * clean)
        if not moment[own].any():
            change[own] = change[:clean]
    identity = torch.cat([torch.eye(N_MELS), torch.zeros(1, N_MELS)])
    regressor.experts.copy_(identity + change)
