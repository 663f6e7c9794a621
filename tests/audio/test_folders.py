"""Which files belong together, and where outputs go."""

from pathlib import Path

import pytest

from srlib.audio.folders import audio_files, matched, outputs, record
from srlib.errors import SrlibError


@pytest.fixture
def album(tmp_path) -> Path:
    """Two discs, and beside them what is no audio: hidden files, a folder with the name of a file, a text."""
    folder = tmp_path / "album"
    (folder / "side.wav").mkdir(parents=True)
    (folder / "loop.wav").symlink_to("loop.wav")
    for name in ("disc 1/song.flac", "disc 2/song.flac", "talk.1.wav", ".trash/old.wav", "._song.wav", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_audio_is_found_by_its_place_in_a_folder(album):
    assert list(audio_files(album)) == ["disc 1/song", "disc 2/song", "talk.1"]
    names = ["talk.1.mp3", "talk.1.mp3.flac", "talk.1.wav"]
    for name in names:
        (album / name).touch()
    assert list(audio_files(album)) == ["disc 1/song", "disc 2/song", *names]


def test_outputs_keep_their_places(album, tmp_path):
    out = tmp_path / "Vol. 2"
    found = outputs([album], str(out))
    names = ["disc 1/song.wav", "disc 2/song.wav", "talk.1.wav"]
    assert [path.relative_to(out).as_posix() for path in found.values()] == names
    found = outputs([album], str(out), "_restored.flac")
    assert out / "disc 1" / "song_restored.flac" in found.values()
    talk = album / "talk.1.wav"
    assert outputs([talk], str(tmp_path / "new.flac")) == {talk: tmp_path / "new.flac"}
    assert outputs([talk], str(out)) == {talk: out / "talk.1.wav"}
    assert outputs([Path("-")], str(out)) == {Path("-"): out / "restored.wav"}
    above = outputs([album / "disc 1"], str(album))  # into the folder above
    assert above == {album / "disc 1" / "song.flac": album / "song.wav"}


@pytest.mark.parametrize(
    ("given", "out", "suffix", "words"),
    [
        (["album"], "out.wav", ".wav", "a folder, since"),
        (["album"], "out", "/../x.wav", "without a slash"),
        (["album"], "out", "..\\x.wav", "without a slash"),
        (["album/side.wav"], "out", ".wav", "holds no audio"),
    ],
)
def test_outputs_are_refused(album, given, out, suffix, words):
    with pytest.raises(SrlibError, match=words):
        outputs([album.parent / path for path in given], str(album.parent / out), suffix)


def test_folders_are_matched_by_name(album, tmp_path):
    restored = album / "restored"
    for name in ("disc 1/song.wav", "disc 2/song.wav", "talk.1.wav"):
        (restored / name).parent.mkdir(parents=True, exist_ok=True)
        (restored / name).touch()
    pairs = matched(album, restored)
    assert pairs["disc 1/song"] == [album / "disc 1" / "song.flac", restored / "disc 1" / "song.wav"]
    assert len(pairs) == 3
    (restored / "talk.1.wav").unlink()
    with pytest.raises(SrlibError, match=r"talk\.1 is only in one"):
        matched(album, restored)
    with pytest.raises(SrlibError, match="only files or only folders"):
        matched(album, tmp_path / "x.wav")
    assert matched(tmp_path / "a.wav", tmp_path / "b.wav") == {"b": [tmp_path / "a.wav", tmp_path / "b.wav"]}


def test_a_record_is_found_beside_its_audio(tmp_path):
    (tmp_path / "song.flac.json").touch()
    assert record(tmp_path, "song") == tmp_path / "song.flac.json"
    assert record(tmp_path / "song.flac.json", "other") == tmp_path / "song.flac.json"
    with pytest.raises(SrlibError, match="no record for talk"):
        record(tmp_path, "talk")
