"""Figures of result tables: distances by system, gap, convention and sampling steps, and what a restoration costs."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srlib.report.plots import PALETTE, legend_below, panels, styled

SYSTEM_COLOURS = {
    "gt_mel": "#bbbbbb", "oracle": "#777777", "unprocessed": "#222222", "band_replication": PALETTE["yellow"],
    "ridge": PALETTE["orange"], "wiener": PALETTE["green"], "notch": PALETTE["sky"], "prior": PALETTE["purple"],
    "audiosr_lowpass": "#a6bddb", "ours_replace": PALETTE["blue"], "ours_sample": "#f4a582", "ours": PALETTE["red"],
}  # fmt: skip
FILLING_COLOURS = {"silence": "black", "repetition": "orange", "interpolation": "green", "ours": "red"}
INPUTS = {"clean": "full band", "white": "low-passed, white noise"}  # of the gaps


def _lines(ax: Axes, table: pd.DataFrame, by: str, x: str, y: str, colours: dict[str, str] | None = None) -> None:
    """One line with points for each value of the column `by`, in the order of the table."""
    for name, rows in table.groupby(by, sort=False):
        ax.plot(rows[x], rows[y], "o-", color=PALETTE[colours[name]] if colours else None, label=name)


@styled
def lsd_bars(summary: pd.DataFrame) -> Figure:
    """Mean LSD to 19 kHz with its interval by condition and system, one panel per kind of noise.

    `summary` has the columns noise, cutoff_hz, system, lsd_19k, ci_low, ci_high (one row per condition and system).
    """
    noises, cutoffs = list(dict.fromkeys(summary["noise"])), sorted(summary["cutoff_hz"].unique())
    systems = [system for system in SYSTEM_COLOURS if system in set(summary["system"])]
    figure, axes = panels(2.1 * len(noises) + 0.9, len(noises), sharex=True)
    width = 0.86 / len(systems)
    for ax, noise in zip(axes, noises, strict=True):
        for i, system in enumerate(systems):
            rows = summary[(summary["noise"] == noise) & (summary["system"] == system)]
            rows = rows.set_index("cutoff_hz").reindex(cutoffs)
            error = np.abs(np.vstack([rows["lsd_19k"] - rows["ci_low"], rows["ci_high"] - rows["lsd_19k"]]))
            x = np.arange(len(cutoffs)) + (i - (len(systems) - 1) / 2) * width
            ax.bar(x, rows["lsd_19k"], width, yerr=error, color=SYSTEM_COLOURS[system],
                   label=system.replace("_", " "), error_kw={"elinewidth": 0.6, "ecolor": "#444444"})  # fmt: skip
        ax.set(title=noise, ylabel="LSD to 19 kHz")
        ax.grid(axis="x", visible=False)
    axes[-1].set_xticks(range(len(cutoffs)), [f"{cutoff / 1000:g} kHz" for cutoff in cutoffs])
    legend_below(figure, 6)
    return figure


@styled
def gap_curves(table: pd.DataFrame) -> Figure:
    """LSD inside gaps against their length (ms) by system, one panel per kind of input (columns of inpainting.csv)."""
    inputs = table.groupby("noise", sort=False)
    figure, axes = panels(2.8, 1, len(inputs), sharey=True)
    for ax, (noise, rows) in zip(axes, inputs, strict=True):
        _lines(ax, rows, "system", "gap_ms", "lsd_19k", FILLING_COLOURS)
        ax.set(title=INPUTS[noise], xlabel="length of the gap, ms", ylim=(0, None))
    axes[0].set_ylabel("LSD to 19 kHz in the gap")
    axes[0].legend()
    return figure


@styled
def lsd_choices(table: pd.DataFrame) -> Figure:
    """LSD of three estimates under one change at a time, from `sensitivity.measure`, grouped by what varies."""
    figure, (ax,) = panels(0.19 * len(table) + 1.0)
    rows = range(len(table))
    marks = {"itself": ("the reference itself", "grey", "o"), "unprocessed": ("unprocessed", "black", "s")}
    for column, (label, colour, marker) in (marks | {"restored": ("restored", "red", "D")}).items():
        ax.plot(table[column], rows, marker, color=PALETTE[colour], label=label, linestyle="none")
    for start in np.flatnonzero(table["varied"] != table["varied"].shift()):
        ax.axhline(start - 0.5, color=PALETTE["grey"], linewidth=0.8)
        ax.annotate(table["varied"].iloc[start], (1.0, start), (-2, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="right", va="center", fontsize=7.5, fontweight="bold")  # fmt: skip
    ax.set_yticks(list(rows), list(table["setting"]), fontsize=7)
    ax.set(xlabel="log-spectral distance", ylim=(len(table) - 0.5, -0.5), xlim=(-0.1, None))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


@styled
def quality_by_steps(table: pd.DataFrame) -> Figure:
    """LSD and texture by number of steps; `table` has the columns scheduler, steps, lsd_19k, texture_high."""
    figure, axes = panels(2.7, 1, 2)
    steps = sorted(table["steps"].unique())
    labels = {"lsd_19k": "LSD to 19 kHz", "texture_high": "texture above the cutoff"}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        _lines(ax, table, "scheduler", "steps", column)
        ax.set(xscale="log", xlabel="sampling steps", ylabel=label)
        ax.set_xticks(steps, [f"{count}" for count in steps])
        ax.minorticks_off()
    axes[1].axhline(1.0, color=PALETTE["grey"], linewidth=0.8, linestyle="--")
    axes[0].legend()
    return figure


@styled
def cost(table: pd.DataFrame, title: str = "") -> Figure:
    """Seconds by stage of each case, one panel per model size.

    `table` has the columns size, audio_s, steps, dtype and total_s; every other column NAME_s is a stage.
    """
    stages = [name.removesuffix("_s") for name in table if name.endswith("_s") and name not in ("audio_s", "total_s")]
    sizes = dict(iter(table.groupby("size", sort=False)))
    heights = [len(rows) for rows in sizes.values()]
    figure, axes = panels(0.24 * len(table) + 0.6 * len(sizes) + 0.6, len(sizes), height_ratios=heights)
    for ax, (size, rows) in zip(axes, sizes.items(), strict=True):
        labels = [
            f"{row.audio_s:g} s, {row.steps} step{'s'[: row.steps > 1]}, {row.dtype}" for row in rows.itertuples()
        ]
        left = np.zeros(len(rows))
        for stage in stages:
            ax.barh(labels, rows[f"{stage}_s"], left=left, label=stage)
            left += rows[f"{stage}_s"].to_numpy()
        ax.set_title(size)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("seconds")
    legend_below(figure, len(stages))
    figure.suptitle(textwrap.fill(title, 100), fontsize=8)
    return figure
