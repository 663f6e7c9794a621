"""The chain of notebooks over papermill: which are stale and why, and whether their results are reproduced.

A notebook is skipped if the inputs of its result (its cells, the code that it reaches, the shipped weights and music)
are unchanged and its artefacts exist, unedited. No notebook reads artefacts of another. File times do not count. After
a failure the next call continues at the failed notebook.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from unittest import mock

import srlib
from srlib import config
from srlib.audio.files import write_text
from srlib.errors import SrlibError
from srlib.report import artifacts
from srlib.report.run import IN_CHAIN

# Sums in float32, and so the digits of a table, depend on the number of threads. On every host torch gets two threads,
# and OpenBLAS, which never starts more threads than cores, one. Waiting threads sleep, because others need the cores.
_ENVIRONMENT = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "passive", IN_CHAIN: "1"}  # fmt: skip
_PACKAGE = Path(__file__).parents[1]
# Modules that all notebooks import: of their public functions only those count that a notebook names.
_ON_DEMAND = ("report/run.py", "report/plots.py")
VERDICT = "verdict.txt"  # in the build folder of the profile


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
    profile: str | None = None,
    start: str | None = None,
    only: str | None = None,
    force: bool = False,
    verify: bool = False,
) -> list[str]:
    """Run the stale notebooks of the chain, and compare the results with the committed ones.

    Returns a sentence for each difference beyond the tolerances of `artifacts`.

    Args:
        start: begin at this notebook ("05" is enough); those before it are left as they are.
        only: run this notebook alone.
        force: run notebooks that are up to date, too.
        verify: compare only; otherwise artefacts that differ are rewritten.
    """
    if start and only:
        raise SrlibError("--from and --only exclude each other: give one of them.")
    name = config.profile(profile).name
    names = [notebook(only)] if only else chain()[chain().index(notebook(start)) if start else 0 :]
    waiting = {one: _expected(one, name) for one in names if force or _reasons(one, name)}
    differences = []
    for one in names:
        if one in waiting:
            left, begin = timedelta(seconds=sum(waiting.values())), datetime.now()
            print(f"{one:<22} about {timedelta(seconds=waiting.pop(one))} of {left} left", flush=True)
            _run(one, name)
            print(f"{one:<22} took {str(datetime.now() - begin)[:7]}", flush=True)
        else:
            print(f"{one:<22} up to date", flush=True)
        differences += artifacts.publish(one, name, rewrite=not verify)
    if name != artifacts.DRAFT_PROFILE:
        lines = [*differences, f"differs in {len(differences)} of its artefacts"] if differences else ["reproduced"]
        verdict = f"{', '.join(names) if names != chain() else 'all notebooks'}, profile {name}: {lines.pop()}"
        write_text(artifacts.build_dir(name) / VERDICT, "\n".join([*lines, verdict, ""]))
        print(*lines, verdict, sep="\n", flush=True)
    return differences


def status(profile: str | None = None) -> list[tuple[str, str, str]]:
    """Name of each notebook, "fresh" or "stale", and the reasons."""
    name, found = config.profile(profile).name, []
    for one in chain():
        reasons = _reasons(one, name)
        if reasons != ["never run"]:
            reasons += artifacts.publish(one, name, rewrite=False)
        found.append((one, "stale" if reasons else "fresh", "; ".join(reasons)))
    return found


def _reasons(one: str, profile: str) -> list[str]:
    """Why a notebook has to run: changes of its inputs and artefacts since its last run."""
    file = _state_file(one, profile)
    if not file.is_file():
        return ["never run"]
    then, now = json.loads(file.read_text(encoding="utf-8")), _inputs(one, profile) | _made(one, profile)
    return [f"{name} changed" for name in sorted({*now, *then}) if now.get(name) != then.get(name)]


def _state_file(one: str, profile: str) -> Path:
    return artifacts.build_dir(profile) / "notebooks" / f"{one}.state.json"


def _made(one: str, profile: str) -> dict[str, str]:
    """{file name: SHA-256} of the artefacts of a notebook's last run that still exist."""
    paths = [path for path, _ in artifacts.records(profile, True, one)]
    return {path.name: artifacts.sha256(path) for path in paths if path.is_file()}


def _expected(one: str, profile: str) -> int:
    """Seconds that the notebook's header states for a profile, else a minute."""
    header = artifacts.notebook_file(one).read_text(encoding="utf-8")
    found = re.search(rf"\| Runtime \|[^|]*\b{profile} (\d+) (s|min)\b", header)
    return int(found[1]) * (60 if found[2] == "min" else 1) if found else 60


def _run(one: str, profile: str) -> None:
    """Run a notebook, and write the hashes of its inputs and artefacts."""
    import papermill

    state_file, inputs = _state_file(one, profile), _inputs(one, profile)
    state_file.parent.mkdir(parents=True, exist_ok=True)
    state_file.unlink(missing_ok=True)
    for path, _ in list(artifacts.records(profile, True, one)):  # it may no longer make all of them
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink()
    output = state_file.with_name(f"{one}.ipynb")
    options = {"kernel_name": "python3", "cwd": str(artifacts.root()), "progress_bar": sys.stderr.isatty(),
               "request_save_on_cell_execute": True, "extra_arguments": ["--IPKernelApp.log_level=50"]}  # fmt: skip
    try:
        with mock.patch.dict(os.environ, _ENVIRONMENT):
            papermill.execute_notebook(artifacts.notebook_file(one), output, {"profile": profile}, **options)
    except papermill.PapermillExecutionError as error:
        raise SrlibError(
            f"Notebook {one} stopped at its cell {error.exec_count} with {error.ename}: {error.evalue} "
            f"(executed copy: {output}). The next run of the chain continues there."
        ) from error
    write_text(state_file, json.dumps(inputs | _made(one, profile), indent=1) + "\n")


def _inputs(one: str, profile: str) -> dict[str, str]:
    """{file, folder or setting: its hash, or its value} of all that the notebook's result depends on."""
    cells = json.loads(artifacts.notebook_file(one).read_text(encoding="utf-8"))["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    code = "\n".join(source for kind, source in sources if kind == "code")
    found = {f"notebooks/{one}.ipynb": hashlib.sha256(repr(sources).encode()).hexdigest()}
    found |= {f"srlib/{path.relative_to(_PACKAGE).as_posix()}": digest for path, digest in reached(code).items()}
    found |= _assets() | {"labels": hashlib.sha256(repr(artifacts.labels()).encode()).hexdigest()}
    rows = artifacts.root() / "report/tables/systems.csv"  # by `srlib evaluate-system`
    if f'"{rows.stem}"' in code and rows.is_file():
        found[rows.name] = artifacts.sha256(rows)
    if config.profile(profile).dataset == "musdb":
        found["MUSDB_ROOT"] = os.environ.get("MUSDB_ROOT", "")
    return found


@cache
def _assets() -> dict[str, str]:
    """{folder of weights or music: its hash}."""
    found = {}
    for folder in (_PACKAGE / "assets").iterdir():
        digests = [artifacts.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        found[f"srlib/assets/{folder.name}"] = hashlib.sha256("".join(digests).encode()).hexdigest()
    return found


def reached(source: str) -> dict[Path, str]:
    """Modules of the package that code imports, also indirectly and inside functions, and a hash of each.

    The hash excludes comments and docstrings, which change no result.
    """
    notebook = ast.parse(source)
    waiting, found = set(imports(notebook)), {}
    while waiting:
        path = waiting.pop()
        if path not in found:
            tree = _Bare().visit(ast.parse(path.read_text(encoding="utf-8")))
            if path.relative_to(_PACKAGE).as_posix() in _ON_DEMAND:
                _drop_unused(tree, _names(notebook))
            found[path] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
            waiting |= set(imports(tree))
    return dict(sorted(found.items()))


def _names(tree: ast.AST) -> set[str]:
    """Names and attributes that occur in a source."""
    return {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree)}


def _drop_unused(tree: ast.Module, named: set[str]) -> None:
    """Remove public functions and methods that are neither in `named` nor used by the remaining code of the module."""
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)):
        public = {one.name: one for one in owner.body if isinstance(one, ast.FunctionDef) and one.name[0] != "_"}
        owner.body = [one for one in owner.body if one not in public.values()]
        while used := public.keys() & (named | _names(owner)):
            owner.body += [public.pop(name) for name in sorted(used)]


def imports(tree: ast.AST) -> Iterator[Path]:
    """Files of the package that a source imports; a lazy name of `srlib` leads to its module."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            lazy = srlib._PUBLIC if node.module == "srlib" else {}
            names |= {lazy.get(alias.name, f"{node.module}.{alias.name}") for alias in node.names} | {str(node.module)}
    for name in names:
        path = _PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
        if name.startswith("srlib.") and path.is_file():
            yield path


class _Bare(ast.NodeTransformer):
    """Drops docstrings and imports for type checkers."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if getattr(node.test, "id", "") == "TYPE_CHECKING" else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)
