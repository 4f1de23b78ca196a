"""May a graph write each next state over the past one, in the same memory?

A backend that is handed one buffer as both does not know it. That is right where nobody can read
the past state after the next one is written: where all that read it come before the node that
writes, or where the one reader is the fused operator, which begins with a copy of it.
"""

from __future__ import annotations

import onnx_ir as ir

_FUSED = "LinearAttention"
_SHAPE = "Shape"  # reads no element
_VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}  # the same memory, maybe


def updates_in_place(model: ir.Model) -> bool:
    """True where that holds for all states of a graph of the step contract."""
    pasts, news = model.graph.inputs[2:], model.graph.outputs[1:]
    return all(_in_place(past, new) for past, new in zip(pasts, news, strict=True))


def _in_place(past: ir.Value, new: ir.Value) -> bool:
    writer = new.producer()
    if writer is None or past.shape != new.shape:
        return False
    readers = _readers(past)
    if writer in readers:
        return readers == {writer} and writer.op_type == _FUSED
    return readers <= _before(writer)


def _readers(value: ir.Value) -> set[ir.Node]:
    """Every node that reads elements of a value, or of a view of it."""
    found: set[ir.Node] = set()
    for use in value.uses():
        if use.node.op_type in _VIEWS:
            found |= {use.node}.union(*map(_readers, use.node.outputs))
        elif use.node.op_type != _SHAPE:
            found.add(use.node)
    return found


def _before(node: ir.Node) -> set[ir.Node]:
    """Every node that `node` waits for."""
    found: set[ir.Node] = set()
    ahead = [node]
    while ahead:
        producers = {value.producer() for value in ahead.pop().inputs if value is not None}
        new = {producer for producer in producers if producer is not None} - found
        found |= new
        ahead.extend(new)
    return found
