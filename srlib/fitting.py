"""What of the regressor is fitted before it is trained: the music in its store, and the gate between noises."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from srlib.corpus import Batch
from srlib.errors import SrlibError
from srlib.exemplars import excerpts
from srlib.mel import log_mel, normalise
from srlib.nvsr import NOISES, MelRegressor, clip_features, level_quantiles

_FULL_BANDWIDTH_HZ = 18_900.0  # crops that end lower say nothing of the upper bands and are left out of the store
_AUDIBLE_NAT = 0.1  # a band is noisy if noise raises its median level by more
_GATE_STEPS, _GATE_BATCH, _GATE_RATE, _GATE_DECAY = 1500, 256, 1e-3, 1.0


def kinds_of_noise(batch: Batch, degraded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which bands noise raises, `[batch, 256]`, and its kind `[batch]`, an index of NOISES.

    `degraded` is the batch's log-mel. What music hides is as good as none, and nobody can tell it.
    """
    raised = (degraded - log_mel(batch.filtered))[:, 0].median(dim=1).values > _AUDIBLE_NAT
    kinds = torch.tensor([NOISES.index(d.noise_type) for d in batch.degradations], device=degraded.device)
    return raised, torch.where(raised.any(1), kinds, 0)


def fit_regressor(regressor: MelRegressor, batches: Iterable[Batch]) -> None:
    """Fill the store with crops of the batches that hold the whole band, and fit the gate to all of them."""
    music, clips, kinds = [], [], []
    for batch in batches:
        degraded = batch.degraded_log_mel()
        clips.append(clip_features(level_quantiles(normalise(degraded)[:, 0]), batch.known_bands))
        kinds.append(kinds_of_noise(batch, degraded)[1])
        full = batch.bandwidth_hz >= _FULL_BANDWIDTH_HZ
        music.append(excerpts(normalise(log_mel(batch.reference))[full, 0]))
    music = torch.cat(music)
    if not len(music):
        limit = f"{_FULL_BANDWIDTH_HZ / 1000:g} kHz"
        raise SrlibError(f"No crop holds sound up to {limit}: the base has to be fitted to full-band music.")
    regressor.store.fill(music)
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
