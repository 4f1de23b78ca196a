"""What a comparison run leaves: one file of JSON lines, and one file that holds them all.

A run's file is `<name>.jsonl`: an `about` line (options, configuration, parameters, machine), one
`curve` line for every validation, and a last line, `result` or `failed`. Every line names its run,
so files joined together can be taken apart again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from retnet_edge.errors import InputError


class About(msgspec.Struct, frozen=True, tag="about", tag_field="kind"):
    """What was trained, how, on what. `state_bytes`: of one sequence, 0 for a growing cache."""

    run: str
    variant: str
    size: str
    context: int
    seed: int
    parameters: int
    state_bytes: int
    options: dict[str, Any]
    config: dict[str, Any]
    train_tokens: int
    device: str
    torch: str
    parallel: int


class Curve(msgspec.Struct, frozen=True, tag="curve", tag_field="kind"):
    """One validation; `tokens` seen in training so far."""

    run: str
    step: int
    tokens: int
    train_loss: float
    valid_loss: float
    valid_bits_per_byte: float
    tokens_per_second: float


class Result(msgspec.Struct, frozen=True, tag="result", tag_field="kind"):
    """The end of a run: figures on the held-out text, in float32, in contexts as in training.

    `wall_seconds` are those of the whole process, compilation and evaluation included;
    `tokens_per_second` is the median between validations. Both are shared with `parallel` runs.
    """

    run: str
    tokens: int
    wall_seconds: float
    tokens_per_second: float
    loss: float
    perplexity: float
    bits_per_byte: float


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """A run that could not be trained, such as one whose loss was no longer finite."""

    run: str
    wall_seconds: float
    reason: str


Line = About | Curve | Result | Failed


class Record(msgspec.Struct, frozen=True):
    """One whole run."""

    about: About
    curve: list[Curve]
    end: Result | Failed

    @property
    def result(self) -> Result | None:
        """The figures, where the run has some."""
        return self.end if isinstance(self.end, Result) else None

    def lines(self) -> list[Line]:
        """As they are written."""
        return [self.about, *self.curve, self.end]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records into one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    lines = (line for record in records for line in record.lines())
    partial.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    os.replace(partial, path)


def read_records(path: Path) -> list[Record]:
    """The runs of a file. Raises InputError naming the file and the line that does not fit."""
    abouts: dict[str, About] = {}
    curves: dict[str, list[Curve]] = {}
    ends: dict[str, Result | Failed] = {}
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    for number, text in enumerate(raw.splitlines(), 1):
        try:
            line = msgspec.json.decode(text, type=Line)
        except msgspec.DecodeError as error:
            raise InputError(f"{path}, line {number}: not a line of a run: {error}") from error
        if isinstance(line, About):
            abouts[line.run] = line
        elif isinstance(line, Curve):
            curves.setdefault(line.run, []).append(line)
        else:
            ends[line.run] = line
    for name in abouts.keys() ^ ends.keys():
        raise InputError(f"{path}: the run {name} is not whole")
    return [Record(abouts[name], curves.get(name, []), ends[name]) for name in abouts]


def read_folder(folder: Path) -> dict[str, Record]:
    """Every run of a folder's `*.jsonl` by name; no folder holds no runs."""
    records = (record for path in sorted(folder.glob("*.jsonl")) for record in read_records(path))
    return {record.about.run: record for record in records}


def merge(files: Iterable[Path], folder: Path) -> list[str]:
    """Take joined files apart into one file a run in `folder`; the names written."""
    names = []
    for path in files:
        for record in read_records(path):
            write_records(folder / f"{record.about.run}.jsonl", [record])
            names.append(record.about.run)
    return names
