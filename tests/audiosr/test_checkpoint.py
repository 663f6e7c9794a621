"""AudioSR checkpoints: conversion through the command line, and what is refused."""

import gzip
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from srlib.__main__ import main
from srlib.audio import files as audio
from srlib.audiosr import checkpoint as convert
from srlib.config import AUDIOSR
from srlib.errors import SrlibError
from srlib.restore.pipeline import RestorationPipeline

KEYS = Path(__file__).parents[1] / "fixtures" / "audiosr_basic_keys.tsv.gz"
UNET = "model.diffusion_model.out.2.weight"


@pytest.fixture(scope="module")
def checkpoint(audiosr_weights) -> dict:
    """What AudioSR publishes: the weights among everything that inference never reads."""
    state = dict(audiosr_weights) | {"scale_factor": torch.tensor(0.4)}
    for key, value in audiosr_weights.items():
        if key.startswith("first_stage_model."):
            state[key.replace("first_stage_model.", "cond_stage_models.0.vae.")] = value.clone()
        elif key.startswith("model."):
            state["model_ema." + key.removeprefix("model.").replace(".", "")] = 0.5 * value
    tables = ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance", "lvlb_weights", "logvar")
    scalars = ("model_ema.decay", "model_ema.num_updates", "clap.model.logit_scale_a")
    return state | {name: torch.zeros(1000) for name in tables} | {name: torch.tensor(1) for name in scalars}


@pytest.fixture(scope="module")
def model_folder(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audiosr")
    torch.save({"state_dict": checkpoint, "global_step": 3}, folder / "pytorch_model.bin")
    assert main(["import-audiosr", str(folder / "pytorch_model.bin"), "-o", str(folder / "model")]) == 0
    return folder / "model"


def test_the_keys_of_the_full_size_are_audiosr_s():
    rows = gzip.decompress(KEYS.read_bytes()).decode().splitlines()[1:]
    theirs = dict(row.split("\t") for row in rows)
    ours = {key: "x".join(map(str, shape)) or "scalar" for key, shape in convert.wanted_shapes(AUDIOSR).items()}
    assert ours == theirs


def test_an_imported_model_restores(model_folder, music, tmp_path, audiosr_weights):
    audio.write(tmp_path / "in.wav", music[:30_720], 48_000)
    arguments = ["--model", str(model_folder), "--steps", "2", "--cutoff-hz", "4000"]
    assert main(["restore", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), *arguments]) == 0
    restored, sample_rate = audio.read(tmp_path / "out.wav")
    assert restored.shape[-1] == 30_720 and sample_rate == 48_000 and np.isfinite(restored).all()
    pipe = RestorationPipeline.from_pretrained(model_folder)
    assert pipe.prior is None and pipe.vae.config.scaling_factor == pytest.approx(0.4)
    assert torch.equal(pipe.unet.conv_out.weight, audiosr_weights[UNET])  # not the averaged one


def test_an_imported_model_trains_on(model_folder, music_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "quick")  # that it may validate in one unguided step
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"num_inference_steps": 1, "guidance_scale": 1.0}))
    (tmp_path / "ldm.toml").write_text("batch_size = 1\nframes = 64\nfit_batches = 1\n")
    arguments = ["--config", str(tmp_path / "ldm.toml"), "--data", str(music_folder), "--init", str(folder)]
    assert main(["train", "ldm", *arguments, "--out", str(tmp_path / "run"), "--max-steps", "2"]) == 0
    before, after = (RestorationPipeline.from_pretrained(path) for path in (folder, tmp_path / "run" / "pipeline"))
    assert after.prior is None and after.vae.config.scaling_factor == before.vae.config.scaling_factor
    assert torch.equal(after.vae.encoder.conv_in.weight, before.vae.encoder.conv_in.weight)
    assert not torch.equal(after.unet.conv_out.weight, before.unet.conv_out.weight)


def test_half_precision_and_safetensors(checkpoint, music, tmp_path):
    save_file(checkpoint, tmp_path / "audiosr.safetensors")
    out = convert.import_audiosr(tmp_path / "audiosr.safetensors", tmp_path / "model", dtype="bf16")
    stored = [load_file(next((out / part).glob("*.safetensors"))) for part in convert.PREFIXES]
    assert {tensor.dtype for part in stored for tensor in part.values()} == {torch.bfloat16}
    assert torch.equal(stored[1]["conv_out.weight"], checkpoint[UNET].to(torch.bfloat16))
    pipe = RestorationPipeline.from_pretrained(out)
    assert pipe.vocoder.dtype == torch.float32  # whatever the others run in
    restored = pipe(music[:4800], 48_000, num_inference_steps=1, cutoff_hz=4000)
    assert restored.audio.dtype == np.float32 and np.isfinite(restored.audio).all()


FAULTS = [
    ({UNET: None}, f"misses {UNET}"),
    ({"first_stage_model.loss.logvar": torch.zeros(1)}, "unexpected first_stage_model.loss.logvar"),
    ({UNET: torch.zeros(3, 4)}, rf"another shape {UNET} \(3x4 instead of 16x32x3x3\)"),
    ({"scale_factor": torch.tensor(float("nan"))}, "scale_factor is nan"),
]


@pytest.mark.parametrize(("change", "named"), FAULTS)
def test_faulty_checkpoints_are_refused_by_key(checkpoint, change, named):
    state = {key: value for key, value in (checkpoint | change).items() if value is not None}
    with pytest.raises(SrlibError, match=named):
        convert.from_audiosr(state, size="tiny")


def test_a_long_list_of_faults_is_cut(audiosr_weights):
    with pytest.raises(SrlibError, match=r"another shape .* and \d+ more"):
        convert.from_audiosr(audiosr_weights, size="audiosr")
    with pytest.raises(SrlibError, match="not an AudioSR checkpoint"):
        convert.from_audiosr({"conv.weight": torch.zeros(1)})
    with pytest.raises(SrlibError, match="no size 'compact'"):
        convert.from_audiosr(audiosr_weights, size="compact")


class _Code:
    def __reduce__(self):
        return print, ("pickled code ran",)


def _saved(value) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"scale_factor": value}}, file)
    return file.getvalue()


FILES = [
    ("code.bin", _saved(_Code()), "run code"),
    ("old.bin", pickle.dumps(_Code(), protocol=2), "run code"),
    ("cut.bin", _saved(torch.zeros(10_000))[:20_000], "damaged"),
    ("empty.bin", b"", "damaged"),
    ("text.safetensors", b"not a checkpoint", "damaged"),
    ("other.bin", _saved(3), "no tensors"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), FILES)
def test_files_that_are_no_checkpoints_are_refused(tmp_path, capsys, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    assert main(["import-audiosr", str(tmp_path / name), "-o", str(tmp_path / "model")]) == 2
    told = capsys.readouterr()
    assert sentence in told.err and name in told.err and len(told.err.splitlines()) == 1
    assert "pickled code ran" not in told.out
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_is_overwritten_and_nothing_left_half(checkpoint, tmp_path, capsys, monkeypatch):
    source, out = tmp_path / "pytorch_model.bin", tmp_path / "model"
    torch.save(checkpoint, source)
    out.mkdir()
    assert main(["import-audiosr", str(source), "-o", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    out.rmdir()
    full = OSError(28, "disk full")
    monkeypatch.setattr(RestorationPipeline, "save_pretrained", lambda *_: (_ for _ in ()).throw(full))
    assert main(["import-audiosr", str(source), "-o", str(out)]) == 2
    assert "disk full" in capsys.readouterr().err and list(tmp_path.iterdir()) == [source]
    assert main(["import-audiosr", str(tmp_path / "missing.bin"), "-o", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err
