"""Tables fit the terminal that they are printed on, and break no word to do so."""

from __future__ import annotations

import io
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from retnet_edge.tables import ENDLESS, FAILED, show_facts, show_table, standard_output

LABELS = ["logit error", "  relative", "mean KL at 1,000,000 (after 1,000)", "step, ms", "α"]


def table(columns: int, width: int, label: str = "") -> str:
    header = ["figure", *(f"{i} native" for i in range(columns))]
    rows = [[label or name, *(f"{1234567.5 + i:,}" for i in range(columns))] for name in LABELS]
    out = io.StringIO()
    show_table(Console(file=out, width=width), "A title", header, rows, notes=["A note of it."])
    return out.getvalue()


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 9, 30])
@pytest.mark.parametrize("width", [60, 80, 132])
def test_no_line_is_too_wide_and_no_word_broken(columns: int, width: int) -> None:
    shown = table(columns, width)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert "…" not in shown
    for word in " ".join([*LABELS, "A note of it."]).split():
        assert word in shown.split()
    for column in range(columns):
        assert shown.split().count(f"{1234567.5 + column:,}") == len(LABELS)


def test_columns_without_room_follow_below_under_the_same_rows() -> None:
    first, second = table(6, 80).split("A title, continued")
    for label in LABELS:
        assert label.split()[0] in first
        assert label.split()[0] in second
    assert "2 native" in first
    assert "3 native" in second  # as even as they go
    assert "A note" not in first


@pytest.mark.parametrize("width", [1, 10, 20, 40])
def test_a_narrow_terminal_is_no_error(width: int) -> None:
    assert table(3, width)
    assert table(3, width, label="a_name_of_one_word_that_is_longer_than_the_whole_terminal")
    out = io.StringIO()
    show_facts(Console(file=out, width=width), "t", [("a name", "a value"), ("b", "c" * 64)])
    assert "".join(out.getvalue().split()).count("c") == 64


def test_a_long_label_goes_on_in_a_second_line_set_in() -> None:
    lines = table(4, 80).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("mean KL at"))
    assert lines[start + 1].startswith("  1,000)")


def test_a_failure_is_marked_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="standard")
    show_table(console, "", ["figure", "onnx"], [["KL", f"0.1 {FAILED}"], ["top-1", "99 % ok"]])
    failed = next(line for line in out.getvalue().splitlines() if FAILED in line)
    passed = next(line for line in out.getvalue().splitlines() if "ok" in line)
    assert "\x1b[1;31m" in failed
    assert "\x1b[1;31m" not in passed


def test_facts_stand_beside_their_names_and_long_values_below() -> None:
    facts = [("path", "a.edge"), ("graphs", "word " * 30), ("sha256", "ab" * 32 + "cd" * 4)]
    out = io.StringIO()
    show_facts(Console(file=out, width=80), "bundle", facts)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["bundle", "  path    a.edge"]
    assert "    " + "ab" * 32 + "cd" * 4 in lines
    assert out.getvalue().count("word") == 30


def test_a_pipe_gets_everything_unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    console = standard_output()
    assert console.width == ENDLESS
    show_table(console, "A title", ["f", *"abcdefgh"], [["KL", *["1,234,567,890"] * 8]])
    show_facts(console, "", [("reason", "word " * 100)])
    assert out.getvalue().count("A title") == 1
    assert out.getvalue().splitlines()[3].count("1,234,567,890") == 8
    assert ("word " * 100).strip() in out.getvalue()
