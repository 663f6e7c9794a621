"""Every figure of the report, drawn from arrays and tables; nothing here reads or writes a file.

Each public function returns a `matplotlib.figure.Figure` that pyplot does not know: a notebook shows it once, nothing
leaks, and the same arguments give the same picture. `ax=None` means "make a figure of the right size".
Colours are Okabe and Ito's, which colour-blind readers can tell apart; spectrograms share one colour scale.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srlib.config import HOP_LENGTH, SAMPLE_RATE

PALETTE = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "purple": "#CC79A7",
    "sky": "#56B4E9", "yellow": "#F0E442", "black": "#222222", "grey": "#888888",
}  # fmt: skip
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 150, "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5,
    "axes.titleweight": "bold", "axes.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.5,
    "legend.frameon": False, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.prop_cycle": matplotlib.cycler(color=list(PALETTE.values())),
    "svg.hashsalt": "srlib", "svg.fonttype": "path",
}  # fmt: skip
FREQUENCY_TICKS_HZ = (100, 500, 1000, 2000, 4000, 7000, 10000, 19000)  # the axis of the source report's spectrograms
DB_RANGE = (-70.0, 20.0)  # dB of |STFT|^2 / n_fft: -70 is far below the quietest noise drawn, 20 is a loud partial
COLOURS = matplotlib.colormaps["magma"].resampled(64)  # 64 steps look the same and halve the size of a png
LOG_MEL_RANGE = (-10.0, 2.5)  # natural log, the range of music on AudioSR's front end
MAX_CLIPS, MAX_CLIP_SECONDS = 4, 5.0


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under STYLE, whatever the caller's own matplotlib settings are."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else Figure(figsize=(width, height), layout="constrained").add_subplot()


def _hz_to_mel(hz: np.ndarray | float) -> np.ndarray | float:
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)


# ---------------------------------------------------------------------------------------------- spectrograms


def mel_axis_power_db(wav: np.ndarray) -> np.ndarray:
    """Power spectrogram of `wav` [samples] in dB on a mel-like axis from 100 Hz to 20 kHz, [360, frames].

    A row shows the strongest STFT bin it covers, so that a single tone is as bright at 10 kHz as at 1 kHz.
    """
    n_fft, hop, rows = 2048, 480, 360
    padded = np.pad(np.asarray(wav, np.float64), n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(n_fft), axis=1).T) ** 2 / n_fft
    edges_hz = _mel_to_hz(np.linspace(_hz_to_mel(100.0), _hz_to_mel(20000.0), rows + 1))
    bins = np.minimum(np.round(edges_hz * n_fft / SAMPLE_RATE).astype(int), n_fft // 2)
    return 10.0 * np.log10(np.maximum.reduceat(power, bins, axis=0)[:rows] + 1e-12)


def _draw_spectrogram(ax: Axes, wav: np.ndarray, title: str):
    image = mel_axis_power_db(wav)
    low, high = _hz_to_mel(100.0), _hz_to_mel(20000.0)
    extent = (0.0, len(wav) / SAMPLE_RATE, float(low), float(high))
    mesh = ax.imshow(image, origin="lower", aspect="auto", extent=extent, cmap=COLOURS, vmin=DB_RANGE[0],
                     vmax=DB_RANGE[1], interpolation="nearest")  # fmt: skip
    ax.set_yticks([float(_hz_to_mel(f)) for f in FREQUENCY_TICKS_HZ], [f"{f:,}" for f in FREQUENCY_TICKS_HZ])
    ax.grid(False)
    ax.set_title(title, loc="left")
    ax.set_ylabel("Hz")
    return mesh


@styled
def spectrograms(clips: Mapping[str, np.ndarray], title: str = "", row_height: float = 1.9) -> Figure:
    """Stacked spectrograms of {label: wav [samples]} at 48 kHz with one time axis and one colour bar."""
    figure = Figure(figsize=(7.2, row_height * len(clips) + 0.5), layout="constrained")
    axes = figure.subplots(len(clips), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, (label, wav) in zip(axes, clips.items(), strict=True):
        mesh = _draw_spectrogram(ax, wav, label)
        ax.label_outer()
    axes[-1].set_xlabel("time, s")
    figure.colorbar(mesh, ax=axes, label="power, dB", shrink=0.8, aspect=35)
    figure.suptitle(title, fontsize=10)
    return figure


def triptych(reference: np.ndarray, degraded: np.ndarray, restored: np.ndarray, title: str = "") -> Figure:
    """Reference, degraded and restored [samples], one above the other, as in the source report."""
    return spectrograms({"ground truth": reference, "degraded": degraded, "restored": restored}, title)


@styled
def log_mels(panels: Mapping[str, np.ndarray], band_edges_hz: np.ndarray, columns: int = 1) -> Figure:
    """Log-mels {label: [frames, n_mels]} side by side; `band_edges_hz` [n_mels + 2] labels the frequency axis."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7.2, 1.7 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    centres = np.asarray(band_edges_hz)[1:-1]
    for ax, (label, log_mel) in zip(axes.flat, panels.items(), strict=False):
        frames, n_mels = log_mel.shape
        extent = (0.0, frames * HOP_LENGTH / SAMPLE_RATE, 0, n_mels)
        mesh = ax.imshow(log_mel.T, origin="lower", aspect="auto", extent=extent, cmap=COLOURS, vmin=LOG_MEL_RANGE[0],
                         vmax=LOG_MEL_RANGE[1], interpolation="nearest")  # fmt: skip
        ax.set_yticks(np.interp((500, 2000, 5000, 15000), centres, np.arange(n_mels)), ["500", "2k", "5k", "15k"])
        ax.set_title(label, loc="left")
        ax.grid(False)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("Hz")
    for ax in axes[-1]:
        ax.set_xlabel("time, s")
    figure.colorbar(mesh, ax=axes, label="log-mel", shrink=0.8, aspect=35)
    return figure


# ---------------------------------------------------------------------------------------------- data and degradation


@styled
def bandwidth_histogram(bandwidths_khz: Mapping[str, Sequence[float]], ax: Axes | None = None) -> Figure:
    """Number of tracks by measured bandwidth, {split: kHz per track}, stacked."""
    ax = _axes(ax, 6.0, 2.8)
    bins = np.arange(8.0, 25.0, 1.0)
    values = [np.clip(v, 8.0, 24.0) for v in bandwidths_khz.values()]
    ax.hist(values, bins=bins, stacked=True, label=list(bandwidths_khz), edgecolor="white", linewidth=0.5)
    ax.axvline(16.0, color=PALETTE["black"], linestyle="--", linewidth=1)
    ax.annotate("where AAC at 256 kb/s stops", (16.0, 1.0), (-4, -4), xycoords=("data", "axes fraction"),
                textcoords="offset points", rotation=90, va="top", ha="right", fontsize=7)  # fmt: skip
    ax.set(xlabel="measured bandwidth, kHz", ylabel="tracks", xlim=(8, 24))
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax.figure


@styled
def filter_responses(
    responses: Mapping[str, Mapping[int, np.ndarray]], freqs_hz: np.ndarray, cutoff_hz: float
) -> Figure:
    """Gain in dB of the whole zero-phase filters, {family: {order: gain [len(freqs_hz)]}}, one panel per family."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    colours = matplotlib.colormaps["viridis"]
    for ax, (family, curves) in zip(axes.flat, responses.items(), strict=True):
        for i, (order, gain) in enumerate(curves.items()):
            colour = colours(0.85 * i / max(len(curves) - 1, 1))
            gain_db = 20.0 * np.log10(np.maximum(np.abs(gain), 1e-8))
            ax.plot(freqs_hz / 1000.0, gain_db, color=colour, label=f"order {order}")
        ax.axvline(cutoff_hz / 1000.0, color=PALETTE["black"], linewidth=0.8, linestyle=":")
        for level in (-3.0, -20.0):
            ax.axhline(level, color=PALETTE["grey"], linewidth=0.7, linestyle="--")
        ax.set_title(family, loc="left")
    axes[0, 0].legend(loc="lower left")
    axes[0, 0].set(ylim=(-100, 5), xlim=(0, min(24.0, 3.0 * cutoff_hz / 1000.0)))
    figure.supylabel("gain, dB", fontsize=9)
    figure.supxlabel("frequency, kHz   (dotted: design cutoff; dashed: -3 and -20 dB)", fontsize=9)
    return figure


@styled
def cutoff_detection(detected: pd.DataFrame) -> Figure:
    """Detected edges over true transitions, ours beside AudioSR's; one row a clip, as `detection.detect` returns."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    limits = np.array([1.5, 25.0])
    titles = {"ours_hz": "ours", "roll_off_hz": "98.5 % roll-off (AudioSR)"}
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        ax.fill_between(limits, 0.9 * limits, 1.1 * limits, color="#eeeeee", linewidth=0)
        for (group, rows), colour in zip(detected.groupby("group", sort=False), PALETTE.values(), strict=False):
            x = np.sqrt(rows["low_hz"] * rows["high_hz"]) / 1000.0
            across = np.abs(np.vstack([rows["low_hz"], rows["high_hz"]]) / 1000.0 - x.to_numpy())
            ax.errorbar(x, rows[column] / 1000.0, xerr=across, fmt="o", color=colour, markersize=3, alpha=0.6,
                        elinewidth=0.5, label=group)  # fmt: skip
        ax.set(xscale="log", yscale="log", xlim=limits, ylim=(1.0, 26.0), xlabel="true transition, kHz")
        ax.set_title(title, loc="left")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(matplotlib.ticker.FixedLocator([2, 4, 8, 16]))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes[0].set_ylabel("detected edge, kHz")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


# ---------------------------------------------------------------------------------------------- diffusion and training


@styled
def noise_schedule(alphas_cumprod: np.ndarray, timesteps: Sequence[int] = ()) -> Figure:
    """Signal and noise share of z_t and its log SNR over t; `timesteps` marks the sampler's steps."""
    abar = np.asarray(alphas_cumprod, float)
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.sqrt(abar), color=PALETTE["blue"], label=r"signal $\sqrt{\bar\alpha_t}$")
    left.plot(np.sqrt(1.0 - abar), color=PALETTE["red"], label=r"noise $\sqrt{1-\bar\alpha_t}$")
    left.legend(loc="lower center")
    left.set(xlabel="timestep t", ylabel="share")
    snr_db = 10.0 * np.log10((abar + 1e-12) / (1.0 - abar + 1e-12))
    right.plot(snr_db, color=PALETTE["black"])
    steps = np.asarray(timesteps, int)
    right.plot(steps, snr_db[steps], "o", color=PALETTE["orange"], markersize=4, label=f"{len(steps)} sampling steps")
    right.set(xlabel="timestep t", ylabel="signal to noise, dB", ylim=(-60, 45))
    if len(steps):
        right.legend()
    return figure


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    return pd.Series(values).rolling(width, center=True, min_periods=1).mean().to_numpy()


@styled
def loss_curves(panels: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Training and validation loss over time, {what the loss is: {run name: log}}: one panel each, runs end to end."""
    figure = Figure(figsize=(7.2, 2.5 * len(panels) + 0.3), layout="constrained")
    for ax, (label, logs) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        start = 0.0
        for (name, log), colour in zip(logs.items(), PALETTE.values(), strict=False):
            minutes, loss = start + log["wall_time"].to_numpy(float) / 60.0, log["train/loss"].to_numpy(float)
            ax.plot(minutes, loss, color=colour, alpha=0.3, linewidth=0.8)
            ax.plot(minutes, _smooth(loss, max(3, len(loss) // 25)), color=colour, label=name)
            ax.plot(minutes, log["val/loss"].to_numpy(float), "o", color=colour, markersize=4, markeredgecolor="white")
            ax.axvline(start, color=PALETTE["grey"], linewidth=0.8, linestyle=":")
            start = minutes[-1]
        ax.set(xlabel="training time, minutes   (circles: validation)", ylabel=label)
        ax.legend(ncols=3)
    return figure


_VALIDATED = {"val/zimtohrli": "validation Zimtohrli, x 1000", "val/lsd": "validation LSD to 19 kHz"}


@styled
def lsd_vs_step(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Validation Zimtohrli, where logs hold it, and LSD of each run, {name: log}, over the steps of all runs."""
    columns = [column for column in _VALIDATED if any(column in log for log in logs.values())]
    figure = Figure(figsize=(7.2, 2.3 * len(columns) + 0.5), layout="constrained")
    axes = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for ax, column in zip(axes, columns, strict=True):
        offset = 0
        for (name, log), colour in zip(logs.items(), PALETTE.values(), strict=False):
            valid = log.reindex(columns=["global_step", column]).dropna()
            ax.plot(offset + valid["global_step"], valid[column], "o-", color=colour, markersize=4, label=name)
            ax.axvline(offset, color=PALETTE["grey"], linewidth=0.8, linestyle=":")
            offset += int(log["global_step"].iloc[-1])
        ax.set_ylabel(_VALIDATED[column])
    axes[-1].set_xlabel("training step, runs end to end")
    axes[0].legend(ncols=3)
    return figure


@styled
def live_training(log: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Loss per step of one short run."""
    ax = _axes(ax, 6.0, 2.6)
    log = log[log["train/loss"].notna()]
    steps, loss = log["global_step"], log["train/loss"].to_numpy(float)
    ax.plot(steps, loss, color=PALETTE["sky"], linewidth=0.9, label="each record")
    ax.plot(steps, _smooth(loss, max(3, len(log) // 12)), color=PALETTE["blue"], label="moving mean")
    ax.set(xlabel="step", ylabel="velocity loss")
    ax.set_ylim(bottom=0)
    ax.legend()
    return ax.figure


# ---------------------------------------------------------------------------------------------- results

SYSTEM_COLOURS = {
    "gt_mel": "#bbbbbb", "oracle": "#777777", "unprocessed": "#222222", "band_replication": PALETTE["yellow"],
    "ridge": PALETTE["orange"], "wiener": PALETTE["green"], "notch": PALETTE["sky"], "prior": PALETTE["purple"],
    "audiosr_lowpass": "#a6bddb", "ours_replace": PALETTE["blue"], "ours_sample": "#f4a582", "ours": PALETTE["red"],
}  # fmt: skip


@styled
def lsd_bars(summary: pd.DataFrame) -> Figure:
    """Mean LSD to 19 kHz with its interval by condition and system, one panel per kind of noise.

    `summary` has the columns noise, cutoff_hz, system, lsd_19k, ci_low, ci_high (one row per condition and system).
    """
    noises = list(dict.fromkeys(summary["noise"]))
    cutoffs = sorted(summary["cutoff_hz"].unique())
    systems = [s for s in SYSTEM_COLOURS if s in set(summary["system"])]
    figure = Figure(figsize=(7.2, 2.1 * len(noises) + 0.9), layout="constrained")
    axes = figure.subplots(len(noises), 1, sharex=True, squeeze=False)[:, 0]
    width = 0.86 / len(systems)
    for ax, noise in zip(axes, noises, strict=True):
        for i, system in enumerate(systems):
            rows = summary[(summary["noise"] == noise) & (summary["system"] == system)]
            rows = rows.set_index("cutoff_hz").reindex(cutoffs)
            x = np.arange(len(cutoffs)) + (i - (len(systems) - 1) / 2) * width
            lsd = rows["lsd_19k"]
            error = np.abs(np.vstack([lsd - rows["ci_low"], rows["ci_high"] - lsd]))
            ax.bar(x, lsd, width, yerr=error, color=SYSTEM_COLOURS[system], label=system.replace("_", " "),
                   error_kw={"elinewidth": 0.6, "ecolor": "#444444"})  # fmt: skip
        ax.set_title(noise, loc="left")
        ax.set_ylabel("LSD to 19 kHz")
        ax.grid(axis="x", visible=False)
    axes[-1].set_xticks(range(len(cutoffs)), [f"{c / 1000:g} kHz" for c in cutoffs])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


@styled
def gap_curves(table: pd.DataFrame) -> Figure:
    """LSD inside gaps against their length (ms) by system, one panel per kind of input (columns of inpainting.csv)."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    panels = table.groupby("noise", sort=False)
    titles = {"clean": "full band", "white": "low-passed, white noise"}
    colours = {"silence": "black", "repetition": "orange", "interpolation": "green", "ours": "red"}
    for ax, (noise, rows) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for system, line in rows.groupby("system", sort=False):
            ax.plot(line["gap_ms"], line["lsd_19k"], "o-", color=PALETTE[colours[system]], markersize=4, label=system)
        ax.set_title(titles[noise], loc="left")
        ax.set(xlabel="length of the gap, ms", ylim=(0, None))
    figure.axes[0].set_ylabel("LSD to 19 kHz in the gap")
    figure.axes[0].legend()
    return figure


# ---------------------------------------------------------------------------------------------- listening


def listen(clips: Mapping[str, np.ndarray]) -> None:
    """Players for {label: wav [samples]} at 48 kHz in a row, at their true relative levels (no per-clip normalisation).

    At most four clips of five seconds: each player costs about half a megabyte in the executed notebook.
    """
    from IPython.display import HTML, Audio, display

    from srlib.errors import SrlibError

    if len(clips) > MAX_CLIPS:
        raise SrlibError(f"listen() shows at most {MAX_CLIPS} clips, got {len(clips)}: pass fewer.")
    samples = int(MAX_CLIP_SECONDS * SAMPLE_RATE)
    cells = []
    for label, wav in clips.items():
        player = Audio(np.clip(np.asarray(wav)[:samples], -1.0, 1.0), rate=SAMPLE_RATE, normalize=False)
        cells.append(f"<td style='text-align:left'><b>{label}</b><br>{player._repr_html_()}</td>")
    display(HTML(f"<table><tr>{''.join(cells)}</tr></table>"))
