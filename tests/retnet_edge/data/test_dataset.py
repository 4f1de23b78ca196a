"""Batches: a pure function of (seed, step), whatever the shards and the rows asked for."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet_edge.data.dataset import Shards
from retnet_edge.data.encoding import Encoded
from retnet_edge.data.shards import ShardManifest, ShardWriter
from retnet_edge.errors import InputError


def numbers(folder: Path, count: int, shard_tokens: int = 1 << 20) -> Shards:
    """Shards of the tokens 0, 1, 2 …, in which every token tells its place."""
    folder.mkdir(exist_ok=True)
    about = ShardManifest(1, "uint32", tokenizer_sha256="", sources=(), shards=())
    writer = ShardWriter(folder, about, shard_tokens)
    writer.add(Encoded(np.arange(count, dtype=np.uint32), np.array([count]), np.array([count])))
    writer.close()
    return Shards(folder)


@contextmanager
def numbers_somewhere(count: int, shard_tokens: int) -> Iterator[Shards]:
    with tempfile.TemporaryDirectory() as folder:
        yield numbers(Path(folder), count, shard_tokens)


@st.composite
def rows_of_tokens(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Tokens in all, tokens a shard (one shard to some hundred), length and batch."""
    length = draw(st.integers(1, 40))
    count = draw(st.integers(2 * length + 1, 700))
    shard_tokens = draw(st.integers(max(1, count // 150), count + 1))
    return count, shard_tokens, length, draw(st.integers(1, 7))


@settings(max_examples=60)
@given(rows_of_tokens(), st.integers(0, 3))
def test_an_epoch_draws_every_block_once_over_any_number_of_shards(
    sizes: tuple[int, int, int, int], seed: int
) -> None:
    """Epochs begin in the middle of batches; blocks lie across the borders of shards."""
    count, shard_tokens, length, batch = sizes
    blocks = (count - 1) // length - 1
    with numbers_somewhere(count, shard_tokens) as shards:
        assert len(shards.info.shards) == -(-count // shard_tokens)
        steps = -(-2 * blocks // batch)
        drawn = np.concatenate([shards.batch(seed, s, batch, length) for s in range(steps)])
    assert np.array_equal(drawn, drawn[:, :1] + np.arange(length + 1))
    for epoch in range(2):
        starts = sorted(drawn[epoch * blocks : (epoch + 1) * blocks, 0].tolist())
        assert 0 <= starts[0] < length
        assert starts == list(range(starts[0], starts[0] + blocks * length, length))


@settings(max_examples=40)
@given(rows_of_tokens(), st.integers(0, 30), st.data())
def test_a_restart_at_any_step_and_any_share_of_the_rows_continue_the_sequence(
    sizes: tuple[int, int, int, int], restart: int, data: st.DataObject
) -> None:
    """Against one shard read from step 0 in whole batches."""
    count, shard_tokens, length, batch = sizes
    with numbers_somewhere(count, count) as shards:
        undisturbed = [shards.batch(5, step, batch, length) for step in range(restart + 3)]
    cuts = sorted(data.draw(st.sets(st.integers(1, batch), max_size=3)) | {batch})
    with numbers_somewhere(count, shard_tokens) as shards:
        for step in range(restart, restart + 3):
            assert np.array_equal(shards.batch(5, step, batch, length), undisturbed[step])
            ranks = [range(a, b) for a, b in zip([0, *cuts], cuts, strict=False)]
            parts = [shards.batch(5, step, batch, length, rows=rows) for rows in ranks]
            assert np.array_equal(np.concatenate(parts), undisturbed[step])


@settings(max_examples=60)
@given(rows_of_tokens(), st.data())
def test_any_span_is_read_across_shards(
    sizes: tuple[int, int, int, int], data: st.DataObject
) -> None:
    count, shard_tokens, _, _ = sizes
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    with numbers_somewhere(count, shard_tokens) as shards:
        assert np.array_equal(shards.tokens(start, stop), np.arange(start, stop))
        assert np.array_equal(shards.tokens(), np.arange(count))
        assert len(shards) == count


def test_the_order_is_that_of_one_row_of_tokens_in_numpy(tmp_path: Path) -> None:
    """The order that runs were begun with, written down a second time."""
    shards = numbers(tmp_path / "n", 1_000, 96)
    rng = np.random.default_rng((3, 1))
    order, phase = rng.permutation(98), rng.integers(10)
    wanted = [phase + 10 * order[place] for place in range(4)]
    assert shards.batch(3, 49, 2, 10)[:, 0].tolist() == wanted[:2]
    assert shards.batch(3, 50, 2, 10)[:, 0].tolist() == wanted[2:]


def test_a_batch_is_a_pure_function_of_seed_and_step(tmp_path: Path) -> None:
    """In any order, from another object, after other calls: the same; else another."""
    shard = numbers(tmp_path / "n", 1_000)
    steps = [0, 1, 40, 7, 1, 0]
    batches = {step: shard.batch(3, step, 4, 10) for step in steps}
    again = Shards(tmp_path / "n")
    for step in reversed(steps):
        again.batch(4, step, 4, 10)
        assert np.array_equal(again.batch(3, step, 4, 10), batches[step])
    assert batches[0].shape == (4, 11)
    assert batches[0].dtype == np.int64
    assert not np.array_equal(batches[0], batches[1])
    assert not np.array_equal(shard.batch(4, 0, 4, 10), batches[0])


@pytest.mark.parametrize(
    ("count", "length", "batch"), [(1_000, 10, 1), (1_000, 7, 3), (205, 100, 1)]
)
def test_an_epoch_visits_every_block_once(
    tmp_path: Path, count: int, length: int, batch: int
) -> None:
    shard = numbers(tmp_path / "n", count)
    blocks = (count - 1) // length - 1
    starts = [
        int(row[0]) for step in range(4 * blocks) for row in shard.batch(0, step, batch, length)
    ]
    orders = []
    for epoch in range(4 * batch):
        found = starts[epoch * blocks : (epoch + 1) * blocks]
        phase = min(found)
        assert phase < length
        assert sorted(found) == [phase + i * length for i in range(blocks)]
        orders.append(tuple(s - phase for s in found))
    phases = [min(starts[e * blocks : (e + 1) * blocks]) for e in range(4 * batch)]
    assert len(set(phases)) > 1
    if blocks > 5:
        assert len(set(orders)) == len(orders)


def test_rows_are_consecutive_tokens_with_one_to_predict(tmp_path: Path) -> None:
    shard = numbers(tmp_path / "n", 501)
    for step in range(30):
        for row in shard.batch(1, step, 3, 25):
            assert np.array_equal(row, np.arange(row[0], row[0] + 26))


def test_text_too_short_for_the_sequences(tmp_path: Path) -> None:
    shard = numbers(tmp_path / "n", 100)
    with pytest.raises(InputError, match=r"100 tokens are too few .* of 50.*--seq-len.* 49"):
        shard.batch(0, 0, 1, 50)
    assert shard.batch(0, 0, 1, 49).shape == (1, 50)


@pytest.mark.parametrize("count", [2, 10, 11, 12, 101])
def test_contexts_predict_every_token_but_the_first_once(tmp_path: Path, count: int) -> None:
    shard = numbers(tmp_path / "n", count)
    targets = Counter(int(t) for context in shard.contexts(10) for t in context[1:])
    assert targets == Counter(range(1, count))
    assert all(len(context) <= 11 for context in shard.contexts(10))
