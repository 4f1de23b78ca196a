"""The portable flavour: standard operators of ONNX 18, and the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from micro_checkpoint import (
    call,
    error,
    exported_once,
    random_states,
    random_tokens,
    reference,
    write_variant,
)

from retnet_edge import cli
from retnet_edge.config import RetNetConfig
from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.golden import replay_golden

TOLERANCE = 2e-5
NAMES = ["base", "z_n"]
NAMES_TOO = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("untied", "mlp gelu", "affine")
]


@pytest.fixture(scope="module", params=[*NAMES, *NAMES_TOO])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A checkpoint and its portable bundle."""
    made = exported_once(tmp_path_factory.getbasetemp(), request.param, "portable")
    return made.checkpoint, made.bundle


def test_graphs_equal_float64_at_any_length_and_position(made: tuple[Path, Path]) -> None:
    checkpoint, bundle = made
    model = load_checkpoint(checkpoint).model.to(torch.float64).eval()
    assert isinstance(model, RetNet)
    assert isinstance(model.config, RetNetConfig)
    for kind, lengths in (("step", (1,)), ("prefill", (1, 2, 128, 129, 300))):
        session = ort.InferenceSession(
            str(bundle / f"{kind}.onnx"), providers=["CPUExecutionProvider"]
        )
        for length in lengths:
            for position in (0, 1_000_000):
                tokens, states = random_tokens(2, length), random_states(model.config, 2)
                wanted, wanted_states = reference(model, tokens, states, position)
                found, found_states = call(session, tokens, states, position)
                assert error(found, wanted) <= TOLERANCE
                for a, b in zip(found_states, wanted_states, strict=True):
                    assert error(a, b) <= TOLERANCE


def test_every_operator_is_of_onnx_18(made: tuple[Path, Path]) -> None:
    bundle = Bundle.open(made[1])
    for graph in bundle.manifest.graphs:
        proto = onnx.load_model(bundle.file(graph.file), load_external_data=False)
        assert proto.ir_version <= 8
        assert {s.domain: s.version for s in proto.opset_import} == {"": 18}
        assert set(graph.operators) == {node.op_type for node in proto.graph.node}
        for name in graph.operators:
            assert onnx.defs.has(name, domain="", max_inclusive_version=18), name
        assert graph.operator_sets == {"ai.onnx": 18}
        assert graph.needs == "onnxruntime 1.15"
        assert not graph.serves_step


def test_sessions_run_it_quantized_too(made: tuple[Path, Path], tmp_path: Path) -> None:
    out = quantize(made[1], tmp_path / "q.edge", recipe="int8-dynamic", say=lambda _: None)
    bundle = Bundle.open(out)
    for graph in bundle.manifest.graphs:
        assert graph.needs == "onnxruntime 1.15"
        assert not any("." in name for name in graph.operators)
    session, float32 = open_session(bundle, threads=1), open_session(Bundle.open(made[1]))
    replay_golden(Bundle.open(made[1]), float32)
    float32.reset()
    tokens = random_tokens(1, 200)[0].tolist()
    difference = np.abs(session.prefill(tokens) - float32.prefill(tokens))
    assert 0 < difference.max() < 1.0


def test_a_recipe_that_takes_a_newer_runtime_says_so(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    for recipe in ("int8-dynamic", "int8"):
        quantize(made[1], tmp_path / recipe, recipe=recipe, say=said.append)
    assert [line for line in said if "needs" in line] == [
        f"{kind}.onnx needed onnxruntime 1.15; with int8 it needs onnxruntime 1.32"
        for kind in ("step", "prefill")
    ]


def test_the_other_flavour_says_what_it_needs(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = Bundle.open(exported_once(tmp_path_factory.getbasetemp(), "base").bundle)
    for graph in bundle.manifest.graphs:
        assert "com.microsoft.LinearAttention" in graph.operators
        assert graph.needs == "onnxruntime 1.32"
        assert graph.serves_step == (graph.kind == "prefill")


def test_what_has_no_portable_flavour(tmp_path: Path) -> None:
    checkpoint = write_variant("transformer", tmp_path)
    with pytest.raises(InputError, match="the Transformer baseline has no portable flavour"):
        export(checkpoint, tmp_path / "t.edge", flavour="portable")
    with pytest.raises(InputError, match="unknown flavour 'plain'; known: ort, portable"):
        export(checkpoint, tmp_path / "t.edge", flavour="plain")  # type: ignore[arg-type]
    assert cli.main(["export", str(checkpoint), str(tmp_path / "t"), "--flavour", "old"]) == 2
