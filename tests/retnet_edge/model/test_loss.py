"""The chunked cross-entropy is cross-entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from retnet_edge.model import loss as loss_module
from retnet_edge.model.loss import cross_entropy


@pytest.mark.parametrize("at_once", [1, 50, 150, 1 << 27])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_against_whole_logits(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 1, 1, 3 and all 7 rows; the loss is scaled, as by a mean over ranks."""
    monkeypatch.setattr(loss_module, "MAX_LOGITS", at_once)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=g, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 5, generator=g, dtype=dtype, requires_grad=True)
    targets = torch.randint(50, (7,), generator=g)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    wanted = F.cross_entropy(x @ weight.mT, targets)
    (3.0 * wanted).backward()  # type: ignore[no-untyped-call]
    gradients = x.grad, weight.grad
    x.grad = weight.grad = None
    found = cross_entropy(x, weight, targets)
    assert found.dtype == dtype
    (3.0 * found).backward()  # type: ignore[no-untyped-call]
    assert abs(found - wanted) <= tolerance
    for a, b in zip((x.grad, weight.grad), gradients, strict=True):
        assert a is not None
        assert b is not None
        assert (a - b).abs().max() <= tolerance
    with torch.no_grad():
        assert torch.equal(cross_entropy(x, weight, targets), found)


def test_gradients_of_a_bfloat16_weight_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed over the 200 groups in bfloat16 itself they would be off by 0.01."""
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 1)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(200, 16, generator=g).bfloat16()
    weight = torch.randn(90, 16, generator=g).bfloat16().requires_grad_()
    targets = torch.randint(3, (200,), generator=g)
    cross_entropy(x, weight, targets).backward()  # type: ignore[no-untyped-call]
    exact = weight.detach().double().requires_grad_()
    F.cross_entropy(x.double() @ exact.mT, targets).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert exact.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert (weight.grad - exact.grad).norm() / exact.grad.norm() < 0.005


def test_half_precision_products_have_float32_losses_and_weight_gradients() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 16, generator=g).bfloat16().requires_grad_()
    weight = torch.randn(90, 16, generator=g).requires_grad_()
    targets = torch.randint(90, (40,), generator=g)
    found = cross_entropy(x, weight, targets)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    exact = weight.detach().clone().requires_grad_()
    wanted = F.cross_entropy(x.detach().float() @ exact.mT, targets)
    wanted.backward()  # type: ignore[no-untyped-call]
    assert abs(found - wanted) / wanted < 0.01
    assert exact.grad is not None
    assert (weight.grad - exact.grad).norm() / exact.grad.norm() < 0.01
