"""A whole recipe retrained in seconds, published and read back; the small pieces on their own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from srlib import config, machine
from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError
from srlib.measure import systems
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training import curriculum, weights
from srlib.training.publish import _newest, publish

ORDER = ["vae", "vocoder", "ldm-1-lowpass", "ldm-2-mixed"]
APART = "ldm-hours-1"
SETTINGS = {"size": "tiny", "batch_size": 2, "frames": 64, "fit_batches": 1, "validate_every": 1000, "max_steps": 2}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "runs.toml").write_text(f'order = {json.dumps(ORDER)}\napart = ["{APART}"]\n')
    for name in [*ORDER, APART]:
        noise = "snapshot_steps = [999]\n[noise_weights]\nnone = 1\ntone = 1\nwhite = 1\n" * (name == "ldm-2-mixed")
        (folder / f"{name}.toml").write_text(("hours = 0.002\n" if name == APART else "") + noise)
    return folder


@pytest.fixture(scope="module")
def runs(recipe, music_folder, tmp_path_factory):
    """The whole recipe, by the clock."""
    out = tmp_path_factory.mktemp("weights")
    assert weights.retrain(recipe, str(music_folder), out, budget=0.02, settings=SETTINGS) == out / "pipeline"
    return out


@pytest.fixture(scope="module")
def shipped(runs, tmp_path_factory):
    return publish(runs, tmp_path_factory.mktemp("shipped") / "tiny")


def state(folder, part):
    return load_file(Path(folder) / part / "diffusion_pytorch_model.safetensors")


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_each_run_starts_from_the_newest_parts(runs):
    starts = {name: json.loads((runs / name / "config.json").read_text())["init"] for name in [*ORDER, APART]}
    assert starts["vae"] == "None" and starts["ldm-2-mixed"] == str(runs / "init" / "ldm-2-mixed")
    newest = {"vae": "vae", "vocoder": "vocoder", "prior": "ldm-1-lowpass", "unet": "ldm-1-lowpass"}
    for part, name in newest.items():
        assert same(state(starts["ldm-2-mixed"], part), state(runs / name / "pipeline", part)), part
    finished = runs / "ldm-2-mixed" / "pipeline"
    assert same(state(finished, "prior"), state(runs / "ldm-1-lowpass" / "pipeline", "prior"))  # fitted once
    assert not same(state(finished, "unet"), state(runs / "ldm-1-lowpass" / "pipeline", "unet"))
    assert all(same(state(runs / "pipeline", part), state(finished, part)) for part in newest)


def test_a_run_that_stands_apart_starts_without_those_of_its_own_stage(runs):
    start = json.loads((runs / APART / "config.json").read_text())["init"]
    untrained = build("tiny", seed=0)
    assert same(state(start, "vae"), state(runs / "vae" / "pipeline", "vae"))
    for part in ("unet", "prior"):
        assert same(state(start, part), getattr(untrained, part).state_dict())
    assert not same(state(runs / APART / "pipeline", "prior"), state(start, "prior"))  # it fits its own


def test_what_was_run_is_recorded_without_paths(runs, music_folder):
    whole = json.loads((runs / "training.json").read_text())
    record = whole["runs"]
    assert set(record) == {*ORDER, APART}
    run = record["ldm-2-mixed"]["run"]
    assert run["steps"] >= 1 and 0 < run["budget_seconds"] < 0.02
    assert len(run["corpus"]) == 64 and len(whole["corpora"]) == 1  # one for all runs
    corpus = whole["corpora"][run["corpus"]]
    assert corpus["train"] == sorted(corpus["train"]) and len(corpus["train"]) == 5
    assert corpus["train_minutes"] == pytest.approx(25 / 60, abs=0.1)
    assert record["vae"]["run"]["steps"] == 0 and record[APART]["hours"] == 0.002
    assert run["hardware"]["cores"] >= 1 and run["hardware"]["processor"]
    assert record["ldm-2-mixed"]["init"] == "ldm-2-mixed"
    for one in record.values():
        one["run"].pop("command")
    assert str(runs) not in json.dumps(whole) and str(music_folder) not in json.dumps(whole)


def test_finished_runs_are_left_alone_and_a_larger_budget_continues_them(recipe, runs, music_folder, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "srlib.training.loop.train", lambda stage, settings, data, out, **options: trained.append(out.name)
    )
    monkeypatch.setattr(weights, "describe_run", lambda *arguments: None)
    weights.retrain(recipe, str(music_folder), runs, budget=0.02, settings=SETTINGS)
    assert trained == []
    weights.retrain(recipe, str(music_folder), runs, budget=0.04, only=["vae", APART], settings=SETTINGS)
    assert trained == ["vae", APART]


def test_published_weights_give_back_the_pipeline_and_its_variant(runs, shipped):
    wav = (0.05 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)).astype(np.float32)
    newest = {"vae": "vae", "vocoder": "vocoder", "prior": "ldm-2-mixed", "unet": "ldm-2-mixed"}
    for variant in (None, "lowpass"):
        published = RestorationPipeline.from_pretrained(shipped, variant=variant)
        for part, run in (newest | {"unet": "ldm-1-lowpass"} if variant else newest).items():
            for name, value in state(runs / run / "pipeline", part).items():
                stored = getattr(published, part).state_dict()[name]
                exact = {} if part in ("unet", "vocoder") else {"rtol": 0, "atol": 0}  # half precision, or closed forms
                torch.testing.assert_close(stored, value, **{"rtol": 2e-3, "atol": 2e-3} | exact)
        assert published(wav, SAMPLE_RATE).audio.shape == wav.shape
    assert load_file(shipped / "unet" / "diffusion_pytorch_model.safetensors")["head.weight"].dtype == torch.float16
    profile = config.Profile("here", "demo", str(shipped), 1.28, {}, (8000,), None)
    assert same(systems.load_pipeline(profile, "lowpass").unet.state_dict(), published.unet.state_dict())


def test_what_is_published_holds_every_log_and_the_first_snapshot_of_each_noise(runs, shipped):
    assert {path.stem for path in (shipped / "logs").iterdir()} == {*ORDER, APART}
    assert set(json.loads((shipped / "training.json").read_text())["runs"]) == {*ORDER, APART}
    for noise in ("tone", "white"):
        example = curriculum.early_example(noise, shipped / "early")
        assert example.degradation.noise_type == noise and example.global_step >= 1
        assert example.reference.shape == example.degraded.shape == example.restored.shape
    logs = curriculum.logs(folder=shipped / "logs")
    assert list(logs) == ORDER  # without the learning curve's
    table = curriculum.summarise_runs(logs).set_index("run_id")
    assert table.loc["vae", "steps"] == 0 and np.isnan(table.loc["vae", "first_loss"])
    assert (table["val_lsd"] > 0).all() and (table["steps"][1:] >= 1).all()
    curve = curriculum.learning_curve(shipped / "logs")
    assert set(curve["hours"]) == {1} and (curve["val_lsd"] > 0).all()
    hours, tracks = curriculum.training_music(shipped)
    assert tracks == 5 and hours == pytest.approx(25 / 3600, abs=0.002)


def test_a_budget_is_shared_among_the_runs_of_a_stage_by_their_steps():
    configs = {"vae": {"max_steps": 7}, "ldm-1": {"max_steps": 100}, "ldm-2": {"max_steps": 300}, "ldm-x": {}}
    shares = weights._shares(configs, 60.0, ["ldm-x"])
    assert shares == {"vae": 60.0, "ldm-1": 15.0, "ldm-2": 45.0, "ldm-x": 60.0}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("2min", 120), ("1.5h", 5400), ("20", 20)])
def test_times(text, seconds):
    assert weights.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "two minutes", "0s", "-3min", "5 days"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SrlibError, match="no time"):
        weights.seconds_of(text)


def test_what_is_shipped_is_replaced_as_a_whole_or_not_at_all(runs, shipped, tmp_path):
    incomplete, out = shutil.copytree(runs, tmp_path / "runs"), shutil.copytree(shipped, tmp_path / "shipped")
    for snapshot in incomplete.glob("*/snapshots/tone-*.json"):
        snapshot.unlink()
    (out / "vae" / "config.json").unlink()
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    with pytest.raises(SrlibError, match="no snapshot with tone noise"):
        publish(incomplete, out)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    publish(runs, out)
    assert (out / "vae" / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "shipped"]


@pytest.mark.parametrize("stage", ["ldm", "vae", "vocoder"])
def test_what_was_not_trained_cannot_be_shipped(tmp_path, stage):
    for name in {"ldm-1", "vae", "vocoder"} - {stage, f"{stage}-1"}:
        (tmp_path / "runs" / name / "pipeline").mkdir(parents=True)
    with pytest.raises(SrlibError, match=f"holds no finished {stage} run"):
        publish(tmp_path / "runs", tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_the_last_of_ten_runs_is_the_tenth(tmp_path):
    for name in ("ldm-10-late", "ldm-2-mixed", "ldm-9", "vocoder", "vocoder-2-longer"):
        (tmp_path / name / "pipeline").mkdir(parents=True)
    assert _newest(tmp_path, "ldm") == tmp_path / "ldm-10-late" / "pipeline"
    assert _newest(tmp_path, "vocoder") == tmp_path / "vocoder-2-longer" / "pipeline"


def test_hardware_has_a_name_where_linux_gives_none(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    assert machine.hardware()["processor"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "ldm-9"], "no run 'ldm-9'"),
        (["--set", "batch_size"], "not TOML"),
        (["--recipe", "no/such", "--only", "vae"], "There is no no/such/runs.toml: --recipe names a folder with"),
        (["--budget", "soon"], "no time"),
        (["--set", "batchsize=2", "--budget", "1s"], "Unknown training settings batchsize"),
    ],
)
def test_wrong_calls_end_in_a_sentence(recipe, tmp_path, capsys, arguments, sentence):
    assert weights.main(["--recipe", str(recipe), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_runs_on_a_part_of_the_music_are_not_shipped(tmp_path):
    for name in ("ldm-2-mixed", "ldm-hours-12", "ldm-hours-3"):
        (tmp_path / name / "pipeline").mkdir(parents=True)
    assert _newest(tmp_path, "ldm") == tmp_path / "ldm-2-mixed" / "pipeline"


@pytest.mark.parametrize("text", ["order = []", 'order = ["unet-1"]', 'order = ["vae"]\nlast = 1'])
def test_a_list_of_runs_is_checked(tmp_path, text):
    (tmp_path / "runs.toml").write_text(text)
    with pytest.raises(SrlibError, match=r"runs\.toml does not list runs"):
        weights.retrain(tmp_path, "demo", tmp_path / "out")
