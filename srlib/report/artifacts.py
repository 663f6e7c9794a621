"""Named artefacts: the only interface between the notebooks, and between the notebooks and the report.

A notebook calls `save_figure`, `save_table` or `save_number` with a bare name; the profile decides the place:

    smoke        build/smoke/{figures,tables}    never committed
    demo, paper  figures/, report/tables/        committed

All numbers share the file tables/numbers.json. What is committed is a function of the result alone: fixed float
formatting, no dates, no software versions, so that a rerun leaves git clean unless a result changed. Beside each figure
and table lies a JSON sidecar with its notebook, profile and SHA-256. Everything volatile (time, host, versions, commit,
seconds) goes to build/<profile>/provenance, one record for each artefact.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlib.audio.files import write_atomically, write_text
from srlib.errors import SrlibError

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

DRAFT_PROFILE = "smoke"  # its numbers come from an untrained model: kept out of everything that is committed
IN_CHAIN = "SRLIB_IN_CHAIN"  # set in the environment of notebooks that the chain runs
FIGURE_KINDS = ("png", "svg")
SIGNIFICANT_DIGITS = 6  # of every stored float; in the last of them thread counts differ, which the chain fixes
FIGURE_DPI = 160  # pixels per inch of the png figures
_explored: Path | None = None  # where the artefacts of an exploration go; the notebooks stay in the project folder


# ---------------------------------------------------------------------------------------------- places


def root() -> Path:
    """Project folder: $SRLIB_ROOT, else the working folder (or its parent) that holds notebooks/, else the checkout."""
    if os.environ.get("SRLIB_ROOT"):
        return Path(os.environ["SRLIB_ROOT"]).resolve()
    here = Path.cwd()
    checkout = Path(__file__).resolve().parents[2]
    return next((folder for folder in (here, here.parent) if (folder / "notebooks").is_dir()), checkout)


def explore(folder: Path | None) -> None:
    """Write and read this process's artefacts below `folder`, not in the project; None goes back to the project."""
    global _explored
    _explored = folder


def build_dir(profile: str) -> Path:
    """Folder of everything of a profile that git ignores: executed notebooks, provenance, the PDF."""
    return (_explored or root()) / "build" / _checked(profile)


def place(kind: str, name: str, profile: str) -> Path:
    """Path of an artefact.

    Args:
        kind: "png" or "svg" of a figure, "csv" of a table, or "number"; all numbers share one file.
    """
    folder = "figures" if kind in FIGURE_KINDS else "tables"
    file = "numbers.json" if kind == "number" else f"{_checked(name)}.{kind}"
    if profile == DRAFT_PROFILE:
        return build_dir(profile) / folder / file
    return (_explored or root()) / ("report/tables" if folder == "tables" else folder) / file


def provenance_dir(profile: str) -> Path:
    """Folder of the volatile records of how each artefact was made: figure_NAME, table_NAME, number_NAME .json."""
    return build_dir(profile) / "provenance"


def notebook_file(notebook: str) -> Path:
    """The notebook's file in the project folder."""
    path = root() / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        raise SrlibError(f"{path} is missing: run from a checkout of the project, or point SRLIB_ROOT at one.")
    return path


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------- saving


def save_figure(fig: Figure, name: str, profile: str, notebook: str, context: Mapping[str, Any] | None = None) -> Path:
    """Write a matplotlib figure to figures/<name>: the same drawing gives the same bytes.

    It becomes a png if it holds images, which bloat an svg, else an svg.

    Args:
        context: what the volatile record should also hold: parameters, device, seconds.
    """
    import matplotlib

    kind = "png" if any(ax.images for ax in fig.axes) else "svg"
    path = place(kind, name, profile)
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    metadata["Description"] = f"srlib, profile {profile}, notebook {notebook}"
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        write_atomically(path, lambda part: fig.savefig(part, format=kind, dpi=FIGURE_DPI, metadata=metadata))
    for other in set(FIGURE_KINDS) - {kind}:
        path.with_suffix(f".{other}").unlink(missing_ok=True)
    _write_sidecar("figure", path, profile, notebook, {}, context)
    return path


def save_table(
    table: pandas.DataFrame,
    name: str,
    profile: str,
    notebook: str,
    settings: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Path:
    """Write a table as <name>.csv, and the settings of its columns to its sidecar <name>.json.

    Args:
        table: tidy, one row per observation; the index is dropped. Floats are kept to 6 significant digits.
        settings: what a reader must know to reproduce the columns, e.g. the convention, n_fft and hop of an LSD.
    """
    path = place("csv", name, profile)
    if table.empty:
        raise SrlibError(f"Table {name!r} of notebook {notebook} has no rows; nothing was written.")
    write_text(path, table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g", lineterminator="\n"))
    _write_sidecar("table", path, profile, notebook, {"settings": _plain(settings or {})}, context)
    return path


def save_number(
    name: str,
    value: float | int,
    profile: str,
    notebook: str,
    unit: str = "",
    fmt: str = ".3g",
    context: Mapping[str, Any] | None = None,
) -> str:
    """Store a number that prose will quote and no table holds; returns the text that the report prints, without unit.

    Args:
        unit: "Hz", "dB", "s", ... or "" for a plain number.
        fmt: Python format specification of the text, e.g. ".2f".
    """
    value = _plain(value)
    if not isinstance(value, int | float):  # NaN and infinity became None
        raise SrlibError(f"Number {_checked(name)!r} of notebook {notebook} is not finite; nothing was written.")
    text = format(value, fmt)
    number = {"value": value, "unit": unit, "text": text, "notebook": notebook, "profile": profile}
    _write_json(place("number", name, profile), dict(sorted({**_numbers(profile), name: number}.items())))
    _record("number", name, profile, notebook, context)
    return text


def forget(notebook: str, profile: str) -> None:
    """Drop a notebook's numbers and volatile records before it runs anew: what it no longer makes does not stay."""
    for path, _, _ in _records(notebook, profile):
        path.unlink()
    numbers = _numbers(profile)
    if numbers:
        left = {name: of for name, of in numbers.items() if (of["notebook"], of["profile"]) != (notebook, profile)}
        _write_json(place("number", "", profile), left)


def fingerprint(notebook: str, profile: str) -> dict[str, str]:
    """SHA-256 of each artefact that the last run of a notebook saved: {"figure overview": ..., "number x": ...}."""
    found = {}
    for _, kind, name in _records(notebook, profile):
        if kind == "number":
            content = json.dumps(read_number(name, profile), sort_keys=True).encode()
            found[f"{kind} {name}"] = hashlib.sha256(content).hexdigest()
        else:
            found[f"{kind} {name}"] = sha256(find(kind, name, profile))
    return found


# ---------------------------------------------------------------------------------------------- reading


def read_table(name: str, profile: str) -> pandas.DataFrame:
    """The table as saved; a missing one is an error that names the notebook to run."""
    return _read_csv(find("table", name, profile))


def committed_table(name: str) -> tuple[pandas.DataFrame, dict[str, Any]] | None:
    """A table of the project and its settings, also while a notebook is explored; None if it is not there."""
    path = root() / "report" / "tables" / f"{_checked(name)}.csv"
    if not path.is_file():
        return None
    return _read_csv(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["settings"]


def read_number(name: str, profile: str) -> dict[str, Any]:
    """One number as {value, unit, text, notebook, profile}; a missing one is an error that names what to run."""
    number = _numbers(profile).get(name)
    if number is None or number["profile"] != profile:
        path, advice = place("number", name, profile), _advice(name, profile)
        raise SrlibError(f"Number {name!r} is not in {path} for profile {profile!r}; {advice}.")
    return number


def find(kind: str, name: str, profile: str) -> Path:
    """Path of a saved "figure" or "table"; a missing one is an error that names the notebook to run."""
    paths = [place(suffix, name, profile) for suffix in (FIGURE_KINDS if kind == "figure" else ("csv",))]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        advice = _advice(name, profile)
        raise SrlibError(f"The {kind} {name!r} of profile {profile!r} is missing ({paths[0]}); {advice}.")
    return path


def read_sidecar(path: Path, profile: str) -> dict[str, Any]:
    """Committed record of the figure or table at `path`, after checking that file, record and profile agree."""
    record, advice = path.with_suffix(".json"), _advice(path.stem, profile)
    if not record.is_file():
        raise SrlibError(f"{path} has no record {record.name}; {advice}.")
    sidecar = json.loads(record.read_text(encoding="utf-8"))
    if sidecar["profile"] != profile:
        raise SrlibError(f"{path} was made by profile {sidecar['profile']!r}, not {profile!r}; {advice}.")
    if sidecar["file"] != path.name or sidecar["sha256"] != sha256(path):
        raise SrlibError(f"{path} is not what its record {record.name} describes (edited by hand?); {advice}.")
    return sidecar


def _numbers(profile: str) -> dict[str, dict[str, Any]]:
    path = place("number", "", profile)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_csv(path: Path) -> pandas.DataFrame:
    import pandas

    return pandas.read_csv(path, keep_default_na=False, na_values=[""])


def _advice(name: str, profile: str) -> str:
    """What to run so that the artefact appears: the first notebook that lists it as an output, or saves it."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((root() / "notebooks").glob("*.ipynb"))}
    patterns = (rf"/{name}\.(csv|png|svg)\b", rf'\\"{name}\\"')  # in JSON, quotes of the code are escaped
    makers = [stem for pattern in patterns for stem, text in texts.items() if re.search(pattern, text)]
    return f"run `srlib reproduce --profile {profile}{f' --only {makers[0]}' if makers else ''}`"


# ---------------------------------------------------------------------------------------------- records


def _checked(name: str) -> str:
    """Names become file names and keys: lower case, digits and underscores only."""
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise SrlibError(f"{name!r} cannot name an artefact; use lower-case letters, digits and underscores.")
    return name


def _plain(value: Any) -> Any:
    """JSON value: numpy scalars unwrapped, floats at 6 significant digits, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def _write_sidecar(
    kind: str, path: Path, profile: str, notebook: str, more: Mapping[str, Any], context: Mapping[str, Any] | None
) -> None:
    sidecar = {"kind": kind, "file": path.name, "notebook": notebook, "profile": profile, "sha256": sha256(path)}
    _write_json(path.with_suffix(".json"), sidecar | more)
    _record(kind, path.stem, profile, notebook, context)


def _record(kind: str, name: str, profile: str, notebook: str, context: Mapping[str, Any] | None) -> None:
    utc = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stamp = {"notebook": notebook, "profile": profile, "utc": utc, **_machine(root()), **(context or {})}
    _write_json(provenance_dir(profile) / f"{kind}_{_checked(name)}.json", stamp)


def _records(notebook: str, profile: str) -> list[tuple[Path, str, str]]:
    """Path, kind and name of each volatile record of a notebook."""
    found = []
    for path in sorted(provenance_dir(profile).glob("*.json")):
        stamp = json.loads(path.read_text(encoding="utf-8"))
        if stamp["notebook"] == notebook:
            found.append((path, *path.stem.split("_", 1)))
    return found


@functools.cache
def _machine(folder: Path) -> dict[str, Any]:
    """What stays the same while a process runs: versions, machine, and the commit of the checkout, "-dirty" or not."""
    packages = {one.name: one.version for one in importlib.metadata.distributions()}
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return {
        "commit": commit,
        "versions": {name: packages.get(name) for name in ("srlib", "torch", "diffusers", "numpy")},
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
