"""What is fitted to the regressor before it is trained: distributions of clean frames, ridge regressions, the gate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from srlib.config import N_MELS
from srlib.corpus import Batch
from srlib.errors import SrlibError
from srlib.mel import log_mel
from srlib.nvsr import (
    EXPERT_CUTOFFS_HZ,
    NOISES,
    MelRegressor,
    clip_features,
    expert_shares,
    level_quantiles,
    moving_mean,
    normalise,
)

_FULL_BANDWIDTH_HZ = 18_900.0  # crops that end lower are no targets for the upper bands and are left out
_AUDIBLE_NAT = 0.1  # a band is noisy if noise raises its median level by more
_CUTOFFS = len(EXPERT_CUTOFFS_HZ)
_GATE_STEPS, _GATE_BATCH, _GATE_RATE, _GATE_DECAY = 1500, 256, 1e-3, 1.0


def kinds_of_noise(batch: Batch, degraded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which bands noise raises, `[batch, 256]`, and its kind `[batch]`, an index of NOISES.

    `degraded` is the batch's log-mel. What music hides is as good as none, and nobody can tell it.
    """
    raised = (degraded - log_mel(batch.filtered))[:, 0].median(dim=1).values > _AUDIBLE_NAT
    kinds = torch.tensor([NOISES.index(d.noise_type) for d in batch.degradations], device=degraded.device)
    return raised, torch.where(raised.any(1), kinds, 0)


def fit_experts(regressor: MelRegressor, batches: Iterable[Batch], penalty: float = 3000.0) -> None:
    """Fit mean and covariances of clean frames, the experts, and the gate between them to batches of crops.

    A crop counts for an expert by how near its cutoff is. Kinds of noise that were not drawn leave their experts as
    they are. `penalty` is on the squared distance of the weights from the identity, against squared errors of
    normalised log-mels summed over frames.
    """
    sums, clips, kinds = _Sums(len(regressor.experts)), [], []
    for batch in batches:
        degraded = log_mel(batch.degraded)
        frames = normalise(degraded)[:, 0]
        sums.add(batch, frames.cpu())
        clips.append(clip_features(level_quantiles(frames), batch.known_bands))
        kinds.append(kinds_of_noise(batch, degraded)[1])
    sums.fit(regressor, penalty)
    _fit_gate(regressor.noise, torch.cat(clips), torch.cat(kinds))


def _fit_gate(gate: nn.Module, features: torch.Tensor, kinds: torch.Tensor) -> None:
    """Tell kinds of noise `[clips]` from `[clips, features]`: of thousands of clips, where a step sees a few."""
    optimizer = torch.optim.AdamW(gate.parameters(), lr=_GATE_RATE, weight_decay=_GATE_DECAY)
    generator = torch.Generator().manual_seed(0)
    for _ in range(min(_GATE_STEPS, len(kinds))):  # few clips are soon known by heart
        rows = torch.randint(len(kinds), (_GATE_BATCH,), generator=generator).to(kinds.device)
        loss = nn.functional.cross_entropy(gate(features[rows]), kinds[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class _Sums:
    """What the closed forms are made of, summed over frames in double precision."""

    def __init__(self, experts: int) -> None:
        self.moment = torch.zeros(experts, N_MELS + 1, N_MELS + 1, dtype=torch.float64)
        self.cross = torch.zeros(experts, N_MELS + 1, N_MELS, dtype=torch.float64)
        self.level = torch.zeros(N_MELS + 1, N_MELS + 1, dtype=torch.float64)
        self.motion = torch.zeros(N_MELS, N_MELS, dtype=torch.float64)

    def add(self, batch: Batch, degraded: torch.Tensor) -> None:
        """Add the crops of a batch that hold the whole band; `degraded` `[batch, frames, 256]` is normalised."""
        reference, shares = normalise(log_mel(batch.reference))[:, 0].cpu(), expert_shares(batch.known_bands)
        for row in (batch.bandwidth_hz >= _FULL_BANDWIDTH_HZ).nonzero()[:, 0].tolist():
            slow = moving_mean(reference[row][None])[0]
            common, fast = _with_constant(slow), (reference[row] - slow).double()
            self.level += common.T @ common
            self.motion += fast.T @ fast
            noise = NOISES.index(batch.degradations[row].noise_type) - 1
            if noise < 0:
                continue
            features = _with_constant(degraded[row])
            change = (reference[row] - degraded[row]).double()
            own_moment, own_cross = features.T @ features, features.T @ change
            for cutoff in shares[row].nonzero()[:, 0].tolist():
                self.moment[noise * _CUTOFFS + cutoff] += shares[row, cutoff] * own_moment
                self.cross[noise * _CUTOFFS + cutoff] += shares[row, cutoff] * own_cross

    @torch.no_grad()
    def fit(self, regressor: MelRegressor, penalty: float) -> None:
        """Set the regressor's experts, and mean and covariances of its clean frames."""
        frames = self.level[-1, -1]
        if not frames:
            limit = f"{_FULL_BANDWIDTH_HZ / 1000:g} kHz"
            raise SrlibError(f"No crop holds sound up to {limit}: the base has to be fitted to full-band music.")
        ridge = penalty * torch.eye(N_MELS + 1, dtype=torch.float64)
        ridge[-1, -1] = 1e-6  # the constant is free
        identity = torch.cat([torch.eye(N_MELS), torch.zeros(1, N_MELS)])
        fitted = identity + torch.linalg.solve(self.moment + ridge, self.cross).float()
        for kind in range(len(NOISES) - 1):
            own = slice(kind * _CUTOFFS, (kind + 1) * _CUTOFFS)
            if self.moment[own].any():
                regressor.experts[own] = fitted[own].to(regressor.experts)
        mean = self.level[-1, :-1] / frames
        regressor.frame_mean.copy_(mean)
        regressor.level_covariance.copy_(self.level[:-1, :-1] / frames - torch.outer(mean, mean))
        regressor.motion_covariance.copy_(self.motion / frames)


def _with_constant(frames: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(frames, (0, 1), value=1.0).double()
