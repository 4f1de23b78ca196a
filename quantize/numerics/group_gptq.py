"""GPTQ (`gptq.py`) as XNNPACK takes weights: 4-bit integers that share a scale in groups.

Scales are positive and bfloat16, as XNNPACK packs them: rounding them after the integers are chosen
would move every weight of a group alike.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retnet_edge.quantize.numerics.gptq import damped, fit_scales, gptq_codes

QMIN, QMAX = -8, 7
DAMPING = 0.05  # of the mean of H's diagonal; 0.01 was within the noise of it
GRID = torch.linspace(0.6, 1.05, 24)
BITS = 4


def quantize_groups(weight: Tensor, gram: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and H [in, in] -> integers int8 [out, in] in -8 … 7, scales [out, in/group].

    The quantized weight is the integer times its group's scale. `group` divides `in`.
    """
    target, hessian = weight.double().numpy(), damped(gram.numpy(), DAMPING)
    importance = torch.from_numpy(hessian.diagonal().copy())
    scales = _bfloat16(search_scales(weight.double(), importance, group)).numpy()
    zeros = np.full_like(scales, -QMIN)
    codes = gptq_codes(target, hessian, scales, zeros, group, BITS)
    fitted = _bfloat16(torch.from_numpy(fit_scales(target, hessian, codes, scales, zeros, group)))
    codes = gptq_codes(target, hessian, fitted.numpy(), zeros, group, BITS)
    return torch.from_numpy(codes + QMIN).to(torch.int8), fitted.float()


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
    scales = full = torch.maximum(high / QMAX, low / QMIN).clamp(min=1e-9)
    for factor in GRID.tolist():
        tried = full * factor
        rounded = (grouped / tried[..., None]).round().clamp(QMIN, QMAX) * tried[..., None]
        error = ((rounded - grouped).square() * weights).sum(-1)
        scales = torch.where(error < best, tried, scales)
        best = torch.minimum(best, error)
    return scales
