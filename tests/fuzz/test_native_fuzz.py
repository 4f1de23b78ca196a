"""The fuzzers in C run, and would tell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("native_fuzz.py")
TREE = ("native", "tests/fuzz", "tests/runtime/backends")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def fuzz(*arguments: str, fuzzer: Path = FUZZER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(fuzzer), *arguments], capture_output=True, text=True, check=False
    )


def numbers(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr[-3000:]
    return [int(word) for word in done.stdout.split() if word.isdecimal()]


def test_some_models_and_calls() -> None:
    cases, ran, refused = numbers(fuzz("--target", "engine", "--cases", "1500", "--seed", "7"))
    assert cases == ran + refused == 1500
    assert min(ran, refused) > 300


def test_some_packed_files_and_states() -> None:
    found = numbers(fuzz("--target", "packed", "--cases", "4000", "--seed", "7"))
    assert found[0] == 4000
    assert min(found[1:]) > 250
    assert sum(found[1:]) >= 4000  # what is neither is read as both


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("file.c", " || s->bytes > size - s->offset", ""),
        ("state.c", "size != l->whole", "size < 100"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, file: str, old: str, new: str) -> None:
    """A check that is left out of the library; the case that shows it is told."""
    for part in TREE:
        shutil.copytree(FUZZER.parents[2] / part, tmp_path / part)
    source = tmp_path / "native" / file
    text = source.read_text()
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    fuzzer = tmp_path / "tests" / "fuzz" / FUZZER.name
    done = fuzz("--target", "packed", "--cases", "40000", fuzzer=fuzzer)
    assert done.returncode == 1
    assert "ERROR: AddressSanitizer" in done.stderr
    assert int(done.stderr.split("\ncase ")[1].split()[0]) > 0
