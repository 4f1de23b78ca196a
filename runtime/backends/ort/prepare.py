"""`retnet-edge prepare`: weights packed for this machine once, and mapped from then on.

ONNX Runtime packs every quantized matrix for the CPU when it loads a graph: a second copy, in
anonymous memory, made anew in every process. Here it is made once and stored beside the bundle, in
`<bundle>.prepared`, from where sessions map it (`prepacked.py`): the memory is the page cache's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnxruntime

from retnet_edge.atomic import replace_folder, work_folder
from retnet_edge.errors import DISK_FULL, InputError, is_disk_full, one_line
from retnet_edge.files import file_entry
from retnet_edge.progress import working
from retnet_edge.quiet import compiled_code_hushed
from retnet_edge.runtime.backends.ort.graph import main_graph
from retnet_edge.runtime.backends.ort.options import session_options
from retnet_edge.runtime.backends.ort.prepacked import (
    GRAPH_FILE,
    PACKED_FILE,
    RECORD_FILE,
    PrepackRecord,
    machine_secret,
    prepack_key,
    prepared_folder,
    sealed,
)
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Manifest
from retnet_edge.runtime.session.machine import processor

PACKED_A_SECOND = 1e8  # bytes of weights, roughly
_NOT_WRITTEN = "Failed to write external initializers"
_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph


def prepare(bundle: str | Path, *, say: Callable[[str], None] = print) -> Path:
    """Pack the weights of the bundle's ONNX Runtime graph for this machine; the folder they are in.

    An older folder is replaced; a process that is killed leaves the old one, the new one or none.
    Raises InputError for a bundle that does not open or has no graph for ONNX Runtime, one that
    ONNX Runtime cannot load, where the disk is full, and where this user's secret (`machine_secret`
    in `prepacked.py`) can be neither read nor made.
    """
    opened = Bundle.open(bundle)
    _, graph = main_graph(opened)
    target = prepared_folder(opened)
    key = machine_secret(make=True)
    with work_folder(target) as staging:
        weights = sum(opened.manifest.files[name].size for name in graph.external_data)
        label = f"packing {graph.file} for {processor()}"
        with working(label, weights / PACKED_A_SECOND, say):
            _pack(opened.file(graph.file), opened.manifest, staging)
        files = {name: file_entry(staging / name) for name in (GRAPH_FILE, PACKED_FILE)}
        record = sealed(PrepackRecord(prepack_key(opened, graph.file), files), key)
        (staging / RECORD_FILE).write_bytes(msgspec.json.encode(record))
        for name in (*files, RECORD_FILE):
            _sync_and_forget(staging / name)
        replace_folder(staging, target)
    return target


def _pack(graph: Path, manifest: Manifest, folder: Path) -> None:
    options = session_options(manifest)
    options.optimized_model_filepath = str(folder / GRAPH_FILE)
    for name, value in (
        ("save_external_prepacked_constant_initializers", "1"),
        ("optimized_model_external_initializers_file_name", PACKED_FILE),
        ("optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_BYTES)),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    try:
        # where the disk is full, ONNX Runtime prints a trace of its own before it raises
        with compiled_code_hushed():
            onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        if _NOT_WRITTEN in str(error) or is_disk_full(error):  # it does not say why
            raise InputError(
                f"{folder.parent}: {DISK_FULL}: ONNX Runtime could not write the packed weights; "
                "nothing was prepared"
            ) from error
        raise InputError(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot pack the graph: "
            f"{one_line(error)}"
        ) from error


def _sync_and_forget(path: Path) -> None:
    """To the disk, and out of the page cache, where it came in small pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
