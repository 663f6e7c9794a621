"""What the first cell of every notebook calls: seeds, style, device, profile, and the `run` that saves artefacts.

`reproduce.CHAIN` names what each notebook makes: saving anything else, or ending without all of it, is an error.
"""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srlib import config
from srlib.errors import SrlibError
from srlib.report import artifacts
from srlib.report.reproduce import IN_CHAIN, notebook, source_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from srlib.data.tracks import Track
    from srlib.restore.pipeline import RestorationPipeline


class Run:
    """One execution of a notebook: its data and model, and where what it makes goes.

    Attributes:
        profile: the `config.Profile` that sets the size of everything.
        rng: numpy generator seeded with the notebook's `seed`.
        device: "cuda" where there is one, else "cpu".
    """

    def __init__(self, notebook_id: str, profile: config.Profile, parameters: Mapping[str, Any], device: str) -> None:
        self.notebook = notebook(notebook_id)
        self.profile = profile
        self.parameters = dict(parameters)
        self.seed = int(parameters["seed"])
        self.rng = np.random.default_rng(self.seed)
        self.device = device
        self._pipelines: dict[str | None, RestorationPipeline] = {}
        self._saved: set[str] = set()
        self._start = time.perf_counter()

    def pipeline(self, variant: str | None = None) -> RestorationPipeline:
        """The profile's restoration pipeline, loaded once; `variant="lowpass"` is the one trained without noise."""
        if variant not in self._pipelines:
            from srlib.measure.systems import load_pipeline

            self._pipelines[variant] = load_pipeline(self.profile, variant, self.device)
        return self._pipelines[variant]

    def tracks(self, split: str) -> list[Track]:
        """The profile's tracks of one split: "train", "valid" or "test"."""
        from srlib.data import tracks as data

        return data.for_profile(self.profile, split)

    def excerpt(self, track: Track) -> np.ndarray:
        """The fixed evaluation excerpt of a track, float32 [samples], mono 48 kHz."""
        from srlib.data import tracks as data

        return data.excerpt(track, self.profile)

    def scratch(self, name: str) -> Path:
        """An empty folder for what is not an artefact, e.g. a training run: build/<profile>/runs/<name>."""
        folder = artifacts.build_dir(self.profile.name) / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def save_figure(self, fig: Figure, name: str) -> Figure:
        """Save a declared figure and hand it back, so that a cell's last line both saves and shows it."""
        kind = self._declared(name, ("png", "svg"))
        artifacts.save_figure(fig, name, self.profile.name, self.notebook.id, kind, self._context())
        return fig

    def save_table(self, table: pd.DataFrame, name: str, settings: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Save a declared table with the settings of its columns, and hand it back."""
        self._declared(name, ("csv",))
        artifacts.save_table(table, name, self.profile.name, self.notebook.id, settings, self._context())
        return table

    def save_number(self, name: str, value: float, unit: str = "", fmt: str = ".3g") -> None:
        """Save a declared number that prose will quote."""
        self._declared(name, ("",))
        artifacts.save_number(name, value, self.profile.name, self.notebook.id, unit, fmt, self._context())

    def done(self) -> None:
        """List what was written, with size and hash; fails if a declared artefact is missing."""
        missing = [output for output in self.notebook.outputs if output not in self._saved]
        if missing:
            raise SrlibError(f"{self.notebook.id} declares {', '.join(missing)} but did not save it.")
        folders = {"csv": artifacts.tables_dir, "png": artifacts.figures_dir, "svg": artifacts.figures_dir}
        numbers = artifacts.read_numbers(self.profile.name) if any("." not in o for o in self.notebook.outputs) else {}
        for output in self.notebook.outputs:
            name, _, kind = output.partition(".")
            if kind:
                path = folders[kind](self.profile.name) / output
                print(f"{output:<34} {path.stat().st_size / 1000:8.1f} kB   sha256 {artifacts.sha256(path)[:12]}")
            else:
                print(f"{name:<34} {numbers[name]['text']} {numbers[name]['unit']}")
        print(f"{time.perf_counter() - self._start:.1f} s")

    def _declared(self, name: str, kinds: tuple[str, ...]) -> str:
        for kind in kinds:
            output = f"{name}.{kind}" if kind else name
            if output in self.notebook.outputs:
                self._saved.add(output)
                return kind
        raise SrlibError(f"{self.notebook.id} saves {name!r} but does not declare it in srlib.reproduce.CHAIN.")

    def _context(self) -> dict[str, Any]:
        seconds = round(time.perf_counter() - self._start, 2)
        return {"parameters": self.parameters, "device": self.device, "seconds": seconds}


def notebook_setup(notebook_id: str, namespace: Mapping[str, Any]) -> Run:
    """Set seeds, figure style and device, resolve the profile, and return the notebook's `Run`.

    Run with other parameters than the notebook's own, outside the chain, it is an exploration: its artefacts go to
    build/<profile>/explore, so that they cannot end up in the report.

    Args:
        notebook_id: file name without suffix, e.g. "03_vae".
        namespace: the notebook's `globals()`, which hold its parameters.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in notebooks
    import matplotlib
    import torch
    from IPython.core.getipython import get_ipython
    from IPython.core.pylabtools import select_figure_formats

    from srlib.report.plots import STYLE

    artifacts.explore(None)  # whatever this kernel ran before
    defaults = default_parameters(notebook_id)
    parameters = {name: namespace.get(name, value) for name, value in defaults.items()}
    profile = config.profile(parameters["profile"])
    random.seed(parameters["seed"])
    np.random.seed(parameters["seed"])  # some libraries still draw from the global generator
    torch.manual_seed(parameters["seed"])
    matplotlib.rcParams.update(STYLE)
    if get_ipython() is not None:
        select_figure_formats(get_ipython(), {"png"})  # show figures that pyplot does not know
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"notebook {notebook_id}\nprofile  {profile.name}, model {profile.model}, data {profile.dataset}")
    print(f"seed     {parameters['seed']}\ndevice   {device}")
    changed = {name: value for name, value in parameters.items() if name != "profile" and value != defaults[name]}
    if changed and IN_CHAIN not in os.environ:
        folder = artifacts.build_dir(profile.name) / "explore"
        artifacts.explore(folder)
        print(f"explored {changed}: artefacts go to {folder}")
    return Run(notebook_id, profile, parameters, device)


def default_parameters(notebook_id: str) -> dict[str, Any]:
    """The parameters of a notebook with the values that stand in its file."""
    cells = json.loads(source_path(notebook(notebook_id)).read_text(encoding="utf-8"))["cells"]
    tagged = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    statements = ast.parse("".join(tagged["source"])).body
    return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}
