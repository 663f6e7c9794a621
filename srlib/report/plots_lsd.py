"""The figure of what a log-spectral distance depends on; style and rules are those of `srlib.report.plots`."""

import pandas as pd
from matplotlib.figure import Figure

from srlib.report.plots import PALETTE, styled


@styled
def lsd_choices(table: pd.DataFrame) -> Figure:
    """LSD of three estimates under one change at a time, from `sensitivity.measure`, grouped by what varies."""
    figure = Figure(figsize=(7.2, 0.19 * len(table) + 1.0), layout="constrained")
    ax = figure.add_subplot()
    rows = range(len(table))
    columns = {"itself": ("grey", "o"), "unprocessed": ("black", "s"), "restored": ("red", "D")}
    for column, (colour, marker) in columns.items():
        label = "the reference itself" if column == "itself" else column
        ax.plot(table[column], rows, marker, color=PALETTE[colour], markersize=4, label=label, linestyle="none")
    starts = [row for row in rows if row == 0 or table["varied"].iloc[row] != table["varied"].iloc[row - 1]]
    for start in starts:
        ax.axhline(start - 0.5, color=PALETTE["grey"], linewidth=0.8)
        ax.annotate(table["varied"].iloc[start], (1.0, start), (-2, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="right", va="center", fontsize=7.5, fontweight="bold")  # fmt: skip
    ax.set_yticks(list(rows), list(table["setting"]), fontsize=7)
    ax.set(xlabel="log-spectral distance", ylim=(len(table) - 0.5, -0.5), xlim=(-0.1, None))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure
