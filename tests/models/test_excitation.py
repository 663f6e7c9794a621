"""Fine structure above the edge: copies of known sinusoids, their order, chunks, and the log-mel that is asked for."""

import numpy as np
import pytest
import torch

from srlib.audio.stft import band_of_hz, log_mel
from srlib.degrade import Degradation
from srlib.models.excitation import copied, noise, shifts_hz, synthesise

SAMPLE_RATE = 48_000
SECOND = np.arange(SAMPLE_RATE) / SAMPLE_RATE


def copies_of(wav: np.ndarray, edge_hz: float, first_sample: int = 0) -> np.ndarray:
    return copied(torch.from_numpy(wav).float(), edge_hz, first_sample).numpy()


@pytest.mark.parametrize("edge_hz", [1000.0, 7900.0, 15_900.0, 24_000.0])
def test_copies_follow_each_other_without_a_hole_and_at_no_equal_distance(edge_hz):
    shifts, width_hz = np.array(shifts_hz(edge_hz)), edge_hz / 2
    starts, ends = edge_hz - width_hz + shifts, edge_hz + shifts
    before = np.concatenate([[edge_hz], ends])
    assert before[-1] >= 24_000
    assert (starts < 24_000).all()
    overlaps = (before[:-1] - starts) / width_hz
    assert (overlaps >= 0).all() and (overlaps <= 0.1).all()
    assert len(np.unique(np.round(overlaps, 6))) == len(shifts)


@pytest.mark.parametrize("first_sample", [0, 12_345])
@pytest.mark.parametrize(
    ("hz", "edge_hz"),
    [(6000, 8000), (1500, 2000), (15_000, 18_002), (3500, 8000), (8500, 8000), (15_000, 24_000)],
)
def test_a_sinusoid_of_the_top_octave_reappears_in_every_copy_and_nowhere_else(hz, edge_hz, first_sample):
    """Nothing below the edge, and of what would lie above 24 kHz nothing comes back; other sinusoids are not copied."""
    copies = shifts_hz(edge_hz) if edge_hz / 2 <= hz < edge_hz else []
    inside = [shift_hz for shift_hz in copies if edge_hz <= hz + shift_hz < 24_000]
    late = (first_sample + np.arange(SAMPLE_RATE)) / SAMPLE_RATE
    moved = sum((0.1 * np.cos(2 * np.pi * (hz * SECOND + shift_hz * late) + 0.3) for shift_hz in inside), 0 * late)
    made = copies_of(0.1 * np.cos(2 * np.pi * hz * SECOND + 0.3), edge_hz, first_sample)
    middle = slice(12_000, -12_000)  # a reflected sinusoid changes its phase
    np.testing.assert_allclose(made[middle], moved[middle], atol=1e-3)


def test_a_cut_makes_no_click():
    """A step from the end to the start would sound in the octave."""
    bass = 0.5 * np.cos(2 * np.pi * 100.3 * SECOND)
    made = np.abs(copies_of(bass + 0.02 * np.cos(2 * np.pi * 3000 * SECOND), 4000.0))
    assert made.max() < 2 * made[12_000:-12_000].max()


def test_chunks_agree_where_they_overlap(music):
    """The octave is cut out by a long filter: what differs comes from the ends of a chunk, and is gone inside."""
    start, edge_hz = 480 * 101, 7613.0  # no whole number of cycles to the start
    whole, later = copies_of(music, edge_hz)[start:], copies_of(music[start:], edge_hz, start)
    inside = slice(24_000, -24_000)
    assert (whole - later)[inside].std() < 0.02 * whole[inside].std()
    elsewhere = copies_of(music[start:], edge_hz)
    assert (whole - elsewhere)[inside].std() > 0.5 * whole[inside].std()  # the position matters


def test_noise_is_seeded_gaussian_and_loops():
    wav = noise(480_000)
    assert wav.mean().abs() < 0.01 and wav.std() == pytest.approx(1, abs=0.01)
    assert (wav.abs() < 1).float().mean() == pytest.approx(0.683, abs=0.005)
    assert torch.equal(noise(1000, 700), noise(1700)[700:])
    assert torch.equal(noise(1000, 1024 * 480 - 10)[10:], noise(990))


def test_silence_below_the_edge_falls_back_to_noise():
    made = copied(torch.zeros(SAMPLE_RATE), 8000.0, 4800)
    torch.testing.assert_close(made, 1e-5 * noise(SAMPLE_RATE, 4800))
    wanted = torch.full((1, 1, 100, 256), -6.0)
    level = (log_mel(synthesise(wanted, made[None])) - wanted)[0, 0, 4:-4].mean(0)
    assert level[30:180].mean().abs() < 0.4 and level[180:].mean().abs() < 0.15  # narrow bands scatter


@pytest.mark.parametrize("kind", ["copied", "noise"])
@pytest.mark.parametrize("cutoff_hz", [4000, 8000])
def test_what_is_made_of_real_music_has_the_log_mel_that_was_asked_for(music, kind, cutoff_hz):
    low_pass = Degradation(cutoff_hz)
    edge_hz = low_pass.passband_hz(SAMPLE_RATE)
    wav, wanted = torch.from_numpy(music)[None], log_mel(torch.from_numpy(music))
    degraded = torch.from_numpy(low_pass.apply(music, SAMPLE_RATE))[None]
    fine = copied(degraded, edge_hz) if kind == "copied" else noise(wav.shape[1])[None]
    made = synthesise(wanted, fine)
    assert made.shape == wav.shape
    audible = wanted > -9
    audible[..., : band_of_hz(1.1 * edge_hz)] = False
    error = (log_mel(made) - wanted)[audible]
    assert audible.sum() > 10_000
    assert error.abs().mean() < 0.35 and error.mean().abs() < 0.15


def test_copies_of_a_delayed_channel_are_as_delayed(music):
    delay, edge_hz = 37, 4000.0
    pair = torch.from_numpy(np.stack([music[delay:], music[:-delay]]))
    early, late = copied(pair, edge_hz, 4800, torch.tensor([0.0, delay / SAMPLE_RATE])).numpy()
    inside = slice(4800, -4800)
    error = (late[delay:] - early[:-delay])[inside]
    assert np.square(error).mean() < 1e-3 * np.square(early[inside]).mean()
