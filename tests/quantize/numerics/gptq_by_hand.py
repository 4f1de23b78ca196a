"""GPTQ from its definition (arXiv 2210.17323, section 3): a column or a row at a time, float64.

Before every column the Hessian of the columns that are left is inverted anew: no Cholesky factor,
no batches of columns. It shares no code with `retnet_edge`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def hessian_of(gram: NDArray[np.floating], damping: float) -> Doubles:
    """Σ xᵀ x, 1 for an input that was always zero, and a share of the diagonal's mean for all."""
    hessian = gram.astype(np.float64)
    for i in range(len(hessian)):
        hessian[i, i] = hessian[i, i] if hessian[i, i] > 0 else 1.0
    return hessian + np.diag(np.full(len(hessian), damping * hessian.diagonal().mean()))


def of_columns(values: Doubles, block: int, columns: int) -> Doubles:
    """What each block has [N, blocks], for each of its columns [N, columns]."""
    return np.stack([values[:, column // block] for column in range(columns)], axis=1)


def codes_of(
    weight: Doubles, hessian: Doubles, scales: Doubles, zeros: Doubles, block: int, bits: int
) -> Doubles:
    """Codes [N, K], the columns of the largest H_ii first.

    What column c loses goes to the columns that are left: δ = -(w - q) / [H⁻¹]_cc · [H⁻¹]_c.
    """
    wanted = weight.copy()
    columns = weight.shape[1]
    steps, middles = of_columns(scales, block, columns), of_columns(zeros, block, columns)
    codes = np.empty_like(wanted)
    left = sorted(range(columns), key=lambda column: -hessian[column, column])
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        c = left[0]
        codes[:, c] = np.clip(np.rint(wanted[:, c] / steps[:, c]) + middles[:, c], 0, 2**bits - 1)
        lost = wanted[:, c] - (codes[:, c] - middles[:, c]) * steps[:, c]
        wanted[:, left] -= np.outer(lost / inverse[0, 0], inverse[0])
        left = left[1:]
    return codes


def scales_of(
    weight: Doubles, hessian: Doubles, codes: Doubles, scales: Doubles, zeros: Doubles, block: int
) -> Doubles:
    """Scales [N, blocks] of least (w - Q s) H (w - Q s)ᵀ, row by row, by the normal equations.

    The ridge is a millionth of the row's mean and 1e-12. Where a scale would be halved, doubled or
    more, the old one stays.
    """
    outputs, columns = weight.shape
    levels = codes - of_columns(zeros, block, columns)
    found = scales.copy()
    for n in range(outputs):
        parts = np.zeros((columns, scales.shape[1]))
        for column in range(columns):
            parts[column, column // block] = levels[n, column]
        normal = parts.T @ hessian @ parts
        ridge = 1e-6 * np.trace(normal) / len(normal) + 1e-12
        right = parts.T @ hessian @ weight[n]
        fitted = np.linalg.solve(normal + ridge * np.eye(len(normal)), right)
        for b, scale in enumerate(fitted):
            if scales[n, b] / 2 < scale < scales[n, b] * 2:
                found[n, b] = scale
    return found.astype(np.float32).astype(np.float64)
