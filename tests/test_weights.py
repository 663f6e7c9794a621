"""A whole recipe retrained in seconds, published and read back; the small pieces on their own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from srlib import config, curriculum, evaluation, machine, weights
from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError
from srlib.nvsr import MelResUNet
from srlib.pipeline import RestorationPipeline, build
from srlib.publish import _newest, publish
from srlib.variant import apply_difference, save_difference

ORDER = ["vae", "vocoder", "nvsr-1-lowpass", "ldm-1-lowpass", "nvsr-2-mixed", "ldm-2-mixed"]
SETTINGS = {"size": "tiny", "batch_size": 2, "frames": 64, "fit_batches": 1, "validate_every": 1000, "max_steps": 2}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "runs.toml").write_text(f'order = {json.dumps(ORDER)}\napart = ["nvsr-resunet"]\n')
    for name in [*ORDER, "nvsr-resunet"]:
        noise = "snapshot_steps = [999]\n[noise_weights]\nnone = 1\ntone = 1\nwhite = 1\n" * (name == "nvsr-2-mixed")
        (folder / f"{name}.toml").write_text(('base = "resunet"\n' if name == "nvsr-resunet" else "") + noise)
    return folder


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    """The whole recipe, by the clock."""
    out = tmp_path_factory.mktemp("weights")
    assert weights.retrain(recipe, "demo", out, budget=0.02, settings=SETTINGS) == out / "pipeline"
    return out


@pytest.fixture(scope="module")
def shipped(runs, tmp_path_factory):
    return publish(runs, tmp_path_factory.mktemp("shipped") / "tiny", num_inference_steps=1)


def state(folder, part):
    return load_file(Path(folder) / part / "diffusion_pytorch_model.safetensors")


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items() if name != "residual_std")


def test_each_run_starts_from_the_newest_parts(runs):
    starts = {name: json.loads((runs / name / "config.json").read_text())["init"] for name in ORDER}
    assert starts["vae"] == "None" and starts["ldm-2-mixed"] == str(runs / "init" / "ldm-2-mixed")
    for part, name in {"vae": "vae", "vocoder": "vocoder", "base": "nvsr-2-mixed", "unet": "ldm-1-lowpass"}.items():
        assert same(state(starts["ldm-2-mixed"], part), state(runs / name / "pipeline", part)), part
    assert not same(state(starts["ldm-2-mixed"], "base"), state(runs / "nvsr-1-lowpass" / "pipeline", "base"))
    assert same(state(runs / "pipeline", "unet"), state(runs / "ldm-2-mixed" / "pipeline", "unet"))
    assert isinstance(RestorationPipeline.from_pretrained(runs / "nvsr-resunet" / "pipeline").base, MelResUNet)


def test_what_was_run_is_recorded_without_paths(runs):
    whole = json.loads((runs / "training.json").read_text())
    record = whole["runs"]
    assert set(record) == {*ORDER, "nvsr-resunet"}
    run = record["ldm-2-mixed"]["run"]
    assert run["steps"] >= 1 and 0 < run["budget_seconds"] < 0.02
    assert len(run["corpus"]) == 64 and len(whole["corpora"]) == 1  # one for all runs
    corpus = whole["corpora"][run["corpus"]]
    assert corpus["train"] == sorted(corpus["train"]) and len(corpus["train"]) > 5
    assert run["hardware"]["cores"] >= 1 and run["hardware"]["processor"]
    assert record["ldm-2-mixed"]["init"] == "ldm-2-mixed"
    for one in record.values():
        one["run"].pop("command")
    assert str(runs) not in json.dumps(whole)


def test_finished_runs_are_left_alone_and_a_larger_budget_continues_them(recipe, runs, monkeypatch):
    trained = []
    monkeypatch.setattr("srlib.train.train", lambda stage, settings, data, out, **options: trained.append(out.name))
    monkeypatch.setattr(weights, "describe_run", lambda *arguments: None)
    weights.retrain(recipe, "demo", runs, budget=0.02, settings=SETTINGS)
    assert trained == []
    weights.retrain(recipe, "demo", runs, budget=0.04, only=["vae", "nvsr-resunet"], settings=SETTINGS)
    assert trained == ["vae", "nvsr-resunet"]


def test_published_weights_give_back_the_pipeline_its_variant_and_the_baseline(runs, shipped):
    wav = (0.05 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)).astype(np.float32)
    for variant, run in ((None, "ldm-2-mixed"), ("lowpass", "ldm-1-lowpass")):
        published = RestorationPipeline.from_pretrained(shipped, variant=variant)
        for part in ("base", "unet"):
            for name, value in state(runs / run / "pipeline", part).items():
                stored = getattr(published, part).state_dict()[name]
                torch.testing.assert_close(stored, value, rtol=2e-3, atol=2e-3)
        assert published(wav, SAMPLE_RATE).audio.shape == wav.shape
    assert {path.stem for path in (shipped / "logs").iterdir()} == {*ORDER, "nvsr-resunet"}
    assert curriculum.early_example("tone", shipped / "early").global_step == 1
    profile = config.Profile("here", "demo", str(shipped), 1.28, {}, (8000,), None)
    assert "nvsr_resunet" in evaluation.systems(profile)
    assert "nvsr_resunet" not in evaluation.systems(config.profile("smoke"))
    assert isinstance(evaluation.load_pipeline(profile, "resunet").base, MelResUNet)


def test_a_difference_turns_one_set_of_weights_into_another(tmp_path):
    whole, variant = build("tiny", seed=0), build("tiny", seed=1)
    parts = ("base", "unet")
    before = {part: {k: v.clone() for k, v in getattr(whole, part).state_dict().items()} for part in parts}
    wanted = {part: getattr(variant, part).state_dict() for part in parts}
    save_difference(
        {part: getattr(variant, part) for part in parts},
        {part: getattr(whole, part) for part in parts},
        tmp_path / "x.safetensors",
    )
    apply_difference({part: getattr(whole, part) for part in parts}, tmp_path / "x.safetensors")
    for part in parts:
        for name, value in getattr(whole, part).state_dict().items():
            bound = (wanted[part][name] - before[part][name]).abs().max() / 254 + 1e-6  # half a step of the largest
            assert (value - wanted[part][name]).abs().max() <= bound, (part, name)
    total = sum(p.numel() for part in parts for p in getattr(whole, part).state_dict().values())
    assert (tmp_path / "x.safetensors").stat().st_size < 1.6 * total  # a byte a value, and the scales


def test_a_difference_leaves_what_is_shared(tmp_path):
    whole, variant = build("tiny", seed=0).base, build("tiny", seed=1).base
    variant.store.log_mel.add_(1)
    before = whole.store.log_mel.clone()
    save_difference({"base": variant}, {"base": whole}, tmp_path / "x.safetensors", shared=["base.store.log_mel"])
    apply_difference({"base": whole}, tmp_path / "x.safetensors")
    assert torch.equal(whole.store.log_mel, before)
    torch.testing.assert_close(whole.head.bias, variant.head.bias)


def test_the_baseline_starts_as_the_identity_and_has_a_gradient():
    torch.manual_seed(0)
    network = MelResUNet()
    log_mel = torch.empty(2, 1, 64, 256).uniform_(-11.5, 2)
    torch.testing.assert_close(network(log_mel).log_mel, log_mel, rtol=0, atol=1e-5)
    network(log_mel).log_mel.square().mean().backward()
    assert network.unet.conv_out.weight.grad.abs().max() > 0
    assert 2 * sum(p.numel() for p in network.parameters()) < 3e6  # bytes in half precision


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


@pytest.mark.parametrize("text", ["order = []", 'order = ["unet-1"]', 'order = ["vae"]\nlast = 1'])
def test_a_list_of_runs_is_checked(tmp_path, text):
    (tmp_path / "runs.toml").write_text(text)
    with pytest.raises(SrlibError, match=r"runs\.toml does not list runs"):
        weights.retrain(tmp_path, "demo", tmp_path / "out")
