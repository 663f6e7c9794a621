"""The chain of notebooks over papermill: which of them must run again, and why.

A notebook is skipped when nothing that could change its result has changed (its cells, the profile, the modules that
it reaches, and the weights and demo music if one of these modules opens them) and what it made is still there,
unedited. None reads what another makes. Times of files play no part. After a failure the next call therefore continues
at the failed notebook.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from srlib import config
from srlib.audio.files import write_text
from srlib.errors import SrlibError
from srlib.report import artifacts

# Sums in float32 depend on how they are shared out, and so do the digits of a table: whatever the host has or says,
# torch computes on two threads, and OpenBLAS, which never starts more threads than there are cores, on one.
_THREADS = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
_PACKAGE = Path(__file__).parents[1]
# Of these, functions count only where a notebook names them: one offers every public name, the other data and models.
_ON_DEMAND = ("__init__.py", "report/run.py")


class Status(NamedTuple):
    """Whether a notebook's results are up to date: "fresh", "stale" or "never run", and why they are stale."""

    notebook: str
    state: str
    reason: str = ""


def chain() -> list[str]:
    """File names without suffix of all numbered notebooks, in order."""
    return sorted(path.stem for path in (artifacts.root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def notebook(name: str) -> str:
    """The notebook called `name`: its file name without suffix, or its number or any prefix that only one has."""
    found = [one for one in chain() if one.startswith(name)] if name else []
    if len(found) != 1:
        raise SrlibError(f"There is no single notebook {name!r}: choose one of {', '.join(chain())}.")
    return found[0]


def reproduce(
    profile: str | None = None, start: str | None = None, only: str | None = None, force: bool = False
) -> dict[str, float | None]:
    """Run the chain where it is not up to date; returns {notebook: seconds, or None if skipped}.

    Args:
        start: begin at this notebook ("05" is enough); those before it are left as they are.
        only: run this notebook alone.
        force: run even what is up to date.
    """
    name = config.profile(profile).name
    names = [notebook(only)] if only else chain()[chain().index(notebook(start)) if start else 0 :]
    seconds: dict[str, float | None] = {}
    for one in names:
        fresh = not force and _status(one, name).state == "fresh"
        took = seconds[one] = None if fresh else _run(one, name)
        print(f"{one:<22} {'up to date' if took is None else f'{took:7.1f} s'}", flush=True)
    print(f"{'total':<22} {sum(took or 0.0 for took in seconds.values()):7.1f} s", flush=True)
    return seconds


def status(profile: str | None = None) -> list[Status]:
    """For each notebook whether its results are fresh or stale, and why, or whether it was never run."""
    return [_status(one, config.profile(profile).name) for one in chain()]


def _status(one: str, profile: str) -> Status:
    state_file = _state_file(one, profile)
    if not state_file.is_file():
        return Status(one, "never run")
    before = json.loads(state_file.read_text(encoding="utf-8"))
    now = _inputs(one, profile)
    changed = [f"{name} changed" for name in _different(before.get("inputs", {}), now)]
    try:
        made = artifacts.fingerprint(one, profile)
        changed += [f"{name} is not as it was made" for name in _different(before["outputs"], made)]
    except SrlibError as error:  # an artefact was deleted
        changed.append(str(error))
    return Status(one, "stale" if changed else "fresh", "; ".join(changed))


def _different(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def _run(one: str, profile: str) -> float:
    state_file = _state_file(one, profile)
    state_file.parent.mkdir(parents=True, exist_ok=True)
    state_file.unlink(missing_ok=True)
    artifacts.forget(one, profile)
    inputs, start = _inputs(one, profile), time.perf_counter()
    _execute(one, state_file.with_name(f"{one}.ipynb"), profile)
    took = time.perf_counter() - start
    state = {"seconds": round(took, 2), "outputs": artifacts.fingerprint(one, profile), "inputs": inputs}
    write_text(state_file, json.dumps(state, indent=1) + "\n")
    return took


def _state_file(one: str, profile: str) -> Path:
    return artifacts.build_dir(profile) / "notebooks" / f"{one}.state.json"


def _execute(one: str, output: Path, profile: str) -> None:
    import papermill

    options = {"kernel_name": "python3", "progress_bar": False, "request_save_on_cell_execute": True}
    options |= {"cwd": str(artifacts.root()), "extra_arguments": ["--IPKernelApp.log_level=50"]}
    try:
        with _environment():
            papermill.execute_notebook(artifacts.notebook_file(one), output, {"profile": profile}, **options)
    except papermill.PapermillExecutionError as error:
        raise SrlibError(
            f"Notebook {one} stopped at its cell {error.exec_count} with {error.ename}: {error.evalue} "
            f"(executed copy: {output}). The next run of the chain continues there."
        ) from error


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What kernels inherit: that the chain runs them, their threads, and how these wait."""
    before = os.environ.copy()
    passive = {"OMP_WAIT_POLICY": before.get("OMP_WAIT_POLICY", "passive")}  # they sleep: others need the cores
    ours = {artifacts.IN_CHAIN: "1"} | _THREADS | passive
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


# ---------------------------------------------------------------------------------------------- what a result needs


def _inputs(one: str, profile: str) -> dict[str, str]:
    """Everything that the notebook's result depends on: {file, or name of a setting: its hash, or its value}."""
    cells = json.loads(artifacts.notebook_file(one).read_text(encoding="utf-8"))["cells"]
    source = json.dumps([(cell["cell_type"], "".join(cell["source"])) for cell in cells])
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    modules = reached("\n".join(line for line in code if not line.startswith(("%", "!"))))  # no magics
    inputs = {f"notebooks/{one}.ipynb": hashlib.sha256(source.encode()).hexdigest()}
    for path in (*modules, *_assets(modules)):
        inputs[f"srlib/{path.relative_to(_PACKAGE).as_posix()}"] = _hash(path, path.stat().st_mtime_ns)
    if config.profile(profile).dataset == "musdb":
        inputs["MUSDB_ROOT"] = os.environ.get("MUSDB_ROOT", "")
    return inputs


def reached(source: str) -> list[Path]:
    """Modules of the package that a notebook's code imports, also by way of others and inside functions, sorted."""
    tree = ast.parse(source)
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    waiting, found = _imports(tree), set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            on_demand = path.relative_to(_PACKAGE).as_posix() in _ON_DEMAND
            waiting |= _imports(_parsed(path), named if on_demand else None)
    return sorted(found)


def _imports(tree: ast.Module, named: Iterable[str] | None = None) -> set[Path]:
    """Modules of the package that a source imports, but for its type checker.

    Args:
        named: the functions whose imports count; None counts all.
    """
    found: set[Path] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {path for alias in node.names for path in _files(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {path for alias in node.names for path in _files(f"{node.module}.{alias.name}")}
        skipped = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        skipped |= named is not None and isinstance(node, ast.FunctionDef) and node.name not in named
        waiting += [] if skipped else ast.iter_child_nodes(node)
    return found


def _files(name: str) -> set[Path]:
    """Files that the import of a dotted name runs: packages on the way, and the module; none outside the package.

    A name that `srlib` itself offers on demand leads to the module that its `__init__.py` says.
    """
    first, *parts = name.split(".")
    if first != _PACKAGE.name:
        return set()
    found, folder = {_PACKAGE / "__init__.py"}, _PACKAGE
    for part in parts:
        if (folder / f"{part}.py").is_file():
            return found | {folder / f"{part}.py"}
        if not (folder / part).is_dir():
            return found | (_offered(part) if folder == _PACKAGE else set())
        folder /= part
        found.add(folder / "__init__.py")
    return found


def _offered(name: str) -> set[Path]:
    """Files behind a name that the package itself offers on demand: its `__init__.py` imports it, or maps it in a dict.

    All modules that the source mentions, where it does neither.
    """
    every: set[str] = set()
    for node in ast.walk(_parsed(_PACKAGE / "__init__.py")):
        pairs = []
        if isinstance(node, ast.ImportFrom):
            pairs = [(alias.name, node.module) for alias in node.names]
        elif isinstance(node, ast.Dict):
            pairs = [
                (getattr(k, "value", ""), getattr(v, "value", "")) for k, v in zip(node.keys, node.values, strict=True)
            ]
        found = {str(module) for key, module in pairs if key == name}
        if found:
            return set().union(*map(_files, found))
        every |= {str(module) for _, module in pairs}
    return set().union(*map(_files, every))


def _assets(modules: Iterable[Path]) -> list[Path]:
    """Files of the folders of assets/ that a module names, or of all if it names none, without text about them."""
    folders = {path.name for path in (_PACKAGE / "assets").iterdir()}
    opened: set[str] = set()
    for module in modules:
        texts = [str(node.value) for node in ast.walk(_parsed(module)) if isinstance(node, ast.Constant)]
        words = {word for text in texts for word in text.split("/")}
        opened |= (folders & words or folders) if "assets" in words else set()
    files = [path for folder in opened for path in (_PACKAGE / "assets" / folder).rglob("*")]
    return sorted(path for path in files if path.is_file() and path.suffix != ".md")


def _parsed(path: Path) -> ast.Module:
    return _parse(path, path.stat().st_mtime_ns)


@functools.cache
def _parse(path: Path, _time: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _hash(path: Path, _time: int) -> str:
    return artifacts.sha256(path)
