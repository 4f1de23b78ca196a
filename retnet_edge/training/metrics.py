"""Metrics of a training run: one JSON object a line, and TensorBoard where it is wanted."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec

from retnet_edge.atomic import replace_file
from retnet_edge.errors import InputError
from retnet_edge.files import read_input

METRICS_FILE = "metrics.jsonl"
_MOST_BYTES = 1 << 30  # rows of millions of steps


class MetricsLog:
    """Appends to `metrics.jsonl`; lines past `from_step` are of a killed run and are dropped."""

    def __init__(self, out: Path, *, from_step: int, tensorboard: bool) -> None:
        """Open the log of the run directory `out`. Raises what `read_metrics` raises."""
        self._path = out / METRICS_FILE
        if os.path.lexists(self._path):
            kept = [row for row in read_metrics(self._path) if row["step"] <= from_step]
            replace_file(self._path, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))
        self._file = self._path.open("ab")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=from_step + 1)

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close both."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, **values: float) -> None:
        """Log `values` at `step`."""
        self._file.write(msgspec.json.encode({"step": step, **values}) + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


class _Row(msgspec.Struct, frozen=True):
    """What every row has."""

    step: Annotated[int, msgspec.Meta(ge=0, lt=10**8)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics file; a line that a kill cut short is left out.

    Raises InputError naming the file, and the first whole line that is no row with a step.
    """
    rows = []
    lines = read_input(path, _MOST_BYTES, "a metrics file").split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            msgspec.json.decode(line, type=_Row)
            rows.append(msgspec.json.decode(line, type=dict[str, Any]))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is no row of metrics: {error}; remove the line, or the file"
            ) from error
    return rows
