"""Notebooks: one anatomy, no logic, clean in git, runnable from top to bottom, with the outputs committed."""

import ast
import fnmatch
from pathlib import Path

import nbformat
import pytest

from srlib.report import pdf
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


def test_no_two_notebooks_make_the_same_and_the_report_uses_only_what_they_make():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == IDS
    names = [output for name in IDS for output in outputs(name)]
    assert len(names) == len(set(names)) > len(IDS)
    text = (FOLDER.parent / "report" / "report.md").read_text(encoding="utf-8")
    used = {f"{name}.csv" for _, name, _ in pdf.TABLE.findall(text)}
    used |= {f"{name}.csv" for name, *_ in pdf.CELL.findall(text)} | set(pdf.FIGURE.findall(text))
    listed = [*names, *(Path(name).stem for name in names)]
    assert not [one for one in used if not any(fnmatch.fnmatch(one, pattern) for pattern in listed)]


@pytest.mark.parametrize("name", IDS)
def test_anatomy(name):
    """A header with a question, commented literals as parameters, one setup cell, and a last cell that checks."""
    header, cells = read(name).cells[0].source, code_cells(name)
    assert header.startswith("# ") and "**Question.** " in header and outputs(name)
    rows = [line.split("|")[1].strip() for line in header.splitlines() if line.startswith("| ") and line != "| | |"]
    assert rows == HEADER_ROWS
    assert [cell for cell in cells if "parameters" in tags(cell)] == cells[:1]
    lines = cells[0].source.splitlines()
    assert [line.split(" = ")[0] for line in lines][:2] == ["profile", "seed"]
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign)
        assert "  # " in lines[statement.lineno - 1], "a comment says what each parameter is"
        ast.literal_eval(statement.value)
    assert cells[1].source == f'from srlib import notebook_setup\n\nrun = notebook_setup("{name}", globals())'
    assert cells[-1].source == "run.done()"


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
    notebook, compared = read(name), 0
    assert notebook.metadata.kernelspec.name == "python3" and set(notebook.metadata) == {"kernelspec", "language_info"}
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids)) and all(id.replace("-", "").isalnum() and not id.isdigit() for id in ids)
    for number, cell in enumerate(code_cells(name), 1):
        checked = cell.source.startswith("# NBVAL_CHECK_OUTPUT\n")
        assert cell.execution_count == (number if checked else None)
        assert [output.output_type for output in cell.outputs] == (["stream"] if checked else [])
        assert ("keep_output" in tags(cell)) == checked
        compared += checked
    assert compared
