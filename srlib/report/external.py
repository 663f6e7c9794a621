"""Evaluation of any system under the conditions of the main table: rows of `systems`, which notebook 07 adds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd

from srlib.config import Profile
from srlib.data import tracks
from srlib.errors import SrlibError
from srlib.measure import conditions, measures, sweep, systems
from srlib.report import artifacts, run

TABLE = "systems"


def evaluate_system(name: str, given: Any, profile: Profile, chosen: Collection[str] = ()) -> pd.DataFrame:
    """Measure a system on the profile's test tracks and keep its rows; a stopped call can be repeated to continue.

    Args:
        name: of the system in the rows; earlier rows of the same name and condition are replaced.
        given: a command with `{in}` and `{out}`, a model folder, or a callable, as for `systems.named`.
        chosen: conditions by name, such as clean_8k; all of the main table if none is given.
    """
    noises = run.default_parameters("07_lsd_tables")["noises"]
    known = conditions.grid(noises, profile.cutoffs_hz)
    if unknown := set(chosen) - known.keys():
        raise SrlibError(f"There is no condition {', '.join(sorted(unknown))}: choose of {', '.join(known)}.")
    asked = {key: recipe for key, recipe in known.items() if not chosen or key in chosen}
    system, store = systems.named({name: given}, profile), artifacts.build_dir(profile.name) / TABLE
    clips = {track.name: tracks.excerpt(track, profile) for track in tracks.for_profile(profile, "test")}
    rows = sweep.sweep(system, asked, clips, [measures.scores, measures.judged], store=store).drop(columns="amplitude")
    table, commands = artifacts.committed_table(TABLE) or (rows.head(0), {})
    commands[name] = str(given)
    others = table[(table["system"] != name) | ~table["condition"].isin(list(asked))]
    artifacts.save_table(pd.concat([others, rows]), TABLE, profile.name, "evaluate-system", commands)
    artifacts.publish("evaluate-system", profile.name)
    return rows
