"""What `retnet-edge bench` measures, as records that become a table, Markdown, CSV or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np


class Quartiles(msgspec.Struct, frozen=True):
    """Median and quartiles of repeated measurements."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Of at least one value."""
    return Quartiles(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())


class BenchRow(msgspec.Struct, frozen=True):
    """One test: feed a prompt of `tokens`, or decode `tokens` one by one, from `depth` on.

    `rate`: tokens a second of all sequences of the batch together. `milliseconds`: a prompt's time
    to its first new token, and of decoding the time of one step. `gigabytes`: a second, that decode
    has to move (weights read, states read and written); `share`: of the machine's read bandwidth on
    as many threads, the best measured between the same tests (None for prompts, which are bound by
    arithmetic). `other_cores`: busy with other work meanwhile (None: the system does not say).
    """

    test: Literal["prompt", "generate"]
    tokens: int
    depth: int
    batch: int
    threads: int
    rate: Quartiles
    milliseconds: Quartiles
    gigabytes: float | None
    share: float | None
    other_cores: float | None


class Load(msgspec.Struct, frozen=True):
    """Milliseconds from a bundle's path to the first logits: hash checks, step and prefill graph.

    `first`: in a fresh process, with the files dropped from the page cache where the system allows
    it; `later`: again in the same process.
    """

    first: float
    later: Quartiles


class MemoryUse(msgspec.Struct, frozen=True):
    """Bytes of a process that runs the bundle, beside those of its libraries alone (`base`).

    `steady`: after the longest prompt and some steps; `peak`: the highest ever resident.
    """

    base: int
    steady: int
    anonymous: int
    file_backed: int
    peak: int


class Bench(msgspec.Struct, frozen=True):
    """One run of `bench`. Bytes; `bandwidth`: GB read a second, by number of threads."""

    bundle: str
    model: str
    parameters: int
    recipe: str
    backend: str
    processor: str
    cores: int
    weights_bytes: int
    state_bytes: int
    versions: dict[str, str]
    bandwidth: dict[int, Quartiles]
    load: Load
    memory: MemoryUse | None
    rows: list[BenchRow]
    warnings: list[str]
