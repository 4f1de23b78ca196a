"""The commands that make things, as a user meets them on Ctrl-C and on a full disk.

Each ends with its exit status and one sentence, and leaves the disk as it was.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import command_world
import pytest
from command_world import Arguments, Command, Done, Main, World, build, export, quantize_, verify
from conftest import child_processes, file_size_limit

from retnet_edge.runtime.bundle.bundle import Bundle

made = command_world.made
world = command_world.world
main = command_world.main


def fail_at(
    monkeypatch: pytest.MonkeyPatch, place: str, call: int, action: Callable[[], Any]
) -> None:
    """Have `action` happen where `module:function` is called for the `call`-th time."""
    module, name = place.split(":")
    real, calls = getattr(import_module(module), name), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            action()
        return real(*args, **options)

    monkeypatch.setattr(f"{module}.{name}", wrapped)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def assert_interrupted(done: Done) -> None:
    assert done.status == 130
    assert done.stdout == ""
    assert done.stderr.endswith("\n\n")  # a line of its own after the terminal's ^C
    assert "Traceback" not in done.stderr
    assert "retnet-edge:" not in done.stderr


LOWERED = ("retnet_edge.export.export:lower_onnx", 2)
WEIGHTS_WRITTEN = ("onnx_ir:save", 1)
GRAPHS_WRITTEN = ("retnet_edge.runtime.bundle.writer:encode", 1)
VERIFYING = (
    ("retnet_edge.pipeline.verify:measure_kernel_parity", 1),
    ("retnet_edge.runtime.verify:measure_parity", 1),
    ("retnet_edge.runtime.verify:render_report", 1),
)


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (export, LOWERED),
        (export, WEIGHTS_WRITTEN),
        (export, ("retnet_edge.export.export:write_golden", 1)),
        (export, GRAPHS_WRITTEN),
        (quantize_, ("retnet_edge.quantize.quantize:apply_recipe", 2)),
        (quantize_, WEIGHTS_WRITTEN),
        (quantize_, GRAPHS_WRITTEN),
        (build, LOWERED),
        (build, ("retnet_edge.quantize.quantize:apply_recipe", 1)),
        (build, ("retnet_edge.runtime.bundle.writer:encode", 2)),  # of the quantized bundle
        *((build, place) for place in VERIFYING),
        *((verify, place) for place in VERIFYING),
        (lambda w: [*verify(w), "--baseline"], ("retnet_edge.export.export:lower_onnx", 1)),
    ],
)
def test_ctrl_c_leaves_nothing(
    command: Command, place: tuple[str, int], world: World, main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = world.listing()
    manifest = (world.bundle / "manifest.json").read_bytes()
    fail_at(monkeypatch, *place, press_ctrl_c)
    assert_interrupted(main(command(world)))
    assert world.listing() == before
    assert (world.bundle / "manifest.json").read_bytes() == manifest


def test_ctrl_c_while_memory_is_measured_ends_the_process_that_does(
    world: World, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = child_processes(), set[str]()

    def advance(tokens: int) -> None:
        if not seen and child_processes() > before:
            seen.update(child_processes() - before)
            press_ctrl_c()

    monkeypatch.setattr("retnet_edge.pipeline.verify.progress", lambda *_: nullcontext(advance))
    listing = world.listing()
    assert_interrupted(main(world.judge()))
    assert len(seen) == 1
    assert child_processes() == before
    assert world.listing() == listing


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        (export, 20_000),
        (quantize_, 20_000),
        (build, 20_000),
        (lambda w: [*verify(w), "--baseline"], 1_000),
    ],
)
def test_a_full_disk_leaves_nothing(command: Command, limit: int, world: World, main: Main) -> None:
    before = world.listing()
    with file_size_limit(limit):
        done = main(command(world))
    assert_disk_full(done)
    assert world.listing() == before


def assert_disk_full(done: Done) -> None:
    assert done.status == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("retnet-edge: ")]
    assert sentences == [done.stderr.splitlines()[-1]]
    assert "disk full" in sentences[0]


def test_a_disk_that_is_full_when_reports_are_written(world: World, main: Main) -> None:
    manifest = (world.bundle / "manifest.json").read_bytes()
    with file_size_limit(len(manifest) + 1000):  # a profile is larger, and so is report.html
        done = main(world.judge())
    assert_disk_full(done)
    assert re.search(rf"({re.escape(str(world.bundle))}|\.json): disk full", done.stderr)
    assert (world.bundle / "manifest.json").read_bytes() == manifest
    assert Bundle.open(world.bundle).manifest.verification.status == "unverified"


@pytest.mark.parametrize("limit", [1_000, 50_000, 300_000])
def test_a_disk_that_is_full_while_training(limit: int, world: World, main: Main) -> None:
    """At the tokenizer, at a checkpoint's weights and at its optimizer; the run goes on later."""
    command = [*world.train(), "--steps", "2", "--save-every", "1"]
    with file_size_limit(limit):
        assert_disk_full(main(command))
    assert main(command).status == 0
    assert not [path for path in world.listing() if "partial" in path]


def ended_by_ctrl_c(
    args: Arguments, line: str, environment: dict[str, str]
) -> tuple[int | None, str]:
    """Status and standard error of a process of its own, interrupted when it has said `line`."""
    child = subprocess.Popen(
        [sys.executable, "-m", "retnet_edge.cli", *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    said = ""
    assert child.stderr is not None
    for said in child.stderr:
        if said.startswith(line):
            child.send_signal(signal.SIGINT)
            break
    _, rest = child.communicate(timeout=120)
    return child.returncode, said + rest


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (export, "lowering step"),
        pytest.param(export, "lowering prefill", marks=pytest.mark.slow),
        pytest.param(build, "lowering prefill", marks=pytest.mark.slow),
        pytest.param(build, "quantizing step", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_in_a_process_of_its_own(command: Command, line: str, world: World) -> None:
    """Seconds of work follow each of these lines."""
    before = world.listing()
    status, said = ended_by_ctrl_c(
        command(world), line, {"TMPDIR": str(world.folder / "temporary")}
    )
    assert (status, "Traceback" in said) == (130, False), said
    assert world.listing() == before
