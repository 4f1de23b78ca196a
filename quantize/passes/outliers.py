"""Activations with heavy tails: a body within ±t and a tail beyond it, quantized each on its own.

    x = body + tail,  body = clip(x, -t, t),  W x = W body + W tail

The sum is exact for any t. An int8 scale is set by the largest value of a block: where a few values
are far larger than the others, those others keep few of the 255 codes. The body has a scale of its
own; of the tail only the few large values are not zero. t is a multiple of the input's root mean
square; from 1 to 3 of it the result is the same to a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from retnet_edge.quantize.graphs.edit import add_initializer


def split_outliers(
    model: ir.Model, x: ir.Value | None, weight: str, threshold: float
) -> tuple[ir.Node, ir.Node]:
    """The nodes that compute body and tail of `x`, the input of a product with `weight`."""

    def bound(side: str, value: float) -> ir.Value:
        array = np.array(value, dtype=np.float32)
        return add_initializer(model, f"{weight}.body_{side}", array)

    body = ir.node("Clip", [x, bound("low", -threshold), bound("high", threshold)])
    return body, ir.node("Sub", [x, body.outputs[0]])


def add_products(
    parts: Sequence[ir.Node], body: Sequence[ir.Node], tail: Sequence[ir.Node]
) -> list[ir.Node]:
    """All nodes in order, the last of which adds the products of body and tail, last of theirs."""
    total = ir.node("Add", [body[-1].outputs[0], tail[-1].outputs[0]])
    return [*parts, *body, *tail, total]
