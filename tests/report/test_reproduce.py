"""The chain: what runs, what is skipped and why, what is reported; and what the smoke profile leaves behind."""

import fnmatch
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from srlib.errors import SrlibError
from srlib.report import artifacts, reproduce

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SMOKE = "smoke"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The whole chain, run once with the notebooks of this checkout in an empty project folder."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(
        NOTEBOOKS.parent / "report",
        root / "report",
        ignore=lambda _, names: {*names} - {"player.html", "metadata.yaml"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLIB_ROOT", str(root))
        patch.delenv("SRLIB_PROFILE", raising=False)
        assert reproduce.reproduce(SMOKE) == []
        yield root


def listed(name: str) -> list[str]:
    """Files that a notebook's header lists as its outputs; `*` stands for any text."""
    header = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells[0].source
    return re.findall(r"/([\w*]+\.(?:png|svg|csv))`", header.split("| Outputs |")[1].splitlines()[0])


@pytest.mark.parametrize("name", reproduce.chain())
def test_a_notebook_makes_what_its_header_lists(smoke, name):
    made = [path.name for path, _ in artifacts.records(SMOKE, True, name) if not path.name.startswith("numbers_")]
    assert all(fnmatch.filter(made, pattern) for pattern in listed(name))
    assert [one for one in made if not any(fnmatch.fnmatch(one, pattern) for pattern in listed(name))] == []


def test_the_smoke_chain_writes_below_build_alone_and_runs_once(smoke, capsys):
    written = [path for path in smoke.glob("*/*") if path.suffix not in (".ipynb", ".html", ".yaml")]
    assert written == [smoke / "build" / SMOKE]
    reproduce.reproduce(SMOKE)
    assert capsys.readouterr().out.count("up to date") == len(reproduce.chain())


@pytest.mark.parametrize("one", reproduce.chain())
def test_a_notebook_repeats_its_committed_outputs(smoke, one):
    """Those that are marked for nbval; they do not depend on the profile."""
    committed, executed = (
        {cell.id: cell for cell in nbformat.read(folder / f"{one}.ipynb", as_version=4).cells if "outputs" in cell}
        for folder in (NOTEBOOKS, smoke / "build" / SMOKE / "notebooks")
    )
    assert all(cell.execution_count for cell in executed.values())
    for name, cell in committed.items():
        if cell.outputs:  # a busy machine splits a stream
            assert "".join(part.text for part in executed[name].outputs) == cell.outputs[0].text


# A small chain of two notebooks.
FIRST = """
import pandas as pd
from srlib import notebook_setup
run = notebook_setup("00_first", globals())
run.save_table(pd.DataFrame({"x": [value]}), "first")
"""
SECOND = FIRST.replace("00_first", "01_second").replace('"first"', '"second"')
PARAMETERS = "profile = None  # smoke, demo or paper\nseed = 0\nvalue = 1  # a number"


def write(root: Path, name: str, source: str) -> None:
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(source)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    write(tmp_path, "00_first", FIRST)
    write(tmp_path, "01_second", SECOND)
    return tmp_path


@pytest.fixture
def ran(capsys):
    """Runs the chain in the profile demo; gives the notebooks that ran, and the last line."""

    def run(**options) -> tuple[list[str], str]:
        reproduce.reproduce("demo", **options)
        lines = capsys.readouterr().out.splitlines()
        return [line.split()[0] for line in lines if " took " in line], lines[-1]

    return run


def test_failed_chain_continues_at_the_failed_notebook(small, ran, capsys):
    with pytest.raises(SrlibError, match="There is no single notebook '0'"):
        reproduce.reproduce("demo", only="0")
    write(small, "01_second", "1 / 0")
    with pytest.raises(SrlibError, match=r"01_second stopped at its cell 3 with ZeroDivisionError: .*01_second\.ipynb"):
        reproduce.reproduce("demo")
    capsys.readouterr()
    write(small, "01_second", SECOND)
    assert ran()[0] == ["01_second"] and ran()[0] == []


def test_what_changed_runs_again_and_the_verdict_says_what_moved(small, ran):
    assert reproduce.status("demo") == [(name, "stale", "never run") for name in ("00_first", "01_second")]
    assert ran() == (["00_first", "01_second"], "all notebooks, profile demo: differs in 2 of its artefacts")
    assert ran(start="01", force=True) == (["01_second"], "01_second, profile demo: reproduced")
    (small / "notebooks" / "01_second.ipynb").touch()  # a time is not a change
    assert [state for _, state, _ in reproduce.status("demo")] == ["fresh", "fresh"] and ran()[0] == []
    write(small, "01_second", SECOND.replace("[value]", "[value + 1]"))
    assert reproduce.status("demo")[1] == ("01_second", "stale", "notebooks/01_second.ipynb changed")
    write(small, "00_first", f'{FIRST}\n"systems"')  # the rows of other systems
    assert ran(only="00")[0] == ["00_first"]
    (small / "report/tables/systems.csv").write_text("x\n1\n")
    assert reproduce.status("demo")[0] == ("00_first", "stale", "systems.csv changed") and ran(only="00")[0]
    table, _ = artifacts.find("table", "second", "demo")
    assert ran(verify=True)[0] == ["01_second"] and table.read_text() == "x\n1\n"
    verdict = (small / "build/demo" / reproduce.VERDICT).read_text()
    assert verdict.startswith("report/tables/second.csv x moved by 0.5 (1 rows; 1 became 2)\n")
    assert ran() == ([], verdict.splitlines()[-1]) and table.read_text() == "x\n2\n"
    table.write_text("x\n9\n")
    assert "second.csv is not what its record describes" in reproduce.status("demo")[1][2]
    (small / "build/demo/tables/first.csv").unlink()
    assert ran()[0] == ["00_first"] and table.read_text() == "x\n2\n"


def test_kernels_compute_on_as_many_threads_whatever_the_host_says(small, monkeypatch):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "3")
    settings = f"[__import__('torch').get_num_threads(), *map(int, map(__import__('os').getenv, {names}))]"
    write(small, "00_first", FIRST.replace("[value]", settings))
    reproduce.reproduce(SMOKE, only="00")
    assert artifacts.read_csv(artifacts.find("table", "first", SMOKE)[0])["x"].tolist() == [2, 2, 2, 1]
    assert [os.environ[name] for name in names] == ["3"] * 3


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ('"""The style', '"""A style', False),
        ("STYLE: dict", "# a comment\nSTYLE: dict", False),
        ("FIGURE_DPI = ", "FIGURE_DPI = 1 + ", True),  # of `artifacts`, which `run` imports
        ('label="power, dB"', 'label="dB"', True),  # of a function that `triptych` calls
        ("return _with_legend(figure)", "return figure", False),  # of a function that it does not
    ],
)
def test_a_change_of_code_that_a_notebook_reaches_makes_it_stale(tmp_path, monkeypatch, old, new, stale):
    source = "from srlib import notebook_setup\nfrom srlib.report import plots\nplots.triptych(1, 2, 3)"
    package = shutil.copytree(reproduce._PACKAGE, tmp_path / "srlib", ignore=shutil.ignore_patterns("assets"))
    monkeypatch.setattr(reproduce, "_PACKAGE", package)
    before = reproduce.reached(source)
    names = {path.relative_to(package).as_posix() for path in before}
    assert {"report/run.py", "report/plots.py", "config.py"} <= names and "report/pdf.py" not in names
    assert "measure/systems.py" not in names  # it asks for no model
    assert package / "measure/systems.py" in reproduce.reached(f"{source}\nrun.pipeline()")
    (path,) = (path for path in before if old in path.read_text(encoding="utf-8"))
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert (reproduce.reached(source) != before) == stale
