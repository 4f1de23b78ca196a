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
from pathlib import Path

import pytest
from conftest import native_extension

ROOT = Path(__file__).parents[3]
PROGRAMS = (
    *("check_kernels.c", "check_engine.c", "check_refused.c", "check_callers.c"),
    "check_shared.c",
)
SOURCES = tuple(sorted(f"native/{path.name}" for path in (ROOT / "native").glob("*.c")))
CROSS = {"gcc": "aarch64-linux-gnu-gcc", "clang": "clang --target=aarch64-linux-gnu"}
"""Compilers for ARM. Clang before 17 takes the new instructions as assembly (native/isa_arm.h)."""
ARM_SETS = ["i8mm", "dotprod", "neon", "plain"]
"""Kernels from the best on; a processor has those from some place on."""
ARM_CPUS = {
    "max": ARM_SETS,
    "cortex-a76": ARM_SETS[1:],
    "neoverse-n1": ARM_SETS[1:],
    "cortex-a53": ARM_SETS[2:],
    "cortex-a72": ARM_SETS[2:],
}
"""What QEMU emulates (`qemu-aarch64 -cpu help`), and the kernels that it has."""
SANITIZERS = {
    "memory": [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=undefined,float-cast-overflow",
    ],
    "threads": ["-fsanitize=thread"],
}


def flags() -> list[str]:
    """What the package is built with."""
    return [*native_extension()["extra-compile-args"], "-Wall", "-Wextra", "-Werror"]


def build(compiler: str, folder: Path, *options: str) -> list[Path]:
    """All programs, over one library of the sources."""

    def cc(*arguments: str | Path) -> None:
        command = [*compiler.split(), *flags(), *options, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    objects = [folder / f"{Path(source).stem}.o" for source in SOURCES]
    for source, to in zip(SOURCES, objects, strict=True):
        strict = ["-Wconversion"] if source == "native/kernels.c" else []
        cc(*strict, "-c", source, "-o", to)
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
    options = "detect_stack_use_after_return=0"
    if str(command[0]).startswith("qemu"):
        options += ":detect_leaks=0"  # which needs ptrace, that QEMU does not emulate
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ASAN_OPTIONS": options},
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


def needs_cross(compiler: str) -> None:
    """Skip where nothing compiles for ARM or runs what was compiled."""
    for program in (compiler.split()[0], "aarch64-linux-gnu-gcc", "qemu-aarch64"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: `make debian-arm` installs it")


@pytest.fixture(scope="module", params=CROSS)
def arm_programs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """The programs for ARM, by each compiler."""
    compiler = CROSS[request.param]
    needs_cross(compiler)
    return build(compiler, tmp_path_factory.mktemp(request.param), "-static")


@pytest.mark.parametrize("cpu", ARM_CPUS)
def test_arm_runs_the_kernels_that_its_processor_has(arm_programs: list[Path], cpu: str) -> None:
    kernels, engine, *_ = arm_programs
    emulator = ("qemu-aarch64", "-cpu", cpu)
    assert run(*emulator, kernels) == run(*emulator, engine) == ARM_CPUS[cpu]


def test_arm_refuses_and_shares_as_others_do(arm_programs: list[Path]) -> None:
    for program in arm_programs[2:]:
        assert run("qemu-aarch64", program) == []


def test_arm_under_sanitizers(tmp_path: Path) -> None:
    needs_cross(CROSS["gcc"])
    kernels, engine, *_ = build(CROSS["gcc"], tmp_path, "-g", "-O1", *SANITIZERS["memory"])
    emulator = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
    assert run(*emulator, kernels) == run(*emulator, engine) == ARM_SETS
