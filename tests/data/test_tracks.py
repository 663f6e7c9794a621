"""Data sets: everything that musdb reads comes through one code path, and every split is the documented one."""

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from srlib import config
from srlib.audio import files
from srlib.data.tracks import DEMO_ASSETS, SPLITS, _musdb_sources, bandwidth_hz, excerpt, for_profile, load_dataset
from srlib.errors import SrlibError

SAMPLE_RATE = 48_000


@pytest.fixture(scope="module")
def demo():
    return load_dataset("demo")


@pytest.fixture(scope="module")
def manifest():
    with (DEMO_ASSETS / "manifest.csv").open(newline="") as stream:
        return {Path(row["file"]).parent.name: row for row in csv.DictReader(stream)}


# The demo set


def test_the_demo_set_comes_through_musdb_as_it_lies_in_the_package(demo, manifest):
    """Its own split, which musdb knows by the set's own settings, and the samples of the FLAC file bit for bit."""
    import musdb

    assert Counter(track.split for track in demo) == {"train": 23, "valid": 6, "test": 10}
    for split in SPLITS:
        names = [track.name for track in load_dataset("demo", split)]
        assert names == sorted(name for name, row in manifest.items() if row["split"] == split)
    track = demo[0]
    assert track.path == DEMO_ASSETS / manifest[track.name]["file"]
    assert np.array_equal(track.mixture(), files.read(track.path)[0][0])
    again = musdb.DB(root=str(DEMO_ASSETS), is_wav=True, setup_file="setup.yaml", subsets="train", split="valid")
    assert sorted(found.name for found in again) == [t.name for t in demo if t.split == "valid"]


def test_demo_facts_and_attribution(demo, manifest):
    """Title, artist, licence and package of every file travel with it."""
    attribution = (DEMO_ASSETS / "ATTRIBUTION.md").read_text()
    found = [path.relative_to(DEMO_ASSETS).as_posix() for path in DEMO_ASSETS.rglob("*.flac")]
    assert sorted(row["file"] for row in manifest.values()) == sorted(found)
    for track in demo:
        row = manifest[track.name]
        assert "| " + " | ".join(row[key] for key in ("file", "title", "artist", "licence", "package")) in attribution
        assert (track.title, track.artist, track.licence) == (row["title"], row["artist"], row["licence"])
        assert (track.collection, track.bandwidth_hz) == (row["package"], float(row["bandwidth_hz"]))
        assert (track.seconds, track.sample_rate) == (pytest.approx(10.0), SAMPLE_RATE)


def test_excerpts_and_crops_are_parts_of_the_track(demo):
    smoke, whole = config.profile("smoke"), demo[3].mixture()
    samples = round(smoke.seconds * SAMPLE_RATE)
    first = (480_000 - samples) // 2
    assert np.array_equal(excerpt(demo[3], smoke), whole[first : first + samples])
    assert np.array_equal(demo[3].mixture(9.5, 5.0), whole[-24_000:])
    for start, seconds in ((-1.0, 1.0), (10.0, 1.0), (2.0, 0.0)):
        with pytest.raises(SrlibError, match=r"lasts 10\.00 s"):
            demo[3].mixture(start, seconds)


# MUSDB18


def musdb_names() -> dict[str, list[str]]:
    """150 track names: musdb's own validation tracks among 100 for training, and 50 for testing."""
    import musdb
    import yaml

    setup = yaml.safe_load((Path(musdb.__file__).parent / "configs" / "mus.yaml").read_text())
    valid = setup["validation_tracks"]
    assert len(valid) == 14
    return {
        "train": [*valid, *(f"Artist {index:03} - Song" for index in range(86))],
        "test": [f"Artist {index:03} - Song" for index in range(86, 136)],
    }


@pytest.fixture(scope="module")
def musdb_hq(tmp_path_factory):
    root = tmp_path_factory.mktemp("musdb18hq")
    for subset, names in musdb_names().items():
        for name in names:
            (root / subset / name).mkdir(parents=True)
            soundfile.write(root / subset / name / "mixture.wav", np.zeros((4410, 2)), 44_100, subtype="PCM_16")
    return root


def test_musdb_split_is_90_10_50(musdb_hq, monkeypatch):
    """valid is the first ten, sorted, of musdb's own validation tracks; the other four of them train."""
    monkeypatch.setenv("MUSDB_ROOT", str(musdb_hq))
    names = musdb_names()
    valid = sorted(names["train"][:14])[:10]
    assert [track.name for track in load_dataset("musdb", "valid")] == valid
    train = [track.name for track in load_dataset("musdb", "train")]
    assert train == sorted(set(names["train"]) - set(valid))
    assert (len(train), len(load_dataset("musdb", "test"))) == (90, 50)
    assert len(load_dataset("musdb")) == 150
    first = load_dataset("musdb", "valid")[0]
    assert (first.artist, first.title) == ("ANiMAL", "Rockshow")


def test_musdb_crops_of_44100_hz_stereo_are_exact(tmp_path, monkeypatch):
    """A crop equals that stretch of the whole track resampled, to the last bits of float32."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "test" / "Artist - Song"
    folder.mkdir(parents=True)
    soundfile.write(folder / "mixture.wav", 0.1 * rng.standard_normal((44_100 * 7 + 1234, 2)), 44_100, subtype="PCM_16")
    monkeypatch.setenv("MUSDB_ROOT", str(tmp_path))
    with pytest.warns(UserWarning, match="1 of MUSDB18's 50 tracks"):
        (track,) = load_dataset("musdb", "test")
    wav, _ = soundfile.read(folder / "mixture.wav", dtype="float32")
    whole = files.resample(wav.mean(axis=1), 44_100, SAMPLE_RATE)
    assert np.abs(track.mixture() - whole).max() < 1e-6
    for start, seconds in ((0.0, 1.0), (1.2345678, 1.28), (3.999, 2.0), (6.5, 9.0)):
        first = round(start * SAMPLE_RATE)
        expected = whole[first : first + round(seconds * SAMPLE_RATE)]
        crop = track.mixture(start, seconds)
        assert crop.shape == expected.shape
        assert np.abs(crop - expected).max() < 1e-6


def test_musdb_stems(tmp_path, monkeypatch, encode):
    """The mixture is the first of five AAC streams in an MP4; the stems are louder here."""
    path = tmp_path / "train" / "Actions - One Minute Smile.stem.mp4"
    path.parent.mkdir()
    tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(5 * 44_100) / 44_100)
    mixture = np.stack([tone, 0.5 * tone], axis=1)
    streams = ["-map", "0", *(one for stem in "1234" for one in ("-map", "0", f"-filter:a:{stem}", "volume=2"))]
    encode(mixture.T, path, *streams, "-c:a", "aac", "-b:a", "256k", sample_rate=44_100)
    monkeypatch.setenv("MUSDB_ROOT", str(tmp_path))
    with pytest.warns(UserWarning) as caught:
        (track,) = load_dataset("musdb", "valid")
    assert any("stops at 16 kHz" in str(warning.message) for warning in caught)
    assert (track.name, track.title, track.split) == ("Actions - One Minute Smile", "One Minute Smile", "valid")
    assert (track.sample_rate, track.bandwidth_hz) == (44_100, 16_000.0)
    assert track.seconds == pytest.approx(5.0, abs=0.05)
    expected = files.resample(mixture.mean(axis=1).astype(np.float32), 44_100, SAMPLE_RATE)
    crop = track.mixture(1.5, 2.0)
    reference = expected[72_000 : 72_000 + 96_000]
    error = np.sum((crop - reference) ** 2)
    assert 10 * np.log10(np.sum(reference**2) / error) > 25  # the mixture, in place, but for AAC
    assert np.abs(track.mixture()[72_000 : 72_000 + 96_000] - crop).max() < 1e-4
    assert len(track.mixture()) == round(track.seconds * SAMPLE_RATE)


def test_musdb_missing_or_broken(tmp_path, monkeypatch):
    monkeypatch.delenv("MUSDB_ROOT", raising=False)
    with pytest.raises(SrlibError, match=r"MUSDB_ROOT is not set.*zenodo\.org"):
        for_profile(config.profile("paper"), "test")
    monkeypatch.setenv("MUSDB_ROOT", str(tmp_path))
    with pytest.raises(SrlibError, match=r"MUSDB_ROOT is .*train/\*/mixture\.wav"):
        load_dataset("musdb", "test")
    for name in ("train/Whole", "train/Hollow", "test/A - B"):
        (tmp_path / name).mkdir(parents=True)
    whole = tmp_path / "test" / "A - B" / "mixture.wav"
    for path in (whole, tmp_path / "train" / "Whole" / "mixture.wav"):
        soundfile.write(path, np.zeros((441_000, 2)), 44_100, subtype="PCM_16")
    with pytest.warns(UserWarning), pytest.raises(SrlibError, match=r"Hollow/mixture\.wav is missing"):
        load_dataset("musdb", "train")
    with pytest.warns(UserWarning):
        (track,) = load_dataset("musdb", "test")
    whole.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(SrlibError, match=r"mixture\.wav ends"):
        track.mixture()
    whole.unlink()
    with pytest.raises(SrlibError, match=r"A - B/mixture\.wav"):
        track.mixture()


def test_without_ffmpeg_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    _musdb_sources.cache_clear()
    with pytest.raises(SrlibError, match="ffmpeg and ffprobe not found"):
        load_dataset("demo", "test")


# Folders


def fill(root: Path, names: list[str], seconds: float = 0.1) -> None:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tone = 0.1 * np.sin(2 * np.pi * (300 + index) * np.arange(round(seconds * 44_100)) / 44_100)
        soundfile.write(root / name, np.stack([tone, tone], axis=1), 44_100)


def test_folder_splits_by_name_and_says_so(tmp_path):
    fill(tmp_path, [f"deep/{index:03}.wav" for index in range(60)] + ["a.ogg", "B.FLAC"], 0.01)
    (tmp_path / "notes.txt").write_text("not audio")
    (tmp_path / ".trash").mkdir()
    for name in (".hidden.wav", ".trash/old.wav"):
        (tmp_path / name).write_text("not audio")
    with pytest.warns(UserWarning, match="split by name"):
        before = {track.name: track.split for track in load_dataset(str(tmp_path))}
    assert len(before) == 62 and 40 <= Counter(before.values())["train"] <= 58
    fill(tmp_path, ["more/new.wav"])
    with pytest.warns(UserWarning):
        after = {track.name: track.split for track in load_dataset(str(tmp_path))}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("stem", ["take", "x"])
@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("given", [None, "train", "valid"])
def test_a_few_files_are_enough_to_train_and_to_validate(tmp_path, stem, count, given):
    """Whatever their names; a split that a manifest gives counts."""
    fill(tmp_path, [f"{stem}{index}.wav" for index in range(count)], 0.01)
    if given:
        (tmp_path / "manifest.csv").write_text(f"file,split\n{stem}0.wav,{given}\n")
    with pytest.warns(UserWarning, match="split by name"):
        splits = [track.split for track in load_dataset(str(tmp_path))]
    assert {"train", "valid"} <= set(splits) and splits.count("train") >= splits.count("valid") - (count == 2)


@pytest.mark.parametrize(("start", "separator"), [("", ","), ("\ufeff", ","), ("\ufeff", ";"), ("", "\t")])
def test_folder_honours_its_manifest(tmp_path, start, separator):
    """As spreadsheets of several languages write it; a file in a folder as Windows names it."""
    fill(tmp_path, ["a.wav", "deep/b.flac", "c.ogg"], 3.0)
    rows = [
        ["File", "split", "bandwidth_hz", "title", "artist", "collection", "weight", "remark"],
        ["a.wav", "test", "19000", "A", "X", "", "", ""],
        ["deep\\b.flac", "train", " ", "", "Y", "album", "4", "loud"],
        ["c.ogg", "valid", "", "", "", "", "", ""],
    ]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "manifest.csv").write_bytes((start + text).encode())
    a, c, b = load_dataset(str(tmp_path))
    assert [(track.name, track.split) for track in (a, b, c)] == [
        ("a.wav", "test"), ("deep/b.flac", "train"), ("c.ogg", "valid"),
    ]  # fmt: skip
    assert (a.bandwidth_hz, a.title, b.bandwidth_hz) == (19_000.0, "A", None)
    assert [(track.collection, track.weight) for track in (a, b, c)] == [("X", 1.0), ("album", 4.0), ("", 1.0)]
    whole = b.mixture()
    assert whole.shape == (3 * SAMPLE_RATE,) and np.abs(b.mixture(1.1, 0.5) - whole[52_800:76_800]).max() < 1e-4


def test_everything_that_is_wrong_with_a_folder_is_told_at_once(tmp_path):
    fill(tmp_path, ["a.wav", "b.wav", "c.wav"])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.flac").write_text("no audio")
    rows = ["a.wav,16.0,1,train", "a.wav,,1,train", "b.wav,nan,0,dev", "c.wav,wide,inf,", "d.wav,-5,heavy,test", ",,,"]
    (tmp_path / "manifest.csv").write_text("\n".join(["file,bandwidth_hz,weight,split", *rows]))
    with pytest.raises(SrlibError) as caught:
        load_dataset(str(tmp_path))
    told = str(caught.value)
    expected = [
        "line 2: bandwidth_hz is '16.0'", "line 3: 'a.wav' is listed twice", "line 4: split is 'dev'",
        "bandwidth_hz is 'nan'", "weight is '0'", "line 5: bandwidth_hz is 'wide'", "weight is 'inf'",
        "line 6: there is no file 'd.wav'", "bandwidth_hz is '-5'", "weight is 'heavy'", "line 7: there is no file ''",
        "empty.wav", "text.flac",
    ]  # fmt: skip
    assert [one for one in expected if one not in told] == [] and "\n" not in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,split\n\u00e9.wav,train\n".encode("cp1252"), "is not UTF-8"),
        (b"name,split\na.wav,train\n", "has no column named file"),
        (b"", "is not a table"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, message):
    fill(tmp_path, ["a.wav"])
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(SrlibError, match=message):
        load_dataset(str(tmp_path))


def test_what_is_no_data_set_is_refused(tmp_path):
    for name, split, message in (
        ("nonsense", None, "no data set"), ("demo", "dev", "no split"), (str(tmp_path), None, "no track"),
    ):  # fmt: skip
        with pytest.raises(SrlibError, match=message):
            load_dataset(name, split)


# Bandwidth


@pytest.mark.parametrize("cutoff_hz", [2000, 16_000])
@pytest.mark.parametrize("sample_rate", [44_100, 48_000])
def test_bandwidth_of_filtered_noise(cutoff_hz, sample_rate):
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(4 * sample_rate))
    spectrum[4 * cutoff_hz :] = 0  # a line every quarter of a hertz
    wav = np.fft.irfft(spectrum).astype(np.float32)
    assert bandwidth_hz(wav, sample_rate) == pytest.approx(cutoff_hz, abs=200)  # leakage of the Hann window
    assert bandwidth_hz(np.stack([wav, wav]), sample_rate) == bandwidth_hz(wav, sample_rate)
