"""The log-spectral distance against librosa, closed forms and known limits of its conventions."""

import math

import librosa
import numpy as np
import pytest

from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure.lsd import PLAIN, Convention, Spectra, lsd, pair, plain


def noise(seconds=1.0, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


@pytest.mark.parametrize("convention", ["plain", "ssr_eval"])
@pytest.mark.parametrize("sample_rate", [48000, 16000])
def test_lsd_identities(convention, sample_rate):
    wav = noise()
    for other, expected in ((wav, 0.0), (-wav, 0.0), (0.5 * wav, 2 * math.log10(2))):
        assert lsd(wav, other, sample_rate, convention) == pytest.approx(expected, abs=1e-4)
    both = lsd(np.stack([wav, wav]), np.stack([0.5 * wav, wav]), sample_rate, convention)
    assert both == pytest.approx(math.log10(2), abs=1e-4)  # channels are averaged


@pytest.mark.parametrize("convention", ["plain", "ssr_eval"])
def test_two_independent_noises_differ_by_the_spread_of_log_rayleigh_power(convention):
    # difference of two log10 exponential variates: variance 2 * (pi^2 / 6) / ln(10)^2
    expected = math.sqrt(math.pi**2 / 3) / math.log(10)
    assert lsd(noise(4, 1), noise(4, 2), convention=convention) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("sample_rate", [48000, 44100, 24000])
def test_ssr_eval_is_the_tools_formula_on_librosas_stft(sample_rate, music):
    for estimate in (noise(len(music) / SAMPLE_RATE, 3), Degradation(4000).apply(music, sample_rate), 0 * music):
        n_fft, hop_length = int(2048 / (44100 / sample_rate)), sample_rate // 100
        ref, est = (np.abs(librosa.stft(wav, n_fft=n_fft, hop_length=hop_length)) for wav in (music, estimate))
        log_ratio = np.log10(ref**2 / ((est + 1e-12) ** 2) + 1e-12)
        assert lsd(music, estimate, sample_rate) == pytest.approx(np.sqrt((log_ratio**2).mean(axis=0)).mean(), rel=1e-4)


@pytest.mark.parametrize("sizes", [{}, {"n_fft": 4096, "hop_length": 1024, "eps": 1e-6}])
@pytest.mark.parametrize("band", [(0, None), (0, 19000), (4500, 19000), (6000, 12000)])
def test_plain_is_librosas_stft_with_reflect_padding(sizes, band, music):
    own = Convention(**sizes, f_low=band[0], f_high=band[1])
    estimate = Degradation(4000).apply(music, SAMPLE_RATE)
    shape = {"n_fft": own.n_fft, "hop_length": own.hop_length, "pad_mode": "reflect"}
    powers = [np.abs(librosa.stft(wav.astype(float), **shape)) ** 2 for wav in (music, estimate)]
    log_ratio = np.subtract(*(np.log10(np.maximum(power, own.eps)) for power in powers))
    bins_hz = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=own.n_fft)
    kept = (bins_hz >= band[0]) & (bins_hz <= (band[1] or SAMPLE_RATE))
    expected = np.sqrt((log_ratio[kept] ** 2).mean(axis=0)).mean()
    assert lsd(music, estimate, convention=own) == pytest.approx(expected, rel=1e-6)
    if not sizes and band == (0, None):
        assert lsd(music, estimate, convention="plain") == lsd(music, estimate, convention=own)


def test_digital_silence_dominates_ssr_eval_and_plain_stops_at_its_floor():
    reference, silence = noise(), np.zeros(SAMPLE_RATE, np.float32)
    level = math.log10(0.01 * 768)  # expected power of a bin: variance times the sum of the squared window
    assert lsd(reference, silence, convention="plain") == pytest.approx(level + 8, abs=0.4)
    assert lsd(reference, silence) == pytest.approx(level + 24, abs=0.5)
    assert lsd(silence, silence) == pytest.approx(12)  # the tool's formula: log10(0 + 1e-12)
    assert lsd(silence, silence, convention="plain") == 0


def test_wrong_input_is_refused():
    wav = noise()
    assert lsd(wav, wav[:-100], convention="plain") == pytest.approx(0, abs=1e-9)
    for other in (wav[:-101], wav[:0], np.stack([wav, wav]), np.full_like(wav, np.nan)):
        with pytest.raises(SrlibError):
            lsd(wav, other)
    with pytest.raises(SrlibError, match="ssr_eval"):
        lsd(wav, wav, convention="")
    assert math.isnan(lsd(wav, wav, convention=plain(SAMPLE_RATE, 23_999, 23_999.5)))


def test_spectra_are_parsevals_computed_once_and_cropped():
    spectra = Spectra(noise()[None])
    # A frame's power, over both halves of its spectrum, is the window's energy (768) times the variance, 2048 times.
    frames = spectra.magnitude(PLAIN).shape[1]
    assert 2 * spectra.power() / frames == pytest.approx(2048 * 768 * 0.01, rel=0.02)
    assert spectra.power(0, 12_000) == pytest.approx(spectra.power() / 2, rel=0.02)
    assert spectra.log_power(PLAIN) is spectra.log_power(PLAIN) and pair(spectra, noise())[0] is spectra
    assert pair(spectra, noise()[:-50])[0].wav.shape == (1, SAMPLE_RATE - 50)
