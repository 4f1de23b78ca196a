"""RetNet checkpoints to load into transformers, and what both sides must agree on.

Files of tests take the fixtures by assignment, `base = transformers_checkpoints.base`: an imported
name would be hidden by their own parameters.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from retnet_edge.config import ModelConfig, RetNetConfig, gammas_log_linear
from retnet_edge.errors import InputError
from retnet_edge.integrations.transformers import RetNetEdgeForCausalLM
from retnet_edge.model.checkpoint import build_model, load_checkpoint, write_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.tokenizer import train_tokenizer

TEXT = "the cat sat on the mat, and the dog sat by the door"
BASE = RetNetConfig(
    vocab_size=288,
    d_model=24,
    layers=2,
    heads=2,
    key_head_dim=6,
    value_head_dim=10,
    ffn_dim=20,
    gammas=gammas_log_linear(2),
    thetas=(1.0, 0.31, 0.02),
)
VARIANTS: dict[str, RetNetConfig] = {
    "base": BASE,
    "untied": msgspec.structs.replace(BASE, tie_embeddings=False),
    "mlp": msgspec.structs.replace(BASE, ffn="mlp", activation="gelu"),
    "affine": msgspec.structs.replace(BASE, head_norm_affine=True),
    "z_n": msgspec.structs.replace(
        BASE, head_norm_eps_rule="z_n", head_norm_eps=0.02, gammas=(0.9982, 1.0)
    ),
}


def write(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint with weights large enough that no two logits are close."""
    torch.manual_seed(3)
    model = build_model(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1.0 + 0.2 * torch.randn(p.shape) if p.ndim == 1 else 0.4 * torch.randn(p.shape))
    folder.mkdir()
    write_checkpoint(folder, model, tokenizer(), dtype=dtype)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write(folder / name.replace(" ", "-"), VARIANTS[name]) for name in VARIANTS}


@pytest.fixture
def base(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["base"]


def exact(path: Path) -> tuple[RetNetEdgeForCausalLM, RetNet]:
    """The checkpoint in transformers and in ours, both float64."""
    net = load_checkpoint(path).model.double()
    assert isinstance(net, RetNet)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64), net


@cache
def tokenizer() -> Tokenizer:
    """Of fewer tokens than the vocabulary has rows: the rest of them is padding."""
    made = train_tokenizer([TEXT] * 3, 270)
    assert made.get_vocab_size() < 288
    return made


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 270, shape, generator=torch.Generator().manual_seed(seed))


def greedy(net: RetNet, prompt: Tensor, steps: int, words: Tokenizer | None = None) -> list[int]:
    """Argmax after argmax of ids with a token, one recurrent step at a time; prompt [T]."""
    known = (words or tokenizer()).get_vocab_size()
    states, token, chosen = net.initial_states(1), prompt[:1], []
    for n in range(len(prompt) + steps - 1):
        logits, states = net(
            token[None], states=states, position=torch.tensor([n]), form="recurrent"
        )
        token = prompt[n + 1 : n + 2]
        if n + 1 >= len(prompt):
            token = logits[0, -1, :known].argmax()[None]
            chosen.append(int(token))
    return chosen


LENGTHS = (4, 17, 9, 17, 1)


def padded(side: str, pad: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows = [random_tokens(length, seed=length + i) for i, length in enumerate(LENGTHS)]
    width = max(LENGTHS) + 2
    tokens, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width).long()
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, 1
    return tokens, mask, rows


def refused(call: Any, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
