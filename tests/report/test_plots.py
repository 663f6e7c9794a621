"""Figures put their data on the right axes and repeat to the byte; players keep levels."""

import base64
import html
import io
import re

import librosa
import matplotlib
import numpy as np
import pandas as pd
import pytest
import soundfile

from srlib.report import plots

RATE = 48000


def tone(hz: float, amplitude: float = 0.5, seconds: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


TABLE = pd.DataFrame({
    "noise": ["clean"] * 4 + ["white"] * 4, "system": ["ours", "oracle"] * 4, "ms": [50, 50, 100, 100] * 2,
    "lsd": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, np.nan], "snr": [9.0] * 8,
})  # fmt: skip
READ = {"clean": "Clean", "white": "White noise"}  # names for readers
WIDE = TABLE.pivot(index=["noise", "ms"], columns="system", values="lsd")
MELS = {label: np.random.default_rng(i).uniform(-9, 2, (20 + i, 256)) for i, label in enumerate("abc")}
DEVIATIONS = {"d": np.random.default_rng(3).uniform(0, 2, (25, 256))}
EDGES_HZ = np.geomspace(20, 24000, 258)
FIGURES = {
    "posterior": lambda: plots.log_mels(MELS, EDGES_HZ, 2, DEVIATIONS),
    "by_group": lambda: plots.lines(TABLE, "ms", {"lsd": "LSD"}, "system", "noise", levels=(1,), xlabel="length, ms"),
    "by_measure": lambda: plots.lines(TABLE, "ms", {"lsd": "LSD", "snr": "SNR"}, "system", style=""),
    "bars": lambda: plots.bars(WIDE, ["ours", "oracle"], "noise"),
    "stacked": lambda: plots.bars(WIDE, ["ours", "oracle"], "noise", stacked=True),
}


@pytest.mark.parametrize("hz", [300.0, 1000.0, 7000.0, 15000.0])
def test_a_tone_is_drawn_at_its_frequency_and_equally_bright(hz):
    ax = plots.spectrograms({"tone": tone(hz)}).axes[0]
    (image,) = ax.images
    middle = image.get_array()[:, 25]
    low, high = image.get_extent()[2:]
    y = low + (int(np.argmax(middle)) + 0.5) / len(middle) * (high - low)
    tick_hz = [int(label.get_text().replace(",", "")) for label in ax.get_yticklabels()]
    assert librosa.mel_to_hz(y, htk=True) == pytest.approx(hz, rel=0.1)
    np.testing.assert_allclose(librosa.mel_to_hz(ax.get_yticks(), htk=True), tick_hz)
    level_db = 10 * np.log10((0.5 * 0.5 * 2048 / 2) ** 2 / 2048)  # Hann: half the peak of a rectangular window
    assert middle.max() == pytest.approx(level_db, abs=1.5)


def test_log_mels_are_labelled_in_hertz_and_deviations_have_a_scale_of_their_own():
    axes = [ax for ax in FIGURES["posterior"]().axes if ax.get_label() != "<colorbar>"]
    assert [ax.get_title("left") for ax in axes] == [*MELS, *DEVIATIONS]
    ticks = {tick.get_text(): y for tick, y in zip(axes[0].get_yticklabels(), axes[0].get_yticks(), strict=True)}
    assert np.interp(ticks["5k"], np.arange(256), EDGES_HZ[1:-1]) == pytest.approx(5000, rel=1e-3)
    limits = [ax.images[0].get_clim() for ax in axes]
    assert len(set(limits[:3])) == 1 and limits[3] == (0, 2)
    assert [ax.images[0].get_extent()[1] for ax in axes] == pytest.approx([0.2, 0.21, 0.22, 0.25])  # frames of 10 ms


def test_lines_stand_where_the_table_says():
    for ax, (noise, rows) in zip(FIGURES["by_group"]().axes, TABLE.groupby("noise"), strict=True):
        drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines[:2]}
        assert (
            drawn == rows.dropna().groupby("system")["lsd"].apply(list).to_dict()
            and ax.get_title("left") == READ[noise]
        )
        assert list(ax.lines[2].get_ydata()) == [1, 1] and ax.get_xlabel() == "length, ms"
    assert [ax.get_ylabel() for ax in FIGURES["by_measure"]().axes] == ["LSD", "SNR"]


def test_points_are_marked_where_they_are_few_and_a_legend_of_numbers_has_a_title():
    table = pd.DataFrame({"step": [*range(3), *range(50)], "order": [2] * 3 + [4] * 50, "loss": 1.0})
    few, many = (plots.lines(one, "step", {"loss": "loss"}, "order") for one in (table[:3], table))
    assert few.axes[0].lines[0].get_marker() and not any(line.get_marker() for line in many.axes[0].lines)
    assert [figure.legends[0].get_title().get_text() for figure in (few, many)] == ["order", "order"]


def test_bars_are_the_values_and_a_system_keeps_its_colour():
    for ax, noise in zip(FIGURES["bars"]().axes, ("clean", "white"), strict=True):
        for one in ax.containers:
            values = WIDE.loc[noise, one.get_label()]
            np.testing.assert_allclose([bar.get_width() for bar in one], values.fillna(0))
        assert matplotlib.colors.to_hex(ax.containers[0][0].get_facecolor()) == plots.OWN_COLOURS["ours"].lower()
    ax = FIGURES["stacked"]().axes[0]
    assert [bar.get_x() + bar.get_width() for bar in ax.containers[1]] == [3.0, 7.0]


def test_players_keep_the_levels_of_clips_and_say_what_makes_them_equal(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda page: shown.append(html.unescape(page.data)))
    plots.listen({"loud": tone(440, 0.5), "quiet": np.stack([tone(440, 0.05)] * 2)})
    (page,) = shown
    assert re.findall(r'data-name="(.*?)"', page) == ["loud", "quiet"]
    volumes = [float(text) for text in re.findall(r'data-volume="(.*?)"', page)]
    assert volumes == pytest.approx([0.1, 1.0])
    sounds = [io.BytesIO(base64.b64decode(text)) for text in re.findall(r"data:audio/ogg;base64,([\w+/=]+)", page)]
    wavs, rates = zip(*map(soundfile.read, sounds), strict=True)
    assert set(rates) == {RATE} and [wav.ndim for wav in wavs] == [1, 2]
    assert [wav.std() for wav in wavs] == pytest.approx([0.5 / 2**0.5, 0.05 / 2**0.5], rel=0.02)
