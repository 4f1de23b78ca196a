"""How fast the ARM kernels could go through weights, by llvm-mca: a model, not a measurement.

    python -m benchmarks.speed.arm_model --mca llvm-mca-19     # Debian: apt install llvm-19
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross

The loops that decoding spends its time in (`LOOP_MARK` in native/) are compiled as the package is,
cut out of the assembly, and run through llvm-mca, which simulates the issue ports and latencies of
a core whose caches always hit. Beside it: the same loops counted by hand against the pipes that
vendors (Arm's software optimization guides) and measurements (dougallj's tables of the M1) give,
and the cycles that memory takes for a byte. Decoding is bound by memory where that is more.
Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import heapq
import re
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ITERATIONS = 200


class Core(NamedTuple):
    """A core, how LLVM models it, and its pipes: of loads of 16 bytes, vectors, and multiply-adds
    that widen.

    gigahertz, gigabytes: the clock, and what memory delivers a second to one core.
    """

    name: str
    llvm: str
    width: int
    loads: float
    vectors: float
    widening: float
    gigahertz: float
    gigabytes: float
    has_i8mm: bool

    @property
    def memory_cycles(self) -> float:
        """Cycles that a byte takes from memory."""
        return self.gigahertz / self.gigabytes


# A76: 2.6 GHz (Kirin 980); its one core's share is an assumption on the high side, for all eight
# cores of an RK3588 together read 17 to 22 GB/s (turingpi.com, RK1 benchmarks). X2: Snapdragon 8
# Gen 1, half of what its LPDDR5-6400 can (51 GB/s), an assumption too. M1: AnandTech read about 58
# of 68 GB/s with one core (The 2020 Mac Mini Unleashed).
CORES = (
    Core("Cortex-A76", "neoverse-n1", 4, 2, 2, 1, 2.6, 15, False),
    Core("Cortex-X2", "cortex-x2", 8, 3, 4, 2, 3.0, 25, True),
    Core("Apple M1", "apple-m1", 8, 3, 4, 4, 3.2, 58, False),
)


class Loop(NamedTuple):
    """A mark; of each set of kernels, the function that it is in and the bytes of codes (the
    multiply-adds of a prompt) that one turn is about."""

    name: str
    marker: str
    places: dict[str, tuple[str, int]]


def _of_dots(name: str, marker: str, count: int, neon: int = 0) -> Loop:
    prefix, suffix = ("gemm_", "") if marker.endswith(" 0") else ("gemv_", "rows_")
    places = {"neon": (f"{prefix}neon", neon)} if neon else {}
    places |= {kernels: (f"{prefix}{suffix}{kernels}", count) for kernels in ("dotprod", "i8mm")}
    return Loop(name, marker, places)


DECODE = (
    _of_dots("8 bits, blocks of 128", "8 128", 4 * 128, 2 * 128),
    _of_dots("4 bits, blocks of 128", "4 128", 4 * 64),
    _of_dots("4 bits, blocks of 32", "4 32", 4 * 4 * 16, 4 * 32),
    Loop("their scales", "4 2", {"dotprod, i8mm": ("arm_block_steps", 4 * 8 * 16)}),
    Loop("their scales and zero points", "4 3", {"dotprod, i8mm": ("arm_block_steps", 4 * 8 * 16)}),
)
PROMPTS = (
    _of_dots("8 bits", "8 0", 8 * 4 * 16, 4 * 2 * 16),
    _of_dots("4 bits", "4 0", 8 * 4 * 16),
)
_LABEL = re.compile(r"^(\.?\w+):")
_BRANCH = re.compile(r"^\s(b(?:\.?\w+)?|cbn?z|tbn?z)\s.*?(\.L\w+)$")
_WIDENING = re.compile(r"^(?:[us]ml[as]l2?|[us]mull2?|mla)\b")


def assembly(compiler: str) -> list[str]:
    """The lines of native/kernels.c compiled as the package is, with marks."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    (extension,) = settings["ext-modules"]
    flags = [flag for flag in extension["extra-compile-args"] if flag != "-fvisibility=hidden"]
    command = [
        *compiler.split(),
        *flags,
        "-DRETNET_MARK_LOOPS",
        "-S",
        "-o",
        "-",
        "native/kernels.c",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    marks = "// loop"  # other comments are the compiler's
    return [s if marks in s else s.split("//")[0].rstrip() for s in done.stdout.splitlines()]


def function(lines: list[str], name: str) -> list[str]:
    """The lines of one function."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
    end = next(i for i in range(start, len(lines)) if lines[i].startswith(f"\t.size\t{name},"))
    return lines[start:end]


def loop_around(lines: list[str], marker: str) -> list[str]:
    """The instructions of the shortest way from a mark back to it: one turn of the innermost loop,
    without what is done for a last block that is no whole one.

    Raises LookupError where there is no mark, no way back, or a loop in it.
    """
    at = next((i for i, line in enumerate(lines) if line.strip() == f"// loop {marker}"), -1)
    if at < 0:
        raise LookupError(f"no mark {marker!r}")
    labels = {m[1]: i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    came_from: dict[int, int] = {}
    length = {at: 0}
    waiting = [(0, at)]
    while waiting:
        steps, line = heapq.heappop(waiting)
        for following in successors(lines, line, labels):
            cost = steps + is_instruction(lines[following])
            if following == at or cost < length.get(following, len(lines)):
                length[following], came_from[following] = cost, line
                heapq.heappush(waiting, (cost, following))
            if following == at:
                way = [line]
                while way[-1] != at:
                    way.append(came_from[way[-1]])
                way.reverse()
                if inner_loop(lines, way, labels):
                    raise LookupError(f"a turn of {marker!r} has a loop of its own")
                turn = [lines[i] for i in way]
                return [line.strip().replace("\t", " ") for line in turn if is_instruction(line)]
    raise LookupError(f"the mark {marker!r} is in no loop")


def inner_loop(lines: list[str], way: list[int], labels: dict[str, int]) -> bool:
    """True where a branch on the way, but for the last, may go back to an earlier line of it."""
    place = {line: i for i, line in enumerate(way)}
    return any(
        place.get(target, len(way)) <= place[line]
        for line in way[:-1]
        for target in successors(lines, line, labels)
        if target != way[0]
    )


def successors(lines: list[str], at: int, labels: dict[str, int]) -> list[int]:
    """The lines that may be run after one."""
    found = _BRANCH.match(lines[at])
    target = [labels[found[2]]] if found and found[2] in labels else []
    ends = re.match(r"\s(?:b|br|ret)\s", lines[at] + " ") is not None
    return target + ([] if ends or at + 1 == len(lines) else [at + 1])


def is_instruction(line: str) -> bool:
    """False for labels, directives and comments."""
    text = line.strip()
    return bool(text) and text[0] not in "./#" and not _LABEL.match(line)


def simulated_cycles(mca: str, cpu: str, loop: list[str]) -> float:
    """Of a turn, by llvm-mca."""
    command = [mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-mattr=+dotprod,+i8mm"]
    done = subprocess.run(
        [*command, f"-iterations={ITERATIONS}", "-"],
        input="\n".join(loop) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    (total,) = re.findall(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(total) / ITERATIONS


def counted_cycles(core: Core, loop: list[str]) -> float:
    """Of a turn, where only the number of pipes and the width hold it up."""
    loads = vectors = widening = 0
    for text in loop:
        name, _, operands = text.partition(" ")
        if name.startswith(("ld", "prfm", "st")):
            loads += 2 if name in ("ldp", "stp") and operands.startswith("q") else 1
        elif re.match(r"[vsdq]\d", operands) and not zeroing(name, operands):
            vectors += 1
            widening += bool(_WIDENING.match(name))
    every = len(loop) + sum(text.startswith("ldp q") for text in loop)
    return max(
        loads / core.loads, vectors / core.vectors, widening / core.widening, every / core.width
    )


def zeroing(name: str, operands: str) -> bool:
    """True of what makes a zero, which cores do when they rename."""
    return name == "movi" and operands.endswith(", 0")


def rows(lines: list[str], mca: str, loops: Sequence[Loop], *, each: bool) -> Iterator[str]:
    """Lines of a table: cycles for each byte, or what a cycle does; simulated, then counted."""
    for loop in loops:
        for kernels, (name, count) in loop.places.items():
            try:
                body = loop_around(function(lines, name), loop.marker)
            except LookupError as reason:
                yield f"| {loop.name} | {kernels} | {reason} |" + " |" * (len(CORES) - 1)
                continue
            cells = []
            for core in CORES:
                cycles = simulated_cycles(mca, core.llvm, body), counted_cycles(core, body)
                found = [f"{c / count:.3f}" if each else f"{count / c:.1f}" for c in cycles]
                known = core.has_i8mm or kernels != "i8mm"
                cells.append(f"{found[0]} ({found[1]})" if known else "")
            yield f"| {loop.name} | {kernels} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print what the cores take for a byte of codes, what memory does, and the same of prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--mca", default="llvm-mca")
    args = parser.parse_args()
    version = subprocess.run([args.mca, "--version"], capture_output=True, text=True, check=True)
    lines = assembly(args.compiler)
    cores = " | ".join(f"{core.name}, {core.llvm}" for core in CORES)
    head = f"| weights | kernels | {cores} |\n|---|---|" + "---|" * len(CORES)
    (llvm,) = re.findall(r"LLVM version [0-9.]+", version.stdout)
    print(f"Cycles for a byte of codes ({llvm}; counted by hand):\n\n{head}")
    print("\n".join(rows(lines, args.mca, DECODE, each=True)))
    memory = [f"{c.memory_cycles:.3f} ({c.gigabytes:.0f} GB/s at {c.gigahertz} GHz)" for c in CORES]
    print("| memory | | " + " | ".join(memory) + " |")
    print(f"\nMultiply-adds a cycle of a prompt's tile:\n\n{head}")
    print("\n".join(rows(lines, args.mca, PROMPTS, each=False)))


if __name__ == "__main__":
    main()
