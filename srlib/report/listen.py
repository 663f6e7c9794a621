"""What stands beside the PDF: a page to listen, a gallery of the executed notebooks, and the record of the archive."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from srlib import config
from srlib.audio.files import write_text
from srlib.report import artifacts

SYSTEMS = {  # player -> what `measure.systems.named` knows it by
    "degraded": "unprocessed", "restored": "ours", "prior alone": "prior", "band replication": "band_replication",
}  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {  # what is done to the clips: recipes of `measure.conditions`
    "low-pass 4 kHz": {"cutoff_hz": 4000.0},
    "low-pass 8 kHz": {"cutoff_hz": 8000.0},
    "low-pass 8 kHz, tone": {
        "cutoff_hz": 8000.0, "noise_type": "tone", "noise_amplitude": 0.05, "tone_hz": (500.0, 7000.0)},
    "low-pass 8 kHz, white noise": {"cutoff_hz": 8000.0, "noise_type": "white", "noise_amplitude": 0.01},
}  # fmt: skip
TRACKS, SECONDS = 3, 5.0  # tracks of each condition, and how much of each
QUALITY = 0.2  # compression level of Vorbis, about 130 kb/s a channel: transparent, and a fifth of FLAC's size
SILENT = 1e-6  # root mean square under which a clip does not count for the equal level
CRATE = "ro-crate-metadata.json"


def pages(profile: str = "demo") -> Iterator[Path]:
    """Write all three, and give their paths."""
    yield from (write(profile) for write in (samples, gallery, archive))


def samples(profile: str = "demo", systems: Mapping[str, Any] | None = None) -> Path:
    """Write build/<profile>/samples.html: clips as spectrograms to click on, and a blind A/B/X test; one file.

    Args:
        systems: {name of a player: whatever `measure.systems.named` takes}; None: SYSTEMS and those that
            `srlib evaluate-system` measured, where their program or folder is there.
    """
    if systems is None:
        _, others = artifacts.committed_table("systems") or (None, {})
        there = {name: one for name, one in others.items() if shutil.which(one.split()[0]) or Path(one).is_dir()}
        systems = SYSTEMS | there
    clips, path = list(_clips(config.profile(profile), systems)), artifacts.build_dir(profile) / "samples.html"
    write_text(path, _template("samples.html").render(profile=profile, clips=clips, ticks=_ticks()))
    return path


def _clips(profile: config.Profile, systems: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Title and players of each clip: all of its systems, at their own levels."""
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
            yield {"title": f"{track.title}, {track.artist}", "condition": name, "players": players(wavs)}


def players(wavs: Mapping[str, np.ndarray], kind: str = "ogg") -> list[dict[str, Any]]:
    """Players of clips {name: [samples] or [channels, samples]} at 48 kHz, all turned down alike if one would clip.

    Args:
        kind: of the sound, "ogg" (Vorbis: small) or "wav" (quick to make).
    """
    gain = min(1.0, 0.99 / max(float(np.abs(wav).max()) + 1e-9 for wav in wavs.values()))
    quietest = min((level for wav in wavs.values() if (level := float(wav.std())) > SILENT), default=SILENT)
    return [_player(name, gain * wav, quietest * gain, kind) for name, wav in wavs.items()]


def page(wavs: Mapping[str, np.ndarray], kind: str = "ogg") -> str:
    """A page with `players` of these clips, for a frame in a notebook."""
    return str(_template("player.html").module.page(players(wavs, kind), _ticks()))


def _ticks() -> dict[str, float]:
    """{kHz: height in a spectrogram, %}."""
    from srlib.report import plots

    low, high = plots.mel(plots.LOWEST_HZ, plots.HIGHEST_HZ)
    heights = (plots.mel(*plots.FREQUENCY_TICKS_HZ) - low) / (high - low)
    marked = dict(zip(plots.FREQUENCY_TICKS_HZ, heights.tolist(), strict=True))
    return {f"{hz / 1000:g}": round(100 * height, 1) for hz, height in marked.items() if hz > plots.LOWEST_HZ}


def _player(name: str, wav: np.ndarray, quietest: float, kind: str) -> dict[str, Any]:
    """Sound and picture (JPEG) of a clip in base64, and the volume at which it is as loud as the quietest one."""
    from matplotlib.image import imsave

    from srlib.report import plots

    sound, picture = io.BytesIO(), io.BytesIO()
    options = {"subtype": "VORBIS", "compression_level": QUALITY} if kind == "ogg" else {"subtype": "PCM_16"}
    soundfile.write(sound, np.atleast_2d(wav).T, config.SAMPLE_RATE, format=kind, **options)
    power_db = plots.mel_axis_power_db(np.atleast_2d(wav).mean(axis=0))[::-2]
    low, high = plots.DB_RANGE
    imsave(picture, power_db, cmap=plots.MAGMA, vmin=low, vmax=high, format="jpeg", pil_kwargs={"quality": 70})
    coded = {"sound": sound, "picture": picture}
    texts = {name: base64.b64encode(file.getvalue()).decode() for name, file in coded.items()}
    volume = quietest / max(float(wav.std()), SILENT)
    return {"name": name, "volume": volume, "kind": f"audio/{kind}", **texts}


def gallery(profile: str = "demo") -> Path:
    """Write the executed notebooks as HTML and, beside them, index.html: every figure with the cell that made it."""
    import nbformat
    from nbconvert import HTMLExporter

    folder, sections = artifacts.build_dir(profile) / "notebooks", []
    for path in sorted(folder.glob("*.ipynb")):
        notebook, run = nbformat.read(path, as_version=4), path.with_suffix(".run.json")
        write_text(path.with_suffix(".html"), HTMLExporter(exclude_input_prompt=True).from_notebook_node(notebook)[0])
        saved = json.loads(run.read_text(encoding="utf-8"))["cells"] if run.is_file() else {}
        ids = {cell.get("execution_count"): cell.id for cell in notebook.cells}
        figures = [
            {"file": name, "cell": ids.get(count, ""), "count": count}
            for name, count in saved.items() if artifacts.KINDS.get(Path(name).suffix) == "figure"
        ]  # fmt: skip
        title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
        sections.append({"name": path.stem, "title": title, "figures": figures})
    write_text(folder / "index.html", _template("gallery.html").render(profile=profile, sections=sections))
    return folder / "index.html"


def archive(profile: str = "demo") -> Path:
    """Write ro-crate-metadata.json (RO-Crate 1.1) from the sidecars: every artefact, its hash and its notebook."""
    import yaml

    citation = yaml.safe_load((artifacts.root() / "CITATION.cff").read_text(encoding="utf-8"))
    parts: list[dict[str, Any]] = []
    made: dict[str, list[dict[str, str]]] = {}
    for path, record in artifacts.records(profile):
        name = path.relative_to(artifacts.root()).as_posix()
        parts.append({"@id": name, "@type": "File", "name": path.stem, "sha256": record["sha256"]})
        made.setdefault(f"notebooks/{record['notebook']}.ipynb", []).append({"@id": name})
    programs = [{"@id": name, "@type": ["File", "SoftwareSourceCode"], "name": Path(name).stem} for name in made]
    actions = [
        {"@id": f"#{Path(name).stem}", "@type": "CreateAction", "instrument": {"@id": name}, "result": results}
        for name, results in made.items()
    ]
    root = {
        "@id": "./", "@type": "Dataset", "name": citation["title"], "description": citation["abstract"],
        "datePublished": str(citation["date-released"]), "license": f"https://spdx.org/licenses/{citation['license']}",
        "version": citation["version"], "author": [{"@type": "Organization", **one} for one in citation["authors"]],
        "hasPart": [{"@id": one["@id"]} for one in (*parts, *programs)],
        "mentions": [{"@id": one["@id"]} for one in actions],
    }  # fmt: skip
    about = {"@id": CRATE, "@type": "CreativeWork", "about": {"@id": "./"},
             "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}}  # fmt: skip
    crate = {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": [about, root, *programs, *parts, *actions]}
    path = (artifacts.build_dir(profile) if profile == artifacts.DRAFT_PROFILE else artifacts.root()) / CRATE
    write_text(path, json.dumps(crate, indent=1, ensure_ascii=False) + "\n")
    return path


def _template(name: str) -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(artifacts.root() / "report")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(name)
