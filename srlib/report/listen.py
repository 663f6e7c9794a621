"""Files beside the PDF: a listening page, a gallery of the executed notebooks, and the record of the archive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srlib import config
from srlib.audio.files import write_text
from srlib.report import artifacts, plots

SYSTEMS = {  # player -> name in `measure.systems.named`
    "degraded": "unprocessed", "restored": "ours", "prior alone": "prior", "band replication": "band_replication",
}  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {  # of the clips: recipes of `measure.conditions`
    "low-pass 4 kHz": {"cutoff_hz": 4000.0},
    "low-pass 8 kHz": {"cutoff_hz": 8000.0},
    "low-pass 8 kHz, tone": {
        "cutoff_hz": 8000.0, "noise_type": "tone", "noise_amplitude": 0.05, "tone_hz": (500.0, 7000.0)},
    "low-pass 8 kHz, white noise": {"cutoff_hz": 8000.0, "noise_type": "white", "noise_amplitude": 0.01},
}  # fmt: skip
TRACKS, SECONDS = 3, 5.0  # tracks of each condition; s of each track
CRATE = "ro-crate-metadata.json"


def pages(profile: str = "demo") -> Iterator[Path]:
    """Write all three, and give their paths."""
    yield from (write(profile) for write in (samples, gallery, archive))


def samples(profile: str = "demo", systems: Mapping[str, Any] | None = None) -> Path:
    """Write build/<profile>/samples.html, a single file: clips with spectrograms to click on, and a blind A/B/X test.

    Args:
        systems: {name of a player: a value for `measure.systems.named`}; None: SYSTEMS and those that
            `srlib evaluate-system` measured, if their program or folder exists.
    """
    if systems is None:
        _, others = artifacts.committed_table("systems") or (None, {})
        there = {name: one for name, one in others.items() if shutil.which(one.split()[0]) or Path(one).is_dir()}
        systems = SYSTEMS | there
    clips, path = list(_clips(config.profile(profile), systems)), artifacts.build_dir(profile) / "samples.html"
    write_text(path, plots.template("samples.html").render(profile=profile, clips=clips, ticks=plots.ticks()))
    return path


def _clips(profile: config.Profile, systems: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Title and players of each clip, one player a system."""
    from srlib.data import tracks as data
    from srlib.measure import conditions
    from srlib.measure import systems as known

    tracks, restorers = data.for_profile(profile, "test"), known.named(systems, profile)
    for track in tracks[:: -(-len(tracks) // TRACKS)]:
        reference = data.excerpt(track, profile)[: int(SECONDS * config.SAMPLE_RATE)]
        for name, recipe in CONDITIONS.items():
            case = conditions.Case(track.name, name, reference, conditions.draw(recipe, track.name))
            outputs = {label: system(case, 0) for label, system in restorers.items()}
            wavs = {"reference": reference} | {label: getattr(one, "audio", one) for label, one in outputs.items()}
            yield {"title": f"{track.title}, {track.artist}", "condition": name, "players": plots.players(wavs)}


def gallery(profile: str = "demo") -> Path:
    """Write the executed notebooks and docs/ as HTML, and index.html: every figure with the cell that made it."""
    import nbformat
    import pypandoc
    from nbconvert import HTMLExporter

    folder, sections = artifacts.build_dir(profile) / "notebooks", []
    for path in sorted(folder.glob("*.ipynb")):
        notebook, cells = nbformat.read(path, as_version=4), path.with_suffix(".cells.json")
        write_text(path.with_suffix(".html"), HTMLExporter(exclude_input_prompt=True).from_notebook_node(notebook)[0])
        saved = json.loads(cells.read_text(encoding="utf-8")) if cells.is_file() else {}
        ids = {cell.get("execution_count"): cell.id for cell in notebook.cells}
        figures = [
            {"file": name, "cell": ids.get(count, ""), "count": count}
            for name, count in saved.items() if artifacts.KINDS.get(Path(name).suffix) == "figure"
        ]  # fmt: skip
        title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
        sections.append({"name": path.stem, "title": title, "figures": figures})
    docs = {path.stem: path for path in sorted((artifacts.root() / "docs").glob("*.md"))}
    for name, path in docs.items():
        options = ["--standalone", "--metadata", f"pagetitle={name}"]
        write_text(folder / f"{name}.html", pypandoc.convert_file(path, "html", "gfm", extra_args=options))
    index = plots.template("gallery.html").render(profile=profile, sections=sections, docs=docs)
    write_text(folder / "index.html", index)
    return folder / "index.html"


def archive(profile: str = "demo") -> Path:
    """Write ro-crate-metadata.json (RO-Crate 1.1) from the sidecars: every artefact, its hash and its notebook."""
    import yaml

    citation = yaml.safe_load((artifacts.root() / "CITATION.cff").read_text(encoding="utf-8"))
    parts = [
        {"@id": path.relative_to(artifacts.root()).as_posix(), "@type": "File", "name": path.stem,
         "sha256": record["sha256"], "isBasedOn": {"@id": f"notebooks/{record['notebook']}.ipynb"}}
        for path, record in artifacts.records(profile)
    ]  # fmt: skip
    programs = [
        {"@id": name, "@type": ["File", "SoftwareSourceCode"], "name": Path(name).stem}
        for name in sorted({part["isBasedOn"]["@id"] for part in parts})
    ]
    root = {
        "@id": "./", "@type": "Dataset", "name": citation["title"], "description": citation["abstract"],
        "datePublished": str(citation["date-released"]), "license": f"https://spdx.org/licenses/{citation['license']}",
        "version": citation["version"], "author": [{"@type": "Organization", **one} for one in citation["authors"]],
        "hasPart": [{"@id": one["@id"]} for one in (*parts, *programs)],
    }  # fmt: skip
    about = {"@id": CRATE, "@type": "CreativeWork", "about": {"@id": "./"},
             "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}}  # fmt: skip
    crate = {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": [about, root, *programs, *parts]}
    path = (artifacts.build_dir(profile) if profile == artifacts.DRAFT_PROFILE else artifacts.root()) / CRATE
    write_text(path, json.dumps(crate, indent=1, ensure_ascii=False) + "\n")
    return path
