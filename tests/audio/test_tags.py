"""What a file says beside its samples arrives in every format, whatever format it came from."""

import subprocess

import numpy as np
import pytest
import soundfile

from srlib.audio import files as audio
from srlib.audio.decoding import probe, sound
from srlib.audio.recording import open_recording
from srlib.audio.tags import read_metadata

TAGS = {
    "title": "Söng", "artist": "Singer", "album": "Record", "album_artist": "Various", "track": "3/12", "disc": "1/2",
    "composer": "Writer", "genre": "Pop", "date": "1993", "comment": "said", "copyright": "me",
}  # fmt: skip
OUTPUTS = ["wav", "flac", "mp3", "m4a", "ogg", "opus"]


def copied(source, out, **options):
    """A recording, written again as it is; gives what the new file says."""
    with (
        open_recording(source) as recording,
        audio.open_output(out, recording, put_rate=recording.sample_rate, **options) as put,
    ):
        for block in recording.blocks():
            put(block)
    return read_metadata(out)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory, encode):
    folder = tmp_path_factory.mktemp("tagged")
    cover = folder / "cover.jpg"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=blue:size=64x64", "-frames:v", "1", cover], check=True
    )
    pairs = [part for pair in TAGS.items() for part in ("-metadata", "=".join(pair))]
    picture = ["-i", cover, "-map", "0:a", "-map", "1:v", "-c:v", "copy", "-disposition:v", "attached_pic"]
    for suffix in ("mp3", "m4a", "flac"):
        encode(np.zeros((1, 4800), np.float32), folder / f"a.{suffix}", *picture, *pairs)
    encode(np.zeros((1, 4800), np.float32), folder / "a.aiff", "-write_id3v2", "1", *pairs)
    encode(np.zeros((1, 4800), np.float32), folder / "a.mka", *pairs)
    return folder


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "flac", "aiff", "mka"])
def test_tags_and_cover_come_from_every_reader(tmp_path, tagged, suffix):
    found = copied(tagged / f"a.{suffix}", tmp_path / "b.flac")
    assert found.tags == TAGS
    assert (found.cover == (tagged / "cover.jpg").read_bytes()) == (suffix in ("mp3", "m4a", "flac"))


@pytest.mark.parametrize("suffix", OUTPUTS)
def test_tags_and_cover_arrive_in_every_format(tmp_path, tagged, suffix):
    found = copied(tagged / "a.flac", tmp_path / f"b.{suffix}")
    assert {name: found.tags.get(name) for name in TAGS} == TAGS
    assert found.cover == (tagged / "cover.jpg").read_bytes()
    assert audio.read(tmp_path / f"b.{suffix}")[0].shape[1] == pytest.approx(4800, abs=1)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


@pytest.mark.parametrize("source", ["WAV", "RF64"])
@pytest.mark.parametrize(("out", "magic"), [("wav", b"RIFF"), ("wav", b"RF64"), ("flac", b"fLaC")])
def test_start_cues_and_old_texts_of_a_wav_file(tmp_path, monkeypatch, source, out, magic):
    monkeypatch.setattr(audio, "_WAV_LIMIT", 0 if magic == b"RF64" else 2**32)  # else RF64 begins at 4 GB
    soundfile.write(tmp_path / "a.wav", np.zeros(96_000), 48_000, format=source)
    bext = b"a tape".ljust(338, b"\0") + (480_000).to_bytes(8, "little") + bytes(256)
    point = (1).to_bytes(4, "little") + bytes(4) + b"data" + bytes(8) + (48_000).to_bytes(4, "little")
    label = b"adtl" + chunk(b"labl", (1).to_bytes(4, "little") + b"verse\0")
    old = b"INFO" + chunk(b"INAM", "Lärm".encode("cp1252") + b"\0")
    wav = (tmp_path / "a.wav").read_bytes() + chunk(b"cue ", (1).to_bytes(4, "little") + point)
    wav += chunk(b"LIST", label) + chunk(b"bext", bext) + chunk(b"LIST", old)
    place, width = (20, 8) if source == "RF64" else (4, 4)  # of the size of the file
    wav = wav[:place] + (len(wav) - 8).to_bytes(width, "little") + wav[place + width :]
    (tmp_path / "a.wav").write_bytes(wav)
    found = copied(tmp_path / "a.wav", tmp_path / f"b.{out}", sample_rate=96_000)
    assert (tmp_path / f"b.{out}").read_bytes()[:4] == magic
    assert found.chapters == [(1.0, "verse")] and found.tags["title"] == "Lärm"
    assert found.tags["comment"] == "a tape"  # of bext
    if out == "wav":
        assert found.tags["time_reference"] == "960000"  # samples since midnight, at the new rate


@pytest.mark.parametrize(("layout", "channels"), {"2.1": 3, "quad": 4, "5.1": 6, "5.1(side)": 6, "7.1": 8}.items())
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus"])
def test_speakers_keep_their_places_and_sounds(tmp_path, encode, layout, channels, suffix):
    if (layout, suffix) == ("2.1", "opus"):
        pytest.skip("Opus has no 2.1")
    wav = np.outer(0.5 / np.arange(1, channels + 1), np.sin(np.arange(24_000) / 100))  # the first is the loudest
    encode(wav, tmp_path / "a.wav", "-af", f"channelmap={'|'.join(map(str, range(channels)))}:{layout}")
    copied(tmp_path / "a.wav", tmp_path / f"b.{suffix}")
    np.testing.assert_array_equal(np.argsort(-audio.read(tmp_path / f"b.{suffix}")[0].std(1)), range(channels))
    if suffix in ("wav", "flac"):
        assert sound(probe(tmp_path / f"b.{suffix}"))["channel_layout"] == layout


def test_the_same_samples_give_the_same_bytes(tmp_path):
    """The chunk PEAK of libsndfile would hold the time of day."""
    audio.write(tmp_path / "a.wav", np.zeros((2, 100), np.float32), 48_000)
    assert b"PEAK" not in (tmp_path / "a.wav").read_bytes()


def test_tags_of_a_wav_file_without_id3_are_also_written_without(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 48_000, 1) as file:
        file.title, file.artist = "Song", "Singer"
        file.write(np.zeros(100))
    copied(tmp_path / "a.wav", tmp_path / "b.wav")
    assert soundfile.SoundFile(tmp_path / "b.wav").copy_metadata() == {"title": "Song", "artist": "Singer"}
