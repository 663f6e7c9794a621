"""Every training stage for a few steps on a little music: files, resuming bit for bit, several processes, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from srlib.audio.stft import log_mel
from srlib.data import batches
from srlib.data.tracks import load_dataset
from srlib.errors import SrlibError
from srlib.models import vae
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training import loop
from srlib.training.loop import LOG_COLUMNS, Run, train

CONFIG = {
    "size": "tiny",
    "batch_size": 2,
    "frames": 64,
    "max_steps": 2,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "log_every": 1,
    "validate_every": 2,
    "fit_batches": 2,
}
ONE_STEP = CONFIG | {"max_steps": 1}
TRAINED = {"vocoder": ("vocoder",), "ldm": ("unet", "prior")}  # the prior is fitted before the first step
SCORES = ("val/loss", "val/lsd", "val/zimtohrli", "val/texture_high")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for all runs of this file, so that the music is decoded once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_step(runs, music_folder):
    """A finished run of one step; tests that would change it must copy it."""
    return train("ldm", ONE_STEP, music_folder, runs / "one-step")


def log_of(run):
    return pd.read_csv(run / "log.csv")


def steps_of(run):
    return log_of(run)["global_step"].tolist()


def weights_of(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    return state["module"], state["ema"]["shadow_params"]


def published(run):
    return list(RestorationPipeline.from_pretrained(run / "pipeline").unet.parameters())


def recipe_of(path, settings):
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    return path


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_same_weights(first, second):
    (module, ema), (other_module, other_ema) = weights_of(first), weights_of(second)
    assert module.keys() == other_module.keys()
    assert same(module.values(), other_module.values()) and same(ema, other_ema)


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stage_trains_its_part_and_leaves_a_pipeline(runs, music_folder, stage):
    run = train(stage, CONFIG | {"learning_rate": 1e-2}, music_folder, runs / stage)
    log = log_of(run)
    assert tuple(log) == LOG_COLUMNS and log["global_step"].tolist() == [1, 2]
    assert set(log["run_id"]) == set(log["stage"]) == {stage} and np.isfinite(log["train/loss"]).all()
    assert log.loc[0, "val/loss"] != log.loc[0, "val/loss"] and log.loc[1, "val/lsd"] > 0  # validated at step 2 alone
    record = json.loads((run / "config.json").read_text())
    assert (record["stage"], record["data"], record["batch_size"]) == (stage, str(music_folder), 2)

    pipeline, start = RestorationPipeline.from_pretrained(run / "pipeline"), build("tiny", seed=0)
    for name in ("vae", "vocoder", "unet", "prior"):
        before, after = (getattr(one, name).state_dict().values() for one in (start, pipeline))
        assert same(before, after) != (name in TRAINED[stage]), name
    module, ema = weights_of(run)  # what is published are the averaged weights, not the last ones
    parts = dict(getattr(pipeline, TRAINED[stage][0]).named_parameters())
    assert same(parts.values(), ema) and not same(parts.values(), [module[name] for name in parts])


def test_what_has_a_closed_form_takes_no_step_and_leaves_a_log_row_and_a_pipeline(runs, music_folder):
    run = train("vae", CONFIG | {"batch_size": 8}, music_folder, runs / "vae")
    row = log_of(run).iloc[0]
    assert len(log_of(run)) == 1 and row["global_step"] == 0 and np.isnan(row["train/loss"]) and row["val/lsd"] > 0
    restored, start = RestorationPipeline.from_pretrained(run / "pipeline"), build("tiny", seed=0)
    heard = [track.mixture() for track in load_dataset(str(music_folder), "train")]
    mel = log_mel(torch.from_numpy(np.stack(heard)))[:, :, :496]
    errors = [(vae.decode(pipe.vae, vae.encode(pipe.vae, mel)) - mel).abs().mean() for pipe in (start, restored)]
    assert errors[1] < 0.4 < 2 < errors[0]  # eight of 64 components, and before it the first eight cells of a patch
    before = (run / "log.csv").read_bytes()
    train("vae", CONFIG | {"batch_size": 8}, music_folder, run, resume=True)
    assert (run / "log.csv").read_bytes() == before


def test_a_run_repeats_bit_for_bit_and_the_corpus_is_decoded_once(runs, music_folder, one_step, monkeypatch):
    monkeypatch.setattr(batches, "_decode", lambda *arguments: pytest.fail("decoded again"))
    again = train("ldm", ONE_STEP | {"prefetch": 3}, music_folder, runs / "again")  # threads change nothing
    assert len(list(runs.glob("corpus-*.int16"))) == 2  # train and valid
    assert_same_weights(one_step, again)


def killed(monkeypatch, owner, name, count, *arguments):
    """Train until a function is called for the time number `count`."""
    function, calls = getattr(owner, name), []

    def dying(*given):
        calls.append(given)
        if len(calls) == count:
            raise KeyboardInterrupt
        return function(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, dying)
        train(*arguments)


@pytest.mark.parametrize(("stage", "fresh"), [("ldm", 2), ("vocoder", 0)])
def test_a_killed_run_resumes_bit_for_bit(runs, music_folder, one_step, stage, fresh, monkeypatch, tmp_path):
    """With few fresh examples too: those that are drawn again are made anew. Data and run may have moved, and the
    model that the run started from is not asked for.
    """
    init = one_step / "pipeline" if stage == "vocoder" else None
    config = CONFIG | {"max_steps": 6, "prefetch": 2, "batch_size": 4, "fresh_examples": fresh}
    monkeypatch.setattr(batches, "POOL_STEPS", 3)
    monkeypatch.setattr(loop, "POOL_STEPS", 3)
    whole = train(stage, config, music_folder, runs / f"{stage}-{fresh}-whole", init)
    folder = tmp_path / "a" / whole.name
    killed(monkeypatch, Run, "_update", 6, stage, config, music_folder, folder, init)  # a step after the checkpoint
    moved = shutil.move(tmp_path / "a", tmp_path / "b") / whole.name
    shutil.copytree(music_folder, tmp_path / "music")
    resumed = train(stage, config, os.path.relpath(tmp_path / "music"), moved, resume=True)
    assert_same_weights(whole, resumed)
    columns = ["run_id", "global_step", "train/loss", *SCORES, "learning_rate"]
    pd.testing.assert_frame_equal(log_of(whole)[columns], log_of(resumed)[columns], check_exact=True)
    for part in ("vae", "unet", "vocoder", "prior"):
        states = [getattr(RestorationPipeline.from_pretrained(run / "pipeline"), part) for run in (whole, resumed)]
        assert same(*(state.state_dict().values() for state in states)), part


def test_the_pipeline_of_a_run_is_that_of_its_best_validation(runs, music_folder, monkeypatch):
    losses = {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.35, 5: 0.1}
    averages = {}

    def judged(self):
        averages[self.step] = [value.clone() for value in self.ema.shadow_params]
        return dict.fromkeys(SCORES, losses[self.step])

    monkeypatch.setattr(Run, "_validate", judged)
    config = CONFIG | {"validate_every": 1, "constant_rate": True}
    folder = train("ldm", config, music_folder, runs / "best", max_steps=3)
    assert same(published(folder), averages[2]) and not same(averages[2], averages[3])
    for steps, best in ((4, 2), (5, 5)):  # a run that resumes knows what was best before
        train("ldm", config, music_folder, folder, max_steps=steps, resume=True)
        assert same(published(folder), averages[best])
    assert log_of(folder)["val/loss"].tolist() == list(losses.values())
    assert (log_of(folder)["learning_rate"][1:] == CONFIG["learning_rate"]).all()
    assert json.loads((folder / "config.json").read_text())["max_steps"] == 5


def test_a_loss_that_is_no_number_ends_the_run_in_a_sentence(music_folder, one_step, monkeypatch, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    before = published(run), (run / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(Run, "_validate", lambda self: {"val/loss": float("nan")})
    with pytest.raises(SrlibError, match="is nan at step 2: start it again") as caught:
        train("ldm", ONE_STEP, music_folder, run, max_steps=2, resume=True)
    assert "\n" not in str(caught.value)
    assert same(published(run), before[0]) and (run / "checkpoint.pt").read_bytes() == before[1]


@pytest.mark.parametrize("at", [(RestorationPipeline, "save_pretrained"), (torch, "save")], ids=lambda at: at[1])
@pytest.mark.parametrize("validate_every", [2, 1])  # at 1 an older state is there
def test_a_run_killed_in_its_last_save_is_not_finished(runs, music_folder, validate_every, at, monkeypatch):
    config, folder = CONFIG | {"validate_every": validate_every}, runs / f"{at[1]}-{validate_every}"
    scores = lambda self: dict.fromkeys(SCORES, 1 / (1 + self.step))  # noqa: E731  each is better than the one before
    monkeypatch.setattr(Run, "_validate", scores)
    killed(monkeypatch, *at, 2 // validate_every, "ldm", config, music_folder, folder)
    train("ldm", config, music_folder, folder, resume=True)
    assert steps_of(folder)[-1] == 2 and same(published(folder), weights_of(folder)[1])


# At the last timestep there is no noise, so that no random number differs between processes.
SHARED = CONFIG | {"batch_size": 4, "constant_rate": True, "warmup_steps": 1, "validate_every": 3}
SHARED |= {"last_step_share": 1.0, "condition_dropout": 0.0}


def launch(music_folder, folder, settings):
    """A run of two processes, on the CPU."""
    recipe = recipe_of(folder.with_suffix(".toml"), settings)
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "srlib", "train", "ldm"]
    command += ["--config", str(recipe), "--data", str(music_folder), "--out", str(folder)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)


def test_two_processes_on_half_batches_equal_one_on_the_whole(runs, music_folder):
    """Their losses, and their weights but where Adam divides rounding by rounding; one process writes."""
    alone = train("ldm", SHARED | {"max_steps": 3}, music_folder, runs / "alone")
    done = launch(music_folder, runs / "shared", SHARED | {"max_steps": 3})
    assert done.returncode == 0, done.stderr
    columns = ["global_step", "train/loss", "val/loss", "val/lsd"]
    pd.testing.assert_frame_equal(*(log_of(run)[columns] for run in (alone, runs / "shared")), rtol=1e-3)
    start = train("ldm", SHARED | {"max_steps": 1, "learning_rate": 1e-30}, music_folder, runs / "start")
    (first, _), (second, _), (before, _) = (weights_of(run) for run in (alone, runs / "shared", start))
    moved = torch.cat([(first[name] - before[name]).flatten() for name in before]).abs()
    apart = torch.cat([(first[name] - second[name]).flatten() for name in before]).abs()
    assert moved.max() > 1e-3 and apart.mean() < 0.01 * moved.mean()
    odd = launch(music_folder, runs / "odd", SHARED | {"batch_size": 5})
    assert odd.returncode and "A batch of 5 cannot be shared among 2 processes" in odd.stderr
    assert not (runs / "odd").exists()


def test_one_process_where_several_were_asked_for_says_so(music_folder, one_step, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # what `accelerate launch --cpu --num_processes 2` sets
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.warns(UserWarning, match="One process trains, although several were asked for: .* torchrun"):
        train("ldm", ONE_STEP, music_folder, one_step, resume=True)


def test_a_folder_is_refused_while_another_process_trains_in_it(runs, music_folder, tmp_path):
    recipe = recipe_of(tmp_path / "long.toml", CONFIG | {"max_steps": 9999})
    command = ["-m", "srlib", "train", "ldm", "--config", str(recipe), "--data", str(music_folder)]
    other = subprocess.Popen([sys.executable, *command, "--out", str(runs / "locked")])
    try:
        while not (runs / "locked" / "checkpoint.pt").exists():
            assert other.poll() is None
            time.sleep(0.1)
        with pytest.raises(SrlibError, match="Another process trains in"):
            train("ldm", recipe, music_folder, runs / "locked", resume=True)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    step = torch.load(runs / "locked" / "checkpoint.pt", weights_only=True)["step"]
    train("ldm", recipe, music_folder, runs / "locked", max_steps=step + 1, resume=True)
    assert steps_of(runs / "locked")[-1] == step + 1


def test_resuming_a_finished_run_changes_nothing_and_a_run_is_not_begun_twice(music_folder, one_step):
    files = [one_step / name for name in ("checkpoint.pt", "log.csv", "config.json")]
    before = [path.read_bytes() for path in files]
    train("ldm", ONE_STEP, music_folder, one_step, resume=True)
    with pytest.raises(SrlibError, match="already holds a run"):
        train("ldm", CONFIG, music_folder, one_step)
    with pytest.raises(SrlibError, match="other learning_rate, seed: resume"):
        train("ldm", ONE_STEP | {"seed": 5, "learning_rate": 1.0}, music_folder, one_step, resume=True)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: (run / "checkpoint.pt").write_bytes(b"PK"), r"checkpoint\.pt is damaged"),
        (lambda run: _saved(run, "ema"), r"checkpoint\.pt is damaged \(lacks 'ema'\)"),
        (lambda run: _saved(run, "module"), r"checkpoint\.pt is damaged .*Missing key"),
        (lambda run: (run / "config.json").unlink(), r"config\.json is damaged"),
    ],
)
def test_a_damaged_run_is_named(music_folder, one_step, tmp_path, damage, sentence):
    run = shutil.copytree(one_step, tmp_path / "run")
    damage(run)
    with pytest.raises(SrlibError, match=sentence) as caught:
        train("ldm", ONE_STEP, music_folder, run, resume=True)
    assert "\n" not in str(caught.value)


def _saved(run, name):
    """The checkpoint without one of its parts, or without the first weight of it."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    part = state.pop(name)
    if name == "module":
        state[name] = dict(list(part.items())[1:])
    torch.save(state, run / "checkpoint.pt")


def test_a_run_is_not_resumed_with_a_file_more(music_folder, one_step, tmp_path):
    music = shutil.copytree(music_folder, tmp_path / "music")
    shutil.copy(min(music.glob("*.flac")), music / "new.flac")
    with (music / "manifest.csv").open("a") as manifest:
        manifest.write("new.flac,train\n")
    with pytest.raises(SrlibError, match="begun with other corpus: resume"):
        train("ldm", ONE_STEP, music, one_step, resume=True)


def test_everything_that_is_wrong_with_a_call_is_told_at_once_and_leaves_no_folder(runs, tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.wav").touch()
    config = CONFIG | {"learningrate": 1, "frames": 100}
    with pytest.raises(SrlibError) as caught:
        train("nvsr", config, tmp_path / "music", runs / "refused", init="/no/such/model", max_steps=0)
    told = str(caught.value)
    for one in ("no stage 'nvsr'", "no setting learningrate", "frames is 100", "a.wav is", "/no/such/model"):
        assert one in told
    assert "\n" not in told and not (runs / "refused").exists()
