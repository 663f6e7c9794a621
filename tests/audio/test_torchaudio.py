"""torchaudio's pure-torch parts start beside any build of torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_python(code: str, **kwargs) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, **kwargs)
    return done.stdout.strip()


def fake_builds(folder: Path, torch_cuda: str | None, torchaudio_tag: str) -> dict[str, str]:
    """An environment in which other builds of torch and torchaudio are found first."""
    files = {
        "torch/__init__.py": "",
        "torch/version.py": f"cuda: str | None = {torch_cuda!r}\n",
        "torchaudio/__init__.py": "from . import _extension\n",
        "torchaudio/_extension.py": "_IS_TORCHAUDIO_EXT_AVAILABLE = True\n",
        "torchaudio/version.py": f"__version__ = '2.11.0+{torchaudio_tag}'\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.mark.parametrize(
    ("torch_cuda", "torchaudio_tag", "real"),
    [
        ("13.0", "cu130", True),
        (None, "cpu", True),
        (None, "cu130", False),
        ("12.8", "cu130", False),
        ("13.2", "cu130", False),
    ],
)
def test_stand_in_is_used_where_the_builds_differ(tmp_path, torch_cuda, torchaudio_tag, real):
    environment = fake_builds(tmp_path, torch_cuda, torchaudio_tag)
    code = "from srlib.audio._torchaudio import torchaudio; print(torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE)"
    assert run_python(code, env=environment) == str(real)


def test_stand_in_refuses_what_needs_the_extension():
    """As beside a CPU torch: the pure-torch part works, the compiled part says why it does not."""
    code = """
from srlib.audio import _torchaudio
_torchaudio._same_build = lambda: False
_torchaudio.prepare()
print(_torchaudio.torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE)
import torch
print(_torchaudio.torchaudio.functional.resample(torch.ones(441), 441, 480).shape[0])
try:
    _torchaudio.torchaudio.functional.forced_align(None, None)
except RuntimeError as error:
    print("forced_align" in str(error))
"""
    assert run_python(code).splitlines() == ["False", "480", "True"]
