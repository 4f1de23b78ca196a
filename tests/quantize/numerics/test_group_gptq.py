"""GPTQ in groups: integers in range, scales that XNNPACK can pack, less error than the nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retnet_edge.quantize.numerics.group_gptq import QMAX, QMIN, quantize_groups, search_scales

GROUP = 32


def correlated(rows: int, width: int, seed: int = 0) -> Tensor:
    """Inputs [rows, width] whose channels depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width // 4, width, generator=generator)
    noise = 0.1 * torch.randn(rows, width, generator=generator)
    sizes = torch.logspace(-1, 1, width)
    return (torch.randn(rows, width // 4, generator=generator) @ mixing + noise) * sizes


def nearest(weight: Tensor, gram: Tensor) -> Tensor:
    """The same search of scales with plain rounding."""
    scales = search_scales(weight.double(), gram.diagonal().double(), GROUP)
    steps = scales.repeat_interleave(GROUP, 1)
    return (weight / steps).round().clamp(QMIN, QMAX) * steps


def error(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    return float(((weight - other).double() @ inputs.double().T).square().sum())


@pytest.mark.parametrize(("out", "width"), [(5, 64), (131, 96)])
def test_the_output_changes_less_than_with_plain_rounding(out: int, width: int) -> None:
    """Also on inputs that it has not seen."""
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(1))
    inputs = correlated(2000, width)
    seen, unseen = inputs[:1000], inputs[1000:]
    integers, scales = quantize_groups(weight, seen.T @ seen, GROUP)
    assert integers.dtype == torch.int8
    assert int(integers.min()) >= QMIN
    assert int(integers.max()) <= QMAX
    assert scales.shape == (out, width // GROUP)
    assert (scales > 0).all()
    assert torch.equal(scales, scales.to(torch.bfloat16).float())
    quantized = integers * scales.repeat_interleave(GROUP, 1)
    plain = nearest(weight, seen.T @ seen)
    for rows in (seen, unseen):
        assert error(weight, quantized, rows) < 0.5 * error(weight, plain, rows)


def test_inputs_that_never_come_and_groups_of_zeros() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    weight[1, :GROUP] = 0.0
    inputs = correlated(200, 64)
    inputs[:, 7] = 0.0
    integers, scales = quantize_groups(weight, inputs.T @ inputs, GROUP)
    quantized = integers * scales.repeat_interleave(GROUP, 1)
    assert torch.isfinite(quantized).all()
    assert (quantized[1, :GROUP].abs() < 1e-6).all()
    assert (weight - quantized).abs().max() < 1.5 * scales[scales > 1e-6].max()
