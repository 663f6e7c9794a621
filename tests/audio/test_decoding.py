"""Opening what people have, in any format, and refusing what is missing, damaged or cut off."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from srlib.audio import files as audio
from srlib.audio.decoding import find_ffmpeg, info
from srlib.audio.recording import open_recording
from srlib.errors import SrlibError

SAMPLE_RATE = 48_000


def noise(samples: int, channels: int = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((channels, samples))).astype(np.float32)


def test_reading_a_part(tmp_path, encode):
    wav = noise(10_000)
    audio.write(tmp_path / "a.wav", wav, SAMPLE_RATE)
    part, _ = audio.read(tmp_path / "a.wav", start=1234, frames=100)
    assert np.array_equal(part, wav[:, 1234:1334])
    encode(wav, tmp_path / "a.mka", "-c:a", "pcm_f32le")
    part, _ = audio.read(tmp_path / "a.mka", start=1234, frames=100)
    assert np.array_equal(part, wav[:, 1234:1334])
    with pytest.raises(SrlibError, match="no samples"):
        audio.read(tmp_path / "a.wav", start=10_000)


@pytest.mark.parametrize("name", ["a.ogg", "cut.ogg", "a.opus", "a.flac", "a.mp3"])
def test_parts_of_compressed_files_are_exact(tmp_path, name, encode):
    """libsndfile's own seek misses by thousands of samples in Vorbis that was cut without being encoded again."""
    wav = noise(7 * SAMPLE_RATE)
    if name == "cut.ogg":
        soundfile.write(tmp_path / "a.ogg", wav.T, SAMPLE_RATE)
        encode(wav, tmp_path / name, "-ss", "1", "-i", str(tmp_path / "a.ogg"), "-map", "1", "-c", "copy")
    else:
        opus = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
        soundfile.write(tmp_path / name, wav.T, SAMPLE_RATE, **opus)
    whole, _ = audio.read(tmp_path / name)
    for start in (4321, 100_000, 5 * SAMPLE_RATE + 1):
        part, _ = audio.read(tmp_path / name, start, 5000)
        assert np.abs(part - whole[:, start : start + 5000]).max() < 1e-4


@pytest.mark.parametrize("name", ["a.m4a", "a.aac", "a.wma", "a.webm", "a.mp3", "a.ogg", "a.opus"])
def test_lossy_formats(tmp_path, name, encode):
    """Right rate, channels and length, and the tone that was put in."""
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    wav = np.stack([0.3 * np.sin(2 * np.pi * 1000 * seconds)] * 2).astype(np.float32)
    encoder = ["-c:a", "libopus"] if name.endswith((".opus", ".webm")) else []
    if name == "a.ogg":
        soundfile.write(tmp_path / name, wav.T, SAMPLE_RATE)
    else:
        encode(wav, tmp_path / name, *encoder)
    back, sample_rate = audio.read(tmp_path / name)
    assert sample_rate == SAMPLE_RATE
    assert len(back) == 2
    assert back.shape[1] == pytest.approx(SAMPLE_RATE, abs=2100)  # AAC and WMA come in whole frames
    spectrum = np.abs(np.fft.rfft(back[0, 8000:32_000]))
    assert np.argmax(spectrum) * 2 == 1000
    header = info(tmp_path / name)
    assert (header.sample_rate, header.channels) == (SAMPLE_RATE, 2)
    assert header.samples == pytest.approx(back.shape[1], abs=2100)


def test_mp3_without_a_length_header_is_read_to_its_end(tmp_path, encode):
    """libsndfile guesses the length of such a file and stops there, here at half."""
    wav = noise(10 * SAMPLE_RATE)
    wav[:, : SAMPLE_RATE // 2] *= 0.001  # the guess goes by the size of the first frames
    path = encode(wav, tmp_path / "a.mp3", "-q:a", "4", "-write_xing", "0")
    assert audio.read(path)[0].shape[1] == pytest.approx(10 * SAMPLE_RATE, abs=3000)


def test_a_video_gives_its_first_sound(tmp_path, encode):
    picture = ["-f", "lavfi", "-i", "color=size=64x64:rate=5:duration=1", "-c:v", "mpeg4", "-c:a", "aac"]
    path = encode(noise(SAMPLE_RATE, 1), tmp_path / "film.mp4", *picture)
    assert audio.read(path)[0].shape[0] == 1


def test_odd_names(tmp_path, encode):
    for name in ("-v.m4a", "a b'c.m4a", "http:x.m4a", "Ä%03d.m4a"):
        assert audio.read(encode(noise(4800, 1), f"file:{tmp_path / name}").removeprefix("file:"))[0].shape[0] == 1


def truncate(path, share: float):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "w64", "au", "caf", "m4a", "mka", "webm"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_truncated_files_are_refused(tmp_path, suffix, share, encode):
    wav = noise(8 * SAMPLE_RATE, 1)
    path = tmp_path / f"a.{suffix}"
    if suffix in ("mp3", "m4a", "mka", "webm"):
        encode(wav, path, *(["-movflags", "+faststart"] if suffix == "m4a" else []))
    else:
        soundfile.write(path, wav.T, SAMPLE_RATE)
    assert audio.read(path)[0].shape[1] >= 8 * SAMPLE_RATE - 2000
    with pytest.raises(SrlibError, match=rf"a\.{suffix}"):
        audio.read(truncate(path, share))


def promise_more(path, samples: int):
    """Let the last page of an Ogg file end so much later, with the checksum that belongs to it (RFC 3533)."""
    data = bytearray(path.read_bytes())
    page = data.rfind(b"OggS")
    position = int.from_bytes(data[page + 6 : page + 14], "little") + samples
    data[page + 6 : page + 14] = position.to_bytes(8, "little")
    data[page + 22 : page + 26] = bytes(4)
    checksum = 0
    for byte in data[page:]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x04C11DB7 * (checksum >> 31)) & 0xFFFF_FFFF
    data[page + 22 : page + 26] = checksum.to_bytes(4, "little")
    path.write_bytes(data)


def test_ogg_may_promise_a_part_of_a_block_that_is_not_there(tmp_path):
    """As two of the 190 tracks of the training corpus do; no player minds."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(2 * SAMPLE_RATE).T, SAMPLE_RATE)
    before, _ = audio.read(path)
    promise_more(path, 1105)
    assert info(path).samples == before.shape[1] + 1105
    expected = np.pad(before, ((0, 0), (0, 1105)))
    assert np.array_equal(audio.read(path)[0], expected)
    with open_recording(path) as recording:
        assert np.array_equal(np.concatenate(list(recording.blocks()), axis=1), expected)
    promise_more(path, 8192)
    with pytest.raises(SrlibError, match="truncated or damaged"):
        audio.read(path)


def test_streamed_wav_with_a_placeholder_size_is_whole(tmp_path):
    data = subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", "-f", "wav", "pipe:"], capture_output=True
    ).stdout
    (tmp_path / "a.wav").write_bytes(data)
    assert audio.read(tmp_path / "a.wav")[0].shape == (1, 44_100)


def test_files_that_are_no_audio(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("Not a sound. " * 100)
    (tmp_path / "text.mp3").write_text("Not a sound. " * 100)
    (tmp_path / "noise.flac").write_bytes(np.random.default_rng(0).bytes(5000))
    soundfile.write(tmp_path / "zero.wav", np.zeros((0, 2)), SAMPLE_RATE)
    for name, reason in {
        "absent.wav": "does not exist",
        ".": "is a folder",
        "empty.wav": "is empty",
        "text.wav": "not an audio file",
        "text.mp3": "not an audio file",
        "noise.flac": "not an audio file|truncated or damaged",
        "zero.wav": "no samples",
    }.items():
        with pytest.raises(SrlibError, match=reason) as caught:
            audio.read(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_without_ffmpeg_the_message_says_so(tmp_path, monkeypatch, encode):
    path = encode(noise(4800, 1), tmp_path / "a.m4a")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SrlibError, match="ffmpeg and ffprobe not found"):
        audio.read(path)


def test_ffmpeg_of_an_environment_that_is_not_activated(tmp_path, monkeypatch):
    for program in ("ffmpeg", "ffprobe"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    find_ffmpeg()
    assert os.environ["PATH"].split(os.pathsep) == ["/nowhere", str(tmp_path)]
