"""A bundle behind transformers' generate(): the tokens of our own, whatever is asked of it.

Runs on transformers 5 (`make test`) and 4.57 (`make test-optimum`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimum_parts import TEXT, TIED, write
from torch import Tensor

from retnet_edge.config import transformer_like
from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.integrations.optimum.model import BundleCache, RetNetEdgeORTForCausalLM
from retnet_edge.integrations.transformers import RetNetEdgeForCausalLM
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.text.generate import generate
from retnet_edge.runtime.text.sampling import Sampler, Sampling


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint") / "tied", TIED)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("bundle") / "fp32.edge", say=lambda _: None)


@pytest.fixture(scope="module")
def model(bundle: Path) -> RetNetEdgeORTForCausalLM:
    return RetNetEdgeORTForCausalLM.from_pretrained(bundle, threads=1)


def ids(*tokens: int) -> Tensor:
    return torch.tensor([tokens])


def continued(model: Any, prompt: Tensor, count: int = 24, **kwargs: Any) -> list[int]:
    """What generate() adds to one prompt; it is not to stop early."""
    kwargs = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0} | kwargs
    mask = torch.ones_like(prompt)
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=count, **kwargs)
    added: list[int] = out[0, prompt.shape[1] :].tolist()
    return added


def own_greedy(bundle: Path, prompt: list[int], count: int) -> list[int]:
    """The tokens that `retnet-edge generate --temperature 0` draws."""
    opened, sampler = Bundle.open(bundle), Sampler(Sampling(temperature=0))
    session, known = open_session(opened, 1), opened.tokenizer().get_vocab_size()
    logits, drawn = session.prefill(prompt), []
    for _ in range(count):
        drawn.append(sampler.sample(logits[:known]))
        logits = session.step(drawn[-1])
    return drawn


@pytest.mark.parametrize("length", [1, 7, 131])
def test_greedy_tokens_are_those_of_our_own_generate(
    model: RetNetEdgeORTForCausalLM, bundle: Path, length: int
) -> None:
    prompt = np.random.default_rng(length).integers(1, 270, length).tolist()
    drawn = continued(model, torch.tensor([prompt]))
    assert drawn == own_greedy(bundle, prompt, 24)
    assert len(set(drawn)) > 4


def test_greedy_text_is_that_of_our_own_generate(
    model: RetNetEdgeORTForCausalLM, bundle: Path
) -> None:
    opened = Bundle.open(bundle)
    tokenizer = opened.tokenizer()
    pieces = generate(
        open_session(opened, 1),
        tokenizer,
        TEXT,
        max_tokens=20,
        sampling=Sampling(temperature=0),
    )
    prompt = tokenizer.encode(TEXT).ids
    both = [*prompt, *continued(model, torch.tensor([prompt]), 20)]
    assert tokenizer.decode(both)[len(tokenizer.decode(prompt)) :] == "".join(pieces)


def test_quantized_bundle_runs(bundle: Path, tmp_path: Path) -> None:
    out = quantize(bundle, tmp_path / "q.edge", recipe="int8-dynamic", say=lambda _: None)
    model = RetNetEdgeORTForCausalLM.from_pretrained(out, threads=1)
    assert continued(model, ids(5, 9, 40)) == own_greedy(out, [5, 9, 40], 24)


def test_end_of_text_ends_generation(model: RetNetEdgeORTForCausalLM) -> None:
    end = model.bundle.manifest.tokenizer.end_of_text
    assert end is not None
    assert model.generation_config.eos_token_id == end
    drawn = continued(model, ids(5, 9, 40))
    at = next(i for i in range(3, 24) if drawn[i] not in drawn[:i])
    assert continued(model, ids(5, 9, 40), eos_token_id=drawn[at]) == drawn[: at + 1]


def test_padded_rows_give_what_each_gives_alone(model: RetNetEdgeORTForCausalLM) -> None:
    rows = [[5, 9, 40], [77], [3, 200, 14, 8, 91, 66]]
    width = max(map(len, rows))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(
        padded, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    for row, whole in zip(rows, out, strict=True):
        assert whole[width:].tolist() == continued(model, torch.tensor([row]), 12)


def test_beams_are_those_of_the_torch_model(
    model: RetNetEdgeORTForCausalLM, checkpoint: Path
) -> None:
    torch_model = RetNetEdgeForCausalLM.from_pretrained(checkpoint)
    beams = continued(model, ids(5, 9, 40), 12, num_beams=4)
    assert beams == continued(torch_model, ids(5, 9, 40), 12, num_beams=4)
    assert beams != continued(model, ids(5, 9, 40), 12), "the beams decided nothing"


def test_a_cache_can_be_continued_twice(model: RetNetEdgeORTForCausalLM) -> None:
    cache = model(ids(5, 9, 40)).past_key_values
    first = model(ids(7), past_key_values=cache)
    model(ids(100, 101, 102))
    again = model(ids(7), past_key_values=cache)
    assert torch.equal(first.logits, again.logits)
    assert first.logits.shape == (1, 1, TIED.vocab_size)
    assert cache.get_seq_length() == 3
    assert [row.position for row in again.past_key_values.rows] == [4]
    whole = model(ids(5, 9, 40, 7)).logits
    torch.testing.assert_close(first.logits, whole, atol=2e-4, rtol=0)


def test_bad_input_is_one_sentence(model: RetNetEdgeORTForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 tokens"):
        model(ids(5), attention_mask=torch.zeros(1, 1))
    with pytest.raises(InputError, match="id 288 is out of range"):
        model(ids(5, 288))
    with pytest.raises(InputError, match=r"attention_mask has shape \[1, 3\]"):
        model(ids(5), attention_mask=torch.ones(1, 3))
    with pytest.raises(InputError, match="holds 2 rows; the input has 1"):
        model(ids(5), past_key_values=BundleCache([model._start()] * 2, 0))
    with pytest.raises(InputError, match="is a list, not a BundleCache"):
        model(ids(5), past_key_values=[])
    with pytest.raises(InputError, match="is not a bundle"):
        RetNetEdgeORTForCausalLM.from_pretrained(tmp_path)


def test_baseline_bundle_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "baseline", transformer_like(TIED))
    path = export(folder, tmp_path / "b.edge", say=lambda _: None)
    with pytest.raises(InputError, match="is a Transformer"):
        RetNetEdgeORTForCausalLM.from_pretrained(path)
