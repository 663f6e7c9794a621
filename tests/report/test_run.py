"""The first cell of a notebook: where its artefacts go, and an end that compares them with its header."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from srlib.errors import SrlibError
from srlib.report import artifacts
from srlib.report.run import IN_CHAIN, default_parameters, notebook_setup

FOLDER = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("chain", [True, False])
def test_an_exploration_stays_out_of_the_report(project, monkeypatch, capsys, chain):
    monkeypatch.setenv(IN_CHAIN, "1") if chain else monkeypatch.delenv(IN_CHAIN, raising=False)
    run = notebook_setup("02_degradation", {"profile": "demo", "cutoff_hz": 3000.0})
    assert default_parameters("02_degradation")["cutoff_hz"] == 8000.0 != run.parameters["cutoff_hz"]
    run.save_number("lowest", 0.8, fmt=".2f")
    run.save_number("tracks", 3, "s", "d")
    folder = project / "build" / ("demo" if chain else "explore")
    assert (folder / "tables" / "numbers_02_degradation.csv").is_file() and run.scratch("x").is_relative_to(folder)
    assert ("explored" in capsys.readouterr().out) != chain
    assert sorted(path.name for path in project.iterdir()) == ["build", "notebooks"]
    artifacts.publish("02_degradation", "demo")
    if chain:
        number = artifacts.read_number("lowest", "demo")
        assert (number["text"], number["unit"], number["notebook"]) == ("0.80", "", "02_degradation")
    with pytest.raises(SrlibError, match="not finite"):
        run.save_number("lsd", float("nan"))


def test_a_misspelt_parameter_is_an_error(project):
    typed = {"In": ["", "profile = None", '# Parameters\nprofile = "smoke"\ncutof_hz = 3000.0\n']}
    with pytest.raises(SrlibError, match=r"02_degradation has no parameter cutof_hz: it has profile, .*cutoff_hz"):
        notebook_setup("02_degradation", typed | {"profile": "smoke"})


def test_a_notebook_ends_with_an_error_where_its_header_is_not_true(project):
    run = notebook_setup("01_data", {"profile": "smoke"})
    run.save_number("anything", 1.0)
    run.save_figure(Figure(), "data_bandwidth")
    with pytest.raises(SrlibError, match=r"01_data lists data_split\.csv, data_tracks\.csv but did not save it"):
        run.done()
    for name in ("data_split", "data_tracks", "new"):
        run.save_table(pd.DataFrame({"x": [1]}), name)
    with pytest.raises(SrlibError, match=r"01_data saves new\.csv unlisted: mend the line Outputs of its header"):
        run.done()


def test_root_is_found_from_the_notebooks_folder(monkeypatch):
    monkeypatch.delenv("SRLIB_ROOT", raising=False)
    monkeypatch.chdir(FOLDER)
    assert artifacts.root() == FOLDER.parent
