"""Finding the weights that `retnet-edge prepare` packed for this machine (`prepare.py`).

Packed weights are right for one CPU and one version of ONNX Runtime, so the folder's record names
both; a session takes the folder where the record fits and the bundle's own graph where it does not.

That packed bytes are made of the bundle's weights cannot be seen in them without packing again: the
record is therefore sealed with a secret of this user (HMAC-SHA256), and a session takes no folder
but one that this user's own `prepare` made, of files with the bundle's hashes (decision 0059).
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import os
import platform
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import onnxruntime

from retnet_edge.atomic import replace_file
from retnet_edge.errors import InputError
from retnet_edge.files import FileEntry, open_regular, read_regular, regular_file
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.machine import processor

GRAPH_FILE = "graph.onnx"
PACKED_FILE = "packed.bin"
RECORD_FILE = "prepared.json"
# 1: packed without `session_options`, which changed int8-static-16; 2: not sealed
_RECORD_VERSION = 3
_RECORD_BYTES = 1 << 16
_SECRET_BYTES = 32
_MAPPED_BYTES = 32 << 20  # at a time: what is mapped counts as resident


class PrepackKey(msgspec.Struct, frozen=True):
    """What packed weights are right for."""

    version: int
    bundle: str
    graph: str
    machine: str
    onnxruntime: str


class PrepackRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The folder's `prepared.json`: what its files are right for, and their sizes and hashes.

    seal: HMAC-SHA256 (hex) of the rest under the secret of who made the folder.
    """

    key: PrepackKey
    files: dict[str, FileEntry]
    seal: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""


def prepared_folder(bundle: Bundle) -> Path:
    """Where the bundle's packed weights lie, if it was prepared."""
    path = bundle.path.resolve()
    return path.with_name(f"{path.name}.prepared")


def find_prepared(bundle: Bundle, graph: str) -> Path | None:
    """The packed form of the bundle's graph file `graph` that fits this machine, if there is one.

    None as well where another user made it, or where a killed process left it without some of its
    files. Raises InputError where it fits, but was damaged since.
    """
    folder = prepared_folder(bundle)
    try:
        record_file = regular_file(folder, RECORD_FILE, folder)
        raw = read_regular(record_file, _RECORD_BYTES, "the record of a prepared folder")
        record = msgspec.json.decode(raw, type=PrepackRecord)
    except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    except InputError:  # none there, or something that no `prepare` makes
        return None
    if record.key != prepack_key(bundle, graph) or record.files.keys() != {GRAPH_FILE, PACKED_FILE}:
        return None
    secret = machine_secret()
    if secret is None or not hmac.compare_digest(sealed(record, secret).seal, record.seal):
        return None
    if not all((folder / name).is_symlink() or (folder / name).exists() for name in record.files):
        return None
    for name, entry in record.files.items():
        path = regular_file(folder, name, folder)
        if path.stat().st_size != entry.size or _hash_mapped(path) != entry.sha256:
            raise InputError(
                f"{path} was changed since it was prepared: run retnet-edge prepare {bundle.path} "
                "again, or remove the folder"
            )
    return folder / GRAPH_FILE


def sealed(record: PrepackRecord, secret: bytes) -> PrepackRecord:
    """The record with its seal under `secret`."""
    bare = msgspec.json.encode(msgspec.structs.replace(record, seal=""), order="sorted")
    return msgspec.structs.replace(record, seal=hmac.digest(secret, bare, "sha256").hex())


def machine_secret(*, make: bool = False) -> bytes | None:
    """What this user's prepared folders are sealed with; None where there is none yet.

    32 random bytes in `$XDG_STATE_HOME/retnet-edge/prepare.key` (without the variable, in
    `~/.local/state`), which nobody else can read. make: make them, or raise InputError.
    """
    try:
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home
        home = None
    path = None if home is None else Path(home) / "retnet-edge" / "prepare.key"
    try:
        found = _read_secret(path)
        if found is None and make and path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, secrets.token_bytes(_SECRET_BYTES), mode=0o600)
            found = _read_secret(path)  # of two that are made at once, the one that stays
    except OSError as error:
        if not make:
            return None
        raise InputError(
            f"{path}: the secret of prepared folders cannot be kept there: {error.strerror}; name "
            "another folder in XDG_STATE_HOME"
        ) from error
    if found is None and make:
        raise InputError("prepare needs a home directory, or XDG_STATE_HOME, for its secret")
    return found


def _read_secret(path: Path | None) -> bytes | None:
    """The secret, where it is one that its owner alone can have written."""
    if path is None:
        return None
    with suppress(FileNotFoundError, NotADirectoryError), open_regular(path) as file:
        status = os.fstat(file.fileno())
        mine = not hasattr(os, "geteuid") or (
            status.st_uid in (os.geteuid(), 0) and status.st_mode & 0o077 == 0
        )
        if mine and status.st_size == _SECRET_BYTES:
            return file.read()
    return None


def prepack_key(bundle: Bundle, graph: str) -> PrepackKey:
    """The CPU by its name and flags: packing follows the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    cpu = f"{platform.machine()} {processor()} {flags}"
    return PrepackKey(
        _RECORD_VERSION,
        bundle.fingerprint,
        graph,
        hashlib.sha256(cpu.encode()).hexdigest(),
        onnxruntime.__version__,
    )


def _hash_mapped(path: Path) -> str:
    """SHA-256 of a file, read through mappings that ask for huge pages.

    The kernel fills its page cache with them then, and ONNX Runtime's own mapping finds them there.
    """
    digest, size = hashlib.sha256(), path.stat().st_size
    with open_regular(path) as file:
        for start in range(0, size, _MAPPED_BYTES):
            length = min(_MAPPED_BYTES, size - start)
            access = mmap.ACCESS_READ
            with mmap.mmap(file.fileno(), length, access=access, offset=start) as mapped:
                if hasattr(mmap, "MADV_HUGEPAGE"):
                    mapped.madvise(mmap.MADV_HUGEPAGE)
                digest.update(mapped)
    return digest.hexdigest()
