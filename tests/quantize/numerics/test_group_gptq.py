"""GPTQ in groups: integers in range, scales that XNNPACK can pack, less error than the nearest."""

from __future__ import annotations

import gptq_by_hand as by_hand
import numpy as np
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


def test_codes_of_four_bits() -> None:
    """What XNNPACK unpacks: two's complement."""
    assert (QMIN, QMAX) == (-8, 7)


def least_error_scale(values: list[float], importance: list[float]) -> float:
    """One group: of 24 parts (0.6 to 1.05) of the scale that reaches all, the best."""
    full = max(*(v / 7 for v in values), *(v / -8 for v in values), 1e-9)

    def error(scale: float) -> float:
        codes = [min(max(round(v / scale), -8), 7) for v in values]
        parts = zip(codes, values, importance, strict=True)
        return sum(weight * (code * scale - v) ** 2 for code, v, weight in parts)

    return min((full * (0.6 + 0.45 * i / 23) for i in range(24)), key=error)


@pytest.mark.parametrize("shift", [-1.5, 0.0, 1.5])
def test_scales_are_those_of_the_least_weighted_error(shift: float) -> None:
    """Of groups on both sides of 0 and beside it; the last row is of zeros alone."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(24, 48, generator=generator, dtype=torch.float64) + shift
    weight[-1] = 0.0
    importance = torch.rand(48, generator=generator, dtype=torch.float64)
    found = search_scales(weight, importance, 16)
    assert found.shape == (24, 3)
    for n in range(24):
        for g in range(3):
            part = slice(16 * g, 16 * g + 16)
            wanted = least_error_scale(weight[n, part].tolist(), importance[part].tolist())
            assert float(found[n, g]) == pytest.approx(wanted, rel=1e-6)
    assert (found[-1] > 0).all()


def test_the_whole_of_gptq_in_groups() -> None:
    """Damping of 5 %, scales as bfloat16 before and after they are fitted, codes once more."""
    width = 160
    weight = torch.randn(6, width, generator=torch.Generator().manual_seed(4))
    inputs = correlated(500, width)
    inputs[:, 7] = 0.0
    gram = inputs.T @ inputs
    integers, scales = quantize_groups(weight, gram, GROUP)

    def stored(values: np.ndarray) -> np.ndarray:
        return np.asarray(torch.from_numpy(values).to(torch.bfloat16).double().numpy())

    hessian, target = by_hand.hessian_of(gram.numpy(), 0.05), weight.double().numpy()
    importance = torch.from_numpy(hessian.diagonal().copy())
    first = stored(search_scales(weight.double(), importance, GROUP).numpy())
    zeros = np.full_like(first, 8.0)
    codes = by_hand.codes_of(target, hessian, first, zeros, GROUP, 4)
    fitted = stored(by_hand.scales_of(target, hessian, codes, first, zeros, GROUP))
    codes = by_hand.codes_of(target, hessian, fitted, zeros, GROUP, 4)
    np.testing.assert_array_equal(scales.double().numpy(), fitted)
    np.testing.assert_array_equal(integers.numpy(), codes - 8)
