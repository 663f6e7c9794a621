"""Loud moments of an estimated log-mel: what is raised, by how much at most, and what stays as it is."""

import torch

from srlib.models.emphasis import emphasised


def test_what_is_loud_for_its_time_is_raised_above_the_edge_alone():
    onset = torch.full((2, 1, 600, 256), -6.0)
    onset[:, :, 300, 150] = 0.0
    gain = (emphasised(onset, 100) - onset)[0, 0]
    assert not gain[:, :100].any()
    assert 0.8 < gain[300, 150] < 1 and gain[299, 150] < 0.01  # nat; beside the onset all is quiet for its time
    assert (gain[:, 151] < 0.1).all()
    assert emphasised(onset, 256) is onset  # nothing is missing


def test_the_gain_does_not_depend_on_the_level_and_has_a_limit(train_log_mels):
    music = train_log_mels[:2].clamp(min=-9)
    torch.testing.assert_close(emphasised(music + 3, 128) - 3, emphasised(music, 128), atol=1e-4, rtol=0)
    gain = emphasised(music, 0) - music
    assert gain.min() >= 0 and gain.max() < 1 and torch.isfinite(emphasised(music - 2.5, 0)).all()
