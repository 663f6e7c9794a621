"""A model's folder: fetched or found, and refused in a sentence where it is damaged."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from srlib.errors import SrlibError
from srlib.models.loading import model_folder
from srlib.models.pipeline import LogMelPipeline
from srlib.restore.pipeline import RestorationPipeline, build


@pytest.mark.parametrize(
    ("fault", "named"),
    [("missing", "embed.weight"), ("added", "bogus.weight"), ("shape", "LatentDenoiser"), ("truncated", "unet")],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, fault, named):
    build("tiny").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "RestorationPipeline"
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if fault == "missing":
        del weights["embed.weight"]
    elif fault == "added":
        weights["bogus.weight"] = torch.zeros(3)
    elif fault == "shape":
        weights["embed.weight"] = weights["embed.weight"][:, :-1].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SrlibError, match=named) as caught:
        RestorationPipeline.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_shipped_model_is_found_by_name_as_text_and_as_path():
    assert model_folder(Path("compact")) == model_folder("compact")


@pytest.mark.parametrize("index", ["{}", '{"_class_name": "RestorationPipeline"}', "not json"])
def test_a_model_whose_index_is_damaged_is_refused_in_a_sentence(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(SrlibError, match="does not load") as caught:
        RestorationPipeline.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_fetched(tmp_path, tiny_pipeline, monkeypatch):
    tiny_pipeline.save_pretrained(tmp_path / "snapshot")
    asked = []
    snapshot = tmp_path / "snapshot"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or snapshot)
    loaded = LogMelPipeline.from_pretrained("someone/audiosr-music")  # the restoration's folder is the chain's, too
    assert type(loaded) is LogMelPipeline
    assert asked == ["someone/audiosr-music"]
    for mine, theirs in zip(loaded.modules(), tiny_pipeline.modules(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_a_folder_that_is_neither_here_nor_on_the_hub_is_refused(monkeypatch):
    def unreachable(name, **_):
        raise LocalEntryNotFoundError("No route\nto the Hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(SrlibError, match=r"models/audiosr does not load \(No route\)"):
        RestorationPipeline.from_pretrained("models/audiosr")


@pytest.mark.parametrize("name", ["./models/x", "models/x/y", "x", "empty"])
def test_other_names_are_not_looked_for_on_the_hub(monkeypatch, tmp_path, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SrlibError, match=f"no model in {name}"):
        RestorationPipeline.from_pretrained(name)
