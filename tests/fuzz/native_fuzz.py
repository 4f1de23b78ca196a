"""Build a fuzzer in C with sanitizers and run it: `native_fuzz.c`, `packed_fuzz.c`.

    python tests/fuzz/native_fuzz.py --target packed --cases 1000000 --seed 1
    python tests/fuzz/native_fuzz.py --target engine --seconds 60

The same seed is the same cases, one after another: `--seed N --cases 1` does case N again. With
`--libfuzzer SECONDS`, libFuzzer looks for cases by coverage instead, and keeps those that reach
something new in `--corpus` (Debian: apt install clang libclang-rt-dev; `make fuzz-tools`).
Exit status 1, and the end of what was said, where a sanitizer or a check of the program's own found
something, or a case took 10 seconds.
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
TARGETS = {"engine": "native_fuzz.c", "packed": "packed_fuzz.c"}
FLAGS = ["-std=c11", "-O1", "-g", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
LINKED = {
    "engine": [],
    # so that memory can run out
    "packed": [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "aligned_alloc")],
}
SANITIZERS = "address,undefined,float-cast-overflow"
MOST_BYTES = {"engine": 600, "packed": 96 << 10}
"""Of a case of libFuzzer's; for packed files `MOST_FILE` of packed_seed.h."""
FOUND = ROOT / "runs" / "fuzz" / "found"
ENVIRONMENT = {
    # AVX-512 asks for 64 bytes where GCC's copies of the stack have less (its bug 110027). A model
    # may ask for much, and is told that there is none.
    "ASAN_OPTIONS": "detect_stack_use_after_return=0:allocator_may_return_null=1"
    ":max_allocation_size_mb=512",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def sources(target: str) -> list[str]:
    """The fuzzer's own, and the library's, without programs."""
    library = sorted((ROOT / "native").glob("*.c"))
    return [
        f"tests/fuzz/{TARGETS[target]}",
        *(f"native/{path.name}" for path in library if "int main(" not in path.read_text()),
    ]


def build(program: Path, compiler: str, target: str, *options: str) -> None:
    """Compile the program. Raises CalledProcessError where the compiler fails."""
    command = [compiler, *FLAGS, *options, "-fno-sanitize-recover=all", *sources(target)]
    command += [*LINKED[target], "-o", str(program), "-lm", "-lpthread"]
    subprocess.run(command, cwd=ROOT, check=True)


def run(command: list[str]) -> int:
    """Run it; 0, or 1 after the end of its words."""
    shared = Path("/dev/shm")  # which may be one that no program can be run from
    parent = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="native-fuzz-", dir=parent) as folder:
        environment = {**os.environ, **ENVIRONMENT, "RETNET_FUZZ_FOLDER": folder}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(done.stderr[-6000:], file=sys.stderr)
        return 1
    print(done.stdout.strip() or done.stderr.strip().splitlines()[-1])
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, default="engine")
    parser.add_argument("--cases", type=int, help="20000, or with --seconds as many as fit")
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compiler", help="cc; clang with --libfuzzer")
    parser.add_argument("--libfuzzer", type=int, metavar="SECONDS")
    parser.add_argument("--corpus", type=Path, help="kept between runs of libFuzzer")
    args = parser.parse_args(arguments)
    compiler = args.compiler or ("clang" if args.libfuzzer else "cc")
    if shutil.which(compiler) is None:
        needed = "clang libclang-rt-dev" if args.libfuzzer else "gcc"
        print(f"{compiler} is missing (Debian: apt install {needed})", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="native-fuzz-") as name:
        program = Path(name) / "fuzz"
        if args.libfuzzer is None:
            build(program, compiler, args.target, f"-fsanitize={SANITIZERS}")
            cases = args.cases or (2**62 if args.seconds else 20_000)
            return run([str(program), str(cases), str(args.seed), str(args.seconds)])
        corpus = args.corpus or Path(name) / "corpus"
        for folder in (corpus, FOUND):
            folder.mkdir(parents=True, exist_ok=True)
        build(program, compiler, args.target, "-DLIBFUZZER", f"-fsanitize=fuzzer,{SANITIZERS}")
        options = [f"-max_total_time={args.libfuzzer}", f"-seed={args.seed}", "-timeout=10"]
        options += [f"-max_len={MOST_BYTES[args.target]}", f"-artifact_prefix={FOUND}/"]
        return run([str(program), *options, str(corpus)])


if __name__ == "__main__":
    sys.exit(main())
