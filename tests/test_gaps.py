"""Gaps: found to the sample in a stream, bridged in the log-mel, filled without touching what surrounds them."""

import numpy as np
import pytest
import torch

from srlib.gaps import GapFinder, fill_gaps, interpolate_gaps
from srlib.mel import log_mel

SAMPLE_RATE = 48000


def find(wav, sample_rate, block):
    finder = GapFinder(sample_rate)
    for start in range(0, wav.shape[-1], block):
        finder.add(wav[..., start : start + block])
    return finder.result()


@pytest.mark.parametrize("block", [1000, 4801, 10**6])
@pytest.mark.parametrize("sample_rate", [44100, 48000])
def test_gaps_are_found_to_the_sample_whatever_the_blocks(music, sample_rate, block):
    wav = np.stack([music, -0.5 * music])
    cut = [(20_000, 32_000), (60_000, 60_000 + round(0.02 * sample_rate))]
    for first, last in cut:
        wav[:, first:last] = 0
        wav[:, [first - 1, last]] = 0.1
    assert find(wav, sample_rate, block) == [(first / sample_rate, last / sample_rate) for first, last in cut]


def test_what_is_no_gap():
    wav = np.ones((2, 4 * SAMPLE_RATE), np.float32)
    wav[0, 10_000:20_000] = 0  # one channel only
    wav[:, 30_000:30_900] = 0  # under 20 ms
    wav[:, 60_000:90_000] = 0  # over 500 ms
    wav[:, :5000] = wav[:, -5000:] = 0  # the recording starts later, or ends sooner
    assert find(wav, SAMPLE_RATE, 7000) == []
    assert find(np.zeros(SAMPLE_RATE // 4, np.float32), SAMPLE_RATE, 100) == []


def test_interpolation_bridges_the_gap_and_keeps_every_other_frame(music):
    music = torch.from_numpy(music)
    gap = (1.0, 1.25)
    cut = music.clone()
    cut[48_000:60_000] = 0
    true, gapped = log_mel(music), log_mel(cut)
    bridged = interpolate_gaps(gapped, [gap])
    changed = (bridged != gapped).any(dim=3)[0, 0].nonzero()[:, 0]
    assert changed.min() >= 97 and changed.max() <= 126  # frames whose window reaches into the gap, and no others
    inside = slice(97, 127)
    error = [(mel[:, :, inside] - true[:, :, inside]).abs().mean() for mel in (gapped, bridged)]
    assert error[1] < 0.3 * error[0]
    assert torch.equal(interpolate_gaps(gapped, []), gapped)


def test_interpolation_is_a_straight_line_of_levels():
    ramp = torch.linspace(-6, 0, 200)[None, None, :, None].expand(1, 1, 200, 256)
    bridged = interpolate_gaps(ramp, [(0.9, 1.1)])
    torch.testing.assert_close(bridged, ramp, atol=0.07, rtol=0)  # exact but for the mean of three frames either side
    at_the_end = interpolate_gaps(ramp, [(1.9, 2.0)])
    assert at_the_end[0, 0, -1, 0] == at_the_end[0, 0, -8, 0] < ramp[0, 0, -1, 0]


@pytest.mark.parametrize("gap", [(0.5, 0.75), (0.0, 0.25), (1.75, 2.0), (0.5, 0.502), (1.9, 2.5), (3.0, 3.1)])
def test_only_what_lies_inside_a_gap_is_changed(gap):
    rng = torch.Generator().manual_seed(0)
    wav, generated = (torch.randn(2 * SAMPLE_RATE, generator=rng) for _ in range(2))
    filled = fill_gaps(wav, generated, [gap])
    first, last = (min(round(edge * SAMPLE_RATE), len(wav)) for edge in gap)
    outside = torch.ones(len(wav), dtype=torch.bool)
    outside[first:last] = False
    assert torch.equal(filled[outside], wav[outside])
    middle = slice(first + 240, last - 240)
    assert torch.equal(filled[middle], generated[middle])
    assert fill_gaps(wav, generated, ()) is wav
