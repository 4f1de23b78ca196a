"""`retnet-edge prepare`: weights packed for this machine once, and mapped from then on.

ONNX Runtime packs every quantized matrix for the CPU when it loads a graph: a second copy, in
anonymous memory, made anew in every process. Here it is made once and stored beside the bundle, in
`<bundle>.prepared`, from where it is mapped: the memory is the page cache's. Packed weights are
right for one CPU and one version of ONNX Runtime, so the folder's record names both; a session
takes the folder where the record fits and the bundle's own graph where it does not.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnxruntime

from retnet_edge.errors import DISK_FULL, InputError, is_disk_full
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.files import file_entry, regular_file
from retnet_edge.runtime.machine import processor
from retnet_edge.runtime.manifest import FileEntry
from retnet_edge.runtime.ort_graph import main_graph, one_line

GRAPH_FILE = "graph.onnx"
PACKED_FILE = "packed.bin"
RECORD_FILE = "prepared.json"
_RECORD_VERSION = 1
_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph
_MAPPED_BYTES = 32 << 20  # at a time: what is mapped counts as resident


class _Key(msgspec.Struct, frozen=True):
    """What packed weights are right for."""

    version: int
    bundle: str
    graph: str
    machine: str
    onnxruntime: str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: _Key
    files: dict[str, FileEntry]


def prepare(bundle: str | Path, *, say: Callable[[str], None] = print) -> Path:
    """Pack the weights of the bundle's ONNX Runtime graph for this machine; the folder they are in.

    An older folder is replaced. Raises InputError for a bundle that does not open or has no graph
    for ONNX Runtime, one that ONNX Runtime cannot load, and where the disk is full.
    """
    opened = Bundle.open(bundle)
    _, graph = main_graph(opened)
    target = prepared_folder(opened)
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        staging.mkdir()
        say(f"packing {graph.file} for {processor()}")
        _pack(opened.file(graph.file), staging)
        files = {name: file_entry(staging / name) for name in (GRAPH_FILE, PACKED_FILE)}
        record = msgspec.json.encode(_Record(_key(opened, graph.file), files))
        (staging / RECORD_FILE).write_bytes(record)
        for name in (*files, RECORD_FILE):
            _sync_and_forget(staging / name)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, Exception) and is_disk_full(error):
            raise InputError(f"{target}: {DISK_FULL}: nothing was prepared") from error
        raise
    return target


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
        record = msgspec.json.decode((folder / RECORD_FILE).read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError):
        return None
    if record.key != _key(bundle, graph) or record.files.keys() != {GRAPH_FILE, PACKED_FILE}:
        return None
    for name, entry in record.files.items():
        path = regular_file(folder, name, folder)
        if path.stat().st_size != entry.size or _hash_mapped(path) != entry.sha256:
            raise InputError(
                f"{path} was changed since it was prepared: run retnet-edge prepare {bundle.path} "
                "again, or remove the folder"
            )
    return folder / GRAPH_FILE


def _pack(graph: Path, folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / GRAPH_FILE)
    for name, value in (
        ("save_external_prepacked_constant_initializers", "1"),
        ("optimized_model_external_initializers_file_name", PACKED_FILE),
        ("optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_BYTES)),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    try:
        onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot pack the graph: "
            f"{one_line(error)}"
        ) from error


def _key(bundle: Bundle, graph: str) -> _Key:
    """The CPU by its name and flags: packing follows the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    cpu = f"{platform.machine()} {processor()} {flags}"
    return _Key(
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


def _sync_and_forget(path: Path) -> None:
    """To the disk, and out of the page cache, where it came in small pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
