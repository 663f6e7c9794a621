"""The chain: what runs, what is skipped, what is reported; and what the smoke profile leaves behind."""

import ast
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from srlib.config import PROFILES
from srlib.errors import SrlibError
from srlib.measure import ablations, evaluation
from srlib.report import artifacts, reproduce

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
    conditions = {condition.name for condition in evaluation.conditions(PROFILES[SMOKE])}
    assert conditions >= set(reproduce.LSD_NUMBER_CONDITIONS)
    systems = set(evaluation.SYSTEMS)
    assert set(table["system"]) == systems
    assert set(table["condition"]) == conditions
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


def test_conditions_are_seeded_by_track_and_name():
    condition = evaluation.Condition.named("tone_8k")
    assert condition == evaluation.Condition(8000, "tone")
    one, again, other = (condition.degradation(track) for track in ("a", "a", "b"))
    assert one == again
    assert one.tone_hz != other.tone_hz and 100 <= one.tone_hz <= 15000


def test_rows_are_computed_on_one_thread_in_one_process_as_in_many(monkeypatch):
    counted = []

    def rows(*_):
        counted.append(torch.get_num_threads())
        return [dict.fromkeys(("condition", "variation", "track", "patches"), "x")]

    monkeypatch.setattr(evaluation.Evaluator, "fit_ridge", rows)
    monkeypatch.setattr(evaluation.Evaluator, "rows", rows)
    monkeypatch.setattr(ablations, "_rows", rows)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for compute, what in ((evaluation.evaluate_systems, ()), (ablations.compare, ({"x": {}}, ["clean_4k"]))):
            counted.clear()
            compute(PROFILES[SMOKE], *what, workers=1)
            assert set(counted) == {1}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_differences_are_paired_track_by_track_in_any_measure():
    """Tracks differ by far more than systems do; the difference is the same on each."""
    rows = [
        {"track": track, "condition": "clean_4k", "system": system, "lsd_19k": level + better, "zimtohrli": 3 * better}
        for track, level in (("a", 1.0), ("b", 2.0), ("c", 5.0))
        for system, better in (("ours", 0.0), ("ridge", 0.25))
    ]
    table = pd.DataFrame([*rows, {**rows[0], "condition": "clean_8k", "lsd_19k": 9.0}])
    assert evaluation.paired_difference(table, "ours", "ridge", "clean_4k") == pytest.approx((-0.25, -0.25, -0.25))
    measured = evaluation.paired_difference(table, "ridge", "ours", "clean_4k", measure="zimtohrli")
    assert measured == pytest.approx((0.75, 0.75, 0.75))


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
