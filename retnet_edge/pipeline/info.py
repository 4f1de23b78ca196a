"""What a bundle or a checkpoint holds, as plain data for a table or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from retnet_edge.config import CONFIG_BYTES
from retnet_edge.errors import InputError
from retnet_edge.files import read_input
from retnet_edge.model.table_of_contents import read_table_of_contents
from retnet_edge.runtime.bundle.manifest import MANIFEST_FILE, GraphSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_NO_DIGEST = "none: made by an older version, so a changed manifest is not noticed"
_NUMBERS = (b"[", b"{")  # γ and θ, which no table has room for

Facts = dict[str, dict[str, Any]]


def info(path: str | Path) -> Facts:
    """Tables (title -> name -> value) of the bundle, packed file or checkpoint at `path`.

    A bundle is opened with all of its checks; of a packed file, header and manifest are checked; of
    a checkpoint, config.json and the header of model.safetensors are read. Raises InputError where
    `path` is none of these, or does not hold up.
    """
    from retnet_edge.runtime.bundle.packed import is_packed

    path = Path(path)
    if is_packed(path) or (path / MANIFEST_FILE).exists():
        return _bundle(path)
    if (path / CONFIG_FILE).exists():
        return _checkpoint(path)
    what = "has neither" if path.is_dir() else "is not a directory with"
    raise InputError(
        f"{path} {what} {MANIFEST_FILE} (a bundle) {'nor' if path.is_dir() else 'or'} "
        f"{CONFIG_FILE} (a checkpoint)"
    )


def _bundle(path: Path) -> Facts:
    from retnet_edge.runtime.bundle.packed import NAMES, PackedBundle, open_bundle

    bundle = open_bundle(path)
    manifest = bundle.manifest
    verification = manifest.verification
    facts: Facts = {
        "bundle": {
            "path": str(path),
            "bytes on disk": bundle.bytes_on_disk,
            "manifest sha256": manifest.manifest_sha256 or _NO_DIGEST,
            "verification": verification.status,
            **({"reasons": list(verification.reasons)} if verification.reasons else {}),
        },
        "model": {
            "kind": manifest.model.kind,
            "parameters": manifest.model.parameters,
            "vocabulary": manifest.model.vocab_size,
            **_scalars(manifest.model.config),
        },
        "state": {
            "tensors": len(manifest.states),
            "bytes a sequence after 1 token": manifest.state_bytes(1),
            "bytes a sequence after 100,000 tokens": manifest.state_bytes(100_000),
        },
        "quantization": {
            "recipe": manifest.quantization.recipe,
            "quantized tensors": len(manifest.quantization.tensors),
        },
        "graphs": _graphs(manifest.graphs),
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "provenance": {
            "checkpoint sha256": manifest.provenance.checkpoint_sha256,
            **manifest.provenance.versions,
        },
    }
    if isinstance(bundle, PackedBundle):
        facts["sections"] = {
            NAMES.get(kind, f"kind {kind}"): section.size
            for kind, section in bundle.sections.items()
        }
    return facts


def _graphs(graphs: Sequence[GraphSpec]) -> dict[str, str]:
    """A line a file; a native plan serves both kinds of call."""
    kinds: dict[str, list[str]] = {}
    for graph in graphs:
        kinds.setdefault(graph.file, []).append(graph.kind)
    return {
        graph.file: f"{' and '.join(kinds[graph.file])} for {graph.backend}, {_operators(graph)}"
        for graph in graphs
    }


def _operators(graph: GraphSpec) -> str:
    """What the graph asks of its backend."""
    if graph.backend == "native":
        return f"on {', '.join(graph.external_data)}"
    if (found := graph.delegation) is not None:
        return (
            f"{found.delegated} operators in {found.subgraphs} XNNPACK subgraph(s), "
            f"{sum(found.rest.values())} outside"
        )
    needs = f", needs {graph.needs}" if graph.needs else ""
    sets = (f"{name or 'ai.onnx'} {v}" for name, v in graph.operator_sets.items())
    return f"operators {', '.join(sets)}{needs}"


def _checkpoint(path: Path) -> Facts:
    config = _scalars_of(path / CONFIG_FILE)
    weights = path / WEIGHTS_FILE
    if not weights.exists():
        raise InputError(f"{weights} is missing: a checkpoint has a {CONFIG_FILE} and it")
    tensors = read_table_of_contents(weights)
    sizes = [math.prod(tensor.shape) for tensor in tensors.values()]
    return {
        "checkpoint": {
            "path": str(path),
            "parameters": sum(sizes),
            "tensors": len(tensors),
            "dtypes": ", ".join(sorted({tensor.dtype for tensor in tensors.values()})),
            "bytes of weights": weights.stat().st_size,
        },
        "config": config,
    }


def _scalars(config: dict[str, Any]) -> dict[str, Any]:
    """The config without its lists of numbers (γ and θ), which no table has room for."""
    return {name: value for name, value in config.items() if not isinstance(value, list | dict)}


def _scalars_of(path: Path) -> dict[str, Any]:
    """`_scalars` of a config.json; what it leaves out is not made into objects at all."""
    try:
        fields = msgspec.json.decode(
            read_input(path, CONFIG_BYTES, "a configuration"), type=dict[str, msgspec.Raw]
        )
        return {
            name: msgspec.json.decode(value)
            for name, value in fields.items()
            if not bytes(value).startswith(_NUMBERS)
        }
    except InputError:
        raise
    except msgspec.ValidationError as error:
        raise InputError(f"{path} does not hold a JSON object: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
