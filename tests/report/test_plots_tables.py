"""Figures of tables put their data on the right axes and repeat to the byte."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer

from srlib.report import plots, plots_tables


def lsd_summary() -> pd.DataFrame:
    cells = itertools.product(("clean", "tone"), (8000, 4000), ("ours", "oracle", "unprocessed"))
    rows = [(*cell, 1 + i, 0.9 + i, 1.2 + i) for i, cell in enumerate(cells)]
    return pd.DataFrame(rows, columns=["noise", "cutoff_hz", "system", "lsd_19k", "ci_low", "ci_high"])


def gap_table() -> pd.DataFrame:
    cells = itertools.product(("clean", "white"), ("silence", "ours"), (50, 250, 500))
    rows = [(*cell, 0.1 * i) for i, cell in enumerate(cells)]
    return pd.DataFrame(rows, columns=["noise", "system", "gap_ms", "lsd_19k"])


def choices() -> pd.DataFrame:
    rows = [("convention", "plain", 0.0, 3.7, 0.8), ("convention", "ssr_eval", 0.0, 7.4, 1.1), ("FFT", "512", 0, 3, 1)]
    return pd.DataFrame(rows, columns=["varied", "setting", "itself", "unprocessed", "restored"])


def steps_table() -> pd.DataFrame:
    table = pd.DataFrame({"scheduler": ["ddim", "ddim", "dpm"], "steps": [1, 2, 1]})
    return table.assign(lsd_19k=[1.2, 1.1, 1.3], texture_high=[0.9, 0.8, 0.7])


def costs() -> pd.DataFrame:
    rows = [("compact", "float32", 5.0, 1, 0.5, 0.25, 0.75), ("audiosr", "bfloat16", 10.0, 50, 2.0, 3.0, 5.0)]
    return pd.DataFrame(rows, columns=["size", "dtype", "audio_s", "steps", "encode_s", "other_s", "total_s"])


FIGURES = [(plots_tables.lsd_bars, lsd_summary), (plots_tables.gap_curves, gap_table), (plots_tables.cost, costs),
           (plots_tables.lsd_choices, choices), (plots_tables.quality_by_steps, steps_table)]  # fmt: skip


@pytest.mark.parametrize(("draw", "table"), FIGURES, ids=lambda function: function.__name__)
def test_figures_repeat_to_the_byte(draw, table):
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        with plots.matplotlib.rc_context({"svg.hashsalt": "test"}):
            draw(table()).savefig(file, format="svg", metadata={"Date": None})
    assert files[0].getvalue() == files[1].getvalue()


def test_marks_stand_where_the_table_says():
    for ax, (_, rows) in zip(plots_tables.gap_curves(gap_table()).axes, gap_table().groupby("noise"), strict=True):
        drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
        assert drawn == rows.groupby("system")["lsd_19k"].apply(list).to_dict()
    table = choices()
    (ax,) = plots_tables.lsd_choices(table).axes
    drawn = [list(line.get_xdata()) for line in ax.lines[:3]]
    assert drawn == [list(table[column]) for column in ("itself", "unprocessed", "restored")]


def test_bars_are_means_with_their_interval():
    summary = lsd_summary()
    axes = plots_tables.lsd_bars(summary).axes
    assert [ax.get_title("left") for ax in axes] == ["clean", "tone"]
    assert [tick.get_text() for tick in axes[-1].get_xticklabels()] == ["4 kHz", "8 kHz"]
    for ax in axes:
        noise = summary[summary["noise"] == ax.get_title("left")].sort_values("cutoff_hz").groupby("system")
        drawn = {bars.get_label(): bars for bars in ax.containers if isinstance(bars, BarContainer)}
        assert list(drawn) == ["oracle", "unprocessed", "ours"]
        for system, bars in drawn.items():
            rows = noise.get_group(system)
            np.testing.assert_allclose([bar.get_height() for bar in bars], rows["lsd_19k"])
            intervals = [segment[:, 1] for segment in bars.errorbar[2][0].get_segments()]
            np.testing.assert_allclose(intervals, rows[["ci_low", "ci_high"]])


def test_stages_of_a_cost_stand_side_by_side_up_to_the_total():
    for ax, total in zip(plots_tables.cost(costs()).axes, costs()["total_s"], strict=True):
        assert [bars.get_label() for bars in ax.containers] == ["encode", "other"]
        (last,) = ax.containers[-1]
        assert last.get_x() + last.get_width() == total
