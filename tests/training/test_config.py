"""Recipes load, and every setting that cannot be used is named in one sentence."""

from pathlib import Path

import pytest

from srlib.degrade import NOISE_TYPES
from srlib.errors import SrlibError
from srlib.training.config import TrainConfig, read_toml

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
    "white_amplitude": [0.1, [0.1, 0.01], [0, 2]],
    "cutoff_hz": [4000, [4000], [0, 4000], [8000, 4000], [4000, 24_000], ["a", "b"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_unusable_settings_are_named(name, value):
    with pytest.raises(SrlibError, match=f"^Unusable values of training settings {name} \\(") as caught:
        TrainConfig.load({name: value})
    assert "\n" not in str(caught.value)


def test_all_settings_that_are_wrong_are_listed():
    with pytest.raises(SrlibError, match=r"settings seed \(.*\), frames \(a multiple of 64\), cutoff_hz \(the lower"):
        TrainConfig.load({"frames": 100, "seed": -1, "cutoff_hz": [8000, 4000]})
    with pytest.raises(SrlibError, match="Unknown training settings rate, steps: see"):
        TrainConfig.load({"rate": 1, "steps": 3, "frames": 100})


def test_what_toml_has_instead_of_tuples_and_floats_is_accepted(tmp_path):
    (tmp_path / "a.toml").write_text("learning_rate = 1\ncutoff_hz = [2000, 16000]\nsnapshot_steps = [40]\n")
    config = TrainConfig.load(tmp_path / "a.toml")
    assert (config.learning_rate, config.cutoff_hz, config.snapshot_steps) == (1.0, (2000.0, 16000.0), (40,))
    assert TrainConfig.load(config.model_dump(mode="json")) == config
    assert config.degradation().cutoff_hz == (2000.0, 16000.0)


def test_every_noise_that_can_be_drawn_can_be_weighted():
    assert TrainConfig(noise_weights=dict.fromkeys(NOISE_TYPES, 1.0)).degradation().noise_weights.keys() == {
        *NOISE_TYPES
    }


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("**/[!r]*.toml")), ids=str)
def test_recipes_load(path):
    assert read_toml(path).items() <= TrainConfig.load(path).model_dump(mode="json").items()


def test_what_is_no_recipe_is_refused(tmp_path):
    with pytest.raises(SrlibError, match="There is no configuration file no/such"):
        read_toml("no/such.toml")
    (tmp_path / "a.toml").write_text("frames = ")
    with pytest.raises(SrlibError, match="is not TOML"):
        read_toml(tmp_path / "a.toml")
