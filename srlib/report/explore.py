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
from srlib.config import F_MAX, FILTER_TYPES, MERGES, NOISE_TYPES, SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import conditions, systems
from srlib.report import listen, plots
from srlib.report.run import Run, interactive

Control = tuple[Any, Sequence[Any]] | tuple[float, float, float, float]  # (value, choices) or (value, low, high, step)
OWN = "its own"  # steps or merge of a system as the main table has them
OTHERS = ("band_replication", "wiener", "notch", "oracle")  # systems without a model
STEPS = (0, 1, 2, 4, 8, 16)  # of the sampler; 0 is the prior's mean
CUTOFFS_HZ = (2000.0, 4000.0, 8000.0, 11025.0, 12000.0, 16000.0)
SECONDS = 10.0  # of a file of one's own that are shown
MOST_RATE = 192_000  # Hz, of files
NO_CHANGE_DB = -100.0  # the rounding of float32
FRAME = 'style="width: 100%; height: 235px; border: 0"'


def degradation(clip: np.ndarray, start: Degradation) -> None:
    """Degrade a clip [samples] at 48 kHz; the controls begin at `start`."""

    def view(cutoff_hz: float, family: str, order: int, noise: str, amplitude: float, tone_hz: float) -> str:
        chosen = {"cutoff_hz": cutoff_hz, "filter_type": family, "filter_order": order, "noise_type": noise}
        done = replace(start, **chosen, noise_amplitude=amplitude, tone_hz=tone_hz)
        clips = {"reference": clip, "degraded": done.apply(clip, SAMPLE_RATE)}
        edges_hz = (done.passband_hz(SAMPLE_RATE), done.stopband_hz(SAMPLE_RATE))
        said = f"-3 dB at {edges_hz[0]:.0f} Hz, -20 dB at {edges_hz[1]:.0f} Hz"
        return _seen(clips, edges_hz, said)

    controls: dict[str, Control] = {
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
        given: Any = system
        if system in systems.MODELS:
            variant, options = systems.MODELS[system]
            chosen = {"num_inference_steps": steps, "merge": merge}
            options = options | {name: value for name, value in chosen.items() if value != OWN}
            given = systems.Model(run.profile.model, run.device, options, variant)
        output = systems.named({system: given}, run.profile, run.device)[system](case, run.seed)
        return {"reference": case.reference, "degraded": case.degraded, "restored": getattr(output, "audio", output)}

    def view(**chosen: Any) -> str:
        done = drawn(chosen["condition"], chosen["track"])
        edges_hz = (done.passband_hz(SAMPLE_RATE), done.stopband_hz(SAMPLE_RATE))
        part = "" if chosen["system"] in systems.MODELS else "no model: steps and merge play no part"
        return _seen(restored(**chosen), edges_hz, part)

    titles, known = list(tracks), (*reversed(systems.MODELS), *OTHERS)
    controls: dict[str, Control] = {
        "track": (titles[min(track_index, len(titles) - 1)], titles),
        "condition": (next(iter(listen.CONDITIONS)), list(listen.CONDITIONS)),
        "system": (known[0], known),
        "steps": (OWN, (OWN, *STEPS)),
        "merge": (OWN, (OWN, *MERGES)),
    }
    _show(view, controls)


def your_file(run: Run, path: str | Path) -> None:
    """Restore the first seconds of a file, or of one that is uploaded, and say what was found in it."""
    name, heard = Path(path).name, excerpt(path)

    @lru_cache(maxsize=16)
    def restored(name: str, **options: Any) -> Any:
        return run.pipeline()(*heard, generator=run.seed, **options)

    def view(**options: Any) -> str:
        output = restored(name, **options)
        clips = {"your file": files.resample(*heard, SAMPLE_RATE), "restored": output.audio}
        return _seen(clips, [output.cutoff_hz] if output.cutoff_hz else [], output.findings.sentence())

    def upload(change: Any) -> None:
        nonlocal name, heard
        name, content = change.new[0].name, change.new[0].content
        target = run.scratch("upload") / Path(name).name
        target.write_bytes(content)
        heard = excerpt(target)

    steps = run.pipeline().config.num_inference_steps
    controls: dict[str, Control] = {
        "cutoff_hz": ("auto", ("auto", None, *CUTOFFS_HZ)),
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


def changes(option: str, output: Any, first: Any) -> dict[str, Any]:
    """How far a restoration is from a first one, below and above that one's band edge: a row, in dB under the first."""
    wavs = [np.atleast_2d(one.audio) for one in (output, first)]
    freqs_hz = np.fft.rfftfreq(wavs[0].shape[1], 1 / SAMPLE_RATE)
    below = freqs_hz < (first.cutoff_hz or F_MAX)
    change, own = (np.abs(np.fft.rfft(wav)) ** 2 + 1e-12 for wav in (wavs[0] - wavs[1], wavs[1]))
    row = {"option": option, "cutoff_hz": output.cutoff_hz}
    for name, part in (("below_db", below), ("above_db", ~below)):
        row[name] = max(10 * np.log10(change[:, part].sum() / own[:, part].sum()), NO_CHANGE_DB)
    return row


def _seen(clips: Mapping[str, np.ndarray], edges_hz: Sequence[float], said: str = "") -> str:
    """HTML of what is said of clips, their mean spectra with edges of the band, and their players in a frame."""
    picture = io.BytesIO()
    mono = {name: np.atleast_2d(wav).mean(axis=0) for name, wav in clips.items()}
    plots.spectra(mono, edges_hz).savefig(picture, format="png")
    image = base64.b64encode(picture.getvalue()).decode()
    page = listen.page(clips, "wav" if interactive() else "ogg")  # quick to make, or small
    frame = f'<iframe srcdoc="{html.escape(page)}" {FRAME}></iframe>'
    shown = f'<img src="data:image/png;base64,{image}" alt="mean spectra" style="height: 240px">'
    return f"<p>{html.escape(said)}</p>{shown}{frame}"


def _show(
    view: Callable[..., str], controls: Mapping[str, Control], upload: Callable[[Any], None] | None = None
) -> None:
    """Show the HTML that `view` makes of the values of the controls, and the controls where they can be moved."""
    from IPython.display import HTML, display

    if not interactive():
        display(HTML(view(**{name: value for name, (value, *_) in controls.items()})))
        return
    import ipywidgets

    screen, busy = ipywidgets.HTML(), ipywidgets.Label()
    moved = {name: _widget(ipywidgets, name, *control) for name, control in controls.items()}

    def draw(change: Any = None) -> None:
        begin, busy.value = time.perf_counter(), "..."
        try:
            if upload is not None and change is not None and change.owner is file:
                upload(change)
            screen.value = view(**{name: one.value for name, one in moved.items()})
        except SrlibError as error:
            screen.value = f"<p>{html.escape(str(error))}</p>"
        busy.value = f"{time.perf_counter() - begin:.2f} s"

    file = ipywidgets.FileUpload(description="another file")
    boxes = [*moved.values(), *([file] if upload else []), busy]
    for one in boxes[:-1]:
        one.observe(draw, "value")
    draw()
    display(ipywidgets.VBox([ipywidgets.Box(boxes, layout={"flex_flow": "row wrap"}), screen]))


def _widget(ipywidgets: Any, name: str, value: Any, *limits: Any) -> Any:
    label = {"description": name.replace("_hz", ", Hz").replace("_", " "), "style": {"description_width": "auto"}}
    if len(limits) == 1:
        return ipywidgets.Dropdown(options=[("full band" if one is None else str(one), one) for one in limits[0]],
                                   value=value, **label)  # fmt: skip
    low, high, step = limits
    return ipywidgets.FloatSlider(
        value, min=low, max=high, step=step, readout_format=".3f" if step < 1 else ".0f", **label
    )
