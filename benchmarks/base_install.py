"""The base install: how large an environment without torch is, and that it generates text.

    python -m benchmarks.base_install runs/demo.edge

Builds the wheel, installs it with its base dependencies (versions of constraints.txt) into an
empty environment in a temporary folder, lists what takes the space and runs
`retnet-edge generate` there. Exit status 1: torch is importable, or nothing was generated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 600
LISTED = 10


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that knows nothing of the caller's Python environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        words = " ".join(map(str, command))
        raise SystemExit(f"{words}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def install(work: Path) -> Path:
    """Make the environment; return its interpreter. It holds no pip of its own."""
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, work / "dist", ROOT, cwd=work)
    (wheel,) = (work / "dist").glob("*.whl")
    venv.create(work / "venv", with_pip=False)
    python = work / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python")
    run(*pip, python, "install", "-qq", "-c", ROOT / "constraints.txt", wheel, cwd=work)
    return python


def print_sizes(site_packages: Path) -> None:
    """One row a package, largest first, as installed (compiled modules included)."""
    megabytes = {
        f"{found.metadata['Name']} {found.version}": sum(
            path.stat().st_size
            for path in (Path(str(file.locate())) for file in found.files or ())
            if path.is_file()
        )
        / 1e6
        for found in distributions(path=[str(site_packages)])
    }
    everything = [path for path in site_packages.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in everything) / 1e6
    largest = sorted(megabytes.items(), key=lambda item: -item[1])
    rest = largest[LISTED:]
    print(f"{'package':<32}{'MB':>8}")
    for name, size in largest[:LISTED]:
        print(f"{name:<32}{size:>8.1f}")
    if rest:
        print(f"{f'{len(rest)} more':<32}{sum(size for _, size in rest):>8.1f}")
    print(f"{f'site-packages, {len(everything)} files':<32}{total:>8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundle", type=Path, help="directory of a bundle, such as runs/demo.edge")
    parser.add_argument("--prompt", default="The old house stood at the end of the road, and")
    options = parser.parse_args()
    bundle = options.bundle.resolve()
    if not (bundle / "manifest.json").is_file():
        parser.error(f"{options.bundle} is no bundle: it has no manifest.json")

    with tempfile.TemporaryDirectory(prefix="retnet-edge-base-") as temporary:
        work = Path(temporary)
        python = install(work)
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        print_sizes(Path(run(python, "-c", where, cwd=work).strip()))

        find_torch = "import importlib.util; print(importlib.util.find_spec('torch'))"
        if run(python, "-c", find_torch, cwd=work).strip() != "None":
            raise SystemExit("torch is importable in the base install")

        command = python.with_name("retnet-edge")
        started = time.perf_counter()
        text = run(command, "generate", bundle, "--prompt", options.prompt, cwd=work)
        seconds = time.perf_counter() - started
        if not text.strip():
            raise SystemExit("retnet-edge generate printed nothing")
        print(f"\nwithout torch, {seconds:.1f} s from start to end:\n{text.strip()}")


if __name__ == "__main__":
    main()
