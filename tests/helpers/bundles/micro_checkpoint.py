"""Checkpoints small enough to export in seconds, their bundles, and their float64 models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import torch
from made_once import made_once
from numpy.typing import NDArray
from torch import Tensor

from retnet_edge.config import ModelConfig, RetNetConfig, gammas_log_linear, transformer_like
from retnet_edge.export.contract import Flavour
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import (
    LanguageModel,
    build_model,
    load_checkpoint,
    write_checkpoint,
)
from retnet_edge.model.retnet import RetNet
from retnet_edge.model.transformer import Transformer
from retnet_edge.tokenizer import train_tokenizer

VOCABULARY = 384
BASE = RetNetConfig(
    vocab_size=VOCABULARY,
    d_model=64,
    layers=2,
    heads=2,
    key_head_dim=10,
    value_head_dim=14,
    ffn_dim=52,
    gammas=gammas_log_linear(2),
    thetas=(1.0, 0.31, 0.1, 0.02, 0.0031),
)
VARIANTS: dict[str, ModelConfig] = {
    "base": BASE,
    "untied": msgspec.structs.replace(BASE, tie_embeddings=False),
    "mlp gelu": msgspec.structs.replace(BASE, ffn="mlp", activation="gelu"),
    "z_n": msgspec.structs.replace(
        BASE, head_norm_eps_rule="z_n", head_norm_eps=0.02, gammas=(0.9982, 1.0)
    ),
    "affine": msgspec.structs.replace(BASE, head_norm_affine=True, head_norm_eps=1e-3),
    "transformer": transformer_like(BASE),
}


@dataclass(frozen=True)
class Exported:
    """A bundle, the checkpoint it came from, and that checkpoint's model in float64."""

    checkpoint: Path
    bundle: Path
    model: LanguageModel
    parameters: int

    def session(self, kind: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        return ort.InferenceSession(
            str(self.bundle / f"{kind}.onnx"), options, providers=["CPUExecutionProvider"]
        )


def write_variant(name: str, folder: Path) -> Path:
    """Write the variant's checkpoint, with random weights, below `folder`; its directory."""
    torch.manual_seed(1)
    model = build_model(VARIANTS[name])
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=g)
            p.copy_(1.0 + 0.2 * noise if p.ndim == 1 else noise * (1.0 / p.shape[-1]) ** 0.5)
    bpe = train_tokenizer(["the cat sat on the mat, and the dog sat by the door"] * 3, 270)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    write_checkpoint(checkpoint, model, bpe)
    for extra in range(VOCABULARY - 120 - bpe.get_vocab_size()):
        bpe.add_tokens([f"<extra {extra}>"])
    assert VOCABULARY - 128 < bpe.get_vocab_size() <= VOCABULARY
    return checkpoint


@cache
def exported_once(folder: Path, name: str, flavour: Flavour = "ort") -> Exported:
    """The variant's checkpoint, its bundle, and the model in float64; no test changes them.

    `folder` is a session's `getbasetemp()`.
    """

    def make(place: Path) -> None:
        export(
            write_variant(name, place), place / "model.edge", flavour=flavour, say=lambda text: None
        )

    place = made_once(folder, f"exported-{flavour}-{name.replace(' ', '-')}", make)
    checkpoint = place / "checkpoint"
    exact = load_checkpoint(checkpoint).model.to(torch.float64).eval()
    parameters = sum(p.numel() for p in exact.parameters())
    return Exported(checkpoint, place / "model.edge", exact, parameters)


def random_states(config: RetNetConfig, batch: int) -> list[NDArray[np.float32]]:
    """States of the size that some hundred tokens leave."""
    rng = np.random.default_rng(3)
    shape = (batch, config.heads, config.key_head_dim, config.value_head_dim)
    return [(4.0 * rng.standard_normal(shape)).astype(np.float32) for _ in range(config.layers)]


def random_tokens(batch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(length).integers(0, VOCABULARY, (batch, length))


@torch.no_grad()
def reference(
    model: LanguageModel,
    tokens: NDArray[np.int64],
    states: list[NDArray[Any]],
    position: int,
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Logits [B, vocab] of the last token and the states, in float64, one token at a time."""
    assert isinstance(model, RetNet)
    logits, after = model(
        torch.from_numpy(tokens),
        states=[torch.from_numpy(state).double() for state in states],
        position=torch.full((tokens.shape[0],), position),
        form="recurrent",
    )
    return logits[:, -1].numpy(), [state.numpy() for state in after]


@torch.no_grad()
def transformer_reference(
    model: LanguageModel, tokens: NDArray[np.int64]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits [B, T, vocab] and the caches of one parallel pass in float64."""
    assert isinstance(model, Transformer)
    return model(torch.from_numpy(tokens))  # type: ignore[no-any-return]


def call(
    session: ort.InferenceSession,
    tokens: NDArray[np.int64],
    states: list[NDArray[Any]],
    position: int,
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    names = [value.name for value in session.get_inputs()]
    feeds = [tokens, np.full(tokens.shape[0], position, dtype=np.int64), *states]
    logits, *after = session.run(None, dict(zip(names, feeds, strict=True)))
    return logits, after


def error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest error, relative to the largest value."""
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
