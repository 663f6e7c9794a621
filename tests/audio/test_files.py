"""Reading what people have, refusing what is broken, writing all of it or nothing."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from srlib.audio import files as audio
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


def test_24_bit_are_kept_to_the_bit(tmp_path):
    wav = np.arange(-(2**23), 2**23, 4001, dtype=np.float32) / 2**23
    audio.write(tmp_path / "a.flac", wav, SAMPLE_RATE)
    assert np.array_equal(audio.read(tmp_path / "a.flac")[0][0], wav)


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
    expected = audio.resample(restored, SAMPLE_RATE, rate)[:, : back.shape[1]]
    np.testing.assert_allclose(back[:, 200:-200], expected[:, 200:-200])


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


@pytest.mark.parametrize(
    ("suffix", "rate", "channels", "told"),
    [
        (".mp3", 192_000, 2, "it has 48000 Hz, since .mp3 has no 192000 Hz"),
        (".opus", 44_100, 2, "it has 48000 Hz, since .opus has no 44100 Hz"),
        (".mp3", 48_000, 6, "it has 2 channels, since .mp3 has no 6"),
    ],
)
def test_what_a_format_lacks_is_told(tmp_path, suffix, rate, channels, told):
    with pytest.warns(match=told):
        audio.write(tmp_path / f"a{suffix}", noise(rate, channels), rate)
    assert audio.read(tmp_path / f"a{suffix}")[1] == 48_000


def test_clipping_is_told(tmp_path, recwarn):
    for name, peak, subtype in [
        ("a.flac", 1.5, None), ("b.flac", 1, None), ("a.wav", 1.5, None), ("b.wav", 2, "PCM_16"), ("c.wav", 2, "FLOAT"),
    ]:  # fmt: skip
        audio.write(tmp_path / name, np.full(1000, peak, np.float32), SAMPLE_RATE, subtype)
    assert [str(warning.message).split("/")[-1].partition(";")[0] for warning in recwarn] == [
        f"{name}: samples up to {peak} clip at full scale, 1" for name, peak in (("a.flac", "1.50"), ("b.wav", "2.00"))
    ]


def written(text, folder=False):
    """Write a file, or a folder with a file in it."""

    def write(path):
        if folder:
            path.mkdir()
        (path / "a" if folder else path).write_text(text)

    return write


@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, folder):
    path = tmp_path / "new" / "a"

    def interrupted(*_names):
        raise KeyboardInterrupt

    for text in ("older", "old"):
        audio.write_atomically(path, written(text, folder))
        assert (path / "a" if folder else path).read_text() == text
    with pytest.raises(ZeroDivisionError):
        audio.write_atomically(path, lambda part: written("half of the n", folder)(part) or 1 / 0)
    monkeypatch.setattr(os, "rename" if folder else "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audio.write_atomically(path, written("new", folder))
    assert (path / "a" if folder else path).read_text() == "old" and os.listdir(path.parent) == ["a"]


def test_the_old_folder_returns_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    audio.write_atomically(tmp_path / "a", written("old", folder=True))
    rename = os.rename

    def refused(old, new):
        if Path(old).name == "part":
            raise PermissionError(13, "Permission denied")
        rename(old, new)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(SrlibError, match="Cannot write"):
        audio.write_atomically(tmp_path / "a", written("new", folder=True))
    assert (tmp_path / "a" / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


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
