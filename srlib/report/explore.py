"""Interactive views for notebooks: a degradation, a restoration, and a file of the reader's.

Each call shows spectra and players. In a live front end there are controls above them, and every change updates them.
Elsewhere (papermill, nbval, static HTML) the call shows the starting values.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from IPython import display

from srlib.audio import files
from srlib.config import FILTER_TYPES, MERGES, NOISE_TYPES, SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import conditions, systems
from srlib.report import listen, plots
from srlib.report.run import Run, interactive

OWN = "its own"  # steps or merge of a system as the main table has them
OTHERS = ("band_replication", "wiener", "notch", "oracle")  # systems without a model
STEPS = (0, 1, 2, 4, 8, 16)  # of the sampler; 0 is the prior's mean
AMPLITUDES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # peak of the tone, standard deviation of the noise
SECONDS = 10.0  # s, length of the excerpt of a file
VIEWS = 16  # that are kept of the last settings
MOST_RATE = 192_000  # Hz, highest sample rate of a file


def degradation(clip: np.ndarray, start: Degradation) -> None:
    """Degrade a clip [samples] at 48 kHz; the controls begin at `start`."""

    @lru_cache(maxsize=VIEWS)
    def view(**chosen: Any) -> str:
        done = replace(start, **chosen)
        clips = {"reference": clip, "degraded": done.apply(clip, SAMPLE_RATE)}
        said = f"-3 dB at {done.passband_hz(SAMPLE_RATE):.0f} Hz, -20 dB at {done.stopband_hz(SAMPLE_RATE):.0f} Hz"
        return _seen(clips, done.edges_hz(SAMPLE_RATE) or (), said)

    amplitude = start.noise_amplitude or 0.01
    _show(view, cutoff_hz=(start.cutoff_hz, (1000.0, 20_000.0, 100.0)), filter_order=(start.filter_order, (2, 10)),
          filter_type=(start.filter_type, list(FILTER_TYPES)), noise_type=(start.noise_type, list(NOISE_TYPES)),
          noise_amplitude=(amplitude, sorted({amplitude, *AMPLITUDES})),
          tone_hz=(start.tone_hz or 5000.0, (100.0, 15_000.0, 50.0)))  # fmt: skip


def restoration(run: Run, track_index: int = 0) -> None:
    """Restore a test track of the run's profile under a condition of the listening page, with any system."""
    tracks = {track.title: track for track in run.tracks("test")}
    titles, known, recipes = list(tracks), [*reversed(systems.MODELS), *OTHERS], listen.CONDITIONS

    @lru_cache(maxsize=VIEWS)
    def view(track: str, condition: str, system: str, steps: int | str, merge: str) -> str:
        chosen = tracks[track]
        done = conditions.draw(recipes[condition], chosen.name)
        case = conditions.Case(chosen.name, condition, run.excerpt(chosen), done)
        restorer, said = systems.named([system], run.profile, run.device)[system], ""
        if isinstance(restorer, systems.Model):
            asked = {"num_inference_steps": steps, "merge": merge}
            own = {name: value for name, value in asked.items() if value != OWN}
            restorer = replace(restorer, options={**restorer.options, **own})
        else:
            said = "no model: steps and merge play no part"
        output = restorer(case, run.seed)
        clips = {"reference": case.reference, "degraded": case.degraded, "restored": getattr(output, "audio", output)}
        return _seen(clips, done.edges_hz(SAMPLE_RATE) or (), said)

    _show(view, track=(titles[: track_index + 1][-1], titles), condition=(next(iter(recipes)), list(recipes)),
          system=(known[0], known), steps=(OWN, [OWN, *STEPS]), merge=(OWN, [OWN, *MERGES]))  # fmt: skip


def your_file(run: Run, path: str | Path) -> None:
    """Restore the first seconds of a file, or of an uploaded one, and show the findings."""
    own = excerpt(path)

    def view(another_file: Sequence[Mapping[str, Any]], **options: Any) -> str:
        wav, sample_rate = own
        if another_file:
            source = run.scratch("upload") / Path(another_file[0]["name"]).name
            source.write_bytes(another_file[0]["content"])
            wav, sample_rate = excerpt(source)
        output: Any = run.pipeline()(wav, sample_rate, generator=run.seed, **options)
        clips = {"your file": files.resample(wav, sample_rate, SAMPLE_RATE), "restored": output.audio}
        return _seen(clips, [output.cutoff_hz] if output.cutoff_hz else [], output.findings.sentence())

    steps = run.pipeline().config.num_inference_steps
    edges = ["auto", ("full band", None), *((f"{hz:g} Hz", hz) for hz in run.profile.cutoffs_hz)]
    _show(view, cutoff_hz=("auto", edges), denoise=("auto", ["auto", "on", "off"]), merge=("gain", list(MERGES)),
          num_inference_steps=(steps, sorted({steps, *STEPS})), blend=(1.0, (0.0, 1.0, 0.05)),
          another_file=((), None))  # fmt: skip


def excerpt(path: str | Path) -> tuple[np.ndarray, int]:
    """The first seconds of a file [channels, samples], and its sample rate, Hz."""
    wav, sample_rate = files.read(Path(path).expanduser(), frames=int(SECONDS * MOST_RATE))
    return wav[:, : int(SECONDS * sample_rate)], sample_rate


def _seen(clips: Mapping[str, np.ndarray], edges_hz: Sequence[float], said: str = "") -> str:
    """HTML of a sentence, the mean spectra of clips with edges of the band, and their players."""
    picture = io.BytesIO()
    mono = {name: np.atleast_2d(wav).mean(axis=0) for name, wav in clips.items()}
    plots.spectra(mono, edges_hz).savefig(picture, format="png")
    source = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    players = plots.frame(clips, "flac" if interactive() else "ogg")  # flac encodes fast, ogg is small
    return f'<p>{html.escape(said)}</p><img src="{source}" alt="mean spectra" style="height: 240px">{players}'


def _show(view: Callable[..., str], **controls: tuple[Any, Any]) -> None:
    """Show the HTML that `view` makes of the values of the controls, and the controls where they can be moved.

    A control is a value and its choices, its limits (low, high, step), or None for a file to upload.
    """
    if not interactive():
        display.display(display.HTML(view(**{name: value for name, (value, _) in controls.items()})))
        return
    make = ipywidgets.interactive.widget_from_abbrev
    moved = {
        name: make(limits, value) if limits else ipywidgets.FileUpload() for name, (value, limits) in controls.items()
    }
    shown = ipywidgets.HTML(layout={"width": "100%"})

    def draw(_: Any = None) -> None:
        try:
            shown.value = view(**{name: one.value for name, one in moved.items()})
        except SrlibError as error:
            shown.value = f"<p>{html.escape(str(error))}</p>"

    for name, one in moved.items():
        one.description, one.style.description_width = name, "initial"  # wide enough for the name
        one.observe(draw, "value")
    draw()
    display.display(ipywidgets.Box([*moved.values(), shown], layout={"flex_flow": "row wrap"}))
