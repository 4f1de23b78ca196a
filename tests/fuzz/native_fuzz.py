"""Build `native_fuzz.c` with sanitizers and run it.

    python tests/fuzz/native_fuzz.py --cases 20000 --seed 1

The same seed is the same cases. With `--libfuzzer SECONDS`, libFuzzer looks for cases by coverage
instead (Debian: apt install clang). Exit status 1, and the end of what was said, where a sanitizer
or a check of the program's own found something; `--seed N --cases 1` does case N again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [
    "tests/fuzz/native_fuzz.c",
    *(f"native/{n}.c" for n in ("retnet", "check", "kernels", "pool")),
]
FLAGS = ["-std=c11", "-O1", "-g", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
SANITIZERS = "address,undefined,float-cast-overflow"
# AVX-512 asks for 64 bytes where GCC's copies of the stack have less (its bug 110027).
ENVIRONMENT = {"ASAN_OPTIONS": "detect_stack_use_after_return=0"}


def build(program: Path, compiler: str, *options: str) -> None:
    """Compile the program. Raises CalledProcessError where the compiler fails."""
    command = [compiler, *FLAGS, *options, "-fno-sanitize-recover=all", *SOURCES]
    subprocess.run([*command, "-o", str(program), "-lm", "-lpthread"], cwd=ROOT, check=True)


def run(command: list[str]) -> int:
    """Run it; 0, or 1 after the end of its words."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False
    )
    if done.returncode:
        print(done.stderr.replace("\r", "\n")[-6000:], file=sys.stderr)
        return 1
    print(done.stdout.strip() or done.stderr.strip().splitlines()[-1])
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--libfuzzer", type=int, metavar="SECONDS")
    args = parser.parse_args(arguments)
    compiler = "clang" if args.libfuzzer else "cc"
    if shutil.which(compiler) is None:
        print(f"{compiler} is missing (Debian: apt install clang, or gcc)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="native-fuzz-") as folder:
        program = Path(folder) / "native_fuzz"
        if args.libfuzzer:
            build(program, compiler, "-DLIBFUZZER", f"-fsanitize=fuzzer,{SANITIZERS}")
            options = [f"-max_total_time={args.libfuzzer}", f"-seed={args.seed}", "-max_len=600"]
            return run([str(program), *options, f"-artifact_prefix={folder}/"])
        build(program, compiler, f"-fsanitize={SANITIZERS}")
        return run([str(program), str(args.cases), str(args.seed)])


if __name__ == "__main__":
    sys.exit(main())
