"""The three forms of retention are one function, outputs and states, however the text is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from retnet_edge.model.retention import (
    SPAN_CHUNKS,
    retention_chunkwise,
    retention_parallel,
    retention_recurrent,
    retention_span,
)

FLOAT64 = 1e-10
FLOAT32 = 2e-5
LENGTHS = (2_049, 4_097)
CHUNKS = (1, 7, 64, 256, 4_096)
GAMMAS = (0.5, 1.0 - 1.0 / 512.0, 1.0)

Result = tuple[Tensor, Tensor]
Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def case(tokens: int, *, batch: int = 1, gammas: Sequence[float] = GAMMAS, seed: int = 0) -> Case:
    """Random q, k [B, H, T, 6], v [B, H, T, 10], log γ [H] and a state to carry in, float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, len(gammas), *shape, generator=g, dtype=torch.float64)

    q, k, v, state = normal(tokens, 6), normal(tokens, 6), normal(tokens, 10), normal(6, 10)
    return q, k, v, torch.tensor(gammas, dtype=torch.float64).log(), 3.0 * state


def eq6(
    q: Tensor, k: Tensor, v: Tensor, gammas: Sequence[float], state: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """S_n = γ S_{n-1} + k_nᵀ v_n, o_n = q_n S_n: the paper's equation in NumPy, γ as it is."""
    qn, kn, vn = q.numpy(), k.numpy(), v.numpy()
    S = state.numpy().copy()
    out = np.empty_like(vn)
    gamma = np.asarray(gammas)[None, :, None, None]
    for n in range(qn.shape[2]):
        S = gamma * S + np.einsum("bhk,bhv->bhkv", kn[:, :, n], vn[:, :, n])
        out[:, :, n] = np.einsum("bhk,bhkv->bhv", qn[:, :, n], S)
    return out, S


def assert_close(found: Result, wanted: Result, tolerance: float) -> None:
    """Outputs and states, by norm and by the largest element, of every head by itself."""
    for name, a, b in zip(("out", "state"), found, wanted, strict=True):
        assert a.shape == b.shape
        for head in range(b.shape[1]):
            x, y = a[:, head].double(), b[:, head].double()
            assert torch.isfinite(x).all()
            norm = ((x - y).norm() / y.norm()).item()
            largest = ((x - y).abs().max() / y.abs().max()).item()
            assert max(norm, largest) <= tolerance, (name, head, norm, largest)


def form(name: str) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Result]:
    """A form by name; "chunkwise 7" has chunks of 7."""
    if name == "parallel":
        return retention_parallel
    if name == "recurrent":
        return retention_recurrent
    chunk = int(name.split()[1])
    return lambda q, k, v, decay, state: retention_chunkwise(q, k, v, decay, state, chunk)


FORMS = ("parallel", "recurrent", *(f"chunkwise {chunk}" for chunk in CHUNKS))


@pytest.fixture(scope="module", params=LENGTHS)
def long_case(request: pytest.FixtureRequest) -> tuple[Case, Result]:
    """Inputs with a state carried in, and what eq. 6 makes of them."""
    inputs = case(request.param)
    q, k, v, _, state = inputs
    out, last = eq6(q, k, v, GAMMAS, state)
    return inputs, (torch.from_numpy(out), torch.from_numpy(last))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_equation_6_in_float64(long_case: tuple[Case, Result], name: str) -> None:
    inputs, wanted = long_case
    assert_close(form(name)(*inputs), wanted, FLOAT64)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_equation_6_in_float32(long_case: tuple[Case, Result], name: str) -> None:
    inputs, wanted = long_case
    q, k, v, decay, state = (x.float() for x in inputs)
    out, last = form(name)(q, k, v, decay, state)
    assert out.dtype == last.dtype == torch.float32
    assert_close((out, last), wanted, FLOAT32)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 127, 129])
@pytest.mark.parametrize(
    "name", ["parallel", "recurrent", "chunkwise 1", "chunkwise 2", "chunkwise 7", "chunkwise 128"]
)
def test_short_and_odd_lengths_of_two_sequences(tokens: int, name: str) -> None:
    q, k, v, decay, state = case(tokens, batch=2, seed=tokens)
    out, last = eq6(q, k, v, GAMMAS, state)
    wanted = torch.from_numpy(out), torch.from_numpy(last)
    assert_close(form(name)(q, k, v, decay, state), wanted, FLOAT64)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("name", ["parallel", "recurrent", "chunkwise 64"])
def test_a_forgetting_and_a_never_forgetting_head(gamma: float, name: str) -> None:
    """γ = 0.5 underflows 0.5^1100 to zero on the way; γ = 1 is a plain running sum."""
    q, k, v, decay, state = case(1_101, gammas=(gamma,))
    out, last = form(name)(q, k, v, decay, state)
    if gamma == 1.0:
        total = state + torch.einsum("bhtk,bhtv->bhkv", k, v)
        assert_close((out[:, :, -1:], last), (q[:, :, -1:] @ total, total), FLOAT64)
    wanted = eq6(q, k, v, [gamma], state)
    assert_close((out, last), (torch.from_numpy(wanted[0]), torch.from_numpy(wanted[1])), FLOAT64)


def test_the_state_carried_in_matters_and_fades_with_gamma() -> None:
    q, k, v, decay, state = case(9)
    for name in ("parallel", "recurrent", "chunkwise 4"):
        _, with_state = form(name)(q, k, v, decay, state)
        _, without = form(name)(q, k, v, decay, torch.zeros_like(state))
        kept = torch.tensor(GAMMAS, dtype=torch.float64)[:, None, None] ** 9 * state
        torch.testing.assert_close(with_state - without, kept, rtol=0, atol=1e-12)


def test_inputs_are_not_written_to() -> None:
    inputs = case(50)
    before = [x.clone() for x in inputs]
    for name in ("parallel", "recurrent", "chunkwise 16"):
        form(name)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_chunkwise_goes_on_past_one_span() -> None:
    tokens = 2 * SPAN_CHUNKS * 3 + 2
    q, k, v, decay, state = case(tokens)
    wanted = retention_span(q, k, v, decay, state, 3)
    assert_close(retention_chunkwise(q, k, v, decay, state, 3), wanted, FLOAT64)


def test_the_future_does_not_leak_into_the_past() -> None:
    q, k, v, decay, state = case(40)
    for name in ("parallel", "recurrent", "chunkwise 16"):
        base, _ = form(name)(q, k, v, decay, state)
        k2, v2 = k.clone(), v.clone()
        k2[:, :, 23:] += 1.0
        v2[:, :, 23:] -= 1.0
        changed, _ = form(name)(q, k2, v2, decay, state)
        assert torch.equal(base[:, :, :23], changed[:, :, :23])
        assert not torch.allclose(base[:, :, 23:], changed[:, :, 23:])


@pytest.mark.parametrize("chunk", [7, 256])
def test_gradients_agree_between_the_forms(chunk: int) -> None:
    """Training takes the chunkwise form's gradient for the recurrent function's."""
    grads = []
    for name in ("recurrent", "parallel", f"chunkwise {chunk}"):
        q, k, v, decay, state = case(65)
        leaves = [x.requires_grad_() for x in (q, k, v, state)]
        out, last = form(name)(q, k, v, decay, state)
        (out.square().sum() + last.sin().sum()).backward()  # type: ignore[no-untyped-call]
        grads.append([leaf.grad for leaf in leaves])
    for other in grads[1:]:
        for a, b in zip(other, grads[0], strict=True):
            assert a is not None
            assert b is not None
            assert ((a - b).norm() / b.norm()).item() <= FLOAT64


def with_documents(name: str) -> Callable[..., Result]:
    """A form by name that takes the ids of documents as its last argument."""
    if name == "parallel":
        return retention_parallel
    if name == "recurrent":
        return retention_recurrent
    chunk = int(name.split()[1])
    return lambda q, k, v, decay, state, documents: retention_chunkwise(
        q, k, v, decay, state, chunk, documents
    )


@pytest.mark.parametrize("name", ["parallel", "recurrent", "chunkwise 1", "chunkwise 3"])
@pytest.mark.parametrize(
    "ids", [[0], [1], [0, 0], [0, 1], [1, 1], [1, 2], [0, 0, 1, 1, 2, 2, 2], [1, 1, 1, 2, 3, 3]]
)
def test_only_document_0_takes_the_state_carried_in(name: str, ids: list[int]) -> None:
    """A document that began before the call has id 0; each other one starts from nothing."""
    q, k, v, decay, state = case(len(ids))
    outs, last = [], state
    for document in sorted(set(ids)):
        at = [t for t, its in enumerate(ids) if its == document]
        start = state if document == 0 else torch.zeros_like(state)
        part, last = (
            torch.from_numpy(x) for x in eq6(q[:, :, at], k[:, :, at], v[:, :, at], GAMMAS, start)
        )
        outs.append(part)
    found = with_documents(name)(q, k, v, decay, state, torch.tensor([ids]))
    assert_close(found, (torch.cat(outs, dim=2), last), FLOAT64)


@settings(max_examples=60)
@given(
    tokens=st.integers(2, 40),
    cut=st.floats(0.0, 1.0, exclude_max=True),
    first=st.sampled_from(["parallel", "recurrent", "chunkwise 3", "chunkwise 8"]),
    second=st.sampled_from(["parallel", "recurrent", "chunkwise 3", "chunkwise 8"]),
    gamma=st.floats(1e-3, 1.0),
    seed=st.integers(0, 1_000),
)
def test_two_calls_with_the_state_carried_equal_one(
    tokens: int, cut: float, first: str, second: str, gamma: float, seed: int
) -> None:
    q, k, v, decay, state = case(tokens, gammas=(gamma, 0.97), seed=seed)
    at = 1 + math.floor(cut * (tokens - 1))
    head, middle = form(first)(q[:, :, :at], k[:, :, :at], v[:, :, :at], decay, state)
    tail, last = form(second)(q[:, :, at:], k[:, :, at:], v[:, :, at:], decay, middle)
    wanted = eq6(q, k, v, [gamma, 0.97], state)
    assert_close(
        (torch.cat((head, tail), dim=2), last),
        (torch.from_numpy(wanted[0]), torch.from_numpy(wanted[1])),
        FLOAT64,
    )
