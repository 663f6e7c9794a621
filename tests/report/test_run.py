"""The first cell of a notebook: where its artefacts go, and an end that compares them with its header."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from srlib.errors import SrlibError
from srlib.report import artifacts
from srlib.report.run import default_parameters, notebook_setup

FOLDER = Path(__file__).parents[2] / "notebooks"


def test_other_parameters_stay_out_of_the_report(tmp_path, monkeypatch, capsys):
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    monkeypatch.setattr(artifacts, "_explored", None)
    assert default_parameters("02_degradation")["cutoff_hz"] == 8000.0
    for cutoff_hz in (3000.0, 2000.0):  # as often as one likes in one kernel
        run = notebook_setup("02_degradation", {"profile": "smoke", "cutoff_hz": cutoff_hz})
        explored = tmp_path / "build" / "smoke" / "explore"
        assert f"explored {{'cutoff_hz': {cutoff_hz}}}: artefacts go to {explored}\n" in capsys.readouterr().out
        run.save_number("filter_f3db_min", 0.8)
        assert artifacts.place("number", "any", "smoke").is_relative_to(explored)
        assert artifacts.place("png", "any", "demo").is_relative_to(explored)
        assert artifacts.root() == tmp_path
    notebook_setup("02_degradation", {"profile": "smoke"})  # and back again
    assert not artifacts.place("number", "any", "smoke").is_relative_to(explored)


def test_a_notebook_ends_with_an_error_where_its_header_is_not_true(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
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
