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
    """What is displayed."""
    found = []
    monkeypatch.setattr("IPython.display.display", found.append)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    return found


@pytest.fixture
def run(monkeypatch, tmp_path):
    made = notebook_setup("11_your_own_file", {"profile": "smoke"})
    monkeypatch.setattr(made, "scratch", lambda name: tmp_path)
    return made


def names(page: str) -> list[str]:
    return re.findall(r'data-name="(.*?)"', html.unescape(page))


def controls(box) -> dict:
    return {one.description: one for one in box.children[0].children}


def test_without_a_front_end_the_starting_values_are_shown(shown, music):
    explore.degradation(music, START)
    page = shown[0].data
    assert names(page) == ["reference", "degraded"] and "audio/ogg" in page and "mean spectra" in page
    assert f"-3 dB at {START.passband_hz(48_000):.0f} Hz" in page


@pytest.mark.parametrize("chain", [True, False])
def test_a_session_of_the_server_is_live_unless_it_is_the_chain(shown, monkeypatch, music, chain):
    monkeypatch.setenv("JPY_SESSION_NAME", "02_degradation.ipynb")
    monkeypatch.setenv(IN_CHAIN, "1") if chain else monkeypatch.delenv(IN_CHAIN, raising=False)
    explore.degradation(music[:24_000], START)
    assert isinstance(shown[0], ipywidgets.VBox) != chain


def test_a_move_draws_anew_and_an_error_is_a_sentence(shown, monkeypatch, music):
    monkeypatch.setenv("JPY_SESSION_NAME", "02_degradation.ipynb")
    monkeypatch.delenv(IN_CHAIN, raising=False)
    explore.degradation(music[:24_000], START)
    moved, screen = controls(shown[0]), shown[0].children[1]
    before = screen.value
    moved["cutoff, Hz"].value = 8000.0
    assert screen.value != before and names(screen.value) == ["reference", "degraded"]
    expected = Degradation(cutoff_hz=8000.0).passband_hz(48_000)
    assert f"-3 dB at {expected:.0f} Hz" in screen.value
    monkeypatch.setattr(Degradation, "apply", lambda *_: (_ for _ in ()).throw(explore.SrlibError("too <loud>")))
    moved["order"].value = 2
    assert screen.value == "<p>too &lt;loud&gt;</p>"


def test_a_restoration_takes_a_system_with_other_steps(shown, monkeypatch, run):
    monkeypatch.setenv("JPY_SESSION_NAME", "06_results.ipynb")
    monkeypatch.delenv(IN_CHAIN, raising=False)
    explore.restoration(run)
    moved, screen = controls(shown[0]), shown[0].children[1]
    pages = [screen.value]
    for name, value in (("steps", 0), ("system", "notch")):
        moved[name].value = value
        pages.append(screen.value)
    assert len(set(pages)) == 3 and all(names(one) == ["reference", "degraded", "restored"] for one in pages)
    assert "no model" in pages[2]


def test_a_file_is_shown_with_its_findings_and_another_one_can_be_uploaded(shown, monkeypatch, run, music, tmp_path):
    low_pass = Degradation(cutoff_hz=6000.0).apply(music, 48_000)
    path, other = tmp_path / "a.wav", tmp_path / "b.wav"
    files.write(path, np.stack([low_pass, low_pass]), 48_000)
    files.write(other, 0 * low_pass[None, :24_000], 48_000)
    monkeypatch.setenv("JPY_SESSION_NAME", "11_your_own_file.ipynb")
    monkeypatch.delenv(IN_CHAIN, raising=False)
    explore.your_file(run, path)
    screen = shown[0].children[1]
    assert "band to 6." in screen.value and names(screen.value) == ["your file", "restored"]
    upload = controls(shown[0])["another file"]
    content = {"name": "b.wav", "type": "audio/wav", "size": 1, "content": memoryview(other.read_bytes())}
    upload.value = ({**content, "last_modified": datetime.now(UTC)},)
    assert "band to" not in screen.value and names(screen.value) == ["your file", "restored"]
