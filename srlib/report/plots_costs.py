"""Figures of what a restoration costs, and of what its sampling steps buy."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srlib.measure.performance import STAGES
from srlib.report.plots import PALETTE, styled


@styled
def quality_by_steps(table: pd.DataFrame) -> Figure:
    """LSD and texture by number of steps; `table` has the columns scheduler, steps, lsd_19k, texture_high."""
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, rows), colour in zip(table.groupby("scheduler", sort=False), PALETTE.values(), strict=False):
        left.plot(rows["steps"], rows["lsd_19k"], "o-", color=colour, markersize=4, label=name)
        right.plot(rows["steps"], rows["texture_high"], "o-", color=colour, markersize=4, label=name)
    steps = sorted(table["steps"].unique())
    for ax, label in ((left, "LSD to 19 kHz"), (right, "texture above the cutoff")):
        ax.set(xscale="log", xlabel="sampling steps", ylabel=label)
        ax.set_xticks(steps, [f"{count}" for count in steps])
        ax.minorticks_off()
    right.axhline(1.0, color=PALETTE["grey"], linewidth=0.8, linestyle="--")
    left.legend()
    return figure


@styled
def cost(table: pd.DataFrame, title: str = "") -> Figure:
    """Seconds by stage of each case of `srlib.measure.performance.benchmark`, one panel per model size."""
    sizes = list(dict.fromkeys(table["size"]))
    heights = [int((table["size"] == size).sum()) for size in sizes]
    figure = Figure(figsize=(7.2, 0.24 * sum(heights) + 0.6 * len(sizes) + 0.6), layout="constrained")
    axes = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, size in zip(axes, sizes, strict=True):
        rows = table[table["size"] == size]
        left = np.zeros(len(rows))
        labels = [
            f"{row.audio_s:g} s, {row.steps} step{'s' * (row.steps > 1)}, {row.dtype}" for row in rows.itertuples()
        ]
        for stage, colour in zip(STAGES, PALETTE.values(), strict=False):
            ax.barh(labels, rows[f"{stage}_s"], left=left, color=colour, label=stage)
            left += rows[f"{stage}_s"].to_numpy()
        ax.set_title(size, loc="left")
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    axes[-1].set_xlabel("seconds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STAGES))
    figure.suptitle(textwrap.fill(title, 100), fontsize=8)
    return figure
