"""Finding the weights that `retnet-edge prepare` packed for this machine (`prepare.py`).

Packed weights are right for one CPU and one version of ONNX Runtime, so the folder's record names
both; a session takes the folder where the record fits and the bundle's own graph where it does not.
"""

from __future__ import annotations

import hashlib
import mmap
import platform
from pathlib import Path

import msgspec
import onnxruntime

from retnet_edge.errors import InputError
from retnet_edge.files import FileEntry, regular_file
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.machine import processor

GRAPH_FILE = "graph.onnx"
PACKED_FILE = "packed.bin"
RECORD_FILE = "prepared.json"
_RECORD_VERSION = 1
_MAPPED_BYTES = 32 << 20  # at a time: what is mapped counts as resident


class PrepackKey(msgspec.Struct, frozen=True):
    """What packed weights are right for."""

    version: int
    bundle: str
    graph: str
    machine: str
    onnxruntime: str


class PrepackRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The folder's `prepared.json`: what its files are right for, and their sizes and hashes."""

    key: PrepackKey
    files: dict[str, FileEntry]


def prepared_folder(bundle: Bundle) -> Path:
    """Where the bundle's packed weights lie, if it was prepared."""
    path = bundle.path.resolve()
    return path.with_name(f"{path.name}.prepared")


def find_prepared(bundle: Bundle, graph: str) -> Path | None:
    """The packed form of the bundle's graph file `graph` that fits this machine, if there is one.

    Raises InputError where it fits, but was damaged since.
    """
    folder = prepared_folder(bundle)
    try:
        record = msgspec.json.decode((folder / RECORD_FILE).read_bytes(), type=PrepackRecord)
    except (OSError, msgspec.DecodeError):
        return None
    if record.key != prepack_key(bundle, graph) or record.files.keys() != {GRAPH_FILE, PACKED_FILE}:
        return None
    for name, entry in record.files.items():
        path = regular_file(folder, name, folder)
        if path.stat().st_size != entry.size or _hash_mapped(path) != entry.sha256:
            raise InputError(
                f"{path} was changed since it was prepared: run retnet-edge prepare {bundle.path} "
                "again, or remove the folder"
            )
    return folder / GRAPH_FILE


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
    with path.open("rb") as file:
        for start in range(0, size, _MAPPED_BYTES):
            length = min(_MAPPED_BYTES, size - start)
            access = mmap.ACCESS_READ
            with mmap.mmap(file.fileno(), length, access=access, offset=start) as mapped:
                if hasattr(mmap, "MADV_HUGEPAGE"):
                    mapped.madvise(mmap.MADV_HUGEPAGE)
                digest.update(mapped)
    return digest.hexdigest()
