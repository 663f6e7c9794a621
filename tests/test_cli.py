"""The command line on real files: what it writes, what it prints, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from srlib import config, degrade
from srlib.audio import files as audio
from srlib.cli import main

CUT_4K = ["--cutoff-hz", "4000"]


@pytest.fixture
def clip(tmp_path, music) -> Path:
    path = tmp_path / "clip.wav"
    audio.write(path, music, 48_000)
    return path


def run(*argv: str | Path) -> int:
    return main([str(arg) for arg in argv])


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


def test_help_names_every_choice_of_the_library(capsys):
    """The names stand in `srlib.config`, so that help needs no scipy and no torch."""
    from srlib.audiosr.checkpoint import DTYPES
    from srlib.models.diffusion import SCHEDULERS
    from srlib.training.objectives import OBJECTIVES

    for verb, choice, known in [
        ("restore", config.Scheduler, SCHEDULERS),
        ("restore", config.Merge, config.MERGES),
        ("degrade", config.FilterType, config.FILTER_TYPES),
        ("degrade", config.NoiseType, config.NOISE_TYPES),
        ("import-audiosr", config.DType, DTYPES),
        ("train", config.Stage, OBJECTIVES),
    ]:
        assert run(verb, "--help") == run(verb, "-h") == 0
        printed = capsys.readouterr().out
        assert set(get_args(choice)) == set(known) and all(name in printed for name in known)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "srlib: Missing command (see srlib --help)"),
        (["restore", "a.wav", "-o", "x.wav", "--louder"], "No such option: --louder"),
        (["train", "ldm"], "srlib train ldm: Missing option '--config'"),
        (["reproduce", "--profile", "huge"], "smoke, demo, paper"),
    ],
)
def test_usage_is_refused(capsys, tmp_path, argv, words):
    assert words in refusal(capsys, tmp_path, *argv)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "d.wav"), 2, "srlib: d.wav: No space left on device\n"),
        (ModuleNotFoundError("", name="x"), 2,
         "srlib: x is not installed: pip install 'srlib[report]', or 'srlib[train]' to train.\n"),
    ],
)  # fmt: skip
def test_what_ends_a_verb_is_a_sentence_at_most(capsys, monkeypatch, clip, error, code, words):
    def fail(*_args):
        raise error

    monkeypatch.setattr("srlib.audio.files.read", fail)
    assert run("degrade", clip, "-o", clip.with_name("d.wav"), *CUT_4K) == code
    assert capsys.readouterr() == ("", words)


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
    [
        ["--random", "--seed", "3"],
        [*TONE, "--noise-first", *CUT_4K, "--gap", "0.5:0.75", "--gap", "1:1.5"],
        ["--noise", "white", "--amplitude", "0.01", "--seed", "9" * 23],
    ],
)
def test_a_record_replays_to_the_same_bits(tmp_path, clip, options):
    first, second = tmp_path / "first.wav", tmp_path / "second.wav"
    assert run("degrade", clip, "-o", first, *options) == 0
    assert run("degrade", clip, "-o", second, "--replay", f"{first}.json") == 0
    assert first.read_bytes() == second.read_bytes()
    assert Path(f"{first}.json").read_bytes() == Path(f"{second}.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing to do"),
        ([*CUT_4K, "--filter", "bessel"], "bessel"),
        (["--order", "4"], "--cutoff-hz"),
        (["--amplitude", "0.1"], "--noise"),
        (["--noise", "white", "--amplitude", "0.1", "--tone-hz", "440"], "--noise tone"),
        (["--gap", "1"], "START:END"),
        (["--random", *CUT_4K], "--random decides --cutoff-hz"),
        (["--replay", "x.json", "--seed", "1"], "--replay decides --seed"),
        (["--replay", "no.json"], "no.json cannot be read (No such file or directory): give a record"),
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
        ("new.xyz", ".wav"),
    ]:
        assert words in refusal(capsys, tmp_path, *verb, clip, "-o", tmp_path / out)
    assert "folder" in refusal(capsys, tmp_path, "degrade", *CUT_4K, clip, "-o", tmp_path / "folder.wav")
    for extra in ([], ["--overwrite"]):
        assert "never overwritten" in refusal(capsys, tmp_path, *verb, clip, "-o", clip, *extra)


def test_degrade_writes_both_files_or_neither(capsys, tmp_path, clip):
    (tmp_path / "d.wav.json").write_text("someone's")
    assert "d.wav.json" in refusal(capsys, tmp_path, "degrade", clip, "-o", tmp_path / "d.wav", *CUT_4K)
    assert run("degrade", clip, "-o", tmp_path / "d.wav", *CUT_4K, "--overwrite") == 0
    assert json.loads((tmp_path / "d.wav.json").read_text())["cutoff_hz"] == 4000


def test_a_record_that_is_none(capsys, tmp_path, clip):
    bad = tmp_path / "bad.json"
    for text in (b"{}", b"\xff\xfe"):
        bad.write_bytes(text)
        assert "bad.json" in refusal(capsys, tmp_path, "degrade", clip, "-o", tmp_path / "d.wav", "--replay", bad)
    assert "bad.json: the record is no JSON" in refusal(capsys, tmp_path, "evaluate", clip, clip, "--record", bad)
    assert "no.json cannot be read" in refusal(capsys, tmp_path, "evaluate", clip, clip, "--record", "no.json")


def test_what_clips_in_a_flac_is_told_in_a_line(tmp_path, music, tiny, capsys):
    loud = tmp_path / "loud.wav"
    audio.write(loud, music / np.abs(music).max() * 4, 48_000)
    with pytest.warns(match=r"d\.flac.*clip at full scale"):
        assert run("degrade", *CUT_4K, loud, "-o", tmp_path / "d.flac") == 0
    options = ["--merge", "replace", "--steps", "0", "--report", tmp_path / "r.json"]
    assert run("restore", *options, loud, "-o", tmp_path / "r.flac") == 0
    assert "clip at full scale" in capsys.readouterr().out
    assert "clip at full scale" in json.loads((tmp_path / "r.json").read_text())[0]["warnings"][0]


def test_bad_files_are_refused_by_name(capsys, tmp_path, clip, tiny):
    """tests/audio knows more of them."""
    bad, out = tmp_path / "text.wav", ["-o", tmp_path / "out.wav"]
    bad.write_bytes(b"This is not audio." * 50)
    for argv in (["degrade", bad, *out, *CUT_4K], ["restore", bad, *out], ["evaluate", clip, bad]):
        assert "text.wav is not an audio file" in refusal(capsys, tmp_path, *argv)


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


def test_a_folder_is_restored_in_its_order_and_evaluated(tmp_path, music, tiny, capsys):
    """What was restored into the album before is not taken for music of it."""
    album, options = tmp_path / "album", ["--steps", "1", "--overwrite"]
    for name in ("disc 1/song.flac", "disc 2/song.flac", "talk.1.wav"):
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        audio.write(album / name, music[:24_000], 48_000)
    names = ["disc 1/song.wav", "disc 2/song.wav", "talk.1.wav"]
    for _ in range(2):
        assert run("restore", album, "-o", album / "restored", *options) == 0
        written = sorted((album / "restored").rglob("*.wav"))
        assert [path.relative_to(album / "restored").as_posix() for path in written] == names
    assert [row["file"] for row in evaluated(capsys, album, album / "restored")] == names


def test_pipes_at_both_ends(tmp_path, clip, tiny_folder):
    command = f"{sys.executable} -m srlib restore --model {tiny_folder} --steps 1 <(cat {clip}) -o - > {tmp_path}/out"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert audio.read(tmp_path / "out")[0].shape == audio.read(clip)[0].shape
    assert done.stderr.startswith("standard output: ") and done.stderr.count("\n") == 1


def test_a_closed_terminal_leaves_what_is_done_under_names_that_it_could_not_print(tmp_path, music, tiny_folder):
    """Names of any bytes and of 250 of them, on a console of ASCII; nothing is left of the last file."""
    names = ["1日.wav", os.fsdecode(b"2\xe9.wav"), "3" * 246 + ".wav", "4.wav"]
    (tmp_path / "in").mkdir()
    for name in names:
        audio.write(tmp_path / "in" / name, np.resize(music, 48_000 * 600 if name == "4.wav" else 4800), 48_000)
    command = [sys.executable, "-m", "srlib", "restore", tmp_path / "in", "-o", tmp_path / "out", "--steps", "1"]
    process = subprocess.Popen(
        [*command, "--model", tiny_folder],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # nohup would have it ignored
    )
    assert all(process.stdout.readline() for _ in names[:3])
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 128 + signal.SIGHUP
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names[:3])


def test_restore_fills_gaps_and_takes_every_sampling_option(tmp_path, clip, tiny):
    out = tmp_path / "r.flac"
    assert run("restore", clip, "-o", out, "--gap", "1:1.25", "--samples", "2", "--scheduler", "ddim", "--eta", "0.5",
               "--guidance", "1.5", "--steps", "2", "--device", "cpu", "--merge", "replace") == 0  # fmt: skip
    assert out.is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cutoff-hz", "99"], "cutoff_hz is 99.0: it should be greater than or equal to 100"),
        (["--gap", "2.9:3.1"], "not inside the audio"),
        (["--samples", "0"], "num_samples is 0: it should be greater than or equal to 1"),
        (["--gap", "auto", "--gap", "1:2"], "leave out the others"),
        (["--steps", "1001"], "1001 steps cannot be taken: give a whole number from 0 to 1000"),
        (["--device", "abacus"], "no device"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--report", "report.wav"], "one of .json"),
        (["--show", "-"], "give files instead of pipes"),
    ],
)
def test_restore_refuses(capsys, tmp_path, clip, tiny_folder, options, words):
    options = ["--model", tiny_folder, *options]
    assert words in refusal(capsys, tmp_path, "restore", clip, "-o", tmp_path / "r.wav", *options)


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
    same = evaluated(capsys, clip, clip)
    assert set(same) == BASE_KEYS and same["lsd"] == 0 and same["snr_db"] is None  # JSON has no infinity
    assert set(evaluated(capsys, clip, degraded, "--cutoff-hz", "4000")) == BASE_KEYS | BAND_KEYS
    scores = evaluated(capsys, clip, degraded, "--degraded", degraded, "--record", f"{degraded}.json")
    assert BASE_KEYS | BAND_KEYS | {"lsd_gain", "oracle_lsd_19k", "oracle_ratio", "tone_suppression_db"} <= set(scores)
    assert scores["lsd_gain"] == 0 and abs(scores["tone_suppression_db"]) < 0.5  # nothing was restored
    assert scores["oracle_ratio"] > 1
    both = ["--record", f"{degraded}.json", *CUT_4K]
    assert "d.wav: the record" in refusal(capsys, tmp_path, "evaluate", clip, degraded, *both)


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
    printed = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[1:5]}
    assert printed["mean"] == pytest.approx((rows[0]["lsd"] + rows[1]["lsd"]) / 2, abs=1e-4)
    (tmp_path / "restored" / "b.2.wav").write_bytes(b"no audio")  # is named, and the others are judged
    assert run("evaluate", *folders, "--json") == 2
    printed = capsys.readouterr()
    assert [row["file"] for row in json.loads(printed.out)] == ["a.wav"]
    assert printed.err.count("\n") == 1 and "b.2.wav is not an audio file" in printed.err


# the project's own verbs


def test_a_part_is_trained(capsys, tmp_path, music_folder):
    (tmp_path / "vae.toml").write_text('size = "tiny"\nbatch_size = 2\n')
    options = ["--config", tmp_path / "vae.toml", "--data", music_folder, "--out", tmp_path / "run", "--resume"]
    assert run("train", "vae", *options) == 0
    printed = capsys.readouterr()
    assert "run holds no checkpoint" in printed.err
    assert printed.out.splitlines()[-1] == str(tmp_path / "run") and (tmp_path / "run" / "pipeline").is_dir()


def test_profiles_and_a_verdict(monkeypatch, capsys):
    calls = []
    found = ["a table moved"]
    monkeypatch.setattr("srlib.report.reproduce.reproduce", lambda profile, **_kwargs: calls.append(profile) or found)
    monkeypatch.setenv("SRLIB_PROFILE", "smoke")
    assert run("reproduce") == 0 and run("reproduce", "--profile", "paper", "--verify") == 1
    assert calls == ["smoke", "paper"]
    monkeypatch.setattr("srlib.report.pdf.build", lambda *_args, **_kwargs: "a")
    monkeypatch.setattr("srlib.report.listen.pages", lambda *_args: ["b", "c"])
    assert run("report", "--draft") == 0 and capsys.readouterr().out.split() == ["a", "b", "c"]
