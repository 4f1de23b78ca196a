"""The step contract on manifests alone: states, their scales and sizes, and each backend's axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from conftest import Tiny

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.contract import check_contract
from retnet_edge.runtime.bundle.manifest import (
    Backend,
    Dtype,
    GraphSpec,
    Manifest,
    StateSpec,
    TensorSpec,
)

Shape = tuple[int | str, ...]
Kind = Literal["step", "prefill"]
WHERE = Path("m.json")


def graph(manifest: Manifest, kind: Kind, backend: Backend, tokens: Shape) -> GraphSpec:
    """One as the contract wants it, of one sequence elsewhere than in ONNX Runtime."""
    batch: int | str = "batch" if backend == "onnxruntime" else 1

    def of(shape: Shape) -> Shape:
        return tuple(batch if dim == "batch" else dim for dim in shape)

    inputs = [("tokens", "int64", tokens), ("position", "int64", (batch,))]
    outputs = [("logits", "float32", (batch, manifest.model.vocab_size))]
    return GraphSpec(
        "a.graph",
        kind,
        backend,
        tuple(_specs(inputs + [(s.input, s.dtype, of(s.shape)) for s in manifest.states])),
        tuple(_specs(outputs + [(s.output, s.dtype, of(s.shape)) for s in manifest.states])),
        (),
        {},
    )


def _specs(rows: list[Any]) -> list[TensorSpec]:
    return [TensorSpec(*row) for row in rows]


def of_states(
    manifest: Manifest, *states: tuple[Dtype, Shape], config: dict[str, Any] | None = None
) -> Manifest:
    """A manifest of these states, and a step graph that has them."""
    specs = tuple(StateSpec(f"s{i}", f"n{i}", *state) for i, state in enumerate(states))
    model = msgspec.structs.replace(manifest.model, config=config or {})
    made = msgspec.structs.replace(manifest, states=specs, model=model)
    step = graph(made, "step", "onnxruntime", ("batch", 1))
    return msgspec.structs.replace(made, graphs=(step,))


@pytest.fixture
def manifest(tiny: Tiny) -> Manifest:
    """Of a retention model with one state [batch, 2, 4, 6]."""
    return tiny.open().manifest


@pytest.fixture
def growing(tiny_transformer: Tiny) -> Manifest:
    """Of a transformer with one layer: keys [batch, 2, past, 4], values [batch, 2, past, 6]."""
    return tiny_transformer.open().manifest


def refused(manifest: Manifest, sentence: str) -> None:
    """By the whole of that sentence."""
    with pytest.raises(InputError) as caught:
        check_contract(manifest, WHERE)
    assert str(caught.value) == f"m.json: {sentence}"


STATE: tuple[Dtype, Shape] = ("float32", ("batch", 2, 4, 6))
SMALL: tuple[Dtype, Shape] = ("int8", ("batch", 2, 4, 6))
BY_KEY: tuple[Dtype, Shape] = ("float32", ("batch", 2, 4, 1))
BY_VALUE: tuple[Dtype, Shape] = ("float32", ("batch", 2, 1, 6))


def test_scales_follow_each_int8_state(manifest: Manifest) -> None:
    for states in (
        [SMALL, BY_KEY, BY_VALUE],
        [SMALL, BY_KEY, BY_VALUE] * 2,
        [STATE, SMALL, BY_KEY, BY_VALUE, STATE],
    ):
        check_contract(of_states(manifest, *states), WHERE)
    says = "is int8 [batch, 2, 4, 6]; float32 scales [batch, 2, 4, 1] and [batch, 2, 1, 6] have to"
    for number, states in (
        (0, [SMALL, BY_VALUE, BY_KEY]),
        (0, [SMALL, BY_KEY]),
        (1, [STATE, SMALL]),
        (3, [SMALL, BY_KEY, BY_VALUE, SMALL, STATE, BY_KEY, BY_VALUE]),
        (0, [SMALL, BY_KEY, ("float16", BY_VALUE[1])]),
    ):
        refused(of_states(manifest, *states), f"the state 's{number}' {says} follow it")


def test_scales_are_of_the_two_last_axes(manifest: Manifest) -> None:
    """Of a state of fewer axes too; what is wrong with that is another sentence."""
    states: list[tuple[Dtype, Shape]] = [
        ("int8", ("batch", 4, 6)),
        ("float32", ("batch", 4, 1)),
        ("float32", ("batch", 1, 6)),
    ]
    refused(
        of_states(manifest, *states),
        "the state 's0' has shape [batch, 4, 6]; the model's configuration says "
        "[batch, any, any, any]",
    )


def test_states_of_4_gib_and_no_more(manifest: Manifest, growing: Manifest) -> None:
    """All states together; a state that grows counts with one token."""
    side, most = 1 << 15, 1 << 32
    full: tuple[Dtype, Shape] = ("float32", ("batch", side, side, 1))
    check_contract(of_states(manifest, full), WHERE)
    for states in ([full, STATE], [STATE, full]):
        refused(
            of_states(manifest, *states),
            f"the states take {most + 4 * 48} bytes a sequence; at most {most} are allowed",
        )
    check_contract(of_states(growing, ("float32", ("batch", side, "past", side))), WHERE)
    refused(
        of_states(growing, ("float32", ("batch", side, "past", side + 1))),
        f"the states take {most + 4 * side} bytes a sequence; at most {most} are allowed",
    )


def test_as_many_states_as_the_layers_need(manifest: Manifest, growing: Manifest) -> None:
    """One a layer of a RetNet and two a layer of a transformer; scales do not count."""
    check_contract(of_states(manifest, *[STATE] * 3, config={"layers": 3}), WHERE)
    scaled = [SMALL, BY_KEY, BY_VALUE]
    check_contract(of_states(manifest, *scaled * 2, config={"layers": 2}), WHERE)
    keys: tuple[Dtype, Shape] = ("float32", ("batch", 2, "past", 4))
    for layers in (1, 3):
        check_contract(of_states(growing, *[keys] * 2 * layers, config={"layers": layers}), WHERE)
    refused(
        of_states(growing, *[keys] * 3, config={"layers": 3}),
        "3 states; the model's configuration has 3 layers, two states each",
    )


@pytest.mark.parametrize("name", ["layers", "heads", "key_head_dim", "value_head_dim"])
@pytest.mark.parametrize("value", [1.0, "1", None, True, [1]])
def test_numbers_of_the_configuration_are_whole(name: str, value: Any, manifest: Manifest) -> None:
    ones: tuple[Dtype, Shape] = ("float32", ("batch", 1, 1, 1))
    check_contract(of_states(manifest, ones, config={name: 1}), WHERE)
    refused(
        of_states(manifest, ones, config={name: value}),
        f"{name} of the model's configuration is no whole number",
    )


@pytest.mark.parametrize(
    ("backend", "kind", "tokens", "wanted"),
    [
        ("onnxruntime", "step", ("batch", 1), None),
        ("onnxruntime", "step", (1, 1), "[batch, 1]"),
        ("onnxruntime", "step", ("batch", "T"), "[batch, 1]"),
        ("onnxruntime", "step", ("batch", 1, 1), "[batch, 1]"),
        ("onnxruntime", "prefill", ("batch", "T"), None),
        ("onnxruntime", "prefill", ("batch", "any_name"), None),
        ("onnxruntime", "prefill", ("batch", 8), "[batch, T]"),
        ("onnxruntime", "prefill", ("batch", "batch"), "[batch, T]"),
        ("native", "step", (1, 1), None),
        ("native", "step", ("batch", 1), "[1, 1]"),
        ("native", "prefill", (1, "T"), None),
        ("native", "prefill", (1, 8), "[1, T]"),
        ("executorch", "step", (1, 1), None),
        ("executorch", "step", (1, 2), "[1, 1]"),
        ("executorch", "prefill", (1, 2), None),
        ("executorch", "prefill", (1, 128), None),
        ("executorch", "prefill", (1, 1), "[1, T > 1]"),
        ("executorch", "prefill", (1, "T"), "[1, T > 1]"),
        ("executorch", "prefill", ("batch", 8), "[1, T > 1]"),
    ],
)
def test_axes_of_the_tokens(
    backend: Backend, kind: Kind, tokens: Shape, wanted: str | None, manifest: Manifest
) -> None:
    """None: taken; else what the sentence says the contract wants."""
    changed = msgspec.structs.replace(manifest, graphs=(graph(manifest, kind, backend, tokens),))
    if wanted is None:
        check_contract(changed, WHERE)
        return
    found = f"[{', '.join(map(str, tokens))}]"
    refused(changed, f"a.graph has tokens as int64 {found}; the step contract says int64 {wanted}")
