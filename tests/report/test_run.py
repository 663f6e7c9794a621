"""The first cell of a notebook: its parameters, and where its artefacts go."""

import shutil
from pathlib import Path

import pytest

from srlib.errors import SrlibError
from srlib.report import artifacts
from srlib.report.run import IN_CHAIN, notebook_setup

FOLDER = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("chain", "folder"), [("1", "demo"), (None, "explore")])
def test_an_exploration_stays_out_of_the_report(project, monkeypatch, capsys, chain, folder):
    monkeypatch.setenv(IN_CHAIN, chain) if chain else monkeypatch.delenv(IN_CHAIN, raising=False)
    run = notebook_setup("02_degradation", {"profile": "demo"})
    run.save_number("lowest", 0.8, fmt=".2f")
    run.save_number("tracks", 3, "s", "d")
    table = artifacts.read_csv(project / "build" / folder / "tables" / "numbers_02_degradation.csv").fillna("")
    assert table[["text", "unit"]].to_numpy().tolist() == [["0.80", ""], ["3", "s"]]
    assert run.scratch("x").is_relative_to(project / "build" / folder)
    assert ("explored" in capsys.readouterr().out) == (chain is None)
    assert sorted(path.name for path in project.iterdir()) == ["build", "notebooks"]
    with pytest.raises(SrlibError, match="not finite"):
        run.save_number("lsd", float("nan"))


def test_a_misspelt_parameter_is_an_error(project):
    typed = {"In": ["", "profile = None", '# Parameters\nprofile = "smoke"\ncutof_hz = 3000.0\n']}
    with pytest.raises(SrlibError, match=r"02_degradation has no parameter cutof_hz: it has profile, .*cutoff_hz"):
        notebook_setup("02_degradation", typed | {"profile": "smoke"})


def test_root_is_found_from_the_notebooks_folder(monkeypatch):
    monkeypatch.delenv("SRLIB_ROOT", raising=False)
    monkeypatch.chdir(FOLDER)
    assert artifacts.root() == FOLDER.parent
