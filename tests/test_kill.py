"""kill -9 at random moments: what stands at a target is the old, the new or none.

The next run works, and of what the killed one left nothing stays. A short form of seeded moments
runs with the fast tests; the long one (`make kill-test`) kills KILLS times over all commands.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from micro_checkpoint import exported_once
from warm_commands import WarmCommands

from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.toml_file import read_recipe
from retnet_edge.runtime.backends.ort.graph import main_graph
from retnet_edge.runtime.backends.ort.prepacked import find_prepared, prepared_folder
from retnet_edge.runtime.backends.ort.prepare import prepare
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.text.snapshot import load_snapshot

KILLS = int(os.environ.get("RETNET_EDGE_KILLS", "200"))
SENTENCES = "the cat sat on the mat, and the dog sat by the door\n" * 60


@dataclass(frozen=True)
class World:
    """What the commands read (`given`) and write (`out`), and the processes that they run in."""

    given: Path
    out: Path
    commands: WarmCommands

    @property
    def temporary(self) -> Path:
        return self.out.parent / "temporary"

    def left(self) -> list[str]:
        """Leftovers of killed runs."""
        found = [path for path in self.out.rglob("*") if path.name.endswith((".partial", ".new"))]
        return [path.name for path in [*found, *self.temporary.iterdir()]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    made = exported_once(tmp_path_factory.getbasetemp(), "base")
    shutil.copytree(made.checkpoint, folder / "checkpoint")
    shutil.copytree(made.bundle, folder / "fp32.edge")
    quantize(made.bundle, folder / "int8.edge", say=lambda _: None)
    (folder / "text.txt").write_text(SENTENCES)
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmCommands]:
    folder = tmp_path_factory.mktemp("commands")
    with WarmCommands(
        folder / "log", TMPDIR=str(folder / "temporary"), OMP_NUM_THREADS="1"
    ) as started:
        (folder / "temporary").mkdir()
        yield started


@pytest.fixture
def world(given: Path, commands: WarmCommands) -> Iterator[World]:
    out = commands.log.with_name("out")
    out.mkdir()
    yield World(given, out, commands)
    shutil.rmtree(out)


Arguments = list[str | Path]


@dataclass(frozen=True)
class Killed:
    """A command line, and a look at its target that fails where that is none of the three.

    clear: take the target away before the next run, where the command refuses one that exists.
    ends: the statuses that it may end with; random weights do not pass a verification.
    """

    arguments: Callable[[World], Arguments]
    look: Callable[[World], object]
    clear: bool = False
    ends: tuple[int, ...] = (0,)


def bundle(world: World) -> None:
    target = world.out / "x.edge"
    if target.exists():
        Bundle.open(target)


def verified_bundle(world: World) -> None:
    target = world.out / "x.edge"
    if target.exists():
        reasons = Bundle.open(target).manifest.verification.reasons
        assert "verify has not run" not in reasons
        assert "verification was interrupted" not in reasons


def prepared(world: World) -> None:
    opened = Bundle.open(world.out / "int8.edge")
    folder = prepared_folder(opened)
    found = find_prepared(opened, main_graph(opened)[1].file)
    assert (found is None) != folder.exists()


def recipe(world: World) -> None:
    target = world.out / "mixed.toml"
    if target.exists():
        read_recipe(target)
    if (world.out / "x.edge").exists():
        Bundle.open(world.out / "x.edge")


def state(world: World) -> None:
    target = world.out / "x.state"
    if target.exists():
        load_snapshot(target, Bundle.open(world.given / "int8.edge"))


def checkpoint(world: World) -> None:
    target = world.out / "run" / "checkpoint"
    if target.exists():
        load_checkpoint(target)


def prepare_arguments(world: World) -> Arguments:
    target = world.out / "int8.edge"
    if not target.exists():
        shutil.copytree(world.given / "int8.edge", target)
        prepare(target, say=lambda _: None)
    return ["prepare", target]


def train_arguments(world: World) -> Arguments:
    text = world.given / "text.txt"
    values: dict[str, str | Path] = {
        "--out": world.out / "run",
        "--data": text,
        "--valid": text,
        "--model": world.given / "checkpoint" / "config.json",
        "--vocab-size": "270",
        "--steps": "6",
        "--save-every": "1",
        "--batch": "1",
        "--seq-len": "16",
        "--device": "cpu",
    }
    return ["train", *(part for pair in values.items() for part in pair), "--no-tensorboard"]


COMMANDS = {
    "generate": Killed(
        lambda w: ["generate", w.given / "int8.edge", "-p", "the cat", "-n", "30",
                   "--state", w.out / "x.state"],
        state,
    ),
    "prepare": Killed(prepare_arguments, prepared),
    "quantize": Killed(
        lambda w: ["quantize", w.given / "fp32.edge", w.out / "x.edge"], bundle, clear=True
    ),
    "export": Killed(
        lambda w: ["export", w.given / "checkpoint", w.out / "x.edge"], bundle, clear=True
    ),
    "build": Killed(
        lambda w: ["build", w.given / "checkpoint", w.out / "x.edge",
                   "--text", w.given / "text.txt", "--context", "24", "--tokens", "48",
                   "--memory-steps", "100", "--no-baseline"],
        verified_bundle,
        clear=True,
        ends=(0, 1),
    ),
    "tune": Killed(
        lambda w: ["tune", w.given / "int8.edge", w.out / "x.edge",
                   "--checkpoint", w.given / "checkpoint", "--data", w.given / "text.txt",
                   "--steps", "4", "--batch", "2", "--seq-len", "32", "--device", "cpu"],
        bundle,
        clear=True,
    ),
    "search": Killed(
        lambda w: ["quantize", w.given / "fp32.edge", w.out / "x.edge",
                   "--search", w.out / "mixed.toml", "--budget", "6.5",
                   "--calibration", w.given / "text.txt"],
        recipe,
        clear=True,
    ),
    "train": Killed(train_arguments, checkpoint),
}  # fmt: skip


def clear(world: World) -> None:
    for name in ("x.edge", "mixed.toml"):
        path = world.out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def said(world: World) -> str:
    return world.commands.log.read_text(errors="replace")[-2000:]


def kill_often(name: str, world: World, times: int, rng: random.Random) -> int:
    """Kill a command at random moments and run it again each time; how often a kill met it."""
    command, met = COMMANDS[name], 0
    status, seconds = world.commands.run(command.arguments(world))
    assert status in command.ends, said(world)
    for _ in range(times):
        if command.clear:
            clear(world)
            # what a search has measured: else the runs after the first take no time
            (world.out / "mixed.toml.cache.jsonl").unlink(missing_ok=True)
        elif name == "train":  # from its beginning or from some step
            if rng.random() < 0.5:
                shutil.rmtree(world.out / "run")
            else:
                for step in sorted((world.out / "run").rglob("step-*"))[1:]:
                    shutil.rmtree(step, ignore_errors=True)
                shutil.rmtree(world.out / "run" / "checkpoint", ignore_errors=True)
        moment = rng.uniform(0, 1.1) * seconds
        status, _ = world.commands.run(command.arguments(world), kill_after=moment)
        assert status in (*command.ends, -signal.SIGKILL), said(world)
        met += status == -signal.SIGKILL
        command.look(world)
        if command.clear:
            clear(world)
        shutil.rmtree(world.out / "run" / "checkpoint", ignore_errors=True)  # else it is complete
        status, _ = world.commands.run(command.arguments(world))
        assert status in command.ends, (name, moment, said(world))
        command.look(world)
        wait_for_children(world)
        assert world.left() == [], (name, moment)
    return met


def wait_for_children(world: World) -> None:
    """A killed verify leaves the process that measured memory, which ends by itself."""
    deadline = time.monotonic() + 60
    while world.left() and time.monotonic() < deadline:
        time.sleep(0.2)


@pytest.mark.parametrize("name", ["generate", "prepare", "quantize"])
def test_kill_a_command_that_is_quick(name: str, world: World) -> None:
    kill_often(name, world, 2, random.Random(24))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_kill_every_command_often(name: str, world: World) -> None:
    times = -(-KILLS // len(COMMANDS))
    met = kill_often(name, world, times, random.Random(f"{name} 24"))
    print(f"{name}: {times} kills, {met} met it alive")
    assert met > times // 3
