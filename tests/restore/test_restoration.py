"""Whole files: formats, channels, tags, chunks without seams, memory, and what an interrupted run leaves."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from srlib.__main__ import main
from srlib.audio import files as audio
from srlib.audio.decoding import info
from srlib.data.tracks import load_dataset
from srlib.degrade import Degradation
from srlib.errors import IncompleteWarning
from srlib.measure.lsd import lsd, plain
from srlib.measure.metrics import snr_db
from srlib.restore import chunks

SAMPLE_RATE = 48_000


def song(seconds: float, channels: int, sample_rate: int, seed: int = 0) -> np.ndarray:
    """Notes over noise that falls with frequency, `[channels, samples]`, nowhere silent."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * sample_rate)) / sample_rate
    notes = np.sin(2 * np.pi * 440 * time_s) * np.exp(-6 * (time_s % 0.7))
    return (0.2 * notes + 0.02 * rng.standard_normal((channels, len(time_s)))).astype(np.float32)


def test_a_file_gives_what_its_samples_give(tmp_path, tiny_pipeline):
    wav = song(13.0, 2, 44_100)
    wav[:, 300_000:310_000] = 0
    audio.write(tmp_path / "a.wav", wav, 44_100)
    options = {"gaps": "auto", "cutoff_hz": 9000.0, "generator": 3, "num_inference_steps": 2}
    findings = tiny_pipeline.restore_file(tmp_path / "a.wav", tmp_path / "new" / "b.wav", **options)
    expected = tiny_pipeline(wav, 44_100, **options)
    restored, sample_rate = audio.read(tmp_path / "new" / "b.wav")
    assert findings == expected.findings and findings.seconds == pytest.approx(13.0) and sample_rate == SAMPLE_RATE
    np.testing.assert_array_equal(restored, expected.audio)
    assert expected.audio.shape == (2, 13 * SAMPLE_RATE) and expected.log_mel.shape == (1, 1, 1344, 256)
    hole = expected.audio[:, 328_000:336_000]  # at 48 kHz
    assert hole.std() > 0.1 * expected.audio.std()


def test_the_findings_name_hum_and_what_is_missing(tmp_path, tiny_pipeline):
    time_s = np.arange(6 * SAMPLE_RATE) / SAMPLE_RATE
    hum = sum(0.02 / n * np.sin(2 * np.pi * 50.03 * n * time_s + n) for n in range(1, 12))
    path = tmp_path / "a.wav"
    audio.write(path, song(6.0, 1, SAMPLE_RATE) + hum.astype(np.float32), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: -4 * SAMPLE_RATE])
    with pytest.warns(IncompleteWarning):
        findings = tiny_pipeline.restore_file(path, tmp_path / "b.wav", gaps="auto", num_inference_steps=1)
    missing, no_gap = findings.warnings
    assert "1.000 s of the 6.000 s that its header promises are missing" in missing and "no gap" in no_gap
    assert findings.hum_hz == pytest.approx([50.03], abs=0.02) and not findings.tones_hz
    silent = tiny_pipeline(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE).findings
    assert silent.sentence() == "silence: nothing to restore"


@pytest.mark.parametrize(
    ("name", "sample_rate", "channels", "subtype"),
    [("phone.wav", 8000, 1, "PCM_U8"), ("studio.wav", 192_000, 2, "DOUBLE"), ("surround.flac", 48_000, 6, "PCM_16")],
)
def test_rates_channels_and_the_level_of_what_people_have(tmp_path, tiny, name, sample_rate, channels, subtype):
    soundfile.write(tmp_path / name, song(1.3137, channels, sample_rate).T, sample_rate, subtype=subtype)
    heard, rate = audio.read(tmp_path / name)
    asked = ["-o", str(tmp_path / "out.wav"), "--steps", "0", "--cutoff-hz", "3500"]
    assert main(["restore", str(tmp_path / name), *asked]) == 0
    restored, sample_rate = audio.read(tmp_path / "out.wav")
    assert sample_rate == SAMPLE_RATE and restored.shape == (channels, round(heard.shape[1] * SAMPLE_RATE / rate))
    assert 20 * np.log10(restored.std() / heard.std()) == pytest.approx(0, abs=1.0)


def test_channels_that_are_equal_silent_or_inverted(tiny_pipeline):
    mono = song(2.0, 1, SAMPLE_RATE)[0]
    asked = {"cutoff_hz": 8000, "merge": "replace"}
    single = tiny_pipeline(mono, SAMPLE_RATE, **asked).audio
    wav = np.stack([mono, mono, np.zeros_like(mono), mono])
    restored = tiny_pipeline(wav, SAMPLE_RATE, **asked).audio
    for channel in (0, 1, 3):
        np.testing.assert_array_equal(restored[channel], single)
    assert not restored[2].any()
    left, right = tiny_pipeline(np.stack([mono, -mono]), SAMPLE_RATE, **asked).audio
    np.testing.assert_allclose(left, -right, atol=1e-6)
    # Of several channels the prior, and not the model, says how loud the music is under the noise.
    wavs = (np.stack([mono, -mono]), mono[None])
    pair, single = (tiny_pipeline(wav, SAMPLE_RATE, num_inference_steps=0, **asked).audio for wav in wavs)
    np.testing.assert_allclose(pair[0], single[0], atol=5e-4)


@pytest.mark.parametrize("wav", [np.zeros((2, 30_000)), np.full((1, 1), 0.5), np.full((1, 700), 0.5)])
def test_silence_a_single_sample_and_a_constant(tiny_pipeline, wav):
    restored = tiny_pipeline(wav, 44_100).audio
    assert restored.shape == (len(wav), round(wav.shape[1] * 48 / 44.1)) and np.isfinite(restored).all()
    assert wav.any() or not restored.any()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_leaves_nothing(tmp_path, tiny_folder, stop):
    audio.write(tmp_path / "a.wav", np.tile(song(10.0, 1, 8000), 12), 8000)
    asked = ["--model", str(tiny_folder), "--cutoff-hz", "3500", "--merge", "replace"]
    command = [sys.executable, "-m", "srlib", "restore", str(tmp_path / "a.wav"), "-o", f"{tmp_path}/new/", *asked]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells switch it off for background jobs
    )
    while not list((tmp_path / "new").glob(".part-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(stop)
    printed = process.communicate(timeout=60)
    assert (process.returncode, *printed) == (128 + stop, "", "")
    assert list((tmp_path / "new").iterdir()) == []


def test_memory_does_not_grow_with_length(tmp_path, tiny_folder):
    """What the allocator keeps is less than the samples; input, output and what was generated would be thrice that."""
    swelling = song(20.0, 2, 16_000) * np.hanning(320_000).astype(np.float32)  # noise that is found would take time
    for name, seconds in (("short.flac", 60), ("long.flac", 220)):
        audio.write(tmp_path / name, np.tile(swelling, seconds // 20), 16_000)
    program = (
        "import resource, sys; from srlib.__main__ import main\n"
        "for name in ('short', 'long'):\n"
        "    main(['restore', f'{sys.argv[1]}/{name}.flac', '-o', f'{sys.argv[1]}/{name}.wav', '--steps', '0',\n"
        "          '--model', sys.argv[2], '--cutoff-hz', '7000', '--merge', 'replace'])\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(tiny_folder)]
    lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    short, long = int(lines[1]), int(lines[3])  # KiB
    size = 220 * SAMPLE_RATE * 2 * 4 / 1024
    assert long - short < size
    assert info(tmp_path / "long.wav").samples == 220 * SAMPLE_RATE


@pytest.mark.parametrize("sample_rate", [22_050, 44_100, 48_000])
def test_hiss_on_a_full_band_goes_in_the_channel_that_has_it(fitted_pipeline, sample_rate):
    clips = [track.mixture(start=2.0, seconds=4.0) for track in load_dataset("demo", "test")[1:3]]
    clean = 0.1 * audio.resample(np.stack(clips), SAMPLE_RATE, sample_rate)
    hissy = clean.copy()
    hissy[1] += 0.01 * np.random.default_rng(0).standard_normal(clean.shape[1]).astype(np.float32)
    output = fitted_pipeline(hissy, sample_rate, cutoff_hz=None)
    wanted, given = (audio.resample(wav, sample_rate, SAMPLE_RATE) for wav in (clean, hissy))
    assert output.findings.noise_db is not None
    np.testing.assert_array_equal(output.audio[0], given[0])
    assert snr_db(wanted[1], output.audio[1]) > snr_db(wanted[1], given[1]) + 2
    high_hz = min(19_000, 0.45 * sample_rate)
    distance = [lsd(wanted[1], wav[1], convention=plain(f_high=high_hz)) for wav in (given, output.audio)]
    assert distance[1] < 0.75 * distance[0]


def test_chunk_edges_are_heard_no_more_than_other_places(monkeypatch, fitted_pipeline):
    """The same music in chunks with other edges: where one has an edge, it is as good as the other, which has none."""
    clips = [track.mixture(start=0.0, seconds=5.0) for track in load_dataset("demo", "test")[:3]]
    reference = np.concatenate(clips)
    degraded = audio.resample(audio.resample(reference, SAMPLE_RATE, 16_000), 16_000, SAMPLE_RATE)
    outputs, edges = [], []
    for size in (512, 576):
        monkeypatch.setattr(chunks, "CHUNK_FRAMES", size)
        edges.append([chunk.keep_from * 480 for chunk in chunks.plan(len(reference))[1:]])
        outputs.append(fitted_pipeline(degraded, SAMPLE_RATE, cutoff_hz=7600.0).audio)
    scores = {0: [], 1: []}
    levels = []
    for here, other in ((0, 1), (1, 0)):
        for edge in set(edges[here]) - set(edges[other]):
            around = slice(edge - 2400, edge + 2400)
            scores[0].append(lsd(reference[around], outputs[here][around], convention="plain"))
            scores[1].append(lsd(reference[around], outputs[other][around], convention="plain"))
            levels.append(outputs[here][around].std() / outputs[other][around].std())
    assert len(levels) >= 4
    assert np.mean(scores[0]) < 1.05 * np.mean(scores[1])
    assert np.mean(levels) == pytest.approx(1, abs=0.05)


SECOND = SAMPLE_RATE


@pytest.fixture(scope="module")
def two_tracks():
    return [load_dataset("demo", "valid")[index].mixture(0.0, 10.0) for index in (3, 5)]


def narrowed(wav, cutoff_hz, family="ellip", order=8):
    return Degradation(cutoff_hz, family, order).apply(wav, SAMPLE_RATE)


def bands(output) -> list[tuple]:
    """(start, channels, passband in kHz; None from 15 kHz on) of each segment."""
    rows = [(s.start_s, s.channels, s.passband_hz) for s in output.findings.segments]
    return [(start, channels, None if hz is None or hz > 15_000 else round(hz / 1000)) for start, channels, hz in rows]


def test_a_steady_recording_has_one_band(two_tracks, tiny_pipeline):
    for cutoff_hz in (4000, 8000, 12_000):
        for wav in two_tracks:
            output = tiny_pipeline(narrowed(wav, cutoff_hz, "butter"), SAMPLE_RATE)
            ((start, _, khz),) = bands(output)
            assert start == 0 and khz == pytest.approx(cutoff_hz / 1000, abs=1)


def test_the_band_follows_time(two_tracks, compact_pipeline):
    """4 kHz, 2 s of full band, 4 kHz, silence, 12 kHz: narrow parts are restored as alone, the full one is left."""
    music, other = two_tracks
    phone, silence = narrowed(music, 4000), np.zeros(2 * SECOND, np.float32)
    wav = np.concatenate(
        [phone[: 7 * SECOND], other[: 2 * SECOND], phone[: 3 * SECOND], silence, narrowed(other, 12_000)]
    )
    output = compact_pipeline(wav, SAMPLE_RATE)
    assert bands(output) == [(0, (0,), 4), (7, (0,), None), (9, (0,), 4), (14, (0,), 12)]
    full = slice(7 * SECOND + 4000, 9 * SECOND - 4000)
    assert 10 * np.log10(np.mean((output.audio[full] - wav[full]) ** 2) / np.mean(wav[full] ** 2)) < -30
    alone = compact_pipeline(phone, SAMPLE_RATE).audio
    treble = [np.abs(np.fft.rfft(one[: 6 * SECOND])[6 * 6000 :]).std() for one in (output.audio, alone)]
    assert 20 * np.log10(treble[0] / treble[1]) == pytest.approx(0, abs=2)


def test_the_band_differs_between_channels(two_tracks, compact_pipeline):
    phone, host = narrowed(two_tracks[0], 3400), narrowed(two_tracks[1], 12_000)
    output = compact_pipeline(np.stack([phone, host, phone, np.zeros_like(phone)]), SAMPLE_RATE)
    assert bands(output) == [(0, (0, 2, 3), 3), (0, (1,), 12)]
    for channel, wav in ((0, phone), (1, host)):
        np.testing.assert_array_equal(output.audio[channel], compact_pipeline(wav, SAMPLE_RATE).audio)


@pytest.mark.parametrize("family", ["cheby1", "ellip", "butter", "boxcar"])
@pytest.mark.parametrize("order", [2, 6, 10])
def test_what_is_below_the_edge_of_clean_music_is_not_harmed(two_tracks, compact_pipeline, family, order):
    """Hardly farther from the truth than the input is, and on the whole no worse than replacement: means of cutoffs."""
    low, whole = [], []
    for cutoff_hz in (4000, 12_000, 16_000):
        low_pass = Degradation(cutoff_hz, family, order)
        edge_hz, reference = low_pass.passband_hz(SAMPLE_RATE), two_tracks[0]
        degraded = low_pass.apply(reference, SAMPLE_RATE)
        made = [compact_pipeline(degraded, SAMPLE_RATE, merge=merge).audio for merge in ("gain", "replace")]
        low.append([lsd(reference, wav, convention=plain(f_high=edge_hz)) for wav in (degraded, made[0])])
        whole.append([lsd(reference, wav, convention=plain(f_high=19_000)) for wav in made])
    (before, after), (ours, replacement) = np.mean(low, axis=0), np.mean(whole, axis=0)
    assert after < before + 0.015 and ours < replacement + 0.005


def test_blend_and_the_lowest_generated_frequency(two_tracks, compact_pipeline):
    wav = narrowed(two_tracks[0], 8000)
    dry, half, wet, high = (
        compact_pipeline(wav, SAMPLE_RATE, cutoff_hz=8000.0, **options).audio
        for options in ({"blend": 0.0}, {"blend": 0.5}, {}, {"band_from_hz": 12_000.0})
    )
    np.testing.assert_allclose(half, (dry + wet) / 2, atol=1e-5)
    assert (
        lsd(dry, high, convention=plain(f_low=9000, f_high=11_800)) < 0.1 < lsd(dry, wet, convention=plain(f_low=9000))
    )
