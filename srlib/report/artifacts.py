"""Named artefacts: saved by notebooks, compared with the committed ones, and committed if they differ.

A notebook saves figures, tables and numbers under bare names, always below build/<profile>/{figures,tables}. `publish`
then compares them with figures/ and report/tables/, which are committed, and copies only those that differ by more than
the tolerances below. The profile `smoke` and explorations are never published. Beside each artefact lies a JSON sidecar
with its notebook, profile and SHA-256; the numbers of a notebook are the table `numbers_<notebook>`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlib.audio.files import write_atomically, write_text
from srlib.errors import SrlibError

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

DRAFT_PROFILE = "smoke"  # its model is untrained
EXPLORED = "explore"  # takes the place of the profile outside the chain of notebooks
KINDS = {".png": "figure", ".svg": "figure", ".csv": "table"}
SIGNIFICANT_DIGITS = 6  # of every stored float
FIGURE_DPI = 160  # pixels per inch of the png figures

# Tolerated change of a value, as a share of itself plus the same share of its column's median magnitude, by patterns of
# the column's name (the first match counts); None: not compared. In empty bands ssr_eval shows the rounding of float32.
TOLERANCES = {"*seconds": None, "*_s": None, "*minutes": None, "c2st": 0.02, "lsd_ssr_eval*": 0.01, "*": 1e-3}
LEAST_MOVE = 1e-6  # a smaller change of a value is none
LEAST_DB, MOST_DB = -60.0, 100.0  # dB; below, two signals have nothing in common; above is rounding of float32
SAME_LEVEL, SAME_SHARE = 16, 2e-5  # a png is the same if fewer pixels than this share differ by more than this level
SAME_POINTS = 0.05  # a svg is the same if no coordinate differs by more, in points


def root() -> Path:
    """Project folder: $SRLIB_ROOT, else the working folder (or its parent) that holds notebooks/, else the checkout."""
    if os.environ.get("SRLIB_ROOT"):
        return Path(os.environ["SRLIB_ROOT"]).resolve()
    here = Path.cwd()
    checkout = Path(__file__).resolve().parents[2]
    return next((folder for folder in (here, here.parent) if (folder / "notebooks").is_dir()), checkout)


def build_dir(profile: str) -> Path:
    """Folder of a profile's files that git ignores: executed notebooks, fresh artefacts, the PDF."""
    return root() / "build" / profile


def folder(kind: str, profile: str, fresh: bool = False) -> Path:
    """Folder of the figures or tables that are committed, or of the `fresh` ones of the last runs."""
    if fresh or profile in (DRAFT_PROFILE, EXPLORED):
        return build_dir(profile) / f"{kind}s"
    return root() / ("figures" if kind == "figure" else "report/tables")


def notebook_file(notebook: str) -> Path:
    """The notebook's file in the project folder."""
    path = root() / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        raise SrlibError(f"{path} is missing: run from a checkout of the project, or point SRLIB_ROOT at one.")
    return path


def labels() -> dict[str, str]:
    """Names for readers of systems, conditions and other values, Markdown; they stand in report/metadata.yaml."""
    import yaml

    path = root() / "report" / "metadata.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["labels"] if path.is_file() else {}


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_figure(fig: Figure, name: str, profile: str, notebook: str) -> Path:
    """Save a matplotlib figure, as png if it holds images, else as svg: the same drawing gives the same bytes."""
    import matplotlib

    kind = ".png" if any(ax.images for ax in fig.axes) else ".svg"
    path = folder("figure", profile, fresh=True) / f"{name}{kind}"
    metadata = {"Date" if kind == ".svg" else "Software": None}
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        write_atomically(path, lambda part: fig.savefig(part, format=kind[1:], dpi=FIGURE_DPI, metadata=metadata))
    return _with_sidecar(path, profile, notebook, {})


def save_table(
    table: pandas.DataFrame, name: str, profile: str, notebook: str, settings: Mapping[str, Any] | None = None
) -> Path:
    """Save a table as csv; its index is dropped.

    Args:
        table: tidy, one row per observation. Floats are kept to 6 significant digits.
        settings: how the columns are computed, e.g. the convention, n_fft and hop of an LSD.
    """
    if table.empty:
        raise SrlibError(f"Table {name!r} of notebook {notebook} has no rows; nothing was written.")
    path = folder("table", profile, fresh=True) / f"{name}.csv"
    write_text(path, table.to_csv(index=False, float_format=f"%.{SIGNIFICANT_DIGITS}g", lineterminator="\n"))
    return _with_sidecar(path, profile, notebook, {"settings": dict(settings or {})})


def _with_sidecar(path: Path, profile: str, notebook: str, more: Mapping[str, Any]) -> Path:
    record = {"kind": KINDS[path.suffix], "file": path.name, "notebook": notebook, "profile": profile}
    record |= {"sha256": sha256(path), **more}
    text = json.dumps(record, indent=1, ensure_ascii=False, default=lambda value: value.item())  # numpy's scalars
    write_text(path.with_suffix(".json"), f"{text}\n")
    return path


def find(kind: str, name: str, profile: str) -> tuple[Path, dict[str, Any]]:
    """Path and sidecar of a published "figure" or "table"; SrlibError unless file, sidecar and profile agree."""
    where = folder(kind, profile)
    record = _read_json(where / name)
    path = where / record.get("file", name)
    if not path.is_file() or record["profile"] != profile or record["sha256"] != sha256(path):
        fault = f"is not in {where}, or is not what its record describes (edited by hand, or of another profile)"
        how = f"run `srlib reproduce --profile {profile}`"
        raise SrlibError(f"The {kind} {name!r} of profile {profile!r} {fault}; {how}.")
    return path, record


def committed_table(name: str) -> tuple[pandas.DataFrame, dict[str, Any]] | None:
    """A committed table and its settings, for any profile; None if it does not exist."""
    path = root() / "report" / "tables" / f"{name}.csv"
    return (read_csv(path), _read_json(path)["settings"]) if path.is_file() else None


def read_csv(path: Path) -> pandas.DataFrame:
    """A stored table; the column `text` stays text."""
    import pandas

    return pandas.read_csv(path, keep_default_na=False, na_values=[""], dtype={"text": str})


def records(profile: str, fresh: bool = False, notebook: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and sidecar of each artefact of a profile, or of one notebook of it, sorted by kind and name."""
    for kind in ("figure", "table"):
        for path in sorted(folder(kind, profile, fresh).glob("*.json")):
            record = _read_json(path)
            if record["profile"] == profile and notebook in (None, record["notebook"]):
                yield path.with_name(record["file"]), record


def _read_json(path: Path) -> dict[str, Any]:
    path = path.with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def publish(notebook: str, profile: str, rewrite: bool = True) -> list[str]:
    """Compare the fresh artefacts of a notebook with the committed ones; returns a sentence for each difference.

    `rewrite` replaces committed artefacts that differ, and deletes those that are no longer made.
    """
    if profile == DRAFT_PROFILE:
        return []
    differences = {}
    for path, record in records(profile, True, notebook):
        target = folder(record["kind"], profile) / path.name
        differences[target] = _difference(target, path, record)
        if differences[target] and rewrite:
            target.parent.mkdir(parents=True, exist_ok=True)
            for suffix in KINDS:  # a figure has one kind
                target.with_suffix(suffix).unlink(missing_ok=True)
            for suffix in (path.suffix, ".json"):
                shutil.copyfile(path.with_suffix(suffix), target.with_suffix(suffix))
    for path in [path for path, _ in records(profile, False, notebook) if path not in differences]:
        differences[path] = "is no longer made"
        if rewrite:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink()
    return [f"{path.relative_to(root())} {what}" for path, what in differences.items() if what]


def _difference(before: Path, now: Path, record: dict[str, Any]) -> str:
    """How an artefact differs from the committed one; empty within the tolerances."""
    old = _read_json(before)
    if not before.is_file() or not old:
        return "is new"
    if old["sha256"] != sha256(before):
        return "is not what its record describes"
    if old | {"sha256": ""} != record | {"sha256": ""}:
        return "has other settings"
    if old["sha256"] == record["sha256"]:
        return ""
    if now.suffix == ".csv":
        return compare_tables(before, now)
    return "" if (_same_svg if now.suffix == ".svg" else _same_png)(before, now) else "is drawn differently"


def compare_tables(before: Path, now: Path) -> str:
    """A sentence with the largest move of each column beyond TOLERANCES; empty without one."""
    from pandas.api.types import is_numeric_dtype

    old, new = read_csv(before), read_csv(now)
    if list(old) != list(new) or len(old) != len(new):
        return f"had {len(old)} rows of {len(old.columns)} columns, has {len(new)} of {len(new.columns)}"
    moves = []
    for name in old.columns.drop("text", errors="ignore"):  # the text of a number follows from its value
        share = next(share for pattern, share in TOLERANCES.items() if fnmatch.fnmatch(name, pattern))
        if share is None or old[name].equals(new[name]):
            continue
        if not (is_numeric_dtype(old[name]) and is_numeric_dtype(new[name])):
            moves.append(f"{name} has other text")
            continue
        a, b = (table[name].clip(LEAST_DB, MOST_DB) if "_db" in name else table[name] for table in (old, new))
        same = (a == b) | ((a - b).abs() < LEAST_MOVE) | (a.isna() & b.isna())
        moved = ((b - a).abs() / (a.abs() + a.abs().median())).fillna(float("inf")).mask(same, 0.0)
        if count := int((moved > share).sum()):
            most = moved.idxmax()
            moves.append(f"{name} moved by {moved[most]:.2g} ({count} rows; {a[most]:.6g} became {b[most]:.6g})")
    return ", ".join(moves)


def _same_png(one: Path, other: Path) -> bool:
    import numpy as np
    from matplotlib.image import imread

    a, b = imread(one), imread(other)
    return a.shape == b.shape and float((np.abs(a - b) > SAME_LEVEL / 255).mean()) < SAME_SHARE


def _same_svg(one: Path, other: Path) -> bool:
    number = re.compile(r"(?<![\w#.-])-?\d+\.?\d*(?:e-?\d+)?(?!\w)")
    generated = re.compile(r"\b[mp][0-9a-f]{10}\b")  # matplotlib's names of markers and clips: hashes of coordinates
    texts = [generated.sub("", path.read_text(encoding="utf-8")) for path in (one, other)]
    if number.sub("", texts[0]) != number.sub("", texts[1]):
        return False
    values = [map(float, number.findall(text)) for text in texts]
    return all(abs(a - b) <= SAME_POINTS for a, b in zip(*values, strict=True))
