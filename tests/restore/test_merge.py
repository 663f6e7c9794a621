"""The merges on signals whose right answer is known: what must be kept, what must go, what must be filled."""

import numpy as np
import pytest
import torch

from srlib.audio.stft import band_edges_hz, frames_of
from srlib.degrade import Degradation, zero_phase_response
from srlib.restore.merge import FULL_BAND, Band, merge, replace_mel

SAMPLE_RATE = 48000
SAMPLES = 96000


def white(level, seed, samples=SAMPLES):
    return level * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def band_snr_db(reference, estimate, low_hz, high_hz):
    """SNR inside a band, from windowed spectra so that other bands do not leak in."""
    window = torch.hann_window(8192)
    spectra = [
        torch.stft(wav, 8192, 4096, window=window, center=False, return_complex=True)
        for wav in (reference, estimate - reference)
    ]
    freqs_hz = torch.linspace(0, 24000, 4097)
    inside = (freqs_hz >= low_hz) & (freqs_hz <= high_hz)
    power, error = (float((spectrum[inside].abs() ** 2).sum()) for spectrum in spectra)
    return 10 * np.log10(power / max(error, 1e-30))


@pytest.fixture(scope="module")
def clip(music):
    return torch.from_numpy(music[:SAMPLES].copy())


@pytest.fixture(scope="module")
def degraded(clip):
    return torch.from_numpy(Degradation(8000).apply(clip.numpy(), SAMPLE_RATE))


BAND = Band(8000, 8560)
LOST_HZ = 9219  # where the line from -3 dB to -20 dB reaches -40 dB


def test_generated_share_is_a_cosine_from_known_to_missing():
    share = BAND.generated_share(torch.tensor([0.0, 7999.0, 8000.0, 8280.0, 8560.0, 20000.0]))
    torch.testing.assert_close(share, torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0]))
    assert FULL_BAND.generated_share(torch.linspace(0, 24000, 1025)).abs().max() == 0
    assert Band.at(4000).passband_hz == 4000
    assert Band.at(4000).stopband_hz > 4000


def test_a_gain_scales_the_known_band_and_nothing_else(degraded):
    generated, frames = white(0.1, 0), frames_of(degraded)
    untouched = merge(generated, degraded, BAND, "gain", torch.ones(frames, 1025))
    assert band_snr_db(degraded, untouched, 0, BAND.passband_hz - 100) > 60
    halved = merge(generated, degraded, BAND, "gain", torch.full((frames, 1025), 0.5))
    assert band_snr_db(0.5 * degraded, halved, 0, BAND.passband_hz - 100) > 60
    assert band_snr_db(generated, halved, LOST_HZ + 100, 24000) > 40


@pytest.mark.parametrize("mode", ["gain", "replace"])
@pytest.mark.parametrize("samples", [1, 500, SAMPLES])
def test_a_cut_makes_no_click(mode, samples):
    degraded = 0.5 * torch.cos(2 * torch.pi * 1000.3 / SAMPLE_RATE * torch.arange(samples))
    assert (merge(white(1e-3, 0, samples), degraded, BAND, mode) - degraded).abs().max() < 0.05


@pytest.mark.parametrize("mode", ["gain", "replace"])
def test_low_band_is_the_degraded_one_and_high_band_the_generated_one(degraded, mode):
    generated = white(0.1, 0)
    restored = merge(generated, degraded, BAND, mode)
    assert torch.equal(merge(generated, degraded, FULL_BAND, mode), degraded)  # nothing is missing
    assert band_snr_db(degraded, restored, 0, BAND.passband_hz - 100) > 60
    from_hz = {"gain": LOST_HZ, "replace": BAND.stopband_hz}[mode]
    assert band_snr_db(generated, restored, from_hz + 100, 24000) > 40


def test_the_response_is_a_line_in_db_and_close_to_real_filters():
    freqs_hz = torch.tensor([0.0, 8000.0, 8280.0, 8560.0, LOST_HZ - 1, LOST_HZ + 1, 20000.0])
    response_db = 20 * torch.log10(BAND.response(freqs_hz) + 1e-9)
    torch.testing.assert_close(response_db[:5], torch.tensor([0.0, -3.0, -11.5, -20.0, -40.0]), atol=0.05, rtol=0)
    assert BAND.response(freqs_hz)[5:].max() == 0
    for family, order in (("cheby1", 6), ("cheby1", 10), ("butter", 2), ("butter", 8), ("ellip", 8)):
        for cutoff_hz in (3000, 8000, 16_000):
            low_pass = Degradation(cutoff_hz, family, order)
            band = Band(low_pass.passband_hz(SAMPLE_RATE), low_pass.stopband_hz(SAMPLE_RATE))
            inside = np.linspace(band.passband_hz, band.stopband_hz, 50, endpoint=False)
            truth = zero_phase_response(low_pass, inside, SAMPLE_RATE)
            assumed = band.response(torch.from_numpy(inside)).numpy()
            assert np.abs(20 * np.log10(assumed / truth)).max() < 3.5
            # Beyond, filters fall faster, or hardly slower: no more is taken back than was taken.
            beyond = np.linspace(band.stopband_hz, band.stopband_hz + band.stopband_hz - band.passband_hz, 50)
            truth = zero_phase_response(low_pass, beyond[beyond < 24_000], SAMPLE_RATE)
            assumed = band.response(torch.from_numpy(beyond[beyond < 24_000])).numpy()
            assert (20 * np.log10(assumed / truth)).min() > -1.5


def test_the_fall_of_the_low_pass_is_taken_back(clip):
    low_pass = Degradation(8000, "cheby1", 4)
    band = Band(low_pass.passband_hz(SAMPLE_RATE), low_pass.stopband_hz(SAMPLE_RATE))
    degraded = torch.from_numpy(low_pass.apply(clip.numpy(), SAMPLE_RATE))
    # As loud as the music, but with nothing else of it.
    spectrum = torch.fft.rfft(clip)
    phase = 2 * np.pi * torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(0))
    generated = torch.fft.irfft(spectrum * torch.exp(1j * phase), len(clip))
    merged = {mode: merge(generated, degraded, band, mode) for mode in ("gain", "replace")}
    fall = band.passband_hz, band.passband_hz + 0.8 * (band.stopband_hz - band.passband_hz)
    assert band_snr_db(clip, merged["gain"], *fall) > 15
    assert band_snr_db(clip, merged["replace"], *fall) < 5
    further = band.stopband_hz, band.stopband_hz + 0.5 * (band.stopband_hz - band.passband_hz)
    assert band_snr_db(clip, merged["gain"], *further) > 8
    assert band_snr_db(clip, merged["replace"], *further) < 0


def band_level(wav, low_hz, high_hz):
    spectrum = torch.fft.rfft(wav)
    freqs_hz = torch.linspace(0, 24000, len(spectrum))
    return 10 * np.log10(float((spectrum[(freqs_hz >= low_hz) & (freqs_hz < high_hz)].abs() ** 2).sum()))


@pytest.mark.parametrize("taken", ["nothing", "all"])
def test_a_wrong_edge_neither_shouts_nor_leaves_a_hole(taken):
    wav, generated = white(0.1, 0), white(0.1, 1)
    if taken == "all":
        spectrum = torch.fft.rfft(wav)
        spectrum[torch.linspace(0, 24000, len(spectrum)) > BAND.passband_hz] = 0
        wav = torch.fft.irfft(spectrum, len(wav))
    merged = merge(generated, wav, BAND, "gain")
    for edges in ((BAND.passband_hz, BAND.stopband_hz), (BAND.stopband_hz, LOST_HZ)):
        change_db = band_level(merged, *edges) - band_level(generated, *edges)
        assert -4 < change_db < 7


def test_replace_mel_takes_the_bands_below_the_cutoff():
    restored, degraded = torch.zeros(1, 1, 3, 256), torch.ones(1, 1, 3, 256)
    below = torch.from_numpy(band_edges_hz()[1:-1] <= 8000)
    merged = replace_mel(restored, degraded, BAND)
    assert merged[..., below].min() == 1
    assert merged[..., ~below].max() == 0
