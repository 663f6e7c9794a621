"""The environment is pinned in one way everywhere, and the package starts light and on any build of torch."""

import ast
import resource
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What builds of torch other than the CPU's bring; torch itself says which versions.
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")


def direct_requirements() -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    requirements = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    del requirements["srlib"]  # extras that include each other
    return requirements


def constraints() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_conda_environment_installs_what_make_installs():
    """The conda file takes Python, pip and ffmpeg from conda, and all else as make does."""
    *conda, pip = environment()["dependencies"]
    assert environment()["channels"] == ["conda-forge"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip", "ffmpeg"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert "-c constraints.txt -e '.[dev]'" in (ROOT / "Makefile").read_text()


def test_dev_extra_holds_every_extra():
    """`.[dev]` is all there is to install."""
    extras = PROJECT["optional-dependencies"]
    (included,) = (Requirement(line).extras for line in extras["dev"] if Requirement(line).name == "srlib")
    assert included == extras.keys() - {"dev"}


@pytest.mark.parametrize("name", sorted(direct_requirements()))
def test_direct_dependency_is_pinned_within_its_range(name):
    assert constraints()[name] in direct_requirements()[name].specifier


def test_torch_pins_leave_the_build_open():
    """No local suffix such as +cpu, and no CUDA library: an index decides which build it offers."""
    assert "+" not in constraints()["torch"]
    assert not [name for name in constraints() if name.startswith(CUDA_PREFIXES)]


def test_indirect_dependencies_are_pinned_and_installed_as_pinned():
    """Walks what is installed from srlib[dev] on: every distribution is in constraints.txt, at that version."""
    pins, seen, queue = constraints(), {"srlib"}, list(direct_requirements().values())
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}{sorted(requirement.extras)}"
        if key in seen or name.startswith(CUDA_PREFIXES):
            continue
        seen.add(key)
        distribution = metadata.distribution(name)
        assert distribution.version.split("+")[0] == pins[name], name
        for line in distribution.requires or ():
            inner = Requirement(line)
            wanted = [{"extra": extra} for extra in (requirement.extras or {""})]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in wanted):
                queue.append(inner)


def test_python_range_is_stated_once():
    assert SpecifierSet(PROJECT["requires-python"]).contains(".".join(map(str, sys.version_info[:2])))


OURS = {"srlib", "__future__", "conftest"}


def test_every_import_is_a_direct_dependency():
    """Nothing works by luck of what another package brings along."""
    owners = metadata.packages_distributions()
    declared = direct_requirements()
    for path in [*sorted((ROOT / "srlib").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - OURS - sys.stdlib_module_names:
                assert {canonicalize_name(owner) for owner in owners[top]} & declared.keys(), f"{path.name}: {top}"


def run_python(code: str, **kwargs) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, **kwargs)
    return done.stdout.strip()


HEAVY = ("torch", "scipy", "librosa", "diffusers", "matplotlib", "pandas")


def test_import_and_help_load_nothing_heavy():
    code = f"""
import sys, srlib
from srlib.cli import main
for argv in (["--help"], ["restore", "--help"]):
    try:
        main(argv)
    except SystemExit as stop:
        assert stop.code == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert run_python(code).splitlines()[-1] == "[]"


def test_help_answers_within_a_second():
    """In seconds of the processor, which other work on the machine hardly changes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "srlib", "restore", "--help"], check=True, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_torchaudio_resamples_like_soxr():
    """Two independent resamplers agree on a tone in the pass band, away from the ends."""
    import soxr
    import torch

    from srlib.audio._torchaudio import torchaudio

    tone = np.sin(2 * np.pi * 1000 * np.arange(44_100) / 44_100).astype(np.float32)
    ours = torchaudio.functional.resample(torch.from_numpy(tone), 44_100, 48_000, lowpass_filter_width=64).numpy()
    truth = soxr.resample(tone, 44_100, 48_000, "VHQ")
    assert ours.shape == truth.shape
    assert np.abs(ours - truth)[2000:-2000].max() < 1e-4


def test_torchaudio_mel_filters_equal_librosas():
    import librosa

    from srlib.audio.stft import mel_filters

    truth = librosa.filters.mel(sr=48_000, n_fft=2048, n_mels=256, fmin=20.0, fmax=24_000.0)
    assert mel_filters().shape == truth.shape
    assert np.abs(mel_filters().numpy() - truth).max() < 1e-6


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
