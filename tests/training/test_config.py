"""Recipes load, and every setting that cannot be used is named in one sentence."""

from pathlib import Path

import pytest

from srlib.errors import SrlibError
from srlib.training.config import TrainConfig, read_toml

UNUSABLE = {
    "precision": ["fp8"],
    "seed": [-1, True],
    "frames": [100, 64.0],
    "learning_rate": ["a", float("nan")],
    "noise_weights": [{"pink": 1}, {"none": 0}],
    "cutoff_hz": [4000, [8000, 4000]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_unusable_settings_are_named(name, value):
    with pytest.raises(SrlibError, match=name) as caught:
        TrainConfig.load({name: value})
    assert "\n" not in str(caught.value)


def test_all_settings_that_are_wrong_are_listed():
    with pytest.raises(SrlibError, match=r"seed.*; frames.*multiple of 64; .*no setting rate"):
        TrainConfig.load({"frames": 100, "seed": -1, "rate": 1})


def test_what_toml_has_instead_of_tuples_and_floats_is_accepted(tmp_path):
    (tmp_path / "a.toml").write_text("learning_rate = 1\ncutoff_hz = [2000, 16000]\n")
    config = TrainConfig.load(tmp_path / "a.toml", max_steps=3)
    assert (config.learning_rate, config.max_steps) == (1.0, 3)
    assert TrainConfig.load(config.model_dump(mode="json")) == config
    assert config.degradation().cutoff_hz == (2000.0, 16000.0)


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("**/*.toml")), ids=str)
def test_recipes_load(path):
    assert read_toml(path).items() <= TrainConfig.load(path).model_dump(mode="json").items()


def test_what_is_no_recipe_is_refused(tmp_path):
    with pytest.raises(SrlibError, match="There is no configuration file no/such"):
        read_toml("no/such.toml")
    (tmp_path / "a.toml").write_text("frames = ")
    with pytest.raises(SrlibError, match="is not TOML"):
        read_toml(tmp_path / "a.toml")
