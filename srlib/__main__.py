"""The command line: `srlib VERB ...`, or `python -m srlib VERB ...`.

This module only parses. Verbs live in `srlib.cli` and are imported when one was asked for, so that help is instant.
Bad input of any kind ends with exit code 2 and one sentence on standard error.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from srlib import __version__
from srlib.config import FILTER_TYPES, MERGES, NOISE_TYPES, SCHEDULERS
from srlib.errors import SrlibError

DTYPES = ("fp32", "bf16", "fp16")
STAGES = ("vae", "vocoder", "ldm")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _positive_hz(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive frequency in Hz")
    return value


def _cutoff(text: str) -> float | str:
    return text if text == "auto" else _positive_hz(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, zero or more")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, zero or more")
    return value


def _gap(text: str) -> tuple[float, float]:
    """START:END in seconds."""
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        start, end = 0.0, -1.0
    if not 0 <= start < end < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not START:END in seconds with 0 <= START < END")
    return start, end


def _gap_or_auto(text: str) -> tuple[float, float] | str:
    return text if text == "auto" else _gap(text)


def _add_restore(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser("restore", help="restore bandwidth and remove noise", description="Restore audio files.")
    p.add_argument("inputs", nargs="+", metavar="IN", help="audio files, or folders of them")
    p.add_argument("-o", "--out", required=True, metavar="OUT|DIR", help="a .wav or .flac file, or a folder")
    p.add_argument("--model", default="compact", metavar="compact|PATH|HUB_ID", help="a model (default: compact)")
    p.add_argument("--steps", type=_seed, metavar="N", help="diffusion steps (default: the model's; 0: none)")
    p.add_argument("--samples", type=_count, default=1, metavar="K", help="draws to average, of --steps above 1")
    p.add_argument("--scheduler", choices=SCHEDULERS, help="default: the model's")
    eta = "0 is deterministic DDIM, 1 like DDPM, of --steps above 1"
    p.add_argument("--eta", type=_number, default=0.0, metavar="E", help=eta)
    p.add_argument("--guidance", type=_number, metavar="G", help="guidance scale (default: the model's)")
    p.add_argument("--seed", type=_seed, default=0, metavar="S", help="default: 0")
    p.add_argument("--cutoff-hz", type=_cutoff, default="auto", metavar="auto|HZ", help="where the input's band ends")
    p.add_argument("--merge", choices=MERGES, default="gain", help="how input and generated audio join (default: gain)")
    gaps = "seconds to fill in, or auto: runs of digital silence"
    p.add_argument("--gap", type=_gap_or_auto, action="append", default=[], metavar="START:END|auto", help=gaps)
    p.add_argument("--device", metavar="D", help="cpu or cuda (default: cuda where there is one)")
    p.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _add_degrade(verbs: argparse._SubParsersAction) -> None:
    about = "Write OUT, and OUT.json, the record that replays it."
    p = verbs.add_parser("degrade", help="low-pass a file and add noise", description=about)
    p.add_argument("input", metavar="IN", help="an audio file")
    p.add_argument("-o", "--out", required=True, metavar="OUT", help="a .wav or .flac file")
    p.add_argument("--cutoff-hz", type=_positive_hz, metavar="HZ", help="design frequency of the low-pass filter")
    p.add_argument("--filter", choices=FILTER_TYPES, help="filter family (default: cheby1)")
    p.add_argument("--order", type=int, metavar="N", help="filter order, 2 to 10 (default: 8)")
    p.add_argument("--noise", choices=NOISE_TYPES, help="default: none")
    p.add_argument("--amplitude", type=_number, metavar="A", help="peak of the tone, or rms of the white noise")
    p.add_argument("--tone-hz", type=_positive_hz, metavar="HZ", help="frequency of the tone")
    p.add_argument("--noise-first", action="store_true", default=None, help="add the noise before the filter")
    p.add_argument("--gap", type=_gap, action="append", metavar="START:END", help="seconds to set to zero")
    p.add_argument("--seed", type=_seed, metavar="S", help="seed of the noise, or of --random (default: 0)")
    p.add_argument("--random", action="store_true", help="draw everything from the ranges that training uses")
    p.add_argument("--replay", metavar="JSON", help="do again what a record says")
    p.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _add_evaluate(verbs: argparse._SubParsersAction) -> None:
    about = "Compare two files, or two folders that hold files of the same names."
    p = verbs.add_parser("evaluate", help="compare restored audio with its reference", description=about)
    p.add_argument("reference", metavar="REFERENCE", help="the original: a file or a folder")
    p.add_argument("restored", metavar="RESTORED", help="what to judge: a file or a folder")
    p.add_argument("--degraded", metavar="FILE|DIR", help="the input of the restoration: adds gains over it")
    p.add_argument("--cutoff-hz", type=_positive_hz, metavar="HZ", help="adds measures below and above it")
    p.add_argument("--record", metavar="JSON|DIR", help="what `srlib degrade` wrote: its cutoff, and its tone")
    p.add_argument("--json", action="store_true", help="print JSON: an object for two files, a list for folders")


def _add_project_verbs(verbs: argparse._SubParsersAction) -> None:
    p = verbs.add_parser("train", help="train one part of the model", description="Train one part of the model.")
    p.add_argument("stage", choices=STAGES)
    p.add_argument("--config", required=True, metavar="FILE", help="settings of the run, a TOML file")
    p.add_argument("--data", required=True, metavar="ROOT", help="demo, musdb (in MUSDB_ROOT) or a folder of audio")
    p.add_argument("--out", required=True, metavar="RUN", help="folder of the run; decoded audio lies beside it")
    p.add_argument("--init", metavar="FOLDER", help="model folder to start from")
    p.add_argument("--max-steps", type=_count, metavar="N", help="stop after so many optimiser steps")
    p.add_argument("--resume", action="store_true", help="continue the run in RUN from its last checkpoint")

    about = "Write AudioSR's checkpoint as a model folder."
    p = verbs.add_parser("import-audiosr", help="convert AudioSR's checkpoint", description=about)
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="AudioSR's pytorch_model.bin, or a .safetensors of it")
    p.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the model folder, which must not exist yet")
    p.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the stored weights (default: fp32)")
    p.add_argument("--ema", action="store_true", help="the averaged U-Net, which AudioSR stores but does not use")

    p = verbs.add_parser("reproduce", help="run the notebooks", description="Run the notebooks whose inputs changed.")
    p.add_argument("--profile", metavar="P", help="smoke, demo or paper (default: $SRLIB_PROFILE, else demo)")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--from", dest="start", metavar="NB", help="first notebook to run, such as 05")
    which.add_argument("--only", metavar="NB", help="the one notebook to run")
    p.add_argument("--force", action="store_true", help="run even what is up to date")

    p = verbs.add_parser("report", help="typeset the PDF", description="Typeset the PDF and print its path.")
    p.add_argument("--profile", metavar="P", help="smoke, demo or paper (default: $SRLIB_PROFILE, else demo)")
    p.add_argument("--draft", action="store_true", help="mark it as a draft; the smoke profile makes nothing else")


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    parser = _Parser(prog="srlib", description="Audio super-resolution with noise removal.")
    parser.add_argument("--version", action="version", version=f"srlib {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_restore(verbs)
    _add_degrade(verbs)
    _add_evaluate(verbs)
    _add_project_verbs(verbs)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, run one verb, and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    args = build_parser().parse_args(argv)
    try:
        from srlib import cli

        code = getattr(cli, args.verb.replace("-", "_"))(args)
    except SrlibError as error:
        message = str(error)
    except OSError as error:  # disk full, no permission, a folder where a file was expected
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        return 130
    else:
        return code or 0
    print("srlib:", " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
