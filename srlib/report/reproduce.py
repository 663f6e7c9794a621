"""The chain of notebooks over papermill: what each makes, and which of them must run again.

A notebook is skipped when nothing that could change its result has changed: its cells, the profile, and the package
with its weights and demo music; and when what it made is still there, unedited. None reads what another makes. Times
of files play no part. After a failure the next call therefore continues at the failed notebook.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlib import config
from srlib.audio.files import write_text
from srlib.errors import SrlibError
from srlib.report import artifacts

IN_CHAIN = "SRLIB_IN_CHAIN"  # set in the environment of notebooks that the chain runs
# Sums in float32 depend on how they are shared out, and so do the digits of a table: whatever the host has or says,
# torch computes on two threads, and OpenBLAS, which never starts more threads than there are cores, on one.
_THREADS = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
# No notebook imports these, not even by way of others: a change here leaves every result as it was.
_NOT_USED_BY_NOTEBOOKS = {"__main__.py", "cli.py", "convert.py", "publish.py", "report.py", "weights.py"}


@dataclass(frozen=True)
class Notebook:
    """A link of the chain; `outputs` are artefacts: name.png, .svg or .csv, or a number's bare name."""

    id: str
    outputs: tuple[str, ...] = ()


# Notebook 07 saves one number of each kind for each of these conditions.
LSD_NUMBER_SYSTEMS = {
    "ours": "ours", "sample": "ours_sample", "replacement": "ours_replace", "prior": "prior", "ridge": "ridge",
    "unprocessed": "unprocessed", "gt_mel": "gt_mel", "oracle": "oracle",
}  # fmt: skip
LSD_NUMBER_MEASURES = {"lsd19": "lsd_19k", "zimtohrli": "zimtohrli"}
LSD_NUMBERS = ("ratio_ours", *(f"{short}_{name}" for short in LSD_NUMBER_MEASURES for name in LSD_NUMBER_SYSTEMS))
# Pairs whose difference in Zimtohrli, track by track, is quoted.
PAIRED_SYSTEMS, PAIRED_CONDITIONS = ("prior", "ridge"), ("clean_4k", "clean_8k", "white_8k")
DECISION_NUMBERS = {"prior": "prior alone, copied", "step": "1 step, copied"}  # variations of the decision's grid
DECISION_CONDITIONS = ("clean_4k", "white_8k")
DETECTOR_NUMBERS = {
    "filter": "filter", "tone": "filter, then tone", "white": "filter, then white noise", "coder": "coder",
    "sample_rate": "sample rate", "full": "full band",
}  # fmt: skip
LSD_NUMBER_CONDITIONS = ("clean_4k", "clean_8k", "clean_16k", "tone_8k", "white_8k")


def _link(name: str, *outputs: str) -> Notebook:
    """A link from space-separated artefact names."""
    return Notebook(name, tuple(" ".join(outputs).split()))


CHAIN = (
    _link("00_overview", "architecture_audioldm.png architecture_audiosr_noise.png overview.png"),
    _link(
        "01_data",
        "data_split.csv data_tracks.csv data_bandwidth.svg",
        "data_train_tracks data_valid_tracks data_test_tracks data_minutes",
    ),
    _link(
        "02_degradation",
        "filters.csv filter_responses.svg degradation_examples.png filter_f3db_min filter_f3db_max",
        "cutoff_detection.csv cutoff_detection.svg detector_filter_roll_off",
        *(f"detector_{name}" for name in DETECTOR_NUMBERS),
    ),
    _link(
        "03_vae",
        "vae.csv vae_reconstruction.png gt_mel.csv vocoder_gt_mel.png vae_log_mel_l1 gt_mel_lsd gt_mel_lsd_19k",
    ),
    _link(
        "04_latent_diffusion",
        "models.csv sampling_steps.csv noise_schedule.svg denoising_steps.png prior_posterior.png",
        "model_parameters_total model_parameters_diffusion sampling_steps_default",
    ),
    _link(
        "05_training",
        "live_training.svg training_runs.csv training_log.csv loss_curve.svg lsd_vs_step.svg",
        "training_hours_total training_steps_ldm training_music_hours",
        "training_music_tracks live_loss_first live_loss_last",
    ),
    _link(
        "06_results",
        "triptych_clean.png triptych_tone_early.png triptych_tone_late.png triptych_white_early.png",
        "triptych_white_late.png merge_comparison.png results_examples.csv merge.csv hiss.csv",
        "example_tone_suppression_db example_white_snr_gain_db merge_tracks hiss_tracks",
        "merge_worst_snr_gain merge_worst_snr_low_gain merge_worst_snr_input",
        "merge_worst_amplitude merge_worst_cutoff",
        "example_tone_early_lsd example_tone_late_lsd example_white_early_lsd example_white_late_lsd",
    ),
    _link(
        "07_lsd_tables",
        "lsd.csv lsd_summary.csv quality.csv decision.csv ablations.csv lsd_by_condition.svg lsd_published.csv",
        "test_tracks_evaluated tracks_ablated tones_below_8k",
        *(
            f"{system}_difference_{condition}{end}"
            for system in PAIRED_SYSTEMS
            for condition in PAIRED_CONDITIONS
            for end in ("", "_low", "_high")
        ),
        *(f"decision_{name}_{condition}" for name in DECISION_NUMBERS for condition in DECISION_CONDITIONS),
        *(f"{prefix}_{condition}" for prefix in LSD_NUMBERS for condition in LSD_NUMBER_CONDITIONS),
    ),
    _link(
        "08_lsd_sensitivity",
        "lsd_sensitivity.csv lsd_choices.svg lsd_unprocessed_lowest lsd_unprocessed_highest",
        "lsd_restored_lowest lsd_restored_highest lsd_half_silent_itself lsd_delay_1120",
    ),
    _link(
        "09_inpainting",
        "inpainting.csv inpainting_by_length.svg inpainting_example.png",
        "inpainting_lsd_ours inpainting_lsd_interpolation inpainting_lsd_repetition",
    ),
    _link(
        "10_performance",
        "quality_steps.csv quality_steps.svg performance.csv performance.svg restore_speed.csv quality_steps_tracks",
    ),
)


def notebook(name: str) -> Notebook:
    """The link called `name`: its id, or the number or any other prefix that only one has."""
    found = [link for link in CHAIN if link.id.startswith(name)] if name else []
    if len(found) != 1:
        raise SrlibError(f"There is no single notebook {name!r}: choose one of {', '.join(link.id for link in CHAIN)}.")
    return found[0]


def reproduce(
    profile: str | None = None, start: str | None = None, only: str | None = None, force: bool = False
) -> dict[str, float | None]:
    """Run the chain where it is not up to date; returns {notebook id: seconds, or None if skipped}.

    Args:
        start: begin at this notebook ("05" is enough); those before it are left as they are.
        only: run this notebook alone.
        force: run even what is up to date.
    """
    name = config.profile(profile).name
    links = [notebook(only)] if only else list(CHAIN[CHAIN.index(notebook(start)) if start else 0 :])
    seconds: dict[str, float | None] = {}
    for link in links:
        seconds[link.id] = _run_if_needed(link, name, force)
        took = seconds[link.id]
        print(f"{link.id:<22} {'up to date' if took is None else f'{took:7.1f} s'}", flush=True)
    print(f"{'total':<22} {sum(took or 0.0 for took in seconds.values()):7.1f} s", flush=True)
    return seconds


def fingerprint(names: Iterable[str], profile: str) -> dict[str, str]:
    """SHA-256 of each artefact in `names`; a missing one is an error that says which notebook makes it."""
    found = {}
    for name in names:
        stem, _, kind = name.partition(".")
        if not kind:
            number = json.dumps(artifacts.read_number(stem, profile), sort_keys=True)
            found[name] = hashlib.sha256(number.encode()).hexdigest()
        elif kind == "csv":
            artifacts.read_table(stem, profile)
            found[name] = artifacts.sha256(artifacts.tables_dir(profile) / name)
        else:
            found[name] = artifacts.sha256(artifacts.find_figure(stem, profile))
    return found


def _run_if_needed(link: Notebook, profile: str, force: bool) -> float | None:
    folder = artifacts.build_dir(profile) / "notebooks"
    state_file = folder / f"{link.id}.state.json"
    key = _key(link, profile)
    if not force and state_file.is_file() and _is_current(json.loads(state_file.read_text()), key, link, profile):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    state_file.unlink(missing_ok=True)
    start = time.perf_counter()
    _execute(link, folder / f"{link.id}.ipynb", profile)
    took = time.perf_counter() - start
    state = {"key": key, "outputs": fingerprint(link.outputs, profile), "seconds": round(took, 2)}
    write_text(state_file, json.dumps(state, indent=1) + "\n")
    return took


def _is_current(state: Mapping[str, Any], key: str, link: Notebook, profile: str) -> bool:
    try:
        return state["key"] == key and state["outputs"] == fingerprint(link.outputs, profile)
    except SrlibError:  # an artefact was deleted
        return False


def _execute(link: Notebook, output: Path, profile: str) -> None:
    import papermill

    options = {"kernel_name": "python3", "progress_bar": False, "request_save_on_cell_execute": True}
    quiet = ["--IPKernelApp.log_level=50"]
    try:
        with _environment():
            papermill.execute_notebook(
                source_path(link),
                output,
                {"profile": profile},
                cwd=str(artifacts.root()),
                extra_arguments=quiet,
                **options,
            )
    except papermill.PapermillExecutionError as error:
        raise SrlibError(
            f"Notebook {link.id} stopped at its cell {error.exec_count} with {error.ename}: {error.evalue} "
            f"(executed copy: {output}). The next run of the chain continues there."
        ) from error


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What kernels inherit: that the chain runs them, their threads, and how these wait."""
    before = os.environ.copy()
    passive = {"OMP_WAIT_POLICY": before.get("OMP_WAIT_POLICY", "passive")}  # they sleep: others need the cores
    ours = {IN_CHAIN: "1"} | _THREADS | passive
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def source_path(link: Notebook) -> Path:
    """The notebook's file in the project folder."""
    path = artifacts.root() / "notebooks" / f"{link.id}.ipynb"
    if not path.is_file():
        raise SrlibError(f"{path} is missing: run from a checkout of the project, or point SRLIB_ROOT at one.")
    return path


def _key(link: Notebook, profile: str) -> str:
    """Hash of everything that the notebook's result depends on."""
    cells = json.loads(source_path(link).read_text(encoding="utf-8"))["cells"]
    source = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    parts = [source, profile, _package_hash()]
    parts.append(os.environ.get("MUSDB_ROOT") if config.profile(profile).dataset == "musdb" else None)
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


@functools.cache
def _package_hash() -> str:
    """Hash of the package's code, weights and demo music; no notebook reads what is written about them."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        if path.name not in _NOT_USED_BY_NOTEBOOKS and path.suffix != ".md":
            digest.update(f"{path.relative_to(folder)} {artifacts.sha256(path)}\n".encode())
    return digest.hexdigest()
