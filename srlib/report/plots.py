"""The style of all figures, and the figures of sound, method and training; `plots_tables` draws the result tables.

Nothing here reads or writes a file. Each public function returns a `matplotlib.figure.Figure` that pyplot does not
know: a notebook shows it once, nothing leaks, and the same arguments give the same picture. Colours are Okabe and
Ito's, which colour-blind readers can tell apart; spectrograms share one colour scale.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.errors import SrlibError

PALETTE = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "purple": "#CC79A7",
    "sky": "#56B4E9", "yellow": "#F0E442", "black": "#222222", "grey": "#888888",
}  # fmt: skip
STYLE = {
    "figure.dpi": 110, "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "lines.linewidth": 1.5, "lines.markersize": 4, "legend.frameon": False,
    "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.prop_cycle": matplotlib.cycler(color=list(PALETTE.values())),
}  # fmt: skip
WIDTH = 7.2  # inches, of every figure
FREQUENCY_TICKS_HZ = (100, 500, 1000, 2000, 4000, 7000, 10000, 19000)  # the axis of the source report's spectrograms
DB_RANGE = (-70.0, 20.0)  # dB of |STFT|^2 / n_fft: -70 is far below the quietest noise drawn, 20 is a loud partial
COLOURS = matplotlib.colormaps["magma"].resampled(64)  # 64 steps look the same and halve the size of a png
LOG_MEL_RANGE = (-10.0, 2.5)  # natural log, the range of music on AudioSR's front end
DEVIATION_RANGE = (0.0, 2.0)  # nat, of standard deviations of a log-mel
MAX_CLIPS, MAX_CLIP_SECONDS = 4, 5.0  # of `listen`: each player costs about half a megabyte in the executed notebook


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under STYLE, whatever the caller's own matplotlib settings are."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def panels(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure `height` inches high and its axes, row by row; `options` are those of `Figure.subplots`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def legend_below(figure: Figure, columns: int) -> None:
    """One legend under all panels, with the labels of the first one."""
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)


# ---------------------------------------------------------------------------------------------- spectrograms


def mel_axis_power_db(wav: np.ndarray) -> np.ndarray:
    """Power spectrogram of `wav` [samples] in dB on a mel-like axis from 100 Hz to 20 kHz, [360, frames].

    A row shows the strongest STFT bin it covers, so that a single tone is as bright at 10 kHz as at 1 kHz.
    """
    n_fft, hop, rows = 2048, 480, 360
    padded = np.pad(np.asarray(wav, np.float64), n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=1).T) ** 2 / n_fft
    edges_hz = 700.0 * (10.0 ** (np.linspace(*_mel([100.0, 20000.0]), rows + 1) / 2595.0) - 1.0)
    bins = np.minimum(np.round(edges_hz * n_fft / SAMPLE_RATE).astype(int), n_fft // 2)
    return 10.0 * np.log10(np.maximum.reduceat(power, bins, axis=0)[:rows] + 1e-12)


def _mel(hz: Sequence[float]) -> np.ndarray:
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


def _image(
    ax: Axes, label: str, image: np.ndarray, span: Sequence[float], limits: tuple[float, float], colours=COLOURS
):
    """Draw `image` [rows, frames] over `span` (first and last second, lowest and highest row) with a title."""
    low, high = limits
    options = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    mesh = ax.imshow(image, extent=tuple(span), cmap=colours, vmin=low, vmax=high, **options)
    ax.set(title=label, ylabel="Hz", xlabel="time, s")
    ax.label_outer()
    ax.grid(False)
    return mesh


@styled
def spectrograms(clips: Mapping[str, np.ndarray], title: str = "", row_height: float = 1.9) -> Figure:
    """Stacked spectrograms of {label: wav [samples]} at 48 kHz with one time axis and one colour bar."""
    figure, axes = panels(row_height * len(clips) + 0.5, len(clips), sharex=True, sharey=True)
    ends = _mel([100.0, 20000.0])
    for ax, (label, wav) in zip(axes, clips.items(), strict=True):
        mesh = _image(ax, label, mel_axis_power_db(wav), (0.0, len(wav) / SAMPLE_RATE, *ends), DB_RANGE)
        ax.set_yticks(_mel(FREQUENCY_TICKS_HZ), [f"{hz:,}" for hz in FREQUENCY_TICKS_HZ])
    figure.colorbar(mesh, ax=axes, label="power, dB", shrink=0.8, aspect=35)
    figure.suptitle(title, fontsize=10)
    return figure


def triptych(reference: np.ndarray, degraded: np.ndarray, restored: np.ndarray, title: str = "") -> Figure:
    """Reference, degraded and restored [samples], one above the other, as in the source report."""
    return spectrograms({"ground truth": reference, "degraded": degraded, "restored": restored}, title)


@styled
def log_mels(
    mels: Mapping[str, np.ndarray],
    band_edges_hz: np.ndarray,
    columns: int = 1,
    deviations: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Log-mels and, after them on a scale of their own, standard deviations in nat: {label: [frames, n_mels]} of each.

    `band_edges_hz` [n_mels + 2] labels the frequency axis.
    """
    kinds = {"log-mel": (mels, LOG_MEL_RANGE, COLOURS)}
    kinds |= {"standard deviation": (deviations, DEVIATION_RANGE, "viridis")} if deviations else {}
    count = sum(len(images) for images, *_ in kinds.values())
    rows = -(-count // columns)
    figure, axes = panels(1.7 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    centres, free = np.asarray(band_edges_hz)[1:-1], iter(axes)
    ticks = np.interp((500, 2000, 5000, 15000), centres, np.arange(len(centres)))
    for kind, (images, limits, colours) in kinds.items():
        drawn = [next(free) for _ in images]
        for ax, (label, image) in zip(drawn, images.items(), strict=True):
            span = (0.0, len(image) * HOP_LENGTH / SAMPLE_RATE, 0, len(centres))
            mesh = _image(ax, label, image.T, span, limits, colours)
            ax.set_yticks(ticks, ["500", "2k", "5k", "15k"])
        scope = axes if len(kinds) == 1 else drawn
        figure.colorbar(mesh, ax=scope, label=f"{kind}, nat", shrink=0.8, aspect=min(35, 12 * rows))
    for ax in free:
        ax.set_visible(False)
    return figure


# ---------------------------------------------------------------------------------------------- data and degradation


@styled
def bandwidth_histogram(bandwidths_khz: Mapping[str, Sequence[float]]) -> Figure:
    """Number of tracks by measured bandwidth, {split: kHz per track}, stacked."""
    figure, (ax,) = panels(2.8)
    values = [np.clip(khz, 8.0, 24.0) for khz in bandwidths_khz.values()]
    bins = np.arange(8.0, 25.0, 1.0)
    ax.hist(values, bins=bins, stacked=True, label=list(bandwidths_khz), edgecolor="white", linewidth=0.5)
    ax.axvline(16.0, color=PALETTE["black"], linestyle="--", linewidth=1)
    ax.annotate("where AAC at 256 kb/s stops", (16.0, 1.0), (-4, -4), xycoords=("data", "axes fraction"),
                textcoords="offset points", rotation=90, va="top", ha="right", fontsize=7)  # fmt: skip
    ax.set(xlabel="measured bandwidth, kHz", ylabel="tracks", xlim=(8, 24))
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return figure


@styled
def filter_responses(
    responses: Mapping[str, Mapping[int, np.ndarray]], freqs_hz: np.ndarray, cutoff_hz: float
) -> Figure:
    """Gain in dB of the whole zero-phase filters, {family: {order: gain [len(freqs_hz)]}}, one panel per family."""
    figure, axes = panels(4.6, 2, 2, sharex=True, sharey=True)
    for ax, (family, curves) in zip(axes, responses.items(), strict=True):
        for i, (order, gain) in enumerate(curves.items()):
            colour = matplotlib.colormaps["viridis"](0.85 * i / max(len(curves) - 1, 1))
            gain_db = 20.0 * np.log10(np.maximum(np.abs(gain), 1e-8))
            ax.plot(freqs_hz / 1000.0, gain_db, color=colour, label=f"order {order}")
        ax.axvline(cutoff_hz / 1000.0, color=PALETTE["black"], linewidth=0.8, linestyle=":")
        for level in (-3.0, -20.0):
            ax.axhline(level, color=PALETTE["grey"], linewidth=0.7, linestyle="--")
        ax.set(title=family, ylim=(-100, 5), xlim=(0, min(24.0, 3.0 * cutoff_hz / 1000.0)))
    axes[0].legend(loc="lower left")
    figure.supylabel("gain, dB", fontsize=9)
    figure.supxlabel("frequency, kHz   (dotted: design cutoff; dashed: -3 and -20 dB)", fontsize=9)
    return figure


@styled
def cutoff_detection(detected: pd.DataFrame) -> Figure:
    """Detected edges over true transitions, ours beside AudioSR's; one row a clip, as `detection.detect` returns."""
    figure, axes = panels(3.4, 1, 2, sharex=True, sharey=True)
    limits = np.array([1.5, 25.0])
    titles = {"ours_hz": "ours", "roll_off_hz": "98.5 % roll-off (AudioSR)"}
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        ax.fill_between(limits, 0.9 * limits, 1.1 * limits, color="#eeeeee", linewidth=0)
        for group, rows in detected.groupby("group", sort=False):
            x = np.sqrt(rows["low_hz"] * rows["high_hz"]) / 1000.0
            across = np.abs(np.vstack([rows["low_hz"], rows["high_hz"]]) / 1000.0 - x.to_numpy())
            ax.errorbar(x, rows[column] / 1000.0, xerr=across, fmt="o", markersize=3, alpha=0.6, elinewidth=0.5,
                        label=group)  # fmt: skip
        ax.set(xscale="log", yscale="log", xlim=limits, ylim=(1.0, 26.0), xlabel="true transition, kHz", title=title)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(matplotlib.ticker.FixedLocator([2, 4, 8, 16]))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes[0].set_ylabel("detected edge, kHz")
    legend_below(figure, 3)
    return figure


# ---------------------------------------------------------------------------------------------- diffusion and training


@styled
def noise_schedule(alphas_cumprod: np.ndarray, timesteps: Sequence[int] = ()) -> Figure:
    """Signal and noise share of z_t and its log SNR over t; `timesteps` marks the sampler's steps."""
    abar, steps = np.asarray(alphas_cumprod, float), np.asarray(timesteps, int)
    snr_db = 10.0 * np.log10((abar + 1e-12) / (1.0 - abar + 1e-12))
    figure, (left, right) = panels(2.6, 1, 2)
    left.plot(np.sqrt(abar), color=PALETTE["blue"], label=r"signal $\sqrt{\bar\alpha_t}$")
    left.plot(np.sqrt(1.0 - abar), color=PALETTE["red"], label=r"noise $\sqrt{1-\bar\alpha_t}$")
    left.set(xlabel="timestep t", ylabel="share")
    left.legend(loc="lower center")
    right.plot(snr_db, color=PALETTE["black"])
    right.plot(steps, snr_db[steps], "o", color=PALETTE["orange"], label=f"{len(steps)} sampling steps")
    right.set(xlabel="timestep t", ylabel="signal to noise, dB", ylim=(-60, 45))
    right.legend()
    return figure


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    return pd.Series(values).rolling(width, center=True, min_periods=1).mean().to_numpy()


@styled
def loss_curves(losses: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Training and validation loss over time, {what the loss is: {run name: log}}: one panel each, runs end to end."""
    figure, axes = panels(2.5 * len(losses) + 0.3, len(losses))
    for ax, (label, logs) in zip(axes, losses.items(), strict=True):
        start = 0.0
        for (name, log), colour in zip(logs.items(), PALETTE.values(), strict=False):
            minutes, loss = start + log["wall_time"].to_numpy(float) / 60.0, log["train/loss"].to_numpy(float)
            ax.plot(minutes, loss, color=colour, alpha=0.3, linewidth=0.8)
            ax.plot(minutes, _smooth(loss, max(3, len(loss) // 25)), color=colour, label=name)
            ax.plot(minutes, log["val/loss"].to_numpy(float), "o", color=colour, markeredgecolor="white")
            ax.axvline(start, color=PALETTE["grey"], linewidth=0.8, linestyle=":")
            start = minutes[-1]
        ax.set(xlabel="training time, minutes   (circles: validation)", ylabel=label)
        ax.legend(ncols=3)
    return figure


@styled
def lsd_vs_step(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Validation Zimtohrli, where logs hold it, and LSD of each run, {name: log}, over the steps of all runs."""
    labels = {"val/zimtohrli": "validation Zimtohrli, x 1000", "val/lsd": "validation LSD to 19 kHz"}
    columns = [column for column in labels if any(column in log for log in logs.values())]
    figure, axes = panels(2.3 * len(columns) + 0.5, len(columns), sharex=True)
    for ax, column in zip(axes, columns, strict=True):
        offset = 0
        for name, log in logs.items():
            valid = log.reindex(columns=["global_step", column]).dropna()
            ax.plot(offset + valid["global_step"], valid[column], "o-", label=name)
            ax.axvline(offset, color=PALETTE["grey"], linewidth=0.8, linestyle=":")
            offset += int(log["global_step"].iloc[-1])
        ax.set_ylabel(labels[column])
    axes[-1].set_xlabel("training step, runs end to end")
    axes[0].legend(ncols=3)
    return figure


@styled
def learning_curve(curve: pd.DataFrame) -> Figure:
    """Validation Zimtohrli and LSD over the steps, a line for each amount of music (`curriculum.learning_curve`)."""
    labels = {"val_zimtohrli": "validation Zimtohrli, x 1000", "val_lsd": "validation LSD to 19 kHz"}
    figure, axes = panels(2.8, 1, len(labels))
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        for hours, rows in curve.groupby("hours"):
            ax.plot(rows["step"], rows[column], "o-", label=f"{hours:.3g} h of music")
        ax.set(xlabel="training step", ylabel=label)
    axes[0].legend()
    return figure


@styled
def live_training(log: pd.DataFrame) -> Figure:
    """Loss per step of one short run."""
    figure, (ax,) = panels(2.6)
    log = log[log["train/loss"].notna()]
    steps, loss = log["global_step"], log["train/loss"].to_numpy(float)
    ax.plot(steps, loss, color=PALETTE["sky"], linewidth=0.9, label="each record")
    ax.plot(steps, _smooth(loss, max(3, len(log) // 12)), color=PALETTE["blue"], label="moving mean")
    ax.set(xlabel="step", ylabel="velocity loss", ylim=(0, None))
    ax.legend()
    return figure


# ---------------------------------------------------------------------------------------------- listening


def listen(clips: Mapping[str, np.ndarray]) -> None:
    """Players for {label: wav [samples]} at 48 kHz in a row, at their true relative levels (no per-clip normalisation).

    At most four clips; of each the first five seconds.
    """
    from IPython.display import HTML, Audio, display

    if len(clips) > MAX_CLIPS:
        raise SrlibError(f"listen() shows at most {MAX_CLIPS} clips, got {len(clips)}: pass fewer.")
    samples = int(MAX_CLIP_SECONDS * SAMPLE_RATE)
    cells = []
    for label, wav in clips.items():
        player = Audio(np.clip(np.asarray(wav)[:samples], -1.0, 1.0), rate=SAMPLE_RATE, normalize=False)
        cells.append(f"<td style='text-align:left'><b>{label}</b><br>{player._repr_html_()}</td>")
    display(HTML(f"<table><tr>{''.join(cells)}</tr></table>"))
