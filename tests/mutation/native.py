"""Small faults put into the C of the native backend, one at a time: which do its tests miss?

    python tests/mutation/native.py                # a sample of 300
    python tests/mutation/native.py --sample 0     # every one: hours
    python tests/mutation/native.py --files native/pool.c --sample 60 --seed 2

A mutant is one operator, constant, condition or statement changed in the C that this CPU runs. It
is built at -O1 with the programs of tests/runtime/backends (`check_kernels.c` and the others),
which are run; what they let pass is built and run once more under the address sanitizer, and the
thread sanitizer for pool.c. A mutant that does not compile does not count. One that
`native_equivalent.txt` lists changes nothing that can be seen, and the reason stands there. Exit
status 1 where less than 95 % of the others are found.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("native_equivalent.txt")
CHECKS = "tests/runtime/backends"
SOURCES = tuple(
    sorted(path.stem for path in (ROOT / "native").glob("*.c") if "windows" not in path.stem)
)
PROGRAMS = dict.fromkeys(
    ("check_kernels", "check_engine", "check_refused", "check_callers", "check_shared"), SOURCES
)
JUDGED = ("engine", "kernels", "pool", "session", "table")  # what these programs are about
FILES = (
    *(f"native/{name}.c" for name in JUDGED),
    *("native/kernels_impl.h", "native/kernels.h", "native/isa_avx2.h", "native/isa_avx512.h"),
    *("native/isa_x86.h", "native/isa_plain.h"),
)
FLAGS = ["-std=c11", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w"]
ADDRESS = "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"
STAGES: tuple[tuple[str, ...], ...] = ((), ADDRESS, ("-fsanitize=thread",))
PASS_MARK = 0.95

_OPERATORS = {
    " + ": [" - "], " - ": [" + "], " * ": [" / "], " / ": [" * "], " % ": [" / "],
    " < ": [" <= ", " > "], " <= ": [" < "], " > ": [" >= ", " < "], " >= ": [" > "],
    " == ": [" != "], " != ": [" == "], " && ": [" || "], " || ": [" && "], " << ": [" >> "],
    " >> ": [" << "], " & ": [" | "], " | ": [" & "], " += ": [" -= ", " = "], "++": ["--"],
    " -= ": [" += "], " |= ": [" &= "],
}  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.\"])(\d+\.\d+(?:e-?\d+)?f?|\d+)(?![\w.])")
_STATEMENT = re.compile(r"^\s+[\w>.\[\]*()+ -]+ (?:=|\+=|-=|\|=) .*;$|^\s+\w[\w>.-]*\(.*\);$")
_DECLARATION = re.compile(
    r"^\s+(?:const |static |typedef |return|int |float |double |size_t |uint)"
)
_IF = re.compile(r"\bif \((.*)\)( .*|\{|$)")


class Mutant(NamedTuple):
    """Line `number` (from 1) of `file` becomes `after`."""

    file: str
    number: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """As `native_equivalent.txt` has it: no line number, which moves."""
        return f"{self.file}: {self.before.strip()}  =>  {self.after.strip()}"


def mutants_of(file: str) -> Iterator[Mutant]:
    """Every mutant of a file, in its order; no comment and no preprocessor line is changed."""
    inside = False
    for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
        starts, ends = "/*" in line, "*/" in line
        comment, inside = inside or line.lstrip().startswith("/*"), (inside or starts) and not ends
        if comment or line.startswith("#") or not line.strip():
            continue
        code = line.partition("/*")[0]
        for after in dict.fromkeys(_changes(code)):
            yield Mutant(file, number, line, after + line[len(code) :])


def _changes(code: str) -> Iterator[str]:
    for operator, others in _OPERATORS.items():
        for found in re.finditer(re.escape(operator), code):
            for other in others:
                yield code[: found.start()] + other + code[found.end() :]
    for found in _NUMBER.finditer(code):
        if found[1] not in ("16", "32", "64", "128", "256", "512") or "[" not in code:
            for other in _other_numbers(found[1]):
                yield code[: found.start()] + other + code[found.end() :]
    if _STATEMENT.match(code.rstrip()) and not _DECLARATION.match(code):
        yield code[: len(code) - len(code.lstrip())] + ";"
    if condition := _IF.search(code):
        yield code[: condition.start(1)] + f"!({condition[1]})" + code[condition.end(1) :]


def _other_numbers(number: str) -> list[str]:
    if "." in number:
        return [f"2 * {number}"]
    return ["1"] if number == "0" else [str(int(number) + 1), str(int(number) - 1)]


class Bench:
    """Where mutants are built, each in a folder of its own, with the objects of what is whole."""

    def __init__(self, folder: Path, timeout: float) -> None:
        """Build the whole sources once for every stage, and see that the checks pass."""
        self._folder, self._timeout = folder, timeout
        for stage in range(len(STAGES)):
            whole = folder / f"whole-{stage}"
            whole.mkdir()
            for source in (
                *(f"native/{name}.c" for name in SOURCES),
                *(f"{CHECKS}/{name}.c" for name in PROGRAMS),
            ):
                done = self._compile(ROOT / source, whole / f"{Path(source).stem}.o", stage)
                assert done.returncode == 0, done.stderr.decode()
            assert self._passes(whole, whole, stage), f"the checks fail as they are: {whole}"

    def verdict(self, mutant: Mutant, index: int) -> str:
        """ "found", "survived", or "invalid" where it does not compile."""
        own = self._folder / f"mutant-{index}"
        tree = own / "native"
        shutil.copytree(ROOT / "native", tree)
        changed = own / mutant.file
        lines = changed.read_text().splitlines()
        lines[mutant.number - 1] = mutant.after
        changed.write_text("\n".join(lines) + "\n")
        stem = Path(mutant.file).stem if mutant.file.endswith(".c") else "kernels"
        stages = (0, 1, 2) if stem == "pool" else (0, 1)
        try:
            for stage in stages:
                source = tree / f"{stem}.c"
                if self._compile(source, own / f"{stem}.o", stage).returncode:
                    return "invalid"
                if not self._passes(own, self._folder / f"whole-{stage}", stage):
                    return "found"
            return "survived"
        finally:
            shutil.rmtree(own)

    def _compile(self, source: Path, to: Path, stage: int) -> subprocess.CompletedProcess[bytes]:
        command = ["cc", *FLAGS, *STAGES[stage], "-c", str(source), "-o", str(to)]
        return subprocess.run(command, capture_output=True, check=False)

    def _passes(self, own: Path, whole: Path, stage: int) -> bool:
        """Link both programs, of own objects where there are some, and run them."""
        for check, parts in PROGRAMS.items():
            if own != whole and not any((own / f"{part}.o").exists() for part in parts):
                continue
            objects = [
                str((own if (own / f"{part}.o").exists() else whole) / f"{part}.o")
                for part in (check, *parts)
            ]
            program = own / check
            command = ["cc", *STAGES[stage], *objects, "-o", str(program), "-lm", "-lpthread"]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return False
            try:
                done = subprocess.run(
                    [str(program)],
                    capture_output=True,
                    timeout=self._timeout * (1 + 4 * min(stage, 1)),
                    env=os.environ | {"ASAN_OPTIONS": "detect_stack_use_after_return=0"},
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False
            if done.returncode:
                return False
        return True


def equivalents() -> dict[str, str]:
    """Mutant's name -> why it changes nothing; of lines `REASON: …` and the names below each."""
    found, reason = {}, ""
    for line in EQUIVALENT.read_text().splitlines():
        if line.startswith("REASON: "):
            reason = line.removeprefix("REASON: ")
        elif line.strip():
            found[line.strip()] = reason
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", nargs="+", default=FILES)
    parser.add_argument("--sample", type=int, default=300, help="0: every mutant")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=30, help="seconds of a program")
    args = parser.parse_args(arguments)
    mutants = [mutant for file in args.files for mutant in mutants_of(file)]
    if args.sample and args.sample < len(mutants):
        mutants = random.Random(args.seed).sample(mutants, args.sample)
    known, counts, survivors = equivalents(), Counter[str](), list[str]()
    with (
        tempfile.TemporaryDirectory(prefix="native-mutants-") as folder,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        bench = Bench(Path(folder), args.timeout)
        for mutant, verdict in zip(
            mutants, pool.map(bench.verdict, mutants, range(len(mutants))), strict=True
        ):
            if verdict == "survived" and mutant.name in known:
                verdict = "equivalent"
            counts[verdict] += 1
            if verdict == "survived":
                survivors.append(mutant.name)
                print(f"{mutant.file}:{mutant.number}", mutant.name, sep="\n  ", flush=True)
    judged = counts["found"] + counts["survived"]
    share = counts["found"] / max(1, judged)
    print(f"{counts['found']} of {judged} found ({share:.1%}); equivalent: {counts['equivalent']}, "
          f"not C: {counts['invalid']}")  # fmt: skip
    return int(share < PASS_MARK)


if __name__ == "__main__":
    sys.exit(main())
