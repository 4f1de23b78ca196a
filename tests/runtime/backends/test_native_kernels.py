"""The C of the native backend by itself, under sanitizers and on ARM.

`check_kernels.c`: kernels and pool against their definitions; `check_engine.c`: the engine against
the model's; `check_refused.c`: plans and calls that it refuses; `check_callers.c`: several threads
on one engine, and a forked process; `check_shared.c`: several threads on one packed file and one
state file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = (
    *("check_kernels.c", "check_engine.c", "check_refused.c", "check_callers.c"),
    "check_shared.c",
)
SOURCES = tuple(sorted(f"native/{path.name}" for path in (ROOT / "native").glob("*.c")))
SANITIZERS = {
    "memory": [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=undefined,float-cast-overflow",
    ],
    "threads": ["-fsanitize=thread"],
}


def flags() -> list[str]:
    """What the package is built with."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    (extension,) = settings["ext-modules"]
    return [*extension["extra-compile-args"], "-Wall", "-Wextra", "-Werror"]


def build(compiler: str, folder: Path, *options: str) -> list[Path]:
    """All programs, over one library of the sources."""

    def cc(*arguments: str | Path) -> None:
        command = [compiler, *flags(), *options, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    objects = [folder / f"{Path(source).stem}.o" for source in SOURCES]
    for source, to in zip(SOURCES, objects, strict=True):
        cc("-c", source, "-o", to)
    programs = [folder / Path(name).stem for name in PROGRAMS]
    for name, program in zip(PROGRAMS, programs, strict=True):
        source = f"tests/runtime/backends/{name}"
        # GCC 12 for ARM breaks down at -O3 over a check that has nothing to do with ours
        cc("-O1", source, *objects, "-o", program, "-lm", "-lpthread")
    return programs


def run(*command: str | Path) -> list[str]:
    """What it printed: the names of the kernels that were checked, and what is wrong with them.

    Address sanitizer's copies of the stack lie on no 64 bytes, which AVX-512 asks for (GCC's bug
    110027).
    """
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ASAN_OPTIONS": "detect_stack_use_after_return=0"},
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip(
            "this sanitizer does not know this kernel's addresses: vm.mmap_rnd_bits=28 helps"
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt install gcc")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_programs(sanitizer: str, tmp_path: Path) -> None:
    kernels, engine, refused, callers, shared = build("cc", tmp_path, "-g", *SANITIZERS[sanitizer])
    sets = run(kernels)
    assert sets[-1] == "plain"
    assert run(engine) == sets
    assert run(refused) == run(callers) == run(shared) == []


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None or shutil.which("qemu-aarch64") is None,
    reason="apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user runs it",
)
def test_programs_on_arm(tmp_path: Path) -> None:
    kernels, engine, refused, callers, shared = build("aarch64-linux-gnu-gcc", tmp_path, "-static")
    assert run("qemu-aarch64", kernels) == run("qemu-aarch64", engine) == ["neon", "plain"]
    for program in (refused, callers, shared):
        assert run("qemu-aarch64", program) == []
