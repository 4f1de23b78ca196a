"""A folder with a checkpoint, its bundle and a text, and a command line to run on them.

Lowering a graph takes seconds and is tested elsewhere: here, a graph that was lowered once stands
in for it. Files of tests take the fixtures by assignment, `world = command_world.world`: an
imported name would be hidden by their own parameters.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from micro_checkpoint import Exported, exported_once

import retnet_edge.export.export as export_module
from retnet_edge import cli

SENTENCES = "the cat sat on the mat, and the dog sat by the door\n" * 40
SMALL = ("--context", "24", "--tokens", "48", "--memory-steps", "100", "--no-baseline")
Arguments = Sequence[str | Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A checkpoint and its fp32 bundle, which no test changes."""
    return exported_once(tmp_path_factory.getbasetemp(), "base")


@dataclass(frozen=True)
class World:
    """A folder with a checkpoint, its bundle and a text, for a test to spoil."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def bundle(self) -> Path:
        return self.folder / "model.edge"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    @property
    def out(self) -> Path:
        return self.folder / "out.edge"

    def listing(self) -> list[str]:
        """Every path below the folder, temporary ones included."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))

    def judge(self, bundle: Path | None = None, **changes: str | Path) -> list[str | Path]:
        """The arguments of verify."""
        values = {"--checkpoint": self.checkpoint, "--text": self.text}
        values |= {f"--{name}": Path(value) for name, value in changes.items()}
        options = [part for pair in values.items() for part in pair]
        return ["verify", bundle or self.bundle, *options, *SMALL]

    def build(self, **changes: str | Path) -> list[str | Path]:
        """The arguments of build."""
        given = {"checkpoint": self.checkpoint, "out": self.out, "text": self.text} | changes
        return ["build", given["checkpoint"], given["out"], "--text", given["text"], *SMALL]

    def train(self, **changes: str | Path) -> list[str | Path]:
        """The arguments of train: one step of a micro model."""
        values: dict[str, str | Path] = {
            "out": self.out,
            "data": self.text,
            "valid": self.text,
            "model": self.checkpoint / "config.json",
            "vocab-size": "270",
            "steps": "1",
            "batch": "1",
            "seq-len": "16",
            "device": "cpu",
        }
        values |= changes
        return ["train", *(part for k, v in values.items() for part in (f"--{k}", v)),
                "--no-tensorboard"]  # fmt: skip


@pytest.fixture
def world(made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(made.checkpoint, tmp_path / "checkpoint")
    shutil.copytree(made.bundle, tmp_path / "model.edge")
    (tmp_path / "text.txt").write_text(SENTENCES)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def lowered(lowering: Any, states: Any) -> ir.Model:
        return ir.load(made.bundle / f"{lowering.kind}.onnx")

    monkeypatch.setattr(export_module, "lower_onnx", lowered)
    return World(tmp_path)


@dataclass(frozen=True)
class Done:
    """What a command line ended with."""

    status: int
    stdout: str
    stderr: str


Main = Callable[[Arguments], Done]


@pytest.fixture
def main(capfd: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """Run a command line in this process, whose signals are as in one of its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(args: Arguments) -> Done:
        capfd.readouterr()
        status = cli.main([str(arg) for arg in args])
        return Done(status, *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def export(world: World) -> Arguments:
    return ["export", world.checkpoint, world.out]


def quantize_(world: World) -> Arguments:
    return ["quantize", world.bundle, world.out]


def verify(world: World) -> Arguments:
    return world.judge()


def build(world: World) -> Arguments:
    return world.build()


def train(world: World) -> Arguments:
    return world.train()


Command = Callable[[World], Arguments]
