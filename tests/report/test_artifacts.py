"""Artefacts round-trip, repeat to the byte, keep profiles apart, and name the remedy when they are missing."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from srlib.errors import SrlibError
from srlib.report import artifacts


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    return tmp_path


def line_figure() -> Figure:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1, 2], [1.0, 3.0, 2.0], label="loss")
    axes.legend()
    return figure


def table() -> pd.DataFrame:
    return pd.DataFrame({"system": ["ours", "none"], "lsd": [1 / 3, np.nan], "tracks": [4, 4]})


def test_table_round_trip_keeps_six_digits_and_settings():
    path = artifacts.save_table(table(), "lsd", "demo", "07_lsd_tables", settings={"n_fft": np.int64(2048)})
    restored = artifacts.read_table("lsd", "demo")
    assert restored.lsd[0] == 0.333333 and np.isnan(restored.lsd[1])
    assert list(restored.system) == ["ours", "none"]  # the text "none" is no missing value
    sidecar = artifacts.read_sidecar(path, "demo")
    assert sidecar["settings"] == {"n_fft": 2048}
    assert sidecar["rows"][1] == {"system": "none", "lsd": None, "tracks": 4}


def test_numbers_merge_by_name_and_sort():
    artifacts.save_number("b_hz", np.float32(8160.4), "demo", "02_degradation", unit="Hz", fmt=".0f")
    assert artifacts.save_number("a_tracks", 30, "demo", "01_data", fmt="d") == "30"
    numbers = artifacts.read_numbers("demo")
    assert list(numbers) == ["a_tracks", "b_hz"]
    assert numbers["b_hz"] == {
        "value": 8160.4,
        "unit": "Hz",
        "text": "8160",
        "notebook": "02_degradation",
        "profile": "demo",
    }


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_figures_repeat_to_the_byte(kind, project):
    first = artifacts.save_figure(line_figure(), "loss_curve", "demo", "05_training", kind).read_bytes()
    sidecar = (project / "figures/loss_curve.json").read_bytes()
    second = artifacts.save_figure(line_figure(), "loss_curve", "demo", "05_training", kind).read_bytes()
    assert first == second and sidecar == (project / "figures/loss_curve.json").read_bytes()
    assert artifacts.find_figure("loss_curve", "demo").suffix == f".{kind}"


def test_a_figure_has_one_kind():
    artifacts.save_figure(line_figure(), "loss_curve", "demo", "05_training", "png")
    artifacts.save_figure(line_figure(), "loss_curve", "demo", "05_training", "svg")
    assert artifacts.find_figure("loss_curve", "demo").suffix == ".svg"


def test_smoke_writes_only_under_its_build_folder(project):
    artifacts.save_figure(line_figure(), "loss_curve", "smoke", "05_training")
    artifacts.save_table(table(), "lsd", "smoke", "07_lsd_tables")
    artifacts.save_number("lsd_ours", 1.0, "smoke", "07_lsd_tables")
    files = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert files and all(file.startswith("build/smoke/") for file in files)


def test_committed_files_hold_nothing_volatile(project):
    artifacts.save_table(table(), "lsd", "demo", "07_lsd_tables", context={"seconds": 1.5, "device": "cpu"})
    committed = (project / "report/tables/lsd.json").read_text()
    assert "seconds" not in committed and "utc" not in committed
    stamp = json.loads(artifacts.provenance_file("demo", "table", "lsd").read_text())
    assert stamp["notebook"] == "07_lsd_tables" and stamp["seconds"] == 1.5
    assert {"utc", "python", "versions", "git_commit", "git_dirty"} <= set(stamp)


def test_hand_edited_and_foreign_artefacts_are_refused(project):
    path = artifacts.save_table(table(), "lsd", "demo", "07_lsd_tables")
    with pytest.raises(SrlibError, match="made by profile 'demo', not 'paper'"):
        artifacts.read_sidecar(path, "paper")
    path.write_text(path.read_text().replace("0.333333", "0.1"))
    with pytest.raises(SrlibError, match="edited by hand"):
        artifacts.read_sidecar(path, "demo")


def test_numbers_of_another_profile_are_not_read():
    artifacts.save_number("lsd_ours", 1.0, "demo", "07_lsd_tables")
    with pytest.raises(SrlibError, match="reproduce --profile paper"):
        artifacts.read_number("lsd_ours", "paper")


@pytest.mark.parametrize("read", [artifacts.read_table, artifacts.find_figure, artifacts.read_number])
def test_missing_artefacts_say_what_to_run(read):
    with pytest.raises(SrlibError, match="srlib reproduce --profile demo"):
        read("lsd_summary", "demo")


def test_bad_names_kinds_and_values_are_refused():
    with pytest.raises(SrlibError, match="cannot name"):
        artifacts.save_table(table(), "../lsd", "demo", "07_lsd_tables")
    with pytest.raises(SrlibError, match="choose one of png, svg"):
        artifacts.save_figure(line_figure(), "loss", "demo", "05_training", "jpeg")
    with pytest.raises(SrlibError, match="not finite"):
        artifacts.save_number("lsd_ours", float("nan"), "demo", "07_lsd_tables")
    with pytest.raises(SrlibError, match="no rows"):
        artifacts.save_table(table().iloc[:0], "lsd", "demo", "07_lsd_tables")


def test_import_is_light():
    code = "import sys, srlib.artifacts; sys.exit(bool({'torch', 'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
