"""The environment is pinned in one way everywhere, and the package starts light."""

import ast
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import soundfile
import yaml
from packaging.requirements import Requirement
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


def test_conda_environment_installs_what_make_installs():
    """The conda file takes Python, pip, ffmpeg and a compiler from conda, and all else as make does."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["channels"] == ["conda-forge"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip", "ffmpeg", "cxx-compiler"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert "-c constraints.txt -e '.[dev]'" in (ROOT / "Makefile").read_text()


def test_dev_extra_holds_every_extra():
    """`.[dev]` is all there is to install."""
    extras = PROJECT["optional-dependencies"]
    (included,) = (Requirement(line).extras for line in extras["dev"] if Requirement(line).name == "srlib")
    assert included == extras.keys() - {"dev"}


def installed(requirements: list[Requirement]) -> dict[str, str]:
    """Versions of the distributions that requirements bring along, and of those that these bring."""
    versions, seen, queue = {}, {"srlib"}, list(requirements)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}{sorted(requirement.extras)}"
        if key in seen or name.startswith(CUDA_PREFIXES):
            continue
        seen.add(key)
        distribution = metadata.distribution(name)
        versions[name] = distribution.version.split("+")[0]
        for line in distribution.requires or ():
            inner = Requirement(line)
            wanted = [{"extra": extra} for extra in (requirement.extras or {""})]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in wanted):
                queue.append(inner)
    return versions


def test_all_dependencies_are_pinned_and_installed_as_pinned():
    """The direct ones within their range; without a local suffix such as +cpu: an index decides on the build."""
    pins, direct = constraints(), direct_requirements()
    assert all(pins[name] in requirement.specifier for name, requirement in direct.items())
    for name, version in installed(list(direct.values())).items():
        assert version == pins[name], name
    assert not [name for name, version in pins.items() if name.startswith(CUDA_PREFIXES) or "+" in version]


# A program in which the modules of its first argument, a list with commas, seem not to be installed.
WITHOUT = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Visible(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)

hidden = set(sys.argv.pop(1).split(","))
sys.meta_path[:] = BuiltinImporter, FrozenImporter, Visible
import srlib.cli
print(srlib.__file__)
sys.exit(srlib.cli.main())
"""


def test_a_wheel_restores_with_the_base_dependencies_alone(tmp_path):
    """What goes into a wheel lies in an empty folder; all packages of the extras are hidden."""
    setup = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "egg_info", "--egg-base", tmp_path]
    build = ["build", "--build-base", tmp_path / "build", "--build-lib", tmp_path / "wheel"]
    subprocess.run([*setup, *build], check=True, capture_output=True, cwd=ROOT)
    base = installed([Requirement(line) for line in PROJECT["dependencies"]])
    owners = {top: set(map(canonicalize_name, found)) for top, found in metadata.packages_distributions().items()}
    hidden = {top for top, found in owners.items() if not found & (base.keys() | {"srlib"})}
    assert {"librosa", "pandas", "matplotlib", "musdb", "accelerate"} <= hidden
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone / 2], axis=1), 22_050)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, ",".join(hidden), "restore", "a.wav", "-o", "new/b.flac", "--steps", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "wheel")},
    )
    assert done.returncode == 0, done.stderr
    place, line = done.stdout.splitlines()
    assert place == str(tmp_path / "wheel" / "srlib" / "__init__.py") and line.startswith("new/b.flac: ")
    restored, sample_rate = soundfile.read(tmp_path / "new" / "b.flac")
    assert (restored.shape, sample_rate) == ((48_000, 2), 48_000) and 0.05 < np.abs(restored).max() < 0.2


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
print(srlib.degrade.sample.__module__, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-2:] == ["[]", "srlib.degrade False"]
