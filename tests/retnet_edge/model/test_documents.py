"""Packed documents: each is computed as if it stood alone, outputs, losses and states."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import torch
from torch import Tensor

from retnet_edge.config import RetNetConfig, retnet_config, transformer_like
from retnet_edge.model.checkpoint import build_model
from retnet_edge.model.retnet import Form, RetentionMode, RetNet, document_ids
from retnet_edge.model.transformer import Transformer

END = 7
LENGTHS = (5, 1, 11, 3, 20, 9)


def config(rule: str = "constant") -> RetNetConfig:
    made = retnet_config(vocab_size=40, d_model=16, layers=2, heads=2, ffn_dim=24)
    return msgspec.structs.replace(made, head_norm_eps_rule=rule, head_norm_eps=1e-2)


def packed() -> tuple[Tensor, list[tuple[int, int]]]:
    """Tokens [1, T], and where each document begins and ends; the last one has no end token."""
    g = torch.Generator().manual_seed(3)
    parts = []
    for length in LENGTHS:
        parts += [torch.randint(8, 40, (length,), generator=g), torch.tensor([END])]
    tokens = torch.cat(parts[:-1])[None]
    borders = [0, *(torch.nonzero(tokens[0] == END).flatten() + 1).tolist(), tokens.shape[1]]
    return tokens, list(pairwise(borders))


@pytest.mark.parametrize("rule", ["constant", "z_n"])
@pytest.mark.parametrize(
    "mode", [("parallel", 1), ("recurrent", 1), *(("chunkwise", c) for c in (1, 4, 7, 64))]
)
@pytest.mark.parametrize("cut", [0, 3, 17, 18])
def test_a_retnet_sees_each_document_alone(rule: str, mode: tuple[Form, int], cut: int) -> None:
    """Also when the call begins inside a document, with its state and position (cut > 0)."""
    torch.manual_seed(0)
    model = RetNet(config(rule)).double()
    form, chunk = mode
    tokens, spans = packed()
    states, position = None, None
    if cut:
        begin = max(first for first, _ in spans if first <= cut)
        position = torch.tensor([cut - begin])
        if cut > begin:
            _, states = model(tokens[:, begin:cut], form="recurrent")
    documents = document_ids(tokens[:, cut:], END)
    found, last = model(
        tokens[:, cut:],
        states=states,
        position=position,
        form=form,
        chunk=chunk,
        documents=documents,
    )
    for first, stop in spans:
        alone, final = model(tokens[:, first:stop], form="recurrent")
        kept = alone[:, max(cut - first, 0) :]
        if kept.shape[1]:
            assert (found[:, max(first - cut, 0) : stop - cut] - kept).abs().max() < 1e-10
    for a, b in zip(last, final, strict=True):
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("span_chunks", [1, 3])
def test_borders_between_spans(span_chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retnet_edge.model.retention.SPAN_CHUNKS", span_chunks)
    torch.manual_seed(0)
    model = RetNet(config()).double()
    tokens, _ = packed()
    documents = document_ids(tokens, END)
    wanted = model(tokens, form="recurrent", documents=documents)
    for chunk in (2, 5):
        found = model(tokens, chunk=chunk, documents=documents)
        assert (found[0] - wanted[0]).abs().max() < 1e-10
        for a, b in zip(found[1], wanted[1], strict=True):
            assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("architecture", ["retnet", "transformer"])
def test_the_loss_is_that_of_the_documents_apart(architecture: str) -> None:
    torch.manual_seed(0)
    made = config() if architecture == "retnet" else transformer_like(config())
    model = build_model(made).double()
    assert isinstance(model, (RetNet, Transformer))
    tokens, spans = packed()
    found = model.loss(tokens, mode=RetentionMode("chunkwise", 4), document_end=END)
    nats = 0.0
    for first, stop in spans:
        logits, _ = model(tokens[:, first:stop])
        targets = tokens[0, first + 1 : stop + 1]
        log_p = logits[0, : len(targets)].log_softmax(-1)
        nats -= log_p.gather(1, targets[:, None]).sum().item()
    assert found.item() == pytest.approx(nats / (tokens.shape[1] - 1), abs=1e-10)
    assert abs(model.loss(tokens).item() - found.item()) > 1e-6


def test_ids_count_the_borders_before_a_token() -> None:
    tokens = torch.tensor([[END, 3, 4, END, END, 5], [1, 2, 3, 4, 5, END]])
    assert document_ids(tokens, END).tolist() == [[0, 1, 1, 1, 2, 3], [0] * 6]
