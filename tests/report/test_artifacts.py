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
    assert "rows" not in sidecar  # the CSV holds them


def test_numbers_merge_by_name_and_sort():
    artifacts.save_number("b_hz", np.float32(8160.4), "demo", "02_degradation", unit="Hz", fmt=".0f")
    assert artifacts.save_number("a_tracks", 30, "demo", "01_data", fmt="d") == "30"
    assert list(json.loads(artifacts.place("number", "any", "demo").read_text())) == ["a_tracks", "b_hz"]
    assert artifacts.read_number("b_hz", "demo") == {
        "value": 8160.4,
        "unit": "Hz",
        "text": "8160",
        "notebook": "02_degradation",
        "profile": "demo",
    }


def picture() -> Figure:
    figure = Figure()
    figure.subplots().imshow([[0, 1]])
    return figure


@pytest.mark.parametrize(("draw", "kind"), [(picture, "png"), (line_figure, "svg")])
def test_figures_repeat_to_the_byte_as_png_if_they_hold_images(draw, kind, project):
    first = artifacts.save_figure(draw(), "loss_curve", "demo", "05_training").read_bytes()
    sidecar = (project / "figures/loss_curve.json").read_bytes()
    second = artifacts.save_figure(draw(), "loss_curve", "demo", "05_training").read_bytes()
    assert first == second and sidecar == (project / "figures/loss_curve.json").read_bytes()
    assert artifacts.find("figure", "loss_curve", "demo").suffix == f".{kind}"


def test_a_figure_has_one_kind(project):
    for draw in (picture, line_figure):
        artifacts.save_figure(draw(), "loss_curve", "demo", "05_training")
    assert sorted(path.name for path in (project / "figures").iterdir()) == ["loss_curve.json", "loss_curve.svg"]


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
    stamp = json.loads((artifacts.provenance_dir("demo") / "table_lsd.json").read_text())
    assert stamp["notebook"] == "07_lsd_tables" and stamp["seconds"] == 1.5
    assert {"utc", "python", "versions", "commit"} <= set(stamp)


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


@pytest.mark.parametrize("kind", ["table", "figure", "number"])
def test_missing_artefacts_say_what_to_run(kind, project):
    """The notebook that lists a figure or table as its output, or saves a number, else all of them."""
    (project / "notebooks").mkdir()
    (project / "notebooks/02_made.ipynb").write_text(
        json.dumps({"a": "`figures/curve.svg`, `report/tables/curve.csv`"})
    )
    (project / "notebooks/03_saved.ipynb").write_text(json.dumps({"a": 'run.save_number("share", 1)'}))
    name, notebook = ("share", "03_saved") if kind == "number" else ("curve", "02_made")
    for asked, only in ((name, f" --only {notebook}"), ("other", "")):
        with pytest.raises(SrlibError, match=rf"srlib reproduce --profile demo{only}`\.$"):
            artifacts.read_number(asked, "demo") if kind == "number" else artifacts.find(kind, asked, "demo")


def test_bad_names_and_values_are_refused():
    with pytest.raises(SrlibError, match="cannot name"):
        artifacts.save_table(table(), "../lsd", "demo", "07_lsd_tables")
    with pytest.raises(SrlibError, match="not finite"):
        artifacts.save_number("lsd_ours", float("nan"), "demo", "07_lsd_tables")
    with pytest.raises(SrlibError, match="no rows"):
        artifacts.save_table(table().iloc[:0], "lsd", "demo", "07_lsd_tables")


def test_import_is_light():
    code = "import sys, srlib.report.artifacts; sys.exit(bool({'torch', 'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
