"""The two architecture drawings: AudioLDM, where the design comes from, and the model of this report."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from srlib.report.plots import styled

SIGNAL, TRANSFORM, FROZEN, TRAINED = "#f2f2f2", "#fdf0d5", "#d6e6f4", "#f8d9c9"  # fills by what a box is
_LEGEND = {
    "signal": SIGNAL,
    "fixed transform": TRANSFORM,
    "trained before, then frozen": FROZEN,
    "diffusion model": TRAINED,
}
_ADD_NOISE = "add noise\n$z_t=\\sqrt{\\bar\\alpha_t}z_0+\\sqrt{1-\\bar\\alpha_t}\\,\\epsilon$"
_RESIDUAL = "$r_0=z_0-\\bar z$, add noise\n$r_t=\\sqrt{\\bar\\alpha_t}r_0+\\sqrt{1-\\bar\\alpha_t}\\,\\epsilon$"

Point = tuple[float, float]


def _canvas(width: float, height: float) -> Axes:
    """Axes in units of the drawing: 10 units are `width` inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    ax.set(xlim=(0, 10), ylim=(0, 10 * height / width), aspect="equal")
    ax.axis("off")
    return ax


def _box(ax: Axes, centre: Point, text: str, fill: str, width: float = 1.25, height: float = 0.62) -> None:
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.08", facecolor=fill,
                                edgecolor="#333333", linewidth=0.9, zorder=2))  # fmt: skip
    ax.text(*centre, text, ha="center", va="center", fontsize=7.5, zorder=3)


def _arrow(ax: Axes, *points: Point, label: str = "", dashed: bool = False) -> None:
    """A polyline through `points` with a head at the last one; the label stands over the middle of its last leg."""
    line = "--" if dashed else "-"
    ax.plot(*zip(*points[:-1], strict=True), color="#333333", linewidth=0.9, linestyle=line, zorder=1)
    ax.add_patch(FancyArrowPatch(points[-2], points[-1], arrowstyle="-|>", mutation_scale=8, linewidth=0.9,
                                 linestyle=line, color="#333333", shrinkA=0, shrinkB=0, zorder=1))  # fmt: skip
    if label:
        x, y = ((a + b) / 2 for a, b in zip(points[-2], points[-1], strict=True))
        ax.text(x, y + 0.1, label, ha="center", va="bottom", fontsize=7.5)


def _legend(ax: Axes) -> None:
    for x, (name, fill) in zip((0.4, 2.2, 4.6, 7.8), _LEGEND.items(), strict=True):
        ax.add_patch(FancyBboxPatch((x, 0.1), 0.25, 0.2, boxstyle="round,pad=0,rounding_size=0.05", facecolor=fill,
                                    edgecolor="#333333", linewidth=0.7))  # fmt: skip
        ax.text(x + 0.35, 0.2, name, va="center", fontsize=7)


@styled
def audioldm() -> Figure:
    """AudioLDM: text-to-audio latent diffusion, conditioned on one CLAP vector (Liu et al. 2023)."""
    ax = _canvas(7.4, 3.3)
    top, middle, low = 3.7, 2.4, 1.1
    _box(ax, (0.75, top), "audio $x$", SIGNAL)
    _box(ax, (2.55, top), "STFT + mel", TRANSFORM)
    _box(ax, (4.35, top), "VAE encoder", FROZEN)
    _box(ax, (6.55, top), _ADD_NOISE, TRANSFORM, width=2.3)
    _box(ax, (0.75, low), "text $y$", SIGNAL)
    _box(ax, (2.55, middle), "CLAP\naudio encoder", FROZEN)
    _box(ax, (2.55, low), "CLAP\ntext encoder", FROZEN)
    _box(ax, (6.55, middle), "U-Net, $T$ steps", TRAINED, width=2.3)
    _box(ax, (9.0, middle), "VAE decoder", FROZEN)
    _box(ax, (9.0, low), "vocoder", FROZEN)
    _box(ax, (6.55, low), "generated audio $\\hat x$", SIGNAL, width=1.8)
    _arrow(ax, (1.375, top), (1.925, top))
    _arrow(ax, (3.175, top), (3.725, top), label="$X$")
    _arrow(ax, (4.975, top), (5.4, top), label="$z_0$")
    _arrow(ax, (0.75, top - 0.31), (0.75, middle), (1.925, middle))
    _arrow(ax, (1.375, low), (1.925, low))
    _arrow(ax, (6.55, top - 0.31), (6.55, middle + 0.31))
    ax.text(6.65, (top + middle) / 2, "$z_t$", fontsize=7.5, va="center")
    _arrow(ax, (3.175, middle), (5.4, middle), label="$E^x$: condition in training")
    _arrow(ax, (3.175, low), (4.3, low), (4.3, middle - 0.18), (5.4, middle - 0.18), dashed=True)
    ax.text(4.4, low + 0.42, "$E^y$: condition\nin sampling", fontsize=7.5, va="center")
    _arrow(ax, (7.7, middle), (8.375, middle), label="$\\hat z_0$")
    _arrow(ax, (9.0, middle - 0.31), (9.0, low + 0.31))
    ax.text(9.1, (middle + low) / 2, "$\\hat X$", fontsize=7.5, va="center")
    _arrow(ax, (8.375, low), (7.45, low))
    _legend(ax)
    return ax.figure


@styled
def audiosr_noise() -> Figure:
    """The model of this report: AudioSR's design, noise in the degraded input, a Gaussian prior, the gain merge."""
    ax = _canvas(7.4, 4.4)
    top, middle, low, bottom = 5.3, 4.0, 2.6, 1.2
    _box(ax, (0.75, top), "reference $x$", SIGNAL)
    _box(ax, (4.75, top), "STFT + mel", TRANSFORM, width=1.05)
    _box(ax, (6.2, top), "VAE encoder", FROZEN, width=1.15)
    _box(ax, (8.5, top), _RESIDUAL, TRANSFORM, width=2.3)
    _arrow(ax, (1.375, top), (4.225, top), label="training only")
    _arrow(ax, (5.275, top), (5.625, top), label="$X$")
    _arrow(ax, (6.775, top), (7.35, top), label="$z_0$")

    _box(ax, (0.75, middle), "low-pass\n2-16 kHz", TRANSFORM)
    _box(ax, (2.2, middle), "+", TRANSFORM, width=0.42, height=0.42)
    _box(ax, (2.2, low), "noise switch\nnone / tone / white", TRANSFORM, width=1.6)
    _box(ax, (3.3, middle), "subtract\ntones", TRANSFORM, width=0.9)
    _box(ax, (4.75, middle), "STFT + mel", TRANSFORM, width=1.05)
    _box(ax, (6.2, middle), "VAE encoder", FROZEN, width=1.15)
    _box(ax, (4.75, low), "observation,\nGaussian prior", FROZEN, width=1.35)
    _box(ax, (6.35, low), "VAE encoder", FROZEN, width=1.15)
    _box(ax, (7.75, middle), "concat", TRANSFORM, width=0.8)
    _box(ax, (9.3, middle), "transformer\n(or U-Net)", TRAINED, width=1.15)
    _arrow(ax, (0.75, top - 0.31), (0.75, middle + 0.31))
    _arrow(ax, (1.375, middle), (1.99, middle))
    _arrow(ax, (2.2, low + 0.31), (2.2, middle - 0.21))
    _arrow(ax, (2.41, middle), (2.85, middle), label="$x_l$")
    _arrow(ax, (3.75, middle), (4.225, middle))
    _arrow(ax, (5.275, middle), (5.625, middle), label="$X_l$")
    _arrow(ax, (6.775, middle), (7.35, middle), label="$z_l$")
    _arrow(ax, (4.75, middle - 0.31), (4.75, low + 0.31))
    _arrow(ax, (5.425, low), (5.775, low), label="$\\bar X$")
    _arrow(ax, (6.925, low), (7.75, low), (7.75, middle - 0.31))
    _box(ax, (9.3, low), "+", TRANSFORM, width=0.42, height=0.42)
    _arrow(ax, (7.75, low), (9.09, low))
    ax.text(7.85, (low + middle) / 2 - 0.1, "$\\bar z$, precision", fontsize=7.5, va="center")
    _arrow(ax, (8.5, top - 0.31), (8.5, (top + middle) / 2), (7.75, (top + middle) / 2), (7.75, middle + 0.31))
    ax.text(7.95, (top + middle) / 2 + 0.12, "$r_t$", fontsize=7.5, va="center")
    _arrow(ax, (8.15, middle), (8.725, middle))

    _box(ax, (9.3, bottom), "VAE decoder", FROZEN, width=1.15)
    _box(ax, (7.3, bottom), "vocoder: copied\nfine structure", TRANSFORM, width=1.45)
    _box(ax, (4.6, bottom), "gain merge", TRANSFORM, width=1.15)
    _box(ax, (1.7, bottom), "restored $\\hat x$", SIGNAL)
    _arrow(ax, (9.3, middle - 0.31), (9.3, low + 0.21))
    ax.text(9.4, (middle + low) / 2, "$\\hat r_0$", fontsize=7.5, va="center")
    _arrow(ax, (9.3, low - 0.21), (9.3, bottom + 0.31))
    ax.text(9.4, (low + bottom) / 2, "$\\hat z_0$", fontsize=7.5, va="center")
    _arrow(ax, (8.725, bottom), (8.025, bottom), label="$\\hat X$")
    _arrow(ax, (6.575, bottom), (5.175, bottom), label="generated audio")
    _arrow(ax, (3.95, middle), (3.95, 1.9), (4.6, 1.9), (4.6, bottom + 0.31))
    _arrow(ax, (4.6, 1.9), (7.3, 1.9), (7.3, bottom + 0.31))
    ax.text(3.85, 2.05, "known band", fontsize=7.5, va="center", ha="right")
    _arrow(ax, (4.025, bottom), (2.325, bottom))
    _legend(ax)
    return ax.figure
