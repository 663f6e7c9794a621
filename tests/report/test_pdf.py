"""The report typesets from complete artefacts, to the same bytes, and from nothing less."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from srlib.errors import SrlibError
from srlib.report import artifacts
from srlib.report import pdf as report
from srlib.report.reproduce import CHAIN

SOURCE = Path(__file__).resolve().parents[2]
TEXT = (SOURCE / "report" / "report.md").read_text(encoding="utf-8")
TABLES = [(name, yaml.safe_load(spec)) for _, name, spec in report.TABLE.findall(TEXT)]


def synthetic_table(spec: dict) -> pd.DataFrame:
    """One row for each row of a pivot, or two rows, with the columns and types that the spec asks for."""
    values = {"": "text_a|b", "d": 1000, "f": 1.5}
    kept = {name: value[0] if isinstance(value, list) else value for name, value in spec.get("where", {}).items()}
    if "cell" in spec:
        cell = dict.fromkeys(re.findall(r"\{(\w+):", spec["cell"]), 1.25)
        rows = spec.get("order", "ab")
        return pd.DataFrame([{**kept, spec["rows"]: name, spec["columns"]: 8, **cell} for name in rows])
    columns = {name: [values[form[-1:]]] * 2 for name, (_, form) in spec["columns"].items()}
    return pd.DataFrame(columns | {name: [value] * 2 for name, value in kept.items()})


def synthetic_summary() -> pd.DataFrame:
    rows = [{"noise": noise, "cutoff_hz": cutoff, "condition": f"{noise}_{cutoff // 1000}k", "system": system,
             "lsd_19k": 1.25, "ratio": 1.1, "zimtohrli": 1.1, "visqol": 4.0, "two_f": 70.0,
             "level_high_db": -0.5, "texture_high": 0.9, "snr_low_db": float("inf"), "si_sdr_db": 9.0}
            | ({"tone_suppression_db": 41.0} if noise == "tone" else {})
            for noise in ("clean", "tone", "white") for cutoff in (4000, 8000, 16000)
            for system in ("ours", "ridge", "oracle")]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A folder with the report's sources and a synthetic artefact for each directive, profile smoke."""
    folder = tmp_path_factory.mktemp("complete")
    shutil.copytree(SOURCE / "report", folder / "report", ignore=shutil.ignore_patterns("tables"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLIB_ROOT", str(folder))
        make_artefacts("smoke")
    return folder


@pytest.fixture
def project(complete, tmp_path, monkeypatch):
    """A copy of the complete folder that a test may damage."""
    shutil.copytree(complete, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    return tmp_path


def make_artefacts(profile: str) -> None:
    for name in set(report.FIGURE.findall(TEXT)):
        artifacts.save_figure(Figure(figsize=(2, 1)), name, profile, "06_results", "svg")
    for name in set(report.NUMBER.findall(TEXT)):
        artifacts.save_number(name, -1.25, profile, "07_lsd_tables", unit="dB", fmt=".2f")
    for name, spec in TABLES:
        table = synthetic_summary() if name == "lsd_summary" else synthetic_table(spec)
        artifacts.save_table(table, name, profile, "07_lsd_tables", settings={"convention": "plain", "hop": 512})


def edit(project: Path, old: str, new: str, name: str = "report.md") -> None:
    path = project / "report" / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_builds_twice_to_the_same_bytes(project):
    path = report.build("smoke", draft=True)
    assert path == project / "build/smoke/report.pdf"
    first = path.read_bytes()
    assert first.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", first)) >= 12
    assert report.build("smoke", draft=True).read_bytes() == first


def test_typst_source_names_profile_notebooks_and_manifest(project):
    report.build("smoke", draft=True)
    source = (project / "build/smoke/report.typ").read_text(encoding="utf-8")
    assert "Profile: *smoke*" in source and "(draft)" in source
    captions = len(re.findall(r"caption: \[", source))
    assert source.count("(notebook 0") == captions == len(TABLES) + len(set(report.FIGURE.findall(TEXT)))
    assert "−1.25" in source and "[∞]" in source and "{{" not in source
    digest = artifacts.sha256(artifacts.find_figure("overview", "smoke"))[:12]
    assert digest in source and "numbers.json" in source and "hop" in source


def test_smoke_is_refused_unless_draft(project):
    with pytest.raises(SrlibError, match=r"refuses artefacts of profile 'smoke'"):
        report.build("smoke")
    with pytest.raises(SrlibError, match=r"reproduce --profile demo"):  # and smoke artefacts never stand in for demo's
        report.build("demo")


@pytest.mark.parametrize("kind", ["figure", "number", "table", "column"])
def test_missing_artefacts_fail(project, kind):
    if kind == "figure":
        artifacts.find_figure("loss_curve", "smoke").unlink()
        expected = r"figure 'loss_curve'.*srlib reproduce --profile smoke --only 05_training"
    elif kind == "number":
        path = artifacts.numbers_file("smoke")
        numbers = json.loads(path.read_text())
        del numbers["lsd19_ours_clean_8k"]
        path.write_text(json.dumps(numbers))
        expected = r"'lsd19_ours_clean_8k'.*--only 07_lsd_tables"
    elif kind == "table":
        (artifacts.tables_dir("smoke") / "vae.csv").unlink()
        expected = r"table 'vae'.*--only 03_vae"
    else:
        artifacts.save_table(pd.DataFrame({"other": [1.0]}), "gt_mel", "smoke", "03_vae")
        expected = r"table 'gt_mel' for the column"
    with pytest.raises(SrlibError, match=expected):
        report.build("smoke", draft=True)
    assert not (project / "build/smoke/report.pdf").exists()


@pytest.mark.parametrize(("new", "expected"), [
    ("See [@nobody1999].", "nobody1999"),
    ("See @fig:nowhere.", "fig:nowhere"),
    ("See @sec:nowhere and @eq:nowhere.", "nowhere"),
    ("A {{nubmer:lsd}}.", "no directive"),
])  # fmt: skip
def test_faults_in_the_text_fail(project, new, expected):
    edit(project, "# Introduction {#sec:intro}", f"# Introduction {{#sec:intro}}\n\n{new}")
    with pytest.raises(SrlibError, match=expected) as error:
        report.build("smoke", draft=True)
    assert "\n" not in str(error.value)


def test_hand_edited_tables_are_refused(project):
    path = artifacts.tables_dir("smoke") / "lsd_summary.csv"
    path.write_text(path.read_text().replace("1.25", "0.25"))
    with pytest.raises(SrlibError, match="edited by hand"):
        report.build("smoke", draft=True)


def test_pivot_orders_labels_and_leaves_dashes():
    spec = {"rows": "system", "columns": "cutoff_hz", "cell": "{lsd:.2f}", "order": ["ours", "absent", "b_c"],
            "heading": "System", "where": {"noise": "clean"}}  # fmt: skip
    frame = pd.DataFrame({"noise": ["clean"] * 3 + ["tone"], "system": ["b_c", "ours", "ours", "ours"],
                          "cutoff_hz": [8000, 4000, 8000, 8000], "lsd": [2.0, 1.0, float("nan"), 3.0]})  # fmt: skip
    header, rows = report._cells(frame, spec, {"4000": "4 kHz", "ours": "**us**"})
    assert header == ["System", "4 kHz", "8000"]
    assert rows == [["**us**", "1.00", "–"], ["b\\_c", "–", "2.00"]]


def test_readme_and_model_card_get_their_results(project):
    make_artefacts("demo")
    block = "# Title\n<!-- results:begin -->\nstale rows\n<!-- results:end -->\nrest\n"
    (project / "README.md").write_text(block, encoding="utf-8")
    for path in report.update_readme("demo"):
        text = path.read_text(encoding="utf-8")
        assert "stale rows" not in text and "1.10 (1.25)" in text and "profile `demo`" in text
    assert "| Run | Stage |" in (project / "report" / "model_card.md").read_text(encoding="utf-8")
    before = (project / "README.md").read_bytes()
    report.update_readme("demo")
    assert (project / "README.md").read_bytes() == before
    (project / "README.md").write_text("# Title\n", encoding="utf-8")
    with pytest.raises(SrlibError, match="results:begin"):
        report.update_readme("demo")


def declared(kinds: tuple[str, ...]) -> set[str]:
    outputs = (output.partition(".") for notebook in CHAIN for output in notebook.outputs)
    return {name for name, _, kind in outputs if kind in kinds}


def test_the_text_uses_only_what_notebooks_declare():
    assert set(report.NUMBER.findall(TEXT)) <= declared(("",))
    assert set(report.FIGURE.findall(TEXT)) <= declared(("png", "svg"))
    assert {name for name, _ in TABLES} <= declared(("csv",))


def test_every_reference_of_the_bibliography_is_cited():
    bibliography = (SOURCE / "report/references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{(\w+),", bibliography, re.MULTILINE)
    assert set(keys) <= set(re.findall(r"@(\w+)", TEXT))
