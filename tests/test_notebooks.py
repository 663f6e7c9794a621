"""Notebooks: one anatomy, no logic, clean in git, with the compared outputs alone."""

import ast
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_output

FOLDER = Path(__file__).parents[1] / "notebooks"
HOOKS = FOLDER.parent / ".pre-commit-config.yaml"
HEADER_ROWS = ["Inputs", "Outputs", "Runtime", "Depends on", "Report"]
FORBIDDEN_MODULES = {"os", "sys", "pathlib", "shutil", "subprocess", "matplotlib", "json"}
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Try, ast.While)


@pytest.fixture(params=sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def notebook(request) -> nbformat.NotebookNode:
    read = nbformat.read(request.param, as_version=4)
    nbformat.validate(read)
    read.name, read.code = request.param.stem, [cell for cell in read.cells if cell.cell_type == "code"]
    return read


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def test_anatomy(notebook):
    """A header with a question, commented literals as parameters, one setup cell, and a last cell that lists."""
    header, cells = notebook.cells[0].source, notebook.code
    assert header.startswith("# ") and "**Question.** " in header
    rows = [line.split("|")[1].strip() for line in header.splitlines() if line.startswith("| ") and line != "| | |"]
    assert rows == HEADER_ROWS
    assert [cell for cell in cells if "parameters" in tags(cell)] == cells[:1]
    lines = cells[0].source.splitlines()
    assert [line.split(" = ")[0] for line in lines][:2] == ["profile", "seed"]
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign)
        assert "  # " in lines[statement.lineno - 1], "a comment says what each parameter is"
        ast.literal_eval(statement.value)
    assert cells[1].source == f'from srlib import notebook_setup\n\nrun = notebook_setup("{notebook.name}", globals())'
    assert cells[-1].source == "run.done()"


def test_no_functions_and_not_too_long(notebook):
    assert len(notebook.code) <= 16 and max(len(cell.source.splitlines()) for cell in notebook.code) <= 40
    for cell in notebook.code:
        for node in ast.walk(ast.parse(cell.source)):  # a magic or a shell line does not parse
            assert not isinstance(node, LOGIC), f"{type(node).__name__} in cell {cell.id}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not FORBIDDEN_MODULES & {module.split(".")[0] for module in modules}


def test_clean_in_git(notebook):
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata) == {"kernelspec", "language_info"}
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids)) and all(id.replace("-", "").isalnum() and not id.isdigit() for id in ids)
    compared = {cell.id for cell in notebook.code if cell.source.startswith("# NBVAL_CHECK_OUTPUT\n")}
    assert compared
    for cell in notebook.code:
        checked = cell.id in compared
        assert cell.execution_count is None
        assert [output.output_type for output in cell.outputs] == (["stream"] if checked else [])
        assert ("keep_output" in tags(cell)) == checked


def test_the_hook_of_git_strips_a_run(tmp_path):
    (hook,) = (one for one in yaml.safe_load(HOOKS.read_text())["repos"][0]["hooks"] if one["id"] == "nbstripout")
    source, run = FOLDER / "00_overview.ipynb", tmp_path / "run.ipynb"
    notebook = nbformat.read(source, as_version=4)
    for cell in (one for one in notebook.cells if one.cell_type == "code"):
        cell.execution_count, cell.outputs = 1, cell.outputs or [new_output("stream", text="seen")]
    nbformat.write(notebook, run)
    subprocess.run([*hook["entry"].split(), run], check=True)
    assert nbformat.read(run, as_version=4) == nbformat.read(source, as_version=4)
