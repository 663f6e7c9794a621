"""A batch of restorations: what is done stays, what fails is named, and the rest goes on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from srlib.audio import files as audio
from srlib.audio.files import open_output
from srlib.audio.recording import open_recording
from srlib.batch import FAULT, INCOMPLETE, restore_all
from srlib.errors import SrlibError


@dataclass
class Copies:
    """A pipeline that writes each recording as it is, and finds what a batch prints."""

    done: list[Path] = field(default_factory=list)

    def restore_file(self, path, out, progress=None, **_options):
        with open_recording(path) as recording, open_output(out, recording) as put:
            for block in recording.blocks_at(48_000, range(recording.channels)):
                put(block)
        self.done.append(path)
        row = {"seconds": recording.samples / recording.sample_rate}
        sentence = f"full band; {recording.incomplete or 'whole'}"
        return SimpleNamespace(**row, sentence=lambda: sentence, as_dict=lambda: row)


@pytest.fixture
def pipe() -> Copies:
    return Copies()


@pytest.fixture
def given(tmp_path) -> dict[Path, Path]:
    """Three inputs, {input: output}; the second is no audio."""
    for name in "abc":
        audio.write(tmp_path / f"{name}.wav", np.full((1, 48_000), 0.1), 48_000)
    (tmp_path / "b.wav").write_text("no audio")
    return {tmp_path / f"{name}.wav": tmp_path / "out" / f"{name}.wav" for name in "abc"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_fault_is_named_and_the_rest_goes_on(tmp_path, given, pipe, capsys):
    report = tmp_path / "report.json"
    assert restore_all(given, lambda: pipe, {}, report=report) == FAULT
    printed = capsys.readouterr()
    assert names(tmp_path / "out") == ["a.wav", "c.wav"]
    assert printed.err.count("\n") == 1 and "b.wav is not an audio file" in printed.err
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == [str(given[p]) for p in pipe.done]
    assert "full band; whole; 1.0 s restored in" in printed.out
    rows = {Path(row["file"]).name: row for row in json.loads(report.read_text())}
    assert rows["a.wav"]["seconds"] == 1.0 and "not an audio file" in rows["b.wav"]["error"]


def test_a_single_fault_is_raised(given, pipe):
    bad = list(given)[1]
    with pytest.raises(SrlibError, match="not an audio file"):
        restore_all({bad: given[bad]}, lambda: pipe, {})


def test_a_batch_goes_on_where_it_ended(tmp_path, given, pipe, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.wav").write_bytes(b"done")
    assert restore_all(given, lambda: pipe, {}, skip_existing=True) == FAULT
    assert "1 of 3 outputs exist already and are kept" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.wav").read_bytes() == b"done" and [path.name for path in pipe.done] == ["c.wav"]


def test_equal_names_stop_only_themselves(tmp_path, given, pipe, capsys):
    same = dict.fromkeys(list(given)[:2], tmp_path / "out" / "same.wav")
    assert restore_all(same | {tmp_path / "c.wav": given[tmp_path / "c.wav"]}, lambda: pipe, {}) == FAULT
    assert names(tmp_path / "out") == ["c.wav"] and capsys.readouterr().err.count("another input") == 2


def test_a_damaged_file_is_restored_and_said(tmp_path, given, pipe, capsys):
    cut = tmp_path / "a.wav"
    cut.write_bytes(cut.read_bytes()[:-96_000])
    assert restore_all({cut: given[cut]}, lambda: pipe, {}) == INCOMPLETE
    assert "0.500 s of the 1.000 s that its header promises are missing" in capsys.readouterr().out
    assert audio.read(given[cut])[0].shape == (1, 24_000)


def test_spectrograms_lie_beside_the_outputs(tmp_path, given, pipe):
    first = tmp_path / "a.wav"
    restore_all({first: given[first]}, lambda: pipe, {}, show=True)
    assert (tmp_path / "out" / "a.wav.png").read_bytes().startswith(b"\x89PNG")
