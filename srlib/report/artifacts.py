"""Named artefacts: the only interface between the notebooks, and between the notebooks and the report.

A notebook calls `save_figure`, `save_table` or `save_number` with a bare name; the profile decides the place:

    smoke        build/smoke/{figures,tables}, build/smoke/numbers.json      never committed
    demo, paper  figures/, report/tables/, report/tables/numbers.json        committed

What is committed is a function of the result alone: fixed float formatting, no dates, no software versions, so that
a rerun leaves git clean unless a result changed. Beside each artefact lies a JSON sidecar with its notebook, profile
and SHA-256; everything volatile (time, host, versions, commit, seconds) goes to build/<profile>/provenance.
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
FIGURE_KINDS = ("png", "svg")
SIGNIFICANT_DIGITS = 6  # of every stored float; in the last of them thread counts differ, which the chain fixes
FIGURE_DPI = 160  # pixels per inch of the png figures
_explored: Path | None = None  # where the artefacts of an exploration go; the notebooks stay in the project folder


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
    return _artifact_root() / "build" / _checked(profile)


def figures_dir(profile: str) -> Path:
    """Folder of the profile's figures."""
    return build_dir(profile) / "figures" if profile == DRAFT_PROFILE else _artifact_root() / "figures"


def tables_dir(profile: str) -> Path:
    """Folder of the profile's tables."""
    return build_dir(profile) / "tables" if profile == DRAFT_PROFILE else _artifact_root() / "report" / "tables"


def numbers_file(profile: str) -> Path:
    """The one JSON file that maps the name of each number to its value, unit, text, notebook and profile."""
    return (build_dir(profile) if profile == DRAFT_PROFILE else tables_dir(profile)) / "numbers.json"


def provenance_file(profile: str, kind: str, name: str) -> Path:
    """Volatile record of how one artefact (`kind` in figure, table, number) was made."""
    return build_dir(profile) / "provenance" / f"{kind}_{_checked(name)}.json"


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_figure(
    fig: Figure, name: str, profile: str, notebook: str, kind: str = "png", context: Mapping[str, Any] | None = None
) -> Path:
    """Write a matplotlib figure to figures/<name>.<kind>: the same drawing gives the same bytes.

    Args:
        kind: "svg" for line plots, "png" for spectrograms (as svg they are bloated).
        context: what the volatile record should also hold: parameters, device, seconds.
    """
    if kind not in FIGURE_KINDS:
        raise SrlibError(f"Figure {name!r} was asked for as {kind!r}; choose one of {', '.join(FIGURE_KINDS)}.")
    import matplotlib

    path = figures_dir(profile) / f"{_checked(name)}.{kind}"
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    metadata["Description"] = f"srlib, profile {profile}, notebook {notebook}"
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        write_atomically(path, lambda part: fig.savefig(part, format=kind, dpi=FIGURE_DPI, metadata=metadata))
    for other in set(FIGURE_KINDS) - {kind}:
        path.with_suffix(f".{other}").unlink(missing_ok=True)
    sidecar = {"kind": "figure", "file": path.name, "notebook": notebook, "profile": profile, "sha256": sha256(path)}
    _write_json(path.with_suffix(".json"), sidecar)
    _record("figure", name, profile, notebook, context)
    return path


def save_table(
    table: pandas.DataFrame,
    name: str,
    profile: str,
    notebook: str,
    settings: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Path:
    """Write a table as <name>.csv (the data) and <name>.json (the same rows, and the settings of its metrics).

    Args:
        table: tidy, one row per observation; the index is dropped. Floats are kept to 6 significant digits.
        settings: what a reader must know to reproduce the columns, e.g. the convention, n_fft and hop of an LSD.
    """
    path = tables_dir(profile) / f"{_checked(name)}.csv"
    if table.empty:
        raise SrlibError(f"Table {name!r} of notebook {notebook} has no rows; nothing was written.")
    csv = table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g", lineterminator="\n")
    write_text(path, csv)
    rows = _plain(table.to_dict("records"))
    sidecar = {
        "kind": "table",
        "file": path.name,
        "notebook": notebook,
        "profile": profile,
        "sha256": sha256(path),
        "settings": _plain(settings or {}),
        "rows": rows,
    }
    _write_json(path.with_suffix(".json"), sidecar)
    _record("table", name, profile, notebook, context)
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
    """Store a number that prose will quote; returns the text that the report prints (without the unit).

    Args:
        unit: "Hz", "dB", "s", ... or "" for a plain number.
        fmt: Python format specification of the text, e.g. ".2f".
    """
    value = _plain(value)
    if not isinstance(value, int | float):  # NaN and infinity became None
        raise SrlibError(f"Number {_checked(name)!r} of notebook {notebook} is not finite; nothing was written.")
    path = numbers_file(profile)
    numbers = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = format(value, fmt)
    numbers[name] = {"value": value, "unit": unit, "text": text, "notebook": notebook, "profile": profile}
    _write_json(path, dict(sorted(numbers.items())))
    _record("number", name, profile, notebook, context)
    return text


def read_table(name: str, profile: str) -> pandas.DataFrame:
    """The table as saved; a missing one is an error that names the notebook to run."""
    path = tables_dir(profile) / f"{_checked(name)}.csv"
    _require(path, "table", name, profile)
    return _read_csv(path)


def committed_table(name: str) -> tuple[pandas.DataFrame, dict[str, Any]] | None:
    """A table of the project and its settings, also while a notebook is explored; None if it is not there."""
    path = root() / "report" / "tables" / f"{_checked(name)}.csv"
    if not path.is_file():
        return None
    return _read_csv(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["settings"]


def read_numbers(profile: str) -> dict[str, dict[str, Any]]:
    """All numbers of a profile: name -> {value, unit, text, notebook, profile}."""
    path = numbers_file(profile)
    _require(path, "file", "numbers", profile)
    numbers = json.loads(path.read_text(encoding="utf-8"))
    return {name: number for name, number in numbers.items() if number["profile"] == profile}


def read_number(name: str, profile: str) -> dict[str, Any]:
    """One number; a missing key is an error that names the notebook to run."""
    numbers = read_numbers(profile)
    if name not in numbers:
        raise SrlibError(
            f"Number {name!r} is not in {numbers_file(profile)} for profile {profile!r}; {_advice(name, profile)}."
        )
    return numbers[name]


def find_figure(name: str, profile: str) -> Path:
    """Path of a saved figure, whatever its kind; a missing one is an error that names the notebook to run."""
    paths = [figures_dir(profile) / f"{_checked(name)}.{kind}" for kind in FIGURE_KINDS]
    path = next((path for path in paths if path.is_file()), paths[0])
    _require(path, "figure", name, profile)
    return path


def read_sidecar(path: Path, profile: str) -> dict[str, Any]:
    """Committed record of the figure or table at `path`, after checking that file, record and profile agree."""
    sidecar_path = path.with_suffix(".json")
    _require(sidecar_path, "record", path.stem, profile)
    sidecar = json.loads(sidecar_path.read_text(encoding="utf-8"))
    if sidecar["profile"] != profile:
        raise SrlibError(
            f"{path} was made by profile {sidecar['profile']!r}, not {profile!r}; {_advice(path.stem, profile)}."
        )
    if sidecar["file"] != path.name or sidecar["sha256"] != sha256(path):
        raise SrlibError(
            f"{path} is not the file that its record {sidecar_path.name} describes (edited by hand?); "
            f"{_advice(path.stem, profile)}."
        )
    return sidecar


def _read_csv(path: Path) -> pandas.DataFrame:
    import pandas

    return pandas.read_csv(path, keep_default_na=False, na_values=[""])


def _artifact_root() -> Path:
    return _explored or root()


def _require(path: Path, kind: str, name: str, profile: str) -> None:
    if not path.is_file():
        raise SrlibError(f"The {kind} {name!r} of profile {profile!r} is missing ({path}); {_advice(name, profile)}.")


def _advice(name: str, profile: str) -> str:
    """What to run so that the artefact appears; the chain of notebooks knows who makes it."""
    from srlib.report.reproduce import CHAIN

    makers = [notebook.id for notebook in CHAIN if name in {Path(output).stem for output in notebook.outputs}]
    only = f" --only {makers[0]}" if makers else ""
    return f"run `srlib reproduce --profile {profile}{only}`"


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


def _record(kind: str, name: str, profile: str, notebook: str, context: Mapping[str, Any] | None) -> None:
    versions = {package: _version(package) for package in ("srlib", "torch", "diffusers", "numpy")}
    stamp = {
        "artefact": f"{kind} {name}",
        "notebook": notebook,
        "profile": profile,
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        **_git_state(root()),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **(context or {}),
    }
    _write_json(provenance_file(profile, kind, name), stamp)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether tracked files differ from it; both None outside a checkout. Once per process."""

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}
