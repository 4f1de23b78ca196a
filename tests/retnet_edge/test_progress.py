"""Long work says how long it still takes."""

from __future__ import annotations

import io
import re
from time import sleep

import pytest
from rich.cells import cell_len

from retnet_edge import progress as module
from retnet_edge.progress import about, clock, hashing, progress, working


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


def test_what_it_took_to_begin_is_no_measure_of_the_rest(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("bench", 1000) as advance:
        time.now += 60
        advance(1)
        time.now += 1
        advance(10)
        for _ in range(2):
            time.now += 500
            advance(0)  # nothing new, nothing to say
    assert capsys.readouterr().err == "bench: 11 of 1000, 1:39 left\n"


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


class Terminal(io.StringIO):
    """Standard error as a terminal of 80 characters."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest puts its own stream in place before."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


def lines_of(screen: Terminal) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").split("\n")


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with progress("quantize prefill (weights)", 4) as advance:
        for _ in range(4):
            advance(1)
            sleep(0.2)
    shown = lines_of(terminal)
    assert re.search(r"quantize prefill \(weights\) \S+ +75 %  0:0\d left", "\n".join(shown))
    assert max(map(cell_len, shown)) <= 80


def test_work_within_work_is_a_second_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with progress("train", 2) as outer:
        outer(1)
        with progress("validate (contexts)", 2) as inner, working("one call", 7):
            inner(1)
            sleep(0.3)
        with pytest.raises(ValueError, match="out of here"), progress("third", 1):
            raise ValueError("out of here")
        outer(1)
    shown = "\n".join(lines_of(terminal))
    for part in ("train", "validate (contexts)", "one call", "of about 0:05"):
        assert part in shown
    with progress("afterwards", 1) as advance:
        advance(1)
    assert "afterwards" in terminal.getvalue()


def test_work_within_work_is_a_line_a_minute(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("train", 10) as outer, progress("validate", 100) as inner:
        for _ in range(10):
            time.now += 7
            inner(10)
        outer(1)
    assert capsys.readouterr().err.splitlines() == [
        "validate: 90 of 100, 0:07 left",
        "train: 1 of 10, 10:30 left",
    ]


def test_only_large_files_are_shown_while_they_are_hashed(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in (1 << 20, 1 << 30):
        with hashing("check a.edge", size) as advance:
            for _ in range(4):
                time.now += 5
                advance(size // 4)
    assert capsys.readouterr().err.splitlines()[0] == (
        "check a.edge (bytes): 268435456 of 1073741824, 0:15 left"
    )
