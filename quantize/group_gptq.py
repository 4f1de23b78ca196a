"""GPTQ (arXiv 2210.17323) for weights that share a scale in groups.

What rounding one input's column does to the output, the columns still to be rounded put right:

    min over integers Q of  tr((W - Q s) H (W - Q s)ᵀ),   H = Σ xᵀ x over calibration text

The scale of a group is chosen first (least Σ H_ii (w_i - q_i s)² over a grid), fitted anew to the
integers by least squares, and the integers are then rounded once more. Scales are positive and
bfloat16, as XNNPACK packs them: rounding them afterwards would move every weight of a group alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW, HIGH = -8, 7
DAMPING = 0.05  # of the mean of H's diagonal; 0.01 was within the noise of it
GRID = torch.linspace(0.6, 1.05, 24)
BLOCK = 64  # columns between two updates of all the rest


def quantize_groups(weight: Tensor, gram: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and H [in, in] -> integers int8 [out, in] in -8 … 7, scales [out, in/group].

    The quantized weight is the integer times its group's scale. `group` divides `in`.
    """
    weight, gram = weight.double(), gram.double().clone()
    dead = gram.diagonal() <= 0
    gram[dead, dead] = 1.0
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    scales = _bfloat16(search_scales(weight, gram.diagonal(), group))
    integers = _round(weight, gram, scales, group)
    fitted = _bfloat16(_fit_scales(weight, gram, integers, scales, group))
    return _round(weight, gram, fitted, group).to(torch.int8), fitted.float()


def _bfloat16(scales: Tensor) -> Tensor:
    return scales.to(torch.bfloat16).double()


def search_scales(weight: Tensor, importance: Tensor, group: int) -> Tensor:
    """The scale of each group [out, in/group] with the least weighted error of plain rounding.

    importance [in]: of each input. A group of zeros gets a tiny one.
    """
    grouped = weight.reshape(weight.shape[0], -1, group)
    weights = importance.reshape(-1, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    best = torch.full_like(low, torch.inf)
    scales = torch.full_like(low, 1e-9)
    full = torch.maximum(high / HIGH, low / LOW).clamp(min=1e-9)
    for factor in GRID.tolist():
        tried = full * factor
        rounded = (grouped / tried[..., None]).round().clamp(LOW, HIGH) * tried[..., None]
        error = ((rounded - grouped).square() * weights).sum(-1)
        scales = torch.where(error < best, tried, scales)
        best = torch.minimum(best, error)
    return scales


def _round(weight: Tensor, gram: Tensor, scales: Tensor, group: int) -> Tensor:
    """GPTQ's integers [out, in] for fixed scales, inputs of the largest second moment first."""
    order = torch.argsort(gram.diagonal(), descending=True)
    rest = weight[:, order].clone()
    steps = scales.repeat_interleave(group, 1)[:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    integers = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        stop = min(start + BLOCK, rest.shape[1])
        errors = torch.empty_like(rest[:, start:stop])
        for column in range(start, stop):
            step = steps[:, column]
            integers[:, column] = (rest[:, column] / step).round().clamp(LOW, HIGH)
            error = rest[:, column] - integers[:, column] * step
            error = error / factor[column, column]
            rest[:, column + 1 : stop] -= error[:, None] * factor[column, column + 1 : stop]
            errors[:, column - start] = error
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return integers[:, torch.argsort(order)]


def _fit_scales(
    weight: Tensor, gram: Tensor, integers: Tensor, scales: Tensor, group: int
) -> Tensor:
    """Scales of least tr((W - Q s) H (W - Q s)ᵀ) for given integers, row by row.

    A scale that would move by more than a factor of two stays: its group decides about too little.
    """
    groups = weight.shape[1] // group
    blocks = gram.reshape(groups, group, groups, group)
    target = weight @ gram
    fitted = torch.empty_like(scales)
    for start in range(0, len(weight), 128):
        rows = integers[start : start + 128].reshape(-1, groups, group)
        half = torch.einsum("rig,igjh->rijh", rows, blocks)
        normal = torch.einsum("rijh,rjh->rij", half, rows)
        right = (rows * target[start : start + 128].reshape(-1, groups, group)).sum(-1)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal.add_(1e-6 * diagonal.mean(1, keepdim=True) + 1e-12)
        fitted[start : start + 128] = torch.linalg.solve(normal, right)
    ratio = fitted / scales
    return torch.where((ratio > 0.5) & (ratio < 2.0), fitted, scales)
