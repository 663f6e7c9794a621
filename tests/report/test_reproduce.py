"""The chain: what runs, what is skipped and why, what is reported; and what the smoke profile leaves behind."""

import fnmatch
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from srlib.config import PROFILES
from srlib.errors import SrlibError
from srlib.report import artifacts, reproduce
from srlib.report.run import outputs

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SMOKE = "smoke"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The whole chain, run once with the notebooks of this checkout in an empty project folder."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLIB_ROOT", str(root))
        patch.delenv("SRLIB_PROFILE", raising=False)
        yield root, reproduce.reproduce(SMOKE)


def test_smoke_chain_makes_every_artefact(smoke):
    root, seconds = smoke
    assert list(seconds) == reproduce.chain() == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    assert all(took is not None for took in seconds.values())
    made = {path.name for path in (root / "build" / SMOKE).glob("[ft]*/*") if path.suffix != ".json"}
    listed = [pattern for one in reproduce.chain() for pattern in outputs(one)]
    assert made and all(fnmatch.filter(made, pattern) for pattern in listed)


def test_second_run_skips_everything(smoke, capsys):
    seconds = reproduce.reproduce(SMOKE)
    assert set(seconds.values()) == {None}
    assert capsys.readouterr().out.count("up to date") == len(reproduce.chain())


def test_smoke_writes_under_build_only(smoke):
    root, _ = smoke
    assert sorted(path.name for path in root.iterdir()) == ["build", "notebooks"]
    assert [path.name for path in (root / "build").iterdir()] == [SMOKE]


def test_executed_copies_are_whole(smoke):
    root, _ = smoke
    for one in reproduce.chain():
        executed = nbformat.read(root / "build" / SMOKE / "notebooks" / f"{one}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")


def test_figures_are_readable(smoke):
    from PIL import Image

    figures = artifacts.place("png", "any", SMOKE).parent
    for path in figures.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    for path in figures.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_lsd_table_is_complete_and_finite(smoke):
    table = artifacts.read_table("lsd", SMOKE)
    conditions, systems = set(table["condition"]), set(table["system"])
    shown = yaml.safe_load((NOTEBOOKS.parent / "report" / "metadata.yaml").read_text())["readme-table"]
    assert conditions >= set(shown["where"]["condition"]) and systems == set(shown["order"])
    assert len(table) == table["track"].nunique() * len(conditions) * len(systems)
    assert np.isfinite(table[["lsd", "lsd_19k", "lsd_ssr_eval", "log_mel_l1"]]).all(axis=None)
    oracle = table[(table["system"] == "oracle") & (table["noise"] == "clean")]
    unprocessed = table[(table["system"] == "unprocessed") & (table["noise"] == "clean")]
    assert (oracle["lsd_19k"].to_numpy() < unprocessed["lsd_19k"].to_numpy()).all()


def test_summary_agrees_with_the_table(smoke):
    table, summary = (artifacts.read_table(name, SMOKE) for name in ("lsd", "lsd_summary"))
    mean = table.groupby(["condition", "system"])["lsd_19k"].mean()
    for row in summary.itertuples():
        assert row.lsd_19k == pytest.approx(mean[row.condition, row.system], rel=1e-5)
        assert row.ratio == pytest.approx(row.lsd_19k / mean[row.condition, "oracle"], rel=1e-5)
        assert row.ci_low <= row.lsd_19k * 1.00001 and row.ci_high >= row.lsd_19k * 0.99999


def test_live_training_was_real(smoke):
    live = pd.read_csv(artifacts.build_dir(SMOKE) / "runs" / "live" / "log.csv")
    assert live["global_step"].iloc[-1] == PROFILES[SMOKE].train_steps
    assert np.isfinite(live["train/loss"]).all()


# A small chain of two notebooks.
FIRST = """
import pandas as pd
from srlib.report import artifacts
artifacts.save_table(pd.DataFrame({"x": [value]}), "first", profile, "00_first")
"""
SECOND = """
from srlib.report import artifacts
artifacts.save_number("second", value, profile, "01_second")
"""
PARAMETERS = "profile = 'smoke'  # smoke, demo or paper\nvalue = 1  # a number"


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


def ran(seconds: dict) -> list[str]:
    return [name for name, took in seconds.items() if took is not None]


def test_failed_chain_continues_at_the_failed_notebook(small):
    write(small, "01_second", "1 / 0")
    with pytest.raises(SrlibError, match=r"01_second stopped at its cell 3 with ZeroDivisionError: .*01_second\.ipynb"):
        reproduce.reproduce(SMOKE)
    assert (small / "build" / SMOKE / "notebooks" / "01_second.ipynb").is_file()
    write(small, "01_second", SECOND)
    assert ran(reproduce.reproduce(SMOKE)) == ["01_second"]
    assert ran(reproduce.reproduce(SMOKE)) == []


def test_what_changed_runs_again_and_what_did_not_is_skipped(small):
    assert reproduce.status(SMOKE) == [("00_first", "never run", ""), ("01_second", "never run", "")]
    assert ran(reproduce.reproduce(SMOKE)) == ["00_first", "01_second"]
    assert ran(reproduce.reproduce(SMOKE, start="01", force=True)) == ["01_second"]
    (small / "notebooks" / "01_second.ipynb").touch()  # a time is not a change
    assert reproduce.status(SMOKE) == [("00_first", "fresh", ""), ("01_second", "fresh", "")]
    assert ran(reproduce.reproduce(SMOKE)) == []
    write(small, "01_second", SECOND.replace("value,", "value + 1,"))
    assert reproduce.status(SMOKE)[1] == ("01_second", "stale", "notebooks/01_second.ipynb changed")
    assert ran(reproduce.reproduce(SMOKE)) == ["01_second"]
    assert artifacts.read_number("second", SMOKE)["value"] == 2
    artifacts.find("table", "first", SMOKE).unlink()
    assert "'first' of profile 'smoke' is missing" in reproduce.status(SMOKE)[0].reason
    assert ran(reproduce.reproduce(SMOKE)) == ["00_first"]
    artifacts.find("table", "first", SMOKE).write_text("x\n9\n")
    assert reproduce.status(SMOKE)[0] == ("00_first", "stale", "table first is not as it was made")


def test_a_number_that_a_notebook_no_longer_saves_goes(small):
    reproduce.reproduce(SMOKE)
    write(small, "01_second", SECOND.replace('"second"', '"other"'))
    reproduce.reproduce(SMOKE)
    assert list(artifacts.fingerprint("01_second", SMOKE)) == ["number other"]
    with pytest.raises(SrlibError, match="'second' is not in"):
        artifacts.read_number("second", SMOKE)


def test_unknown_notebook_and_profile_are_errors(small):
    with pytest.raises(SrlibError, match="There is no single notebook '0'"):
        reproduce.reproduce(SMOKE, only="0")
    with pytest.raises(SrlibError, match="no profile 'huge'"):
        reproduce.reproduce("huge")


def test_kernels_compute_on_as_many_threads_whatever_the_host_says(small, monkeypatch):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "3")
    settings = f"[__import__('torch').get_num_threads(), *map(int, map(__import__('os').getenv, {names}))]"
    write(small, "00_first", FIRST.replace("[value]", settings))
    reproduce.reproduce(SMOKE, only="00")
    assert artifacts.read_table("first", SMOKE)["x"].tolist() == [2, 2, 2, 1]
    assert [os.environ[name] for name in names] == ["3"] * 3


def test_state_records_seconds_outside_what_is_committed(small):
    reproduce.reproduce(SMOKE, only="00")
    state = json.loads((small / "build" / SMOKE / "notebooks" / "00_first.state.json").read_text())
    assert state["seconds"] > 0 and set(state["outputs"]) == {"table first"}
    assert not list((small / "build" / SMOKE / "tables").glob("*seconds*"))


# What a notebook's result depends on


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in which `pkg.draw` needs `pkg.maths`, and `pkg.report.run` offers weights to those who ask."""
    files = {
        "pkg/__init__.py": "def __getattr__(name):\n    from srlib.report.run import setup\n    return setup\n",
        "pkg/report/__init__.py": "",
        "pkg/report/run.py": "class Run:\n    def pipeline(self):\n        from srlib import model\n",
        "pkg/model.py": 'FOLDER = __file__ + "assets" + "small"\n',
        "pkg/draw.py": "import srlib.maths\nif TYPE_CHECKING:\n    from srlib import model\n",
        "pkg/maths.py": "",
        "pkg/unused.py": "import srlib.maths\n",
        "pkg/assets/small/weights.bin": "1",
        "pkg/assets/small/README.md": "About the weights.",
        "pkg/assets/other/music.flac": "2",
    }
    root = tmp_path / "srlib"
    for name, text in files.items():
        path = root / name.removeprefix("pkg/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(reproduce, "_PACKAGE", root)
    return root


def names(paths: list[Path], package: Path) -> set[str]:
    return {path.relative_to(package).as_posix() for path in paths} - {"__init__.py", "report/__init__.py"}


def test_a_notebook_reaches_what_it_imports_and_no_more(package):
    assert names(reproduce.reached("from srlib import draw"), package) == {"draw.py", "maths.py"}
    assert names(reproduce.reached("from srlib.maths import x\nimport numpy"), package) == {"maths.py"}
    assert names(reproduce.reached("from srlib import setup"), package) == {"report/run.py"}
    loads = reproduce.reached("from srlib import setup\nsetup().pipeline()")
    assert names(loads, package) == {"report/run.py", "model.py"}
    assert names(reproduce._assets(loads), package) == {"assets/small/weights.bin"}
    assert reproduce._assets(reproduce.reached("from srlib import draw")) == []


def test_a_change_in_the_plots_makes_stale_the_notebooks_that_import_them(small, monkeypatch):
    """With the notebooks and the package of this checkout, as if all had been run."""
    shutil.rmtree(small / "notebooks")
    shutil.copytree(NOTEBOOKS, small / "notebooks")
    package = shutil.copytree(reproduce._PACKAGE, small / "srlib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(reproduce, "_PACKAGE", package)
    for one in reproduce.chain():
        state = {"outputs": {}, "inputs": reproduce._inputs(one, SMOKE)}
        artifacts.write_text(reproduce._state_file(one, SMOKE), json.dumps(state))
    assert {one.state for one in reproduce.status(SMOKE)} == {"fresh"}
    for module in ("plots_tables", "pdf"):
        path = package / "report" / f"{module}.py"
        path.write_text(path.read_text() + "# a comment\n")
        sources = {file.stem: file.read_text() for file in NOTEBOOKS.glob("*.ipynb")}
        users = {one for one, source in sources.items() if f"{module}." in source}
        users |= {one for one, source in sources.items() if "plots_tables." in source}
        stale = {one.notebook: one.reason for one in reproduce.status(SMOKE) if one.state == "stale"}
        assert stale == dict.fromkeys(users, "srlib/report/plots_tables.py changed")
    assert 0 < len(users) < len(sources)
