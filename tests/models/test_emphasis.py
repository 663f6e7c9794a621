"""Loud moments of an estimated log-mel: the formula, its limits, and what stays as it is."""

import numpy as np
import pytest
import torch

from srlib.models.emphasis import EMPHASIS, MOST_RELATIVE, emphasised
from srlib.models.prior import SLOW_FRAMES


def gain_of(ratio: float) -> float:
    """Nat, of a cell with this power over its mean."""
    return 0.5 * np.log1p(EMPHASIS * ratio / (1 + ratio / MOST_RELATIVE))


def test_what_is_loud_for_its_time_is_raised_above_the_edge_alone():
    onset = torch.full((2, 1, 600, 256), -6.0)
    onset[:, :, 300, 150] = 0.0
    gain = (emphasised(onset, 100) - onset)[0, 0]
    assert not gain[:, :100].any()
    assert gain[300, 150] == pytest.approx(gain_of(np.exp(12) * SLOW_FRAMES / (np.exp(12) + SLOW_FRAMES - 1)), abs=1e-3)
    assert gain[299, 150] < 0.01 and gain[300, 151] == pytest.approx(gain_of(1), abs=1e-4)
    assert emphasised(onset, 256) is onset  # nothing is missing


def test_the_gain_does_not_depend_on_the_level_and_has_a_limit(train_log_mels):
    music = train_log_mels[:2].clamp(min=-9)
    torch.testing.assert_close(emphasised(music + 3, 128) - 3, emphasised(music, 128), atol=1e-4, rtol=0)
    gain = emphasised(music, 0) - music
    assert gain.min() >= 0 and gain.max() < gain_of(1e9) and torch.isfinite(emphasised(music - 2.5, 0)).all()
