"""Token shards: text tokenized once into a memory-mapped file, batches drawn by step number.

A batch is a pure function of (seed, step), so a resumed run sees what an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT, read_documents

DOCUMENTS_AT_ONCE = 256


class ShardInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a shard was made from, beside it as `<shard>.json`; `text_bytes` is UTF-8 bytes."""

    source_sha256: str
    tokenizer_sha256: str
    tokens: int
    text_bytes: int
    dtype: str


class Shard:
    """A memory-mapped row of token ids; documents end with the end-of-text id."""

    def __init__(self, path: Path) -> None:
        """Map the file. Raises InputError where it or its description is missing or too short."""
        self.info = _read_info(path)
        self.tokens: NDArray[np.unsignedinteger] = np.memmap(path, dtype=self.info.dtype, mode="r")
        if len(self.tokens) != self.info.tokens:
            raise InputError(
                f"{path}: holds {len(self.tokens)} tokens, its description says {self.info.tokens}"
            )

    def batch(
        self, seed: int, step: int, batch: int, length: int, rows: range | None = None
    ) -> NDArray[np.int64]:
        """[batch, length + 1] token ids of training step `step` (inputs and shifted targets).

        `rows`, where given, are those of the batch that are wanted: one rank's, of several.
        Blocks are visited in a new random order, cut at a new random phase, every epoch.
        Raises InputError where the shard is shorter than one block.
        """
        blocks = (len(self.tokens) - 1) // length - 1
        if blocks < 1:
            raise InputError(
                f"{self.info.tokens} tokens are too few for sequences of {length}; give more text "
                f"or a shorter --seq-len (at most {(self.info.tokens - 1) // 2})"
            )
        found = []
        for row in range(batch) if rows is None else rows:
            epoch, place = divmod(step * batch + row, blocks)
            order, phase = _epoch_order(seed, epoch, blocks, length)
            start = phase + int(order[place]) * length
            found.append(self.tokens[start : start + length + 1].astype(np.int64))
        return np.stack(found)

    def contexts(self, length: int) -> Iterator[NDArray[np.int64]]:
        """Consecutive blocks of at most length + 1 tokens, overlapping by one, for evaluation."""
        for start in range(0, len(self.tokens) - 1, length):
            yield self.tokens[start : start + length + 1].astype(np.int64)


_order_cache: dict[tuple[int, int, int, int], tuple[NDArray[np.int64], int]] = {}


def _epoch_order(seed: int, epoch: int, blocks: int, length: int) -> tuple[NDArray[np.int64], int]:
    key = (seed, epoch, blocks, length)
    if key not in _order_cache:
        _order_cache.clear()
        rng = np.random.default_rng((seed, epoch))
        _order_cache[key] = (rng.permutation(blocks), int(rng.integers(length)))
    return _order_cache[key]


def write_shard(sources: list[Path], tokenizer: Tokenizer, target: Path) -> Shard:
    """Tokenize `sources` into `target`, or reuse it where it was made from the same inputs.

    Raises InputError where a source is missing, empty or not UTF-8.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(_file_sha256(source).encode())
    wanted = (digest.hexdigest(), hashlib.sha256(tokenizer.to_str().encode()).hexdigest())
    if target.exists():
        # a run killed between the shard and its description leaves one that is written anew
        with contextlib.suppress(ValueError):
            found = Shard(target)
            if (found.info.source_sha256, found.info.tokenizer_sha256) == wanted:
                return found

    dtype = "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32"
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise InputError(f"the tokenizer has no {END_OF_TEXT} token")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    tokens = text_bytes = 0
    with partial.open("wb") as file:
        documents = (text for source in sources for text in read_documents(source))
        for group in _groups(documents, DOCUMENTS_AT_ONCE):
            text_bytes += sum(len(text.encode()) for text in group)
            for encoding in tokenizer.encode_batch(group):
                ids = np.array([*encoding.ids, end], dtype=dtype)
                tokens += len(ids)
                file.write(ids.tobytes())
    info = ShardInfo(*wanted, tokens=tokens, text_bytes=text_bytes, dtype=dtype)
    os.replace(partial, target)
    _info_path(target).write_bytes(msgspec.json.encode(info))
    return Shard(target)


def _groups(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _info_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


def _read_info(shard: Path) -> ShardInfo:
    try:
        return msgspec.json.decode(_info_path(shard).read_bytes(), type=ShardInfo)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(
            f"{_info_path(shard)}: no valid description of the shard: {error}"
        ) from error


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
