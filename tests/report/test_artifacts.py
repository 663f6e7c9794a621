"""Artefacts round-trip and repeat to the byte; what is committed is rewritten only where a result moved."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from srlib.errors import SrlibError
from srlib.report import artifacts, plots

NOTEBOOK = "07_lsd_tables"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    return tmp_path


def drawn(last: float = 2.0, left: float = 0.1) -> Figure:
    figure = Figure(figsize=(3, 2))
    figure.subplots_adjust(left)
    figure.subplots().plot([1.0, 3.0, last])
    return figure


def curve(error: float = 0.0) -> Figure:
    x = np.linspace(0, 1, 1000)
    return plots.lines(pd.DataFrame({"x": x, "y": np.cos(3 * x) + error * np.sin(1e4 * x)}), "x", {"y": "y"})


def picture(level: float = 1.0) -> Figure:
    figure = Figure(figsize=(3, 2))
    figure.subplots().imshow([[0, level], [0.5, 0.2]], vmin=0, vmax=1)
    return figure


def table(lsd: float = 1 / 3, snr_db: float = 173.0, seconds: float = 1.0) -> pd.DataFrame:
    columns = {"system": ["ours", "none", "x"], "lsd": [lsd, np.nan, 0.5], "snr_db": [snr_db, 20.0, np.inf]}
    return pd.DataFrame(columns | {"seconds": seconds})


def saved(one, name: str = "one", profile: str = "demo"):
    save = artifacts.save_figure if isinstance(one, Figure) else artifacts.save_table
    return save(one, name, profile, NOTEBOOK)


def published(one) -> list[str]:
    saved(one)
    return artifacts.publish(NOTEBOOK, "demo")


def committed(project) -> dict:
    return {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and "build" not in path.parts}


def test_a_table_round_trips_with_six_digits_and_its_settings(project):
    path = artifacts.save_table(table(), "lsd", "demo", NOTEBOOK, settings={"n_fft": np.int64(2048)})
    assert path.is_relative_to(project / "build" / "demo") and committed(project) == {}
    artifacts.publish(NOTEBOOK, "demo")
    restored, settings = artifacts.committed_table("lsd")
    assert restored.lsd[0] == 0.333333 and np.isnan(restored.lsd[1]) and settings == {"n_fft": 2048}
    assert list(restored.system) == ["ours", "none", "x"]  # the text "none" is no missing value


@pytest.mark.parametrize(("draw", "other", "kind"), [(picture, drawn, "png"), (drawn, picture, "svg")])
def test_figures_repeat_to_the_byte_as_png_if_they_hold_images(project, draw, other, kind):
    published(other())
    path = saved(draw())
    before = path.read_bytes()
    assert saved(draw()).read_bytes() == before
    artifacts.publish(NOTEBOOK, "demo")
    assert {path.name for path in committed(project)} == {"one.json", f"one.{kind}"}


@pytest.mark.parametrize(
    ("before", "now", "difference"),
    [
        (table(), table(), None),
        (table(), table(lsd=1 / 3 + 1e-5, snr_db=158.0, seconds=9.0), None),  # another CPU
        (table(), table(lsd=0.35), r"tables/one\.csv lsd moved by 0\.\d+ \(1 rows; 0\.333333 became 0\.35\)"),
        (table(snr_db=30.0), table(snr_db=29.0), "snr_db moved by 0.017 "),
        (table(), table().fillna(1.0), "lsd moved by inf .*nan became 1"),
        (table(), table().replace("ours", "theirs"), "system has other text"),
        (table(), table().iloc[:1], "had 3 rows of 4 columns, has 1 of 4"),
        (table(snr_db=80.0), table(snr_db=65.0), "snr_db moved by 0.094 "),
        (table(snr_db=-71.0), table(snr_db=-69.9), None),
        (table().assign(lsd=4.6e-5), table().assign(lsd=4.61e-5), None),
        (table().assign(lsd_ssr_eval=3.30), table().assign(lsd_ssr_eval=3.28), None),
        (drawn(), drawn(2.00002), None),
        (drawn(), drawn(left=0.100003), None),  # other names of clips
        (curve(), curve(1e-6), None),
        (drawn(), drawn(2.2), r"figures/one\.svg is drawn differently"),
        (picture(), picture(0.99999), None),
        (picture(), picture(0.3), r"figures/one\.png is drawn differently"),
    ],
)
def test_only_what_moved_is_rewritten(project, before, now, difference):
    assert published(before)[0].endswith("is new")
    as_it_was = committed(project)
    found = published(now)
    if difference is None:
        assert found == [] and committed(project) == as_it_was
    else:
        assert len(found) == 1 and pd.Series(found).str.contains(difference).all()
        assert committed(project) != as_it_was and published(now) == []


def test_verifying_rewrites_nothing_and_what_is_no_longer_made_goes(project):
    published(table())
    as_it_was = committed(project)
    for path in (project / "build/demo/tables").iterdir():
        path.unlink()
    saved(drawn(), "other")
    for rewrite in (False, True):
        assert (committed(project) == as_it_was) and len(artifacts.publish(NOTEBOOK, "demo", rewrite)) == 2
    assert sorted(path.name for path in committed(project)) == ["other.json", "other.svg"]


@pytest.mark.parametrize("profile", ["smoke", "explore"])
def test_smoke_and_explorations_are_never_published(project, profile):
    saved(table(), profile=profile)
    assert artifacts.publish(NOTEBOOK, "smoke") == artifacts.publish(NOTEBOOK, "demo") == [] == [*committed(project)]


def test_hand_edited_and_foreign_artefacts_are_refused():
    published(table())
    with pytest.raises(SrlibError, match=r"of another profile\); run `srlib reproduce --profile paper`\.$"):
        artifacts.find("table", "one", "paper")
    path, _ = artifacts.find("table", "one", "demo")
    path.write_text(path.read_text().replace("0.333333", "0.1"))
    with pytest.raises(SrlibError, match="edited by hand"):
        artifacts.find("table", "one", "demo")
    assert published(table()) == ["report/tables/one.csv is not what its record describes"]


def test_an_empty_table_is_refused():
    with pytest.raises(SrlibError, match="no rows"):
        saved(table()[:0])
