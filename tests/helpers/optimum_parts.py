"""A small checkpoint and its bundle, for the tests of the optimum bridge."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from retnet_edge.config import ModelConfig, RetNetConfig, gammas_log_linear
from retnet_edge.model.checkpoint import build_model, write_checkpoint
from retnet_edge.tokenizer import train_tokenizer

Arrays = dict[str, NDArray[Any]]

INSTALLED = any(importlib.metadata.distributions(name="optimum-onnx"))
TEXT = "the cat sat on the mat, and the dog sat by the door"
TIED = RetNetConfig(
    vocab_size=288,
    d_model=32,
    layers=2,
    heads=2,
    key_head_dim=8,
    value_head_dim=16,
    ffn_dim=24,
    gammas=gammas_log_linear(2),
    thetas=(1.0, 0.31, 0.02, 0.004),
)
UNTIED = msgspec.structs.replace(TIED, tie_embeddings=False)


def write(folder: Path, config: ModelConfig) -> Path:
    """A checkpoint with weights large enough that no two logits are close."""
    torch.manual_seed(3)
    model = build_model(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1.0 + 0.2 * torch.randn(p.shape) if p.ndim == 1 else 0.4 * torch.randn(p.shape))
    folder.mkdir(parents=True)
    write_checkpoint(folder, model, train_tokenizer([TEXT] * 3, 270))
    return folder


def session(graph: Path) -> Any:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def run_tokens(graph: Path, tokens: NDArray[np.int64]) -> Iterator[Arrays]:
    """Outputs after each of tokens [B, T], with the outputs as the next step's states."""
    running = session(graph)
    names = [value.name for value in running.get_outputs()]
    states = {
        value.name: np.zeros((len(tokens), *value.shape[1:]), dtype=np.float32)
        for value in running.get_inputs()
        if value.name.startswith("state_")
    }
    for n, column in enumerate(tokens.T):
        position = np.full(len(tokens), n, dtype=np.int64)
        feeds = {"tokens": column[:, None], "position": position, **states}
        out = dict(zip(names, running.run(None, feeds), strict=True))
        states = {name: out[f"next_{name}"] for name in states}
        yield out
