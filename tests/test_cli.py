"""The command line on real files: what it writes, what it prints, and how it refuses."""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from srlib import __main__ as command_line
from srlib import cli, degrade
from srlib.__main__ import main
from srlib.audio import files as audio

CUT_4K = ["--cutoff-hz", "4000"]


@pytest.fixture
def clip(tmp_path, music) -> Path:
    path = tmp_path / "clip.wav"
    audio.write(path, music, 48_000)
    return path


@pytest.fixture
def tiny(monkeypatch, tiny_pipeline):
    """Restoration with the tiny random model instead of the shipped one."""
    from srlib.restore.pipeline import RestorationPipeline

    monkeypatch.setattr(RestorationPipeline, "from_pretrained", classmethod(lambda *_args, **_kwargs: tiny_pipeline))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory, tiny_pipeline) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline.save_pretrained(folder)
    return folder


def run(*argv: str | Path) -> int:
    try:
        return main([str(arg) for arg in argv])
    except SystemExit as stop:  # argparse's own refusals
        return stop.code


def refusal(capsys, folder: Path, *argv: str | Path) -> str:
    """The sentence of a refused call, which has to be one line, with exit code 2 and no trace on the disk."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(*argv) == 2
    printed = capsys.readouterr()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert printed.out == ""
    assert printed.err.startswith("srlib") and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    return printed.err


def test_choices_are_those_of_the_library():
    """The parser repeats them, so that help needs no scipy and no torch."""
    from srlib.models import diffusion as ldm
    from srlib.training import objectives

    assert set(command_line.SCHEDULERS) == set(ldm.SCHEDULERS)
    assert set(command_line.STAGES) == set(objectives.STAGES)


def test_the_shell_gets_the_same(tmp_path, clip):
    """One run through a real process, for the exit code and the streams."""
    command = [sys.executable, "-m", "srlib", "degrade", str(clip), "-o", str(tmp_path / "d.wav")]
    done = subprocess.run([*command, *CUT_4K], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([*command, *CUT_4K], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"srlib: {tmp_path / 'd.wav'}: exists already; add --overwrite to replace it.\n"


# degrade


def test_degrade_does_what_the_library_does(tmp_path, clip, music):
    out = tmp_path / "d.wav"
    assert run("degrade", clip, "-o", out, *CUT_4K, "--filter", "butter", "--order", "6", "--noise", "white",
               "--amplitude", "0.01", "--seed", "5") == 0  # fmt: skip
    expected = degrade.Degradation(4000, "butter", 6, "white", 0.01, seed=5)
    assert np.array_equal(audio.read(out)[0][0], expected.apply(music, 48_000))
    record = json.loads((tmp_path / "d.wav.json").read_text())
    assert record["passband_hz"] < 4000 < record["stopband_hz"]
    assert degrade.Degradation.from_json(record) == expected


TONE = ["--noise", "tone", "--tone-hz", "1000", "--amplitude", "0.1"]


@pytest.mark.parametrize(
    "options",
    [["--random", "--seed", "3"], [*TONE, "--noise-first", *CUT_4K], ["--gap", "0.5:0.75", "--gap", "1:1.5"]],
)
def test_a_record_replays_to_the_same_bits(tmp_path, clip, options):
    first, second = tmp_path / "first.wav", tmp_path / "second.wav"
    assert run("degrade", clip, "-o", first, *options) == 0
    assert run("degrade", clip, "-o", second, "--replay", f"{first}.json") == 0
    assert first.read_bytes() == second.read_bytes()
    assert Path(f"{first}.json").read_bytes() == Path(f"{second}.json").read_bytes()


def test_random_draws_stay_in_the_ranges(tmp_path, clip):
    seen = []
    for seed in range(5):
        out = tmp_path / f"{seed}.wav"
        assert run("degrade", clip, "-o", out, "--random", "--seed", seed) == 0
        record = json.loads(Path(f"{out}.json").read_text())
        assert 2000 <= record["cutoff_hz"] <= 16_000 and 2 <= record["filter_order"] <= 10
        seen.append(record["cutoff_hz"])
    assert len(set(seen)) == 5


def test_degrade_keeps_rate_and_channels(tmp_path):
    stereo = np.random.default_rng(0).standard_normal((2, 22_050)).astype(np.float32) * 0.1
    audio.write(tmp_path / "stereo.flac", stereo, 22_050)
    assert run("degrade", tmp_path / "stereo.flac", "-o", tmp_path / "d.wav", *CUT_4K) == 0
    degraded, sample_rate = audio.read(tmp_path / "d.wav")
    assert degraded.shape == stereo.shape and sample_rate == 22_050


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to do"),
        (["--noise", "none"], "nothing to do"),
        (["--cutoff-hz", "0"], "positive frequency"),
        (["--cutoff-hz", "-4000"], "positive frequency"),
        (["--cutoff-hz", "nan"], "positive frequency"),
        (["--cutoff-hz", "24000"], "half the sample rate"),
        ([*CUT_4K, "--filter", "bessel"], "bessel"),
        ([*CUT_4K, "--order", "1"], "equal to 2"),
        ([*CUT_4K, "--order", "11"], "equal to 10"),
        (["--order", "4"], "--cutoff-hz"),
        (["--filter", "butter"], "--cutoff-hz"),
        (["--amplitude", "0.1"], "--noise"),
        (["--noise", "white"], "--amplitude"),
        (["--noise", "white", "--amplitude", "-1"], "zero or more"),
        (["--noise", "tone", "--amplitude", "0.1"], "--tone-hz"),
        (["--noise", "white", "--amplitude", "0.1", "--tone-hz", "50"], "--tone-hz"),
        (["--noise", "tone", "--amplitude", "0.1", "--tone-hz", "30000"], "half the sample rate"),
        (["--gap", "1"], "START:END"),
        (["--gap", "2:1"], "START < END"),
        (["--gap", "2.5:3.5"], "outside the file"),
        (["--gap", "0:0.0000001"], "shorter than a sample"),
        (["--random", *CUT_4K], "--random decides --cutoff-hz"),
        (["--random", "--replay", "x.json"], "exclude each other"),
        (["--replay", "x.json", "--seed", "1"], "--replay decides --seed"),
        (["--replay", "no-such-record.json"], "no-such-record.json"),
        (["--seed", "-1", "--random"], "zero or more"),
    ],
)
def test_degrade_refuses(capsys, tmp_path, clip, options, words):
    assert words in refusal(capsys, tmp_path, "degrade", clip, "-o", tmp_path / "d.wav", *options)


@pytest.mark.parametrize("verb", [["degrade", *CUT_4K], ["restore"]])
def test_inputs_and_existing_files_are_safe(capsys, tmp_path, clip, verb):
    (tmp_path / "link.wav").symlink_to(clip)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "old.wav").write_bytes(b"kept")
    for out, words in [
        ("clip.wav", "never overwritten"),
        ("link.wav", "never overwritten"),
        ("old.wav", "--overwrite"),
        ("new.mp3", ".wav"),
    ]:
        assert words in refusal(capsys, tmp_path, *verb, clip, "-o", tmp_path / out)
    assert "folder" in refusal(capsys, tmp_path, "degrade", *CUT_4K, clip, "-o", tmp_path / "folder.wav")
    for extra in ([], ["--overwrite"]):
        assert "never overwritten" in refusal(capsys, tmp_path, *verb, clip, "-o", clip, *extra)


def test_degrade_writes_both_files_or_neither(capsys, tmp_path, clip):
    (tmp_path / "d.wav.json").write_text("someone's")
    assert "d.wav.json" in refusal(capsys, tmp_path, "degrade", clip, "-o", tmp_path / "d.wav", *CUT_4K)
    assert "does not exist" in refusal(capsys, tmp_path, "degrade", clip, "-o", tmp_path / "nowhere" / "d.wav", *CUT_4K)
    assert run("degrade", clip, "-o", tmp_path / "d.wav", *CUT_4K, "--overwrite") == 0
    assert json.loads((tmp_path / "d.wav.json").read_text())["cutoff_hz"] == 4000


def test_a_record_that_is_none(capsys, tmp_path, clip):
    bad = tmp_path / "bad.json"
    damaged = ("not json", "[]", '{"cutoff_hz": -1}', '{"colour": "red"}', "\x00\xff", "[" * 100_000)
    for text in (*damaged, "{}", '{"gaps": []}'):
        bad.write_text(text, encoding="latin-1")
        assert "bad.json" in refusal(capsys, tmp_path, "degrade", clip, "-o", tmp_path / "d.wav", "--replay", bad)
    bad.write_bytes(b"\xff\xfe")
    for verb in (["degrade", "-o", tmp_path / "d.wav", "--replay", bad], ["evaluate", clip, "--record", bad]):
        assert "bad.json: this is no text: give the .json file" in refusal(capsys, tmp_path, *verb, clip)


def test_a_seed_of_the_noise_may_have_any_length(tmp_path, clip):
    options = ["--noise", "white", "--amplitude", "0.01", "--seed", "9" * 23]
    assert run("degrade", clip, "-o", tmp_path / "d.wav", *options) == 0
    assert run("degrade", clip, "-o", tmp_path / "again.wav", "--replay", tmp_path / "d.wav.json") == 0
    assert (tmp_path / "d.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()


def test_what_clips_in_a_flac_is_told_in_a_line(tmp_path, clip, music, tiny, capsys):
    loud = tmp_path / "loud.wav"
    audio.write(loud, music / np.abs(music).max() * 4, 48_000)
    for verb in (["degrade", *CUT_4K], ["restore", "--merge", "replace", "--steps", "0"]):
        for name, told in [("out.flac", True), ("out.wav", False)]:
            assert run(*verb, loud, "-o", tmp_path / name, "--overwrite") == 0
            error = capsys.readouterr().err
            assert (error.count("\n"), "out.flac" in error, "% of the samples clip" in error) == (told, told, told)
            assert (".wav file keeps them" in error) == told
        assert run(*verb, clip, "-o", tmp_path / "quiet.flac", "--overwrite") == 0
        assert capsys.readouterr().err == ""


BAD_FILES = {
    "empty.wav": b"",
    "text.wav": b"This is not audio.\n" * 50,
    "noise.mp3": bytes(range(256)) * 8,
}


WRITTEN_BAD = {"nan.wav": [0.0, np.nan] * 500, "inf.wav": [0.0, np.inf] * 500, "no-samples.wav": []}


@pytest.fixture(params=[*BAD_FILES, *WRITTEN_BAD, "truncated.wav", "missing.wav", "folder"])
def bad_file(request, tmp_path, clip) -> Path:
    path = tmp_path / request.param
    if request.param in BAD_FILES:
        path.write_bytes(BAD_FILES[request.param])
    elif request.param == "truncated.wav":
        path.write_bytes(clip.read_bytes()[:30_000])
    elif request.param == "folder":
        path.mkdir()
    elif request.param in WRITTEN_BAD:
        soundfile.write(path, np.array(WRITTEN_BAD[request.param]), 48_000, subtype="FLOAT")
    return path


def test_bad_files_are_refused_by_name(capsys, tmp_path, clip, bad_file, tiny):
    for argv in (
        ["degrade", bad_file, "-o", tmp_path / "out.wav", *CUT_4K],
        ["restore", bad_file, "-o", tmp_path / "out.wav"],
        ["evaluate", clip, bad_file],
    ):
        assert bad_file.name in refusal(capsys, tmp_path, *argv)
    assert not (tmp_path / "out").exists()


# restore


def test_restore_writes_the_pipelines_audio(tmp_path, clip, music, tiny, tiny_pipeline, capsys):
    out = tmp_path / "r.wav"
    options = ["--steps", "2", "--cutoff-hz", "4000", "--seed", "7", "--merge", "none"]
    assert run("restore", clip, "-o", out, *options) == 0
    restored, sample_rate = audio.read(out)
    expected = tiny_pipeline(music, 48_000, num_inference_steps=2, generator=7, cutoff_hz=4000.0, merge="none").audio
    assert sample_rate == 48_000 and restored.shape == (1, len(music))
    assert np.array_equal(restored[0], np.atleast_2d(expected)[0])
    assert str(out) in capsys.readouterr().out


def test_restore_takes_several_files_into_a_folder(tmp_path, clip, music, tiny):
    audio.write(tmp_path / "low.flac", audio.resample(music, 48_000, 16_000), 16_000)
    folder = tmp_path / "restored"
    assert run("restore", clip, tmp_path / "low.flac", "-o", folder, "--steps", "1") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["clip.wav", "low.wav"]
    for path in folder.iterdir():
        restored, sample_rate = audio.read(path)
        assert sample_rate == 48_000 and restored.shape == (1, len(music))
    assert run("restore", clip, "-o", folder, "--steps", "1") == 2
    assert run("restore", clip, "-o", folder, "--steps", "1", "--overwrite") == 0


def test_a_folder_s_audio_is_neither_hidden_nor_a_folder(tmp_path, music, tiny):
    """What macOS writes beside a file on other disks, and a folder that is named like a file."""
    album, restored = tmp_path / "album", tmp_path / "restored"
    (album / "side.wav").mkdir(parents=True)
    (album / "._song.wav").write_bytes(b"\0\5\26\7")
    audio.write(album / "song.wav", music[:24_000], 48_000)
    assert run("restore", album, "-o", restored, "--steps", "1") == 0
    assert [path.name for path in restored.iterdir()] == ["song.wav"]
    assert run("evaluate", album, restored) == 0


def test_folders_in_a_folder_keep_their_places(tmp_path, music, tiny, capsys):
    """As the discs of an album do; what was restored into the album before is not taken for music of it."""
    album, options = tmp_path / "album", ["--steps", "1", "--overwrite"]
    for name in ("disc 1/song.flac", "disc 2/song.flac", "talk.1.wav", ".trash/old.wav"):
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        audio.write(album / name, music[:24_000], 48_000)
    for folder in (tmp_path / "restored", album / "restored", album / "restored"):
        assert run("restore", album, "-o", folder, *options) == 0
        written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert written == ["disc 1/song.wav", "disc 2/song.wav", "talk.1.wav"]
    assert "3 audio files in it are left out" in capsys.readouterr().err
    rows = evaluated(capsys, album, album / "restored")
    assert [row["file"] for row in rows] == ["disc 1/song.wav", "disc 2/song.wav", "talk.1.wav"]
    assert run("restore", album / "disc 1", "-o", album, *options) == 0  # into the folder above
    assert (album / "song.wav").is_file()


def test_restore_fills_gaps_and_takes_every_sampling_option(tmp_path, clip, tiny):
    out = tmp_path / "r.flac"
    assert run("restore", clip, "-o", out, "--gap", "1:1.25", "--samples", "2", "--scheduler", "ddim", "--eta", "0.5",
               "--guidance", "1.5", "--steps", "2", "--device", "cpu", "--merge", "replace") == 0  # fmt: skip
    assert out.is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cutoff-hz", "24000"], "less than 24000"),
        (["--cutoff-hz", "0"], "positive frequency"),
        (["--cutoff-hz", "high"], "positive frequency"),
        (["--guidance", "1e38"], "equal to 100"),
        (["--gap", "2.9:3.1"], "not inside the audio"),
        (["--gap", "auto", "--gap", "1:2"], "leave out the others"),
        (["--gap", "2"], "START:END"),
        (["--steps", "1001"], "1001 steps cannot be taken: give a whole number from 0 to 1000"),
        (["--steps", "-1"], "zero or more"),
        (["--samples", "1.5"], "above zero"),
        (["--scheduler", "euler"], "euler"),
        (["--merge", "sum"], "sum"),
        (["--eta", "-1"], "zero or more"),
        (["--eta", "1", "--scheduler", "unipc"], "scheduler ddim"),
        (["--seed", "x"], "zero or more"),
        (["--seed", "9" * 23], "64 bits"),
        (["--device", "abacus"], "no device"),
        (["--device", "meta"], "not supported"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_restore_refuses(capsys, tmp_path, clip, tiny_folder, options, words):
    options = ["--model", tiny_folder, *options]
    assert words in refusal(capsys, tmp_path, "restore", clip, "-o", tmp_path / "r.wav", *options)


def test_restore_refuses_cuda_where_there_is_none(capsys, tmp_path, clip, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "CUDA" in refusal(capsys, tmp_path, "restore", clip, "-o", tmp_path / "r.wav", "--device", "cuda")


def test_restore_refuses_what_no_channel_layout_has(capsys, tmp_path, tiny):
    audio.write(tmp_path / "nine.wav", np.zeros((9, 4800), np.float32), 48_000)
    assert "9 channels" in refusal(capsys, tmp_path, "restore", tmp_path / "nine.wav", "-o", tmp_path / "r.wav")


def test_a_cutoff_has_to_lie_below_half_the_sample_rate(capsys, tmp_path, tiny):
    audio.write(tmp_path / "phone.wav", np.zeros(800, np.float32), 8000)
    words = refusal(capsys, tmp_path, "restore", tmp_path / "phone.wav", "-o", tmp_path / "r.wav", *CUT_4K)
    assert "half the sample rate" in words and "phone.wav" in words


def test_restore_refuses_outputs_that_collide(capsys, tmp_path, clip):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "clip.wav").write_bytes(clip.read_bytes())
    twice = refusal(capsys, tmp_path, "restore", clip, tmp_path / "b" / "clip.wav", "-o", tmp_path / "out")
    assert "two inputs" in twice
    both = [clip, tmp_path / "b" / "clip.wav"]
    assert "a folder" in refusal(capsys, tmp_path, "restore", *both, "-o", tmp_path / "r.wav")


# evaluate


BASE_KEYS = {"file", "lsd", "lsd_19k", "lsd_ssr_eval", "snr_db", "si_sdr_db", "log_mel_l1"}
BAND_KEYS = {"lsd_low", "lsd_high", "snr_low_db", "level_high_db", "texture_high"}


def evaluated(capsys, *argv: str | Path) -> dict | list:
    capsys.readouterr()
    assert run("evaluate", *argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_gives_the_promised_keys(tmp_path, clip, capsys):
    degraded = tmp_path / "d.wav"
    assert run("degrade", clip, "-o", degraded, *TONE, *CUT_4K) == 0
    assert set(evaluated(capsys, clip, degraded)) == BASE_KEYS
    assert set(evaluated(capsys, clip, degraded, "--cutoff-hz", "4000")) == BASE_KEYS | BAND_KEYS
    scores = evaluated(capsys, clip, degraded, "--degraded", degraded, "--record", f"{degraded}.json")
    assert BASE_KEYS | BAND_KEYS | {"lsd_gain", "oracle_lsd_19k", "oracle_ratio", "tone_suppression_db"} <= set(scores)
    assert scores["lsd_gain"] == 0 and abs(scores["tone_suppression_db"]) < 0.5  # nothing was restored
    assert scores["oracle_ratio"] > 1
    both = ["--record", f"{degraded}.json", *CUT_4K]
    assert "d.wav: the record" in refusal(capsys, tmp_path, "evaluate", clip, degraded, *both)


def test_evaluate_knows_perfect_and_half_as_loud(tmp_path, clip, music, capsys):
    audio.write(tmp_path / "half.wav", music / 2, 48_000)
    same, half = evaluated(capsys, clip, clip), evaluated(capsys, clip, tmp_path / "half.wav")
    assert same["lsd"] == 0 and same["snr_db"] is None  # JSON has no infinity
    assert half["lsd_ssr_eval"] == pytest.approx(np.log10(4), abs=0.005)


def test_evaluate_pairs_folders_by_name(tmp_path, music, capsys):
    for folder, gain, suffix in [("reference", 1.0, ".flac"), ("restored", 0.5, ".wav"), ("degraded", 0.1, ".wav")]:
        (tmp_path / folder).mkdir()
        for name in ("a", "b.2"):
            audio.write(tmp_path / folder / f"{name}{suffix}", music * gain, 48_000)
    for name, tone_hz in [("a", 1000), ("b.2", None)]:
        noise = {"noise_type": "tone", "noise_amplitude": 0.1, "tone_hz": tone_hz} if tone_hz else {}
        record = degrade.Degradation(4000, **noise).to_json(48_000)
        (tmp_path / "degraded" / f"{name}.wav.json").write_text(record)
    folders = [tmp_path / "reference", tmp_path / "restored"]
    options = ["--degraded", tmp_path / "degraded", "--record", tmp_path / "degraded"]
    rows = evaluated(capsys, *folders, *options)
    assert [row["file"] for row in rows] == ["a.wav", "b.2.wav"]
    assert all(row["lsd_gain"] > 0 for row in rows)
    assert "tone_suppression_db" in rows[0] and "tone_suppression_db" not in rows[1]
    assert run("evaluate", *folders, *options) == 0
    assert "mean and median over 2 files" in capsys.readouterr().out

    (tmp_path / "degraded" / "a.wav").unlink()
    assert "named a" in refusal(capsys, tmp_path, "evaluate", *folders, *options)
    (tmp_path / "restored" / "a.wav").unlink()
    assert "a is only in one" in refusal(capsys, tmp_path, "evaluate", *folders)
    assert "two folders" in refusal(capsys, tmp_path, "evaluate", tmp_path / "reference", tmp_path / "x.wav")


def test_the_summary_of_folders_is_over_what_is_defined(capsys):
    """Whatever the order of files: NaN has no place in it. Opposite infinities have a median and no mean."""
    rows = [
        {"file": "a.wav", "snr_db": np.nan, "si_sdr_db": np.nan, "lsd": 4.0, "level_high_db": np.inf},
        {"file": "b.wav", "snr_db": 1.0, "si_sdr_db": np.nan, "lsd": 0.0, "level_high_db": -np.inf},
        {"file": "c.wav", "snr_db": 6.0, "si_sdr_db": np.nan, "lsd": 8.0, "level_high_db": 2.0, "tone_db": 9.0},
        {"file": "d.wav", "snr_db": 2.0, "si_sdr_db": np.nan, "lsd": 8.0, "level_high_db": 2.0},
    ]
    for order in itertools.permutations(rows):
        cli._print_table(order)
        _, summary = capsys.readouterr().out.split("mean and median over 4 files\n")
        assert {line.split()[0]: line.split(maxsplit=1)[1] for line in summary.splitlines()} == {
            "snr_db": "3.0000     2.0000  of 3 files",
            "si_sdr_db": "nan        nan  of 0 files",
            "lsd": "5.0000     6.0000",
            "level_high_db": "nan     2.0000",
            "tone_db": "9.0000     9.0000  of 1 files",
        }


def test_evaluate_refuses_other_lengths_and_channels(capsys, tmp_path, clip, music):
    audio.write(tmp_path / "short.wav", music[:-4800], 48_000)
    audio.write(tmp_path / "stereo.wav", np.stack([music, music]), 48_000)
    for name in ("short.wav", "stereo.wav"):
        assert name in refusal(capsys, tmp_path, "evaluate", clip, tmp_path / name)


# the project's own verbs


def test_project_verbs_pass_their_options_on(monkeypatch, capsys, tmp_path):
    calls = []

    def record(result):
        return lambda *args, **kwargs: calls.append((args, kwargs)) or result

    monkeypatch.setattr("srlib.training.loop.train", record(tmp_path / "run"))
    monkeypatch.setattr("srlib.report.reproduce.reproduce", record(None))
    monkeypatch.setattr("srlib.report.pdf.build", record(tmp_path / "report.pdf"))
    assert run("train", "vae", "--config", "c.yaml", "--data", "d", "--out", "o", "--max-steps", "3", "--resume") == 0
    assert calls[-1] == (("vae", "c.yaml", "d", "o"), {"init": None, "max_steps": 3, "resume": True})
    assert "o holds no checkpoint" in capsys.readouterr().err
    assert run("reproduce", "--profile", "smoke", "--from", "05", "--force") == 0
    assert calls[-1] == (("smoke",), {"start": "05", "only": None, "force": True})
    assert run("report", "--profile", "smoke", "--draft") == 0
    assert calls[-1] == (("smoke",), {"draft": True})
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.pdf")


def test_profiles(capsys, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("srlib.report.reproduce.reproduce", lambda profile, **_kwargs: calls.append(profile))
    monkeypatch.setenv("SRLIB_PROFILE", "smoke")
    assert run("reproduce") == 0 and calls == ["smoke"]
    for verb in ("reproduce", "report"):
        assert "smoke, demo, paper" in refusal(capsys, tmp_path, verb, "--profile", "huge")


def test_one_notebook_is_no_place_to_start_from(capsys, tmp_path):
    assert "not allowed with" in refusal(capsys, tmp_path, "reproduce", "--only", "02", "--from", "03")


def test_disk_errors_are_one_sentence(capsys, tmp_path, clip, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "d.wav"))

    monkeypatch.setattr("soundfile.SoundFile.write", fail)
    assert "No space left" in refusal(capsys, tmp_path, "degrade", clip, "-o", tmp_path / "d.wav", *CUT_4K)


def test_no_verb_is_offered_that_does_not_exist():
    parser = command_line.build_parser()
    (verbs,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert set(verbs) == {"restore", "degrade", "evaluate", "train", "import-audiosr", "reproduce", "report"}
    assert all(callable(getattr(cli, verb.replace("-", "_"), None)) for verb in verbs)
    assert run("import-audiosr", "x") == 2
