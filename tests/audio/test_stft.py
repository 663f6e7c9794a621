"""The front end against librosa's filter bank; tests/test_parity.py has AudioSR's own output."""

import librosa
import numpy as np
import pytest
import torch

from srlib.audio.stft import band_edges_hz, band_of_hz, log_mel, mel_filters, mel_to_bins


def test_filter_bank_is_librosa_s():
    expected = librosa.filters.mel(sr=48000, n_fft=2048, n_mels=256, fmin=20, fmax=24000)
    np.testing.assert_allclose(mel_filters().numpy(), expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("samples", [785, 48000, 48479, 48480])
def test_one_frame_for_each_480_samples(samples):
    assert log_mel(torch.zeros(samples)).shape == (1, 1, samples // 480, 256)


def test_a_batch_is_its_rows_and_silence_is_the_floor():
    wav = 0.1 * torch.randn(3, 9600, generator=torch.Generator().manual_seed(0))
    batch = log_mel(wav)
    assert batch.shape == (3, 1, 20, 256)
    for row in range(3):
        torch.testing.assert_close(batch[row], log_mel(wav[row])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(log_mel(torch.zeros(9600)), torch.full((1, 1, 20, 256), np.log(1e-5)))


def test_half_precision_training_leaves_the_front_end_exact():
    wav = 0.1 * torch.randn(9600, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = log_mel(wav)
    torch.testing.assert_close(autocast, log_mel(wav), rtol=0, atol=0)


def test_mel_to_bins_interpolates_in_hertz():
    torch.testing.assert_close(mel_to_bins(torch.full((4, 256), -1.5)), torch.full((4, 1025), -1.5))
    line = torch.from_numpy(band_edges_hz()[1:-1].astype(np.float32))  # the value at a band's centre is its frequency
    bins_hz = np.arange(1025) * 48000 / 2048
    inside = (bins_hz >= float(line[0])) & (bins_hz <= float(line[-1]))
    np.testing.assert_allclose(mel_to_bins(line).numpy()[inside], bins_hz[inside], rtol=1e-5)


def test_band_of_hz_is_the_first_centre_not_below():
    centres = band_edges_hz()[1:-1]
    for frequency in (20.0, 1000.0, 8000.0, centres[100]):
        assert centres[band_of_hz(frequency)] >= frequency
        assert band_of_hz(frequency) == 0 or centres[band_of_hz(frequency) - 1] < frequency
