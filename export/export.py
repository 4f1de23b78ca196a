"""`retnet-edge export`: a checkpoint becomes an fp32 bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import msgspec
import onnx_ir as ir

from retnet_edge.atomic import new_folder
from retnet_edge.config import encode_config
from retnet_edge.errors import InputError
from retnet_edge.export.contract import Flavour, lowerings, state_specs
from retnet_edge.export.golden import write_golden
from retnet_edge.export.onnx_graph import lower_onnx, lowering_seconds
from retnet_edge.lowering.onnx_files import graph_spec, save_models
from retnet_edge.model.checkpoint import TOKENIZER_FILE, Checkpoint, load_checkpoint
from retnet_edge.model.reference import Float64Reference
from retnet_edge.model.retnet import RetNet
from retnet_edge.progress import working
from retnet_edge.runtime.bundle.manifest import (
    NOT_VERIFIED,
    SCHEMA_VERSION,
    Backend,
    GraphSpec,
    Manifest,
    ModelSpec,
    Provenance,
    Quantization,
    StateSpec,
    TokenizerSpec,
    Tolerance,
)
from retnet_edge.runtime.bundle.writer import write_manifest
from retnet_edge.tokenizer import check_vocabulary
from retnet_edge.version import __version__

BACKENDS: dict[str, Backend] = {"onnx": "onnxruntime", "executorch": "executorch"}
"""What --to takes, and the backend that runs it."""
FLAVOURS = get_args(Flavour)
FP32_TOLERANCE = Tolerance(
    max_abs_logit_error=2e-4, perplexity_ratio=1.0001, mean_kl=1e-8, top1_agreement=1.0
)
GOLDEN_A_SECOND = 5e7  # parameters whose golden run takes a second, roughly
VERSIONS_OF = {
    "onnx": ("torch", "onnx", "onnxruntime", "numpy"),
    "executorch": ("torch", "torchao", "executorch", "numpy"),
}


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    to: Sequence[str] = ("onnx",),
    flavour: Flavour = "ort",
    say: Callable[[str], None] = print,
) -> Path:
    """Lower a checkpoint's step contract into a new fp32 bundle at `out`, and return its path.

    A RetNet gets step and prefill graphs for each backend in `to`, the Transformer baseline a step
    graph in ONNX. flavour: which operators the ONNX graphs may use. Raises InputError for a
    checkpoint that does not load or whose tokenizer is not the model's, a backend or flavour that
    is not known or cannot take the model, an `out` that exists.
    """
    check_backends(to)
    if flavour not in FLAVOURS:
        raise InputError(f"unknown flavour {flavour!r}; known: {', '.join(FLAVOURS)}")
    source, out = load_checkpoint(checkpoint), Path(out)
    if flavour != "ort" and not isinstance(source.model, RetNet):
        raise InputError(f"{checkpoint}: the Transformer baseline has no {flavour} flavour")
    if "executorch" in to and not isinstance(source.model, RetNet):
        raise InputError(f"{checkpoint}: the Transformer baseline is exported to onnx only")
    check_vocabulary(source.tokenizer, source.config.vocab_size, source.path / TOKENIZER_FILE)
    with new_folder(out) as folder:
        write_bundle(source, folder, say, to, flavour)
    return out


def check_backends(to: Sequence[str]) -> None:
    """Raise InputError for a backend that is not known, and for none."""
    if unknown := [name for name in to if name not in BACKENDS]:
        raise InputError(f"unknown backend {unknown[0]!r}; --to takes: {', '.join(BACKENDS)}")
    if not to:
        raise InputError(f"no backend was named; --to takes: {', '.join(BACKENDS)}")


def write_bundle(
    source: Checkpoint,
    folder: Path,
    say: Callable[[str], None],
    to: Sequence[str] = ("onnx",),
    flavour: Flavour = "ort",
) -> None:
    """Lower `source` and write every file of its bundle into an existing folder."""
    states = state_specs(source.model)
    graphs: list[GraphSpec] = []
    if "onnx" in to:
        graphs += _write_onnx(source, states, folder, say, flavour)
    if "executorch" in to:
        graphs += _write_executorch(source, states, folder, say)
    source.tokenizer.save(str(folder / TOKENIZER_FILE))  # as loaded: it cuts no text off
    if isinstance(source.model, RetNet):
        with working("golden run of the float64 model", _parameters(source) / GOLDEN_A_SECOND):
            write_golden(Float64Reference(source), source.config.vocab_size, folder)
    write_manifest(folder, _manifest(source, states, graphs, to))


def _write_onnx(
    source: Checkpoint,
    states: tuple[StateSpec, ...],
    folder: Path,
    say: Callable[[str], None],
    flavour: Flavour,
) -> list[GraphSpec]:
    models: dict[str, ir.Model] = {}
    seconds = lowering_seconds(source.config.layers)
    for lowering in lowerings(source.model, flavour):
        with working(f"lowering {lowering.kind}", seconds, say):
            model = lower_onnx(lowering, states)
        model.metadata_props["retnet_edge.kind"] = lowering.kind
        model.metadata_props["retnet_edge.config"] = encode_config(source.config).decode()
        model.producer_name, model.producer_version = "retnet-edge", __version__
        models[f"{lowering.kind}.onnx"] = model
    save_models(models, folder)
    return [
        graph_spec(file, "step" if file.startswith("step") else "prefill", model)
        for file, model in models.items()
    ]


def _write_executorch(
    source: Checkpoint, states: tuple[StateSpec, ...], folder: Path, say: Callable[[str], None]
) -> list[GraphSpec]:
    from retnet_edge.lowering.executorch_files import (
        delegation_line,
        executorch_graphs,
        lower_executorch,
        lowering_seconds,
    )

    assert isinstance(source.model, RetNet)
    specs = []
    seconds = lowering_seconds(source.config.layers)
    for file, graph in executorch_graphs(source.model):
        vocab = source.config.vocab_size
        with working(f"lowering {file}", seconds, say):
            specs.append(lower_executorch(graph, graph.tokens, states, vocab, folder / file))
        say(delegation_line(specs[-1]))
    return specs


def _parameters(source: Checkpoint) -> int:
    return sum(p.numel() for p in source.model.parameters())


def _manifest(
    source: Checkpoint,
    states: tuple[StateSpec, ...],
    graphs: Sequence[GraphSpec],
    to: Sequence[str],
) -> Manifest:
    model = source.model
    parameters = _parameters(source)
    config = msgspec.json.decode(encode_config(source.config))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelSpec(
            "retnet" if isinstance(model, RetNet) else "transformer",
            source.config.vocab_size,
            parameters,
            config,
        ),
        graphs=tuple(graphs),
        states=states,
        tokenizer=TokenizerSpec(
            TOKENIZER_FILE,
            source.special.end,
            source.special.ends[1:],
            source.special.begin,
            source.special.padding,
        ),
        quantization=Quantization("fp32"),
        tolerance=FP32_TOLERANCE,
        provenance=Provenance(
            source.weights_sha256(),
            {"retnet-edge": __version__, **{n: version(n) for to_ in to for n in VERSIONS_OF[to_]}},
        ),
        verification=NOT_VERIFIED,
        files={},
    )
