"""The C library by itself: bytes of the stripped shared library, its names, and those it needs.

    python -m benchmarks.native_sizes

Built by CMake as users build it, for this machine and for 64-bit ARM with pages of 16 KiB, as on
Android (Debian: gcc-aarch64-linux-gnu). A row is left out where its compiler is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Build(NamedTuple):
    """What a row is built with: the prefix of GNU's tools, and options of CMake."""

    prefix: str
    options: tuple[str, ...]


BUILDS = {
    "this machine": Build("", ()),
    "64-bit ARM": Build(
        "aarch64-linux-gnu-",
        (
            f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'native/cmake/aarch64-linux-gnu.cmake'}",
            "-DRETNET_PAGE_SIZE=16384",
        ),
    ),
}


def run(*command: str | Path) -> str:
    """Standard output. Raises CalledProcessError, after what was said."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-2000:] + done.stderr[-2000:])
    done.check_returncode()
    return done.stdout


def library(build: Build, folder: Path) -> Path:
    """The stripped shared library, built in `folder`."""
    run("cmake", "-S", ROOT / "native", "-B", folder, *build.options, "-DRETNET_BUILD_CLI=OFF")
    run("cmake", "--build", folder)
    stripped = folder / "stripped.so"
    run(f"{build.prefix}strip", "-o", stripped, (folder / "libretnet.so").resolve())
    return stripped


def names(of: Path, which: str) -> list[str]:
    """Dynamic symbols that nm lists, in order and without versions."""
    lines = run("nm", "-D", which, of).splitlines()
    return sorted({line.split()[-1].split("@")[0] for line in lines})


def main() -> None:
    """The command line."""
    rows, needed = [], {}
    for name, build in BUILDS.items():
        if shutil.which(f"{build.prefix}gcc") is None:
            continue
        with tempfile.TemporaryDirectory(prefix="native-sizes-") as folder:
            found = library(build, Path(folder))
            exported, external = names(found, "--defined-only"), names(found, "--undefined-only")
            rows.append(
                f"| {name} | {found.stat().st_size:,} | {len(exported)} | {len(external)} |"
            )
            needed[name] = external
    print("| | bytes, stripped | names | names of others |", "|---|---|---|---|", *rows, sep="\n")
    for name, external in needed.items():
        print(f"\n{name} needs: {' '.join(external)}")


if __name__ == "__main__":
    main()
