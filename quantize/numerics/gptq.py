"""GPTQ (arXiv 2210.17323) for weights in blocks, in NumPy.

What rounding one input's column does to the output, the columns still to be rounded put right:

    min over codes Q of  tr((W - Q s) H (W - Q s)ᵀ),   H = Σ xᵀ x over calibration text

The scale of a block is chosen first (least Σ H_ii (w_i - q_i s)² over a grid), fitted anew to the
codes by least squares, and the codes are rounded once more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retnet_edge.quantize.numerics.rounding import (
    BlockQuantized,
    Floats,
    nearest_codes,
    search_scales,
    stored_scales,
    to_blocks,
)

DAMPING = 0.02  # of the mean of H's diagonal
LAZY_BATCH = 64  # columns between two updates of all the rest

_Doubles = NDArray[np.float64]


def gptq_blocks(
    weight: Floats, gram: NDArray[np.floating], block: int, bits: int, *, symmetric: bool
) -> BlockQuantized:
    """W [N, K] and H [K, K] -> codes and scales that change x Wᵀ least where x is as in the text.

    An input that was always zero is rounded to the nearest.
    """
    inputs = weight.shape[1]
    hessian = damped(gram, DAMPING)
    (importance,) = to_blocks(hessian.diagonal()[None], block)
    scales, zeros = search_scales(to_blocks(weight, block), importance, bits, symmetric=symmetric)
    target = weight.astype(np.float64)
    codes = gptq_codes(target, hessian, scales, zeros, block, bits)
    scales = stored_scales(fit_scales(target, hessian, codes, scales, zeros, block), bits)
    codes = gptq_codes(target, hessian, scales, zeros, block, bits)
    whole = np.repeat(zeros, block, axis=1)
    whole[:, :inputs] = codes
    return BlockQuantized(
        whole.reshape(*zeros.shape, block).astype(np.uint8),
        scales.astype(np.float32),
        zeros.astype(np.uint8),
        bits,
    )


def damped(gram: NDArray[np.floating], damping: float) -> _Doubles:
    """H with `damping` times its diagonal's mean added; an input that was always zero has 1."""
    hessian = np.array(gram, dtype=np.float64)
    dead = np.flatnonzero(hessian.diagonal() <= 0)
    hessian[dead, dead] = 1.0
    hessian[np.diag_indices(len(hessian))] += damping * hessian.diagonal().mean()
    return hessian


def gptq_codes(
    weight: _Doubles, hessian: _Doubles, scales: _Doubles, zeros: _Doubles, block: int, bits: int
) -> _Doubles:
    """GPTQ's codes [N, K] for fixed scales, inputs of the largest second moment first."""
    inputs = weight.shape[1]
    order = np.argsort(-hessian.diagonal(), kind="stable")
    # columns as rows, which lie together in memory
    rest = np.ascontiguousarray(weight.T[order])
    steps = np.ascontiguousarray(np.repeat(scales, block, axis=1)[:, :inputs].T[order])
    middles = np.ascontiguousarray(np.repeat(zeros, block, axis=1)[:, :inputs].T[order])
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    factor = np.linalg.cholesky((inverse + inverse.T) / 2).T
    codes = np.empty_like(rest)
    for start in range(0, inputs, LAZY_BATCH):
        stop = min(start + LAZY_BATCH, inputs)
        errors = np.empty((stop - start, rest.shape[1]))
        for column in range(start, stop):
            codes[column] = nearest_codes(rest[column], steps[column], middles[column], bits)
            wrong = rest[column] - (codes[column] - middles[column]) * steps[column]
            wrong /= factor[column, column]
            rest[column + 1 : stop] -= factor[column, column + 1 : stop, None] * wrong
            errors[column - start] = wrong
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    return np.ascontiguousarray(codes[np.argsort(order)].T)


def fit_scales(
    weight: _Doubles,
    hessian: _Doubles,
    codes: _Doubles,
    scales: _Doubles,
    zeros: _Doubles,
    block: int,
) -> _Doubles:
    """Scales of least tr((W - Q s) H (W - Q s)ᵀ) for given codes, row by row, as float32 values.

    A scale that would move by a factor of two or more stays: its block decides about too little.
    """
    outputs, inputs = weight.shape
    blocks = scales.shape[1]
    pad = blocks * block - inputs
    levels = codes - np.repeat(zeros, block, axis=1)[:, :inputs]
    levels = np.pad(levels, ((0, 0), (0, pad))).reshape(outputs, blocks, block)
    padded = np.pad(hessian, ((0, pad), (0, pad))).reshape(blocks, block, blocks, block)
    right = np.pad(weight @ hessian, ((0, 0), (0, pad))).reshape(outputs, blocks, block)
    right = (right * levels).sum(-1)
    normal = np.empty((outputs, blocks, blocks))
    for j in range(blocks):
        through = np.tensordot(levels[:, j], padded[:, :, j], axes=([1], [2]))  # [N, blocks, block]
        normal[:, :, j] = (through * levels).sum(-1)
    diagonal = np.einsum("rii->ri", normal)
    diagonal += 1e-6 * diagonal.mean(axis=1, keepdims=True) + 1e-12
    fitted = np.linalg.solve(normal, right[..., None]).squeeze(-1)
    ratio = fitted / scales
    kept = np.where((ratio > 0.5) & (ratio < 2.0), fitted, scales)
    return kept.astype(np.float32).astype(np.float64)
