"""Writing a bundle: whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from retnet_edge.errors import DISK_FULL, InputError, is_disk_full
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.files import file_entry, regular_file
from retnet_edge.runtime.manifest import MANIFEST_FILE, Manifest, encode

_BESIDE = ".{name}.{token}.partial"  # a file or folder until it is whole; token: 8 hex digits


def check_target(target: Path) -> None:
    """Raises InputError where a bundle cannot be made at `target`: something is, or no folder."""
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already: name a new directory or remove it first")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a directory: {target.name} cannot be made in it")


@contextmanager
def new_bundle(target: Path) -> Iterator[Path]:
    """A folder to build a bundle in, which becomes `target` when the block ends well.

    The folder is hidden and lies beside `target`. On an exception, Ctrl-C included, it is removed
    and nothing is left; a second Ctrl-C does not stop that. Raises InputError where `target` exists
    already, where the folder that it is to lie in does not, and where the disk is full.
    """
    check_target(target)
    staging = target.parent / _BESIDE.format(name=target.name, token=secrets.token_hex(4))
    try:
        staging.mkdir()
        yield staging
        _sync_tree(staging)
        staging.rename(target)
        _sync(target.parent)
    except BaseException as error:
        with _no_signals():
            written = _bytes_in(staging)
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, Exception) and is_disk_full(error):
            raise InputError(
                f"{target}: {DISK_FULL} in {target.parent}: needs more than the {written} bytes "
                "that fitted; nothing was written"
            ) from error
        if isinstance(error, OSError) and target.exists():
            raise InputError(f"{target} exists already: it was made meanwhile") from error
        raise


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json with `files` = size and SHA-256 of every other file below `folder`.

    What a killed `replace_file` left is removed first. Returns the manifest as written. Raises
    InputError for a symlink, or a file whose name a bundle may not hold.
    """
    for left_over in folder.rglob(_BESIDE.format(name="*", token="????????")):
        if not left_over.is_dir():
            left_over.unlink()
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST_FILE and (path.is_symlink() or not path.is_dir()):
            files[name] = file_entry(regular_file(folder, name, folder))
    manifest = msgspec.structs.replace(manifest, files=files)
    replace_file(folder / MANIFEST_FILE, encode(manifest))
    return manifest


def update_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with some of its manifest's fields replaced and `files` computed anew.

    For reports and verdicts: graphs, weights and tokenizer must be what they were when the bundle
    was opened, else InputError, and the manifest on disk stays as it was.
    """
    manifest = msgspec.structs.replace(bundle.manifest, **changes)
    fixed = {manifest.tokenizer.file}
    for graph in manifest.graphs:
        fixed |= {graph.file, *graph.external_data}
    for name in sorted(fixed):
        if file_entry(bundle.file(name)) != bundle.manifest.files[name]:
            raise InputError(f"{bundle.path / name} was changed since the bundle was opened")
    return Bundle(bundle.path, write_manifest(bundle.path, manifest))


def remove_bundle(path: Path) -> None:
    """Remove a bundle, which Ctrl-C does not stop."""
    with _no_signals():
        shutil.rmtree(path, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, sync, and rename: a reader sees the old file or the new."""
    beside = path.with_name(_BESIDE.format(name=path.name, token=secrets.token_hex(4)))
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _no_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM are ignored in the block (they reach the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
