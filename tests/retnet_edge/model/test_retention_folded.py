"""Retention with the decays folded into q and k is the retention of the other forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retnet_edge.model.retention import retention_chunkwise, retention_recurrent
from retnet_edge.model.retention_folded import can_fold, decay_factors, retention_folded
from retnet_edge.model.state_scan import scan

GAMMAS = (0.9, 1.0 - 1.0 / 512.0, 1.0)
SCALE = 0.25
FLOAT64 = 1e-10


def scaled(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """`retention_folded` called as the other forms are: q, k [B, H, T, K], v [B, H, T, V]."""
    factors = decay_factors(log_decay, q.shape[2], chunk, SCALE)[..., None].to(v.dtype)
    qk = torch.stack((q, k)).transpose(1, 2) * factors.permute(1, 2, 0, 3)[:, :, None]
    values = v.transpose(0, 1).contiguous()
    out, state = retention_folded(qk.contiguous(), values, log_decay, state, chunk)
    return out.transpose(0, 1), state


def case(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(2, len(GAMMAS), *shape, generator=g, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    return normal(tokens, 6), normal(tokens, 6), normal(tokens, 10), normal(6, 10)


def log_decay() -> Tensor:
    return torch.tensor(GAMMAS, dtype=torch.float64).log()


def assert_close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        assert ((a.double() - b.double()).norm() / b.double().norm()).item() <= tolerance


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 7), (3, 8), (49, 7), (50, 7), (257, 64)])
def test_outputs_states_and_gradients_are_those_of_equation_6(tokens: int, chunk: int) -> None:
    q, k, v, state = case(tokens)
    results = []
    for out, last in (
        scaled(q, k, v, log_decay(), state, chunk),
        retention_recurrent(SCALE * q, k, v, log_decay(), state),
    ):
        loss = out.sin().sum() + last.cos().sum()
        results.append((out, last, *torch.autograd.grad(loss, (q, k, v, state))))
    assert_close(results[0], results[1], FLOAT64)


@pytest.mark.parametrize("of_state", [False, True])
def test_gradients_of_only_the_outputs_or_only_the_state(of_state: bool) -> None:
    q, k, v, state = case(20)
    results = []
    for out, last in (
        scaled(q, k, v, log_decay(), state, 8),
        retention_chunkwise(SCALE * q, k, v, log_decay(), state, 8),
    ):
        loss = last.cos().sum() if of_state else out.sin().sum()
        grads = torch.autograd.grad(loss, (q, k, v, state), allow_unused=True)
        results.append(tuple(torch.zeros_like(k) if g is None else g for g in grads))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64, atol=FLOAT64)


def test_operators_are_what_torch_expects_of_them() -> None:
    q, k, v, state = case(16, torch.float32)
    qk = torch.stack((q, k)).transpose(1, 2).contiguous().detach().requires_grad_()
    values = v.detach().transpose(0, 1).contiguous().requires_grad_()
    inputs = (qk, values, log_decay(), state.detach().requires_grad_(), 8)
    torch.library.opcheck(torch.ops.retnet_edge.chunkwise.default, inputs)


def test_compiled_blocks_compute_the_same() -> None:
    q, k, v, state = case(33, torch.float32)
    compiled = torch.compile(scaled, dynamic=False, backend="aot_eager")
    results = []
    for function in (scaled, compiled):
        out, last = function(q, k, v, log_decay(), state, 8)
        grads = torch.autograd.grad(out.sin().sum(), (q, k, v, state))
        results.append((out, last, *grads))
    assert_close(results[1], results[0], 1e-6)


@pytest.mark.parametrize("tokens", [4_097])
def test_float32_over_many_chunks(tokens: int) -> None:
    q, k, v, state = case(tokens, torch.float32)
    wanted = retention_chunkwise(
        q.double(), k.double(), v.double(), log_decay(), state.double(), 64
    )
    found = scaled(q, k, v, log_decay(), state, 64)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert_close(found, (SCALE * wanted[0], wanted[1]), 2e-6)


def test_decays_that_would_overflow_are_not_folded() -> None:
    assert can_fold(-torch.tensor(1 - 2.0**-5).log().item(), 1024)
    assert not can_fold(-torch.tensor(0.5).log().item(), 64)
    assert can_fold(0.0, 10**9)
    # C - 1 steps of log γ may add up to 40, and to no more
    assert can_fold(0.625, 65)
    assert not can_fold(0.625, 66)
    assert not can_fold(40.5, 2)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_the_recurrence(reverse: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, start = (torch.randn(*shape, generator=g) for shape in ((3, 5, 4), (3, 4)))
    decay = torch.tensor([0.5, 0.9, 1.0])
    out, end = scan(x, decay.log(), start, reverse)
    a = start.clone()
    for i in reversed(range(5)) if reverse else range(5):
        if reverse:
            torch.testing.assert_close(out[:, i], a)
            a = decay[:, None] * (a + x[:, i])
        else:
            torch.testing.assert_close(out[:, i], decay[:, None] * a)
            a = decay[:, None] * a + x[:, i]
    torch.testing.assert_close(end, a)
