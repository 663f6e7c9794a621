"""Figures put their data on the right axes and repeat to the byte; players keep levels."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srlib.errors import SrlibError
from srlib.report import plots

RATE = 48000


def tone(hz: float, amplitude: float = 0.5, seconds: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def training_log(steps: int = 40, scale: float = 1.0) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    loss = scale / step
    validated = step % 10 == 0
    return pd.DataFrame({
        "global_step": step,
        "wall_time": 2.0 * step,
        "train/loss": loss,
        "val/loss": np.where(validated, 1.1 * loss, np.nan),
        "val/lsd": np.where(validated, 1 + loss, np.nan),
    })  # fmt: skip


def detected_edges() -> pd.DataFrame:
    rows = [("filter", 3800, 4600, 4000, 3600), ("full band", 18_500, 24_000, 24_000, 9000)]
    return pd.DataFrame(rows, columns=["group", "low_hz", "high_hz", "ours_hz", "roll_off_hz"])


CLIPS = {"a": tone(500), "b": tone(900, seconds=0.4), "c": tone(2000)}
MELS = {label: np.random.default_rng(i).uniform(-9, 2, (20 + i, 256)) for i, label in enumerate("abc")}
DEVIATIONS = {"d": np.random.default_rng(3).uniform(0, 2, (25, 256))}
EDGES_HZ = np.geomspace(20, 24000, 258)
FREQS_HZ = np.linspace(0, 24000, 50)
RESPONSES = {family: {order: 0.1 ** np.linspace(0, order, 50) for order in (2, 8)} for family in "abcd"}
KHZ = {"train": [19.0, 20.5, 20.7], "test": [16.0]}
ABAR = np.linspace(0.999, 0.001, 100)
LOGS = {"one": training_log(), "two": training_log(60, 0.5)}
FIGURES = {
    "spectrograms": lambda: plots.spectrograms(CLIPS, row_height=1.4),
    "triptych": lambda: plots.triptych(*CLIPS.values(), title="three"),
    "log_mels": lambda: plots.log_mels(MELS, EDGES_HZ, columns=2),
    "posterior": lambda: plots.log_mels(MELS, EDGES_HZ, 2, DEVIATIONS),
    "bandwidth_histogram": lambda: plots.bandwidth_histogram(KHZ),
    "filter_responses": lambda: plots.filter_responses(RESPONSES, FREQS_HZ, 8000),
    "cutoff_detection": lambda: plots.cutoff_detection(detected_edges()),
    "noise_schedule": lambda: plots.noise_schedule(ABAR, [99, 50, 0]),
    "loss_curves": lambda: plots.loss_curves({"loss": LOGS, "other": {"three": training_log(80)}}),
    "lsd_vs_step": lambda: plots.lsd_vs_step(LOGS),
    "learning_curve": lambda: plots.learning_curve(curve()),
    "live_training": lambda: plots.live_training(training_log()),
}


def curve() -> pd.DataFrame:
    rows = {"hours": [1.0, 1.0, 9.0, 9.0], "step": [200, 400, 200, 400], "val_lsd": [1.5, 1.4, 1.3, 1.2]}
    return pd.DataFrame(rows).assign(val_zimtohrli=[9.0, 8.0, 7.0, 6.0])


def svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with plots.matplotlib.rc_context({"svg.hashsalt": "test"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_repeat_to_the_byte_and_leave_pyplot_alone(name):
    import matplotlib.pyplot as plt

    assert svg(FIGURES[name]()) == svg(FIGURES[name]())
    assert plt.get_fignums() == []


def panels(name: str) -> list[Axes]:
    """The visible axes of a figure but its colour bars."""
    return [ax for ax in FIGURES[name]().axes if ax.get_visible() and ax.get_label() != "<colorbar>"]


@pytest.mark.parametrize("hz", [300.0, 1000.0, 7000.0, 15000.0])
def test_a_tone_is_drawn_at_its_frequency_and_equally_bright(hz):
    ax = plots.spectrograms({"tone": tone(hz)}).axes[0]
    (image,) = ax.images
    middle = image.get_array()[:, 25]
    low, high = image.get_extent()[2:]
    y = low + (int(np.argmax(middle)) + 0.5) / len(middle) * (high - low)
    tick_hz = [int(label.get_text().replace(",", "")) for label in ax.get_yticklabels()]
    drawn_hz = np.interp(y, ax.get_yticks(), tick_hz)
    assert drawn_hz == pytest.approx(hz, rel=0.15)  # between ticks the axis is no straight line
    level_db = 10 * np.log10((0.5 * 0.5 * 2048 / 2) ** 2 / 2048)  # Hann: half the peak of a rectangular window
    assert middle.max() == pytest.approx(level_db, abs=1.5)


def test_log_mels_are_labelled_in_hertz_and_deviations_have_a_scale_of_their_own():
    axes = panels("posterior")
    assert [ax.get_title("left") for ax in axes] == [*MELS, *DEVIATIONS]
    ticks = {tick.get_text(): y for tick, y in zip(axes[0].get_yticklabels(), axes[0].get_yticks(), strict=True)}
    assert np.interp(ticks["5k"], np.arange(256), EDGES_HZ[1:-1]) == pytest.approx(5000, rel=1e-3)
    limits = [ax.images[0].get_clim() for ax in axes]
    assert len(set(limits[:3])) == 1 and limits[3] == (0, 2)
    assert [ax.images[0].get_extent()[1] for ax in axes] == pytest.approx([0.2, 0.21, 0.22, 0.25])  # frames of 10 ms


def test_histogram_counts_the_tracks():
    (ax,) = panels("bandwidth_histogram")
    counted = [{bar.get_x(): bar.get_height() for bar in bars if bar.get_height()} for bars in ax.containers]
    assert counted == [{19.0: 1, 20.0: 2}, {16.0: 1}]


def test_filter_responses_are_in_decibels():
    for ax in panels("filter_responses"):
        ends = {line.get_label(): line.get_ydata()[-1] for line in ax.lines[:2]}
        assert ends == {"order 2": pytest.approx(-40), "order 8": pytest.approx(-160)}


def test_runs_stand_end_to_end():
    first, second = panels("loss_curves")
    assert [first.lines[i].get_xdata()[0] for i in (0, 4)] == pytest.approx([2 / 60, 80 / 60 + 2 / 60])
    assert len(second.lines) == 4
    (ax,) = panels("lsd_vs_step")
    assert [line.get_xdata()[0] for line in ax.lines[::2]] == [10, 50]


def test_the_perceptual_distance_leads_where_logs_hold_it():
    with_both = training_log(60).assign(**{"val/zimtohrli": 7.0})
    above, below = plots.lsd_vs_step({"old": training_log(), "new": with_both}).axes
    assert [len(line.get_xdata()) for line in above.lines[::2]] == [0, 60]
    assert "Zimtohrli" in above.get_ylabel() and "LSD" in below.get_ylabel()


def test_the_learning_curve_has_a_line_for_each_amount_of_music():
    zimtohrli, lsd = panels("learning_curve")
    assert [list(line.get_ydata()) for line in zimtohrli.lines] == [[9.0, 8.0], [7.0, 6.0]]
    assert [list(line.get_ydata()) for line in lsd.lines] == [[1.5, 1.4], [1.3, 1.2]]
    assert [line.get_label() for line in lsd.lines] == ["1 h of music", "9 h of music"]


def test_listen_keeps_levels_and_refuses_too_many(monkeypatch):
    IPython = pytest.importorskip("IPython")
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda html: shown.append(html.data))
    plots.listen({"loud": tone(440, 0.5), "quiet": tone(440, 0.05)})
    assert "loud" in shown[0] and shown[0].count("<audio") == 2
    with pytest.raises(SrlibError, match="at most 4 clips"):
        plots.listen(dict.fromkeys("abcde", tone(440)))
