"""The command line `srlib VERB ...`: it checks the arguments, calls the library and prints.

Bad input ends with exit code 2 and one sentence. Verbs import what loads scipy or torch, so that help is instant.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer import Argument, Option
from typer.exceptions import TyperException

from srlib import __version__, batch, config
from srlib.audio import files, folders
from srlib.audio.decoding import is_pipe
from srlib.errors import SrlibError, one_line

_HELP = {"help_option_names": ["-h", "--help"]}
_PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "context_settings": _HELP}
app = typer.Typer(help="Audio super-resolution with noise removal.", **_PLAIN)
train_app = typer.Typer(help="Train one part of the model, or all runs of a recipe.", **_PLAIN)
app.add_typer(train_app, name="train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 2 for bad input, 3 for a damaged one, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):  # characters outside the console's encoding
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"srlib: {message}\n"
    batch.end_in_order()
    try:
        with typer.main.get_command(app).make_context("srlib", list(sys.argv[1:] if argv is None else argv)) as context:
            code = context.command.invoke(context) or 0
            sys.stdout.flush()
            return code
    except typer.Exit as stop:  # help and version
        return stop.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        batch.hush()
        return 141  # 128 + SIGPIPE, as other programs
    except TyperException as error:
        place = getattr(error, "ctx", None)
        called = place.command_path if place else "srlib"
        sentence = error.format_message().replace("Value error, ", "").rstrip(".")  # the prefix is pydantic's
        message = f"{called}: {sentence} (see {called} --help)"
    except SrlibError as error:
        message = f"srlib: {error}"
    except ModuleNotFoundError as error:  # an extra that is not installed
        message = f"srlib: {error.name} is not installed: pip install 'srlib[report]', or 'srlib[train]' to train."
    except OSError as error:  # disk full, no permission, a folder where a file was expected
        message = f"srlib: {error.filename}: {error.strerror}" if error.filename else f"srlib: {error}"
    print(one_line(message), file=sys.stderr)
    return 2


@app.callback(invoke_without_command=True)
def _main(context: typer.Context, version: Annotated[bool, Option("--version")] = False) -> None:
    if version:
        print(f"srlib {__version__}")
    elif context.invoked_subcommand is None:
        context.fail("Missing command")


def _hz_or_auto(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _gap(text: str) -> tuple[float, ...] | str:
    if text.count(":") != 1 and text != "auto":
        raise typer.BadParameter(f"{text!r} is not START:END in seconds")
    return text if text == "auto" else tuple(map(float, text.split(":")))


_FORMATS = ", ".join(files.OUTPUT_SUFFIXES)
_OF_THE_BATCH = {"inputs", "out", "model", "device", "skip_existing", "overwrite", "suffix", "report", "show"}
# Options of `degrade` that mean nothing without another.
_NEEDS = {"filter_type": "cutoff_hz", "filter_order": "cutoff_hz", "tone_hz": "noise_type", "noise_first": "noise_type"}
_NEEDS |= {"noise_amplitude": "noise_type", "noise_type": "noise_amplitude"}
_NONE: Any = []  # the default of an option that can be repeated; nothing changes it
Overwrite = Annotated[bool, Option("--overwrite", help="replace an existing output")]
Music = Annotated[str, Option(metavar="ROOT", help="demo, musdb (in MUSDB_ROOT) or a folder of audio")]
Init = Annotated[Path | None, Option(metavar="FOLDER", help="model folder to start from")]
Profile = Annotated[str | None, Option(metavar="P", help="smoke, demo or paper (default: $SRLIB_PROFILE, else demo)")]


@app.command()
def restore(
    context: typer.Context,
    inputs: Annotated[list[Path], Argument(metavar="IN", help="audio files, folders of them, or - for standard input")],
    out: Annotated[str, Option("-o", "--out", metavar="OUT|DIR", help=f"{_FORMATS} file, a folder, or -")],
    skip_existing: Annotated[bool, Option("--skip-existing", help="go on where a stopped batch ended")] = False,
    overwrite: Overwrite = False,
    model: Annotated[str, Option(metavar="compact|PATH|HUB_ID")] = "compact",
    num_inference_steps: Annotated[int | None, Option("--steps", metavar="N", help="diffusion steps")] = None,
    num_samples: Annotated[int, Option("--samples", metavar="K", help="draws to average")] = 1,
    scheduler: Annotated[config.Scheduler | None, Option(help="default: the model's")] = None,
    eta: Annotated[float, Option(metavar="E", help="0 is deterministic DDIM, 1 like DDPM")] = 0.0,
    guidance_scale: Annotated[float | None, Option("--guidance", metavar="G", help="default: the model's")] = None,
    generator: Annotated[int, Option("--seed", metavar="S")] = 0,
    cutoff_hz: Annotated[Any, Option(parser=_hz_or_auto, metavar="auto|HZ", help="end of the input's band")] = "auto",
    band_from_hz: Annotated[float | None, Option("--band-from", metavar="HZ", help="generate nothing below")] = None,
    merge: Annotated[config.Merge, Option(help="how input and generated audio join")] = "gain",
    gaps: Annotated[list[Any], Option("--gap", parser=_gap, metavar="START:END|auto", help="seconds to fill")] = _NONE,
    blend: Annotated[float | None, Option(metavar="0..1", help="share of what is generated")] = None,
    denoise: Annotated[Literal["auto", "on", "off"] | None, Option(help="default: auto")] = None,
    keep_tones: Annotated[bool, Option("--keep-tones", help="subtract no constant tone")] = False,
    sample_rate: Annotated[int, Option(min=8000, max=192_000, metavar="HZ", help="of the output")] = config.SAMPLE_RATE,
    subtype: Annotated[Literal["PCM_16", "PCM_24", "FLOAT"] | None, Option(help="of a .wav or .flac")] = None,
    suffix: Annotated[str, Option(metavar="TEXT", help="end of names in a folder, as _restored.flac")] = ".wav",
    report: Annotated[Path | None, Option(metavar="JSON", help="write what was found in each file")] = None,
    show: Annotated[bool, Option("--show", help="draw spectrograms before and after beside the output")] = False,
    device: Annotated[str | None, Option(metavar="D", help="cpu or cuda (default: cuda where there is one)")] = None,
) -> int:
    """Restore bandwidth and remove noise: one file into a file, or several into a folder.

    Exit code 2: something could not be restored; 3: an input is damaged, and what is there was restored.
    """
    if "auto" in gaps and len(gaps) > 1:
        raise SrlibError("--gap auto finds all gaps itself: leave out the others.")
    if show and (out == "-" or any(map(is_pipe, inputs))):
        raise SrlibError("--show reads input and output once more: give files instead of pipes.")
    given = {name: value for name, value in context.params.items() if value is not None and value is not False}
    asked = {name: value for name, value in given.items() if name not in _OF_THE_BATCH}
    asked["gaps"] = "auto" if "auto" in gaps else gaps
    with batch.standard_output() if out == "-" else nullcontext(out) as target:
        outputs = folders.outputs(inputs, str(target), suffix)
        load = partial(batch.load, model, device, asked)
        shown = "standard output" if out == "-" else None
        return batch.restore_all(outputs, load, asked, overwrite, skip_existing, report, show, shown)


@app.command()
def degrade(
    context: typer.Context,
    path: Annotated[Path, Argument(metavar="IN", help="an audio file")],
    out: Annotated[Path, Option("-o", "--out", metavar="OUT", help="a .wav or .flac file")],
    cutoff_hz: Annotated[float | None, Option(metavar="HZ", help="design frequency of the low-pass filter")] = None,
    filter_type: Annotated[config.FilterType | None, Option("--filter", help="default: cheby1")] = None,
    filter_order: Annotated[int | None, Option("--order", metavar="N", help="2 to 10 (default: 8)")] = None,
    noise_type: Annotated[config.NoiseType | None, Option("--noise", help="default: none")] = None,
    noise_amplitude: Annotated[float | None, Option("--amplitude", metavar="A", help="peak of a tone, or rms")] = None,
    tone_hz: Annotated[float | None, Option(metavar="HZ", help="frequency of the tone")] = None,
    noise_first: Annotated[bool | None, Option("--noise-first", help="add the noise before the filter")] = None,
    gaps: Annotated[list[Any], Option("--gap", parser=_gap, metavar="START:END", help="seconds to set to 0")] = _NONE,
    seed: Annotated[int | None, Option(min=0, metavar="S", help="of the noise, or of --random (default: 0)")] = None,
    random: Annotated[bool, Option("--random", help="draw everything from the ranges that training uses")] = False,
    replay: Annotated[Path | None, Option(metavar="JSON", help="do again what a record says")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Low-pass a file and add noise: write OUT, and OUT.json, the record that replays it."""
    record = Path(f"{out}.json")
    folders.check_output(out, [path], overwrite, (".wav", ".flac"))  # lossy formats would change the recorded samples
    if record.exists() and not overwrite:
        raise SrlibError(f"{record}: exists already; add --overwrite to replace it.")
    wav, sample_rate = files.read(path)
    degradation = _degradation(context, sample_rate)
    with batch.naming(path):
        degraded = degradation.apply(wav, sample_rate)
    with files.atomic_path(record) as unfinished:  # both files or neither
        unfinished.write_text(degradation.to_json(sample_rate), encoding="utf-8")
        files.write(out, degraded, sample_rate)
    print(f"{out}: degraded; {record} replays it")


def _degradation(context: typer.Context, sample_rate: int) -> Any:
    """The degradation by the options of `degrade`: drawn, recorded or described; SrlibError if it does nothing."""
    import numpy as np

    from srlib.degrade import Degradation, DegradationConfig, sample

    random, replay = context.params["random"], context.params["replay"]
    fields = [*Degradation.__annotations__, *(["replay"] if random else [])]
    given = {k: v for k, v in context.params.items() if k in fields and v not in (None, [], "none")}
    option = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    decided = given.keys() - ({"seed"} if random else set()) if random or replay else set()
    if decided:
        options = ", ".join(option[name] for name in sorted(decided))
        raise SrlibError(f"{option['random' if random else 'replay']} decides {options} itself: leave that out.")
    if random:
        return sample(np.random.default_rng(given.get("seed", 0)), DegradationConfig().for_sample_rate(sample_rate))
    for name, other in _NEEDS.items():
        if name in given and other not in given:
            raise SrlibError(f"{option[name]} needs {option[other]}: give both or neither.")
    if "tone_hz" in given and given["noise_type"] != "tone":
        raise SrlibError(f"{option['tone_hz']} is the frequency of a tone: add --noise tone.")
    degradation = batch.read_record(replay) if replay else Degradation(**given)
    if degradation.does_nothing:
        raise SrlibError(f"{replay or 'degrade'}: there is nothing to do: give a cutoff, noise or gaps.")
    return degradation


@app.command()
def evaluate(
    reference: Annotated[Path, Argument(metavar="REFERENCE", help="the original: a file or a folder")],
    restored: Annotated[Path, Argument(metavar="RESTORED", help="what to judge: a file or a folder")],
    degraded: Annotated[Path | None, Option(metavar="FILE|DIR", help="what was restored: adds gains over it")] = None,
    cutoff_hz: Annotated[float | None, Option(metavar="HZ", help="adds measures below and above it")] = None,
    record: Annotated[Path | None, Option(metavar="JSON|DIR", help="of `srlib degrade`: its cutoff and tone")] = None,
    as_json: Annotated[bool, Option("--json", help="print JSON: an object for two files, a list for folders")] = False,
) -> int:
    """Compare restored audio with its reference: two files, or two folders that hold files of the same names."""
    import pandas as pd

    found = batch.compare(folders.matched(reference, restored, degraded), cutoff_hz, record)
    rows = [row for row in found if "error" not in row]
    if as_json:  # JSON has no NaN (undefined) and no infinity (perfect match): both become null
        finite = [{k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in row.items()} for row in rows]
        print(json.dumps(finite if reference.is_dir() else finite[0], indent=2))
    elif rows:
        table = pd.DataFrame(rows).set_index("file")
        table = table.T if len(table) == 1 else pd.concat([table, table.agg(["mean", "median", "count"])])
        print(table.to_string(line_width=120, float_format="{:.4f}".format))
    return batch.FAULT if len(rows) < len(found) else 0


def train(
    context: typer.Context,
    settings: Annotated[Path, Option("--config", metavar="FILE", help="settings of the run, a TOML file")],
    data: Music,
    out: Annotated[Path, Option(metavar="RUN", help="folder of the run; decoded audio lies beside it")],
    init: Init = None,
    max_steps: Annotated[int | None, Option(min=1, metavar="N", help="stop after so many optimiser steps")] = None,
    resume: Annotated[bool, Option("--resume", help="continue the run in RUN from its last checkpoint")] = False,
) -> None:
    """Train the part of the model that the command is named after."""
    from srlib.training import loop

    if resume and not (out / loop.CHECKPOINT).is_file():  # or it was stopped before its first one
        print(f"srlib: {out} holds no checkpoint: this run starts anew.", file=sys.stderr)
    print(loop.train(str(context.command.name), settings, data, out, init=init, max_steps=max_steps, resume=resume))


for _stage in get_args(config.Stage):
    train_app.command(_stage, help=f"Train the {_stage}.")(train)


@train_app.command()
def recipe(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="a TOML file a run: vae*, vocoder*, ldm*")],
    data: Music,
    out: Annotated[Path, Option(metavar="RUNS", help="a folder a run")],
    init: Init = None,
) -> None:
    """Train the runs of a recipe in their order: finished ones are skipped, stopped ones go on."""
    from srlib.training.curriculum import retrain

    print(retrain(folder, data, out, init=init))


@train_app.command()
def publish(
    runs: Annotated[Path, Argument(metavar="RUNS", help="what `srlib train recipe` wrote")],
    out: Annotated[Path, Argument(metavar="OUT", help="the model folder to ship")],
) -> None:
    """Write the newest weights of a folder of runs in half precision, with logs and examples."""
    from srlib.training.curriculum import publish

    print(publish(runs, out))


@app.command()
def import_audiosr(
    checkpoint: Annotated[Path, Argument(metavar="CHECKPOINT", help="AudioSR's pytorch_model.bin, or a .safetensors")],
    out: Annotated[Path, Option("-o", "--out", metavar="FOLDER", help="the model folder, which must not exist yet")],
    dtype: Annotated[config.DType, Option(help="of the stored weights")] = "fp32",
) -> None:
    """Write AudioSR's checkpoint as a model folder; its path is the last line."""
    from srlib.audiosr.checkpoint import import_audiosr

    print(import_audiosr(checkpoint, out, dtype))


@app.command()
def reproduce(
    profile: Profile = None,
    start: Annotated[str | None, Option("--from", metavar="NB", help="first notebook to run, such as 05")] = None,
    only: Annotated[str | None, Option(metavar="NB", help="the one notebook to run")] = None,
    force: Annotated[bool, Option("--force", help="run even what is up to date")] = False,
    status: Annotated[bool, Option("--status", help="run nothing; say what would run, and why")] = False,
    verify: Annotated[bool, Option("--verify", help="compare with what is committed and rewrite nothing")] = False,
) -> int:
    """Run the notebooks whose inputs changed, and say whether their results are those that are committed."""
    from srlib.report import reproduce as chain

    name = config.profile(profile).name
    if not status:
        return int(bool(chain.reproduce(name, start=start, only=only, force=force, verify=verify)) and verify)
    print(*(f"{notebook:<24} {state:<9} {reason}".rstrip() for notebook, state, reason in chain.status(name)), sep="\n")
    return 0


@app.command()
def report(
    profile: Profile = None,
    draft: Annotated[bool, Option("--draft", help="mark it as a draft; the smoke profile makes nothing else")] = False,
    readme: Annotated[bool, Option("--readme", help="fill the tables of README.md and of the model card")] = False,
) -> None:
    """Typeset the PDF, and write a page to listen, a gallery of the notebooks and the record of the archive."""
    from srlib.report import listen, pdf

    name = config.profile(profile).name
    print(*(pdf.update_readme(name) if readme else [pdf.build(name, draft=draft), *listen.pages(name)]), sep="\n")


@app.command()
def evaluate_system(
    name: Annotated[str, Argument(metavar="NAME", help="of its rows")],
    system: Annotated[str, Argument(metavar="COMMAND|FOLDER", help="a command with {in} and {out}, or a model folder")],
    chosen: Annotated[list[str], Option("--conditions", metavar="NOISE_CUTOFF", help="such as clean_8k")] = _NONE,
    profile: Profile = None,
) -> None:
    """Measure anyone's restorer under the conditions of the main table; its rows stand in report/tables/systems.csv."""
    from srlib.report.external import evaluate_system

    rows = evaluate_system(name, system, config.profile(profile), chosen)
    print(rows.groupby("condition", sort=False)[["lsd_19k", "log_mel_l1", "texture_high"]].mean().round(3))
