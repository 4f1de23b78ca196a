"""Shards and batches: written once, reused rightly, and a pure function of (seed, step)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from retnet_edge.data import Shard, write_shard
from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT, train_tokenizer

DOCUMENTS = [f"Document {i}: the naïve café was closed on day {i * 7}." for i in range(600)]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, 400)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(f"\n{END_OF_TEXT}\n".join(DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture
def shard(source: Path, bpe: Tokenizer, tmp_path: Path) -> Shard:
    return write_shard([source], bpe, tmp_path / "data" / "train.bin")


def numbers(path: Path, count: int) -> Shard:
    """A shard of the tokens 0, 1, 2 …, in which every token tells its place."""
    np.arange(count, dtype=np.uint16).tofile(path)
    info = {"source_sha256": "", "tokenizer_sha256": "", "tokens": count, "text_bytes": count}
    path.with_name(path.name + ".json").write_bytes(
        msgspec.json.encode({**info, "dtype": "uint16"})
    )
    return Shard(path)


def test_a_shard_is_the_documents_each_with_an_end(shard: Shard, bpe: Tokenizer) -> None:
    """More documents than are tokenized at once, in their order."""
    wanted = [i for text in DOCUMENTS for i in (*bpe.encode(text).ids, 0)]
    assert shard.tokens.tolist() == wanted
    assert shard.tokens.dtype == np.uint16
    assert shard.info.tokens == len(wanted)
    assert shard.info.text_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert bpe.decode(wanted, skip_special_tokens=False).split(END_OF_TEXT)[:-1] == DOCUMENTS


def test_sources_follow_each_other(source: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("One more document.")
    both = write_shard([source, other], bpe, tmp_path / "both.bin")
    one = write_shard([source], bpe, tmp_path / "one.bin")
    end = [*bpe.encode("One more document.").ids, 0]
    assert both.tokens.tolist() == one.tokens.tolist() + end


def mark(path: Path) -> None:
    """Change a byte, to see later whether the file was written anew."""
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)


def test_a_shard_is_reused_while_its_inputs_are_the_same(
    source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    target = tmp_path / "train.bin"
    first = int(write_shard([source], bpe, target).tokens[0])
    mark(target)
    same = Tokenizer.from_str(bpe.to_str())
    assert write_shard([source], same, target).tokens[0] == first ^ 1


@pytest.mark.parametrize("what", ["text", "tokenizer", "another source", "no description",
                                  "a damaged description"])  # fmt: skip
def test_a_shard_is_rebuilt_when_its_inputs_change(
    source: Path, bpe: Tokenizer, tmp_path: Path, what: str
) -> None:
    """Without a description (a run killed between the two files) it is rebuilt as well."""
    target = tmp_path / "train.bin"
    write_shard([source], bpe, target)
    mark(target)
    sources = [source]
    if what == "text":
        source.write_text("Quite another text.\n")
    elif what == "tokenizer":
        bpe = train_tokenizer(DOCUMENTS, 300)
    elif what == "another source":
        sources.append(tmp_path / "second.txt")
        sources[1].write_text("Second.")
    elif what == "no description":
        (tmp_path / "train.bin.json").unlink()
    else:
        (tmp_path / "train.bin.json").write_bytes(b'{"source')
    rebuilt = write_shard(sources, bpe, target)
    fresh = write_shard(sources, bpe, tmp_path / "fresh.bin")
    assert rebuilt.info == fresh.info
    assert np.array_equal(rebuilt.tokens, fresh.tokens)


def test_a_bad_source_leaves_the_old_shard(source: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    target = tmp_path / "train.bin"
    before = write_shard([source], bpe, target).tokens.tolist()
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good\n" + b"\xff\xff")
    with pytest.raises(InputError, match=r"bad\.txt: not UTF-8"):
        write_shard([source, bad], bpe, target)
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        write_shard([tmp_path / "none.txt"], bpe, target)
    assert Shard(target).tokens.tolist() == before


def test_a_tokenizer_without_end_of_text(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no <\|endoftext\|> token"):
        write_shard([source], Tokenizer(models.BPE()), tmp_path / "x.bin")


def test_a_shard_whose_length_is_not_its_descriptions(shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "data" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=rf"holds {shard.info.tokens - 1} tokens"):
        Shard(path)


def test_a_batch_is_a_pure_function_of_seed_and_step(tmp_path: Path) -> None:
    """In any order, from another object, after other calls: the same; else another."""
    shard = numbers(tmp_path / "n.bin", 1_000)
    steps = [0, 1, 40, 7, 1, 0]
    batches = {step: shard.batch(3, step, 4, 10) for step in steps}
    again = Shard(tmp_path / "n.bin")
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
    shard = numbers(tmp_path / "n.bin", count)
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
    shard = numbers(tmp_path / "n.bin", 501)
    for step in range(30):
        for row in shard.batch(1, step, 3, 25):
            assert np.array_equal(row, np.arange(row[0], row[0] + 26))


def test_text_too_short_for_the_sequences(tmp_path: Path) -> None:
    shard = numbers(tmp_path / "n.bin", 100)
    with pytest.raises(InputError, match=r"100 tokens are too few .* of 50.*--seq-len.* 49"):
        shard.batch(0, 0, 1, 50)
    assert shard.batch(0, 0, 1, 49).shape == (1, 50)


@pytest.mark.parametrize("count", [2, 10, 11, 12, 101])
def test_contexts_predict_every_token_but_the_first_once(tmp_path: Path, count: int) -> None:
    shard = numbers(tmp_path / "n.bin", count)
    targets = Counter(int(t) for context in shard.contexts(10) for t in context[1:])
    assert targets == Counter(range(1, count))
    assert all(len(context) <= 11 for context in shard.contexts(10))
