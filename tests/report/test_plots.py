"""Every figure draws what was put in, twice to the same picture; players keep levels."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from srlib.errors import SrlibError
from srlib.report import diagrams, plots, plots_model

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


def with_zimtohrli(log: pd.DataFrame) -> pd.DataFrame:
    return log.assign(**{"val/zimtohrli": 10 * log["val/lsd"]})


def lsd_summary() -> pd.DataFrame:
    cells = itertools.product(("clean", "tone"), (8000, 4000), ("ours", "oracle", "unprocessed"))
    rows = [(*cell, 1 + i, 0.9 + i, 1.2 + i) for i, cell in enumerate(cells)]
    return pd.DataFrame(rows, columns=["noise", "cutoff_hz", "system", "lsd_19k", "ci_low", "ci_high"])


def detected_edges() -> pd.DataFrame:
    rows = [("filter", 3800, 4600, 4000, 3600), ("full band", 18_500, 24_000, 24_000, 9000)]
    return pd.DataFrame(rows, columns=["group", "low_hz", "high_hz", "ours_hz", "roll_off_hz"])


def gap_table() -> pd.DataFrame:
    cells = itertools.product(("clean", "white"), ("silence", "ours"), (50, 250, 500))
    rows = [(*cell, 0.1 * i) for i, cell in enumerate(cells)]
    return pd.DataFrame(rows, columns=["noise", "system", "gap_ms", "lsd_19k"])


def learning_curve() -> pd.DataFrame:
    rows = [(hours, step, 1.5 - 0.01 * hours, 20.0 - hours) for hours in (1, 12) for step in (100, 200, 300)]
    return pd.DataFrame(rows, columns=["hours", "step", "val_lsd", "val_zimtohrli"])


CLIPS = {"a": tone(500), "b": tone(900, seconds=0.4), "c": tone(2000)}
MELS = {label: np.random.default_rng(i).uniform(-9, 2, (20 + i, 256)) for i, label in enumerate("abc")}
EDGES_HZ = np.geomspace(20, 24000, 258)
FREQS_HZ = np.linspace(0, 24000, 50)
RESPONSES = {
    family: {order: np.linspace(1, 0, 50) ** (order + i) for order in (2, 8)} for i, family in enumerate("abcd")
}
KHZ = {"train": [19.0, 20.5, 20.7], "test": [16.0]}
ABAR = np.linspace(0.999, 0.001, 100)
LOGS = {"one": training_log(), "two": training_log(60, 0.5)}
DEVIATIONS = {"d": np.random.default_rng(3).uniform(0, 2, (25, 256))}
FIGURES = {
    "spectrograms": lambda: plots.spectrograms(CLIPS, row_height=1.4),
    "triptych": lambda: plots.triptych(*CLIPS.values(), title="three"),
    "log_mels": lambda: plots.log_mels(MELS, EDGES_HZ, columns=2),
    "bandwidth_histogram": lambda: plots.bandwidth_histogram(KHZ),
    "filter_responses": lambda: plots.filter_responses(RESPONSES, FREQS_HZ, 8000),
    "cutoff_detection": lambda: plots.cutoff_detection(detected_edges()),
    "noise_schedule": lambda: plots.noise_schedule(ABAR, [99, 50, 0]),
    "loss_curves": lambda: plots.loss_curves({"loss": LOGS, "other": {"three": training_log(80)}}),
    "lsd_vs_step": lambda: plots.lsd_vs_step(LOGS),
    "validations": lambda: plots.lsd_vs_step({"old": training_log(), "new": with_zimtohrli(training_log(60))}),
    "posterior": lambda: plots_model.posterior(MELS, DEVIATIONS, EDGES_HZ),
    "learning_curve": lambda: plots_model.learning_curve(learning_curve()),
    "live_training": lambda: plots.live_training(training_log()),
    "lsd_bars": lambda: plots.lsd_bars(lsd_summary()),
    "gap_curves": lambda: plots.gap_curves(gap_table()),
    "audioldm": diagrams.audioldm,
    "audiosr_noise": diagrams.audiosr_noise,
}


def svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_deterministic(name):
    with plots.matplotlib.rc_context({"svg.hashsalt": "test"}):
        first, second = svg(FIGURES[name]()), svg(FIGURES[name]())
    assert first == second


# What is drawn is what was passed in


def panels(name: str) -> list[Axes]:
    """The visible axes of a figure but its colour bars."""
    figure = FIGURES[name]()
    return [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]


def assert_curve(line: Line2D, x, y) -> None:
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), x)
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), y)


@pytest.mark.parametrize(
    ("name", "labels"), [("spectrograms", list(CLIPS)), ("triptych", ["ground truth", "degraded", "restored"])]
)
def test_spectrograms_show_their_clips(name, labels):
    axes = panels(name)
    assert [ax.get_title(loc="left") for ax in axes] == labels
    for ax, wav in zip(axes, CLIPS.values(), strict=True):
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), plots.mel_axis_power_db(wav))
        assert image.get_extent()[:2] == [0, len(wav) / RATE] and image.get_clim() == plots.DB_RANGE
    assert {"spectrograms": "", "triptych": "three"}[name] == axes[0].figure.get_suptitle()


def test_log_mels_show_their_panels():
    axes = panels("log_mels")
    assert [ax.get_title(loc="left") for ax in axes] == list(MELS)
    for ax, log_mel in zip(axes, MELS.values(), strict=True):
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), log_mel.T)
        assert image.get_extent() == pytest.approx((0, 0.01 * len(log_mel), 0, 256))
    ticks = {tick.get_text(): y for tick, y in zip(axes[0].get_yticklabels(), axes[0].get_yticks(), strict=True)}
    assert np.interp(ticks["5k"], np.arange(256), EDGES_HZ[1:-1]) == pytest.approx(5000, rel=1e-3)


def test_histogram_counts_the_tracks():
    (ax,) = panels("bandwidth_histogram")
    assert ax.get_legend_handles_labels()[1] == list(KHZ)
    for khz, bars in zip(KHZ.values(), ax.containers, strict=True):
        counted = {bar.get_x(): bar.get_height() for bar in bars if bar.get_height()}
        assert counted == {np.floor(value): sum(np.floor(khz) == np.floor(value)) for value in khz}


def test_filter_responses_are_in_decibels():
    for ax, (family, curves) in zip(panels("filter_responses"), RESPONSES.items(), strict=True):
        assert ax.get_title(loc="left") == family
        *lines, cutoff, at_3db, at_20db = ax.lines
        for line, (order, gain) in zip(lines, curves.items(), strict=True):
            assert line.get_label() == f"order {order}"
            assert_curve(line, FREQS_HZ / 1000, 20 * np.log10(np.maximum(gain, 1e-8)))
        assert (set(cutoff.get_xdata()), at_3db.get_ydata()[0], at_20db.get_ydata()[0]) == ({8}, -3, -20)


def test_detected_edges_stand_over_true_ones():
    detected = detected_edges()
    for ax, column in zip(panels("cutoff_detection"), ("ours_hz", "roll_off_hz"), strict=True):
        for (points, _, (across,)), row in zip(ax.containers, detected.itertuples(), strict=True):
            assert_curve(points, np.sqrt(row.low_hz * row.high_hz) / 1000, getattr(row, column) / 1000)
            np.testing.assert_allclose(across.get_segments()[0][:, 0], [row.low_hz / 1000, row.high_hz / 1000])


def test_noise_schedule_is_that_of_the_sampler():
    left, right = panels("noise_schedule")
    steps, snr_db = [99, 50, 0], 10 * np.log10(ABAR / (1 - ABAR))
    for line, share in zip(left.lines, (ABAR, 1 - ABAR), strict=True):
        assert_curve(line, np.arange(100), np.sqrt(share))
    for line, x in zip(right.lines, (np.arange(100), steps), strict=True):
        assert_curve(line, x, snr_db[x])


def test_loss_curves_run_end_to_end():
    first, second = panels("loss_curves")
    assert (first.get_ylabel(), second.get_ylabel()) == ("loss", "other")
    start = 0.0
    for (name, log), lines in zip(LOGS.items(), (first.lines[:4], first.lines[4:]), strict=True):
        minutes = start + log["wall_time"] / 60
        raw, smooth, validation, border = lines
        assert_curve(raw, minutes, log["train/loss"])
        assert_curve(validation, minutes, log["val/loss"])
        assert smooth.get_label() == name and set(border.get_xdata()) == {start}
        assert np.ptp(np.diff(smooth.get_ydata())) < np.ptp(np.diff(raw.get_ydata()))
        start = minutes.iloc[-1]
    assert len(second.lines) == 4


def test_lsd_is_drawn_over_the_steps_of_the_whole_curriculum():
    (ax,) = panels("lsd_vs_step")
    for start, line, (name, log) in zip((0, 40), ax.lines[::2], LOGS.items(), strict=True):
        valid = log.dropna(subset="val/lsd")
        assert line.get_label() == name
        assert_curve(line, start + valid["global_step"], valid["val/lsd"])


def test_the_perceptual_distance_leads_where_logs_hold_it():
    above, below = panels("validations")
    log = with_zimtohrli(training_log(60)).dropna(subset="val/lsd")
    old, new = above.lines[::2]
    assert len(old.get_xdata()) == 0
    assert_curve(new, 40 + log["global_step"], log["val/zimtohrli"])
    assert_curve(below.lines[2], 40 + log["global_step"], log["val/lsd"])
    assert "Zimtohrli" in above.get_ylabel() and "LSD" in below.get_ylabel()


def test_a_posterior_shows_log_mels_and_deviations_on_their_own_scales():
    axes = panels("posterior")
    assert [ax.get_title(loc="left") for ax in axes] == [*MELS, *DEVIATIONS]
    for ax, values in zip(axes, [*MELS.values(), *DEVIATIONS.values()], strict=True):
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array(), values.T)
        assert image.get_extent() == pytest.approx((0, 0.01 * len(values), 0, 256))
    limits = [ax.images[0].get_clim() for ax in axes]
    assert len(set(limits[:3])) == 1 and limits[3] == (0, 2)


def test_a_learning_curve_has_a_line_for_each_amount_of_music():
    table = learning_curve()
    for ax, column in zip(panels("learning_curve"), ("val_zimtohrli", "val_lsd"), strict=True):
        for line, (hours, rows) in zip(ax.lines, table.groupby("hours"), strict=True):
            assert line.get_label() == f"{hours} h"
            assert_curve(line, rows["step"], rows[column])


def test_live_training_shows_every_record():
    (ax,) = panels("live_training")
    log = training_log()
    assert_curve(ax.lines[0], log["global_step"], log["train/loss"])
    np.testing.assert_allclose(ax.lines[1].get_ydata()[1:-1], log["train/loss"].rolling(3).mean()[2:])


def test_bars_are_means_with_their_interval():
    axes, summary = panels("lsd_bars"), lsd_summary()
    assert [ax.get_title(loc="left") for ax in axes] == ["clean", "tone"]
    assert [tick.get_text() for tick in axes[-1].get_xticklabels()] == ["4 kHz", "8 kHz"]
    for ax in axes:
        ours = summary[summary["noise"] == ax.get_title(loc="left")].sort_values("cutoff_hz").groupby("system")
        drawn = {bars.get_label(): bars for bars in ax.containers if isinstance(bars, BarContainer)}
        assert list(drawn) == ["oracle", "unprocessed", "ours"]
        for system, bars in drawn.items():
            rows = ours.get_group(system)
            np.testing.assert_allclose([bar.get_height() for bar in bars], rows["lsd_19k"])
            intervals = [segment[:, 1] for segment in bars.errorbar[2][0].get_segments()]
            np.testing.assert_allclose(intervals, rows[["ci_low", "ci_high"]])


def test_gap_curves_are_those_of_the_table():
    axes, table = panels("gap_curves"), gap_table()
    assert len(axes) == 2
    for ax, (_, rows) in zip(axes, table.groupby("noise", sort=False), strict=True):
        for line in ax.lines:
            curve = rows[rows["system"] == line.get_label()]
            assert_curve(line, curve["gap_ms"], curve["lsd_19k"])
        assert len(ax.lines) == 2


@pytest.mark.parametrize("name", ["audioldm", "audiosr_noise"])
def test_drawings_have_every_part_of_the_model_and_no_two_at_one_place(name):
    (ax,) = panels(name)
    texts = " ".join(text.get_text() for text in ax.texts)
    assert all(part in texts for part in ("STFT + mel", "VAE encoder", "U-Net", "VAE decoder", "vocoder"))
    boxes = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    assert all(ax.get_window_extent().padded(1).containsx(x) for box in boxes for x in box.intervalx)
    assert sum(isinstance(patch, FancyArrowPatch) for patch in ax.patches) >= 10


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
