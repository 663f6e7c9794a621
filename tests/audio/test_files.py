"""Reading what people have, refusing what is broken, writing all of it or nothing."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from scipy import signal

from srlib.audio import files as audio
from srlib.audio.files import write_atomically as replace_folder
from srlib.audio.recording import Recording
from srlib.audio.tags import Metadata
from srlib.errors import SrlibError

SAMPLE_RATE = 48_000


def noise(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"), [(".wav", None, 0), (".flac", None, 2**-23), (".wav", "PCM_16", 2**-15)]
)
def test_what_is_written_is_read_back(tmp_path, suffix, subtype, tolerance):
    wav = noise(4801)
    audio.write(tmp_path / f"a{suffix}", wav, 44_100, subtype=subtype)
    back, sample_rate = audio.read(tmp_path / f"a{suffix}")
    assert (back.dtype, back.shape, sample_rate) == (np.float32, wav.shape, 44_100)
    assert np.abs(back - wav).max() <= 1.5 * tolerance  # 1 step of dither, and half a step


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 8])
def test_every_sample_format_and_channel_count(tmp_path, subtype, channels):
    wav = noise(1000, channels)
    soundfile.write(tmp_path / "a.wav", wav.T, 8000, subtype=subtype)
    back, _ = audio.read(tmp_path / "a.wav")
    assert back.shape == wav.shape
    assert np.abs(back - wav).max() <= (2**-7 if subtype == "PCM_U8" else 2**-15)


def recording(samples: int, channels: int = 1) -> Recording:
    return Recording.from_array(np.zeros((channels, samples), np.float32), SAMPLE_RATE)


def test_nothing_is_written_that_is_no_sound(tmp_path):
    with (
        pytest.raises(SrlibError, match=r"a\.wav was not written"),
        audio.open_output(tmp_path / "a.wav", recording(200)) as put,
    ):
        put(np.zeros((1, 100), np.float32))
        put(np.full((1, 100), np.nan, np.float32))
    assert not list(tmp_path.iterdir())


def test_16_bit_is_dithered_without_bias_and_silence_stays_silence(tmp_path):
    """A constant of 0.3 steps is lost by rounding; triangular dither of two steps keeps it as the mean."""
    wav = np.concatenate([np.zeros(1000), np.full(200_000, 0.3 / 2**15), np.full(1000, 7 / 2**15)]).astype(np.float32)
    audio.write(tmp_path / "a.wav", wav, SAMPLE_RATE, "PCM_16")
    steps = audio.read(tmp_path / "a.wav")[0][0] * 2**15
    assert not steps[:1000].any() and np.all(steps[-1000:] == 7)
    error = steps[1000:-1000] - 0.3
    assert abs(error.mean()) < 0.01
    assert error.var() == pytest.approx(1 / 4, rel=0.03)  # 2/12 of the dither and 1/12 of the rounding
    audio.write(tmp_path / "b.wav", wav, SAMPLE_RATE, "PCM_16")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("samples", [1, 100_003])
def test_an_output_has_the_rate_and_the_length_that_was_asked_for(tmp_path, rate, samples):
    source = Recording.from_array(noise(samples), 44_100)
    restored = audio.resample(noise(samples), 44_100, SAMPLE_RATE)
    with audio.open_output(tmp_path / "a.wav", source, rate) as put:
        for start in range(0, restored.shape[1], 5000):
            put(restored[:, start : start + 5000])
    back, sample_rate = audio.read(tmp_path / "a.wav")
    assert sample_rate == rate and back.shape == (2, source.samples_at(rate))
    np.testing.assert_allclose(
        back[:, 200:-200], audio.resample(restored, SAMPLE_RATE, rate)[:, : back.shape[1]][:, 200:-200]
    )


def test_a_cover_that_a_format_cannot_hold_costs_no_audio(tmp_path):
    """A picture in FLAC has 16 MiB at most."""
    source = replace(recording(1000), metadata=Metadata({"title": "a"}, bytes(2**24 + 1)))
    with pytest.warns(match="not all tags"), audio.open_output(tmp_path / "a.flac", source) as put:
        put(np.full((1, 1000), 0.1, np.float32))
    assert audio.read(tmp_path / "a.flac")[0].shape == (1, 1000)


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".ogg", ".opus"])
def test_lossy_outputs(tmp_path, suffix):
    """Right rate, channels and length, and the tone that was put in."""
    wav = np.stack([0.3 * np.sin(2 * np.pi * 1000 * np.arange(20 * SAMPLE_RATE) / SAMPLE_RATE)] * 2).astype(np.float32)
    audio.write(tmp_path / f"a{suffix}", wav, SAMPLE_RATE)
    back, sample_rate = audio.read(tmp_path / f"a{suffix}")
    assert sample_rate == SAMPLE_RATE and back.shape == pytest.approx(wav.shape, abs=1)
    assert np.abs(back - wav).max() < 0.03
    with pytest.raises(SrlibError, match="subtype"):
        audio.write(tmp_path / f"b{suffix}", wav, SAMPLE_RATE, "PCM_16")


@pytest.mark.parametrize(("suffix", "rate", "becomes"), [(".mp3", 192_000, 48_000), (".opus", 44_100, 48_000)])
def test_a_rate_that_a_format_lacks_is_told(tmp_path, suffix, rate, becomes):
    with pytest.warns(match=f"it has {becomes} Hz, since {suffix} has no {rate} Hz"):
        audio.write(tmp_path / f"a{suffix}", noise(rate), rate)
    assert audio.read(tmp_path / f"a{suffix}")[1] == becomes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_both_ways(tmp_path, value):
    wav = noise(100)
    wav[1, 50] = value
    soundfile.write(tmp_path / "a.wav", wav.T, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(SrlibError, match="NaN or Inf"):
        audio.read(tmp_path / "a.wav")
    with pytest.raises(SrlibError, match="NaN or Inf"):
        audio.write(tmp_path / "b.wav", wav, SAMPLE_RATE)
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("target", ["a.xyz", "a", "folder.wav"])
def test_refused_targets(tmp_path, target):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(SrlibError, match=target.split("/")[0]):
        audio.write(tmp_path / target, noise(10), SAMPLE_RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.wav"]


@pytest.mark.parametrize("wav", [np.zeros((2, 0)), np.zeros((1, 2, 3)), np.zeros(5, dtype=int), np.zeros((9, 5))])
def test_refused_samples(tmp_path, wav):
    with pytest.raises(SrlibError):
        audio.write(tmp_path / "a.flac", wav, SAMPLE_RATE)
    assert not list(tmp_path.iterdir())


def test_clipping_is_told_of_a_flac_that_nobody_chose_a_subtype_for(tmp_path, recwarn):
    wav = np.zeros((2, 1000), np.float32)
    wav[0, :10], wav[0, 990:], wav[1, 5], wav[1, 6] = 1.5, -1.5, 1.0, -1.0  # full scale itself does not clip
    with audio.open_output(tmp_path / "a.flac", recording(1000, 2)) as put:
        for start in range(0, 1000, 100):
            put(wav[:, start : start + 100])
    audio.write(tmp_path / "a.wav", wav, SAMPLE_RATE)
    audio.write(tmp_path / "b.flac", wav, SAMPLE_RATE, subtype="PCM_16")
    told = f"{tmp_path / 'a.flac'}: samples up to 1.50 clip at full scale, 1; a .wav file keeps them"
    assert [str(warning.message) for warning in recwarn] == [told]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), audio.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with audio.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def holds(folder) -> str:
    """What version stands in a folder that `version` wrote."""
    (path,) = folder.iterdir()
    return path.read_text()


def version(text):
    def write(folder):
        folder.mkdir()
        (folder / "a").write_text(text)

    return write


def test_a_folder_whose_replacement_fails_stays(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    for text in ("older", "old"):
        replace_folder(folder, version(text))
        assert holds(folder) == text
    rename, renamed = os.rename, []

    def interrupted(*names):
        renamed.append(names)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, version("new"))
    assert holds(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for the disk; the system reports both as a failed write."""
    program = (
        "import resource, sys, numpy as np\n"
        "from srlib.audio import files as audio\n"
        "from srlib.errors import SrlibError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: audio.write(sys.argv[1], np.zeros((2, 100_000), np.float32), 48_000)\n"
        "except SrlibError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.wav")], capture_output=True, text=True)
    assert "Cannot write" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new"), [(44_100, 48_000), (8000, 48_000), (48_000, 44_100), (192_000, 48_000), (11_025, 48_000)]
)
@pytest.mark.parametrize("samples", [1, 2, 147, 10_007])
def test_resampled_length_is_exact(old, new, samples):
    wav = noise(samples)
    resampled = audio.resample(wav, old, new)
    assert resampled.dtype == np.float32
    assert resampled.shape == (2, max(1, round(samples * new / old)))
    assert audio.resample(wav[0], old, new).shape == resampled.shape[1:]


@pytest.mark.parametrize(("old", "new"), [(44_100, 48_000), (48_000, 44_100), (16_000, 48_000)])
def test_resampling_agrees_with_scipy(old, new):
    """The independent truth is scipy's polyphase resampler with a long Kaiser window, on noise to 0.35 x the rate."""
    band = signal.firwin(1001, 0.35 * min(old, new), fs=old, window=("kaiser", 12.0))
    wav = signal.fftconvolve(noise(old, 1)[0], band, mode="same").astype(np.float32)
    up, down = new // np.gcd(old, new), old // np.gcd(old, new)
    taps = signal.firwin(2 * 100 * max(up, down) + 1, 1 / max(up, down), window=("kaiser", 14.0))
    expected = signal.resample_poly(wav, up, down, window=taps)
    error = (audio.resample(wav, old, new) - expected)[2000:-2000]
    assert 20 * np.log10(np.abs(error).max() / np.abs(expected).max()) < -90


def test_mono_is_the_mean_of_the_channels():
    wav = noise(10, 3)
    assert np.allclose(audio.to_mono(wav), wav.mean(axis=0))
    assert np.array_equal(audio.to_mono(wav[:1]), wav[0])
    assert np.array_equal(audio.to_mono(wav[0]), wav[0])
    assert audio.to_mono(wav).dtype == np.float32
