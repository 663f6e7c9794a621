"""A recording reads the same from an array and from a file, block by block, as often as it is asked."""

import numpy as np
import pytest
import soundfile

from srlib.audio import files as audio
from srlib.audio.recording import Recording, as_channels, open_recording
from srlib.errors import SrlibError

SAMPLE_RATE = 48_000


def noise(samples: int, channels: int = 2) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((channels, samples))).astype(np.float32)


def test_every_pass_over_a_file_gives_its_samples(tmp_path):
    wav = noise(300_001)
    soundfile.write(tmp_path / "a.flac", wav.T, 44_100, "PCM_24")
    with open_recording(tmp_path / "a.flac") as recording:
        assert (recording.sample_rate, recording.channels, recording.samples) == (44_100, 2, 300_001)
        for _ in range(2):
            blocks = list(recording.blocks())
            assert len(blocks) > 1 and all(block.dtype == np.float32 for block in blocks)
            np.testing.assert_allclose(np.concatenate(blocks, axis=1), wav, atol=2**-23)


@pytest.mark.parametrize(
    ("wav", "sample_rate", "words"),
    [
        (np.ones(10, np.int16), 8000, "int16"),
        (np.ones((1, 2, 3)), 8000, r"shape \(1, 2, 3\)"),
        (np.ones((2, 0)), 8000, "no samples"),
        (np.ones(10), 0, "sample rate is 0"),
        (np.array([0.1, np.nan]), 8000, "NaN"),
        (np.array([0.1, np.inf]), 8000, "Inf"),
    ],
)
def test_what_is_no_audio_is_refused(wav, sample_rate, words):
    with pytest.raises(SrlibError, match=words):
        as_channels(wav, sample_rate)


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("samples", [1, 147, 300_001])
def test_blocks_are_resampled_as_the_whole(rate, samples):
    wav = np.random.default_rng(0).standard_normal((3, samples)).astype(np.float32)
    recording = Recording.from_array(wav, rate)
    streamed = np.concatenate(list(recording.blocks_at(SAMPLE_RATE, [2, 0])), axis=1)
    assert streamed.shape[1] == recording.samples_at(SAMPLE_RATE)
    np.testing.assert_array_equal(streamed, audio.resample(wav[[2, 0]], rate, SAMPLE_RATE))
