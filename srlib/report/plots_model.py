"""Figures of the model: what the prior makes of an observation, and what more music teaches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.report.plots import COLOURS, LOG_MEL_RANGE, PALETTE, styled

_DEVIATION_NAT = 2.0  # end of the colour scale of standard deviations


@styled
def posterior(
    panels: Mapping[str, np.ndarray], deviations: Mapping[str, np.ndarray], band_edges_hz: np.ndarray
) -> Figure:
    """Log-mels and, on a scale of their own, standard deviations in nat: {label: [frames, n_mels]} of each.

    `band_edges_hz` [n_mels + 2] labels the frequency axis. Two columns, log-mels first.
    """
    every = {**panels, **deviations}
    figure = Figure(figsize=(7.2, 1.7 * -(-len(every) // 2) + 0.3), layout="constrained")
    axes = figure.subplots(-(-len(every) // 2), 2, sharex=True, sharey=True, squeeze=False)
    centres = np.asarray(band_edges_hz)[1:-1]
    meshes: dict[str, list] = {"log-mel": [], "standard deviation": []}
    for ax, (label, values) in zip(axes.flat, every.items(), strict=False):
        kind = "log-mel" if label in panels else "standard deviation"
        low, high = LOG_MEL_RANGE if label in panels else (0.0, _DEVIATION_NAT)
        extent = (0.0, len(values) * HOP_LENGTH / SAMPLE_RATE, 0, values.shape[1])
        colours = COLOURS if label in panels else "viridis"
        mesh = ax.imshow(values.T, origin="lower", aspect="auto", extent=extent, cmap=colours, vmin=low, vmax=high,
                         interpolation="nearest")  # fmt: skip
        meshes[kind].append((mesh, ax))
        ax.set_yticks(np.interp((500, 2000, 5000, 15000), centres, np.arange(len(centres))), ["500", "2k", "5k", "15k"])
        ax.set_title(label, loc="left")
        ax.grid(False)
    for ax in axes.flat[len(every) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("Hz")
    for ax in axes[-1]:
        ax.set_xlabel("time, s")
    for kind, drawn in meshes.items():
        if drawn:
            figure.colorbar(drawn[0][0], ax=[ax for _, ax in drawn], label=f"{kind}, nat", aspect=9 * len(drawn))
    return figure


@styled
def learning_curve(table: pd.DataFrame) -> Figure:
    """Validation Zimtohrli and LSD against the step, one line for each amount of music.

    `table` has the columns hours, step, val_lsd and val_zimtohrli, as `curriculum.learning_curve` gives them.
    """
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (hours, rows), colour in zip(table.groupby("hours"), PALETTE.values(), strict=False):
        for ax, column in ((left, "val_zimtohrli"), (right, "val_lsd")):
            ax.plot(rows["step"], rows[column], "o-", color=colour, markersize=4, label=f"{hours:g} h")
    left.set(xlabel="training step", ylabel="validation Zimtohrli, x 1000")
    right.set(xlabel="training step", ylabel="validation LSD to 19 kHz")
    if left.lines:
        left.legend(title="music")
    return figure
