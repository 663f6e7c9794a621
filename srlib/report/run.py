"""Set-up of a notebook, called in its first code cell: seeds, device, profile, and the `run` that saves artefacts."""

from __future__ import annotations

import ast
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from srlib import config
from srlib.audio.files import write_text
from srlib.errors import SrlibError
from srlib.report import artifacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from srlib.data.tracks import Track
    from srlib.restore.pipeline import RestorationPipeline

IN_CHAIN = "SRLIB_IN_CHAIN"  # set in the environment of notebooks that `srlib reproduce` runs


class Run:
    """One execution of a notebook: its `profile`, `seed`, `rng` and `device`, its data and model, and its artefacts.

    `target` is the profile of its artefacts, or "explore" outside the chain, where artefacts are not published.
    """

    def __init__(self, notebook: str, profile: config.Profile, seed: int, device: str, cells: Sequence[str]) -> None:
        self.notebook = notebook
        self.profile = profile
        self.target = profile.name if IN_CHAIN in os.environ else artifacts.EXPLORED
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.device = device
        self._numbers: list[dict[str, Any]] = []
        self._executed = cells  # grows with each cell; the first entry is empty
        self._cells: dict[str, int] = {}  # file name of an artefact -> execution count of its cell

    def pipeline(self) -> RestorationPipeline:
        """The profile's restoration pipeline, loaded once."""
        from srlib.measure.systems import load_pipeline

        return load_pipeline(self.profile.model, None, self.device)

    def tracks(self, split: str) -> list[Track]:
        """The profile's tracks of one split: "train", "valid" or "test"."""
        from srlib.data.tracks import for_profile

        return for_profile(self.profile, split)

    def excerpt(self, track: Track) -> np.ndarray:
        """The fixed evaluation excerpt of a track, float32 [samples], mono 48 kHz."""
        from srlib.data.tracks import excerpt

        return excerpt(track, self.profile)

    def scratch(self, name: str) -> Path:
        """An empty folder for files that are no artefacts, e.g. a training run: build/<target>/runs/<name>."""
        folder = artifacts.build_dir(self.target) / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def save_figure(self, fig: Figure, name: str) -> Figure:
        """Save a figure (png if it shows images, else svg) and return it, so that a cell's last line also shows it."""
        self._note(artifacts.save_figure(fig, name, self.target, self.notebook))
        return fig

    def save_table(self, table: pd.DataFrame, name: str, settings: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Save a table with the settings of its columns, and return it."""
        self._note(artifacts.save_table(table, name, self.target, self.notebook, settings))
        return table

    def save_settings(self, settings: Mapping[str, float], name: str) -> pd.DataFrame:
        """Save numbers that describe a method, by name, as a table with the columns setting and value."""
        return self.save_table(pd.DataFrame(settings.items(), columns=["setting", "value"]), name)

    def save_number(self, name: str, value: float, unit: str = "", fmt: str = ".3g") -> None:
        """Save a number that the report quotes and that is no cell of a table, with its unit and format."""
        if not np.isfinite(value):
            raise SrlibError(f"Number {name!r} of notebook {self.notebook} is not finite; nothing was written.")
        self._numbers.append({"name": name, "value": value, "unit": unit, "text": format(value, fmt)})
        self.save_table(pd.DataFrame(self._numbers), f"numbers_{self.notebook}")

    def done(self) -> None:
        """Print the saved artefacts, and write for the gallery which cell saved which."""
        path = artifacts.build_dir(self.target) / "notebooks" / f"{self.notebook}.cells.json"
        write_text(path, json.dumps(self._cells, indent=1) + "\n")
        numbers = [f"{one['name']:<34} {one['text']} {one['unit']}".rstrip() for one in self._numbers]
        print(*numbers, *self._cells, sep="\n")

    def _note(self, path: Path) -> None:
        self._cells[path.name] = len(self._executed) - 1


def interactive() -> bool:
    """Whether a front end runs the notebook: Jupyter's server names its session, VS Code the notebook's file."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    served = "JPY_SESSION_NAME" in os.environ or (shell is not None and "__vsc_ipynb_file__" in shell.user_ns)
    return served and IN_CHAIN not in os.environ


def notebook_setup(notebook: str, namespace: Mapping[str, Any]) -> Run:
    """Set seeds and device, resolve the profile, and return the notebook's `Run`.

    Outside the chain it is an exploration: its artefacts go to build/explore and are not committed.

    Args:
        notebook: file name without suffix, e.g. "03_vae".
        namespace: the notebook's `globals()`, which hold its parameters.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in notebooks
    import torch
    from IPython.core.getipython import get_ipython
    from IPython.core.pylabtools import select_figure_formats

    defaults = default_parameters(notebook)
    cells = namespace.get("In", [])
    given = [_assigned(cell) for cell in cells if cell.startswith("# Parameters\n")]  # by papermill
    if unknown := {name for one in given for name in one} - defaults.keys():  # papermill only warns of them
        raise SrlibError(f"{notebook} has no parameter {', '.join(sorted(unknown))}: it has {', '.join(defaults)}.")
    profile, seed = (namespace.get(name, defaults[name]) for name in ("profile", "seed"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    np.random.seed(seed)  # some libraries still draw from the global generator
    torch.manual_seed(seed)
    run = Run(notebook, config.profile(profile), seed, device, cells)
    if get_ipython() is not None:
        select_figure_formats(get_ipython(), {"png"})  # show figures that pyplot does not know
    print(f"notebook {notebook}\nprofile  {run.profile.name}, model {run.profile.model}, data {run.profile.dataset}")
    print(f"seed     {run.seed}\ndevice   {run.device}")
    if run.target == artifacts.EXPLORED:
        print(f"explored: what is saved goes to {artifacts.build_dir(run.target)}, not into the report")
    return run


def default_parameters(notebook: str) -> dict[str, Any]:
    """The parameters of a notebook with the values that stand in its file."""
    cells = json.loads(artifacts.notebook_file(notebook).read_text(encoding="utf-8"))["cells"]
    tagged = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return {name: ast.literal_eval(value) for name, value in _assigned("".join(tagged["source"])).items()}


def _assigned(source: str) -> dict[str, ast.expr]:
    """{name: expression} of the assignments of a cell."""
    return {ast.unparse(one.targets[0]): one.value for one in ast.parse(source).body if isinstance(one, ast.Assign)}
