"""The listening page plays what systems made, the gallery leads to cells, the archive's record repeats the sidecars."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from srlib.report import artifacts, listen

SOURCE = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    shutil.copytree(SOURCE / "report", tmp_path / "report")
    shutil.copytree(SOURCE / "figures", tmp_path / "figures")
    shutil.copy(SOURCE / "CITATION.cff", tmp_path)
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    return tmp_path


def halved(case, seed):
    return 0.5 * case.degraded


def test_the_page_needs_no_network_and_has_all_systems_of_every_clip(project):
    page = listen.samples("smoke", {"degraded": "unprocessed", "half": halved}).read_text(encoding="utf-8")
    assert not re.search(r"https?://|<link|src=\"(?!data:)", page)
    clips = page.split("<section")[1:]
    assert len(clips) == len(listen.CONDITIONS)
    for clip in clips:
        assert re.findall(r'data-name="(.*?)"', clip) == ["reference", "degraded", "half"]
        volumes = [float(text) for text in re.findall(r'data-volume="(.*?)"', clip)]
        assert volumes[2] == pytest.approx(2 * volumes[1]) == 1.0


def test_the_gallery_names_the_cell_of_every_figure_and_shows_the_docs(project):
    folder = artifacts.build_dir("smoke") / "notebooks"
    cells = [new_markdown_cell("# 0. First"), new_code_cell("1", id="one", execution_count=1)]
    cells.append(new_code_cell("2", id="two", execution_count=2))
    folder.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), folder / "00_first.ipynb")
    (folder / "00_first.cells.json").write_text(json.dumps({"curve.svg": 2, "curve.csv": 1}))
    (project / "docs").mkdir()
    (project / "docs" / "use.md").write_text("# Use\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    page = listen.gallery("smoke").read_text(encoding="utf-8")
    assert re.findall(r'href="(.*?)"', page) == ["use.html", "00_first.html", "00_first.html#cell-id=two"]
    assert "<td>2</td>" in (folder / "use.html").read_text(encoding="utf-8")
    assert re.findall(r'src="(.*?)"', page) == ["../figures/curve.svg"] and "cell [2]" in page
    assert 'id="cell-id=two"' in (folder / "00_first.html").read_text(encoding="utf-8")


def test_the_record_of_the_archive_has_every_artefact_once(project):
    graph = json.loads(listen.archive("demo").read_text(encoding="utf-8"))["@graph"]
    by_id = {one["@id"]: one for one in graph}
    assert len(by_id) == len(graph) and by_id[listen.CRATE]["about"] == {"@id": "./"}
    assert all(one["@id"] in by_id for one in by_id["./"]["hasPart"])
    made = {path.relative_to(project).as_posix(): record["sha256"] for path, record in artifacts.records("demo")}
    assert {name: one["sha256"] for name, one in by_id.items() if "sha256" in one} == made
    assert all(one["isBasedOn"]["@id"] in by_id for one in by_id.values() if "sha256" in one)
