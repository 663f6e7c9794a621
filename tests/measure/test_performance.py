"""The benchmark: its rows, and the memory that it reads."""

import time

from srlib.measure import performance


def test_every_stage_takes_time_within_the_total():
    start = time.process_time()
    row = performance.time_of_file(0.64, 2, size="tiny")
    assert min(row[f"{stage}_s"] for stage in performance.STAGES) > 0
    assert row["cpu_s"] < time.process_time() - start and row["total_s"] > 0


def test_cases_run_in_processes_of_their_own():
    one = {"size": "tiny", "dtype": "bfloat16", "audio_s": 0.64, "steps": 1, "threads": 1}
    table = performance.benchmark([one, {"size": "tiny", "audio_s": 0.64, "channels": 3}])
    assert list(table)[:6] == ["size", "dtype", "audio_s", "steps", "threads", "device"]
    assert (table[["total_s", "cpu_s", "real_time_factor", "peak_gib"]] > 0).all(axis=None)
