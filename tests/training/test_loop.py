"""Every training stage for a few steps on a little music: files, resuming bit for bit, several processes, refusals."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from srlib.audio.stft import log_mel
from srlib.config import SAMPLE_RATE
from srlib.data import batches
from srlib.data.tracks import load_dataset
from srlib.errors import SrlibError
from srlib.measure import perceptual
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training import loop
from srlib.training.loop import LOG_COLUMNS, Run, TrainingLog, train

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
SCORES = ("val/loss", "val/lsd", "val/zimtohrli", "val/texture_high", "val/loss_raw")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for all runs of this file, so that the music is decoded once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_step(runs, music_folder):
    """A finished run of one step; tests that would change it must copy it."""
    return train("ldm", ONE_STEP, music_folder, runs / "one-step")


def rows_of(run):
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps_of(run):
    return [int(row["global_step"]) for row in rows_of(run)]


def weights_of(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    return state["module"], state["ema"]["shadow_params"]


def published(run):
    return list(RestorationPipeline.from_pretrained(run / "pipeline").unet.parameters())


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_same_weights(first, second):
    (module, ema), (other_module, other_ema) = weights_of(first), weights_of(second)
    assert module.keys() == other_module.keys()
    assert same(module.values(), other_module.values()) and same(ema, other_ema)


def restored_noise(run):
    wav = (0.05 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    return RestorationPipeline.from_pretrained(run / "pipeline")(wav, SAMPLE_RATE).audio


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stage_trains_its_part_and_leaves_a_pipeline(runs, music_folder, stage):
    run = train(stage, CONFIG | {"learning_rate": 1e-2}, music_folder, runs / stage)
    assert run == runs / stage
    rows = rows_of(run)
    assert tuple(rows[0]) == LOG_COLUMNS
    assert [(row["run_id"], row["stage"], row["global_step"]) for row in rows] == [(stage,) * 2 + (n,) for n in "12"]
    assert all(np.isfinite(float(row["train/loss"])) for row in rows)
    assert rows[0]["val/loss"] == rows[0]["val/lsd"] == ""  # validated at step 2 alone
    measured = [name for name in SCORES if name != "val/zimtohrli" or perceptual.is_installed("zimtohrli")]
    assert all(float(rows[1][name]) > 0 for name in measured)
    assert rows[1]["val/loss_raw"] != rows[1]["val/loss"]  # after two steps the average still lags
    assert 0 <= float(rows[1]["data_wait_share"]) <= 1
    record = json.loads((run / "config.json").read_text())
    assert (record["stage"], record["data"], record["batch_size"]) == (stage, str(music_folder), 2)

    pipeline, start = RestorationPipeline.from_pretrained(run / "pipeline"), build("tiny", seed=0)
    for name in ("vae", "vocoder", "unet", "prior"):
        before, after = (getattr(one, name).state_dict().values() for one in (start, pipeline))
        assert same(before, after) != (name in TRAINED[stage]), name
    assert np.isfinite(restored_noise(run)).all()
    module, ema = weights_of(run)  # what is published are the averaged weights, not the last ones
    parts = dict(getattr(pipeline, TRAINED[stage][0]).named_parameters())
    assert same(parts.values(), ema) and not same(parts.values(), [module[name] for name in parts])


def test_what_has_a_closed_form_takes_no_step_and_leaves_a_log_row_and_a_pipeline(runs, music_folder):
    run = train("vae", CONFIG | {"batch_size": 8}, music_folder, runs / "vae")
    (row,) = rows_of(run)
    assert (row["run_id"], row["stage"], row["global_step"], row["train/loss"]) == ("vae", "vae", "0", "")
    assert float(row["val/lsd"]) > 0 and row["val/loss"] == row["val/loss_raw"]
    restored, start = RestorationPipeline.from_pretrained(run / "pipeline"), build("tiny", seed=0)
    for name in ("unet", "vocoder", "prior"):
        assert same(*(getattr(one, name).state_dict().values() for one in (start, restored)))
    heard = [track.mixture() for track in load_dataset(str(music_folder), "train")]
    mel = log_mel(torch.from_numpy(np.stack(heard)))[:, :, :496]
    errors = []
    for pipe in (start, restored):
        latent = pipe.vae.encode(mel).latent_dist.mode()
        errors.append((pipe.vae.decode(latent).sample - mel).abs().mean())
    assert errors[1] < 0.4 < 2 < errors[0]  # eight of 64 components, and before it the first eight cells of a patch
    before = (run / "log.csv").read_bytes(), (run / "checkpoint.pt").read_bytes()
    train("vae", CONFIG | {"batch_size": 8}, music_folder, run, resume=True)
    assert ((run / "log.csv").read_bytes(), (run / "checkpoint.pt").read_bytes()) == before


def test_a_run_repeats_bit_for_bit_and_the_corpus_is_decoded_once(runs, music_folder, one_step, monkeypatch):
    monkeypatch.setattr(batches, "_decode", lambda *arguments: pytest.fail("decoded again"))
    ahead = train("ldm", ONE_STEP | {"prefetch": 3}, music_folder, runs / "again")  # threads change nothing
    assert len(list(runs.glob("corpus-*.int16"))) == 2  # train and valid
    assert_same_weights(one_step, ahead)


@pytest.mark.parametrize(("stage", "fresh"), [("ldm", 0), ("vocoder", 2)])
def test_a_killed_run_resumes_bit_for_bit(runs, music_folder, stage, fresh, monkeypatch):
    """With few fresh examples too: those that are drawn again are made anew."""
    config = CONFIG | {"max_steps": 6, "prefetch": 2, "batch_size": 4, "fresh_examples": fresh, "pool_steps": 3}
    whole = train(stage, config, music_folder, runs / f"{stage}-{fresh}-whole")
    update = Run._update

    def killed(self, batch):
        if self.step == 5:  # one step after the checkpoint
            raise KeyboardInterrupt
        return update(self, batch)

    folder = runs / f"{stage}-{fresh}-killed"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_update", killed)
        train(stage, config, music_folder, folder)
    resumed = train(stage, config, music_folder, folder, resume=True)

    assert_same_weights(whole, resumed)
    for key in ("global_step", "train/loss", *SCORES, "learning_rate"):
        assert [row[key] for row in rows_of(whole)] == [row[key] for row in rows_of(resumed)], key
    np.testing.assert_array_equal(*(restored_noise(run) for run in (whole, resumed)))


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
    assert [float(row["val/loss"]) for row in rows_of(folder)] == list(losses.values())


def test_a_loss_that_is_no_number_ends_the_run_in_a_sentence(runs, music_folder, one_step, monkeypatch, tmp_path):
    monkeypatch.setattr(Run, "_validation_loss", lambda self: float("nan"))
    with pytest.raises(SrlibError, match=r"validation loss of .*nan is nan at step 2: start it again") as caught:
        train("vocoder", CONFIG, music_folder, runs / "nan")
    assert "\n" not in str(caught.value) and not (runs / "nan" / "checkpoint.pt").exists()
    run = shutil.copytree(one_step, tmp_path / "later")
    before = published(run), (run / "checkpoint.pt").read_bytes()
    with pytest.raises(SrlibError, match="is nan at step 2"):
        train("ldm", ONE_STEP, music_folder, run, max_steps=2, resume=True)
    assert same(published(run), before[0]) and (run / "checkpoint.pt").read_bytes() == before[1]


@contextlib.contextmanager
def killed_in_a_save(monkeypatch, killed_at, count):
    """Kill what runs inside at the start of its save number `count`."""
    save, saves = torch.save if killed_at == "checkpoint" else RestorationPipeline.save_pretrained, []

    def killed(*arguments):
        saves.append(arguments)
        if len(saves) == count:
            raise KeyboardInterrupt
        return save(*arguments)

    owner, name = (torch, "save") if killed_at == "checkpoint" else (RestorationPipeline, "save_pretrained")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, killed)
        yield


@pytest.mark.parametrize("validate_every", [2, 1], ids=["none", "stale"])  # what pipeline/ held before
@pytest.mark.parametrize("killed_at", ["pipeline", "checkpoint"])
def test_a_run_killed_in_its_last_save_is_not_finished(runs, music_folder, validate_every, killed_at, monkeypatch):
    config, folder = CONFIG | {"validate_every": validate_every}, runs / f"save-{killed_at}-{validate_every}"
    scores = lambda self: dict.fromkeys(SCORES, 1 / self.step)  # noqa: E731  each is better than the one before
    monkeypatch.setattr(Run, "_validate", scores)
    with killed_in_a_save(monkeypatch, killed_at, 2 // validate_every):
        train("ldm", config, music_folder, folder)
    train("ldm", config, music_folder, folder, resume=True)
    assert steps_of(folder)[-1] == 2 and same(published(folder), weights_of(folder)[1])


@pytest.mark.parametrize("killed_at", ["pipeline", "checkpoint"])
def test_a_closed_form_killed_in_its_save_is_fitted_again(runs, music_folder, killed_at, monkeypatch):
    folder = runs / f"vae-{killed_at}"
    with killed_in_a_save(monkeypatch, killed_at, 1):
        train("vae", CONFIG, music_folder, folder)
    train("vae", CONFIG, music_folder, folder, resume=True)
    assert steps_of(folder) == [0]
    assert (folder / "pipeline" / "model_index.json").is_file() and (folder / "checkpoint.pt").is_file()


# At the last timestep there is no noise, so that no random number differs between processes.
SHARED = CONFIG | {"batch_size": 4, "constant_rate": True, "warmup_steps": 1, "validate_every": 3}
SHARED |= {"last_step_share": 1.0, "condition_dropout": 0.0}


def launch(music_folder, folder, settings):
    """A run of two processes, on the CPU."""
    recipe = folder.with_suffix(".toml")
    recipe.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "srlib", "train", "ldm"]
    command += ["--config", str(recipe), "--data", str(music_folder), "--out", str(folder)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)


def test_two_processes_on_half_batches_equal_one_on_the_whole(runs, music_folder):
    """Their losses, and their weights but where Adam divides rounding by rounding; one process writes."""
    alone = train("ldm", SHARED | {"max_steps": 3}, music_folder, runs / "alone")
    done = launch(music_folder, runs / "shared", SHARED | {"max_steps": 3})
    assert done.returncode == 0, done.stderr
    assert steps_of(alone) == steps_of(runs / "shared") == [1, 2, 3]
    for key in ("train/loss", "val/loss", "val/loss_raw", "val/lsd"):
        values = [[float(row[key]) for row in rows_of(run) if row[key]] for run in (alone, runs / "shared")]
        np.testing.assert_allclose(*values, rtol=1e-3)
    start = train("ldm", SHARED | {"max_steps": 1, "learning_rate": 1e-30}, music_folder, runs / "start")
    (first, _), (second, _), (before, _) = (weights_of(run) for run in (alone, runs / "shared", start))
    moved = torch.cat([(first[name] - before[name]).flatten() for name in before]).abs()
    apart = torch.cat([(first[name] - second[name]).flatten() for name in before]).abs()
    assert moved.max() > 1e-3 and apart.mean() < 0.01 * moved.mean()


def test_a_batch_that_processes_cannot_share_is_refused(runs, music_folder, monkeypatch):
    two = types.SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr(loop, "Accelerator", lambda **_: two)
    with pytest.raises(SrlibError, match="A batch of 5 cannot be shared among 2 processes"):
        train("ldm", CONFIG | {"batch_size": 5}, music_folder, runs / "odd")
    assert not (runs / "odd").exists()


def recorded_draws(monkeypatch):
    """Arguments of every batch that is drawn: corpus, seeds, tracks."""
    drawn, draw = [], loop.draw

    def recorded(corpus, config, seeds, frames, device, augment, tracks):
        drawn.append((corpus, seeds, tracks))
        return draw(corpus, config, seeds, frames, device, augment, tracks)

    monkeypatch.setattr(loop, "draw", recorded)
    return drawn


def test_of_a_batch_few_examples_are_drawn_and_the_others_come_again(runs, music_folder, monkeypatch):
    drawn, seen, update = recorded_draws(monkeypatch), [], Run._update
    monkeypatch.setattr(Run, "_update", lambda self, examples: seen.append(examples) or update(self, examples))
    config = CONFIG | {"batch_size": 4, "fresh_examples": 1, "max_steps": 5, "validate_every": 1000}
    train("vocoder", config, music_folder, runs / "few-fresh")
    assert [len(seeds) for _, seeds, _ in drawn] == [1] * 5 + [4, 4] * 2  # validation of raw and averaged weights
    assert all(len(batch["reference"]) == 4 for batch in seen)
    known = [batch["reference"][0].half() for batch in seen]
    for step, batch in enumerate(seen[1:], 1):
        for row in batch["reference"][1:]:
            assert any(torch.equal(row.half(), earlier) for earlier in known[:step])


def test_epochs_set_the_length_and_take_one_crop_of_each_track_of_some_hours(runs, music_folder, monkeypatch):
    drawn = recorded_draws(monkeypatch)
    config = CONFIG | {"epochs": 2, "one_crop_a_track": True, "constant_rate": True, "validate_every": 1000}
    run = train("vocoder", config | {"hours": 11 / 3600}, music_folder, runs / "epochs")
    assert steps_of(run)[-1] == 4 and float(rows_of(run)[-1]["learning_rate"]) == CONFIG["learning_rate"]
    corpus = drawn[0][0]
    kept = np.flatnonzero(corpus.shares).tolist()
    assert len(kept) == 3  # of five seconds each: the third begins before the eleventh
    tracks = [tracks for _, _, tracks in drawn if tracks is not None]
    assert sorted(tracks[0] + tracks[1]) == sorted(tracks[2] + tracks[3]) == kept
    assert [len(corpus.names) for corpus, _, tracks in drawn if tracks is None] == [1] * 4  # validated on all of it
    train("vocoder", config | {"hours": 11 / 3600, "epochs": 3}, music_folder, run, resume=True)
    train("vocoder", config | {"hours": 11 / 3600}, music_folder, run, max_steps=7, resume=True)
    assert steps_of(run) == [1, 2, 3, 4, 5, 6, 7]
    assert json.loads((run / "config.json").read_text())["max_steps"] == 7


def test_tensorboard_gets_the_log_where_it_is_installed(tmp_path, monkeypatch):
    written = {}

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written["purge_step"] = purge_step

        def add_scalar(self, name, value, step):
            written[name] = (value, step)

        def flush(self):
            written["flushed"] = True

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    TrainingLog(tmp_path, 4).write({"run_id": "x", "global_step": 5, "train/loss": 0.25})
    assert written["train/loss"] == (0.25, 5) and written["purge_step"] == 5 and written["flushed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed: the CSV file alone
    TrainingLog(tmp_path, 5).write({"run_id": "x", "global_step": 6, "train/loss": 0.5})
    assert [row["train/loss"] for row in rows_of(tmp_path)] == ["0.25000", "0.50000"]
    TrainingLog(tmp_path, 5)  # resumed at a checkpoint before the last row
    assert steps_of(tmp_path) == [5]


def test_resuming_a_finished_run_changes_nothing_and_a_run_is_not_begun_twice(music_folder, one_step):
    files = [one_step / name for name in ("checkpoint.pt", "log.csv", "config.json")]
    before = [path.read_bytes() for path in files]
    train("ldm", ONE_STEP, music_folder, one_step, resume=True)
    with pytest.raises(SrlibError, match="already holds a run"):
        train("ldm", CONFIG, music_folder, one_step)
    with pytest.raises(SrlibError, match="other seed: resume it as it was begun"):
        train("ldm", ONE_STEP | {"seed": 5}, music_folder, one_step, resume=True)
    assert [path.read_bytes() for path in files] == before


def test_a_damaged_checkpoint_is_named(music_folder, one_step, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    (run / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(SrlibError, match=r"checkpoint\.pt is damaged"):
        train("ldm", ONE_STEP, music_folder, run, resume=True)


def test_a_run_starts_from_another_run_s_pipeline_and_a_recipe_can_be_a_file(runs, music_folder, one_step, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in CONFIG.items()))
    init = one_step / "pipeline"
    run = train("ldm", recipe, music_folder, runs / "from-init", init=init, max_steps=1)
    assert steps_of(run) == [1]
    record = json.loads((run / "config.json").read_text())
    assert (record["max_steps"], record["frames"], record["init"]) == (1, 64, str(init))
    before, after = (RestorationPipeline.from_pretrained(folder) for folder in (init, run / "pipeline"))
    assert same(before.prior.state_dict().values(), after.prior.state_dict().values())  # a prior that is fitted stays
    assert not same(before.unet.parameters(), after.unet.parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stage": "nvsr"}, "no stage 'nvsr': choose one of vae, vocoder, ldm"),
        ({"config": CONFIG | {"learningrate": 1}}, "learningrate"),
        ({"config": CONFIG | {"size": "huge"}}, "huge"),
        ({"max_steps": 0}, "max_steps"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"init": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(runs, music_folder, change, sentence):
    call = {"stage": "ldm", "config": CONFIG, "data": music_folder, "out": runs / "refused"} | change
    with pytest.raises(SrlibError, match=sentence) as caught:
        train(**call)
    assert "\n" not in str(caught.value)
    assert not (runs / "refused").exists()
