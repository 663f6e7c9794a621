"""A whole recipe retrained in seconds, published and read back; the small pieces on their own."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from srlib import config
from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError
from srlib.measure import systems
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training import curriculum
from srlib.training.curriculum import _newest, publish, retrain

ORDER = ["vae", "vocoder", "ldm-1-lowpass", "ldm-2-mixed"]
APART = "ldm-hours-1"
SETTINGS = {"size": "tiny", "batch_size": 2, "frames": 64, "fit_batches": 1, "validate_every": 1000, "max_steps": 2}
NOISE = "snapshot_steps = [1]\n[noise_weights]\nnone = 1\ntone = 1\nwhite = 1\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "runs.toml").write_text(f'order = {json.dumps(ORDER)}\napart = ["{APART}"]\n')
    shared = "".join(f"{name} = {json.dumps(value)}\n" for name, value in SETTINGS.items())
    for name in [*ORDER, APART]:
        own = {"ldm-2-mixed": NOISE, APART: "hours = 0.002\n"}.get(name, "")
        (folder / f"{name}.toml").write_text(shared + own)
    return folder


@pytest.fixture(scope="module")
def runs(recipe, music_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    assert retrain(recipe, str(music_folder), out) == out / "pipeline"
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


def test_what_was_run_is_recorded_without_paths_of_this_machine(runs, shipped, music_folder):
    whole = json.loads((shipped / "training.json").read_text())
    record = whole["runs"]
    assert set(record) == {*ORDER, APART}
    run = record["ldm-2-mixed"]["run"]
    assert run["steps"] == 2 and run["minutes"] >= 0 and len(whole["corpora"]) == 1  # one for all runs
    corpus = whole["corpora"][run["corpus"]]
    assert corpus["train"] == sorted(corpus["train"]) and len(corpus["train"]) == 5
    assert corpus["train_minutes"] == pytest.approx(25 / 60, abs=0.1)
    assert record["vae"]["run"]["steps"] == 0 and record[APART]["hours"] == 0.002
    assert run["hardware"]["cores"] >= 1 and record["ldm-2-mixed"]["init"] == "ldm-2-mixed"
    texts = [path.read_text() for kind in ("json", "csv") for path in shipped.rglob(f"*.{kind}")]
    assert len(texts) > 10 and not any(str(part) in text for text in texts for part in (runs, music_folder, shipped))


def test_finished_runs_are_left_alone_and_more_steps_continue_them(recipe, runs, music_folder, monkeypatch, tmp_path):
    """Also where the runs were moved meanwhile; a run that was stopped while it went on is not finished."""
    trained = []
    monkeypatch.setattr(curriculum, "train", lambda stage, settings, data, out, *_, **__: trained.append(out.name))
    retrain(recipe, str(music_folder), runs)
    assert trained == []
    longer, moved = shutil.copytree(recipe, tmp_path / "recipe"), shutil.copytree(runs, tmp_path / "runs")
    text = (longer / f"{APART}.toml").read_text()
    (longer / f"{APART}.toml").write_text(text.replace("max_steps = 2", "max_steps = 3"))
    monkeypatch.setattr(curriculum, "train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        retrain(longer, str(music_folder), moved, only=["vae", APART])
    assert not (moved / APART / "run.json").exists()
    monkeypatch.undo()
    retrain(longer, str(music_folder), moved, only=[APART])
    assert json.loads((moved / APART / "run.json").read_text())["steps"] == 3
    assert pd.read_csv(moved / APART / "log.csv")["global_step"].tolist() == [2, 3]


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


def test_what_is_published_holds_every_log_and_the_first_snapshot_of_each_noise(shipped, tmp_path):
    assert {path.stem for path in (shipped / "logs").iterdir()} == {*ORDER, APART}
    for noise in ("tone", "white"):
        example = curriculum.early_example(noise, shipped / "early")
        assert example.degradation.noise_type == noise and example.global_step == 1
        assert example.reference.shape == example.degraded.shape == example.restored.shape
    logs = curriculum.logs(folder=shipped / "logs")
    assert list(logs) == ORDER and list(curriculum.logs("ldm", shipped / "logs")) == ORDER[2:]  # without APART
    assert list(curriculum.summarise_runs(logs)["steps"]) == [0, 2, 2, 2]
    hours, tracks = curriculum.training_music(shipped)
    assert tracks == 5 and hours == pytest.approx(25 / 3600, abs=0.002)
    curve = curriculum.learning_curve(shipped)
    assert list(curve["hours"]) == [hours, 1] and list(curve["step"]) == [2, 2] and (curve["val_lsd"] > 0).all()
    settings = curriculum.run_settings(shipped)
    assert {name: settings[name] for name in SETTINGS} == SETTINGS and settings["noise_weights"]["tone"] == 1
    without = shutil.copytree(shipped, tmp_path / "without")
    (without / "logs" / f"{APART}.csv").unlink()
    assert list(curriculum.learning_curve(without)["hours"]) == [hours]


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


def test_what_was_not_trained_cannot_be_shipped(tmp_path):
    (tmp_path / "runs" / "ldm-1" / "pipeline").mkdir(parents=True)
    with pytest.raises(SrlibError, match="holds no finished vae run"):
        publish(tmp_path / "runs", tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_the_last_of_ten_runs_is_the_tenth_and_those_on_a_part_of_the_music_are_not_shipped(tmp_path):
    for name in ("ldm-10-late", "ldm-2-mixed", "ldm-9", "ldm-hours-12", "vocoder", "vocoder-2-longer"):
        (tmp_path / name / "pipeline").mkdir(parents=True)
    assert _newest(tmp_path, "ldm") == tmp_path / "ldm-10-late" / "pipeline"
    assert _newest(tmp_path, "vocoder") == tmp_path / "vocoder-2-longer" / "pipeline"


def test_wrong_calls_end_in_a_sentence(recipe, tmp_path):
    with pytest.raises(SrlibError, match="no run 'ldm-9': choose of vae, vocoder"):
        retrain(recipe, "demo", tmp_path / "out", only=["ldm-9"])
    with pytest.raises(SrlibError, match=r"There is no no/such/runs\.toml: name a folder with one"):
        retrain("no/such", "demo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["order = []", 'order = ["unet-1"]', 'order = ["vae"]\nlast = 1'])
def test_a_list_of_runs_is_checked(tmp_path, text):
    (tmp_path / "runs.toml").write_text(text)
    with pytest.raises(SrlibError, match=r"runs\.toml does not list runs"):
        retrain(tmp_path, "demo", tmp_path / "out")


# Logs


def test_losses_of_a_run_are_means_over_its_steps():
    """A row of a log counts for the steps since the one before: the last of these stands for two of a hundred."""
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 50, 85, 98, 100], "wall_time": 60.0, "val/lsd": math.nan})
    row = curriculum.summarise_runs({"run": log.assign(**{"train/loss": [4.0, 3.0, 2.0, 1.0, 9.0]})}).iloc[0]
    assert row["first_loss"] == 4.0
    assert row["last_loss"] == pytest.approx((13 * 1.0 + 2 * 9.0) / 15)


def test_summarise_runs_scores_the_weights_that_are_kept_and_closed_forms_have_no_losses():
    nan = math.nan
    log = pd.DataFrame({"stage": "ldm", "global_step": [1, 2, 3], "wall_time": 60.0, "train/loss": [3.0, 2.0, 1.0]})
    log = log.assign(**{"val/loss": [0.5, 0.2, 0.3], "val/lsd": [1.3, 1.2, 1.1], "val/zimtohrli": [9.0, 8.0, 7.0]})
    fitted = pd.DataFrame({"stage": "vae", "global_step": [0], "wall_time": 1.2, "train/loss": [nan]})
    fitted = fitted.assign(**{"val/loss": [0.1], "val/lsd": [0.9], "val/zimtohrli": [nan]})
    kept, closed = (row for _, row in curriculum.summarise_runs({"ldm": log, "vae": fitted}).iterrows())
    assert (kept["val_lsd"], kept["val_zimtohrli"]) == (1.2, 8.0)  # of the second validation, the best
    assert (closed["steps"], closed["val_lsd"]) == (0, 0.9)
    assert closed[["first_loss", "last_loss", "val_zimtohrli"]].isna().all()
