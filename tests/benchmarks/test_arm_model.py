"""Which instructions of an assembly llvm-mca is given."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.speed.arm_model import (
    CORES,
    DECODE,
    PROMPTS,
    assembly,
    counted_cycles,
    function,
    loop_around,
)

ROTATED = """\
gemv:
\tmov\tx0, 0
\tb\t.L3
.L2:
\tldr\tq0, [x1]
\tsdot\tv1.4s, v0.16b, v2.16b
\tcmp\tx0, x2
\tbge\t.L9
.L3:
#APP
\t// loop 8 128
#NO_APP
\ttst\tx0, 3
\tbne\t.L2
\tprfm\tPLDL1KEEP, [x1, 4096]
\tb\t.L2
.L9:
\tret
\t.size\tgemv, .-gemv
""".splitlines()


def test_the_shortest_way_round_a_loop_is_a_turn() -> None:
    """The mark stands where the loop ends in the text, and what is prefetched is jumped over."""
    turn = [line.split()[0] for line in loop_around(function(ROTATED, "gemv"), "8 128")]
    assert turn == ["tst", "bne", "ldr", "sdot", "cmp", "bge"]


def test_a_loop_inside_or_no_mark_is_refused() -> None:
    lines = [*ROTATED]
    lines.insert(lines.index(".L2:") + 3, "\tbne\t.L2")
    with pytest.raises(LookupError, match="a loop of its own"):
        loop_around(lines, "8 128")
    with pytest.raises(LookupError, match="no mark '4 32'"):
        loop_around(lines, "4 32")
    with pytest.raises(LookupError, match="in no loop"):
        loop_around([line for line in lines if line != "\tb\t.L2" and ".L2" not in line], "8 128")


def test_pipes_are_counted() -> None:
    turn = ["ldp q0, q1, [x0]", "sdot v2.4s, v0.16b, v1.16b", "smlal v3.4s, v0.4h, v1.4h"] * 4
    a76, x2, m1 = (counted_cycles(core, turn) for core in CORES)
    assert a76 == 8 / 2 == 8 / CORES[0].vectors  # loads, and both kinds of products
    assert x2 == 8 / 3
    assert m1 == 8 / 3


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None,
    reason="no aarch64-linux-gnu-gcc here: `make debian-arm` installs it",
)
def test_every_loop_of_the_tables_is_found() -> None:
    lines = assembly("aarch64-linux-gnu-gcc")
    for loop in (*DECODE, *PROMPTS):
        for kernels, (name, _) in loop.places.items():
            turn = loop_around(function(lines, name), loop.marker)
            if kernels == "dotprod":
                assert any(line.startswith("sdot") for line in turn)
