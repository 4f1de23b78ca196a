"""How many bytes a decode step has to move: every weight once, every state in and out."""

from __future__ import annotations

import math
import re

from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.external_data import external_data
from retnet_edge.runtime.bundle.manifest import Backend

_EMBEDDING = "embedding.weight"


def step_weight_bytes(bundle: Bundle, backend: Backend) -> int:
    """Bytes of the weights that one step of `backend`'s graph reads.

    An embedding that no product shares is not counted: a step reads one row of it. ONNX weights in
    external files count by their place, so what is shared counts once; of ExecuTorch programs, the
    file's size counts.
    """
    graph = bundle.manifest.graph_for(backend, "step")
    assert graph is not None
    if backend == "native":
        from retnet_edge.runtime.backends.native.session import open_model

        return int(open_model(bundle).info.step_bytes)
    if backend == "executorch":
        # the program's head is a packed copy of its own, also where the model ties it
        return bundle.manifest.files[graph.file].size - _embedding_bytes(bundle)
    tied = bundle.manifest.model.config.get("tie_embeddings", False)
    places = {}
    for data in external_data(bundle.path / graph.file):
        size = bundle.manifest.files[data.location].size
        if tied or not data.name.startswith(_EMBEDDING):
            places[data.location, data.offset] = data.length or size - data.offset
    return sum(places.values())


def step_bytes(bundle: Bundle, weights: int, *, position: int, batch: int = 1) -> int:
    """Bytes of a step at `position`: the weights that it reads (`step_weight_bytes`) once, the
    states of each sequence in and out."""
    return weights + 2 * batch * bundle.manifest.state_bytes(position)


def _embedding_bytes(bundle: Bundle) -> int:
    """Codes and scales of an ExecuTorch program's embedding, from its scheme's name (such as
    int8-group32)."""
    for tensor in bundle.manifest.quantization.tensors:
        if tensor.weight == _EMBEDDING and (found := re.match(r"int(\d+)", tensor.scheme)):
            rows, width = tensor.shape
            group = re.search(r"group(\d+)", tensor.scheme)
            scales = math.ceil(width / int(group[1])) if group else 1
            return rows * (width * int(found[1]) // 8 + scales * 4)
    config = bundle.manifest.model.config
    return int(bundle.manifest.model.vocab_size * config.get("d_model", 0) * 4)
