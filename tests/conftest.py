"""Fixtures that several test files share: a few seconds of music, and a model small enough to run in a second."""

import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _default_profile(monkeypatch):
    """A caller's SRLIB_PROFILE must not change what the tests see."""
    monkeypatch.delenv("SRLIB_PROFILE", raising=False)


@pytest.fixture(scope="session")
def music() -> np.ndarray:
    """Three seconds of a demo test track, float32 [144000], mono, 48 kHz."""
    from srlib.data.tracks import load_dataset

    return load_dataset("demo", "test")[0].mixture(start=2.0, seconds=3.0)


@pytest.fixture(scope="session")
def music_folder(tmp_path_factory) -> Path:
    """Five training tracks of five seconds and a validation track of two, of the demo set."""
    from srlib.audio import files as audio
    from srlib.data.tracks import load_dataset

    folder = tmp_path_factory.mktemp("music")
    rows = ["file,split"]
    for split, count, seconds in (("train", 5, 5.0), ("valid", 1, 2.0)):
        for track in load_dataset("demo", split)[:count]:
            audio.write(folder / f"{track.name}.flac", track.mixture(2.0, seconds), 48_000, "PCM_16")
            rows.append(f"{track.name}.flac,{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def encode():
    """Write `[channels, samples]` through ffmpeg, in formats that soundfile cannot write; gives the path back."""
    from srlib.audio.decoding import find_ffmpeg

    def write(wav: np.ndarray, path, *arguments: str, sample_rate: int = 48_000):
        find_ffmpeg()
        pcm = ["-f", "f32le", "-ar", str(sample_rate), "-ac", str(len(wav)), "-i", "pipe:"]
        samples = np.ascontiguousarray(wav.T, dtype="<f4").tobytes()
        subprocess.run(["ffmpeg", "-v", "error", *pcm, *arguments, str(path)], input=samples, check=True)
        return path

    return write


@pytest.fixture(scope="session")
def train_log_mels():
    """Log-mels of all training tracks of the demo set, 10.28 s of each, float32 [tracks, 1, 1028, 256]."""
    import torch

    from srlib.audio.stft import log_mel
    from srlib.data.tracks import load_dataset

    clips = [np.resize(track.mixture(seconds=10.28), 1028 * 480) for track in load_dataset("demo", "train")]
    return torch.cat([log_mel(torch.from_numpy(clip)) for clip in clips])


@pytest.fixture(scope="session")
def tiny_pipeline():
    """The whole restoration pipeline in its smallest size, with random weights."""
    from srlib.restore.pipeline import build

    return build("tiny", seed=0)


@pytest.fixture
def tiny(monkeypatch, tiny_pipeline):
    """Restoration with the tiny random model instead of the shipped one."""
    from srlib.restore.pipeline import RestorationPipeline

    monkeypatch.setattr(RestorationPipeline, "from_pretrained", classmethod(lambda *_args, **_kwargs: tiny_pipeline))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_pipeline) -> Path:
    """That model as a folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fitted_pipeline(train_log_mels):
    """A model of the shipped size of which all that has a closed form is fitted; what is trained still says nothing."""
    from srlib.restore.pipeline import build

    pipe = build("compact", seed=0)
    pipe.vae.fit(train_log_mels[:, :, :1024])
    pipe.prior.fit([train_log_mels])
    return pipe


@pytest.fixture(scope="session")
def compact_pipeline():
    """The shipped model, with its trained weights."""
    from srlib.restore.pipeline import RestorationPipeline

    return RestorationPipeline.from_pretrained("compact")


def audiosr_tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The parity fixture's weight of an AudioSR key; tests/fixtures/README.md has the recipe."""
    name = key.removeprefix("model.").removeprefix("first_stage_model.")
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    value = rng.standard_normal(shape, dtype=np.float32)
    if value.ndim >= 2:
        return value / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    return (1 + 0.1 * value if key.endswith("weight") else 0.02 * value).astype(np.float32)


@pytest.fixture(scope="session")
def audiosr_weights() -> dict:
    """A checkpoint of AudioSR's kind, at the width of the parity fixture, without what inference does not need."""
    import torch

    from srlib.audiosr import checkpoint
    from srlib.config import AUDIOSR_NARROW

    shapes = checkpoint.wanted_shapes(AUDIOSR_NARROW)
    weights = {key: torch.from_numpy(audiosr_tensor(key, shape, seed=0)) for key, shape in shapes.items() if shape}
    return weights | {"scale_factor": torch.tensor(1.0)}


@pytest.fixture(scope="session")
def parts(audiosr_weights) -> dict:
    """AudioSR's networks, converted."""
    from srlib.audiosr import checkpoint

    return checkpoint.from_audiosr(dict(audiosr_weights), size="tiny")


@pytest.fixture(scope="session")
def truth() -> dict:
    """Inputs, and AudioSR's own outputs for them with those weights."""
    from safetensors.torch import load_file

    return load_file(Path(__file__).parent / "fixtures" / "audiosr_tiny_seed0.safetensors")


@pytest.fixture(scope="session")
def assert_parity():
    """The largest difference is at most 1e-4 of the largest value of AudioSR's output."""
    import torch

    def check(ours, theirs) -> None:
        ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())

    return check
