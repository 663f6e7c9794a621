"""What the live cells show where nobody can move them, and what a move does where somebody can."""

import html
import re
from datetime import UTC, datetime

import ipywidgets
import numpy as np
import pytest

from srlib.audio import files
from srlib.degrade import Degradation
from srlib.report import explore
from srlib.report.run import IN_CHAIN, notebook_setup

START = Degradation(cutoff_hz=4000.0, noise_type="white", noise_amplitude=0.01)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed; a front end is there."""
    found = []
    monkeypatch.setattr("IPython.display.display", found.append)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    monkeypatch.delenv(IN_CHAIN, raising=False)
    return found


@pytest.fixture
def run(monkeypatch, tmp_path):
    made = notebook_setup("11_your_own_file", {"profile": "smoke"})
    monkeypatch.setattr(made, "scratch", lambda name: tmp_path)
    return made


@pytest.fixture
def moved(shown):
    """Moves one control, and gives the HTML that is then shown."""

    def move(name: str, value) -> str:
        next(one for one in shown[0].children if one.description == name).value = value
        return shown[0].children[-1].value

    return move


def names(page: str) -> list[str]:
    return re.findall(r'data-name="(.*?)"', html.unescape(page))


@pytest.mark.parametrize("variable", [IN_CHAIN, "JPY_SESSION_NAME"])
def test_in_the_chain_and_without_a_front_end_the_starting_values_are_shown(shown, monkeypatch, music, variable):
    monkeypatch.setenv(variable, "1") if variable == IN_CHAIN else monkeypatch.delenv(variable)
    explore.degradation(music, START)
    page = shown[0].data
    assert names(page) == ["reference", "degraded"] and "audio/ogg" in page and "mean spectra" in page
    assert f"-3 dB at {START.passband_hz(48_000):.0f} Hz" in page


def test_a_move_draws_anew_and_an_error_is_a_sentence(shown, moved, monkeypatch, music):
    explore.degradation(music[:24_000], START)
    assert isinstance(shown[0], ipywidgets.Box)
    page = moved("cutoff_hz", 8000.0)
    expected = Degradation(cutoff_hz=8000.0).passband_hz(48_000)
    assert names(page) == ["reference", "degraded"] and f"-3 dB at {expected:.0f} Hz" in page
    monkeypatch.setattr(Degradation, "apply", lambda *_: (_ for _ in ()).throw(explore.SrlibError("too <loud>")))
    assert moved("filter_order", 2) == "<p>too &lt;loud&gt;</p>"


def test_a_restoration_takes_a_system_with_other_steps(moved, run):
    explore.restoration(run)
    pages = [moved("steps", explore.OWN), moved("steps", 0), moved("system", "notch")]
    assert len(set(pages)) == 3 and all(names(one) == ["reference", "degraded", "restored"] for one in pages)
    assert "no model" in pages[2]


def test_a_file_is_shown_with_its_findings_and_another_one_can_be_uploaded(moved, run, music, tmp_path):
    low_pass = Degradation(cutoff_hz=6000.0).apply(music, 48_000)
    path, other = tmp_path / "a.wav", tmp_path / "other" / "b.wav"
    other.parent.mkdir()
    files.write(path, np.stack([low_pass, low_pass]), 48_000)
    files.write(other, 0 * low_pass[None, :24_000], 48_000)
    explore.your_file(run, path)
    page = moved("blend", 0.5)
    assert "band to 6." in page and names(page) == ["your file", "restored"]
    content = {"name": "b.wav", "type": "audio/wav", "size": 1, "content": memoryview(other.read_bytes())}
    page = moved("another_file", ({**content, "last_modified": datetime.now(UTC)},))
    assert "band to" not in page and names(page) == ["your file", "restored"]
