"""Every training stage for a few steps on a little music: files, resuming bit for bit, refusals."""

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from srlib.audio import files as audio
from srlib.audio.stft import band_edges_hz, band_of_hz, log_mel
from srlib.config import SAMPLE_RATE
from srlib.data import batches as corpus
from srlib.data import tracks as data
from srlib.data.batches import Batch
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import perceptual
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training import config as recipe
from srlib.training import logs as trainlog
from srlib.training import loop as train
from srlib.training import objectives
from srlib.training.config import TrainConfig
from srlib.training.processes import Processes

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
ONE_STEP = CONFIG | {"max_steps": 1, "snapshot_steps": [1]}
TRAINED = {"vocoder": ("vocoder",), "ldm": ("unet", "prior")}  # the prior is fitted before the first step
COLUMNS = [
    "run_id",
    "stage",
    "global_step",
    "wall_time",
    "train/loss",
    "val/loss",
    "val/lsd",
    "val/zimtohrli",
    "val/texture_high",
    "val/loss_raw",
    "learning_rate",
    "samples_per_second",
    "data_wait_share",
]


SCORES = ("val/loss", "val/lsd", "val/zimtohrli", "val/texture_high", "val/loss_raw")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for all runs of this file, so that the music is decoded once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_step(runs, music_folder):
    """A finished run of one step; tests that would change it must copy it."""
    return train.train("ldm", ONE_STEP, music_folder, runs / "one-step")


def objective_of(stage, pipeline):
    return objectives.STAGES[stage](pipeline, TrainConfig(fit_batches=1))


def rows_of(run):
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights_of(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    return state["module"], state["ema"]["shadow_params"]


def assert_same_weights(first, second):
    (module, ema), (other_module, other_ema) = weights_of(first), weights_of(second)
    assert module.keys() == other_module.keys()
    assert all(torch.equal(value, other_module[name]) for name, value in module.items())
    assert all(torch.equal(a, b) for a, b in zip(ema, other_ema, strict=True))


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stage_trains_its_part_and_leaves_a_pipeline(runs, music_folder, stage):
    run = train.train(stage, CONFIG | {"learning_rate": 1e-2}, music_folder, runs / stage)
    assert run == runs / stage
    rows = rows_of(run)
    assert list(rows[0]) == COLUMNS
    assert [(row["run_id"], row["stage"]) for row in rows] == [(stage, stage)] * 2
    assert [row["global_step"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["train/loss"])) for row in rows)
    assert rows[0]["val/loss"] == rows[0]["val/lsd"] == ""  # validated at step 2 alone
    measured = [name for name in SCORES if name != "val/zimtohrli" or perceptual.is_installed("zimtohrli")]
    assert all(float(rows[1][name]) > 0 for name in measured)
    assert rows[1]["val/loss_raw"] != rows[1]["val/loss"]  # after two steps the average still lags
    assert 0 <= float(rows[1]["data_wait_share"]) <= 1
    record = json.loads((run / "config.json").read_text())
    assert record["stage"] == stage
    assert record["data"] == str(music_folder)
    assert record["batch_size"] == 2

    restored = RestorationPipeline.from_pretrained(run / "pipeline")
    start = build("tiny", seed=0)
    for name in ("vae", "vocoder", "unet", "prior"):
        before, after = getattr(start, name).state_dict(), getattr(restored, name).state_dict()
        changed = any(not torch.equal(before[key], after[key]) for key in before)
        assert changed == (name in TRAINED[stage]), name
    wav = (0.05 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    assert np.isfinite(restored(wav, SAMPLE_RATE).audio).all()
    # What is published are the averaged weights, not the last ones.
    module, ema = weights_of(run)
    published = dict(getattr(restored, TRAINED[stage][0]).named_parameters())
    assert all(torch.equal(value, average) for value, average in zip(published.values(), ema, strict=True))
    assert any(not torch.equal(value, module[name]) for name, value in published.items())


def test_what_has_a_closed_form_takes_no_step_and_leaves_a_log_row_and_a_pipeline(runs, music_folder):
    run = train.train("vae", CONFIG | {"batch_size": 8}, music_folder, runs / "vae")
    (row,) = rows_of(run)
    assert (row["run_id"], row["stage"], row["global_step"], row["train/loss"]) == ("vae", "vae", "0", "")
    assert float(row["val/lsd"]) > 0 and row["val/loss"] == row["val/loss_raw"]
    restored, start = RestorationPipeline.from_pretrained(run / "pipeline"), build("tiny", seed=0)
    for name in ("unet", "vocoder", "prior"):
        state = getattr(start, name).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in getattr(restored, name).state_dict().items())
    heard = [track.mixture() for track in data.load_dataset(str(music_folder), "train")]
    mel = log_mel(torch.from_numpy(np.stack(heard)))[:, :, :496]
    errors = []
    for pipe in (start, restored):
        latent = pipe.vae.encode(mel).latent_dist.mode()
        errors.append((pipe.vae.decode(latent).sample - mel).abs().mean())
    assert errors[1] < 0.4 < 2 < errors[0]  # eight of 64 components, and before it the first eight cells of a patch
    assert latent.std(dim=(0, 2, 3)).min() > 0.3 and latent.std(dim=(0, 2, 3)).max() < 3
    before = (run / "log.csv").read_bytes(), (run / "checkpoint.pt").read_bytes()
    train.train("vae", CONFIG | {"batch_size": 8}, music_folder, run, resume=True)
    assert ((run / "log.csv").read_bytes(), (run / "checkpoint.pt").read_bytes()) == before


def test_a_run_repeats_bit_for_bit_and_the_corpus_is_decoded_once(runs, music_folder, one_step, monkeypatch):
    monkeypatch.setattr(corpus, "_decode", lambda *arguments: pytest.fail("decoded again"))
    again = train.train("ldm", ONE_STEP, music_folder, runs / "again")
    assert len(list(runs.glob("corpus-*.int16"))) == 2  # train and valid
    assert_same_weights(one_step, again)


@pytest.mark.parametrize(("stage", "fresh"), [("ldm", 0), ("ldm", 1), ("vocoder", 2)])
def test_a_killed_run_resumes_bit_for_bit(runs, music_folder, stage, fresh, monkeypatch):
    """With few fresh examples too: those that are drawn again are made anew."""
    config = CONFIG | {"max_steps": 6, "validate_every": 2, "prefetch": 2, "batch_size": 4, "fresh_examples": fresh}
    config |= {"pool_steps": 3}
    whole = train.train(stage, config, music_folder, runs / f"{stage}-{fresh}-whole")

    update = train.Run._update

    def killed(self, batch):
        if self.step == 5:  # one step after the checkpoint
            raise KeyboardInterrupt
        return update(self, batch)

    folder = runs / f"{stage}-{fresh}-killed"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Run, "_update", killed)
        train.train(stage, config, music_folder, folder)
    resumed = train.train(stage, config, music_folder, folder, resume=True)

    assert_same_weights(whole, resumed)
    for key in ("train/loss", *SCORES, "learning_rate"):
        by_step = [{row["global_step"]: row[key] for row in rows_of(run)} for run in (whole, resumed)]
        assert by_step[0] == by_step[1], key
    pipes = [RestorationPipeline.from_pretrained(run / "pipeline") for run in (whole, resumed)]
    for parts in zip(*(pipe.modules() for pipe in pipes), strict=True):
        first, second = (part.state_dict() for part in parts)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    wav = (0.05 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    np.testing.assert_array_equal(*(pipe(wav, SAMPLE_RATE).audio for pipe in pipes))


def test_of_a_batch_few_examples_are_drawn_and_the_others_come_again(runs, music_folder, monkeypatch):
    sizes, batches, draw, update = [], [], train.draw, train.Run._update

    def recorded(*arguments):
        sizes.append(arguments[3])
        return draw(*arguments)

    def seen(self, examples):
        batches.append(examples)
        return update(self, examples)

    monkeypatch.setattr(train, "draw", recorded)
    monkeypatch.setattr(train.Run, "_update", seen)
    config = CONFIG | {"batch_size": 4, "fresh_examples": 1, "max_steps": 5, "validate_every": 1000}
    train.train("vocoder", config, music_folder, runs / "few-fresh")
    assert sizes == [1] * 5 + [4, 4] * 2  # one a step, and the validation of the raw and of the averaged weights
    assert all(len(batch["reference"]) == 4 for batch in batches)
    known = [batch["reference"][0].half() for batch in batches]
    for step, batch in enumerate(batches[1:], 1):
        for row in batch["reference"][1:]:
            assert any(torch.equal(row.half(), earlier) for earlier in known[:step])


def test_the_pipeline_of_a_run_is_that_of_its_best_validation(runs, music_folder, monkeypatch):
    losses = {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.35, 5: 0.1}
    averages, validate = {}, train.Run._validate

    def judged(self):
        averages[self.step] = [value.clone() for value in self.ema.shadow_params]
        return validate(self) | {"val/loss": losses[self.step]}

    monkeypatch.setattr(train.Run, "_validate", judged)
    config = CONFIG | {"validate_every": 1, "constant_rate": True}

    def published() -> list[torch.Tensor]:
        return list(RestorationPipeline.from_pretrained(folder / "pipeline").unet.parameters())

    folder = train.train("ldm", config, music_folder, runs / "best", max_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(published(), averages[2], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(averages[2], averages[3], strict=True))
    for steps, best in ((4, 2), (5, 5)):  # a run that resumes knows what was best before
        train.train("ldm", config, music_folder, folder, max_steps=steps, resume=True)
        assert all(torch.equal(a, b) for a, b in zip(published(), averages[best], strict=True))
    assert [float(row["val/loss"]) for row in rows_of(folder)] == list(losses.values())


@pytest.mark.parametrize("validate_every", [2, 1], ids=["none", "stale"])  # what pipeline/ held before
@pytest.mark.parametrize("killed_at", ["pipeline", "checkpoint"])
def test_a_run_killed_in_its_last_save_is_not_finished(runs, music_folder, validate_every, killed_at, monkeypatch):
    config, folder = CONFIG | {"validate_every": validate_every}, runs / f"save-{killed_at}-{validate_every}"
    validate = train.Run._validate  # each is better than the one before
    monkeypatch.setattr(train.Run, "_validate", lambda self: validate(self) | {"val/loss": 1 / self.step})
    with killed_in_a_save(monkeypatch, killed_at, 2 // validate_every):
        train.train("ldm", config, music_folder, folder)
    train.train("ldm", config, music_folder, folder, resume=True)
    published = RestorationPipeline.from_pretrained(folder / "pipeline").unet.parameters()
    assert rows_of(folder)[-1]["global_step"] == "2"
    assert all(torch.equal(a, b) for a, b in zip(published, weights_of(folder)[1], strict=True))


@contextlib.contextmanager
def killed_in_a_save(monkeypatch, killed_at, count):
    """Kill what runs inside at the start of its save number `count`."""
    owner, name = (RestorationPipeline, "save_pretrained") if killed_at == "pipeline" else (train, "write_atomically")
    save, saves = getattr(owner, name), []

    def killed(*arguments):
        saves.append(arguments)
        if len(saves) == count:
            raise KeyboardInterrupt
        return save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, killed)
        yield


@pytest.mark.parametrize("killed_at", ["pipeline", "checkpoint"])
def test_a_closed_form_killed_in_its_save_is_fitted_again(runs, music_folder, killed_at, monkeypatch):
    folder = runs / f"vae-{killed_at}"
    with killed_in_a_save(monkeypatch, killed_at, 1):
        train.train("vae", CONFIG, music_folder, folder)
    train.train("vae", CONFIG, music_folder, folder, resume=True)
    assert [row["global_step"] for row in rows_of(folder)] == ["0"]
    assert (folder / "pipeline" / "model_index.json").is_file() and (folder / "checkpoint.pt").is_file()


SHARED = CONFIG | {"batch_size": 4, "constant_rate": True, "warmup_steps": 1, "validate_every": 1}


def launch(music_folder, folder, max_steps, *arguments):
    """A run of two processes, on the CPU."""
    recipe = folder.with_suffix(".toml")
    settings = SHARED | {"max_steps": max_steps}
    recipe.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "srlib", "train", "ldm"]
    command += ["--config", str(recipe), "--data", str(music_folder), "--out", str(folder), *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


class FirstStepError(Exception):
    """Ends a run before its first step."""


def gradients_of(index, music_folder, folder, monkeypatch):
    """What process `index` of two starts with and finds for the first step: parameters and their gradients."""

    class OneOfTwo(Processes):
        first = True

        def __init__(self, accelerator):
            super().__init__(accelerator)
            self.index = index

        def average_gradients(self, module):
            raise FirstStepError([(p.detach().clone(), p.grad.clone()) for p in module.parameters()])

    def open_as_two(run, *arguments):
        opened(run, *arguments)
        run.processes.count = 2

    opened = train.Run.open
    with monkeypatch.context() as patched, pytest.raises(FirstStepError) as found:
        patched.setattr(train, "Processes", OneOfTwo)
        patched.setattr(train.Run, "open", open_as_two)
        train.train("ldm", SHARED | {"max_steps": 1}, music_folder, folder)
    return found.value.args[0]


def test_two_processes_step_along_the_mean_of_their_gradients_and_resume_bit_for_bit(runs, music_folder, monkeypatch):
    shares = [gradients_of(index, music_folder, runs / f"share-{index}", monkeypatch) for index in range(2)]
    expected = []
    for (start, first), (same, second) in zip(*shares, strict=True):
        assert torch.equal(start, same)
        expected.append(torch.nn.Parameter(start))
        expected[-1].grad = (first + second) / 2
    assert any(not torch.allclose(first, second) for (_, first), (_, second) in zip(*shares, strict=True))
    torch.nn.utils.clip_grad_norm_(expected, 1.0)
    torch.optim.AdamW(expected, lr=SHARED["learning_rate"], betas=(0.9, 0.99), weight_decay=0.01).step()
    resumed = launch(music_folder, runs / "resumed", 1)
    module, _ = weights_of(resumed)
    names = [name for name, _ in build("tiny", seed=0).unet.named_parameters()]
    compared = 0
    for name, parameter in zip(names, expected, strict=True):
        sure = parameter.grad.abs() > 1e-5  # Adam's first step is as long for gradients that are only rounding
        torch.testing.assert_close(module[name][sure], parameter.detach()[sure], atol=1e-5, rtol=0)
        compared += int(sure.sum())
    assert compared > 5000
    launch(music_folder, resumed, 3, "--resume")
    assert [row["global_step"] for row in rows_of(resumed)] == ["1", "2", "3"]  # one process writes
    assert_same_weights(resumed, launch(music_folder, runs / "at-once", 3))


def test_a_batch_that_processes_cannot_share_is_refused():
    accelerator = types.SimpleNamespace(num_processes=2, process_index=1)
    with pytest.raises(SrlibError, match="batch of 5 cannot be shared among 2 processes"):
        Processes(accelerator).check(5)


def test_threads_that_draw_ahead_change_nothing(runs, music_folder, one_step):
    ahead = train.train("ldm", ONE_STEP | {"prefetch": 3}, music_folder, runs / "ahead")
    assert_same_weights(one_step, ahead)


def test_epochs_set_the_length_and_every_epoch_takes_one_crop_of_each_track(runs, music_folder, monkeypatch):
    tracks, corpora = [], []
    draw = train.draw

    def recorded(*arguments):
        corpora.append(arguments[0])
        tracks.append(arguments[-1])
        return draw(*arguments)

    monkeypatch.setattr(train, "draw", recorded)
    config = CONFIG | {"epochs": 2, "one_crop_a_track": True, "augment": False, "batch_size": 2, "constant_rate": True}
    run = train.train("vocoder", config | {"validate_every": 1000}, music_folder, runs / "epochs")
    total, steps = 5, 3
    assert rows_of(run)[-1]["global_step"] == str(2 * steps)
    assert float(rows_of(run)[-1]["learning_rate"]) == CONFIG["learning_rate"]
    trained = [drawn for drawn in tracks if drawn is not None]
    assert trained == [corpora[0].tracks_of_step(0, step, 2) for step in range(2 * steps)]
    epochs = [[track for step in trained[i * steps : (i + 1) * steps] for track in step] for i in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(total)) and epochs[0] != epochs[1]


def test_a_run_on_some_hours_of_music_is_judged_on_all_of_the_validation_tracks(runs, music_folder, monkeypatch):
    drawn, draw = [], train.draw
    monkeypatch.setattr(train, "draw", lambda *arguments: drawn.append(arguments[0].shares) or draw(*arguments))
    train.train("vocoder", CONFIG | {"hours": 11 / 3600, "max_steps": 1}, music_folder, runs / "hours")
    assert [len(shares) for shares in drawn] == [5, 1, 1, 1, 1]  # a step, and validation twice
    assert (drawn[0] > 0).sum() == 3  # of five seconds each: the third begins before the eleventh


def test_tensorboard_gets_the_log_where_it_is_installed(tmp_path, monkeypatch):
    written = {}

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written["folder"], written["purge_step"] = folder, purge_step

        def add_scalar(self, name, value, step):
            written[name] = (value, step)

        def flush(self):
            written["flushed"] = True

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trainlog.TrainingLog(tmp_path, 4).write({"run_id": "x", "global_step": 5, "train/loss": 0.25})
    assert written["train/loss"] == (0.25, 5) and written["purge_step"] == 5 and written["flushed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed: the CSV file alone
    trainlog.TrainingLog(tmp_path, 5).write({"run_id": "x", "global_step": 6, "train/loss": 0.5})
    assert [row["train/loss"] for row in rows_of(tmp_path)] == ["0.25000", "0.50000"]


def test_resuming_a_finished_run_changes_nothing(music_folder, one_step):
    before, log = (one_step / "checkpoint.pt").read_bytes(), (one_step / "log.csv").read_text()
    train.train("ldm", ONE_STEP, music_folder, one_step, resume=True)
    assert (one_step / "checkpoint.pt").read_bytes() == before
    assert (one_step / "log.csv").read_text() == log


def test_a_folder_that_holds_a_run_is_refused(music_folder, one_step):
    before = (one_step / "checkpoint.pt").read_bytes()
    with pytest.raises(SrlibError, match="already holds a run"):
        train.train("ldm", CONFIG, music_folder, one_step)
    assert (one_step / "checkpoint.pt").read_bytes() == before


def test_a_run_starts_from_another_run_s_pipeline_and_a_recipe_can_be_a_file(runs, music_folder, one_step, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in CONFIG.items()))
    init = one_step / "pipeline"
    for stage in ("vocoder", "ldm"):
        run = train.train(stage, recipe, music_folder, runs / f"from-init-{stage}", init=init, max_steps=1)
        assert [row["global_step"] for row in rows_of(run)] == ["1"]
        record = json.loads((run / "config.json").read_text())
        assert (record["max_steps"], record["frames"]) == (1, 64)
        before, after = (RestorationPipeline.from_pretrained(folder) for folder in (init, run / "pipeline"))
        for part in {"prior", "unet"} - ({"unet"} if stage == "ldm" else set()):  # a prior that is fitted stays
            state = getattr(after, part).state_dict()
            assert all(torch.equal(value, state[name]) for name, value in getattr(before, part).state_dict().items())


def test_time_budget_ends_a_run_and_the_learning_rate_with_it(runs, music_folder):
    endless = {"max_steps": 100_000, "fit_batches": 100_000}  # fits have their share of the time, too
    run = train.train("ldm", CONFIG | endless, music_folder, runs / "budget", time_budget=0.01)
    rows = rows_of(run)
    assert 1 <= int(rows[-1]["global_step"]) < 100
    assert float(rows[-1]["learning_rate"]) < 1e-6
    assert (run / "pipeline" / "model_index.json").is_file()


def test_snapshots_hold_a_replayable_example_of_each_noise(music_folder, one_step):
    records = sorted((one_step / "snapshots").glob("*.json"))
    assert [path.stem for path in records] == ["none-000001", "tone-000001", "white-000001"]
    record = json.loads(records[1].read_text())
    degradation = Degradation.from_json(record["degradation"])
    assert degradation.noise_type == "tone"
    assert record["global_step"] == 1
    reference, restored = (
        audio.read(one_step / "snapshots" / f"tone-000001-{kind}.flac")[0] for kind in ("reference", "restored")
    )
    assert reference.shape == restored.shape
    track = next(track for track in data.load_dataset(str(music_folder), "valid") if track.name == record["track"])
    start = (round(track.seconds * SAMPLE_RATE) - reference.shape[1]) // 2 / SAMPLE_RATE
    middle = track.mixture(start, reference.shape[1] / SAMPLE_RATE)
    np.testing.assert_allclose(reference[0], middle, atol=1e-4)  # 16 bits


def test_a_run_is_resumed_as_it_was_begun(music_folder, one_step, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    before = (run / "config.json").read_bytes()
    for change, sentence in [({"seed": 5}, "other seed"), ({"max_steps": 9, "size": "tiny"}, "damaged")]:
        if sentence == "damaged":
            (run / "checkpoint.pt").write_bytes(b"PK")
        with pytest.raises(SrlibError, match=sentence):
            train.train("ldm", ONE_STEP | change, music_folder, run, resume=True)
        assert (run / "config.json").read_bytes() == before


def test_a_run_of_epochs_may_grow_as_one_of_steps_may(runs, music_folder):
    config = CONFIG | {"epochs": 1, "batch_size": 8, "validate_every": 1000}  # one step an epoch
    run = train.train("vocoder", config, music_folder, runs / "growing")
    assert [row["global_step"] for row in rows_of(run)] == ["1"]
    train.train("vocoder", config | {"epochs": 2}, music_folder, run, resume=True)
    train.train("vocoder", config | {"epochs": 2}, music_folder, run, max_steps=3, resume=True)
    assert [row["global_step"] for row in rows_of(run)] == ["1", "2", "3"]
    assert json.loads((run / "config.json").read_text())["max_steps"] == 3


def test_rows_logged_after_the_checkpoint_are_dropped_on_resuming(music_folder, one_step, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    with (run / "log.csv").open("a") as log:
        log.write("run,ldm,7,1.0,1.0,,,,,,0.001,1.0,0.1\n")
    train.train("ldm", ONE_STEP, music_folder, run, resume=True)
    assert [row["global_step"] for row in rows_of(run)] == ["1"]


def test_a_damaged_checkpoint_is_named(music_folder, one_step, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    (run / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(SrlibError, match=r"checkpoint\.pt is damaged"):
        train.train("ldm", ONE_STEP, music_folder, run, resume=True)


UNUSABLE = {
    "size": [3, ["tiny"]],
    "precision": ["fp8"],
    "augment": ["no", 1],
    "seed": ["one", -1, 2**32, True],
    "frames": [0, 100, "a", 64.0],
    "batch_size": [0, 2.5, True],
    "epochs": [-1],
    "fresh_examples": [-1, 0.5],
    "pool_steps": [-1, "all"],
    "hours": [-1, "all", float("inf")],
    "constant_rate": [1],
    "level_weight": [-0.1, "a tenth"],
    "snapshot_steps": [3, "3", [0], [1.5]],
    "learning_rate": ["a", -1, 0, float("nan"), 10**400, True],
    "weight_decay": [-1, float("inf")],
    "ema_decay": [5, -0.1],
    "gap_probability": ["x", 2],
    "condition_dropout": [1.1],
    "last_step_share": [-1],
    "noise_weights": [3, {}, {"none": "a"}, {"pink": 1}, {"none": 0}, {"none": 2, "tone": -1}, {"none": True}],
    "cutoff_hz": [4000, [4000], [0, 4000], [8000, 4000], [4000, 24_000], ["a", "b"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_unusable_settings_are_named(name, value, tmp_path):
    with pytest.raises(SrlibError, match=f"^Unusable values of training settings {name} ") as caught:
        train.train("ldm", CONFIG | {name: value}, "demo", tmp_path / "run")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_every_setting_has_a_rule_and_whole_numbers_are_numbers_too():
    names = [name for names, _, _ in recipe._RULES for name in names.split()]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(TrainConfig))
    TrainConfig(learning_rate=1, ema_decay=0, cutoff_hz=[2000, 16_000], snapshot_steps=[40], noise_weights={"tone": 1})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stage": "diffusion"}, "diffusion"),
        ({"stage": "nvsr"}, "no stage 'nvsr': choose one of vae, vocoder, ldm"),
        ({"config": CONFIG | {"learningrate": 1}}, "learningrate"),
        ({"config": "no/such/recipe.toml"}, "no/such/recipe.toml"),
        ({"config": CONFIG | {"size": "huge"}}, "huge"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"init": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(runs, music_folder, change, sentence):
    call = {"stage": "ldm", "config": CONFIG, "data": music_folder, "out": runs / "refused"} | change
    with pytest.raises(SrlibError, match=sentence) as caught:
        train.train(**call)
    assert "\n" not in str(caught.value)
    assert not (runs / "refused").exists()


# The objectives themselves, on signals whose loss is known.


def batch_of(reference, degraded=None, bandwidth_hz=24000.0, band=FULL_BAND):
    rows = len(reference)
    degraded = reference.clone() if degraded is None else degraded
    bandwidth = torch.full((rows,), bandwidth_hz, dtype=torch.float64)
    return Batch(reference, degraded, bandwidth, [Degradation()] * rows, [band] * rows, [None] * rows, [()] * rows)


def white(rows=2, level=0.1, seed=0):
    return level * torch.randn(rows, 64 * 480, generator=torch.Generator().manual_seed(seed))


def test_band_mask_keeps_bands_wholly_inside_the_bandwidth():
    mask = objectives.band_mask(torch.tensor([16000.0, 24000.0]))[:, 0, 0]
    ends = band_edges_hz()[2:]
    np.testing.assert_array_equal(mask[0].bool(), ends <= 16000.0)
    assert mask[1].sum() >= 255


def test_band_weights_are_half_uniform_and_half_as_wide_as_the_band():
    weights, edges = objectives.band_weights().numpy(), band_edges_hz()
    widths = edges[2:] - edges[:-2]
    np.testing.assert_allclose(weights, 0.5 + 0.5 * widths / widths.mean(), rtol=1e-5)
    assert weights.mean() == pytest.approx(1, rel=1e-5)


def test_the_linear_autoencoder_is_fitted_and_the_other_parts_are_left_alone():
    pipeline = build("tiny")
    objective = objective_of("vae", pipeline)
    batch = batch_of(white(8), white(8, level=0.02, seed=1))
    before = objective.loss(objective.examples(batch))
    objective.prepare(iter([batch]))
    after = objective.loss(objective.examples(batch))
    assert after < 0.5 * before
    heard = log_mel(torch.cat([batch.reference[4:], batch.degraded[:4]]))  # half of each
    latent = pipeline.vae.encode(heard).latent_dist.mode()
    torch.testing.assert_close(latent.std(dim=(0, 2, 3)), torch.ones(8), rtol=1e-2, atol=0)
    assert not any(part.training for part in (pipeline.unet, pipeline.prior, pipeline.vocoder))


def test_audiosr_s_autoencoder_learns_by_steps():
    pipeline = build("audiosr-narrow")
    objective = objective_of("vae", pipeline)
    objective.prepare(iter(()))  # nothing of it has a closed form
    torch.manual_seed(0)
    objective.loss(objective.examples(batch_of(white(2)))).backward()
    assert all(parameter.grad is not None for parameter in pipeline.vae.parameters())
    assert all(parameter.grad is None for part in (pipeline.unet, pipeline.vocoder) for parameter in part.parameters())


def swelling(rows: int, seed: int = 0) -> torch.Tensor:
    """Noise whose level and colour move, so that there is something to fit."""
    time = torch.arange(64 * 480) / 480
    motion = 1 + 0.8 * torch.sin(time / 5 + torch.arange(rows)[:, None])
    return motion * white(rows, seed=seed)


@pytest.fixture
def fitted():
    """Of the ldm stage: objective, and the batch that its prior was fitted to."""
    pipeline = build("tiny")
    objective = objective_of("ldm", pipeline)
    batch = batch_of(swelling(8), swelling(8, seed=1), band=Band(8000, 8560))
    objective.prepare(iter([batch]))
    return objective, batch


def test_the_prior_is_fitted_once_and_residuals_have_unit_variance(fitted):
    objective, batch = fitted
    examples = objective.examples(batch)
    assert examples["residual"].shape == (8, 8, 8, 32) and examples["condition"].shape == (8, 18, 8, 32)
    np.testing.assert_allclose(examples["residual"].std(dim=(0, 2, 3)), 1, rtol=1e-3)
    prior = {name: value.clone() for name, value in objective.pipeline.prior.state_dict().items()}
    assert prior["fast_factors"].any() and prior["slow_factors"].any()
    objective.prepare(iter([batch_of(white(8))]))
    assert all(torch.equal(value, prior[name]) for name, value in objective.pipeline.prior.state_dict().items())


def test_conditions_are_two_latents_and_how_sure_observation_and_prior_are(fitted):
    objective, batch = fitted
    condition, pipeline = objective.examples(batch)["condition"], objective.pipeline
    degraded = log_mel(batch.degraded)
    observed = batch.observation(degraded)
    posterior = pipeline.prior(observed.log_mel, observed.variance)
    torch.testing.assert_close(condition[:, :8], pipeline.vae.encode(degraded).latent_dist.mode())
    torch.testing.assert_close(condition[:, 8:16], pipeline.vae.encode(posterior.mean).latent_dist.mode())
    first, last = band_of_hz(7500) // 8, band_of_hz(9000) // 8 + 1
    assert (condition[:, 16, :, :first] == 1).all() and (condition[:, 16, :, last:] < 1e-5).all()
    assert (condition[:, 17, :, :first] < 1e-3).all()
    spread = posterior.variance.sqrt().reshape(8, 8, 8, 32, 8).mean((2, 4))
    torch.testing.assert_close(condition[:, 17], spread)


def test_above_a_track_s_bandwidth_there_is_no_target(fitted):
    objective, batch = fitted
    batch.bandwidth_hz.fill_(16_000.0)
    examples = objective.examples(batch)
    above = band_of_hz(16_500) // 8 + 1
    assert examples["residual"][..., above:].abs().max() < 1e-4
    weights = examples["weights"].expand(8, 1, 1, 32)
    assert not weights[..., above:].any() and (weights[..., : band_of_hz(15_000) // 8] > 0).all()
    batch.bandwidth_hz.fill_(24_000.0)
    assert objective.examples(batch)["residual"][..., above:].abs().mean() > 0.1


def test_the_loss_counts_what_shows_in_the_log_mel(fitted):
    """An untrained network predicts zero; at the last step the velocity is the residual: its weighted power is left."""
    objective, batch = fitted
    objective.config = dataclasses.replace(objective.config, last_step_share=1.0)
    examples = objective.examples(batch)
    gain = objective.pipeline.vae.spread * objective.pipeline.prior.residual_std
    weights = examples["weights"] * (gain**2 / (gain**2).mean())[:, None, None]
    weights = weights.expand(8, 8, 8, 32)
    expected = ((examples["residual"] ** 2 * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))).mean()
    loss = objective.loss(examples)
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)
    loss.backward()
    assert objective.module.head.weight.grad.abs().max() > 0


def test_a_prior_needs_music_up_to_its_highest_bands():
    objective = objective_of("ldm", build("tiny"))
    narrow = batch_of(swelling(4), bandwidth_hz=16_000.0)
    with pytest.raises(SrlibError, match=r"No crop holds sound up to 18\.9 kHz"):
        objective.prepare(iter([narrow]))
    mixed = batch_of(swelling(4))
    mixed.bandwidth_hz[:2] = 16_000.0
    objective.prepare(iter([narrow, mixed]))
    expected = log_mel(mixed.reference[2:]).mean((0, 1, 2))
    torch.testing.assert_close(objective.pipeline.prior.mean, expected, atol=1e-4, rtol=0)


def test_the_vocoder_s_loss_falls_when_it_is_right():
    wav = white()
    vocoder = objective_of("vocoder", build("tiny"))
    torch.manual_seed(0)
    right_level = vocoder.loss(vocoder.examples(batch_of(wav))).item()
    torch.nn.init.constant_(vocoder.module.head.bias[:1025], 1.0)  # a nat too loud
    torch.manual_seed(0)
    assert vocoder.loss(vocoder.examples(batch_of(wav))).item() > right_level + 0.1


def test_the_vocoder_s_loss_sees_nothing_above_the_bandwidth():
    vocoder = objective_of("vocoder", build("tiny"))
    spectrum = torch.fft.rfft(white())
    spectrum[:, torch.linspace(0, 24_000, spectrum.shape[1]) > 14_000] *= 0.01
    losses = []
    for wav in (white(), torch.fft.irfft(spectrum, 64 * 480)):
        torch.manual_seed(0)
        examples = vocoder.examples(batch_of(white(), bandwidth_hz=12_000.0))
        losses.append(vocoder._distance(white(seed=3), wav, examples["bandwidth_hz"], 2048))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
