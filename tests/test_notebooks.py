"""Notebooks: one anatomy, no logic, clean in git, runnable from top to bottom, with the outputs committed."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from srlib.report.reproduce import chain
from srlib.report.run import outputs

FOLDER = Path(__file__).parents[1] / "notebooks"
IDS = chain()
HEADER_ROWS = ["Inputs", "Outputs", "Runtime", "Depends on", "Report"]
FORBIDDEN_MODULES = {"os", "sys", "pathlib", "shutil", "subprocess", "matplotlib", "json"}


def read(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(name: str) -> list:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def test_no_two_notebooks_make_the_same():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == IDS
    names = [output for name in IDS for output in outputs(name)]
    assert len(names) == len(set(names)) > len(IDS)


@pytest.mark.parametrize("name", IDS)
def test_header_asks_a_question_and_names_what_is_made(name):
    header = read(name).cells[0].source
    assert header.startswith("# ") and "**Question.** " in header
    rows = [line.split("|")[1].strip() for line in header.splitlines() if line.startswith("| ") and line != "| | |"]
    assert rows == HEADER_ROWS
    assert outputs(name)


@pytest.mark.parametrize("name", IDS)
def test_parameters_are_commented_literals(name):
    cell = code_cells(name)[0]
    assert tags(cell) == ["parameters"]
    assert [line.split(" = ")[0] for line in cell.source.splitlines()][:2] == ["profile", "seed"]
    lines = cell.source.splitlines()
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        assert "  # " in lines[statement.lineno - 1], "a comment says what each parameter is"
        ast.literal_eval(statement.value)


@pytest.mark.parametrize("name", IDS)
def test_one_setup_cell_and_a_last_cell_that_checks(name):
    cells = code_cells(name)
    assert cells[1].source == f'from srlib import notebook_setup\n\nrun = notebook_setup("{name}", globals())'
    assert cells[-1].source == "run.done()"
    assert [cell for cell in cells if "parameters" in tags(cell)] == cells[:1]


@pytest.mark.parametrize("name", IDS)
def test_no_functions_and_not_too_long(name):
    cells = code_cells(name)
    assert len(cells) <= 15 and max(len(cell.source.splitlines()) for cell in cells) <= 40
    forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Try, ast.While)
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):  # a magic or a shell line does not parse
            assert not isinstance(node, forbidden), f"{type(node).__name__} in cell {cell.id}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not FORBIDDEN_MODULES & {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("name", IDS)
def test_clean_in_git(name):
    notebook = read(name)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids)) and all(id.replace("-", "").isalnum() and not id.isdigit() for id in ids)
    for number, cell in enumerate(code_cells(name), 1):
        checked = cell.source.startswith("# NBVAL_CHECK_OUTPUT\n")
        assert cell.execution_count == (number if checked else None)
        assert [output.output_type for output in cell.outputs] == (["stream"] if checked else [])
        assert ("keep_output" in tags(cell)) == checked


def test_some_outputs_are_compared():
    assert sum(bool(cell.outputs) for name in IDS for cell in code_cells(name)) >= len(IDS)


def test_notebooks_run_and_repeat_their_committed_outputs(tmp_path):
    """nbval, on the smoke profile, as a user who has never run the chain: no notebook needs another one's artefacts."""
    folder = shutil.copytree(FOLDER, tmp_path / "notebooks")
    settings = {"SRLIB_PROFILE": "smoke", "SRLIB_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "--color=no", "-p", "no:cacheprovider"]
    paths = [str(folder / f"{name}.ipynb") for name in IDS]
    halves = [
        subprocess.Popen([*command, *half], env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for half in (paths[::2], paths[1::2])
    ]
    for half in halves:
        output = half.communicate()[0].decode()
        assert half.returncode == 0, output[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "notebooks"]
