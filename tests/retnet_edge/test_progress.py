"""Long work says how long it still takes."""

from __future__ import annotations

import pytest

from retnet_edge import progress as module
from retnet_edge.progress import about, clock, progress, working


class Clock:
    """A clock that stands until it is told to go on."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_plain_lines_say_the_time_left(time: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("verify", 1000) as advance:
        for _ in range(10):
            time.now += 9
            advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "verify: 100 of 1000, 1:21 left"
    assert lines[-2:] == ["verify: 900 of 1000, 0:09 left", "verify: 1000 of 1000, took 1:30"]
    assert len(lines) == 10


def test_what_is_done_at_once_needs_no_line(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("short", 100) as advance:
        for _ in range(100):
            time.now += 0.005
            advance(1)
    assert capsys.readouterr().err == ""


def test_long_work_is_heard_of_before_a_tenth(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("long", 10_000) as advance:
        for _ in range(3):
            time.now += 2
            advance(1)
    assert capsys.readouterr().err == "long: 3 of 10000, 5:33:14 left\n"


def test_work_that_cannot_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    for say in (None, said.append):
        with working("one call", 30, say), working("a short call", 4, say):
            pass
    assert capsys.readouterr().err == "one call, about 0:30\n"
    assert said == ["one call, about 0:30", "a short call"]
    assert about("lowering", 3) == "lowering"
    assert about("lowering", 42) == "lowering, about 0:40"
    assert about("lowering", 117) == "lowering, about 2:00"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (-3, "0:00"), (65.2, "1:05"), (7384, "2:03:04")]
)
def test_the_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
