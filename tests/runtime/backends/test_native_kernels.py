"""The C of the native backend by itself, under sanitizers and on ARM.

`check_kernels.c`: kernels and pool against their definitions; `check_engine.c`: the engine against
the model's, what it refuses, several callers, a forked process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = {
    "check_kernels.c": ["native/kernels.c", "native/pool.c"],
    "check_engine.c": ["native/retnet.c", "native/check.c", "native/kernels.c", "native/pool.c"],
}
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


def build(compiler: str, name: str, program: Path, *options: str) -> None:
    sources = [f"tests/runtime/backends/{name}", *PROGRAMS[name]]
    done = subprocess.run(
        [compiler, *flags(), *options, *sources, "-o", str(program), "-lm", "-lpthread"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


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
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_programs(sanitizer: str, name: str, tmp_path: Path) -> None:
    build("cc", name, tmp_path / "check", "-g", *SANITIZERS[sanitizer])
    assert run(tmp_path / "check")[-1] == "plain"


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None or shutil.which("qemu-aarch64") is None,
    reason="apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user runs it",
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_on_arm(name: str, tmp_path: Path) -> None:
    build("aarch64-linux-gnu-gcc", name, tmp_path / "check", "-static")
    assert run("qemu-aarch64", tmp_path / "check") == ["neon", "plain"]
