"""What the first cell of every notebook calls: seeds, device, profile, and the `run` that saves artefacts.

The line "Outputs" of a notebook's header lists its figures and tables. `Run.done` fails where it differs from what was
saved, so that the header stays true.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import random
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from srlib import config
from srlib.errors import SrlibError
from srlib.report import artifacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from srlib.data.tracks import Track
    from srlib.restore.pipeline import RestorationPipeline


class Run:
    """One execution of a notebook: its data and model, and where what it makes goes.

    Attributes:
        notebook: file name of the notebook without suffix.
        profile: the `config.Profile` that sets the size of everything.
        rng: numpy generator seeded with the notebook's `seed`.
        device: "cuda" where there is one, else "cpu".
    """

    def __init__(self, notebook: str, profile: config.Profile, parameters: Mapping[str, Any], device: str) -> None:
        self.notebook = notebook
        self.profile = profile
        self.parameters = dict(parameters)
        self.seed = int(parameters["seed"])
        self.rng = np.random.default_rng(self.seed)
        self.device = device
        self._saved: dict[str, str] = {}  # file name of a figure or table, or name of a number -> line of `done`
        self._start = time.perf_counter()

    def pipeline(self, variant: str | None = None) -> RestorationPipeline:
        """The profile's restoration pipeline, loaded once; `variant="lowpass"` is the one trained without noise."""
        from srlib.measure.systems import load_pipeline

        return load_pipeline(self.profile, variant, self.device)

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
        """Save a figure (png if it shows images, else svg) and hand it back: a cell's last line saves and shows it."""
        self._list(artifacts.save_figure(fig, name, self.profile.name, self.notebook, self._context()))
        return fig

    def save_table(self, table: pd.DataFrame, name: str, settings: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Save a table with the settings of its columns, and hand it back."""
        self._list(artifacts.save_table(table, name, self.profile.name, self.notebook, settings, self._context()))
        return table

    def save_settings(self, settings: Mapping[str, float], name: str) -> pd.DataFrame:
        """Save numbers that describe a method, by name, as a table with the columns setting and value."""
        return self.save_table(pd.DataFrame(settings.items(), columns=["setting", "value"]), name)

    def save_number(self, name: str, value: float, unit: str = "", fmt: str = ".3g") -> None:
        """Save a number that prose will quote and that is no cell of a table."""
        text = artifacts.save_number(name, value, self.profile.name, self.notebook, unit, fmt, self._context())
        self._saved[name] = f"{text} {unit}"

    def done(self) -> None:
        """List what was written, with size and hash; fails if the header's outputs are not what was saved."""
        listed, saved = outputs(self.notebook), [name for name in self._saved if "." in name]
        missing = [pattern for pattern in listed if not fnmatch.filter(saved, pattern)]
        unlisted = [name for name in saved if not any(fnmatch.fnmatch(name, pattern) for pattern in listed)]
        for names, fault in ((missing, "lists {} but did not save it"), (unlisted, "saves {} unlisted")):
            if names:
                what = fault.format(", ".join(names))
                raise SrlibError(f"{self.notebook} {what}: mend the line Outputs of its header, or its cells.")
        for name, line in self._saved.items():
            print(f"{name:<34} {line}")
        print(f"{time.perf_counter() - self._start:.1f} s")

    def _list(self, path: Path) -> None:
        line = f"{path.stat().st_size / 1000:8.1f} kB   sha256 {artifacts.sha256(path)[:12]}"
        self._saved[path.name] = line

    def _context(self) -> dict[str, Any]:
        seconds = round(time.perf_counter() - self._start, 2)
        return {"parameters": self.parameters, "device": self.device, "seconds": seconds}


def notebook_setup(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Set seeds and device, resolve the profile, and return the notebook's `Run`.

    Run with other parameters than the notebook's own, outside the chain, it is an exploration: its artefacts go to
    build/<profile>/explore, so that they cannot end up in the report.

    Args:
        notebook: file name without suffix, e.g. "03_vae".
        namespace: the notebook's `globals()`, which hold its parameters.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in notebooks
    import torch
    from IPython.core.getipython import get_ipython
    from IPython.core.pylabtools import select_figure_formats

    artifacts.explore(None)  # whatever this kernel ran before
    defaults = default_parameters(notebook)
    parameters = {name: namespace.get(name, value) for name, value in defaults.items()}
    profile = config.profile(parameters["profile"])
    random.seed(parameters["seed"])
    np.random.seed(parameters["seed"])  # some libraries still draw from the global generator
    torch.manual_seed(parameters["seed"])
    if get_ipython() is not None:
        select_figure_formats(get_ipython(), {"png"})  # show figures that pyplot does not know
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"notebook {notebook}\nprofile  {profile.name}, model {profile.model}, data {profile.dataset}")
    print(f"seed     {parameters['seed']}\ndevice   {device}")
    changed = {name: value for name, value in parameters.items() if name != "profile" and value != defaults[name]}
    if changed and artifacts.IN_CHAIN not in os.environ:
        folder = artifacts.build_dir(profile.name) / "explore"
        artifacts.explore(folder)
        print(f"explored {changed}: artefacts go to {folder}")
    return Run(notebook, profile, parameters, device)


def default_parameters(notebook: str) -> dict[str, Any]:
    """The parameters of a notebook with the values that stand in its file."""
    tagged = next(cell for cell in _cells(notebook) if "parameters" in cell["metadata"].get("tags", []))
    statements = ast.parse("".join(tagged["source"])).body
    return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}


def outputs(notebook: str) -> list[str]:
    """File names of the figures and tables that a notebook's header lists as its outputs; `*` stands for any text."""
    line = re.search(r"^\| Outputs \|.*$", "".join(_cells(notebook)[0]["source"]), re.MULTILINE)
    return re.findall(r"/([\w*]+\.(?:png|svg|csv))`", line[0]) if line else []


def _cells(notebook: str) -> list[dict[str, Any]]:
    return json.loads(artifacts.notebook_file(notebook).read_text(encoding="utf-8"))["cells"]
