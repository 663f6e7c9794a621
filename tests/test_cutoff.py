"""The cutoff detector on filters, coders and noises whose edges are known."""

import numpy as np
import pytest
import torch

from srlib.cutoff import band_from_evidence, roll_off_hz
from srlib.degrade import Degradation
from srlib.mel import band_edges_hz
from srlib.merge import FULL_BAND

SAMPLE_RATE = 48000


@pytest.mark.parametrize(("known_hz", "missing_hz"), [(2000, 2200), (4000, 5500), (8000, 8100), (16000, 18000)])
def test_band_from_evidence(known_hz, missing_hz):
    edges = band_edges_hz()
    centres = torch.from_numpy(edges[1:-1])
    logits = torch.stack([torch.where(centres <= hz, 20.0, -20.0) for hz in (known_hz, missing_hz)]).float()
    band = band_from_evidence(logits)
    width = np.diff(edges).max() * 1.01
    assert abs(band.known_hz - known_hz) < width
    assert band.missing_hz >= 1.02 * band.known_hz - 1e-6
    assert abs(band.missing_hz - max(missing_hz, 1.02 * known_hz)) < 2 * width


def test_evidence_of_a_full_band_and_of_none():
    assert band_from_evidence(torch.full((3, 256), 20.0)) == FULL_BAND
    none = band_from_evidence(torch.full((3, 256), -20.0))
    assert 0 < none.known_hz < none.missing_hz < 100


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_roll_off_of_white_noise_is_the_detector_s_share_of_its_band(share):
    wav = 0.1 * torch.randn(2 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    if share < 1:
        wav = torch.from_numpy(Degradation(24000 * share, "ellip", 10).apply(wav.numpy(), SAMPLE_RATE))
    assert roll_off_hz(wav) == pytest.approx(0.985 * 24000 * share, rel=0.02)
