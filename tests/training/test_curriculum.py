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
from srlib.restore.pipeline import RestorationPipeline
from srlib.training import curriculum
from srlib.training.curriculum import publish, retrain

ORDER = ["vae", "vocoder", "ldm-1-lowpass", "ldm-2-mixed"]
TRAINED = {"vae": "vae", "vocoder": "vocoder", "prior": "ldm-1-lowpass", "unet": "ldm-2-mixed"}  # part: last run of it
SETTINGS = {"size": "tiny", "batch_size": 2, "frames": 64, "fit_batches": 1, "validate_every": 1000, "max_steps": 2}
NOISE = "snapshot_step = 1\n[noise_weights]\nnone = 1\ntone = 1\nwhite = 1\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    shared = "".join(f"{name} = {json.dumps(value)}\n" for name, value in SETTINGS.items())
    for name in ORDER:
        (folder / f"{name}.toml").write_text(shared + (NOISE if name == "ldm-2-mixed" else ""))
    return folder


@pytest.fixture(scope="module")
def runs(recipe, music_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    assert retrain(recipe, str(music_folder), out) == out / "ldm-2-mixed" / "pipeline"
    return out


@pytest.fixture(scope="module")
def shipped(runs, tmp_path_factory):
    return publish(runs, tmp_path_factory.mktemp("shipped") / "tiny")


def state(folder, part):
    return load_file(Path(folder) / part / "diffusion_pytorch_model.safetensors")


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_each_run_starts_from_the_run_before_it(runs):
    starts = [json.loads((runs / name / "config.json").read_text())["init"] for name in ORDER]
    assert starts == ["None", *(str(runs / name / "pipeline") for name in ORDER[:-1])]
    last, first = runs / "ldm-2-mixed" / "pipeline", runs / "ldm-1-lowpass" / "pipeline"
    assert all(same(state(last, part), state(runs / name / "pipeline", part)) for part, name in TRAINED.items())
    assert not same(state(last, "unet"), state(first, "unet"))


def test_runs_are_trained_by_stage_and_then_by_number(tmp_path):
    names = ["ldm-10-b", "ldm-2-a", "vae", "ldm-hours-1", "vocoder", "ldm-2-b"]
    order = curriculum._in_order(tmp_path / f"{name}.toml" for name in names)
    assert order == ["vae", "vocoder", "ldm-2-a", "ldm-2-b", "ldm-10-b"]


def test_what_was_run_is_recorded_without_paths_of_this_machine(runs, shipped, music_folder):
    whole = json.loads((shipped / "training.json").read_text())
    assert set(whole["runs"]) == {path.stem for path in (shipped / "logs").iterdir()} == {*ORDER}
    mixed = whole["runs"]["ldm-2-mixed"]
    assert (mixed["run"]["steps"], mixed["init"], whole["runs"]["vae"]["run"]["steps"]) == (2, "ldm-1-lowpass", 0)
    assert len(whole["corpora"]) == 1 and len(whole["corpora"][mixed["run"]["corpus"]]["train"]) == 5
    assert mixed["run"]["hardware"]["cores"] >= 1 and mixed["run"]["minutes"] >= 0
    texts = [path.read_text() for kind in ("json", "csv") for path in shipped.rglob(f"*.{kind}")]
    assert len(texts) > 10 and not any(str(part) in text for text in texts for part in (runs, music_folder, shipped))


def test_finished_runs_are_left_alone_and_more_steps_continue_them(recipe, runs, music_folder, monkeypatch, tmp_path):
    """Also where the runs were moved meanwhile; a run that was stopped while it went on is not finished."""
    monkeypatch.setattr(curriculum, "train", lambda *_, **__: 1 / 0)
    retrain(recipe, str(music_folder), runs)
    longer, moved = shutil.copytree(recipe, tmp_path / "recipe"), shutil.copytree(runs, tmp_path / "runs")
    text = (longer / "vocoder.toml").read_text()
    (longer / "vocoder.toml").write_text(text.replace("max_steps = 2", "max_steps = 3"))
    with pytest.raises(ZeroDivisionError):
        retrain(longer, str(music_folder), moved)
    assert not (moved / "vocoder" / "run.json").exists()
    monkeypatch.undo()
    retrain(longer, str(music_folder), moved)
    assert json.loads((moved / "vocoder" / "run.json").read_text())["steps"] == 3
    assert pd.read_csv(moved / "vocoder" / "log.csv")["global_step"].tolist() == [2, 3]


def test_published_weights_give_back_the_pipeline_and_its_variant(runs, shipped):
    wav = (0.05 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)).astype(np.float32)
    for variant in (None, "lowpass"):
        published = RestorationPipeline.from_pretrained(shipped, variant=variant)
        for part, run in (TRAINED | {"unet": "ldm-1-lowpass"} if variant else TRAINED).items():
            for name, value in state(runs / run / "pipeline", part).items():
                tolerance = 2e-3 if part in ("unet", "vocoder") else 0  # half precision, or closed forms
                stored = getattr(published, part).state_dict()[name]
                torch.testing.assert_close(stored, value, rtol=tolerance, atol=tolerance)
        assert published(wav, SAMPLE_RATE).audio.shape == wav.shape
    assert load_file(shipped / "unet" / "diffusion_pytorch_model.safetensors")["head.weight"].dtype == torch.float16
    profile = config.Profile("here", "demo", str(shipped), 1.28, {}, (8000,), None)
    assert same(systems.load_pipeline(profile.model, "lowpass", "cpu").unet.state_dict(), published.unet.state_dict())


def test_what_is_published_is_read_back(shipped, tmp_path):
    for noise in ("tone", "white"):
        example = curriculum.early_example(noise, shipped)
        assert example.degradation.noise_type == noise and example.global_step == 1
        assert example.reference.shape == example.degraded.shape == example.restored.shape
    logs = curriculum.logs(folder=shipped)
    assert list(logs) == ORDER and list(curriculum.logs("ldm", shipped)) == ORDER[2:]
    assert list(curriculum.summarise_runs(logs)["steps"]) == [0, 2, 2, 2]
    recorded = curriculum.recorded(shipped)
    assert recorded["music_tracks"] == 5 and recorded["music_hours"] == pytest.approx(25 / 3600, abs=0.002)
    assert {name: recorded[name] for name in SETTINGS} == SETTINGS and recorded["noise_weights"]["tone"] == 1
    more = shutil.copytree(shipped, tmp_path / "more")  # with a run on a part of the music, which is none of the order
    shutil.copy(more / "logs" / "ldm-1-lowpass.csv", more / "logs" / "ldm-hours-1.csv")
    assert list(curriculum.logs(folder=more)) == ORDER
    curve = curriculum.learning_curve(more)
    assert list(curve["hours"]) == [recorded["music_hours"], 1] and list(curve["step"]) == [2, 2]


def test_what_is_shipped_is_replaced_as_a_whole_or_not_at_all(runs, shipped, tmp_path):
    incomplete, out = shutil.copytree(runs, tmp_path / "runs"), shutil.copytree(shipped, tmp_path / "shipped")
    (incomplete / "ldm-2-mixed" / "snapshots" / "tone.json").unlink()
    (out / "vae" / "config.json").unlink()
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    with pytest.raises(SrlibError, match="no snapshot with tone noise"):
        publish(incomplete, out)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    publish(runs, out)
    assert (out / "vae" / "config.json").is_file()
    with pytest.raises(SrlibError, match="no run ldm-1-lowpass"):
        publish(tmp_path / "nothing", out)


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(SrlibError, match=r"no/such holds no TOML file of a run"):
        retrain("no/such", "demo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shipped_logs_are_read():
    assert list(curriculum.logs("ldm"))[::6] == ["ldm-1-lowpass", "ldm-7-mixed"]
    assert curriculum.recorded()["music_hours"] > 9 and sorted({*curriculum.learning_curve()["hours"]})[:3] == [1, 3, 9]


def test_summarise_runs_scores_the_weights_that_are_kept_and_closed_forms_have_no_losses():
    nan = math.nan
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 50, 95, 100], "wall_time": 60.0, "val/zimtohrli": 8.0})
    log = log.assign(
        **{"train/loss": [4.0, 3.0, 2.0, 1.0], "val/loss": [nan, 0.2, 0.3, 0.4], "val/lsd": [nan, 1, 2, 3]}
    )
    fitted = pd.DataFrame({"stage": "vae", "global_step": [0], "wall_time": 1.2, "train/loss": [nan]})
    fitted = fitted.assign(**{"val/loss": [0.1], "val/lsd": [0.9], "val/zimtohrli": [nan]})
    kept, closed = (row for _, row in curriculum.summarise_runs({"ldm": log, "vae": fitted}).iterrows())
    assert (kept["val_lsd"], kept["first_loss"], kept["last_loss"]) == (1, 4.0, 1.5)  # the best validation
    assert (closed["steps"], closed["val_lsd"]) == (0, 0.9)
    assert closed[["first_loss", "last_loss", "val_zimtohrli"]].isna().all()
