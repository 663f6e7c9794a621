"""A batch of restorations: what is done stays, what fails is named, and the rest goes on."""

import json
from pathlib import Path

import numpy as np
import pytest

from srlib.audio import files as audio
from srlib.batch import FAULT, INCOMPLETE, restore_all
from srlib.errors import SrlibError


@pytest.fixture
def restore(tiny_pipeline):
    """Restore {input: output} with a small random model; gives the exit code."""
    return lambda outputs, **options: restore_all(outputs, lambda: tiny_pipeline, {"num_inference_steps": 0}, **options)


@pytest.fixture
def given(tmp_path) -> dict[Path, Path]:
    """Three inputs, {input: output}; the second is no audio."""
    for name in "abc":
        audio.write(tmp_path / f"{name}.wav", np.full((1, 48_000), 0.1), 48_000)
    (tmp_path / "b.wav").write_text("no audio")
    return {tmp_path / f"{name}.wav": tmp_path / "out" / f"{name}.wav" for name in "abc"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_fault_is_named_and_the_rest_goes_on(tmp_path, given, restore, capsys):
    report = tmp_path / "report.json"
    assert restore(given, report=report) == FAULT
    printed = capsys.readouterr()
    assert names(tmp_path / "out") == ["a.wav", "c.wav"]
    assert printed.err.count("\n") == 1 and "b.wav is not an audio file" in printed.err
    assert [line.split(".wav: ")[0][-1] for line in printed.out.splitlines()] == ["a", "c"]
    assert "1.0 s restored in" in printed.out
    rows = {Path(row["file"]).name: row for row in json.loads(report.read_text())}
    assert rows["a.wav"]["seconds"] == 1.0 and "not an audio file" in rows["b.wav"]["error"]


def test_a_batch_goes_on_where_it_ended(tmp_path, given, restore, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.wav").write_bytes(b"done")
    given |= {tmp_path / "d.wav": tmp_path / "out" / f"{'d' * 252}.wav"}  # too long a name
    with pytest.raises(SrlibError, match=r"1 of 4 outputs .* --skip-existing .* --overwrite"):
        restore(given)
    assert restore(given, skip_existing=True) == FAULT
    assert "1 of 4 outputs exist already and are kept" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.wav").read_bytes() == b"done" and names(tmp_path / "out") == ["a.wav", "c.wav"]


def test_equal_names_stop_only_themselves(tmp_path, given, restore, capsys):
    same = dict.fromkeys(list(given)[:2], tmp_path / "out" / "same.wav")
    assert restore(same | {tmp_path / "c.wav": given[tmp_path / "c.wav"]}) == FAULT
    assert names(tmp_path / "out") == ["c.wav"] and capsys.readouterr().err.count("another input") == 2


def test_a_damaged_file_is_restored_and_said(tmp_path, given, restore, capsys):
    cut = tmp_path / "a.wav"
    cut.write_bytes(cut.read_bytes()[:-96_000])
    assert restore({cut: given[cut]}) == INCOMPLETE
    assert "0.500 s of the 1.000 s that its header promises are missing" in capsys.readouterr().out
    assert audio.read(given[cut])[0].shape == (1, 24_000)


def test_spectrograms_lie_beside_the_outputs(tmp_path, given, restore):
    first = (tmp_path / "a.wav").rename(tmp_path / "$a__b$.wav")  # to matplotlib a formula with an error
    restore({first: tmp_path / "out" / "a.wav"}, show=True)
    assert (tmp_path / "out" / "a.wav.png").read_bytes().startswith(b"\x89PNG")
