"""RetNet in transformers: generate(), with the states as its cache.

Runs on transformers 5 (`make test`) and 4.57 (`make test-hf4`).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers_checkpoints
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers_checkpoints import VARIANTS, exact, greedy, random_tokens, tokenizer

from retnet_edge.integrations.transformers import RetNetCache
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet

checkpoints = transformers_checkpoints.checkpoints
base = transformers_checkpoints.base


def test_generation_ends_at_the_end_of_text(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.generation_config.eos_token_id == 0
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.max_new_tokens == 3


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_greedy_is_the_recurrent_loop(name: str, checkpoints: dict[str, Path]) -> None:
    model, net = exact(checkpoints[name])
    for length in (1, 13, 131):
        prompt = random_tokens(length, seed=length)
        out = model.generate(prompt[None], max_new_tokens=15, do_sample=False, eos_token_id=None)
        assert out[0, :length].tolist() == prompt.tolist()
        assert out[0, length:].tolist() == greedy(net, prompt, 15)


def test_it_stops_at_the_end_of_text(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(5, seed=4)
    text = greedy(net, prompt, 12)
    end = text[4]
    wanted = text[: text.index(end) + 1]
    assert len(wanted) < 12
    out = model.generate(prompt[None], max_new_tokens=12, eos_token_id=end, pad_token_id=0)
    assert out[0, 5:].tolist() == wanted


def test_sampling_draws_from_the_softmax(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(1, 7)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "eos_token_id": None}
    torch.manual_seed(11)
    found = model.generate(prompt, max_new_tokens=10, temperature=0.7, **options)
    torch.manual_seed(11)
    tokens = prompt
    for _ in range(10):  # the whole text again and again, without any state
        logits = net(tokens)[0][:, -1].float() / 0.7
        logits[:, tokenizer().get_vocab_size() :] = -torch.inf
        p = logits.softmax(-1)
        tokens = torch.cat((tokens, torch.multinomial(p, 1)), dim=1)
    assert found.tolist() == tokens.tolist()


@torch.no_grad()
def test_beam_search_finds_what_trying_everything_finds(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(2, 5)
    found = model.generate(
        prompt, max_new_tokens=2, num_beams=288, eos_token_id=None, length_penalty=0.0
    )
    first = net(prompt)[0][:, -1].log_softmax(-1)
    for row in range(2):
        both = torch.cat((prompt[row].expand(288, -1), torch.arange(288)[:, None]), dim=1)
        scores = first[row][:, None] + net(both)[0][:, -1].log_softmax(-1)
        best = int(scores.argmax())
        assert found[row, 5:].tolist() == [best // 288, best % 288]


def test_beams_carry_their_own_states(base: Path) -> None:
    model, _ = exact(base)
    prompt = random_tokens(2, 6)
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 4, "eos_token_id": None}
    with_states = model.generate(prompt, num_return_sequences=3, **options)
    without = model.generate(prompt, num_return_sequences=3, use_cache=False, **options)
    assert with_states.tolist() == without.tolist()
    assert len({tuple(row) for row in with_states.tolist()}) == 6


@torch.no_grad()
def test_generation_sees_one_token_at_a_time(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = exact(base)
    widths, real = [], model.retnet.features

    def spy(tokens: Tensor, *args: Any) -> Any:
        widths.append(tokens.shape[1])
        return real(tokens, *args)

    monkeypatch.setattr(model.retnet, "features", spy)
    model.generate(random_tokens(1, 9), max_new_tokens=5, eos_token_id=None)
    assert widths == [9, 1, 1, 1, 1]
    widths.clear()
    model.generate(random_tokens(1, 9), max_new_tokens=3, eos_token_id=None, use_cache=False)
    assert widths == [9, 10, 11]


@torch.no_grad()
def test_the_cache_does_not_grow_and_can_be_continued_twice(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(1, 9)
    first = model.generate(
        prompt, max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True
    )
    cache = first.past_key_values
    assert isinstance(cache, RetNetCache)
    assert [list(s.shape) for s in cache.states] == [[1, 2, 6, 10]] * 2
    assert cache.get_seq_length() == 12  # the last token was not fed in yet
    kept = [s.clone() for s in cache.states]
    for seed in (1, 2):
        chat = torch.cat((first.sequences, random_tokens(1, 5, seed=seed)), dim=1)
        found = model.generate(chat, past_key_values=cache, max_new_tokens=6, eos_token_id=None)
        assert found[0, chat.shape[1] :].tolist() == greedy(net, chat[0], 6)
    for a, b in zip(cache.states, kept, strict=True):
        assert torch.equal(a, b)
    cache.batch_repeat_interleave(3)
    both = torch.cat((first.sequences.expand(3, -1), random_tokens(3, 2)), dim=1)
    found = model.generate(both, past_key_values=cache, max_new_tokens=4, eos_token_id=None)
    for row in range(3):
        assert found[row, both.shape[1] :].tolist() == greedy(net, both[row], 4)


SHIPPED = Path(__file__).resolve().parents[3] / "checkpoints" / "edge-15m"


@torch.no_grad()
def test_the_shipped_checkpoint() -> None:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    ours = load_checkpoint(SHIPPED)
    assert isinstance(ours.model, RetNet)
    tokens = tokenizer("My fellow citizens, the condition", return_tensors="pt")
    assert torch.equal(model(**tokens).logits, ours.model(tokens["input_ids"])[0])
    out = model.generate(**tokens, max_new_tokens=12, do_sample=False)
    wanted = greedy(ours.model, tokens["input_ids"][0], 12, ours.tokenizer)
    assert out[0, tokens["input_ids"].shape[1] :].tolist() == wanted
    pairs = itertools.pairwise(wanted)
    assert any(a != b for a, b in pairs), "it repeats one token"
