"""The report typesets from the committed artefacts, to the same bytes, and from nothing less."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srlib.errors import SrlibError
from srlib.report import artifacts
from srlib.report import pdf as report

SOURCE = Path(__file__).resolve().parents[2]
CELL = "{{cell:lsd_summary/ours/clean_8k/zimtohrli:.2f}}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the report, its artefacts and the notebooks, which a test may damage."""
    for folder in ("report", "figures", "notebooks"):
        shutil.copytree(SOURCE / folder, tmp_path / folder)
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_builds_twice_to_the_same_bytes_and_changes_nothing_else(project):
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    path = report.build("demo")
    first = path.read_bytes()
    assert first.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", first)) >= 12
    assert report.build("demo").read_bytes() == first
    assert {path: path.read_bytes() for path in before} == before
    source = path.with_suffix(".typ").read_text(encoding="utf-8")
    assert "Profile: *demo*" in source and "(draft)" not in source and "{{" not in source
    drawings = source.count("/report/architecture.typ")
    assert drawings == 2 and source.count("(notebook ") + drawings == len(re.findall(r"caption: \[", source))
    _, record = artifacts.find("figure", "overview", "demo")
    assert record["sha256"][:12] in source and "numbers_05" in source and "ssr_eval" in source
    table, _ = artifacts.committed_table("lsd_summary")
    (row,) = table.query("system == 'ours' and condition == 'clean_8k'").itertuples()
    assert f"and {row.zimtohrli:.2f} after restoration" in " ".join(source.split()).replace("for the clean input ", "")


def test_smoke_is_refused_unless_draft(project):
    with pytest.raises(SrlibError, match=r"refuses artefacts of profile 'smoke'"):
        report.build("smoke")
    with pytest.raises(SrlibError, match=r"reproduce --profile smoke"):  # and those of demo never stand in for smoke's
        report.build("smoke", draft=True)


@pytest.mark.parametrize(("kind", "name", "asked"), [
    ("figure", "loss_curve", "figure 'loss_curve'"), ("table", "numbers_05_training", "'training_hours_total'"),
])  # fmt: skip
def test_missing_artefacts_fail(project, kind, name, asked):
    artifacts.find(kind, name, "demo")[0].unlink()
    with pytest.raises(SrlibError, match=f"{asked}.*srlib reproduce --profile demo"):
        report.build("demo")
    assert not (project / "build/demo/report.pdf").exists()


@pytest.mark.parametrize(("new", "expected"), [
    ("See [@nobody1999].", "nobody1999"),
    ("See @fig:nowhere.", "fig:nowhere"),
    ("See @sec:nowhere and @eq:nowhere.", "nowhere"),
    ("A {{nubmer:lsd}}.", "nubmer:lsd.*not there"),
    (CELL.replace("/ours/", "/theirs/"), "lsd_summary/theirs/clean_8k/zimtohrli:.2f}}, which is not there"),
    (CELL.replace("zimtohrli", "tone_suppression_db"), "not there"),  # not a number there
    (CELL.replace(".2f", ".2d"), "format"),
])  # fmt: skip
def test_faults_in_the_text_fail(project, new, expected):
    heading = "# Introduction {#sec:intro}"
    edit(project / "report" / "report.md", heading, f"{heading}\n\n{new}")
    with pytest.raises(SrlibError, match=expected) as error:
        report.build("demo")
    assert "\n" not in str(error.value)


def test_pivot_orders_labels_and_leaves_dashes():
    spec = {"rows": "system", "columns": "cutoff_hz", "cell": "{lsd:.2f}", "heading": "System",
            "where": {"noise": "clean", "system": ["ours", "absent", "b_c"]}}  # fmt: skip
    frame = pd.DataFrame({"noise": ["clean"] * 3 + ["tone"], "system": ["b_c", "ours", "ours", "ours"],
                          "cutoff_hz": [8000, 4000, 8000, 8000], "lsd": [np.inf, -1.0, np.nan, 3.0]})  # fmt: skip
    header, rows = report._arrange(frame, spec, {"4000": "4 kHz", "ours": "**us**"})
    assert header == ["System", "4 kHz", "8000"]
    assert rows == [["**us**", "−1.00", "–"], ["b\\_c", "–", "∞"]]


def test_readme_and_model_card_get_their_results_when_asked(project):
    (project / "README.md").write_text("a\n<!-- results:begin -->\nstale\n<!-- results:end -->\nz\n", encoding="utf-8")
    for path in 2 * report.update_readme("demo"):
        text = path.read_text(encoding="utf-8")
        assert "stale" not in text and text.count("| Prior alone |") == 1 and "profile `demo`" in text
    assert text.count("| Run | Stage |") == 1


def test_committed_readme_and_card_show_the_committed_table():
    expansion = report.Expansion("demo")
    table = expansion.pipe_table("lsd_summary", expansion.metadata["readme-table"])
    for path in (SOURCE / "README.md", SOURCE / "report" / "model_card.md"):
        assert table in path.read_text(encoding="utf-8"), f"{path.name}: run `make readme`"
