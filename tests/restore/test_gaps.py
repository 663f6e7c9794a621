"""Gaps: found to the sample in a stream, bridged in the log-mel, filled without touching what surrounds them."""

import numpy as np
import pytest
import torch
from scipy import signal

from srlib.audio.stft import log_mel
from srlib.restore.gaps import GapFinder, fill_gaps, interpolate_gaps, without_pre_echo

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


def test_interpolation_goes_from_one_side_to_the_other():
    steps = torch.full((1, 1, 200, 256), -6.0)
    steps[:, :, 100:] = 0.0
    bridged = interpolate_gaps(steps, [(0.9, 1.1)])[0, 0, :, 0]
    assert (bridged.diff() >= 0).all()
    assert bridged[88] < -5.5 and bridged[112] > -0.5 and bridged[99:101].mean() == pytest.approx(-3, abs=0.3)
    at_the_end = interpolate_gaps(steps, [(1.9, 2.0)])
    torch.testing.assert_close(at_the_end, steps, atol=1e-6, rtol=0)  # the level of its only side
    assert torch.equal(interpolate_gaps(steps, [(0.0, 2.0)]), steps)  # there is nothing to take from


@pytest.mark.parametrize("gap", [(0.5, 0.75), (0.0, 0.25), (1.75, 2.0), (0.5, 0.502), (1.9, 2.5), (3.0, 3.1)])
def test_only_what_lies_inside_a_gap_is_changed(gap):
    rng = torch.Generator().manual_seed(0)
    wav, generated = (torch.randn(2 * SAMPLE_RATE, generator=rng) for _ in range(2))
    filled = fill_gaps(wav, generated, [gap])
    first, last = (min(round(edge * SAMPLE_RATE), len(wav)) for edge in gap)
    outside = torch.ones(len(wav), dtype=torch.bool)
    outside[first:last] = False
    assert torch.equal(filled[outside], wav[outside])
    middle = slice(first + 1200, max(last - 1200, first + 1200))
    assert torch.equal(filled[middle], generated[middle])
    assert torch.isfinite(filled).all() and filled.abs().max() < 6
    assert fill_gaps(wav, generated, ()) is wav


@pytest.mark.parametrize(
    "gaps", [[(0.5, 0.75), (0.75, 1.0)], [(0.75, 1.0), (0.5, 0.75)], [(0.5, 0.9), (0.6, 1.0)], [(0.5, 1.0), (0.6, 0.7)]]
)
def test_gaps_that_touch_or_overlap_are_one(gaps):
    """Between them there is no sound that could be carried on: each would fade to silence where they meet."""
    rng = torch.Generator().manual_seed(0)
    wav, generated = (torch.randn(2 * SAMPLE_RATE, generator=rng) for _ in range(2))
    assert torch.equal(fill_gaps(wav, generated, gaps), fill_gaps(wav, generated, [(0.5, 1.0)]))
    mel = log_mel(wav)
    assert torch.equal(interpolate_gaps(mel, gaps), interpolate_gaps(mel, [(0.5, 1.0)]))


def test_the_edges_do_not_click(music):
    """The largest step from one sample to the next near an edge is no larger than steps of the music around it."""
    wav, generated = torch.from_numpy(music), 0.1 * torch.randn(len(music), generator=torch.Generator().manual_seed(0))
    first, last = 60_000, 72_000
    cut = wav.clone()
    cut[first:last] = 0
    second = fill_gaps(cut, generated, [(first / SAMPLE_RATE, last / SAMPLE_RATE)]).diff(n=2).abs()
    around = torch.cat([wav[first - 2000 : first], wav[last : last + 2000]]).diff(n=2).abs()
    assert max(second[edge - 4 : edge + 4].max() for edge in (first, last)) < around.quantile(0.99)


@pytest.mark.parametrize("gaps", ["auto", [(0.5, 0.75)]])
def test_the_pipeline_returns_all_but_the_gap_to_the_bit(tiny_pipeline, music, gaps):
    wav = 0.5 * np.stack([music, music[::-1]])[:, : 2 * SAMPLE_RATE]
    first, last = 24_000, 36_000
    wav[:, first:last] = 0
    wav[:, [first - 1, last]] = 0.01
    restored = tiny_pipeline(wav, SAMPLE_RATE, cutoff_hz=None, gaps=gaps).audio
    assert np.array_equal(restored[:, :first], wav[:, :first])
    assert np.array_equal(restored[:, last:], wav[:, last:])
    assert (restored[:, first:last] != 0).mean() > 0.99


ONSET = SAMPLE_RATE + 137
ONSETS = {  # [samples] from the onset on
    "click": lambda rng, seconds: rng.standard_normal(len(seconds)) * (seconds < 0.0005),
    "drum": lambda rng, seconds: rng.standard_normal(len(seconds)) * np.exp(-seconds / 0.06),
}


@pytest.mark.parametrize("before", [0.0, 1e-5])
@pytest.mark.parametrize("kind", ONSETS)
def test_nothing_rings_before_a_hard_onset(tiny_pipeline, kind, before):
    rng, wav = np.random.default_rng(0), np.zeros(2 * SAMPLE_RATE)
    wav[ONSET:] = 0.3 * ONSETS[kind](rng, np.arange(len(wav) - ONSET) / SAMPLE_RATE)
    degraded = signal.sosfilt(signal.ellip(8, 0.1, 60, 6000, output="sos", fs=SAMPLE_RATE), wav)
    degraded += before * rng.standard_normal(len(wav))
    output = tiny_pipeline(degraded.astype(np.float32), SAMPLE_RATE, num_inference_steps=0, cutoff_hz=6000.0)
    around = output.audio[ONSET - 240 : ONSET], output.audio[ONSET : ONSET + 240]
    energy = [np.square(part).mean() + 1e-20 for part in around]
    assert 10 * np.log10(energy[0] / energy[1]) < -45


def test_what_is_not_silent_before_an_onset_or_lies_in_a_gap_stays_as_it_was_made(music):
    made, gap = torch.full((len(music),), 0.1), (1.0, 1.25)
    cut = torch.from_numpy(music).clone()
    cut[48_000:60_000] = 0
    assert torch.equal(without_pre_echo(made, cut, [gap]), made)
    changed = without_pre_echo(made, cut, []) != made
    assert changed[60_000 - 1400 : 60_000].all() and changed.sum() <= 1441
