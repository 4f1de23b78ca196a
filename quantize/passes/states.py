"""The state in fewer bits between two calls: float16, or int8 with dither.

Inside a call nothing changes: S is read as float32, and what is handed on is rounded.

    int8   S ≈ codes · r · c,   r [H, K, 1] = |S| over values (their norm),   x = S / r,
                                c [H, 1, V] = max over keys |x| / 126.5
           codes = ⌊x / c + u⌋,  u = frac(noise + position · φ),  noise [K, V] uniform, φ = 0.618…

Plain rounding stalls where γ is near 1: what a token adds is less than half a code, and is lost
each time. The dither u makes the rounding right on average, and as it moves by the golden ratio
from one position to the next, the errors of successive steps cancel faster than those of
independent noise do. It depends on the position alone, so that a fork, a roll-back and a reload
continue bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from retnet_edge.quantize.graphs.edit import add_initializer
from retnet_edge.quantize.recipes.schemes import StateScheme
from retnet_edge.runtime.bundle.manifest import Dtype, StateSpec
from retnet_edge.runtime.bundle.state_values import MAX_CODE

GOLDEN_NUMERATOR, GOLDEN_DENOMINATOR = (
    40503,
    65536,
)  # their quotient is the golden ratio's inverse, to 5 digits
_NAMES: dict[Dtype, str] = {"float16": "FLOAT16", "int8": "INT8", "float32": "FLOAT"}


def state_specs(specs: Sequence[StateSpec], scheme: StateScheme) -> tuple[StateSpec, ...]:
    """The states that graphs of the scheme hand on; after each in int8, its scales r and c."""
    if scheme == "float32":
        return tuple(specs)
    if scheme == "float16":
        return tuple(msgspec.structs.replace(spec, dtype="float16") for spec in specs)
    found: list[StateSpec] = []
    for spec in specs:
        batch, heads, keys, values = spec.shape
        found.append(msgspec.structs.replace(spec, dtype="int8"))
        for side, shape in (
            ("key", (batch, heads, keys, 1)),
            ("value", (batch, heads, 1, values)),
        ):
            names = (f"{spec.input}_{side}_scale", f"{spec.output}_{side}_scale")
            found.append(StateSpec(*names, "float32", shape))
    return tuple(found)


def quantize_states(model: ir.Model, specs: Sequence[StateSpec], scheme: StateScheme) -> None:
    """Change inputs and outputs of a graph from float32 states `specs` to those of the scheme."""
    if scheme == "float32":
        return
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    first: list[ir.Node] = []
    last: list[ir.Node] = []
    kept: list[ir.Value] = []
    handed_on: list[ir.Value] = []
    dither = None
    if scheme == "int8":
        shift = _shift(model, inputs["position"], specs[0])
        last += shift
        dither = shift[-1].outputs[0]
    for spec in specs:
        given, made = inputs.pop(spec.input), outputs.pop(spec.output)
        given.name, made.name = f"{spec.input}_float32", f"{spec.output}_float32"
        wanted = state_specs([spec], scheme)
        stored = [_stored(one) for one in wanted]
        kept += stored
        if scheme == "float16":
            first.append(ir.node("Cast", stored, {"to": ir.DataType.FLOAT}))
            rounding = [ir.node("Cast", [made], {"to": ir.DataType.FLOAT16})]
            results = rounding
        else:
            codes = ir.node("Cast", [stored[0]], {"to": ir.DataType.FLOAT})
            by_key = ir.node("Mul", [codes.outputs[0], stored[1]])
            first += [codes, by_key, ir.node("Mul", [by_key.outputs[0], stored[2]])]
            rounding, results = _int8(model, made, dither)
        last += rounding
        for one, node in zip(wanted, results, strict=True):
            node.outputs[0].name = one.output
            node.outputs[0].type = ir.TensorType(ir.DataType[_NAMES[one.dtype]])
            node.outputs[0].shape = ir.Shape(one.shape)
            handed_on.append(node.outputs[0])
        ir.convenience.replace_all_uses_with(given, first[-1].outputs[0])
    model.graph.insert_before(model.graph[0], first)
    model.graph.extend(last)
    for side, values in (
        (model.graph.inputs, [*inputs.values(), *kept]),
        (model.graph.outputs, [*outputs.values(), *handed_on]),
    ):
        side.clear()
        side.extend(values)


def _stored(spec: StateSpec) -> ir.Value:
    kind = ir.TensorType(ir.DataType[_NAMES[spec.dtype]])
    return ir.Value(name=spec.input, shape=ir.Shape(spec.shape), type=kind)


def _shift(model: ir.Model, position: ir.Value, spec: StateSpec) -> list[ir.Node]:
    """Nodes whose last gives u [batch, 1, K, V] of a position; all layers and heads share it."""
    noise = np.random.default_rng(0).random(spec.shape[-2:], dtype=np.float32)  # type: ignore[arg-type]
    turned = ir.node("Mul", [position, _constant(model, "dither_turn", np.int64(GOLDEN_NUMERATOR))])
    part = ir.node(
        "Mod", [turned.outputs[0], _constant(model, "dither_turns", np.int64(GOLDEN_DENOMINATOR))]
    )
    real = ir.node("Cast", [part.outputs[0]], {"to": ir.DataType.FLOAT})
    share = _constant(model, "dither_share", np.float32(1 / GOLDEN_DENOMINATOR))
    angle = ir.node("Mul", [real.outputs[0], share])
    axes = _constant(model, "dither_axes", np.array([1, 2, 3], dtype=np.int64))
    wide = ir.node("Unsqueeze", [angle.outputs[0], axes])
    total = ir.node("Add", [wide.outputs[0], _constant(model, "dither_noise", noise)])
    whole = ir.node("Floor", total.outputs)
    u = ir.node("Sub", [total.outputs[0], whole.outputs[0]])
    return [turned, part, real, angle, wide, total, whole, u]


def _int8(
    model: ir.Model, state: ir.Value, dither: ir.Value | None
) -> tuple[list[ir.Node], list[ir.Node]]:
    """Nodes that round a state [B, H, K, V]; those of them that give its codes, r and c."""
    values = _constant(model, "state_values", np.array([3], dtype=np.int64))
    keys = _constant(model, "state_keys", np.array([2], dtype=np.int64))
    # what divides where a channel is all zero
    least = _constant(model, "state_least", np.float32(1e-30))
    norm = ir.node("ReduceL2", [state, values])
    above_0 = ir.node("Max", [norm.outputs[0], least])
    x = ir.node("Div", [state, above_0.outputs[0]])
    size = ir.node("Abs", x.outputs)
    largest = ir.node("ReduceMax", [size.outputs[0], keys])
    share = _constant(model, "state_code", np.float32(1 / MAX_CODE))
    scale = ir.node("Mul", [largest.outputs[0], share])
    some = ir.node("Max", [scale.outputs[0], least])
    exact = ir.node("Div", [x.outputs[0], some.outputs[0]])
    moved = ir.node("Add", [exact.outputs[0], dither])
    down = ir.node("Floor", moved.outputs)
    codes = ir.node("Cast", down.outputs, {"to": ir.DataType.INT8})
    nodes = [norm, above_0, x, size, largest, scale, some, exact, moved, down, codes]
    return nodes, [codes, norm, scale]


def _constant(model: ir.Model, name: str, value: Any) -> ir.Value:
    return add_initializer(model, name, np.asarray(value))
