"""Chunks: they cover everything, carry context, agree where they overlap, and join without a trace."""

import itertools

import numpy as np
import pytest
import torch

from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.restore import chunks
from srlib.restore.chunks import CHUNK_FRAMES, CONTEXT_FRAMES, Chunk, PositionalNoise, cut, join, plan

UNIT = 64 * HOP_LENGTH


@pytest.mark.parametrize("samples", [1, UNIT, 16 * UNIT, 16 * UNIT + 1, 19 * UNIT, 100 * UNIT - 7])
def test_chunks_cover_every_sample_with_context(samples):
    planned = plan(samples)
    assert planned[0].start == planned[0].keep_from == 0
    assert 0 <= planned[-1].stop * HOP_LENGTH - samples < UNIT
    for chunk in planned:
        assert chunk.start % 64 == 0 and 0 < chunk.stop - chunk.start <= CHUNK_FRAMES
    for before, after in itertools.pairwise(planned):
        assert after.keep_from - after.start >= CONTEXT_FRAMES  # the last one may reach back further
        assert before.stop - after.keep_from == CONTEXT_FRAMES
        assert before.start < after.start and before.keep_from < after.keep_from


def test_gaps_are_counted_from_the_chunk():
    chunk = Chunk(896, 1920, 960)
    local = chunk.local([(1.0, 2.0), (8.9, 9.0), (10.0, 10.5), (19.3, 19.4)])
    np.testing.assert_allclose(local, [(-0.06, 0.04), (1.04, 1.54)])


@pytest.mark.parametrize("block", [1000, 480_000, 10**7])
def test_cut_gives_the_samples_of_each_chunk(block):
    wav = np.random.default_rng(0).standard_normal((2, 25 * SAMPLE_RATE + 11)).astype(np.float32)
    planned = plan(wav.shape[1])
    pieces = list(cut((wav[:, i : i + block] for i in range(0, wav.shape[1], block)), planned))
    assert len(pieces) == len(planned) > 2
    for chunk, piece in zip(planned, pieces, strict=True):
        np.testing.assert_array_equal(piece, wav[:, chunk.start * HOP_LENGTH : chunk.stop * HOP_LENGTH])
    np.testing.assert_array_equal(np.concatenate(list(join(planned, pieces)), axis=1), wav)  # to the bit


def test_chunks_that_differ_are_cross_faded_at_their_edge():
    planned = plan(12 * SAMPLE_RATE)
    level = iter((0.0, 1.0))
    pieces = [np.full(min(c.stop * HOP_LENGTH, 12 * SAMPLE_RATE) - c.start * HOP_LENGTH, next(level)) for c in planned]
    wav = np.concatenate(list(join(planned, pieces)))
    edge, half = planned[1].keep_from * HOP_LENGTH, 3840
    assert len(wav) == 12 * SAMPLE_RATE
    assert not wav[: edge - half].any() and (wav[edge + half :] == 1).all()
    np.testing.assert_allclose(wav[edge - half : edge + half], (np.arange(2 * half) + 0.5) / (2 * half), atol=1e-6)


def test_noise_belongs_to_positions(monkeypatch):
    rows = []
    for size in (1024, 576):
        monkeypatch.setattr(chunks, "CHUNK_FRAMES", size)
        noise = PositionalNoise(2, 3, torch.Generator().manual_seed(0))
        row = torch.full((2, 3, 752, 32), torch.nan)
        for chunk in plan(60 * SAMPLE_RATE):
            drawn, place = noise.of(chunk), slice(chunk.start // 8, chunk.stop // 8)
            known = ~row[:, :, place].isnan()
            assert torch.equal(drawn[known], row[:, :, place][known])  # the chunk before had the same there
            row[:, :, place] = drawn
        rows.append(row)
    assert torch.equal(*rows)
    assert rows[0].mean().abs() < 0.01 and abs(rows[0].std() - 1) < 0.01
