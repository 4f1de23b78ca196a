"""SmoothQuant (arXiv 2211.10438): what is hard to round moves from activations to weights.

    x W ᵀ = (x / s) (W · s)ᵀ,   s_j = max |x_j|^α / max |w_j|^(1-α)

An input channel j with large values gets smaller ones before the scale of the whole row is chosen.
The division is a node of its own: what stands before a product need not be a norm.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.quantize.calibration.statistics import ActivationStatistics
from retnet_edge.quantize.graphs.edit import Weight, add_initializer

Floats = NDArray[np.float32]


def smoothquant_scales(largest: Floats, weight: Floats, alpha: float) -> Floats:
    """s [K] of the largest |x| of each input [K] and W [N, K]; 1 where either is all zero."""
    of_weight = np.abs(weight).max(axis=0).astype(np.float64)
    of_input = largest.astype(np.float64)
    usable = (of_weight > 0) & (of_input > 0)
    ones = np.ones_like(of_input)
    s = np.where(usable, of_input, ones) ** alpha / np.where(usable, of_weight, ones) ** (1 - alpha)
    return np.where(usable, s, ones).astype(np.float32)


def smoothed(
    weight: Weight, activations: ActivationStatistics | None, alpha: float
) -> tuple[Floats, ActivationStatistics, Floats]:
    """W · s [N, K], what x / s is, and s, of a matrix and what it is multiplied with.

    Raises InputError where the matrix is looked up in, too.
    """
    if weight.gathers:
        raise InputError(f"{weight.name} is looked up in, and cannot be smoothed")
    assert activations is not None
    matrix = weight.matrix()
    s = smoothquant_scales(activations.largest, matrix, alpha)
    return matrix * s, activations.divided(s), s


def divide(model: ir.Model, x: ir.Value | None, weight: str, s: Floats) -> ir.Node:
    """The node that computes x / s before the product with `weight`."""
    return ir.node("Mul", [x, add_initializer(model, f"{weight}.smoothing", (1 / s))])
