"""RetNet in transformers: what a call may give, masks first, and what is refused.

Runs on transformers 5 (`make test`) and 4.57 (`make test-hf4`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers_checkpoints
from transformers import AutoModelForCausalLM
from transformers_checkpoints import (
    LENGTHS,
    VARIANTS,
    exact,
    greedy,
    padded,
    random_tokens,
    refused,
)

from retnet_edge.integrations.transformers import RetNetEdgeConfig

checkpoints = transformers_checkpoints.checkpoints
base = transformers_checkpoints.base


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_are_what_they_are_alone(
    side: str, name: str, checkpoints: dict[str, Path]
) -> None:
    model, net = exact(checkpoints[name])
    tokens, mask, rows = padded(side, pad=0)
    found = model(tokens, attention_mask=mask, use_cache=True)
    for i, row in enumerate(rows):
        logits, states = net(row[None], form="recurrent")
        torch.testing.assert_close(found.logits[i][mask[i] == 1], logits[0], rtol=0, atol=1e-10)
        for a, b in zip(found.past_key_values.states, states, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=0, atol=1e-10)
    assert found.past_key_values.position.tolist() == list(LENGTHS)
    other = model(torch.where(mask == 1, tokens, 99), attention_mask=mask, use_cache=True)
    assert torch.equal(found.logits, other.logits)
    alone = model(tokens, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(alone[mask == 1], found.logits[mask == 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["base", "z_n"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_writes_what_each_row_writes(
    side: str, name: str, checkpoints: dict[str, Path]
) -> None:
    model, net = exact(checkpoints[name])
    tokens, mask, rows = padded(side, pad=0)
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}
    for how in ({}, {"use_cache": False}):
        found = model.generate(tokens, pad_token_id=0, **options, **how)
        for i, row in enumerate(rows):
            assert found[i, tokens.shape[1] :].tolist() == greedy(net, row, 8)


@torch.no_grad()
def test_a_masked_token_inside_a_text_is_not_there(base: Path) -> None:
    model, net = exact(base)
    tokens, mask = random_tokens(1, 11), torch.ones(1, 11).long()
    mask[0, 3:6] = 0
    found = model(tokens, attention_mask=mask)
    logits, states = net(tokens[mask == 1][None])
    torch.testing.assert_close(found.logits[mask == 1][None], logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.past_key_values.states[1], states[1], rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_row_of_nothing_is_left_alone(base: Path) -> None:
    model, _ = exact(base)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    found = model(random_tokens(2, 3), attention_mask=mask)
    assert torch.count_nonzero(found.past_key_values.states[0][1]) == 0
    assert torch.isfinite(found.logits).all()


@torch.no_grad()
def test_logits_to_keep(base: Path) -> None:
    model, _ = exact(base)
    tokens = random_tokens(2, 13)
    full = model(tokens).logits
    for kept, wanted in ((1, full[:, -1:]), (4, full[:, -4:]), (0, full)):
        torch.testing.assert_close(model(tokens, logits_to_keep=kept).logits, wanted)
    some = torch.tensor([2, 5])
    torch.testing.assert_close(model(tokens, logits_to_keep=some).logits, full[:, some])
    assert isinstance(model(tokens, return_dict=False), tuple)


def test_bad_inputs_are_refused(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokens = random_tokens(2, 5)
    cache = model(tokens).past_key_values
    ones = torch.ones(2, 4)
    refused(lambda: model(tokens, attention_mask=ones), "attention_mask", "[2, 4]", "[2, 5]")
    refused(lambda: model(tokens[:1], past_key_values=cache), "2 rows", "has 1")
    refused(lambda: model(tokens, past_key_values=((ones,),)), "tuple", "RetNetCache")
    refused(lambda: model(tokens, labels=tokens, logits_to_keep=1), "labels", "logits_to_keep")
    for name, value in (("position_ids", tokens), ("output_hidden_states", True)):
        refused(lambda name=name, value=value: model(tokens, **{name: value}), name)
    refused(lambda: model(tokens[:, :0]), "input_ids", "no token")
    refused(lambda: RetNetEdgeConfig(vocab_size=5), "d_model")
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(tokens[:1], prompt_lookup_num_tokens=2, max_new_tokens=2)
