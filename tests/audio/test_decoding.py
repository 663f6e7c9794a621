"""What people have, in any format and under any name, and what is missing, damaged or no audio."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from srlib.audio import files as audio
from srlib.audio.decoding import find_ffmpeg, info, is_audio_file
from srlib.audio.recording import open_recording
from srlib.errors import SrlibError

SAMPLE_RATE = 48_000
LENGTH = 4 * SAMPLE_RATE


def noise(samples: int = LENGTH, channels: int = 1) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((channels, samples))).astype(np.float32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, encode):
    """Four seconds of noise in every format, by suffix, as bytes."""
    folder = tmp_path_factory.mktemp("plain")
    for suffix in ("wav", "flac", "aiff", "w64", "au", "caf", "ogg"):
        soundfile.write(folder / f"a.{suffix}", noise().T, SAMPLE_RATE)
    options = {"opus": ["-c:a", "libopus"], "webm": ["-c:a", "libopus"], "m4a": ["-movflags", "+faststart"]}
    for suffix in ("mp3", "m4a", "aac", "wma", "tta", "mka", "opus", "webm"):
        encode(noise(), folder / f"a.{suffix}", *options.get(suffix, []))
    encode(noise(), folder / "b.mp3", "-write_xing", "0")
    encode(noise(), folder / "mp3_in_riff.wav", "-c:a", "libmp3lame")
    return {path.name.removeprefix("a."): path.read_bytes() for path in folder.iterdir()}


LOSSLESS = ["wav", "flac", "aiff", "w64", "au", "caf", "tta"]
LOSSY = ["ogg", "mp3", "m4a", "aac", "wma", "mka", "opus", "webm", "b.mp3", "mp3_in_riff.wav"]


@pytest.mark.parametrize("suffix", LOSSLESS + LOSSY)
def test_the_content_decides_and_not_the_name(tmp_path, plain, suffix):
    for name in ("a", "a.mp3", "a.wav"):
        (tmp_path / name).write_bytes(plain[suffix])
        with open_recording(tmp_path / name) as recording:
            wav = np.concatenate(list(recording.blocks()), axis=1)
        assert (recording.sample_rate, recording.channels, recording.incomplete) == (SAMPLE_RATE, 1, None)
        exact = suffix in (*LOSSLESS, "m4a")  # AAC's last frame ends behind the edit list
        assert recording.samples == wav.shape[1] == pytest.approx(LENGTH, abs=0 if exact else 2500)
        assert info(tmp_path / name).samples == pytest.approx(LENGTH, abs=2500)
        if suffix in LOSSLESS:
            assert np.abs(wav - noise()).max() <= 2**-15
    part, _ = audio.read(tmp_path / "a", 100_001, 5000)
    assert np.abs(part - wav[:, 100_001:105_001]).max() < 1e-4


def header_of_a_crash(wav: bytes) -> bytes:
    """The sizes of a WAV file that a recorder has not come to write."""
    data = wav.index(b"data")
    return wav[:4] + bytes(4) + wav[8 : data + 4] + bytes(4) + wav[data + 8 :]


WHOLE = {
    "chained Vorbis": (lambda f: f["ogg"] + f["ogg"], 2 * LENGTH),
    "chained Opus": (lambda f: f["opus"] + f["opus"], 2 * LENGTH),
    "two MP3 files": (lambda f: f["mp3"] + f["mp3"], 2 * LENGTH),
    "MP3 and zeros": (lambda f: f["mp3"] + bytes(5000), LENGTH),
    "MP3 and a page": (lambda f: f["mp3"] + b"<html><body>from a server</body></html>\n" * 10, LENGTH),
    "MP3 and an APE tag": (lambda f: f["mp3"] + b"APETAGEX" + bytes(24) + noise(5000).tobytes(), LENGTH),
    "ID3 and FLAC": (lambda f: b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10) + f["flac"], LENGTH),
    "AIFF of sox through a pipe": (lambda f: re.sub(b"(?s)SSND....", b"SSND\x7f\0\0\x08", f["aiff"]), LENGTH),
    "a crashed recorder": (lambda f: header_of_a_crash(f["wav"]), LENGTH),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_whole_is_not_called_damaged(tmp_path, plain, kind):
    make, length = WHOLE[kind]
    (tmp_path / "a.bin").write_bytes(make(plain))
    with open_recording(tmp_path / "a.bin") as recording:
        assert recording.incomplete is None and recording.samples == pytest.approx(length, abs=5000)
        assert np.std(list(recording.blocks())[-1][:, -1000:]) > (0.01 if length > LENGTH else 0)


@pytest.mark.parametrize("form", ["flac", "wav", "caf"])
def test_streams_without_a_length_are_whole(tmp_path, encode, form):
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", "-f", form, "pipe:"], capture_output=True
    )
    (tmp_path / "a").write_bytes(done.stdout)
    assert audio.read(tmp_path / "a")[0].shape == (1, 44_100)
    assert info(tmp_path / "a").samples == 44_100


@pytest.mark.parametrize("suffix", [s for s in LOSSLESS + LOSSY if s not in ("aac", "wma", "b.mp3", "mp3_in_riff.wav")])
def test_what_is_left_of_a_truncated_file_is_read_and_what_is_missing_is_said(tmp_path, plain, suffix):
    """ADTS, WMA and MP3 without a Xing header do not say how long they are."""
    data, share = plain[suffix], 0.7
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.warns(match="truncated or damaged"), open_recording(path) as recording:
        assert str(path) in recording.incomplete
        assert -1.1 * SAMPLE_RATE < recording.samples - share * LENGTH < 0.12 * LENGTH  # a page of Ogg lasts a second
    with pytest.raises(SrlibError, match=rf"a\.{suffix} is truncated or damaged"):
        audio.read(path)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_a_wav_file_without_its_last_byte_and_files_with_a_hole_lose_no_more(tmp_path, plain, suffix):
    data, hole = plain[suffix], len(plain[suffix]) // 5
    (tmp_path / "a").write_bytes(data[:-1] if suffix == "wav" else data[: 2 * hole] + bytes(hole) + data[3 * hole :])
    left, slack = (LENGTH - 1, 0) if suffix == "wav" else (0.8 * LENGTH, 0.08 * LENGTH)
    with pytest.warns(match="are missing"), open_recording(tmp_path / "a") as recording:
        assert recording.samples == pytest.approx(left, abs=slack)


def test_a_video_gives_its_first_sound(tmp_path, encode):
    picture = ["-f", "lavfi", "-i", "color=size=64x64:rate=5:duration=2", "-c:v", "mpeg4", "-c:a", "aac"]
    path = encode(noise(SAMPLE_RATE), tmp_path / "film.mkv", *picture)
    assert audio.read(path)[0].shape[0] == 1 and is_audio_file(path)


def test_odd_names(tmp_path, encode):
    for name in ("-v.m4a", "a b'c.m4a", "http:x.m4a", "Ä%03d.m4a"):
        assert audio.read(encode(noise(4800), f"file:{tmp_path / name}").removeprefix("file:"))[0].shape[0] == 1
    odd = os.fsdecode(bytes(tmp_path) + b"/a\xe9.wav")
    audio.write(odd, noise(100), SAMPLE_RATE)
    assert audio.read(odd)[0].shape == (1, 100)


def test_files_that_are_no_audio(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("Not a sound. " * 100)
    (tmp_path / "text.mp3").write_text("Not a sound. " * 100)
    (tmp_path / "photo.raw").write_text("Not a sound. " * 100)  # ffprobe stops within its report
    (tmp_path / "noise.flac").write_bytes(np.random.default_rng(0).bytes(5000))
    soundfile.write(tmp_path / "zero.wav", np.zeros((0, 2)), SAMPLE_RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0] * 200_000 + [np.nan]), SAMPLE_RATE, subtype="FLOAT")
    for name, reason in {
        "absent.wav": "No such file",
        ".": "Is a directory",
        "empty.wav": "is empty",
        "text.wav": "not an audio file",
        "text.mp3": "not an audio file",
        "photo.raw": "not an audio file",
        "noise.flac": "not an audio file",
        "zero.wav": "no samples",
        "nan.wav": "holds NaN, Inf",
    }.items():
        with pytest.raises(SrlibError, match=reason) as caught:
            audio.read(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_pictures_texts_and_hidden_files_are_no_audio(tmp_path, plain):
    for name, content in {"cover.jpg": b"\xff\xd8", "songs.txt": b"1 Song", "list.m3u": b"a.wav\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert not is_audio_file(tmp_path / name)
    for name, expected in {"._a.wav": False, "a.wave": True, "a.m4b": True, "a": True}.items():
        (tmp_path / name).write_bytes(plain["m4a" if name == "a.m4b" else "wav"])
        assert is_audio_file(tmp_path / name) == expected


@pytest.mark.parametrize("content", [b"", b"no audio", "zero", "cut"])
def test_messages_call_standard_input_so(tmp_path, monkeypatch, plain, content):
    soundfile.write(tmp_path / "zero", np.zeros((0, 2)), SAMPLE_RATE, format="WAV")
    files = {"zero": (tmp_path / "zero").read_bytes(), "cut": plain["wav"][:-5000]}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(files.get(content, content))))
    with pytest.raises(SrlibError, match=r"^standard input (is empty|is not|holds no|is truncated)[^/]*$"):
        audio.read("-")


def test_standard_input_is_copied_and_a_full_temporary_folder_is_what_is_named(monkeypatch, plain):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(plain["flac"])))
    assert audio.read("-")[0].shape == (1, LENGTH)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(plain["flac"])))
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(SrlibError, match=r"temporary folder .* TMPDIR"):
        audio.read("-")


def test_without_ffmpeg_the_message_says_so(tmp_path, monkeypatch, plain):
    (tmp_path / "a.m4a").write_bytes(plain["m4a"])
    (tmp_path / "a.wav").write_bytes(plain["wav"])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SrlibError, match="ffmpeg and ffprobe not found"):
        audio.read(tmp_path / "a.m4a")
    with pytest.raises(SrlibError, match="ffmpeg and ffprobe not found"):  # a folder is not restored without its .m4b
        is_audio_file((tmp_path / "a.m4a").rename(tmp_path / "a.m4b"))
    assert audio.read(tmp_path / "a.wav")[0].shape == (1, LENGTH)


def test_ffmpeg_of_an_environment_that_is_not_activated(tmp_path, monkeypatch):
    for program in ("ffmpeg", "ffprobe"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    find_ffmpeg()
    assert os.environ["PATH"].split(os.pathsep) == ["/nowhere", str(tmp_path)]
