"""The three forms on the shipped weights and real text, state carried in (minutes: slow)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retnet_edge.model import retnet as model_module
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retention import retention_chunkwise, retention_parallel, retention_recurrent
from retnet_edge.model.retnet import Form, RetNet

pytestmark = pytest.mark.slow

CHECKPOINT = Path(model_module.__file__).resolve().parents[2] / "checkpoints" / "edge-15m"
FLOAT64 = 1e-10
FLOAT32 = 2e-5
LENGTHS = (2_049, 4_097)
CHUNKS = (1, 7, 64, 256, 4_096)
BEFORE = 300  # tokens that make the state carried in

Result = tuple[Tensor, list[Tensor]]


@pytest.fixture(autouse=True)
def head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound the memory: heads do not meet in retention, so one at a time is the same function."""

    def chunkwise(
        q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, chunk: int, documents: None
    ) -> tuple[Tensor, Tensor]:
        return each_head(partial(retention_chunkwise, chunk=chunk), q, k, v, decay, state)

    def parallel(
        q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, documents: None
    ) -> tuple[Tensor, Tensor]:
        return each_head(retention_parallel, q, k, v, decay, state)

    monkeypatch.setattr(model_module, "retention_chunkwise", chunkwise)
    monkeypatch.setattr(model_module, "retention_parallel", parallel)


def each_head(
    function: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    parts = [
        function(q[:, h], k[:, h], v[:, h], decay[h], state[:, h])
        for h in (slice(i, i + 1) for i in range(q.shape[1]))
    ]
    return torch.cat([out for out, _ in parts], dim=1), torch.cat([s for _, s in parts], dim=1)


@pytest.fixture(scope="module")
def shipped() -> RetNet:
    model = load_checkpoint(CHECKPOINT).model
    assert isinstance(model, RetNet)
    return model


@pytest.fixture(scope="module")
def shipped64() -> RetNet:
    model = load_checkpoint(CHECKPOINT).model
    assert isinstance(model, RetNet)
    return model.to(torch.float64)


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Token ids [1, T] of the start of the held-out text."""
    tokenizer = load_checkpoint(CHECKPOINT).tokenizer
    raw = (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8")[:60_000]
    return torch.tensor([tokenizer.encode(raw).ids[: BEFORE + max(LENGTHS)]])


@torch.no_grad()
def run(
    model: RetNet, text: Tensor, tokens: int, form: Form, states: list[Tensor], chunk: int = 256
) -> Result:
    logits, after = model(
        text[:, BEFORE : BEFORE + tokens],
        states=states,
        position=torch.tensor([BEFORE]),
        form=form,
        chunk=chunk,
    )
    return logits, after


@torch.no_grad()
def carried(model: RetNet, text: Tensor) -> list[Tensor]:
    _, states = model(text[:, :BEFORE], form="recurrent")
    assert all(state.abs().max() > 0 for state in states)
    return list(states)


def assert_close(found: Result, wanted: Result, tolerance: float) -> None:
    pairs = [(found[0], wanted[0]), *zip(found[1], wanted[1], strict=True)]
    for index, (a, b) in enumerate(pairs):
        a, b = a.double(), b.double()
        norm = ((a - b).norm() / b.norm()).item()
        largest = ((a - b).abs().max() / b.abs().max()).item()
        assert max(norm, largest) <= tolerance, (index, norm, largest)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_logits_and_states_agree_in_float64(shipped64: RetNet, text: Tensor, tokens: int) -> None:
    states = carried(shipped64, text)
    wanted = run(shipped64, text, tokens, "recurrent", states)
    assert wanted[0].shape[1] == tokens
    assert_close(run(shipped64, text, tokens, "parallel", states), wanted, FLOAT64)
    for chunk in CHUNKS:
        found = run(shipped64, text, tokens, "chunkwise", states, chunk)
        assert_close(found, wanted, FLOAT64)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_logits_and_states_agree_in_float32(
    shipped: RetNet, shipped64: RetNet, text: Tensor, tokens: int
) -> None:
    states64 = carried(shipped64, text)
    states = [state.float() for state in states64]
    exact = run(shipped64, text, tokens, "recurrent", [state.double() for state in states])
    assert_close(run(shipped, text, tokens, "recurrent", states), exact, FLOAT32)
    assert_close(run(shipped, text, tokens, "parallel", states), exact, FLOAT32)
    for chunk in CHUNKS:
        found = run(shipped, text, tokens, "chunkwise", states, chunk)
        assert_close(found, exact, FLOAT32)


def test_retention_of_the_shipped_keys_and_values(
    shipped64: RetNet, text: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k, v as each layer makes them of real text: the pure functions, float64 and float32."""
    taken: list[tuple[Tensor, ...]] = []

    def spy(
        q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, documents: None
    ) -> tuple[Tensor, Tensor]:
        taken.append((q, k, v, decay, state))
        return retention_recurrent(q, k, v, decay, state)

    monkeypatch.setattr(model_module, "retention_recurrent", spy)
    tokens = max(LENGTHS)
    run(shipped64, text, tokens, "recurrent", carried(shipped64, text))
    taken = [inputs for inputs in taken if inputs[0].shape[2] == tokens]
    assert len(taken) == len(shipped64.blocks)
    for inputs in taken:
        out, state = retention_recurrent(*inputs)
        for dtype, tolerance in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
            cast = [x.to(dtype) for x in inputs]
            assert_one(retention_recurrent(*cast), (out, state), tolerance)
            assert_one(each_head(retention_parallel, *cast), (out, state), tolerance)
            for chunk in CHUNKS:
                found = each_head(partial(retention_chunkwise, chunk=chunk), *cast)
                assert_one(found, (out, state), tolerance)


def assert_one(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], most: float) -> None:
    assert_close((found[0], [found[1]]), (wanted[0], [wanted[1]]), most)
