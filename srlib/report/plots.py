"""The style of all figures: spectrograms, log-mels, lines and bars; and players of clips.

A function that draws returns a `matplotlib.figure.Figure` that pyplot does not know, so that a notebook shows it once;
the same arguments give the same picture. Series differ by marker as well as by colour.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import librosa
import matplotlib
import numpy as np
import pandas as pd
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.rcsetup import cycler
from scipy import signal

from srlib.config import HOP_LENGTH, LATENT_FACTOR, N_FFT, SAMPLE_RATE
from srlib.report import artifacts

COLOURS = (  # Okabe and Ito's, which colour-blind readers can tell apart, wine for their yellow, and three pale ones
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#882255", "#222222", "#888888",
    "#a6bddb", "#f4a582", "#bbbbbb",
)  # fmt: skip
# The same in all figures.
OWN_COLOURS = {
    "ours": "#D55E00", "restored": "#D55E00", "unprocessed": "#222222", "degraded": "#222222", "your file": "#222222",
    "oracle": "#888888",
}  # fmt: skip
DASHED = {"oracle", "prior"}  # lines over the others: the goal, and what ours may hide
MOST_MARKERS = 20  # of a line; a panel with a longer one has none
STYLE: dict[Any, Any] = {
    "figure.dpi": 110, "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "lines.linewidth": 1.5, "lines.markersize": 4, "legend.frameon": False,
    "legend.fontsize": 9.5, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "path.simplify": False,  # which points simplification drops depends on the last bit of a coordinate
    "axes.prop_cycle": cycler(color=COLOURS, marker=list("osD^vP*Xhp<>")),
}  # fmt: skip
WIDTH = 7.2  # inches, of every figure
LOWEST_HZ, HIGHEST_HZ = 100.0, 20_000.0  # of a spectrogram's axis
FREQUENCY_TICKS_HZ = (100, 1000, 4000, 10_000, 19_000)  # on that axis
DB_RANGE = (-70.0, 20.0)  # dB of |STFT|^2 / n_fft: from far below the quietest noise shown to a loud partial
MAGMA = matplotlib.colormaps["magma"].resampled(64)  # 64 steps look the same and halve the size of a png
LOG_MEL_RANGE = (-10.0, 2.5)  # natural log, the range of music on AudioSR's front end
DEVIATION_RANGE = (0.0, 2.0)  # nat, of standard deviations of a log-mel
Extent = tuple[float, float, float, float]  # first and last second, lowest and highest row
QUALITY = 0.2  # libsndfile's compression level of Vorbis, about 130 kb/s a channel; a fifth of FLAC's size
SILENT = 1e-6  # rms, linear; quieter clips are ignored when players get an equal level


styled = matplotlib.rc_context(STYLE)  # decorator: the style does not depend on the caller's settings


def panels(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure `height` inches high and its axes, row by row; `options` are those of `Figure.subplots`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def _colours(names: Sequence[Any]) -> list[str]:
    """A colour for each series: its own, or the next that no series owns."""
    free = iter([colour for colour in COLOURS if colour not in {OWN_COLOURS.get(name) for name in names}])
    return [OWN_COLOURS.get(name) or next(free) for name in names]


def _named(values: Iterable[Any]) -> list[str]:
    """Names for readers, as in the report's tables."""
    labels = artifacts.labels()
    return [labels.get(str(value), str(value).replace("_", " ")).strip("*") for value in values]


def mel_axis_power_db(wav: np.ndarray) -> np.ndarray:
    """Power spectrogram of `wav` [samples] in dB on a mel-like axis from 100 Hz to 20 kHz, [360, frames].

    A row shows its strongest STFT bin, so that a single tone is as bright at 10 kHz as at 1 kHz.
    """
    wav = np.asarray(wav, np.float64)
    power = np.abs(librosa.stft(wav, n_fft=N_FFT, hop_length=HOP_LENGTH, pad_mode="reflect")) ** 2 / N_FFT
    edges_hz = librosa.mel_frequencies(361, fmin=LOWEST_HZ, fmax=HIGHEST_HZ, htk=True)
    bins = np.minimum(np.round(edges_hz * N_FFT / SAMPLE_RATE).astype(int), N_FFT // 2)
    return 10.0 * np.log10(np.maximum.reduceat(power, bins, axis=0)[:-1] + 1e-12)


def mel(*hz: float) -> np.ndarray:
    """Position of frequencies on the axis of the spectrograms, mel (HTK)."""
    return librosa.hz_to_mel(np.array(hz), htk=True)


def _image(
    ax: Axes, label: str, image: np.ndarray, span: Extent, limits: tuple[float, float], colours: Any = MAGMA
) -> Any:
    """Draw `image` [rows, frames] over `span` (first and last second, lowest and highest row) with a title."""
    low, high = limits
    mesh = ax.imshow(
        image, extent=span, cmap=colours, origin="lower", aspect="auto", interpolation="nearest", vmin=low, vmax=high
    )
    ax.set(title=label, ylabel="Hz", xlabel="time, s")
    ax.label_outer()
    ax.grid(False)
    return mesh


@styled
def spectrograms(clips: Mapping[str, np.ndarray], title: str = "", row_height: float = 1.25) -> Figure:
    """Stacked spectrograms of {label: wav [samples]} at 48 kHz with one time axis and one colour bar."""
    figure, axes = panels(row_height * len(clips) + 0.5, len(clips), sharex=True, sharey=True)
    lowest, highest = mel(LOWEST_HZ, HIGHEST_HZ)
    for ax, (label, wav) in zip(axes, clips.items(), strict=True):
        mesh = _image(ax, label, mel_axis_power_db(wav), (0.0, len(wav) / SAMPLE_RATE, lowest, highest), DB_RANGE)
        ax.set_yticks(mel(*FREQUENCY_TICKS_HZ), [f"{hz:,}" for hz in FREQUENCY_TICKS_HZ])
    figure.colorbar(mesh, ax=axes, label="power, dB", shrink=0.8, aspect=35)
    figure.suptitle(title, fontsize=10, parse_math=False)  # names of files have dollar signs
    return figure


def triptych(reference: np.ndarray, degraded: np.ndarray, restored: np.ndarray, title: str = "") -> Figure:
    """Reference, degraded and restored [samples], one above the other, as in the source report."""
    return spectrograms({"ground truth": reference, "degraded": degraded, "restored": restored}, title)


@styled
def spectra(clips: Mapping[str, np.ndarray], edges_hz: Sequence[float] = ()) -> Figure:
    """Mean power spectra of {label: wav [samples]} at 48 kHz, with dashed lines at `edges_hz`."""
    figure = Figure(figsize=(WIDTH, 2.2))
    ax = figure.add_axes((0.11, 0.22, 0.87, 0.74))  # a computed layout would double the time of a move in a live cell
    for (label, wav), colour in zip(clips.items(), _colours(list(clips)), strict=True):
        freqs_hz, power = signal.welch(wav, SAMPLE_RATE, nperseg=N_FFT, scaling="spectrum")
        ax.plot(freqs_hz / 1000, 10 * np.log10(power + 1e-14), color=colour, label=label, marker="", linewidth=1)
    for hz in edges_hz:
        ax.axvline(hz / 1000, color="#888888", linewidth=0.8, linestyle="--", marker="")
    ax.set(xlabel="frequency, kHz", ylabel="power, dB", xlim=(0, SAMPLE_RATE / 2000), ylim=(-125, -20))
    ax.legend(loc="upper right")
    return figure


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
    kinds: dict[str, Any] = {"log-mel": (mels, LOG_MEL_RANGE, MAGMA)}
    kinds |= {"standard deviation": (deviations, DEVIATION_RANGE, "viridis")} if deviations else {}
    rows = -(-sum(len(images) for images, *_ in kinds.values()) // columns)
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
        beyond = "max" if limits is DEVIATION_RANGE else "neither"  # an arrow where the scale is cut
        figure.colorbar(mesh, ax=scope, label=f"{kind}, nat", shrink=0.8, aspect=min(35, 12 * rows), extend=beyond)
    for ax in free:
        ax.set_visible(False)
    return figure


@styled
def latents(images: Mapping[str, np.ndarray]) -> Figure:
    """One channel of latents, stacked: {label: [frames / 8, n_mels / 8]}, each symmetric about 0 on its own scale."""
    figure, axes = panels(1.7 * len(images) + 0.3, len(images), sharex=True)
    for ax, (label, image) in zip(axes, images.items(), strict=True):
        most = max(float(np.abs(image).max()), 1e-9)
        span = (0.0, len(image) * LATENT_FACTOR * HOP_LENGTH / SAMPLE_RATE, 0, image.shape[1])
        figure.colorbar(_image(ax, label, image.T, span, (-most, most), "RdBu_r"), ax=ax)
        ax.set(ylabel="latent row")
    return figure


@styled
def lines(
    table: pd.DataFrame,
    x: str,
    y: Mapping[str, str],
    by: str = "",
    panel: str = "",
    style: str = "-",
    columns: int = 2,
    levels: Sequence[float] = (),
    **axes_options: Any,
) -> Figure:
    """Lines or points of a tidy table: a panel for each measure or group, a series for each value of a column.

    Args:
        x: column of the horizontal axis.
        y: {column of the vertical axis: its label}; a panel each.
        by: column whose values are series, in the order of the table.
        panel: column whose values have panels of their own.
        style: "-" for lines, with their points if these are few; "" for points alone.
        columns: panels beside each other.
        levels: dashed horizontal lines.
        axes_options: of `Axes.set`, e.g. xlabel, xscale or ylim.
    """
    groups = dict(iter(table.groupby(panel, sort=False))) if panel else {"": table}
    shown = [(title, rows, column) for title, rows in groups.items() for column in y]
    columns = min(columns, len(shown))
    count = -(-len(shown) // columns)
    figure, axes = panels(2.4 * count + 0.4, count, columns, sharex=True, sharey=len(y) == 1)
    names = list(table[by].unique()) if by else [None]
    for ax, (title, rows, column) in zip(axes, shown, strict=False):
        series = [(rows[rows[by] == name] if by else rows).dropna(subset=[column]) for name in names]
        marked = max(map(len, series)) <= MOST_MARKERS
        for name, colour, one in zip(names, _colours(names), series, strict=True):
            look: dict[str, Any] = {"label": name, "color": colour, "linestyle": style or "none"}
            look |= {"linestyle": "--", "zorder": 3} if style and name in DASHED else {}
            if not style:
                look |= {"markerfacecolor": "none", "markersize": 3, "markeredgewidth": 0.8}
            elif not marked:
                look |= {"marker": ""}
            ax.plot(one[x], one[column], **look)
        for level in levels:
            ax.axhline(level, color="#888888", linewidth=0.8, linestyle="--", marker="")
        ax.set(title=_named([title])[0], ylabel=y[column], **{"xlabel": x} | axes_options)
        if "xticks" in axes_options:
            ax.minorticks_off()
        if len(y) == 1:
            ax.label_outer()
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    return _with_legend(figure, by if table[by].dtype.kind in "if" else None) if by else figure


@styled
def bars(
    table: pd.DataFrame,
    values: Sequence[str],
    panel: str = "",
    stacked: bool = False,
    columns: int = 1,
    **axes_options: Any,
) -> Figure:
    """Horizontal bars of a table: a group for each row, named by its index, and a bar for each column of `values`.

    Args:
        panel: level of the index whose values have panels of their own.
        stacked: values one on the other; panels then have scales of their own.
        columns: panels beside each other.
        axes_options: of `Axes.set`, e.g. xlabel or title.
    """
    groups = dict(iter(table.groupby(level=panel, sort=False))) if panel else {"": table}
    sizes = [len(rows) for rows in groups.values()]
    heights = [max(sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    height = 0.19 * sum(heights) + 0.35 * len(heights) + 0.7
    figure, axes = panels(height, len(heights), columns, sharex=not stacked, height_ratios=heights)
    for i, (ax, (title, rows)) in enumerate(zip(axes, groups.items(), strict=False)):
        rows = rows.droplevel(panel) if panel else rows
        rows[list(values)].plot.barh(stacked=stacked, ax=ax, legend=False, width=0.86, color=_colours(values))
        ax.set(title=_named([title])[0], **{"ylabel": "", "xlabel": ""} | axes_options)
        ax.grid(axis="y", visible=False)
        ax.set_ylim(heights[i // columns] - 0.5, -0.5)  # from the top, bars as thick as those beside them
    for i, ax in enumerate(axes):
        lowest = stacked or i + columns >= len(sizes)
        ax.tick_params(labelbottom=lowest)
        ax.xaxis.label.set_visible(lowest)
        ax.set_visible(i < len(sizes))
    return _with_legend(figure)


def _with_legend(figure: Figure, title: str | None = None) -> Figure:
    """One legend under all panels, with the labels of the last panel with most series; numbers need a `title`."""
    shown = (ax.get_legend_handles_labels() for ax in reversed(figure.axes))
    handles, labels = max(shown, key=lambda pair: len(pair[1]))
    names = _named(labels)
    most = 4 if len(max(names, key=len)) > 12 else 6  # what fits beside each other
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), most), title=title)
    return figure


def listen(clips: Mapping[str, np.ndarray]) -> None:
    """Show the players of {label: wav [samples] or [channels, samples]} at 48 kHz in a notebook."""
    from IPython.display import HTML, display

    display(HTML(f"<div>{frame(clips)}</div>"))


def frame(clips: Mapping[str, np.ndarray], kind: str = "ogg") -> str:
    """HTML of a frame with the `players` of clips."""
    page = html.escape(str(template("player.html").module.page(players(clips, kind), ticks())))
    return f'<iframe srcdoc="{page}" style="width: 100%; height: 235px; border: 0"></iframe>'


def players(clips: Mapping[str, np.ndarray], kind: str = "ogg") -> list[dict[str, Any]]:
    """Players of clips {name: [samples] or [channels, samples]} at 48 kHz, under one gain that avoids clipping.

    Args:
        kind: of the sound, "ogg" (Vorbis: small) or "flac" (quick to make).
    """
    wavs = {name: np.atleast_2d(wav) for name, wav in clips.items()}
    gain = min(1.0, 0.99 / max(float(np.abs(wav).max()) + 1e-9 for wav in wavs.values()))
    quietest = min((level for wav in wavs.values() if (level := float(wav.std())) > SILENT), default=SILENT)
    return [
        {"name": name, "volume": quietest / max(float(wav.std()), SILENT), "kind": f"audio/{kind}",
         "sound": _sound(gain * wav, kind), "picture": _picture(gain * wav.mean(axis=0))}
        for name, wav in wavs.items()
    ]  # fmt: skip


def _sound(wav: np.ndarray, kind: str) -> str:
    """[channels, samples] as a file in base64."""
    file = io.BytesIO()
    options = {"subtype": "VORBIS", "compression_level": QUALITY} if kind == "ogg" else {"subtype": "PCM_16"}
    soundfile.write(file, wav.T, SAMPLE_RATE, format=kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def _picture(wav: np.ndarray) -> str:
    """Spectrogram of [samples] as a JPEG in base64."""
    file, (low, high) = io.BytesIO(), DB_RANGE
    picture = mel_axis_power_db(wav)[::-2]
    imsave(file, picture, cmap=MAGMA, vmin=low, vmax=high, format="jpeg", pil_kwargs={"quality": 70})
    return base64.b64encode(file.getvalue()).decode()


def ticks() -> dict[str, float]:
    """{kHz: height in a player's spectrogram, %}."""
    low, high = mel(LOWEST_HZ, HIGHEST_HZ)
    marked = [hz for hz in FREQUENCY_TICKS_HZ if hz > LOWEST_HZ]
    return {f"{hz / 1000:g}": round(float(100 * (mel(hz)[0] - low) / (high - low)), 1) for hz in marked}


def template(name: str) -> Any:
    """A template of the folder report/."""
    import jinja2

    loader = jinja2.FileSystemLoader(artifacts.root() / "report")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(name)
