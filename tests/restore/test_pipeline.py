"""The restoration pipeline in its smallest size: lengths, levels, seeds, files, refusals."""

import itertools

import numpy as np
import pytest
import torch

from srlib.audio.recording import Recording
from srlib.audio.stft import band_edges_hz, band_of_hz, log_mel
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.models.emphasis import emphasised
from srlib.restore import chunks
from srlib.restore.analysis import analyse
from srlib.restore.options import Options
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.restore.restoration import Restorer

SAMPLE_RATE = 48000


@pytest.fixture(scope="module")
def pipe():
    """A tiny pipeline in which every part does something: what starts at zero is drawn at random."""
    pipe = build("tiny", seed=0)
    torch.manual_seed(1)
    torch.nn.init.normal_(pipe.unet.head.weight, std=0.2)
    torch.nn.init.normal_(pipe.prior.slow_factors, std=0.3)
    torch.nn.init.normal_(pipe.prior.fast_factors, std=0.1)
    torch.nn.init.normal_(pipe.vocoder.head.weight, std=0.02)
    return pipe


def noise(seconds=1.0, level=0.02, sample_rate=SAMPLE_RATE, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * sample_rate))).astype(np.float32)


def swelling(wav: np.ndarray) -> np.ndarray:
    """Noise that is steady is taken out."""
    return wav * (1 + np.sin(np.arange(len(wav)) / 2000)).astype(np.float32)


def test_a_saved_pipeline_restores_the_same_bits(pipe, tmp_path):
    plain = pipe(noise(), SAMPLE_RATE, excitation="vocoder")
    pipe.prior.residual_std.fill_(0.5)
    try:
        pipe.save_pretrained(tmp_path)
    finally:
        pipe.prior.residual_std.fill_(1.0)
    loaded, again = (RestorationPipeline.from_pretrained(tmp_path) for _ in range(2))
    for mine, theirs in zip(loaded.modules(), pipe.modules(), strict=True):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in mine.state_dict().items() if key != "residual_std")
    assert torch.equal(loaded.prior.residual_std, torch.full((8,), 0.5))
    assert loaded.config.num_inference_steps == pipe.config.num_inference_steps
    expected, restored = (one(noise(), SAMPLE_RATE, excitation="vocoder") for one in (again, loaded))
    np.testing.assert_array_equal(restored.audio, expected.audio)
    assert torch.equal(restored.log_mel, expected.log_mel)
    assert not torch.allclose(expected.log_mel, plain.log_mel, atol=1e-3)  # the spread matters


def test_seed_and_generator(pipe):
    wav = noise()

    def restored(**options) -> np.ndarray:
        return pipe(wav, SAMPLE_RATE, cutoff_hz=4000.0, **options).audio

    default = restored()
    np.testing.assert_array_equal(default, restored(generator=0))
    np.testing.assert_array_equal(default, restored(generator=torch.Generator().manual_seed(0)))
    assert not np.array_equal(default, restored(generator=1))


@pytest.mark.parametrize("channels", [(), (1,)])
@pytest.mark.parametrize(
    ("sample_rate", "samples"),
    [(8000, 5710), (44_100, 31_474), (96_000, 48_001), *((48_000, n) for n in (1, 2, 481, 34_258))],
)
def test_output_is_at_48_khz_and_has_the_shape_of_the_input(pipe, sample_rate, samples, channels):
    wav = noise(1.0, sample_rate=sample_rate)[:samples].reshape(*channels, samples)
    output = pipe(wav, sample_rate)
    assert output.audio.shape == (*channels, round(samples * SAMPLE_RATE / sample_rate))
    assert output.audio.dtype == np.float32 and np.isfinite(output.audio).all()


def test_the_level_is_kept(pipe):
    wav = noise()
    wav *= 0.09 / np.abs(wav).max()  # below 0.1 and above 1 the model sees a normalised level
    loud, quiet = pipe(wav, SAMPLE_RATE).audio, pipe(0.25 * wav, SAMPLE_RATE).audio
    np.testing.assert_allclose(quiet, 0.25 * loud, atol=1e-5 * np.abs(loud).max())
    huge = [pipe(scale * wav, SAMPLE_RATE).audio for scale in (20, 80)]
    np.testing.assert_allclose(huge[1], 4 * huge[0], atol=1e-5 * np.abs(huge[1]).max())


def test_no_steps_give_the_priors_mean_and_no_chance(pipe):
    wav = swelling(noise(0.64))
    wav *= 0.05 / np.abs(wav).max()  # the model sees a peak of 0.1
    options = {"cutoff_hz": 8000.0, "stopband_hz": 8560.0, "merge": "none", "denoise": "off"}
    output = pipe(wav, SAMPLE_RATE, num_inference_steps=0, **options)
    degraded = log_mel(torch.from_numpy(2 * wav))
    centres_hz = torch.from_numpy(band_edges_hz()[1:-1])
    fall_db = -3 - 17 / (0.07 * 8000) * (centres_hz - 8000)  # a line from -3 dB at the edge, by 17 dB over 7 % of it
    known = degraded - (fall_db.clamp(max=0) * np.log(10) / 20).clamp(min=np.log(0.5)).float()
    variance = torch.where(centres_hz > 8000, 1e6, 0.0).float().expand_as(degraded)
    expected = emphasised(pipe.prior(known, variance).mean, band_of_hz(8000))
    torch.testing.assert_close(output.log_mel, expected, atol=1e-3, rtol=0)
    assert not torch.allclose(output.log_mel, pipe(wav, SAMPLE_RATE, **options).log_mel, atol=0.01)
    again = pipe(wav, SAMPLE_RATE, num_inference_steps=0, generator=5, **options)
    np.testing.assert_array_equal(output.audio, again.audio)


def test_every_excitation_is_another_waveform_of_the_same_log_mel(pipe):
    wav, options = swelling(noise(2.0, level=0.1)), {"cutoff_hz": 8000.0, "merge": "none", "num_inference_steps": 0}
    default, *outputs = (
        pipe(wav, SAMPLE_RATE, excitation=name, **options) for name in (None, "copied", "noise", "vocoder")
    )
    np.testing.assert_array_equal(default.audio, outputs[0].audio)
    assert all(torch.equal(output.log_mel, default.log_mel) for output in outputs)
    for first, second in itertools.combinations([output.audio for output in outputs], 2):
        assert (first - second).std() > 0.1 * first.std()
        assert 20 * np.log10(first.std() / second.std()) == pytest.approx(0, abs=3)


def test_a_recording_is_taken_for_noiseless_if_asked(pipe):
    steady, tone = noise(3.0, level=0.02), 0.1 * np.sin(2 * np.pi * 3000 * np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE)
    wav = (steady + tone).astype(np.float32)
    options = {"num_inference_steps": 0, "cutoff_hz": None}
    found, left = (pipe(wav, SAMPLE_RATE, denoise=denoise, **options) for denoise in ("auto", "off"))
    assert found.findings.noise_db > 3 and found.findings.tones_hz == pytest.approx([3000], abs=0.1)
    assert found.audio.std() < 0.5 * wav.std()
    assert left.findings.noise_db is None and not left.findings.tones_hz
    np.testing.assert_array_equal(left.audio, wav)


@pytest.mark.parametrize("merge", ["replace", "none"])
def test_merges_that_leave_the_known_band_subtract_no_tone_but_the_prior_knows_of_it(pipe, merge):
    tone = 0.1 * np.sin(2 * np.pi * 3000 * np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE)
    wav = (Degradation(8000).apply(swelling(noise(3.0, level=0.05)), SAMPLE_RATE) + tone).astype(np.float32)
    options = {"num_inference_steps": 0, "cutoff_hz": 8000.0, "merge": merge}
    told, untold = (pipe(wav, SAMPLE_RATE, denoise=denoise, **options) for denoise in ("auto", "off"))
    assert told.findings.tones_hz == untold.findings.tones_hz == ()
    higher = (untold.log_mel - told.log_mel)[0, 0, :300].mean(0)
    assert higher[band_of_hz(3000)] > 1.5  # taken for music, it stays in the log-mel
    assert higher[: band_of_hz(2500)].abs().max() < 0.5


@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "unipc"])
@pytest.mark.parametrize("steps", [1, 3])
def test_trajectory_has_a_log_mel_for_each_step(pipe, scheduler, steps):
    output = pipe(noise(0.64), SAMPLE_RATE, num_inference_steps=steps, scheduler=scheduler, return_trajectory=True)
    assert [mel.shape for mel in output.trajectory] == [output.log_mel.shape] * steps
    torch.testing.assert_close(output.trajectory[-1], output.log_mel, atol=0.02, rtol=0)  # the last step ends there
    assert pipe(noise(0.64), SAMPLE_RATE, num_inference_steps=steps, scheduler=scheduler).trajectory == []


def test_samples_are_averaged_and_guidance_and_eta_act(pipe):
    wav = noise(0.64)
    plain = pipe(wav, SAMPLE_RATE).log_mel
    options = ({"num_samples": 3}, {"guidance_scale": 3.0}, {"eta": 1.0, "scheduler": "ddim"})
    for option in options:
        varied = pipe(wav, SAMPLE_RATE, **option).log_mel
        assert torch.isfinite(varied).all()
        assert not torch.allclose(varied, plain, atol=1e-3)


@torch.no_grad()
def test_what_is_random_in_a_step_belongs_to_positions_too(pipe, monkeypatch):
    """A stochastic sampler agrees where chunks overlap as well as one that is not, and starts from the same noise."""
    monkeypatch.setattr(chunks, "CHUNK_FRAMES", 512)
    monkeypatch.setattr(pipe, "generate", lambda *args: started.append(args[2]) or generate(*args))
    generate, apart, starts = type(pipe).generate.__get__(pipe), {}, {}
    recording = Recording.from_array(swelling(noise(7.0, level=0.05))[None], SAMPLE_RATE)
    for eta in (0.0, 1.0):
        starts[eta] = started = []
        options = Options(num_inference_steps=3, eta=eta, scheduler="ddim", cutoff_hz=4000.0)
        before, after = Restorer(pipe, options).chunks(recording, analyse(recording, options, has_prior=True))
        common = range(after.chunk.keep_from - 32, after.chunk.keep_from + 32)
        mels = [one.log_mel[:, :, common.start - one.chunk.start :][:, :, : len(common)] for one in (before, after)]
        apart[eta] = (mels[0] - mels[1]).abs().mean()
    assert apart[1.0] < 1.2 * apart[0.0]
    assert all(torch.equal(*pair) for pair in zip(*starts.values(), strict=True))


def test_without_a_prior_it_is_audiosr_s_chain(tmp_path):
    """No prior's mean, and the condition is the degraded latent alone."""
    tiny = build("tiny", seed=0)
    unet = type(tiny.unet).from_config({**tiny.unet.config, "in_channels": 16})
    chain = RestorationPipeline(tiny.vae, unet, tiny.vocoder, tiny.scheduler, num_inference_steps=2)
    chain.save_pretrained(tmp_path)
    loaded = RestorationPipeline.from_pretrained(tmp_path)
    assert loaded.prior is None
    output = loaded(noise(), SAMPLE_RATE)
    made = [loaded(noise(), SAMPLE_RATE, cutoff_hz=8000, excitation=one).audio for one in (None, "vocoder", "copied")]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.allclose(made[0], made[2], atol=1e-3)
    with pytest.raises(SrlibError, match="0 steps cannot be taken: give a whole number from 1"):
        loaded(noise(), SAMPLE_RATE, num_inference_steps=0)
    assert np.isfinite(output.audio).all()
    assert output.cutoff_hz is None  # noise up to half the rate is full band
