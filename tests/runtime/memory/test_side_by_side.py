"""Memory runs beside other work: what they give, and that none outlives the block."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
from conftest import Tiny, child_processes

from retnet_edge.errors import InputError
from retnet_edge.runtime.memory import memory as module
from retnet_edge.runtime.memory.memory import Memory, measure_memory, memory_supported, time_alone
from retnet_edge.runtime.memory.side_by_side import SideBySide
from retnet_edge.runtime.memory.slope import Slope

pytestmark = pytest.mark.skipif(not memory_supported(), reason="needs /proc/self/smaps_rollup")


def test_runs_beside_each_other_give_what_one_alone_gives(tiny: Tiny) -> None:
    steps: list[int] = []
    with SideBySide() as beside:
        runs = [beside.measure(tiny.path, 400, advance=steps.append) for _ in range(2)]
        found = [run.result() for run in runs]
    assert sum(steps) == 800
    alone = measure_memory(tiny.path, 400)
    for memory in found:
        assert memory.steps == alone.steps == 400
        assert memory.state_bytes == alone.state_bytes
        assert memory.tokens == alone.tokens


def test_what_a_run_raises_is_its_result(tmp_path: Path) -> None:
    with SideBySide() as beside:
        run = beside.measure(tmp_path / "none.edge", 400)
        with pytest.raises(InputError, match="does not exist"):
            run.result()


def test_children_end_with_the_block(tiny: Tiny) -> None:
    before = child_processes()
    running = threading.Event()
    runs: list[Future[Memory]] = []

    def leave() -> None:
        with SideBySide() as beside:
            runs.extend(
                beside.measure(tiny.path, 10**7, advance=lambda _: running.set()) for _ in range(9)
            )
            assert running.wait(60)
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        leave()
    assert time.monotonic() - began < 60
    assert child_processes() <= before
    assert all(run.cancelled() or isinstance(run.exception(), InputError) for run in runs)


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        (Slope(0.0, 0.0, 0.0), [20_000]),
        (Slope(0.1, -0.7, 0.9), [20_000]),
        (Slope(0.3, -0.5, 1.0), [20_000, 40_000]),
        (Slope(0.5, 0.1, 0.9), [20_000, 40_000]),
    ],
)
def test_steps_are_as_many_as_the_interval_needs(
    slope: Slope, expected: list[int], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    seen = measure_memory(tiny.path, 400)

    def run_child(command: list[str], *_: object) -> object:
        (steps,) = (word.removeprefix("--steps=") for word in command if "--steps=" in word)
        asked.append(int(steps))
        return None

    monkeypatch.setattr(module, "run_child", run_child)
    monkeypatch.setattr(
        module,
        "summarise_memory",
        lambda *_, **__: msgspec.structs.replace(seen, anonymous_slope=slope),
    )
    measure_memory(tiny.path)
    assert asked == expected


def test_times_are_taken_again_alone(tiny: Tiny) -> None:
    memory = measure_memory(tiny.path, 400)
    shared = msgspec.structs.replace(memory, step_milliseconds=(1e6, 1e6, 1e6))
    alone = time_alone(shared, tiny.path)
    assert alone.step_milliseconds[1] < 1e5
    assert alone.anonymous == memory.anonymous
    assert alone.steps == memory.steps
