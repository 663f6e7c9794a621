"""What notebooks let a person move, see and hear: a degradation, a restoration, and a file of one's own.

Each call shows spectra and players for its starting values. In a live front end controls stand above them, and every
move draws them anew. Where nobody can move anything (papermill, nbval, static HTML) it shows the starting values.
"""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

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
SECONDS = 10.0  # of a file of one's own that are shown
MOST_RATE = 192_000  # Hz, of files
FRAME = 'style="width: 100%; height: 235px; border: 0"'


def degradation(clip: np.ndarray, start: Degradation) -> None:
    """Degrade a clip [samples] at 48 kHz; the controls begin at `start`."""

    def view(cutoff_hz: float, family: str, order: int, noise: str, amplitude: float, tone_hz: float) -> str:
        kind: dict[str, Any] = {"filter_type": family, "filter_order": order, "noise_type": noise}
        done = replace(start, cutoff_hz=cutoff_hz, **kind, noise_amplitude=amplitude, tone_hz=tone_hz)
        clips = {"reference": clip, "degraded": done.apply(clip, SAMPLE_RATE)}
        said = f"-3 dB at {done.passband_hz(SAMPLE_RATE):.0f} Hz, -20 dB at {done.stopband_hz(SAMPLE_RATE):.0f} Hz"
        return _seen(clips, done.edges_hz(SAMPLE_RATE) or (), said)

    controls = {
        "cutoff_hz": (start.cutoff_hz, 1000.0, 20_000.0, 100.0),
        "family": (start.filter_type, FILTER_TYPES),
        "order": (start.filter_order, range(2, 11)),
        "noise": (start.noise_type, NOISE_TYPES),
        "amplitude": (start.noise_amplitude or 0.01, 0.0, 0.2, 0.001),  # peak of the tone, deviation of the noise
        "tone_hz": (start.tone_hz or 5000.0, 100.0, 15_000.0, 50.0),
    }
    _show(view, controls)


def restoration(run: Run, track_index: int = 0) -> None:
    """Restore a test track of the run's profile under a condition of the listening page, with any system."""
    tracks = {track.title: track for track in run.tracks("test")}

    def drawn(condition: str, track: str) -> Degradation:
        return conditions.draw(listen.CONDITIONS[condition], tracks[track].name)

    @lru_cache(maxsize=32)
    def restored(track: str, condition: str, system: str, steps: int | str, merge: str) -> dict[str, np.ndarray]:
        case = conditions.Case(tracks[track].name, condition, run.excerpt(tracks[track]), drawn(condition, track))
        restorer = systems.named([system], run.profile, run.device)[system]
        if system in systems.MODELS:
            chosen = {"num_inference_steps": steps, "merge": merge}
            own = {name: value for name, value in chosen.items() if value != OWN}
            assert isinstance(restorer, systems.Model)
            restorer = replace(restorer, options={**restorer.options, **own})
        output = restorer(case, run.seed)
        return {"reference": case.reference, "degraded": case.degraded, "restored": getattr(output, "audio", output)}

    def view(**chosen: Any) -> str:
        edges_hz = drawn(chosen["condition"], chosen["track"]).edges_hz(SAMPLE_RATE) or ()
        part = "" if chosen["system"] in systems.MODELS else "no model: steps and merge play no part"
        return _seen(restored(**chosen), edges_hz, part)

    titles, known = list(tracks), (*reversed(systems.MODELS), *OTHERS)
    controls = {
        "track": (titles[min(track_index, len(titles) - 1)], titles),
        "condition": (next(iter(listen.CONDITIONS)), list(listen.CONDITIONS)),
        "system": (known[0], known),
        "steps": (OWN, (OWN, *STEPS)),
        "merge": (OWN, (OWN, *MERGES)),
    }
    _show(view, controls)


def your_file(run: Run, path: str | Path) -> None:
    """Restore the first seconds of a file, or of one that is uploaded, and say what was found in it."""
    heard = excerpt(path)

    @lru_cache(maxsize=16)
    def restored(**options: Any) -> Any:
        return run.pipeline()(*heard, generator=run.seed, **options)

    def view(**options: Any) -> str:
        output = restored(**options)
        clips = {"your file": files.resample(*heard, SAMPLE_RATE), "restored": output.audio}
        return _seen(clips, [output.cutoff_hz] if output.cutoff_hz else [], output.findings.sentence())

    def upload(change: Any) -> None:
        nonlocal heard
        target = run.scratch("upload") / Path(change.new[0]["name"]).name
        target.write_bytes(change.new[0]["content"])
        heard = excerpt(target)
        restored.cache_clear()

    steps = run.pipeline().config.num_inference_steps
    controls = {
        "cutoff_hz": ("auto", ("auto", None, *run.profile.cutoffs_hz)),
        "denoise": ("auto", ("auto", "on", "off")),
        "merge": ("gain", MERGES),
        "num_inference_steps": (steps, sorted({steps, *STEPS})),
        "blend": (1.0, 0.0, 1.0, 0.05),
    }
    _show(view, controls, upload)


def excerpt(path: str | Path) -> tuple[np.ndarray, int]:
    """The first seconds of a file [channels, samples], and its sample rate, Hz."""
    wav, sample_rate = files.read(Path(path).expanduser(), frames=int(SECONDS * MOST_RATE))
    return wav[:, : int(SECONDS * sample_rate)], sample_rate


def _seen(clips: Mapping[str, np.ndarray], edges_hz: Sequence[float], said: str = "") -> str:
    """HTML of what is said of clips, their mean spectra with edges of the band, and their players in a frame."""
    picture = io.BytesIO()
    mono = {name: np.atleast_2d(wav).mean(axis=0) for name, wav in clips.items()}
    plots.spectra(mono, edges_hz).savefig(picture, format="png")
    source = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    page = listen.page(clips, "wav" if interactive() else "ogg")  # quick to make, or small
    shown = f'<img src="{source}" alt="mean spectra" style="height: 240px">'
    return f'<p>{html.escape(said)}</p>{shown}<iframe srcdoc="{html.escape(page)}" {FRAME}></iframe>'


def _show(view: Callable[..., str], controls: Mapping[str, tuple], upload: Callable | None = None) -> None:
    """Show the HTML that `view` makes of the values of the controls, and the controls where they can be moved.

    A control is (value, choices) or (value, low, high, step).
    """
    from IPython.display import HTML, display

    if not interactive():
        display(HTML(view(**{name: value for name, (value, *_) in controls.items()})))
        return
    import ipywidgets

    screen, said, file = ipywidgets.HTML(), ipywidgets.Label(), ipywidgets.FileUpload(description="another file")
    moved = {name: _widget(name, *control) for name, control in controls.items()}

    def draw(change: Any = None) -> None:
        begin, said.value = time.perf_counter(), "..."
        try:
            if upload and change is not None and change.owner is file:
                upload(change)
            screen.value = view(**{name: one.value for name, one in moved.items()})
        except SrlibError as error:
            screen.value = f"<p>{html.escape(str(error))}</p>"
        said.value = f"{time.perf_counter() - begin:.2f} s"

    boxes = [*moved.values(), *([file] if upload else [])]
    for one in boxes:
        one.observe(draw, "value")
    draw()
    display(ipywidgets.VBox([ipywidgets.Box([*boxes, said], layout={"flex_flow": "row wrap"}), screen]))


def _widget(name: str, value: Any, *limits: Any) -> Any:
    import ipywidgets

    label = {"description": name.replace("_hz", ", Hz").replace("_", " "), "style": {"description_width": "auto"}}
    if len(limits) == 1:
        options = [("full band" if one is None else str(one), one) for one in limits[0]]
        return ipywidgets.Dropdown(options=options, value=value, **label)
    low, high, step = limits
    digits = ".3f" if step < 1 else ".0f"
    return ipywidgets.FloatSlider(value, min=low, max=high, step=step, readout_format=digits, **label)
