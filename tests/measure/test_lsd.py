"""The log-spectral distance against librosa, closed forms and known limits of its conventions."""

import math

import numpy as np
import pytest

from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure.lsd import PLAIN, Convention, Spectra, distance, lsd, pair, ssr_eval

SAMPLE_RATE = 48000


def noise(seconds=1.0, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


@pytest.mark.parametrize("convention", ["plain", "ssr_eval"])
@pytest.mark.parametrize("sample_rate", [48000, 44100, 16000])
def test_lsd_identities(convention, sample_rate):
    wav = noise()
    assert lsd(wav, wav, sample_rate, convention) == pytest.approx(0.0, abs=1e-9)
    assert lsd(wav, 0.5 * wav, sample_rate, convention) == pytest.approx(2 * math.log10(2), abs=1e-4)
    assert lsd(wav, -wav, sample_rate, convention) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("convention", ["plain", "ssr_eval"])
def test_two_independent_noises_differ_by_the_spread_of_log_rayleigh_power(convention):
    # difference of two log10 exponential variates: variance 2 * (pi^2 / 6) / ln(10)^2
    expected = math.sqrt(math.pi**2 / 3) / math.log(10)
    assert expected == pytest.approx(0.788, abs=1e-3)
    assert lsd(noise(4, 1), noise(4, 2), convention=convention) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("sample_rate", [48000, 44100, 24000])
def test_ssr_eval_is_the_tools_formula_on_librosas_stft(sample_rate, harmonics):
    librosa = pytest.importorskip("librosa")
    reference = harmonics()
    for estimate in (noise(2, 3), Degradation(4000).apply(reference, sample_rate), np.zeros_like(reference)):
        n_fft, hop_length = int(2048 / (44100 / sample_rate)), sample_rate // 100
        ref, est = (np.abs(librosa.stft(wav, n_fft=n_fft, hop_length=hop_length)) for wav in (reference, estimate))
        log_ratio = np.log10(ref**2 / ((est + 1e-12) ** 2) + 1e-12)
        expected = np.sqrt((log_ratio**2).mean(axis=0)).mean()
        assert lsd(reference, estimate, sample_rate) == pytest.approx(expected, rel=1e-4)
    assert int(2048 / (44100 / 48000)) == 2229


def test_plain_is_librosas_stft_with_reflect_padding(harmonics):
    librosa = pytest.importorskip("librosa")
    reference, estimate = harmonics(), Degradation(4000).apply(harmonics(), SAMPLE_RATE)
    powers = [np.abs(librosa.stft(w.astype(float), n_fft=2048, hop_length=512, pad_mode="reflect")) ** 2
              for w in (reference, estimate)]  # fmt: skip
    log_ratio = np.subtract(*(np.log10(np.maximum(power, 1e-8)) for power in powers))
    bins_hz = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=2048)
    for f_low, f_high in ((0, None), (0, 19000), (4500, 19000), (6000, 12000)):
        kept = (bins_hz >= f_low) & (bins_hz <= (f_high or SAMPLE_RATE))
        expected = np.sqrt((log_ratio[kept] ** 2).mean(axis=0)).mean()
        value = lsd(reference, estimate, convention="plain", f_low=f_low, f_high=f_high)
        assert value == pytest.approx(expected, rel=1e-6)


def test_digital_silence_dominates_ssr_eval_and_plain_stops_at_its_floor():
    reference, silence = noise(), np.zeros(SAMPLE_RATE, np.float32)
    level = math.log10(0.01 * 768)  # expected power of a bin: variance times the sum of the squared window
    assert lsd(reference, silence, convention="plain") == pytest.approx(level + 8, abs=0.4)
    assert lsd(reference, silence) == pytest.approx(level + 24, abs=0.5)
    assert lsd(silence, silence) == pytest.approx(12)  # the tool's formula: log10(0 + 1e-12)
    assert lsd(silence, silence, convention="plain") == 0


def test_channels_are_averaged():
    left, right = noise(seed=1), noise(seed=2)
    both = lsd(np.stack([left, right]), np.stack([0.5 * left, right]), convention="plain")
    assert both == pytest.approx(math.log10(2), abs=1e-3)


def test_lengths_may_differ_by_a_hundred_samples():
    wav = noise()
    assert lsd(wav, wav[:-100], convention="plain") == pytest.approx(0, abs=1e-9)
    for other in (wav[:-101], wav[:0], np.stack([wav, wav]), np.full_like(wav, np.nan)):
        with pytest.raises(SrlibError):
            lsd(wav, other)


def test_unknown_conventions_and_empty_bands_are_refused():
    with pytest.raises(SrlibError, match="ssr_eval"):
        lsd(noise(), noise(), convention="")
    with pytest.raises(SrlibError, match="widen"):
        lsd(noise(), noise(), f_low=23999, f_high=23999.5)


def test_every_choice_of_a_convention_counts(harmonics):
    librosa = pytest.importorskip("librosa")
    own = Convention(n_fft=4096, hop_length=1024, eps=1e-6, f_high=None)
    reference, estimate = harmonics(), Degradation(8000).apply(harmonics(), SAMPLE_RATE)
    powers = [np.abs(librosa.stft(wav.astype(np.float64), n_fft=4096, hop_length=1024, pad_mode="reflect")) ** 2
              for wav in (reference, estimate)]  # fmt: skip
    ratio = np.subtract(*(np.log10(np.maximum(power, 1e-6)) for power in powers))
    assert distance(reference, estimate, own) == pytest.approx(np.sqrt((ratio**2).mean(axis=0)).mean(), rel=1e-6)
    assert distance(reference, estimate) == lsd(reference, estimate, convention="plain", f_high=19000)
    assert math.isnan(distance(reference, estimate, Convention(f_low=23999.0, f_high=23999.5)))


def test_closed_forms_of_distances():
    wav, silence = noise(), np.zeros(SAMPLE_RATE)
    assert distance(silence, silence, ssr_eval(SAMPLE_RATE)) == pytest.approx(12, abs=1e-6)  # -log10 of its guard
    low, high = (distance(wav, silence, Convention(eps=eps, f_high=None)) for eps in (1e-10, 1e-8))
    assert low - high == pytest.approx(2, abs=0.01)  # an empty band is as far as the floor is low


def test_bands_hold_both_their_ends():
    assert PLAIN.band(0.0, None) == slice(0, 1025)
    assert PLAIN.band(1000 * 48000 / 2048, 1002 * 48000 / 2048) == slice(1000, 1003)


def test_spectra_are_parsevals_and_computed_once():
    spectra = Spectra(noise()[None])
    # A frame's power, over both halves of its spectrum, is the window's energy (768) times the variance, 2048 times.
    assert 2 * spectra.power.sum(axis=-1).mean() == pytest.approx(2048 * 768 * 0.01, rel=0.02)
    for _ in range(2):
        assert spectra.log_power(PLAIN) is spectra.log_power(PLAIN)
        assert spectra.log_mel is spectra.log_mel


def test_a_pair_is_cropped_and_a_whole_one_stays_itself():
    whole = Spectra(noise()[None])
    first, second = pair(whole, noise()[:-50])
    assert first.wav.shape == second.wav.shape == (1, SAMPLE_RATE - 50)
    assert pair(whole, noise())[0] is whole
