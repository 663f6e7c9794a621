"""Every figure draws, twice to the same picture; the spectrogram axis shows what was put in; players keep levels."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from srlib import diagrams, plots
from srlib.errors import SrlibError

RATE = 48000


def tone(hz: float, amplitude: float = 0.5, seconds: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def training_log(steps: int = 40) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    loss = 1.0 / step
    sparse = np.where(step % 10 == 0, 1.0, np.nan)
    return pd.DataFrame(
        {"global_step": step, "wall_time": 2.0 * step, "train/loss": loss, "val/loss": loss * sparse, "val/lsd": sparse}
    )


def lsd_summary() -> pd.DataFrame:
    rows = [
        {"noise": noise, "cutoff_hz": cutoff, "system": system, "lsd_19k": 1.0, "ci_low": 0.9, "ci_high": 1.2}
        for noise in ("clean", "tone")
        for cutoff in (4000, 8000)
        for system in ("oracle", "unprocessed", "ours")
    ]
    return pd.DataFrame(rows)


def detected_edges() -> pd.DataFrame:
    rows = [("filter", 3800, 4600, 4000, 3600), ("full band", 18_500, 24_000, 24_000, 9000)]
    return pd.DataFrame(rows, columns=["group", "low_hz", "high_hz", "ours_hz", "roll_off_hz"])


RESPONSES = {family: {2: np.linspace(1, 0, 50), 8: np.linspace(1, 0, 50) ** 4} for family in "abcd"}
FIGURES = {
    "spectrograms": lambda: plots.spectrograms({"a": tone(500), "b": tone(900), "c": tone(2000)}, row_height=1.4),
    "triptych": lambda: plots.triptych(tone(500), tone(900), tone(2000), title="three"),
    "log_mels": lambda: plots.log_mels({"a": np.zeros((20, 256)) - 5}, np.geomspace(20, 24000, 258)),
    "bandwidth_histogram": lambda: plots.bandwidth_histogram({"train": [19.0, 20.5], "test": [16.0]}),
    "filter_responses": lambda: plots.filter_responses(RESPONSES, np.linspace(0, 24000, 50), 8000),
    "cutoff_detection": lambda: plots.cutoff_detection(detected_edges()),
    "noise_schedule": lambda: plots.noise_schedule(np.linspace(0.999, 0, 100), [99, 50, 0]),
    "loss_curves": lambda: plots.loss_curves({"loss": {"one": training_log(), "two": training_log()}}),
    "lsd_vs_step": lambda: plots.lsd_vs_step({"one": training_log()}),
    "live_training": lambda: plots.live_training(training_log()),
    "lsd_bars": lambda: plots.lsd_bars(lsd_summary()),
    "audioldm": diagrams.audioldm,
    "audiosr_noise": diagrams.audiosr_noise,
}


def svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_deterministic_and_not_blank(name):
    with plots.matplotlib.rc_context({"svg.hashsalt": "test"}):
        first, second = svg(FIGURES[name]()), svg(FIGURES[name]())
    assert first == second
    assert len(first) > 5000


def test_functions_with_ax_draw_into_it():
    ax = Figure().add_subplot()
    assert plots.live_training(training_log(), ax=ax) is ax.figure
    assert ax.lines


@pytest.mark.parametrize("hz", [300.0, 1000.0, 7000.0, 15000.0])
def test_spectrogram_axis_shows_a_tone_where_it_is_and_equally_bright(hz):
    image = plots.mel_axis_power_db(tone(hz))
    middle = image[:, image.shape[1] // 2]
    edges = plots._mel_to_hz(np.linspace(plots._hz_to_mel(100.0), plots._hz_to_mel(20000.0), len(middle) + 1))
    row = int(np.argmax(middle))
    assert edges[row] - 24 <= hz <= edges[row + 1] + 24  # one STFT bin is 23.4 Hz wide
    level_db = 10 * np.log10((0.5 * 0.5 * 2048 / 2) ** 2 / 2048)  # Hann: half the peak of a rectangular window
    assert middle[row] == pytest.approx(level_db, abs=1.5)


def test_figures_carry_no_pyplot_state():
    import matplotlib.pyplot as plt

    plots.spectrograms({"tone": tone(1000)})
    assert plt.get_fignums() == []


def test_listen_keeps_levels_and_refuses_too_many(monkeypatch):
    IPython = pytest.importorskip("IPython")
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda html: shown.append(html.data))
    plots.listen({"loud": tone(440, 0.5), "quiet": tone(440, 0.05)})
    assert "loud" in shown[0] and shown[0].count("<audio") == 2
    with pytest.raises(SrlibError, match="at most 4 clips"):
        plots.listen(dict.fromkeys("abcde", tone(440)))
