"""The hardware has a name everywhere, and the stopwatch counts what runs inside it."""

import os

import pytest

from srlib import machine
from srlib.machine import stage, stopwatch


def test_stopwatch_adds_up_and_only_runs_when_asked():
    @stage("sleep")
    def nothing(value):
        return value

    assert nothing(1) == 1
    with stopwatch() as seconds:
        assert [nothing(2), nothing(3)] == [2, 3]
        with pytest.raises(ZeroDivisionError), stopwatch():  # that is left by an error counts no more
            nothing(1 / 0)
    assert set(seconds) == {"sleep", "total"} and 0 < seconds["sleep"] < seconds["total"]


def test_hardware_is_what_the_process_may_use_and_has_a_name_where_linux_gives_none(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    found = machine.hardware()
    assert found["processor"] and found["cores"] == len(os.sched_getaffinity(0))
