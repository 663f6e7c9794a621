"""Recipes load, and every setting that cannot be used is named in one sentence."""

from pathlib import Path

import pytest

from srlib.degrade import NOISE_TYPES
from srlib.errors import SrlibError
from srlib.training.config import TrainConfig, read_toml

UNUSABLE = {
    "size": [3],
    "precision": ["fp8"],
    "augment": ["no", 1],
    "seed": ["one", -1, 2**32, True],
    "frames": [0, 100, "a", 64.0],
    "batch_size": [0, 2.5, True],
    "fresh_examples": [-1, 0.5],
    "hours": [-1, "all", float("inf")],
    "snapshot_steps": [3, "3", [0], [1.5]],
    "learning_rate": ["a", 0, float("nan"), 10**400],
    "ema_decay": [5, -0.1],
    "noise_weights": [3, {}, {"none": "a"}, {"pink": 1}, {"none": 0}, {"none": 2, "tone": -1}, {"none": True}],
    "cutoff_hz": [4000, [4000], [0, 4000], [8000, 4000], [4000, 24_000], ["a", "b"]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_unusable_settings_are_named(name, value):
    with pytest.raises(SrlibError, match=f"^Unusable training settings {name} \\(") as caught:
        TrainConfig.load({name: value})
    assert "\n" not in str(caught.value)


def test_all_settings_that_are_wrong_are_listed():
    with pytest.raises(
        SrlibError, match=r"seed \(.*\), frames \(a multiple of 64\), cutoff_hz \(the lower.*rate \(unknown"
    ):
        TrainConfig.load({"frames": 100, "seed": -1, "cutoff_hz": [8000, 4000], "rate": 1})


def test_what_toml_has_instead_of_tuples_and_floats_is_accepted(tmp_path):
    (tmp_path / "a.toml").write_text("learning_rate = 1\ncutoff_hz = [2000, 16000]\nsnapshot_steps = [40]\n")
    config = TrainConfig.load(tmp_path / "a.toml")
    assert (config.learning_rate, config.cutoff_hz, config.snapshot_steps) == (1.0, (2000.0, 16000.0), (40,))
    assert TrainConfig.load(config.model_dump(mode="json")) == config
    assert config.degradation().cutoff_hz == (2000.0, 16000.0)
    assert config.degradation().noise_weights.keys() == {*NOISE_TYPES}


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("**/[!r]*.toml")), ids=str)
def test_recipes_load(path):
    assert read_toml(path).items() <= TrainConfig.load(path).model_dump(mode="json").items()


def test_what_is_no_recipe_is_refused(tmp_path):
    with pytest.raises(SrlibError, match="There is no configuration file no/such"):
        read_toml("no/such.toml")
    (tmp_path / "a.toml").write_text("frames = ")
    with pytest.raises(SrlibError, match="is not TOML"):
        read_toml(tmp_path / "a.toml")
