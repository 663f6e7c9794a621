"""The chain: what runs, what is skipped, what is reported; and what the smoke profile leaves behind."""

import ast
import json
import math
import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from srlib.config import PROFILES
from srlib.errors import SrlibError
from srlib.report import artifacts, reproduce
from srlib.training import curriculum

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PACKAGE = Path(reproduce.__file__).parent
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
    _, seconds = smoke
    assert list(seconds) == [link.id for link in reproduce.CHAIN]
    assert all(took is not None for took in seconds.values())
    for link in reproduce.CHAIN:
        assert set(reproduce.fingerprint(link.outputs, SMOKE)) == set(link.outputs)


def test_second_run_skips_everything(smoke, capsys):
    seconds = reproduce.reproduce(SMOKE)
    assert set(seconds.values()) == {None}
    assert capsys.readouterr().out.count("up to date") == len(reproduce.CHAIN)


def test_smoke_writes_under_build_only(smoke):
    root, _ = smoke
    assert sorted(path.name for path in root.iterdir()) == ["build", "notebooks"]
    assert [path.name for path in (root / "build").iterdir()] == [SMOKE]


def test_executed_copies_are_whole(smoke):
    root, _ = smoke
    for link in reproduce.CHAIN:
        executed = nbformat.read(root / "build" / SMOKE / "notebooks" / f"{link.id}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")


def test_figures_are_readable(smoke):
    from PIL import Image

    for link in reproduce.CHAIN:
        for name in link.outputs:
            if name.endswith(".svg"):
                assert ElementTree.parse(artifacts.figures_dir(SMOKE) / name).getroot().tag.endswith("svg")
            if name.endswith(".png"):
                with Image.open(artifacts.figures_dir(SMOKE) / name) as image:
                    assert min(image.size) > 300


def test_lsd_table_is_complete_and_finite(smoke):
    table = artifacts.read_table("lsd", SMOKE)
    conditions, systems = set(table["condition"]), set(table["system"])
    assert conditions >= set(reproduce.LSD_NUMBER_CONDITIONS) and systems >= set(reproduce.LSD_NUMBER_SYSTEMS.values())
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
    number = artifacts.read_number("lsd19_ours_tone_8k", SMOKE)
    assert number["value"] == pytest.approx(mean["tone_8k", "ours"], rel=1e-5)


def test_live_training_was_real(smoke):
    live = pd.read_csv(artifacts.build_dir(SMOKE) / "runs" / "live" / "log.csv")
    assert live["global_step"].iloc[-1] == PROFILES[SMOKE].train_steps
    assert np.isfinite(live["train/loss"]).all()


def test_runs_come_in_the_order_of_their_training():
    names = list(curriculum.logs())
    assert names[:3] == ["vae", "vocoder", "ldm-1-lowpass"]
    assert [name for name in names if name.startswith("ldm")] == sorted(curriculum.logs("ldm"))


def test_losses_of_a_run_are_means_over_its_steps():
    """A row of a log counts for the steps since the one before: the last of these stands for two of a hundred."""
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 50, 85, 98, 100], "wall_time": 60.0, "val/lsd": math.nan})
    row = curriculum.summarise_runs({"run": log.assign(**{"train/loss": [4.0, 3.0, 2.0, 1.0, 9.0]})}).iloc[0]
    assert row["first_loss"] == 4.0
    assert row["last_loss"] == pytest.approx((13 * 1.0 + 2 * 9.0) / 15)


def test_summarise_runs_scores_the_weights_that_are_kept_and_closed_forms_have_no_losses():
    nan = math.nan
    log = pd.DataFrame({"stage": "ldm", "global_step": [1, 2, 3], "wall_time": 60.0, "train/loss": [3.0, 2.0, 1.0]})
    log = log.assign(**{"val/loss": [0.5, 0.2, 0.3], "val/lsd": [1.3, 1.2, 1.1], "val/zimtohrli": [9.0, 8.0, 7.0]})
    fitted = pd.DataFrame({"stage": "vae", "global_step": [0], "wall_time": 1.2, "train/loss": [nan]})
    fitted = fitted.assign(**{"val/loss": [0.1], "val/lsd": [0.9], "val/zimtohrli": [nan]})
    kept, closed = (row for _, row in curriculum.summarise_runs({"ldm": log, "vae": fitted}).iterrows())
    assert (kept["val_lsd"], kept["val_zimtohrli"]) == (1.2, 8.0)  # of the second validation, the best
    assert (closed["steps"], closed["val_lsd"]) == (0, 0.9)
    assert closed[["first_loss", "last_loss", "val_zimtohrli"]].isna().all()


def test_the_learning_curve_is_that_of_runs_by_hours(tmp_path):
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 20, 30], "val/lsd": [1.3, math.nan, 1.1]})
    log.assign(**{"val/zimtohrli": [9.0, math.nan, 8.0]}).to_csv(tmp_path / "ldm-hours-12.csv", index=False)
    log.to_csv(tmp_path / "ldm-4-mixed.csv", index=False)
    curve = curriculum.learning_curve(tmp_path)
    assert curve.to_dict("list") == {"hours": [12, 12], "step": [10, 30], "val_lsd": [1.3, 1.1],
                                     "val_zimtohrli": [9.0, 8.0]}  # fmt: skip
    assert list(curriculum.logs("ldm", tmp_path)) == ["ldm-4-mixed"]
    (tmp_path / "ldm-hours-12.csv").unlink()
    with pytest.raises(SrlibError, match="ldm-hours-N"):
        curriculum.learning_curve(tmp_path)
    assert curriculum.learning_curve(tmp_path, needed=False).isna().all(axis=None)


def test_summarise_runs_reads_a_log():
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 20], "wall_time": [30.0, 60.0]})
    log = log.assign(**{"train/loss": [1.0, 0.5], "val/lsd": [math.nan, 1.2]})
    row = curriculum.summarise_runs({"run": log}).iloc[0]
    assert list(row[["steps", "minutes", "first_loss", "last_loss", "val_lsd"]]) == [20, 1.0, 1.0, 0.5, 1.2]


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
    chain = (reproduce.Notebook("00_first", ("first.csv",)), reproduce.Notebook("01_second", ("second",)))
    monkeypatch.setattr(reproduce, "CHAIN", chain)
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
    assert ran(reproduce.reproduce(SMOKE)) == ["00_first", "01_second"]
    assert ran(reproduce.reproduce(SMOKE, start="01", force=True)) == ["01_second"]
    (small / "notebooks" / "01_second.ipynb").touch()  # a time is not a change
    assert ran(reproduce.reproduce(SMOKE)) == []
    write(small, "01_second", SECOND.replace("value,", "value + 1,"))
    assert ran(reproduce.reproduce(SMOKE)) == ["01_second"]
    assert artifacts.read_number("second", SMOKE)["value"] == 2
    (artifacts.tables_dir(SMOKE) / "first.csv").unlink()
    assert ran(reproduce.reproduce(SMOKE)) == ["00_first"]


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


def imported_modules(source: str) -> set[str]:
    """Modules of the package that a source imports anywhere but for its type checker, by their file's name."""
    tree, found = ast.parse(source), {"__init__.py"}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for name in (package + alias.name for alias in node.names):
                top, _, rest = name.partition(".")
                file = f"{rest.partition('.')[0]}.py"
                found |= {file} if top == "srlib" and (PACKAGE / file).is_file() else set()
    return found


def test_what_no_notebook_can_reach_does_not_run_it_again_and_all_else_does():
    cells = [cell for path in NOTEBOOKS.glob("*.ipynb") for cell in nbformat.read(path, as_version=4).cells]
    waiting = set().union(*(imported_modules(cell.source) for cell in cells if cell.cell_type == "code"))
    reached: set[str] = set()
    while waiting:
        reached.add(module := waiting.pop())
        waiting |= imported_modules((PACKAGE / module).read_text()) - reached
    assert {path.name for path in PACKAGE.glob("*.py")} - reached == reproduce._NOT_USED_BY_NOTEBOOKS


def test_markdown_in_the_package_changes_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "__file__", str(tmp_path / "reproduce.py"))
    (tmp_path / "mel.py").write_text("")
    package_hash = reproduce._package_hash.__wrapped__
    before = package_hash()
    (tmp_path / "README.md").write_text("About the package.")
    assert package_hash() == before
    (tmp_path / "mel.py").write_text("1")
    assert package_hash() != before


def test_state_records_seconds_outside_what_is_committed(small):
    reproduce.reproduce(SMOKE, only="00")
    state = json.loads((small / "build" / SMOKE / "notebooks" / "00_first.state.json").read_text())
    assert state["seconds"] > 0 and set(state["outputs"]) == {"first.csv"}
