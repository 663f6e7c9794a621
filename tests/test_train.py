"""Every training stage for a few steps on the demo set: files, resuming bit for bit, refusals."""

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
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from srlib import audio, corpus, data, objectives, recipe, train, trainlog
from srlib.adversary import Adversary, whitened
from srlib.config import SAMPLE_RATE
from srlib.corpus import Batch
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.mel import band_edges_hz, log_mel
from srlib.pipeline import RestorationPipeline, build
from srlib.processes import Processes
from srlib.recipe import TrainConfig

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
TRAINED = {"vae": "vae", "vocoder": "vocoder", "nvsr": "base", "ldm": "unet"}
COLUMNS = [
    "run_id",
    "stage",
    "global_step",
    "wall_time",
    "train/loss",
    "train/discriminator",
    "val/loss",
    "val/lsd",
    "val/texture_high",
    "val/loss_raw",
    "val/lsd_raw",
    "learning_rate",
    "samples_per_second",
    "data_wait_share",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for all runs of this file, so that the demo set is decoded once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_step(runs):
    """A finished run of one step; tests that would change it must copy it."""
    return train.train("nvsr", CONFIG | {"max_steps": 1, "snapshot_steps": [1]}, "demo", runs / "one-step")


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
def test_a_stage_trains_its_part_and_leaves_a_pipeline(runs, stage):
    run = train.train(stage, CONFIG | {"learning_rate": 1e-2}, "demo", runs / stage)
    assert run == runs / stage
    rows = rows_of(run)
    assert list(rows[0]) == COLUMNS
    assert [(row["run_id"], row["stage"]) for row in rows] == [(stage, stage)] * 2
    assert [row["global_step"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["train/loss"])) for row in rows)
    assert rows[0]["val/loss"] == rows[0]["val/lsd"] == ""  # validated at step 2 alone
    assert float(rows[1]["val/loss"]) > 0
    assert float(rows[1]["val/lsd"]) > 0
    assert float(rows[1]["val/loss_raw"]) > 0 and float(rows[1]["val/lsd_raw"]) > 0
    assert rows[1]["val/loss_raw"] != rows[1]["val/loss"]  # after two steps the average still lags
    assert 0 <= float(rows[1]["data_wait_share"]) <= 1
    record = json.loads((run / "config.json").read_text())
    assert record["stage"] == stage
    assert record["data"] == "demo"
    assert record["batch_size"] == 2

    restored = RestorationPipeline.from_pretrained(run / "pipeline")
    start = build("tiny", seed=0)
    for name in TRAINED.values():
        before, after = getattr(start, name).state_dict(), getattr(restored, name).state_dict()
        keys = before.keys() - {"residual_std"}  # the ldm stage measures it, and it lives with the base
        changed = any(not torch.equal(before[key], after[key]) for key in keys)
        assert changed == (name == TRAINED[stage]), name
    wav = (0.05 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    assert np.isfinite(restored(wav, SAMPLE_RATE).audio).all()
    # What is published are the averaged weights, not the last ones.
    module, ema = weights_of(run)
    names = [name for name, _ in getattr(restored, TRAINED[stage]).named_parameters()]
    published = dict(getattr(restored, TRAINED[stage]).named_parameters())
    assert all(torch.equal(published[name], value) for name, value in zip(names, ema, strict=True))
    assert any(not torch.equal(published[name], module[name]) for name in names)


def test_a_run_repeats_bit_for_bit_and_the_corpus_is_decoded_once(runs, one_step, monkeypatch):
    monkeypatch.setattr(corpus, "_decode", lambda *arguments: pytest.fail("decoded again"))
    again = train.train("nvsr", CONFIG | {"max_steps": 1}, "demo", runs / "again")
    assert len(list(runs.glob("corpus-*.int16"))) == 2  # train and valid
    assert_same_weights(one_step, again)


@pytest.mark.parametrize("stage", ["vae", "ldm", "vocoder"])
def test_a_killed_run_resumes_bit_for_bit(runs, stage, monkeypatch):
    config = CONFIG | {"max_steps": 4, "validate_every": 2, "prefetch": 2}
    if stage == "vocoder":  # the discriminators and their optimiser are resumed as well
        config |= {"adversarial_weight": 0.1, "adversarial_start": 1, "adversarial_frames": 32}
    whole = train.train(stage, config, "demo", runs / f"{stage}-whole")

    update = train.Run._update

    def killed(self, batch):
        if self.step == 3:  # one step after the checkpoint
            raise KeyboardInterrupt
        return update(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Run, "_update", killed)
        train.train(stage, config, "demo", runs / f"{stage}-killed")
    resumed = train.train(stage, config, "demo", runs / f"{stage}-killed", resume=True)

    assert_same_weights(whole, resumed)
    for key in ("train/loss", "train/discriminator", "val/loss", "val/lsd", "val/texture_high", "learning_rate"):
        by_step = [{row["global_step"]: row[key] for row in rows_of(run)} for run in (whole, resumed)]
        assert by_step[0] == by_step[1], key
    wav = (0.05 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    audio = [RestorationPipeline.from_pretrained(run / "pipeline")(wav, SAMPLE_RATE).audio for run in (whole, resumed)]
    np.testing.assert_array_equal(*audio)


@pytest.mark.parametrize("validate_every", [2, 1], ids=["none", "stale"])  # what pipeline/ held before
@pytest.mark.parametrize("killed_at", ["pipeline", "checkpoint"])
def test_a_run_killed_in_its_last_save_is_not_finished(runs, validate_every, killed_at, monkeypatch):
    config, folder = CONFIG | {"validate_every": validate_every}, runs / f"save-{killed_at}-{validate_every}"
    owner, name = (RestorationPipeline, "save_pretrained") if killed_at == "pipeline" else (train, "write_atomically")
    save, saves = getattr(owner, name), []

    def killed(*arguments):
        saves.append(arguments)
        if len(saves) == 2 // validate_every:
            raise KeyboardInterrupt
        return save(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, killed)
        train.train("nvsr", config, "demo", folder)
    train.train("nvsr", config, "demo", folder, resume=True)
    published = RestorationPipeline.from_pretrained(folder / "pipeline").base.parameters()
    assert rows_of(folder)[-1]["global_step"] == "2"
    assert all(torch.equal(a, b) for a, b in zip(published, weights_of(folder)[1], strict=True))


SHARED = CONFIG | {"batch_size": 4, "constant_rate": True, "warmup_steps": 1, "validate_every": 1}


def launch(folder, max_steps, *arguments):
    """A run of two processes, on the CPU."""
    recipe = folder.with_suffix(".toml")
    settings = SHARED | {"max_steps": max_steps}
    recipe.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "srlib", "train", "nvsr"]
    command += ["--config", str(recipe), "--data", "demo", "--out", str(folder), *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


class FirstStepError(Exception):
    """Ends a run before its first step."""


def gradients_of(index, folder, monkeypatch):
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
        train.train("nvsr", SHARED | {"max_steps": 1}, "demo", folder)
    return found.value.args[0]


def test_two_processes_step_along_the_mean_of_their_gradients_and_resume_bit_for_bit(runs, monkeypatch):
    shares = [gradients_of(index, runs / f"share-{index}", monkeypatch) for index in range(2)]
    expected = []
    for (start, first), (same, second) in zip(*shares, strict=True):
        assert torch.equal(start, same)
        expected.append(torch.nn.Parameter(start))
        expected[-1].grad = (first + second) / 2
    assert any(not torch.allclose(first, second) for (_, first), (_, second) in zip(*shares, strict=True))
    torch.nn.utils.clip_grad_norm_(expected, 1.0)
    torch.optim.AdamW(expected, lr=SHARED["learning_rate"], betas=(0.9, 0.99), weight_decay=0.01).step()
    resumed = launch(runs / "resumed", 1)
    module, _ = weights_of(resumed)
    names = [name for name, _ in build("tiny", seed=0).base.named_parameters()]
    compared = 0
    for name, parameter in zip(names, expected, strict=True):
        sure = parameter.grad.abs() > 1e-5  # Adam's first step is as long for gradients that are only rounding
        torch.testing.assert_close(module[name][sure], parameter.detach()[sure], atol=1e-5, rtol=0)
        compared += int(sure.sum())
    assert compared > 10_000
    launch(resumed, 3, "--resume")
    assert [row["global_step"] for row in rows_of(resumed)] == ["1", "2", "3"]  # one process writes
    assert_same_weights(resumed, launch(runs / "at-once", 3))


def test_a_batch_that_processes_cannot_share_is_refused():
    accelerator = types.SimpleNamespace(num_processes=2, process_index=1)
    with pytest.raises(SrlibError, match="batch of 5 cannot be shared among 2 processes"):
        Processes(accelerator).check(5)


def test_threads_that_draw_ahead_change_nothing(runs, one_step):
    ahead = train.train("nvsr", CONFIG | {"max_steps": 1, "prefetch": 3}, "demo", runs / "ahead")
    assert_same_weights(one_step, ahead)


def test_epochs_set_the_length_and_every_epoch_takes_one_crop_of_each_track(runs, monkeypatch):
    tracks, corpora = [], []
    draw = train.draw

    def recorded(*arguments):
        corpora.append(arguments[0])
        tracks.append(arguments[-1])
        return draw(*arguments)

    monkeypatch.setattr(train, "draw", recorded)
    config = CONFIG | {"epochs": 2, "one_crop_a_track": True, "augment": False, "batch_size": 20, "constant_rate": True}
    run = train.train("nvsr", config | {"validate_every": 1000}, "demo", runs / "epochs")
    total = len(data.load_dataset("demo", "train"))
    steps = -(-total // 20)
    assert rows_of(run)[-1]["global_step"] == str(2 * steps)
    assert float(rows_of(run)[-1]["learning_rate"]) == CONFIG["learning_rate"]
    given = [drawn for drawn in tracks if drawn is not None]
    fitted, trained = given[: -2 * steps], given[-2 * steps :]  # those before the first step are for the base's store
    assert fitted == [corpora[0].tracks_of_step(0, index, 20) for index in range(len(fitted))] and fitted
    epochs = [[track for step in trained[i * steps : (i + 1) * steps] for track in step] for i in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(total)) and epochs[0] != epochs[1]


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


def test_resuming_a_finished_run_changes_nothing(one_step):
    before, log = (one_step / "checkpoint.pt").read_bytes(), (one_step / "log.csv").read_text()
    train.train("nvsr", CONFIG | {"max_steps": 1, "snapshot_steps": [1]}, "demo", one_step, resume=True)
    assert (one_step / "checkpoint.pt").read_bytes() == before
    assert (one_step / "log.csv").read_text() == log


def test_a_folder_that_holds_a_run_is_refused(one_step):
    before = (one_step / "checkpoint.pt").read_bytes()
    with pytest.raises(SrlibError, match="already holds a run"):
        train.train("nvsr", CONFIG, "demo", one_step)
    assert (one_step / "checkpoint.pt").read_bytes() == before


def test_a_run_starts_from_another_run_s_pipeline_and_a_recipe_can_be_a_file(runs, one_step, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in CONFIG.items()))
    run = train.train("vocoder", recipe, "demo", runs / "from-init", init=one_step / "pipeline", max_steps=1)
    assert [row["global_step"] for row in rows_of(run)] == ["1"]
    record = json.loads((run / "config.json").read_text())
    assert (record["max_steps"], record["frames"]) == (1, 64)
    bases = [RestorationPipeline.from_pretrained(run / "pipeline").base.state_dict() for run in (one_step, run)]
    assert all(torch.equal(value, bases[1][name]) for name, value in bases[0].items())


def test_time_budget_ends_a_run_and_the_learning_rate_with_it(runs):
    endless = {"max_steps": 100_000, "fit_batches": 100_000}  # fits have their share of the time, too
    run = train.train("nvsr", CONFIG | endless, "demo", runs / "budget", time_budget=0.01)
    rows = rows_of(run)
    assert 1 <= int(rows[-1]["global_step"]) < 100
    assert float(rows[-1]["learning_rate"]) < 1e-6
    assert (run / "pipeline" / "model_index.json").is_file()


def test_snapshots_hold_a_replayable_example_of_each_noise(one_step):
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
    track = next(track for track in data.load_dataset("demo", "valid") if track.name == record["track"])
    start = (round(track.seconds * SAMPLE_RATE) - reference.shape[1]) // 2 / SAMPLE_RATE
    middle = track.mixture(start, reference.shape[1] / SAMPLE_RATE)
    np.testing.assert_allclose(reference[0], middle, atol=1e-4)  # 16 bits


def test_a_run_is_resumed_as_it_was_begun(one_step, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    before = (run / "config.json").read_bytes()
    for change, sentence in [({"seed": 5}, "other seed"), ({"max_steps": 9, "size": "tiny"}, "damaged")]:
        if sentence == "damaged":
            (run / "checkpoint.pt").write_bytes(b"PK")
        with pytest.raises(SrlibError, match=sentence):
            train.train("nvsr", CONFIG | {"max_steps": 1, "snapshot_steps": [1]} | change, "demo", run, resume=True)
        assert (run / "config.json").read_bytes() == before


def test_a_run_of_epochs_may_grow_as_one_of_steps_may(runs):
    config = CONFIG | {"epochs": 1, "batch_size": 40, "validate_every": 1000}  # one step an epoch
    run = train.train("nvsr", config, "demo", runs / "growing")
    assert [row["global_step"] for row in rows_of(run)] == ["1"]
    train.train("nvsr", config | {"epochs": 2}, "demo", run, resume=True)
    train.train("nvsr", config | {"epochs": 2}, "demo", run, max_steps=3, resume=True)
    assert [row["global_step"] for row in rows_of(run)] == ["1", "2", "3"]
    assert json.loads((run / "config.json").read_text())["max_steps"] == 3


def test_rows_logged_after_the_checkpoint_are_dropped_on_resuming(one_step, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    with (run / "log.csv").open("a") as log:
        log.write("run,nvsr,7,1.0,1.0,,,0.001,1.0,0.1\n")
    train.train("nvsr", CONFIG | {"max_steps": 1, "snapshot_steps": [1]}, "demo", run, resume=True)
    assert [row["global_step"] for row in rows_of(run)] == ["1"]


def test_a_damaged_checkpoint_is_named(one_step, tmp_path):
    run = shutil.copytree(one_step, tmp_path / "run")
    (run / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(SrlibError, match=r"checkpoint\.pt is damaged"):
        train.train("nvsr", CONFIG | {"max_steps": 1, "snapshot_steps": [1]}, "demo", run, resume=True)


UNUSABLE = {
    "size": [3, ["tiny"]],
    "base": ["other", ["regressor"]],
    "precision": ["fp8"],
    "augment": ["no", 1],
    "seed": ["one", -1, 2**32, True],
    "frames": [0, 100, "a", 64.0],
    "batch_size": [0, 2.5, True],
    "epochs": [-1],
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
        train.train("nvsr", CONFIG | {name: value}, "demo", tmp_path / "run")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_every_setting_has_a_rule_and_whole_numbers_are_numbers_too():
    names = [name for names, _, _ in recipe._RULES for name in names.split()]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(TrainConfig))
    TrainConfig(learning_rate=1, ema_decay=0, cutoff_hz=[2000, 16_000], snapshot_steps=[40], noise_weights={"tone": 1})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stage": "diffusion"}, "diffusion"),
        ({"config": CONFIG | {"learningrate": 1}}, "learningrate"),
        ({"config": "no/such/recipe.toml"}, "no/such/recipe.toml"),
        ({"config": CONFIG | {"size": "huge"}}, "huge"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"init": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(runs, tmp_path, change, sentence):
    call = {"stage": "nvsr", "config": CONFIG, "data": "demo", "out": runs / "refused"} | change
    with pytest.raises(SrlibError, match=sentence) as caught:
        train.train(**call)
    assert "\n" not in str(caught.value)
    assert not (runs / "refused").exists()


# The objectives themselves, on signals whose loss is known.


def batch_of(reference, degraded=None, bandwidth_hz=24000.0):
    rows = len(reference)
    degraded = reference.clone() if degraded is None else degraded
    response = torch.ones(rows, 256)
    bandwidth = torch.full((rows,), bandwidth_hz, dtype=torch.float64)
    return Batch(reference, degraded, degraded, bandwidth, response, [Degradation()] * rows)


def white(rows=2, level=0.1, seed=0):
    return level * torch.randn(rows, 64 * 480, generator=torch.Generator().manual_seed(seed))


def test_band_mask_keeps_bands_wholly_inside_the_bandwidth():
    mask = objectives.band_mask(torch.tensor([16000.0, 24000.0]))[:, 0, 0]
    ends = band_edges_hz()[2:]
    np.testing.assert_array_equal(mask[0].bool(), ends <= 16000.0)
    assert mask[1].sum() >= 255


def test_mel_distance_sees_nothing_above_the_bandwidth():
    reference = log_mel(white())
    wrong = reference.clone()
    wrong[..., band_edges_hz()[2:] > 16000] += 3
    bandwidth = torch.tensor([16000.0, 16000.0])
    same = objectives.mel_distance(reference, reference, bandwidth)
    assert objectives.mel_distance(wrong, reference, bandwidth) == same
    assert objectives.mel_distance(wrong, reference, torch.tensor([24000.0, 24000.0])) > same + 0.1
    assert objectives.mel_distance(reference + 4, reference, bandwidth) == pytest.approx(np.hypot(4, 0.91), rel=1e-4)


def test_vae_starts_from_principal_components_and_only_it_learns():
    pipeline = build("tiny")
    objective = objective_of("vae", pipeline)
    batch = batch_of(white(8))
    torch.manual_seed(0)
    before = objective.loss(batch)
    objective.prepare(iter([batch]))
    after = objective.loss(batch)
    assert after < 0.5 * before
    after.backward()
    assert any(p.grad is not None for p in pipeline.vae.parameters())
    for part in (pipeline.unet, pipeline.base, pipeline.vocoder):
        assert all(p.grad is None for p in part.parameters())
        assert not part.training


def test_ldm_generates_unit_residuals():
    pipeline = build("tiny")
    torch.manual_seed(0)
    torch.nn.init.normal_(pipeline.base.head.weight, std=0.05)
    pipeline.base.noise[-1].bias.data = torch.tensor([0.0, 0.0, 100.0])  # noise that nothing is known of is kept
    objective = objective_of("ldm", pipeline)
    batch = batch_of(white(8), white(8, level=0.02, seed=1))
    objective.prepare(iter([batch]))
    residual, condition = objective._target_and_condition(batch)
    np.testing.assert_allclose(residual.std(dim=(0, 2, 3)), 1, rtol=1e-3)
    assert condition.shape == (8, 32, 8, 32)
    loss = objective.loss(batch)
    # Untrained it predicts the velocity zero; noise and residual have unit power.
    assert 0.3 < loss.item() < 3
    loss.backward()
    assert pipeline.unet.conv_out.weight.grad.abs().max() > 0


def adversary_of(frames=32):
    torch.manual_seed(0)
    AcceleratorState._reset_state(True)
    return Adversary(Processes(Accelerator()), weight=1.0, frames=frames, learning_rate=1e-3)


def test_discriminators_see_no_band_above_the_bandwidth_and_no_level():
    reference, wav = white(), white(seed=1)
    bandwidth = torch.tensor([8000.0, 24000.0])
    fake, real = whitened(wav, reference, bandwidth, 1024)
    assert fake.shape == real.shape == (2, 2, 64 * 480 // 256 + 1, 513)
    above = torch.linspace(0, 24000, 513) > 8000
    assert not fake[0][..., above].any() and not real[0][..., above].any()
    assert real[1][..., above].any()
    quiet = whitened(1e-2 * wav, 1e-2 * reference, bandwidth, 1024)[0]
    torch.testing.assert_close(quiet, fake, rtol=0.02, atol=0.02)  # the floor of power is all that differs


def test_discriminators_learn_to_tell_and_their_loss_reaches_the_waveform():
    adversary = adversary_of(frames=16)
    reference = white(2)
    dull = (0.7 * torch.sin(0.5 * torch.arange(64 * 480))).expand(2, -1).clone().requires_grad_()
    bandwidth = torch.full((2,), 24000.0)
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        told = adversary.generator_loss(dull, reference, bandwidth)
        losses.append(adversary.update(2e-3).item())
    assert losses[0] == pytest.approx(2, abs=0.3) and losses[-1] < 0.7 * losses[0]  # 2 is chance
    assert told > adversary.generator_loss(reference, reference, bandwidth)
    told.backward()
    assert dull.grad.abs().max() > 0


def test_the_adversary_takes_part_in_training_only():
    objective = objective_of("vocoder", build("tiny"))
    batch = batch_of(white())
    torch.manual_seed(0)
    alone = objective.loss(batch).item()
    objective.adversary = adversary_of()
    for active, training, added in ((False, True, False), (True, False, False), (True, True, True)):
        objective.adversary.active = active
        objective.module.train(training)
        torch.manual_seed(0)
        assert (objective.loss(batch).item() > alone) == added


def test_vocoder_and_regressor_losses_fall_when_they_are_right():
    wav = white()
    vocoder = objective_of("vocoder", build("tiny"))
    torch.manual_seed(0)
    right_level = vocoder.loss(batch_of(wav)).item()
    torch.nn.init.constant_(vocoder.module.head.bias[:1025], 1.0)  # a nat too loud
    torch.manual_seed(0)
    assert vocoder.loss(batch_of(wav)).item() > right_level + 0.1
    regressor = objective_of("nvsr", build("tiny"))
    clean = regressor.loss(batch_of(wav)).item()
    noisy = regressor.loss(batch_of(wav, wav + white(level=0.3, seed=1))).item()
    assert noisy > clean + 0.3
