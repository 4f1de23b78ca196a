"""Reading token shards: memory-mapped, batches drawn by step number.

A batch is a pure function of (seed, step), so a resumed run sees what an undisturbed one does, and
each of several processes can load its rows of it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retnet_edge.data.shards import read_manifest
from retnet_edge.errors import InputError


class Shards:
    """A row of token ids over memory-mapped shards; documents end with the end-of-text id."""

    def __init__(self, folder: Path) -> None:
        """Map the files. Raises InputError where one or the manifest is missing or not whole."""
        self.info = read_manifest(folder)
        self._starts = np.array([0, *accumulate(shard.tokens for shard in self.info.shards)])
        self._maps = [
            np.memmap(folder / shard.file, dtype=self.info.dtype, mode="r")
            for shard in self.info.shards
        ]

    def __len__(self) -> int:
        """Tokens of all shards."""
        return int(self._starts[-1])

    def tokens(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """[stop − start] token ids, 0 <= start < stop <= len(self), from however many shards."""
        stop = len(self) if stop is None else stop
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces = []
        for begin, tokens in zip(self._starts[first:-1], self._maps[first:], strict=True):
            if begin >= stop:
                break
            pieces.append(tokens[max(start - begin, 0) : stop - begin])
        return np.concatenate(pieces).astype(np.int64)

    def batch(
        self, seed: int, step: int, batch: int, length: int, rows: range | None = None
    ) -> NDArray[np.int64]:
        """[rows, length + 1] token ids of training step `step` (inputs and shifted targets).

        `rows` picks some of the batch's rows 0 … batch − 1, all where it is None. Blocks are
        visited in a new random order, cut at a new random phase, every epoch; shards do not matter
        to either. Raises InputError where there is less than one block.
        """
        blocks = (len(self) - 1) // length - 1
        if blocks < 1:
            raise InputError(
                f"{len(self)} tokens are too few for sequences of {length}; give more text "
                f"or a shorter --seq-len (at most {(len(self) - 1) // 2})"
            )
        out = []
        for row in range(batch) if rows is None else rows:
            assert 0 <= row < batch, (row, batch)
            epoch, place = divmod(step * batch + row, blocks)
            order, phase = _epoch_order(seed, epoch, blocks, length)
            start = phase + int(order[place]) * length
            out.append(self.tokens(start, start + length + 1))
        return np.stack(out)

    def contexts(self, length: int) -> Iterator[NDArray[np.int64]]:
        """Consecutive blocks of at most length + 1 tokens, overlapping by one, for evaluation."""
        for start in range(0, len(self) - 1, length):
            yield self.tokens(start, min(start + length + 1, len(self)))


@lru_cache(maxsize=2)  # the epoch that a batch ends and the one that it begins
def _epoch_order(seed: int, epoch: int, blocks: int, length: int) -> tuple[NDArray[np.int64], int]:
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(blocks), int(rng.integers(length))
