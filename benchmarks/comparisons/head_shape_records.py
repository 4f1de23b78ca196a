"""The costs that head_shapes.py finds, in a file beside the comparisons' own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from retnet_edge.errors import InputError

FILE = "head-shapes-cpu.json"


class ShapeCost(msgspec.Struct, frozen=True):
    """One shape; `milliseconds` is the median of the rounds, which `quartiles` enclose."""

    run: str
    heads: int
    key_head_dim: int
    value_head_dim: int
    state_bytes: int
    milliseconds: float
    quartiles: tuple[float, float]


class ShapeCosts(msgspec.Struct, frozen=True):
    """The file: shapes measured in turns, in one process, on `threads` threads."""

    machine: str
    threads: int
    rounds: int
    steps: int
    shapes: list[ShapeCost]


def write_costs(folder: Path, costs: ShapeCosts) -> None:
    """Write the file into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n"
    (folder / FILE).write_bytes(text)


def read_costs(folder: Path) -> ShapeCosts | None:
    """The file of `folder`, if there is one. Raises InputError where it does not fit."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=ShapeCosts)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: not the costs of head shapes: {error}") from error
