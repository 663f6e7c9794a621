"""The runner: every row once, the same in one process and in many, and none computed again."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srlib.config import SAMPLE_RATE, profile
from srlib.measure import measures, sweep, systems

CONDITIONS = {
    "clean_8k": {"cutoff_hz": 8000},
    "white_4k": {"cutoff_hz": 4000, "noise_type": "white", "noise_amplitude": 0.02},
}
NAMED = systems.named(("unprocessed", "oracle", "ours"), profile("smoke"))


@pytest.fixture
def clips(music):
    return {str(i): music[i * 6000 :][: SAMPLE_RATE // 2] for i in range(4)}


def test_a_sweep_has_a_row_for_everything_and_processes_change_nothing(clips, monkeypatch):
    tables = []
    for count in ("1", "2"):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", count)
        tables.append(sweep.sweep(NAMED, CONDITIONS, clips, [measures.scores]))
    pd.testing.assert_frame_equal(*tables)
    keys = tables[0][["track", "condition", "system"]].itertuples(index=False, name=None)
    assert list(keys) == [(t, c, s) for t in clips for c in CONDITIONS for s in NAMED]
    assert np.isfinite(tables[0][["lsd_19k", "level_high_db", "texture_high", "log_mel_l1"]]).all(axis=None)


def test_a_local_dask_cluster_gives_the_same_rows(clips, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="pip install distributed")
    one = {"unprocessed": NAMED["unprocessed"]}
    here = sweep.sweep(one, CONDITIONS, clips, [measures.scores])
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setenv("SRLIB_DASK", cluster.scheduler_address)
        processes = set(sweep.parallel(lambda _: os.getpid(), range(8)))
        pd.testing.assert_frame_equal(here, sweep.sweep(one, CONDITIONS, clips, [measures.scores]))
        distributed.get_client(cluster.scheduler_address).close()
    assert len(processes) == 2 and os.getpid() not in processes


@dataclass(frozen=True)
class Counting:
    """Half the level; says in a file what it was asked, and stops at track 2 if the environment says so."""

    file: Path

    def __call__(self, case, seed):
        with self.file.open("a") as file:
            file.write(f"{case.track} {case.condition}\n")
        if case.track == "2" and os.environ.get("STOP"):
            raise KeyboardInterrupt
        return 0.5 * case.reference

    def asked(self):
        """How often it was asked since the last time."""
        lines = self.file.read_text().splitlines() if self.file.exists() else ()
        self.file.unlink(missing_ok=True)
        return len(lines)


def test_a_sweep_that_was_stopped_goes_on_at_the_row(clips, tmp_path, monkeypatch):
    counting = Counting(tmp_path / "counted")
    both = {"oracle": NAMED["oracle"], "it": counting}  # a stored row does not depend on what ran before it
    run = partial(sweep.sweep, both, CONDITIONS, clips, [measures.scores])
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setenv("STOP", "1")
        run(store=tmp_path / "rows")
    assert counting.asked() == 5
    for seed, code, asked in ((0, "", 4), (0, "", 0), (1, "", 8), (0, "2", 8)):  # another seed or code, other rows
        if code:
            monkeypatch.setattr(sweep, "_code", lambda: "another")
        table = run(store=tmp_path / "rows", seed=seed)
        assert counting.asked() == asked
    pd.testing.assert_frame_equal(table, run())


def test_a_measure_may_give_several_rows(clips):
    recipe = {"gaps": {"gap_seconds": (0.02, 0.05)}}
    one = {"unprocessed": NAMED["unprocessed"]}
    rows = sweep.sweep(one, recipe, {"0": clips["0"]}, [measures.in_gaps, measures.scores])
    assert list(rows["gap_ms"]) == [20, 50] and rows["snr_db"].nunique() == 1
